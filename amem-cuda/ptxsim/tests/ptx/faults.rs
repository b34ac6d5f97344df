//! For each fault a kernel that has it, and the same kernel without.

use amem_ptxsim::{Copies, Fault, FaultKind, Launch, Memory, Module, Schedule, run};

use crate::harness::{Setting, input, kernel, launch};

const SETTING: Setting = Setting { blocks: 1, threads: 64, seed: 0, copies: Copies::Late };

/// Both bodies must differ in what the test is about alone.
fn check_in(setting: Setting, kind: FaultKind, instruction: &str, good: &str, bad: &str) {
    for seed in 0..8 {
        for copies in [Copies::Late, Copies::Early] {
            let setting = Setting { seed, copies, ..setting };
            if let Err(fault) = launch(&kernel(good), &input(), setting) {
                panic!("the good kernel: {fault}\n{good}");
            }
            let fault = launch(&kernel(bad), &input(), setting).map(|_| ()).expect_err(bad);
            assert_eq!(fault.kind, kind, "{fault}\n{bad}");
            assert!(fault.instruction.contains(instruction), "{fault}\n{bad}");
            let line = kernel(bad).lines().nth(fault.line as usize - 1).unwrap_or_default().to_owned();
            assert!(line.contains(&fault.instruction), "{fault} is not in line `{line}`");
        }
    }
}

fn check(kind: FaultKind, instruction: &str, good: &str, bad: &str) {
    check_in(SETTING, kind, instruction, good, bad);
}

/// Checks a body with and without one of its lines.
fn check_without(kind: FaultKind, instruction: &str, good: &str, line: &str) {
    assert!(good.contains(line));
    check(kind, instruction, good, &good.replace(line, ""));
}

/// The thread's counterpart in the other warp: `%r1` is its slot in the tile.
const OTHER: &str = "xor.b32 %r0, %tid, 32;\n mad.lo.u32 %r1, %r0, 4, %base;\n";

#[test]
fn a_read_of_what_another_warp_wrote_needs_a_barrier_between() {
    let good = format!("{OTHER} st.shared.u32 [%tile], %tid;\n bar.sync 0;\n ld.shared.u32 %r2, [%r1];");
    // Whichever warp comes first finds its neighbour's slot unwritten, or written with no barrier.
    let bad = format!(
        "{OTHER} st.shared.u32 [%tile], %tid;\n bar.sync 0;\n st.shared.u32 [%tile], %tid;\n ld.shared.u32 %r2, [%r1];"
    );
    check(FaultKind::SharedRace, "shared.u32", &good, &bad);
}

#[test]
fn a_write_to_what_another_warp_read_needs_a_barrier_between() {
    let good = format!(
        "{OTHER} st.shared.u32 [%tile], %tid;\n bar.sync 0;\n ld.shared.u32 %r2, [%r1];\n bar.sync 0; // again\n
         st.shared.u32 [%tile], %r2;"
    );
    check_without(FaultKind::SharedRace, "shared.u32", &good, "bar.sync 0; // again");
}

#[test]
fn a_named_barrier_orders_its_own_warps_and_no_others() {
    let setting = Setting { threads: 128, ..SETTING };
    // Each half of the block has a barrier of its own, and each thread a partner in the other warp of its half.
    let good = format!(
        "{OTHER} st.shared.u32 [%tile], %tid;
         setp.lt.u32 %p0, %tid, 64;
         bar.sync 0;
         st.shared.u32 [%tile], %tid;
         @%p0 bar.sync 1, 64;
         @!%p0 bar.sync 2, 64;
         ld.shared.u32 %r2, [%r1];"
    );
    let bad = good.replace("%tid, 32;", "%tid, 96;");
    check_in(setting, FaultKind::SharedRace, "shared.u32", &good, &bad);
}

