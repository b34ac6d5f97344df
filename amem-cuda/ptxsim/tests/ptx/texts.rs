//! What is accepted as PTX, and what is refused, with which line.

use amem_ptxsim::Module;

use crate::harness::{Setting, input, kernel, launch};

/// The body's first line in a kernel's text.
fn first_line() -> u32 {
    kernel("BODY").lines().position(|line| line == "BODY").unwrap() as u32 + 1
}

fn refuse(body: &str, reason: &str) {
    let error = Module::parse(&kernel(body)).map(|_| ()).expect_err(body);
    let lines = body.lines().count() as u32;
    assert!((first_line()..first_line() + lines).contains(&error.line), "{body}: {error}");
    assert!(error.reason.contains(reason), "{body}: {error}");
}

/// The first output word of the first thread.
fn first_word(body: &str) -> u32 {
    let (_, memory, output) = launch(&kernel(body), &input(), Setting::default()).unwrap_or_else(|f| panic!("{f}"));
    let mut bytes = [0; 4];
    memory.read(output, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn what_cannot_be_run_is_refused_and_never_ignored() {
    refuse("wgmma.fence.sync.aligned;", "wgmma");
    refuse("add.sat.s32 %r0, %r1, %r2;", "`.sat`");
    refuse("add.f64 %d0, %d1, %d2;", "type");
    refuse("mul.u32 %r0, %r1, %r2;", "not with this type");
    refuse("ld.u32 %r0, [%src];", "needs one of `.global`");
    refuse("ld.global.v8.u32 %r0, [%src];", "`.v8`");
    refuse("ld.global.v4.u64 {%d0,%d1,%d2,%d3}, [%src];", "16 bytes");
    refuse("shfl.bfly.b32 %r0, %r1, 1, 31;", "operands");
    refuse(
        "mma.sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32 {%f0,%f1,%f2,%f3}, {%r0,%r1,%r2,%r3}, {%r4,%r5}, {%f0,%f1,%f2,%f3};",
        "`.col` is missing",
    );
    refuse("div.f32 %f0, %f1, %f2;", "`.rn` or `.approx`");
    refuse("cvt.f16.f32 %h0, %f0;", "rounding");
    refuse("cvt.s32.f32 %r0, %f0;", "rounding");
    refuse("cvta.shared.u64 %d0, %d1;", "`.global` is missing");
    refuse("cp.async.cg.shared.global [%tile], [%src], 8;", "16");
    refuse("call foo;", "cannot be run");
    refuse(".local .b32 stack[4];", "`.local");
    refuse("barrier.sync 0;", "`.aligned` is missing");
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    refuse("add.u32 %r0, %d1, %r2;", "64 bits where 32");
    refuse("add.u64 %r0, %d1, %d2;", "target has 32 bits, not 64");
    refuse("add.u32 %r0, %r1;", "operands");
    refuse("add.u32 %r0, %r1, %nothing;", "`%nothing` is not declared");
    refuse("add.u32 5, %r1, %r2;", "target");
    refuse("add.f32 %f0, %f1, 1;", "0f3F800000");
    refuse("add.u32 %r0, %r1, 0x100000000;", "does not fit");
    refuse("add.u32 %r0, %r32, 1;", "not declared");
    refuse("add.u32 %r0, %r01, 1;", "not declared");
    refuse("ld.global.u32 %r0, [%tile];", "address");
    refuse("ld.global.u32 %h0, [%src];", "wide enough");
    refuse("ld.global.v2.u32 {%r0}, [%src];", "2 registers");
    refuse("ld.param.u64 %d0, [nothing];", "no such parameter");
    refuse("ld.param.u32 %r0, [in + 8];", "outside of the parameter");
    refuse("@%r0 add.u32 %r0, %r1, 1;", "not a predicate");
    refuse("bra nowhere;", "no label `nowhere`");
    refuse("setp.lt.u32 %r0, %r1, %r2;", "predicate");
    refuse("selp.b32 %r0, %r1, %r2, !%p0;", "predicate");
    refuse(".reg .b32 %tid.x;", "special");
    refuse(".reg .b32 %one, %one;", "twice");
    refuse("a: a:", "two labels");
    refuse(".shared .b8 big[300000];", "shared memory");
    refuse("mov.u32 %r0, 0x;", "not a number");
    refuse("mov.f32 %f0, 0f3F8;", "8 hexadecimal digits");
    refuse("mov.u32 %r0, %tid.x\nret;", "expected");
}

#[test]
fn texts_that_end_too_early_or_are_no_text_are_refused() {
    let text = kernel("add.u32 %r0, %tid, 1;");
    for (end, _) in text.char_indices().skip(100) {
        let whole = text[end..].trim().is_empty();
        assert_eq!(Module::parse(&text[..end]).is_ok(), whole, "{}", &text[..end]);
    }
    for text in ["{", "add", ".version", ".entry", ".entry k(", "/* never", "\"never", "é", ".func f() {}", "0x"] {
        assert!(Module::parse(text).is_err(), "{text}");
    }
    assert!(Module::parse("").unwrap().kernels().is_empty());
    let twice = ".entry k() { ret; } .entry k() { ret; }";
    assert!(Module::parse(twice).unwrap_err().reason.contains("two kernels"));
}

#[test]
fn scopes_have_registers_and_labels_of_their_own() {
    let body = "
        .reg .b32 %sum;
        mov.u32 %sum, 1;
        {
            .reg .b32 %sum, %inner;
            mov.u32 %sum, 10;
            bra done;
            trap;
            done:
            { .reg .pred %p0; setp.eq.u32 %p0, %sum, 10; @%p0 bra done; done: }
            add.u32 %inner, %sum, 5;
            st.shared.u32 [%tile], %inner;
        }
        {
            bra done;
            trap;
            done:
            ld.shared.u32 %r0, [%tile];
        }
        add.u32 %sum, %sum, %r0;
        st.global.u32 [%dst], %sum;";
    assert_eq!(first_word(body), 16);
    refuse("{ .reg .b32 %inner; } mov.u32 %inner, 1;", "not declared");
    refuse("{ inner: } bra inner;", "no label");
}

#[test]
fn shared_variables_lie_behind_each_other_and_dynamic_memory_behind_them() {
    let body = "
        .shared .align 16 .b8 first[5];
        .shared .align 8 .b64 second;
        { .shared .f32 third[2]; mov.u32 %r3, third; }
        mov.u32 %r1, first; mov.u32 %r2, second; mov.u32 %r4, dynamic;
        sub.u32 %r2, %r2, %r1; sub.u32 %r3, %r3, %r1; sub.u32 %r4, %r4, %r1;
        shl.b32 %r3, %r3, 8; shl.b32 %r4, %r4, 16;
        or.b32 %r2, %r2, %r3; or.b32 %r2, %r2, %r4;
        st.global.u32 [%dst], %r2;";
    // 8 bytes at 8, 8 bytes at 16, and dynamic memory at the next multiple of 16.
    assert_eq!(first_word(body), 8 | 16 << 8 | 32 << 16);
    let module = Module::parse(&kernel(body)).unwrap();
    assert_eq!(module.kernels()[0].static_shared(), 4096 + 24);
}

#[test]
fn directives_comments_and_numbers_are_understood() {
    let body = "
        .loc 1 20 3
        .pragma \"nounroll\";
        mov.u32 %r0, 0x10; /* two
            lines */ add.u32 %r0, %r0, 0b11; // 19
        add.u32 %r0, %r0, 010; add.u32 %r0, %r0, 5U; add.s32 %r0, %r0, -2;
        st.global.u32 [%dst], %r0;";
    assert_eq!(first_word(body), 16 + 3 + 8 + 5 - 2);
    assert_eq!(first_word("mov.f32 %f0, 0f40490FDB; st.global.f32 [%dst], %f0;"), 0x4049_0fdb);
    let text = kernel("").replace(
        "test(.param .u64 in, .param .u64 out)",
        "test(.param .u64 .ptr .global .align 16 in, .param .u64 out)\n.maxntid 128, 1, 1\n.minnctapersm 2\n.maxnreg 64",
    );
    let module = Module::parse(&text.replace(".target sm_80", ".target sm_80, debug\n.file 1 \"a.cu\"")).unwrap();
    assert_eq!(module.kernels()[0].max_threads(), Some([128, 1, 1]));
    assert_eq!(module.kernels()[0].required_threads(), None);
}

#[test]
fn parameters_are_laid_out_by_their_alignment() {
    let text = ".entry k(.param .u8 a, .param .u64 b, .param .u16 c, .param .align 16 .b8 d[20], .param .f32 e)
        { .reg .b32 %r<2>; ld.param.u32 %r0, [d+4]; ld.param.f32 %r1, [e]; ret; }";
    let module = Module::parse(text).unwrap();
    let places: Vec<_> = module.kernels()[0].parameters().iter().map(|p| (p.offset, p.size)).collect();
    assert_eq!(places, [(0, 1), (8, 8), (16, 2), (32, 20), (52, 4)]);
    assert_eq!(module.kernels()[0].parameter_bytes(), 56);
}

#[test]
fn a_block_has_three_dimensions_and_lanes_that_diverge_meet_again() {
    // Each lane goes another way, and all must be there for the vote.
    let body = "
        mov.u32 %r0, 0;
        and.b32 %r1, %tid, 3;
        again:
        setp.eq.u32 %p0, %r1, 0;
        @%p0 bra out;
        sub.u32 %r1, %r1, 1;
        add.u32 %r0, %r0, 1;
        bra again;
        out:
        and.b32 %r2, %tid, 3;
        setp.eq.u32 %p1, %r0, %r2;
        vote.sync.all.pred %p2, %p1, 0xffffffff;
        selp.u32 %r3, 1, 0, %p2;
        st.global.u32 [%dst], %r3;";
    assert_eq!(first_word(body), 1);
}
