//! Launches kernels on the interpreter.
//!
//! ```ignore
//! let kernel = kernel("elementwise_f16", "add");
//! let mut device = Device::new();
//! let x = device.upload("x", &[1f32, 2.0]);
//! let y = device.upload_as(Type::F16, "y", &[3.0, 4.0]);
//! device.launch(&kernel, [1, 1, 1], 256, 0, &[x.into(), y.into(), 2u32.into()], SCHEDULES[0])?;
//! let sums: Vec<f32> = device.read(x)?;
//! ```

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use amem_ptxsim::{Copies, Counts, Kernel, Launch, Memory, Module, Schedule};
use bytemuck::Pod;
use half::{bf16, f16};

/// Orders in which warps and copies may come, of the many that there are: a kernel has to be right in each.
pub(crate) const SCHEDULES: [Schedule; 3] = [
    Schedule { seed: 1, copies: Copies::Late },
    Schedule { seed: 2, copies: Copies::Early },
    Schedule { seed: 3, copies: Copies::Late },
];

/// The text of a module under `kernels/ptx`.
pub(crate) fn text(module: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/ptx").join(module).with_extension("ptx");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A module under `kernels/ptx`, parsed once.
pub(crate) fn module(name: &str) -> &'static Module {
    static MODULES: OnceLock<Mutex<HashMap<String, &'static Module>>> = OnceLock::new();
    let mut modules = MODULES.get_or_init(|| Mutex::new(HashMap::new())).lock().unwrap_or_else(PoisonError::into_inner);
    modules.entry(name.to_owned()).or_insert_with(|| {
        let module = Module::parse(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        Box::leak(Box::new(module))
    })
}

/// A kernel of a module.
pub(crate) fn kernel(name: &str, entry: &str) -> &'static Kernel {
    module(name).kernel(entry).unwrap_or_else(|| panic!("{name} has no kernel {entry}"))
}

/// What a module's head says of a kernel, as `// entry: rows 128, threads 128, shared 65536`.
pub(crate) fn constant(module: &str, entry: &str, name: &str) -> u32 {
    let text = text(module);
    text.lines()
        .take_while(|line| line.starts_with("//"))
        .filter_map(|line| line.strip_prefix("// ")?.strip_prefix(entry)?.strip_prefix(':'))
        .flat_map(|constants| constants.split(','))
        .find_map(|constant| constant.trim().strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        .unwrap_or_else(|| panic!("{module} does not say {name} of {entry}"))
}

/// A number type of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    F32,
    F16,
    Bf16,
}

impl Type {
    /// As modules are named.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    pub(crate) fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// Half the distance of 1 to the next number: the relative error of rounding.
    pub(crate) fn rounding(self) -> f64 {
        match self {
            Self::F32 => f64::from(f32::EPSILON) / 2.0,
            Self::F16 => f16::EPSILON.to_f64() / 2.0,
            Self::Bf16 => bf16::EPSILON.to_f64() / 2.0,
        }
    }

    /// The nearest number of this type.
    pub(crate) fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    pub(crate) fn encode(self, numbers: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => bytemuck::cast_slice(numbers).to_vec(),
            Self::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Self::Bf16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        }
    }

    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect(),
            Self::F16 => bytes.as_chunks().0.iter().map(|&x| f16::from_le_bytes(x).to_f32()).collect(),
            Self::Bf16 => bytes.as_chunks().0.iter().map(|&x| bf16::from_le_bytes(x).to_f32()).collect(),
        }
    }
}

/// An allocation on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) bytes: usize,
}

/// A kernel's argument.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    Pointer(u64),
    U32(u32),
    F32(f32),
}

/// No buffer, where a kernel takes one or none.
pub(crate) const NULL: Argument = Argument::Pointer(0);

impl From<Buffer> for Argument {
    fn from(buffer: Buffer) -> Self {
        Self::Pointer(buffer.address)
    }
}

impl From<u32> for Argument {
    fn from(x: u32) -> Self {
        Self::U32(x)
    }
}

impl From<f32> for Argument {
    fn from(x: f32) -> Self {
        Self::F32(x)
    }
}