#[test]
fn what_one_warp_learns_at_a_barrier_it_passes_on_at_the_next() {
    // Warp 0 writes, meets warp 1 at barrier 1, which meets warp 2 at barrier 2, which reads.
    let body = "
        shr.u32 %r0, %tid, 5;
        setp.eq.u32 %p0, %r0, 0;
        setp.eq.u32 %p1, %r0, 1;
        setp.eq.u32 %p2, %r0, 2;
        @%p0 st.shared.u32 [%tile], %tid;
        @%p0 bar.sync 1, 64;
        @%p1 bar.sync 1, 64;
        @%p1 bar.sync 2, 64;
        @%p2 bar.sync 2, 64;
        @%p2 ld.shared.u32 %r1, [%tile + -256];";
    for seed in 0..16 {
        launch(&kernel(body), &input(), Setting { threads: 96, seed, ..SETTING }).unwrap();
    }
}

#[test]
fn an_arrival_that_does_not_wait_orders_what_came_before_it_only() {
    let body = |order: &str| {
        format!(
            "setp.lt.u32 %p0, %tid, 32;
             {order}
             @!%p0 bar.sync 1, 64;
             @!%p0 ld.shared.u32 %r1, [%tile + -128];"
        )
    };
    let good = body("@%p0 st.shared.u32 [%tile], %tid;\n @%p0 bar.arrive 1, 64;");
    launch(&kernel(&good), &input(), SETTING).unwrap();
    let bad = body("@%p0 bar.arrive 1, 64;\n @%p0 st.shared.u32 [%tile], %tid;");
    for seed in 0..8 {
        let fault = launch(&kernel(&bad), &input(), Setting { seed, ..SETTING }).map(|_| ()).unwrap_err();
        // The reader may be first, and then finds nothing.
        assert!(matches!(fault.kind, FaultKind::SharedRace | FaultKind::UninitialisedShared), "{fault}");
    }
}

#[test]
fn atomic_operations_of_several_warps_are_no_race_but_mixed_ones_are() {
    let good = "
        setp.eq.u32 %p0, %tid, 0;
        mov.u32 %r0, 0;
        @%p0 st.shared.u32 [%base], %r0;
        bar.sync 0;
        red.shared.add.u32 [%base], 1;
        bar.warp.sync -1;
        bar.sync 0; // then read
        ld.shared.u32 %r1, [%base];";
    check_without(FaultKind::SharedRace, "shared", good, "bar.sync 0; // then read");
    let text = kernel(&format!("{good}\n st.global.u32 [%dst], %r1;"));
    let (_, memory, output) = launch(&text, &input(), SETTING).unwrap();
    let mut sum = [0; 4];
    memory.read(output, &mut sum).unwrap();
    assert_eq!(u32::from_le_bytes(sum), 64);
}

#[test]
fn blocks_of_one_launch_share_no_global_memory_that_one_of_them_writes() {
    let setting = Setting { blocks: 3, ..SETTING };
    let slot = "mov.u32 %r0, %ctaid.x;\n mad.lo.u32 %r1, %r0, 64, %tid;\n mul.wide.u32 %d0, %r1, 4;
        add.u64 %d1, %out, %d0;\n add.u64 %d2, %in, %d0;\n";
    // Writes of the same bytes.
    let good = format!("{slot} st.global.u32 [%d1], %r0;");
    check_in(setting, FaultKind::GlobalRace, "st.global", &good, &good.replace("[%d1]", "[%out]"));
    // A read of what another block wrote: the first block's output, by the second.
    let good = format!("{slot} st.global.u32 [%d1], %r0;\n ld.global.u32 %r2, [%d1];");
    let bad = good.replace("ld.global.u32 %r2, [%d1]", "ld.global.u32 %r2, [%dst]");
    check_in(setting, FaultKind::GlobalRace, "ld.global", &good, &bad);
    // A write to what another block read before.
    let good = format!("{slot} ld.global.u32 %r2, [%d2];\n st.global.u32 [%d2], %r0;");
    let bad = good.replace("ld.global.u32 %r2, [%d2]", "ld.global.u32 %r2, [%src]");
    check_in(setting, FaultKind::GlobalRace, "global.u32", &good, &bad);
    // Atomic operations may meet each other, and nothing else.
    let good = format!("{slot} red.global.add.u32 [%in], 1;\n ld.global.u32 %r2, [%d2 + 1024];");
    check_in(setting, FaultKind::GlobalRace, "global", &good, &good.replace("[%d2 + 1024]", "[%in]"));
    // Also when only the last block reads what it has changed itself, after others.
    let last = "setp.eq.u32 %p0, %r0, 2;\n @%p0 ld.global.u32 %r2, [%in];";
    let bad = format!("{slot} red.global.add.u32 [%in], 1;\n{last}");
    check_in(
        setting,
        FaultKind::GlobalRace,
        "ld.global",
        &bad.replace("[%in], 1", "[%d2], 1").replace("[%in];", "[%d2];"),
        &bad,
    );
}

