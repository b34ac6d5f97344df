//! What the programs of the tests have in common.

use amem_cuda_simulator::in_simulator;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError, LaunchConfig, PinnedHostSlice, PushKernelArg, sys,
};
use cudarc::nvrtc::Ptx;
use std::sync::Arc;

/// `scale`: y[i] = a x[i], and `add`: y[i] += x[i].
pub(crate) const PTX: &str = r"
.version 8.0
.target sm_80
.address_size 64

.visible .entry scale(.param .u64 x, .param .u64 y, .param .f32 a, .param .u32 count)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    ld.param.f32 %f1, [a];
    ld.param.u32 %r1, [count];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra done;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f2, [%rd4];
    mul.rn.f32 %f3, %f1, %f2;
    st.global.f32 [%rd5], %f3;
done:
    ret;
}

.visible .entry add(.param .u64 x, .param .u64 y, .param .u32 count)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    ld.param.u32 %r1, [count];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra done;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f1, [%rd4];
    ld.global.f32 %f2, [%rd5];
    add.rn.f32 %f3, %f1, %f2;
    st.global.f32 [%rd5], %f3;
done:
    ret;
}
";

/// A context with two streams, and the kernels.
pub(crate) struct Program {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) compute: Arc<CudaStream>,
    pub(crate) copy: Arc<CudaStream>,
    pub(crate) scale: CudaFunction,
    pub(crate) add: CudaFunction,
}

impl Program {
    pub(crate) fn new() -> Result<Program, DriverError> {
        let context = CudaContext::new(0)?;
        // SAFETY: the tests order their streams by hand. That is what they are about.
        unsafe { context.disable_event_tracking() };
        let (compute, copy) = (context.new_stream()?, context.new_stream()?);
        let module = context.load_module(Ptx::from_src(PTX))?;
        let (scale, add) = (module.load_function("scale")?, module.load_function("add")?);
        Ok(Program { context, compute, copy, scale, add })
    }

    /// Uninitialised memory that all streams may use.
    pub(crate) fn memory(&self, count: usize) -> Result<CudaSlice<f32>, DriverError> {
        // SAFETY: the simulator finds reads of what was never written.
        let memory = unsafe { self.compute.alloc::<f32>(count)? };
        self.compute.synchronize()?;
        Ok(memory)
    }

    /// Page-locked memory that holds values.
    pub(crate) fn pinned(&self, values: &[f32]) -> Result<PinnedHostSlice<f32>, DriverError> {
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: the memory is filled before it is read.
        let mut pinned = unsafe { self.context.alloc_pinned_with_flags::<f32>(values.len(), flags)? };
        pinned.as_mut_slice()?.copy_from_slice(values);
        Ok(pinned)
    }

    /// y = a x
    pub(crate) fn launch_scale(
        &self,
        stream: &Arc<CudaStream>,
        x: &CudaSlice<f32>,
        y: &mut CudaSlice<f32>,
        a: f32,
    ) -> Result<(), DriverError> {
        let count = x.len() as u32;
        let mut launch = stream.launch_builder(&self.scale);
        launch.arg(x).arg(y).arg(&a).arg(&count);
        // SAFETY: the kernel has these parameters.
        unsafe { launch.launch(shape(count)) }.map(|_| ())
    }

    /// y += x
    pub(crate) fn launch_add(
        &self,
        stream: &Arc<CudaStream>,
        x: &CudaSlice<f32>,
        y: &mut CudaSlice<f32>,
    ) -> Result<(), DriverError> {
        let count = x.len() as u32;
        let mut launch = stream.launch_builder(&self.add);
        launch.arg(x).arg(y).arg(&count);
        // SAFETY: the kernel has these parameters.
        unsafe { launch.launch(shape(count)) }.map(|_| ())
    }
}

pub(crate) fn shape(count: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (count.div_ceil(64), 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 }
}

/// 0, 1, 2, ...
pub(crate) fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|index| index as f32).collect()
}

/// Runs a test of what only the simulator does. With `AMEM_CUDA_DEVICE=1` there is nothing to test.
pub(crate) fn on_simulator_alone(test_name: &str, settings: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var("AMEM_CUDA_DEVICE").is_err() {
        in_simulator(test_name, settings, body);
    }
}

/// Runs a program with many seeds, each on a new device, and returns the faults.
pub(crate) fn faults(seeds: u64, program: impl Fn(&Program) -> Result<(), DriverError>) -> Vec<Option<String>> {
    let run = |seed| {
        amem_cuda_simulator::reset(seed);
        let outcome = Program::new().and_then(|state| program(&state));
        let fault = amem_cuda_simulator::take_fault();
        assert!(outcome.is_ok() || fault.is_some(), "seed {seed}: {outcome:?} without a fault");
        fault
    };
    (0..seeds).map(run).collect()
}

/// Fails unless a program runs without a fault with every seed. On a device it runs once.
pub(crate) fn never_faults(program: impl Fn(&Program) -> Result<(), DriverError>) {
    let seeds = if amem_cuda_simulator::is_simulated() { 24 } else { 1 };
    for (seed, fault) in faults(seeds, program).into_iter().enumerate() {
        assert_eq!(fault, None, "seed {seed}");
    }
}

/// Fails unless a program has a fault with every seed, whose message contains a text. A device finds none of them.
pub(crate) fn always_faults(text: &str, program: impl Fn(&Program) -> Result<(), DriverError>) {
    if !amem_cuda_simulator::is_simulated() {
        return;
    }
    for (seed, fault) in faults(24, program).into_iter().enumerate() {
        let fault = fault.unwrap_or_else(|| panic!("seed {seed}: no fault"));
        assert!(fault.contains(text), "seed {seed}: {fault}");
    }
}
