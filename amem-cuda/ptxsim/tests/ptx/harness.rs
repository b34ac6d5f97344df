//! Kernels that tests are made of, and how they are run.

use amem_ptxsim::{Copies, Counts, Fault, Launch, Memory, Module, Schedule, run};

/// Bytes of the input, the output, and the kernel's shared tile.
pub(crate) const BYTES: usize = 4096;

/// Puts a body into a kernel with two pointers, which has these registers:
/// `%in`, `%out` (pointers), `%tid`, `%src` and `%dst` (the thread's 4 bytes of input and output), `%tile` (the thread's
/// 4 bytes of the shared tile), and `%r`, `%d`, `%h`, `%f`, `%p` for the body.
pub(crate) fn kernel(body: &str) -> String {
    format!(
        ".version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.visible .entry test(.param .u64 in, .param .u64 out)
{{
    .reg .b32 %r<32>;
    .reg .b64 %d<32>;
    .reg .b16 %h<16>;
    .reg .f32 %f<32>;
    .reg .pred %p<8>;
    .reg .b32 %tid, %tile, %base;
    .reg .b64 %in, %out, %src, %dst;
    .shared .align 16 .b8 tile[{BYTES}];
    ld.param.u64 %in, [in];
    ld.param.u64 %out, [out];
    mov.u32 %tid, %tid.x;
    mul.wide.u32 %src, %tid, 4;
    add.u64 %dst, %out, %src;
    add.u64 %src, %in, %src;
    mov.u32 %base, tile;
    mad.lo.u32 %tile, %tid, 4, %base;
{body}
    ret;
}}
"
    )
}

/// Where and how a kernel is run.
#[derive(Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) seed: u64,
    pub(crate) copies: Copies,
}

impl Default for Setting {
    fn default() -> Self {
        Self { blocks: 1, threads: 64, seed: 0, copies: Copies::Late }
    }
}

/// Runs a text's kernel `test`. Returns what it did, and the memory and the address of the output.
pub(crate) fn launch(text: &str, input: &[u8], setting: Setting) -> Result<(Counts, Memory, u64), Fault> {
    let module = Module::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut memory = Memory::new();
    let source = memory.allocate("input", BYTES);
    memory.write(source, input).unwrap();
    let target = memory.allocate("output", BYTES);
    let parameters: Vec<u8> = [source, target].iter().flat_map(|address| address.to_le_bytes()).collect();
    let launch = Launch {
        kernel: module.kernel("test").unwrap(),
        grid: [setting.blocks, 1, 1],
        block: [setting.threads, 1, 1],
        dynamic_shared: 1024,
        parameters: &parameters,
        schedule: Schedule { seed: setting.seed, copies: setting.copies },
    };
    let counts = run(&launch, &mut memory)?;
    Ok((counts, memory, target))
}

/// Input whose bytes are all written, none like the one before.
pub(crate) fn input() -> Vec<u8> {
    (0..BYTES).map(|index| (index * 7 + index / 256) as u8).collect()
}