#[test]
fn what_is_read_as_constant_is_not_written_in_the_same_launch() {
    let good = "ld.global.u32 %r0, [%src];\n st.global.u32 [%src], %tid;\n ld.global.u32 %r1, [%src];";
    check(FaultKind::ReadOnly, "st.global", good, &good.replace("ld.global.u32 %r0", "ld.global.nc.u32 %r0"));
    check(FaultKind::ReadOnly, "ld.global.nc", good, &good.replace("ld.global.u32 %r1", "ld.global.nc.u32 %r1"));
    let good = "ld.global.nc.u32 %r0, [%src];\n red.global.add.u32 [%src + 1024], 1;";
    check(FaultKind::ReadOnly, "red.global", good, &good.replace(" + 1024", ""));
}

#[test]
fn a_register_must_be_written_before_it_is_read() {
    check_without(
        FaultKind::UninitialisedRegister,
        "add.u32",
        "mov.u32 %r0, 1;\n add.u32 %r1, %r0, 1;",
        "mov.u32 %r0, 1;",
    );
    let good = "setp.lt.u32 %p0, %tid, 8;\n @%p0 mov.u32 %r0, 1;\n @%p0 add.u32 %r1, %r0, 1;";
    // Written by some lanes, read by all.
    check(FaultKind::UninitialisedRegister, "add.u32", good, &good.replace("@%p0 add", "add"));
    check_without(
        FaultKind::UninitialisedRegister,
        "@%p0 mov.u32",
        "setp.eq.u32 %p0, %tid, 1;\n @%p0 mov.u32 %r0, 1;",
        "setp.eq.u32 %p0, %tid, 1;",
    );
}

#[test]
fn a_selection_needs_the_register_that_it_takes_alone() {
    let body =
        "setp.lt.u32 %p0, %tid, 8;\n @%p0 mov.u32 %r0, 1;\n @!%p0 mov.u32 %r1, 2;\n selp.b32 %r2, %r0, %r1, %p0;";
    launch(&kernel(body), &input(), SETTING).unwrap();
}

#[test]
fn memory_must_be_written_before_it_is_read() {
    check_without(
        FaultKind::UninitialisedShared,
        "ld.shared",
        "st.shared.u32 [%tile], %tid;\n ld.shared.u32 %r0, [%tile];",
        "st.shared.u32 [%tile], %tid;",
    );
    check_without(
        FaultKind::UninitialisedGlobal,
        "ld.global",
        "st.global.u32 [%dst], %tid;\n ld.global.u32 %r0, [%dst];",
        "st.global.u32 [%dst], %tid;",
    );
    // A copy reads too.
    let good = "cp.async.ca.shared.global [%tile], [%src], 4;\n cp.async.wait_all;";
    let fault = launch(&kernel(&good.replace("%src", "%dst")), &input(), SETTING).map(|_| ()).unwrap_err();
    assert_eq!(fault.kind, FaultKind::UninitialisedGlobal, "{fault}");
}

