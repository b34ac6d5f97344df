//! No text and no kernel makes the interpreter panic.

use amem_ptxsim::{Kernel, Launch, Memory, Module, Schedule, run};
use proptest::prelude::*;

use crate::harness::kernel;
use crate::scheduling::PRODUCT;

/// Words that PTX is made of, so that random texts get further than the lexer.
const WORDS: &[&str] = &[
    ".entry",
    "k",
    "(",
    ")",
    "{",
    "}",
    ".param",
    ".u64",
    ".u32",
    ".b8",
    ".reg",
    ".pred",
    "%r",
    "%p",
    "<",
    ">",
    "8",
    ";",
    ",",
    "[",
    "]",
    "+",
    "-",
    "@",
    "!",
    "|",
    ":",
    ".shared",
    ".align",
    "16",
    ".extern",
    "ld.global.u32",
    "st.shared.v4.b32",
    "%r0",
    "%r1",
    "%p0",
    "add.u32",
    "mov.b64",
    "bra",
    "ret",
    "bar.sync",
    "0",
    "0xffffffffffffffff",
    "0f7FC00000",
    "_",
    "cp.async.cg.shared.global",
    "cp.async.wait_group",
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "setp.lt.and.f32",
    "cvt.rn.f16x2.f32",
    "atom.global.cas.b32",
    "shfl.sync.idx.b32",
    "%tid.x",
    "ldmatrix",
    "\"",
    "/*",
    ".version",
    "8.0",
    ".target",
    "sm_80",
    "99999999999999999999",
    "18446744073709551615",
    ".maxntid",
    ".loc",
    "\n",
];

/// Runs a kernel as far as it gets, with parameters that are addresses and small numbers.
fn try_to_run(kernel: &Kernel, seed: u64) {
    let mut memory = Memory::new();
    let address = memory.allocate("memory", 16 * 1024);
    let bytes: Vec<u8> = (0..16 * 1024u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    memory.write(address, &bytes).unwrap();
    let mut parameters = Vec::new();
    for parameter in kernel.parameters() {
        parameters.resize(parameter.offset, 0);
        let value = if parameter.size == 8 { address } else { 96 };
        parameters.extend(value.to_le_bytes().into_iter().cycle().take(parameter.size));
    }
    let launch = Launch {
        kernel: &kernel.with_step_limit(20_000),
        grid: [2, 1, 1],
        block: kernel.required_threads().unwrap_or([48, 1, 1]),
        dynamic_shared: 8192,
        parameters: &parameters,
        schedule: Schedule { seed, ..Schedule::default() },
    };
    if let Err(fault) = run(&launch, &mut memory) {
        assert!(!fault.to_string().is_empty());
    }
}

fn try_text(text: &str, seed: u64) {
    match Module::parse(text) {
        Ok(module) => module.kernels().iter().for_each(|kernel| try_to_run(kernel, seed)),
        Err(error) => assert!(error.line >= 1 && error.line as usize <= text.lines().count() + 1, "{error}"),
    }
}

/// Texts of kernels that tests know, and those that this repository ships.
fn real_texts() -> Vec<String> {
    let mut texts = vec![PRODUCT.to_owned(), kernel(EVERYTHING)];
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels/ptx");
    let mut files: Vec<_> = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|f| f.path()).collect();
    files.sort();
    for file in files {
        texts.push(std::fs::read_to_string(file).unwrap());
    }
    texts
}

/// One of each kind of instruction.
const EVERYTHING: &str = "
    setp.lt.u32 %p0, %tid, 32;
    ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%in];
    st.shared.v4.u32 [%base], {%r0, %r1, %r2, %r3};
    bar.sync 0;
    cp.async.ca.shared.global [%tile + 1024], [%src], 4, %r9;
    cp.async.commit_group;
    cp.async.wait_group 0;
    cp.async.wait_all;
    shl.b32 %r4, %r0, %r1; shr.s32 %r5, %r0, %r2; div.u32 %r6, %r0, 7; rem.s32 %r7, %r0, %r1;
    bfe.s32 %r8, %r0, %r1, %r2; bfi.b32 %r8, %r0, %r1, %r2, %r3; prmt.b32 %r8, %r0, %r1, %r2;
    shf.l.clamp.b32 %r8, %r0, %r1, %r2; lop3.b32 %r8, %r0, %r1, %r2, 0x96; popc.b32 %r8, %r0; clz.b32 %r8, %r1;
    cvt.u64.u32 %d0, %r0; shl.b64 %d1, %d0, %r1; mul.hi.s64 %d2, %d0, %d1; bfe.u64 %d3, %d2, %r2, %r3;
    cvt.rn.f32.s32 %f0, %r0; cvt.rzi.s32.f32 %r8, %f0; cvt.rn.f16.f32 %h0, %f0; cvt.f32.f16 %f1, %h0;
    cvt.rn.bf16x2.f32 %r8, %f0, %f1; fma.rn.ftz.f32 %f2, %f0, %f1, %f0; ex2.approx.f32 %f3, %f2;
    mov.b32 {%h1, %h2}, %r8; mov.b64 %d4, {%r0, %r1}; selp.b32 %r10, %r0, %r1, %p0;
    shfl.sync.idx.b32 %r11|%p1, %r0, %r1, 31, -1; vote.sync.ballot.b32 %r12, %p0, -1; redux.sync.add.u32 %r13, %r0, -1;
    atom.shared.add.u32 %r14, [%base + 8], %r0; red.global.max.u32 [%in + 64], %r0; activemask.b32 %r15;
    bar.warp.sync -1; membar.gl; bar.sync 1, 64;
    @%p0 bra skip;
    trap;
    skip:
    st.global.u32 [%dst], %r0;";

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        try_text(&String::from_utf8_lossy(&bytes), 0);
    }

    #[test]
    fn random_words_never_panic(words in prop::collection::vec(prop::sample::select(WORDS), 0..80)) {
        try_text(&words.join(" "), 0);
        try_text(&kernel(&words.join(" ")), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn damaged_kernels_never_panic(
        text in prop::sample::select(real_texts()),
        damages in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..4), 1..4),
        seed in any::<u64>(),
    ) {
        let mut pieces: Vec<String> = text.split_inclusive([' ', ',', '.', '\n']).map(str::to_owned).collect();
        for (at, from, kind) in damages {
            let (at, from) = (at.index(pieces.len()), from.index(pieces.len()));
            match kind {
                0 => { pieces.remove(at); }
                1 => { let piece = pieces[from].clone(); pieces.insert(at, piece); }
                2 => pieces.swap(at, from),
                _ => pieces[at] = "4294967295".to_owned(),
            }
            if pieces.is_empty() {
                break;
            }
        }
        try_text(&pieces.concat(), seed);
    }
}

#[test]
fn no_deletion_of_an_instruction_panics() {
    for text in [PRODUCT.to_owned(), kernel(EVERYTHING)] {
        let module = Module::parse(&text).unwrap();
        for kernel in module.kernels() {
            for index in 0..kernel.instructions() {
                try_to_run(&kernel.without(index), index as u64);
            }
        }
    }
}
