//! Which global memory a launch accessed.

use amem_ptxsim::{GlobalAccess, Launch, Memory, Module, Schedule, run};

/// Thread i copies word i of `x` to word 2i of `y`.
const SPREAD: &str = r"
.version 8.0
.target sm_80
.address_size 64
.visible .entry spread(.param .u64 x, .param .u64 y)
{
    .reg .b32 %r<3>;
    .reg .b64 %rd<7>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd3, %r1, 4;
    mul.wide.u32 %rd4, %r1, 8;
    add.s64 %rd5, %rd1, %rd3;
    add.s64 %rd6, %rd2, %rd4;
    ld.global.u32 %r2, [%rd5];
    st.global.u32 [%rd6], %r2;
    ret;
}
";

#[test]
fn a_launch_says_which_bytes_it_read_and_which_it_wrote() {
    let module = Module::parse(SPREAD).unwrap();
    let mut memory = Memory::new();
    let x = memory.allocate("x", 64);
    let y = memory.allocate("y", 64);
    memory.fill(x, 1, 64).unwrap();
    let parameters: Vec<u8> = [x + 8, y].iter().flat_map(|address| address.to_le_bytes()).collect();
    let mut launch = |threads| {
        let kernel = module.kernel("spread").unwrap();
        let (grid, block) = ([1, 1, 1], [threads, 1, 1]);
        let parameters = &parameters;
        let launch = Launch { kernel, grid, block, dynamic_shared: 0, parameters, schedule: Schedule::default() };
        let outcome = run(&launch, &mut memory);
        (outcome.is_ok(), memory.last_accesses().to_vec())
    };
    let read = |range| GlobalAccess { range, written: false };
    let written = |range| GlobalAccess { range, written: true };
    let expected = vec![read(x + 8..x + 20), written(y..y + 4), written(y + 8..y + 12), written(y + 16..y + 20)];
    assert_eq!(launch(3), (true, expected));
    // The accesses of a launch replace those before, also of one that runs past the end of `y`.
    let (ended, accesses) = launch(9);
    assert!(!ended && accesses.contains(&written(y + 56..y + 60)), "{accesses:?}");
}