#[test]
fn accesses_stay_within_bounds() {
    // The tile has 4096 bytes, and behind it lie 1024 of dynamic shared memory.
    let good = "st.shared.u32 [%tile + 4864], %tid;";
    check(FaultKind::SharedOutOfBounds, "st.shared", good, &good.replace("4864", "4868"));
    check(FaultKind::SharedOutOfBounds, "st.shared", good, &good.replace("%tile + 4864", "%base + -4"));
    check(FaultKind::SharedOutOfBounds, "st.shared", good, &good.replace("%tile + 4864", "0"));
    let good = "ld.global.u32 %r0, [%src + 3840];";
    check(FaultKind::GlobalOutOfBounds, "ld.global", good, &good.replace("3840", "3844"));
    check(FaultKind::GlobalOutOfBounds, "ld.global", good, &good.replace("+ 3840", "- 4"));
    check(FaultKind::GlobalOutOfBounds, "ld.global", good, &good.replace("[%src + 3840]", "[8]"));
    let good = "st.global.u32 [%dst + 3840], %r0;";
    let (good, bad) =
        (format!("mov.u32 %r0, 0;\n{good}"), format!("mov.u32 %r0, 0;\n{}", good.replace("3840", "3844")));
    check(FaultKind::GlobalOutOfBounds, "st.global", &good, &bad);
    let good = "mov.u32 %r0, 4;\n cp.async.ca.shared.global [%tile], [%src], 4, %r0;\n cp.async.wait_all;";
    check(FaultKind::GlobalOutOfBounds, "cp.async", good, &good.replace("%r0, 4;", "%r0, 5;"));
}

#[test]
fn addresses_are_multiples_of_what_is_accessed() {
    let good = "ld.global.u32 %r0, [%src];";
    check(FaultKind::Misaligned, "ld.global", good, &good.replace("[%src]", "[%src + 2]"));
    let good = "ld.global.v2.u32 {%r0, %r1}, [%in + 8];";
    check(FaultKind::Misaligned, "ld.global", good, &good.replace("+ 8", "+ 4"));
    let good = "st.shared.v4.u32 [%base + 16], {%tid, %tid, %tid, %tid};";
    let single = "setp.eq.u32 %p0, %tid, 0;\n @%p0 ";
    check(
        FaultKind::Misaligned,
        "st.shared",
        &format!("{single}{good}"),
        &format!("{single}{}", good.replace("+ 16", "+ 8")),
    );
    let fill = "setp.lt.u32 %p0, %tid, 32;\n @!%p0 bra end;\n st.shared.u32 [%tile], 1;\n st.shared.u32 [%tile + 128], 1;\n bar.warp.sync -1;\n";
    let rows = format!("{fill} and.b32 %r0, %tid, 7;\n mad.lo.u32 %r1, %r0, 16, %base;\n");
    let good = format!("{rows} ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r2}}, [%r1];\n end:");
    check(FaultKind::Misaligned, "ldmatrix", &good, &good.replace("[%r1]", "[%r1 + 8]"));
    let good = "cp.async.cg.shared.global [%base + 16], [%in + 32], 16;\n cp.async.wait_all;";
    let single = "setp.ne.u32 %p0, %tid, 0;\n @%p0 bra end;\n";
    let (good, bad) = (format!("{single}{good}\n end:"), format!("{single}{}\n end:", good.replace("+ 32", "+ 8")));
    check(FaultKind::Misaligned, "cp.async", &good, &bad);
}

#[test]
fn a_copy_must_be_waited_for() {
    let good = "
        cp.async.ca.shared.global [%tile], [%src], 4;
        cp.async.commit_group;
        cp.async.ca.shared.global [%tile + 1024], [%src], 4;
        cp.async.commit_group;
        cp.async.wait_group 1;
        ld.shared.u32 %r0, [%tile];
        cp.async.wait_all;";
    // The newest group may be in flight still.
    check(FaultKind::CopyPending, "ld.shared", good, &good.replace("wait_group 1", "wait_group 2"));
    check(
        FaultKind::CopyPending,
        "ld.shared",
        good,
        &good.replace("ld.shared.u32 %r0, [%tile]", "ld.shared.u32 %r0, [%tile + 1024]"),
    );
    check(FaultKind::CopyPending, "cp.async", good, &good.replace("[%tile + 1024]", "[%tile]"));
    check_without(FaultKind::CopyAtExit, "ret", good, "cp.async.wait_all;");
    // A copy that belongs to no group is not waited for by groups.
    let good = "
        cp.async.ca.shared.global [%tile], [%src], 4;
        cp.async.commit_group;
        cp.async.wait_group 0;
        ld.shared.u32 %r0, [%tile];";
    check_without(FaultKind::CopyPending, "ld.shared", good, "cp.async.commit_group;");
}