/// The interpreter's memory.
pub(crate) struct Device {
    memory: Memory,
}

impl Device {
    pub(crate) fn new() -> Self {
        Self { memory: Memory::new() }
    }

    /// A buffer whose bytes a kernel must write before anyone reads them.
    pub(crate) fn allocate(&mut self, name: &str, bytes: usize) -> Buffer {
        Buffer { address: self.memory.allocate(name, bytes), bytes }
    }

    pub(crate) fn upload<T: Pod>(&mut self, name: &str, data: &[T]) -> Buffer {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        let buffer = self.allocate(name, bytes.len());
        self.memory.write(buffer.address, bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        buffer
    }

    /// Numbers, rounded to a type.
    pub(crate) fn upload_as(&mut self, dtype: Type, name: &str, numbers: &[f32]) -> Buffer {
        self.upload(name, &dtype.encode(numbers))
    }

    /// The whole of a buffer; an error if any byte of it was never written.
    pub(crate) fn read<T: Pod>(&mut self, buffer: Buffer) -> Result<Vec<T>, String> {
        let mut bytes = vec![0; buffer.bytes];
        self.memory.read(buffer.address, &mut bytes).map_err(|error| error.to_string())?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    /// The whole of a buffer of numbers; an error if any of them was never written.
    pub(crate) fn read_as(&mut self, dtype: Type, buffer: Buffer) -> Result<Vec<f32>, String> {
        Ok(dtype.decode(&self.read(buffer)?))
    }

    /// Runs a kernel in blocks of `threads`, with arguments of the sizes that it declares.
    pub(crate) fn launch(
        &mut self,
        kernel: &Kernel,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        arguments: &[Argument],
        schedule: Schedule,
    ) -> Result<Counts, String> {
        let expected = kernel.parameters();
        assert_eq!(arguments.len(), expected.len(), "arguments of {}", kernel.name());
        let mut parameters = vec![0; kernel.parameter_bytes()];
        for (argument, parameter) in arguments.iter().zip(expected) {
            let bytes = match *argument {
                Argument::Pointer(x) => x.to_le_bytes().to_vec(),
                Argument::U32(x) => x.to_le_bytes().to_vec(),
                Argument::F32(x) => x.to_le_bytes().to_vec(),
            };
            assert_eq!(bytes.len(), parameter.size, "{} of {}", parameter.name, kernel.name());
            parameters[parameter.offset..][..bytes.len()].copy_from_slice(&bytes);
        }
        let launch = Launch {
            kernel,
            grid,
            block: [threads, 1, 1],
            dynamic_shared: shared as usize,
            parameters: &parameters,
            schedule,
        };
        amem_ptxsim::run(&launch, &mut self.memory).map_err(|fault| fault.to_string())
    }
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From 0 up to, not with, `end`.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u32
    }

    /// From -1 to 1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn units(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }
}

#[test]
fn a_launch_writes_what_its_kernel_computes() {
    let text = "
        .version 8.0
        .target sm_80
        .address_size 64
        .visible .entry fill(.param .u64 p_out, .param .f32 p_value, .param .u32 p_count)
        {
            .reg .b64 %out, %offset;
            .reg .b32 %i, %count;
            .reg .f32 %value;
            .reg .pred %inside;
            ld.param.u64 %out, [p_out];
            ld.param.f32 %value, [p_value];
            ld.param.u32 %count, [p_count];
            mov.u32 %i, %tid.x;
            setp.lt.u32 %inside, %i, %count;
            mul.wide.u32 %offset, %i, 4;
            add.s64 %out, %out, %offset;
            @%inside st.global.f32 [%out], %value;
            ret;
        }";
    let module = Module::parse(text).unwrap_or_else(|error| panic!("{error}"));
    let mut device = Device::new();
    let out = device.allocate("out", 12);
    assert!(device.read::<f32>(out).is_err());
    let kernel = module.kernel("fill").unwrap();
    for schedule in SCHEDULES {
        device.launch(kernel, [1, 1, 1], 32, 0, &[out.into(), 0.5f32.into(), 3u32.into()], schedule).unwrap();
    }
    assert_eq!(device.read::<f32>(out).unwrap(), [0.5; 3]);
}