#[test]
fn waiting_for_a_copy_makes_it_visible_to_its_own_lane_only() {
    let exchange = |other: u32, barrier: &str| {
        format!(
            "cp.async.ca.shared.global [%tile], [%src], 4;
             cp.async.wait_all;
             {barrier}
             xor.b32 %r0, %tid, {other};
             mad.lo.u32 %r1, %r0, 4, %base;
             ld.shared.u32 %r2, [%r1];"
        )
    };
    for (other, barrier) in [(0, ""), (1, "bar.warp.sync -1;"), (1, "bar.sync 0;"), (32, "bar.sync 0;")] {
        launch(&kernel(&exchange(other, barrier)), &input(), SETTING).unwrap();
    }
    check(FaultKind::WarpRace, "ld.shared", &exchange(0, ""), &exchange(1, ""));
    for seed in 0..8 {
        let setting = Setting { seed, ..SETTING };
        let fault = launch(&kernel(&exchange(32, "bar.warp.sync -1;")), &input(), setting).map(|_| ()).unwrap_err();
        // Whether the other warp is that far already depends on the order.
        let kinds = [FaultKind::SharedRace, FaultKind::CopyPending, FaultKind::UninitialisedShared];
        assert!(kinds.contains(&fault.kind), "{fault}");
    }
}

#[test]
fn lanes_of_a_warp_exchange_values_through_memory_behind_a_barrier_only() {
    let good = "xor.b32 %r0, %tid, 1;\n mad.lo.u32 %r1, %r0, 4, %base;
        st.shared.u32 [%tile], %tid;\n bar.warp.sync 0xffffffff;\n ld.shared.u32 %r2, [%r1];";
    check_without(FaultKind::WarpRace, "ld.shared", good, "bar.warp.sync 0xffffffff;");
    // A matrix is read by all lanes, whichever gave the address of a row.
    let good = "setp.lt.u32 %p0, %tid, 8;\n @!%p0 bra filled;
        mad.lo.u32 %r1, %tid, 16, %base;\n st.shared.v4.u32 [%r1], {%tid, %tid, %tid, %tid};\n filled:
        setp.ge.u32 %p0, %tid, 32;\n @%p0 bra end;\n bar.warp.sync -1;
        and.b32 %r0, %tid, 7;\n mad.lo.u32 %r1, %r0, 16, %base;
        ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1];\n end:";
    check_without(FaultKind::WarpRace, "ldmatrix", good, "bar.warp.sync -1;");
    // Two lanes that write the same word.
    let good = "st.shared.u32 [%tile], %tid;";
    let bad = "and.b32 %r0, %tid, 62;\n mad.lo.u32 %r1, %r0, 4, %base;\n st.shared.u32 [%r1], %tid;";
    check(FaultKind::WarpRace, "st.shared", good, bad);
}

#[test]
fn aligned_instructions_need_the_whole_warp() {
    let product =
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f0,%f1,%f2,%f3}, {%tid,%tid}, {%tid}, {%f4,%f4,%f4,%f4};";
    let good = format!("mov.f32 %f4, 0f00000000;\n setp.lt.u32 %p0, %tid, 32;\n @%p0 {product}");
    check(FaultKind::Divergent, "mma", &good, &good.replace("%tid, 32", "%tid, 31"));
    let setting = Setting { threads: 48, ..SETTING };
    // The block's last warp has 16 lanes.
    check_in(setting, FaultKind::Divergent, "mma", &good, &good.replace("%tid, 32", "%tid, 48"));
    let good = "setp.lt.u32 %p0, %tid, 32;\n @%p0 bra.uni end;\n end:";
    check(FaultKind::Divergent, "bra.uni", good, &good.replace("%tid, 32", "%tid, 33"));
}

#[test]
fn barriers_need_the_whole_warp_and_a_number_of_threads_that_fits() {
    let good = "setp.lt.u32 %p0, %tid, 64;\n @%p0 bar.sync 0;";
    check(FaultKind::Barrier, "bar.sync", good, &good.replace("%tid, 64", "%tid, 63"));
    let good = "bar.sync 1, 64;";
    check(FaultKind::Barrier, "bar.sync", good, "bar.sync 1, 63;");
    check(FaultKind::Barrier, "bar.sync", good, "bar.sync 1, 96;");
    check(FaultKind::Barrier, "bar.sync", good, "bar.sync 16, 64;");
    // Two warps that do not agree on how many come.
    let good = "setp.lt.u32 %p0, %tid, 32;\n @%p0 bar.sync 1, 64;\n @!%p0 bar.sync 1, 64;";
    check(FaultKind::Barrier, "bar.sync", good, &good.replace("@!%p0 bar.sync 1, 64", "@!%p0 bar.sync 1"));
}

#[test]
fn exchanging_lanes_all_take_part() {
    let good = "setp.lt.u32 %p0, %tid, 64;\n @%p0 shfl.sync.bfly.b32 %r0, %tid, 1, 31, -1;";
    check(FaultKind::InactiveLane, "shfl", good, &good.replace("%tid, 64", "%tid, 48"));
    // A member mask without the lane itself.
    let good = "shfl.sync.bfly.b32 %r0, %tid, 1, 31, 0xffffffff;";
    check(FaultKind::InactiveLane, "shfl", good, &good.replace("0xffffffff", "0x7fffffff"));
    // The mask fits the lanes that execute it, but one of them reads another.
    let good = "and.b32 %r1, %tid, 31;\n setp.lt.u32 %p0, %r1, 16;\n @%p0 shfl.sync.bfly.b32 %r0, %tid, 1, 31, 0xffff;";
    check(FaultKind::InactiveLane, "shfl", good, &good.replace("%tid, 1,", "%tid, 16,"));
    let good = "setp.lt.u32 %p0, %tid, 64;\n @%p0 bar.warp.sync 0xffffffff;";
    check(FaultKind::InactiveLane, "bar.warp", good, &good.replace("%tid, 64", "%tid, 40"));
    let good = "setp.lt.u32 %p0, %tid, 64;\n @%p0 vote.sync.ballot.b32 %r0, %p0, -1;";
    check(FaultKind::InactiveLane, "vote", good, &good.replace("%tid, 64", "%tid, 40"));
    let good = "setp.lt.u32 %p0, %tid, 64;\n @%p0 redux.sync.add.u32 %r0, %tid, -1;";
    check(FaultKind::InactiveLane, "redux", good, &good.replace("%tid, 64", "%tid, 40"));
}

#[test]
fn integers_are_not_divided_by_zero() {
    let good = "add.u32 %r0, %tid, 1;\n div.u32 %r1, 100, %r0;";
    check(FaultKind::DivisionByZero, "div.u32", good, &good.replace("%tid, 1", "%tid, 0"));
    let good = "cvt.u64.u32 %d0, %tid;\n add.u64 %d0, %d0, 1;\n rem.s64 %d1, 100, %d0;";
    check(FaultKind::DivisionByZero, "rem.s64", good, &good.replace("%d0, 1;", "%d0, 0;"));
}

#[test]
fn a_barrier_that_can_never_open_is_a_deadlock() {
    let good = "setp.lt.u32 %p0, %tid, 32;\n @%p0 bar.sync 1, 64;\n @!%p0 bar.sync 1, 64;";
    check(FaultKind::Deadlock, "bar.sync", good, &good.replace("@!%p0 bar.sync 1", "@!%p0 bar.sync 2"));
    check(FaultKind::Deadlock, "bar.sync", good, &good.replace("@!%p0 bar.sync 1, 64;", ""));
}

#[test]
fn a_loop_without_an_end_is_a_hang() {
    let body = "mov.u32 %r0, 0;\n again:\n add.u32 %r0, %r0, 1;\n setp.lt.u32 %p0, %r0, 10;\n @%p0 bra again;";
    let module = Module::parse(&kernel(body)).unwrap();
    let parameters = [0; 16];
    let go = |kernel: &amem_ptxsim::Kernel| {
        let schedule = Schedule::default();
        let launch =
            Launch { kernel, grid: [1; 3], block: [32, 1, 1], dynamic_shared: 0, parameters: &parameters, schedule };
        run(&launch, &mut Memory::new())
    };
    let kernel = module.kernel("test").unwrap().with_step_limit(10_000);
    go(&kernel).unwrap();
    let step = (0..kernel.instructions()).find(|index| kernel.instruction_text(*index).contains("%r0, 1;")).unwrap();
    assert_eq!(go(&kernel.without(step)).unwrap_err().kind, FaultKind::Hang);
}

#[test]
fn a_trap_is_a_fault() {
    let good = "setp.lt.u32 %p0, %tid, 0;\n @%p0 trap;";
    check(FaultKind::Trap, "trap", good, &good.replace("%tid, 0", "%tid, 1"));
}

#[test]
fn freed_memory_is_not_accessed() {
    let module = Module::parse(&kernel("ld.global.u32 %r0, [%src];")).unwrap();
    let mut memory = Memory::new();
    let address = memory.allocate("weights", 128);
    memory.fill(address, 0, 128).unwrap();
    let mut go = |free: bool| {
        if free {
            memory.free(address).unwrap();
        }
        let parameters: Vec<u8> = [address, 0].iter().flat_map(|address| address.to_le_bytes()).collect();
        let launch = Launch {
            kernel: module.kernel("test").unwrap(),
            grid: [1; 3],
            block: [32, 1, 1],
            dynamic_shared: 0,
            parameters: &parameters,
            schedule: Schedule::default(),
        };
        run(&launch, &mut memory)
    };
    go(false).unwrap();
    let fault = go(true).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Freed);
    assert!(fault.to_string().contains("weights"), "{fault}");
}

#[test]
fn a_launch_that_a_driver_refuses_is_a_fault() {
    let text = kernel("").replace("\n{", "\n.reqntid 64, 1, 1\n{");
    let module = Module::parse(&text).unwrap();
    let good = Launch {
        kernel: module.kernel("test").unwrap(),
        grid: [1; 3],
        block: [64, 1, 1],
        dynamic_shared: 0,
        parameters: &[0; 16],
        schedule: Schedule::default(),
    };
    let go = |launch: Launch<'_>| run(&launch, &mut Memory::new()).map(|_| ());
    go(good).unwrap();
    let refused = |launch: Launch<'_>| assert_eq!(go(launch).unwrap_err().kind, FaultKind::Launch);
    refused(Launch { block: [32, 1, 1], ..good });
    refused(Launch { block: [0, 1, 1], ..good });
    refused(Launch { block: [64, 64, 1], ..good });
    refused(Launch { grid: [0, 1, 1], ..good });
    refused(Launch { grid: [1, 70_000, 1], ..good });
    refused(Launch { grid: [u32::MAX; 3], ..good });
    refused(Launch { parameters: &[0; 12], ..good });
    refused(Launch { dynamic_shared: 230_000, ..good });
    refused(Launch { dynamic_shared: usize::MAX, ..good });
}

#[test]
fn a_fault_says_what_where_and_who() {
    let text = kernel("setp.eq.u32 %p0, %tid, 37;\n    @%p0 ld.global.u32 %r0, [%dst];");
    let fault: Fault = launch(&text, &input(), SETTING).map(|_| ()).unwrap_err();
    assert_eq!((fault.block, fault.warp, fault.lane), ([0; 3], 1, 5));
    assert_eq!(fault.instruction, "@%p0 ld.global.u32 %r0, [%dst];");
    let message = fault.to_string();
    for part in ["never written", "`output`", "line ", "@%p0 ld.global", "warp 1, lane 5"] {
        assert!(message.contains(part), "{message}");
    }
}
