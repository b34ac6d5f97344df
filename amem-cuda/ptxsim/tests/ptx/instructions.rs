//! Each instruction against a definition of its own, for numbers at the edges and random ones.

use amem_ptxsim::{Launch, Memory, Module, Schedule, run};
use half::{bf16, f16};

/// Numbers whose bits are special for some type.
const EDGES: [u64; 26] = [
    0,
    1,
    2,
    31,
    32,
    33,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x3f80_0000,
    0xbf80_0000,
    0x7f80_0000,
    0x7fc0_0000,
    0x0000_0001_8000_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
    0x0080_0000,
    0x4b00_0001,
];

fn numbers(count: usize, seed: u64) -> Vec<u64> {
    let mut state = seed;
    (0..count)
        .map(|index| {
            // splitmix64
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut x = state;
            x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            x ^= x >> 31;
            // Some are close to an edge, some have few bits.
            match index % 4 {
                0 => EDGES[x as usize % EDGES.len()],
                1 => EDGES[x as usize % EDGES.len()].wrapping_add(x >> 62),
                2 => x >> (x & 63),
                _ => x,
            }
        })
        .collect()
}

/// What a thread's instruction reads: `%la`, `%lb`, `%lc`, of which `%a`, `%b`, `%c` are the low 32 bits and `%ha`,
/// `%hb` the low 16; `%fa`, `%fb`, `%fc` are the same bits as f32.
type Inputs = [u64; 3];

/// Runs code for each input. Its result is what it leaves in `%x`, `%lx` or `%hx`, as 64 bits.
fn evaluate(code: &str, inputs: &[Inputs]) -> Vec<u64> {
    let result = if code.contains("%lx") {
        "mov.b64 %result, %lx;"
    } else if code.contains("%hx") {
        "cvt.u64.u16 %result, %hx;"
    } else {
        "cvt.u64.u32 %result, %x;"
    };
    let text = format!(
        ".version 8.0
.target sm_80
.address_size 64
.visible .entry test(.param .u64 in, .param .u64 out, .param .u32 count)
{{
    .reg .b32 %a, %b, %c, %x, %n, %count;
    .reg .f32 %fa, %fb, %fc;
    .reg .b16 %ha, %hb, %hx;
    .reg .b64 %la, %lb, %lc, %lx, %in, %out, %at, %result;
    .reg .pred %p, %q, %beyond;
    ld.param.u64 %in, [in];
    ld.param.u64 %out, [out];
    ld.param.u32 %count, [count];
    mov.u32 %n, %ctaid.x;
    mad.lo.u32 %n, %n, %ntid.x, %tid.x;
    setp.ge.u32 %beyond, %n, %count;
    @%beyond ret;
    mul.wide.u32 %at, %n, 24;
    add.u64 %in, %in, %at;
    ld.global.u64 %la, [%in];
    ld.global.u64 %lb, [%in + 8];
    ld.global.u64 %lc, [%in + 16];
    cvt.u32.u64 %a, %la;
    cvt.u32.u64 %b, %lb;
    cvt.u32.u64 %c, %lc;
    mov.b32 %fa, %a;
    mov.b32 %fb, %b;
    mov.b32 %fc, %c;
    cvt.u16.u64 %ha, %la;
    cvt.u16.u64 %hb, %lb;
    {code}
    {result}
    mul.wide.u32 %at, %n, 8;
    add.u64 %out, %out, %at;
    st.global.u64 [%out], %result;
}}
"
    );
    let module = Module::parse(&text).unwrap_or_else(|error| panic!("{error}\n{code}"));
    let mut memory = Memory::new();
    let input: Vec<u8> = inputs.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let source = memory.allocate("input", input.len());
    memory.write(source, &input).unwrap();
    let target = memory.allocate("output", inputs.len() * 8);
    let mut parameters: Vec<u8> = [source, target].iter().flat_map(|address| address.to_le_bytes()).collect();
    parameters.extend((inputs.len() as u32).to_le_bytes());
    let launch = Launch {
        kernel: module.kernel("test").unwrap(),
        grid: [inputs.len().div_ceil(64) as u32, 1, 1],
        block: [64, 1, 1],
        dynamic_shared: 0,
        parameters: &parameters,
        schedule: Schedule::default(),
    };
    run(&launch, &mut memory).unwrap_or_else(|fault| panic!("{fault}"));
    let mut output = vec![0; inputs.len() * 8];
    memory.read(target, &mut output).unwrap();
    output.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Compares code with a definition, for many inputs that pass the filter.
fn check_where(code: &str, fits: impl Fn(Inputs) -> bool, expected: impl Fn(Inputs) -> u64) {
    let [a, b, c] = [1, 2, 3].map(|seed| numbers(600, seed));
    let inputs: Vec<Inputs> = (0..600).map(|index| [a[index], b[index], c[index]]).filter(|i| fits(*i)).collect();
    assert!(inputs.len() > 100, "{code}: too few inputs");
    for (input, result) in inputs.iter().zip(evaluate(code, &inputs)) {
        let expected = expected(*input);
        assert_eq!(result, expected, "{code} of {input:x?}: {result:#x}, not {expected:#x}");
    }
}

fn check(code: &str, expected: impl Fn(Inputs) -> u64) {
    check_where(code, |_| true, expected);
}

fn check32(code: &str, expected: impl Fn(u32, u32, u32) -> u32) {
    check(code, |[a, b, c]| u64::from(expected(a as u32, b as u32, c as u32)));
}

fn check_s32(code: &str, expected: impl Fn(i32, i32, i32) -> i32) {
    check32(code, |a, b, c| expected(a as i32, b as i32, c as i32) as u32);
}

/// NaN is one value here: its bits are not defined.
fn check_f32(code: &str, expected: impl Fn(f32, f32, f32) -> f32) {
    let [a, b, c] = [4, 5, 6].map(|seed| numbers(600, seed));
    let inputs: Vec<Inputs> = (0..600).map(|index| [a[index], b[index], c[index]]).collect();
    for (input, result) in inputs.iter().zip(evaluate(code, &inputs)) {
        let [a, b, c] = input.map(|bits| f32::from_bits(bits as u32));
        let (result, expected) = (f32::from_bits(result as u32), expected(a, b, c));
        let same = result.to_bits() == expected.to_bits() || (result.is_nan() && expected.is_nan());
        assert!(same, "{code} of {a:e}, {b:e}, {c:e}: {result:e}, not {expected:e}");
    }
}

#[test]
fn integers_of_32_bits_are_computed_as_defined() {
    check32("add.u32 %x, %a, %b;", |a, b, _| a.wrapping_add(b));
    check32("sub.s32 %x, %a, %b;", |a, b, _| a.wrapping_sub(b));
    check32("mul.lo.u32 %x, %a, %b;", |a, b, _| a.wrapping_mul(b));
    check32("mul.hi.u32 %x, %a, %b;", |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    check_s32("mul.hi.s32 %x, %a, %b;", |a, b, _| ((i64::from(a) * i64::from(b)) >> 32) as i32);
    check32("mad.lo.s32 %x, %a, %b, %c;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check32("mad.hi.u32 %x, %a, %b, %c;", |a, b, c| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c));
    check_where("div.u32 %x, %a, %b;", |[_, b, _]| b as u32 != 0, |[a, b, _]| u64::from(a as u32 / b as u32));
    check_where(
        "rem.s32 %x, %a, %b;",
        |[_, b, _]| b as u32 != 0,
        |[a, b, _]| u64::from((a as i32).wrapping_rem(b as i32) as u32),
    );
    check_where(
        "div.s32 %x, %a, %b;",
        |[_, b, _]| b as u32 != 0,
        |[a, b, _]| u64::from((a as i32).wrapping_div(b as i32) as u32),
    );
    check32("min.u32 %x, %a, %b;", |a, b, _| a.min(b));
    check_s32("max.s32 %x, %a, %b;", |a, b, _| a.max(b));
    check_s32("min.s32 %x, %a, %b;", |a, b, _| a.min(b));
    check_s32("neg.s32 %x, %a;", |a, _, _| a.wrapping_neg());
    check_s32("abs.s32 %x, %a;", |a, _, _| a.wrapping_abs());
}

#[test]
fn integers_of_64_and_16_bits_are_computed_as_defined() {
    check("add.u64 %lx, %la, %lb;", |[a, b, _]| a.wrapping_add(b));
    check("sub.s64 %lx, %la, %lb;", |[a, b, _]| a.wrapping_sub(b));
    check("mul.lo.s64 %lx, %la, %lb;", |[a, b, _]| a.wrapping_mul(b));
    check("mul.hi.u64 %lx, %la, %lb;", |[a, b, _]| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    check("mul.hi.s64 %lx, %la, %lb;", |[a, b, _]| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64);
    check("mad.lo.u64 %lx, %la, %lb, %lc;", |[a, b, c]| a.wrapping_mul(b).wrapping_add(c));
    check_where("div.s64 %lx, %la, %lb;", |[_, b, _]| b != 0, |[a, b, _]| (a as i64).wrapping_div(b as i64) as u64);
    check_where("rem.u64 %lx, %la, %lb;", |[_, b, _]| b != 0, |[a, b, _]| a % b);
    check("min.s64 %lx, %la, %lb;", |[a, b, _]| (a as i64).min(b as i64) as u64);
    check("max.u64 %lx, %la, %lb;", |[a, b, _]| a.max(b));
    check("mul.wide.u32 %lx, %a, %b;", |[a, b, _]| u64::from(a as u32) * u64::from(b as u32));
    check("mul.wide.s32 %lx, %a, %b;", |[a, b, _]| (i64::from(a as i32) * i64::from(b as i32)) as u64);
    check("mad.wide.s32 %lx, %a, %b, %lc;", |[a, b, c]| {
        (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64
    });
    check("mul.wide.s16 %x, %ha, %hb;", |[a, b, _]| u64::from((i32::from(a as i16) * i32::from(b as i16)) as u32));
    check("add.u16 %hx, %ha, %hb;", |[a, b, _]| u64::from((a as u16).wrapping_add(b as u16)));
    check("mul.lo.u16 %hx, %ha, %hb;", |[a, b, _]| u64::from((a as u16).wrapping_mul(b as u16)));
    check("max.s16 %hx, %ha, %hb;", |[a, b, _]| u64::from((a as i16).max(b as i16) as u16));
}

#[test]
fn bits_are_moved_as_defined() {
    check32("and.b32 %x, %a, %b;", |a, b, _| a & b);
    check32("or.b32 %x, %a, %b;", |a, b, _| a | b);
    check("xor.b64 %lx, %la, %lb;", |[a, b, _]| a ^ b);
    check("not.b16 %hx, %ha;", |[a, _, _]| u64::from(!(a as u16)));
    check32("shl.b32 %x, %a, %b;", |a, b, _| a.checked_shl(b).unwrap_or(0));
    check32("shr.u32 %x, %a, %b;", |a, b, _| a.checked_shr(b).unwrap_or(0));
    check_s32("shr.s32 %x, %a, %b;", |a, b, _| a >> (b as u32).min(31));
    check("shl.b64 %lx, %la, %b;", |[a, b, _]| a.checked_shl(b as u32).unwrap_or(0));
    check("shr.s64 %lx, %la, %b;", |[a, b, _]| ((a as i64) >> (b as u32).min(63)) as u64);
    check("shr.u16 %hx, %ha, %b;", |[a, b, _]| u64::from((a as u16).checked_shr(b as u32).unwrap_or(0)));
    check32("popc.b32 %x, %a;", |a, _, _| a.count_ones());
    check("popc.b64 %x, %la;", |[a, _, _]| u64::from(a.count_ones()));
    check32("clz.b32 %x, %a;", |a, _, _| a.leading_zeros());
    check("clz.b64 %x, %la;", |[a, _, _]| u64::from(a.leading_zeros()));
    check32("brev.b32 %x, %a;", |a, _, _| a.reverse_bits());
    check("brev.b64 %lx, %la;", |[a, _, _]| a.reverse_bits());
    check32("lop3.b32 %x, %a, %b, %c, 0x96;", |a, b, c| a ^ b ^ c);
    check32("lop3.b32 %x, %a, %b, %c, 0xca;", |a, b, c| (a & b) | (!a & c));
    let double = |a: u32, b: u32| u64::from(b) << 32 | u64::from(a);
    check32("shf.l.wrap.b32 %x, %a, %b, %c;", |a, b, c| (double(a, b) << (c % 32) >> 32) as u32);
    check32("shf.r.wrap.b32 %x, %a, %b, %c;", |a, b, c| (double(a, b) >> (c % 32)) as u32);
    check32("shf.l.clamp.b32 %x, %a, %b, %c;", |a, b, c| (double(a, b) << c.min(32) >> 32) as u32);
    check32("shf.r.clamp.b32 %x, %a, %b, %c;", |a, b, c| (double(a, b) >> c.min(32)) as u32);
    check("mov.b64 %lx, {%a, %b};", |[a, b, _]| b << 32 | a & 0xffff_ffff);
    check32("mov.b32 %x, {%ha, %hb};", |a, b, _| b << 16 | a & 0xffff);
    check("mov.b64 {%x, %c}, %la;", |[a, _, _]| a & 0xffff_ffff);
    check("mov.b64 {_, %x}, %la;", |[a, _, _]| a >> 32);
    check("mov.b32 {%hb, %hx}, %a;", |[a, _, _]| a >> 16 & 0xffff);
    check32("setp.lt.u32 %p, %a, %b; selp.u32 %x, %a, %b, %p;", |a, b, _| a.min(b));
}

/// The fields of `bfe` and `bfi` bit by bit, as the manual defines them.
#[test]
fn fields_of_bits_are_taken_and_put_as_defined() {
    let take = |a: u64, position: u64, length: u64, bits: u32, signed: bool| -> u64 {
        let (position, length) = ((position & 255) as u32, (length & 255) as u32);
        let bit = |index: u32| index < bits && a >> index & 1 == 1;
        let sign = if !signed || length == 0 { false } else { bit((position + length - 1).min(bits - 1)) };
        (0..bits).fold(0, |out, index| {
            let inside = index < length && position + index < bits;
            out | u64::from(if inside { bit(position + index) } else { sign }) << index
        })
    };
    check("bfe.u32 %x, %a, %b, %c;", |[a, b, c]| take(a & 0xffff_ffff, b, c, 32, false));
    check("bfe.s32 %x, %a, %b, %c;", |[a, b, c]| take(a & 0xffff_ffff, b, c, 32, true));
    check("bfe.u64 %lx, %la, %b, %c;", |[a, b, c]| take(a, b, c, 64, false));
    check("bfe.s64 %lx, %la, %b, %c;", |[a, b, c]| take(a, b, c, 64, true));
    for (position, length) in [(0, 8), (4, 4), (28, 8), (31, 1), (0, 32), (32, 4), (7, 0), (255, 255)] {
        let code = format!("bfi.b32 %x, %a, %b, {position}, {length};");
        check32(&code, |a, b, _| {
            (0..32).fold(0, |out, index| {
                let inside = index >= position && index < position + length;
                let bit = if inside { a >> (index - position) & 1 } else { b >> index & 1 };
                out | bit << index
            })
        });
        check(&code.replace("b32 %x, %a, %b", "b64 %lx, %la, %lb"), |[a, b, _]| {
            (0..64).fold(0, |out, index| {
                let inside = index >= position && index < position + length;
                let bit = if inside { a >> (index - position) & 1 } else { b >> index & 1 };
                out | bit << index
            })
        });
    }
    check32("prmt.b32 %x, %a, %b, %c;", |a, b, c| {
        let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
        let choose = |index: u32| {
            let selector = c >> (4 * index) & 15;
            let byte = bytes[selector as usize & 7];
            if selector < 8 { byte } else { ((byte as i8) >> 7) as u8 }
        };
        u32::from_le_bytes([0, 1, 2, 3].map(choose))
    });
}

#[test]
fn floats_are_computed_as_defined() {
    check_f32(&into_float("add.f32", "%fa, %fb"), |a, b, _| a + b);
    check_f32(&into_float("sub.rn.f32", "%fa, %fb"), |a, b, _| a - b);
    check_f32(&into_float("mul.f32", "%fa, %fb"), |a, b, _| a * b);
    check_f32(&into_float("div.rn.f32", "%fa, %fb"), |a, b, _| a / b);
    check_f32(&into_float("fma.rn.f32", "%fa, %fb, %fc"), f32::mul_add);
    check_f32(&into_float("neg.f32", "%fa"), |a, _, _| -a);
    check_f32(&into_float("abs.f32", "%fa"), |a, _, _| a.abs());
    check_f32(&into_float("sqrt.rn.f32", "%fa"), |a, _, _| a.sqrt());
    check_f32(&into_float("rcp.rn.f32", "%fa"), |a, _, _| 1.0 / a);
    // NaN loses, and zeros have an order.
    let least = |a: f32, b: f32| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a.total_cmp(&b).is_lt() => a,
        _ => b,
    };
    check_f32(&into_float("min.f32", "%fa, %fb"), |a, b, _| least(a, b));
    check_f32(&into_float("max.f32", "%fa, %fb"), |a, b, _| -least(-a, -b));
    for (left, right, less) in [("80000000", "00000000", "80000000"), ("00000000", "80000000", "80000000")] {
        let result = evaluate(&into_float("min.f32", &format!("0f{left}, 0f{right}")), &[[0; 3]]);
        assert_eq!(result, [u64::from_str_radix(less, 16).unwrap()]);
        let result = evaluate(&into_float("max.f32", &format!("0f{left}, 0f{right}")), &[[0; 3]]);
        assert_eq!(result, [0]);
    }
}

/// An f32 instruction whose result goes to `%x`.
fn into_float(opcode: &str, operands: &str) -> String {
    format!("{opcode} %fa, {operands}; mov.b32 %x, %fa;")
}

/// The approximations of a GPU are as exact as the manual says, and these are exact to more than that.
#[test]
fn approximations_are_close() {
    let close = |code: &str, expected: fn(f64) -> f64| {
        let inputs: Vec<Inputs> =
            (0..400).map(|index| [u64::from((0.01f32 + index as f32 * 0.125).to_bits()), 0, 0]).collect();
        for (input, result) in inputs.iter().zip(evaluate(code, &inputs)) {
            let x = f64::from(f32::from_bits(input[0] as u32));
            let (result, expected) = (f64::from(f32::from_bits(result as u32)), expected(x));
            assert!((result - expected).abs() <= expected.abs() * 1.5e-7 + 1e-9, "{code} of {x}: {result}, {expected}");
        }
    };
    close(&into_float("ex2.approx.ftz.f32", "%fa"), f64::exp2);
    close(&into_float("lg2.approx.f32", "%fa"), f64::log2);
    close(&into_float("rsqrt.approx.f32", "%fa"), |x| 1.0 / x.sqrt());
    close(&into_float("sqrt.approx.f32", "%fa"), f64::sqrt);
    close(&into_float("rcp.approx.ftz.f32", "%fa"), |x| 1.0 / x);
    close(&into_float("div.full.f32", "%fa, 0f40400000"), |x| x / 3.0);
    // What softmax leans on.
    let infinities = evaluate(&into_float("ex2.approx.ftz.f32", "0fFF800000"), &[[0; 3]]);
    assert_eq!(infinities, [0]);
    let infinities = evaluate(&into_float("lg2.approx.f32", "0f00000000"), &[[0; 3]]);
    assert_eq!(infinities, [0xff80_0000]);
}

#[test]
fn subnormals_become_zero_where_the_instruction_says_so() {
    let flush = |x: f32| if x.is_subnormal() { 0.0f32.copysign(x) } else { x };
    check_f32(&into_float("add.ftz.f32", "%fa, %fb"), |a, b, _| flush(flush(a) + flush(b)));
    check_f32(&into_float("mul.ftz.f32", "%fa, %fb"), |a, b, _| flush(flush(a) * flush(b)));
    check_f32(&into_float("fma.rn.ftz.f32", "%fa, %fb, %fc"), |a, b, c| flush(flush(a).mul_add(flush(b), flush(c))));
}

#[test]
fn comparisons_hold_as_defined() {
    let holds = |test: &str| format!("setp.{test} %p, %q; selp.u32 %x, 1, 0, %p;");
    let with = |test: &str, operands: &str| holds(test).replace("%q", operands);
    check32(&with("eq.b32", "%a, %b"), |a, b, _| u32::from(a == b));
    check32(&with("ne.s32", "%a, %b"), |a, b, _| u32::from(a != b));
    check32(&with("lt.u32", "%a, %b"), |a, b, _| u32::from(a < b));
    check32(&with("hs.u32", "%a, %b"), |a, b, _| u32::from(a >= b));
    check32(&with("le.s32", "%a, %b"), |a, b, _| u32::from(a as i32 <= b as i32));
    check(&with("gt.s64", "%la, %lb"), |[a, b, _]| u64::from(a as i64 > b as i64));
    check(&with("ge.u64", "%la, %lb"), |[a, b, _]| u64::from(a >= b));
    check(&with("lt.s16", "%ha, %hb"), |[a, b, _]| u64::from((a as i16) < b as i16));
    let floats = |test: &str, expected: fn(f32, f32) -> bool| {
        check(&with(&format!("{test}.f32"), "%fa, %fb"), |[a, b, _]| {
            u64::from(expected(f32::from_bits(a as u32), f32::from_bits(b as u32)))
        });
        // The same numbers on both sides, which random ones never are.
        check(&with(&format!("{test}.f32"), "%fa, %fa"), |[a, _, _]| {
            u64::from(expected(f32::from_bits(a as u32), f32::from_bits(a as u32)))
        });
    };
    floats("eq", |a, b| a == b);
    floats("ne", |a, b| a.partial_cmp(&b).is_some_and(|order| order.is_ne()));
    floats("lt", |a, b| a < b);
    floats("le", |a, b| a <= b);
    floats("gt", |a, b| a > b);
    floats("ge", |a, b| a >= b);
    floats("equ", |a, b| a.partial_cmp(&b).is_none_or(|order| order.is_eq()));
    floats("neu", |a, b| a != b);
    floats("ltu", |a, b| a < b || a.is_nan() || b.is_nan());
    floats("leu", |a, b| a <= b || a.is_nan() || b.is_nan());
    floats("gtu", |a, b| a > b || a.is_nan() || b.is_nan());
    floats("geu", |a, b| a >= b || a.is_nan() || b.is_nan());
    floats("num", |a, b| !a.is_nan() && !b.is_nan());
    floats("nan", |a, b| a.is_nan() || b.is_nan());
}

#[test]
fn predicates_are_combined_as_defined() {
    let given = "setp.lt.u32 %p, %a, %b; setp.lt.u32 %q, %b, %c;";
    let result = "selp.u32 %x, 1, 0, %p;";
    let code = |middle: &str| format!("{given} {middle} {result}");
    let table = |middle: &str, expected: fn(bool, bool) -> bool| {
        check32(&code(middle), |a, b, c| u32::from(expected(a < b, b < c)));
    };
    table("and.pred %p, %p, %q;", |p, q| p && q);
    table("or.pred %p, %p, !%q;", |p, q| p || !q);
    table("xor.pred %p, %p, %q;", |p, q| p != q);
    table("not.pred %p, %q;", |_, q| !q);
    table("mov.pred %p, %q;", |_, q| q);
    table("mov.pred %p, 1;", |_, _| true);
    table("@%q not.pred %p, %p;", |p, q| p != q);
    check32(&code("setp.gt.and.u32 %p, %a, %c, %q;"), |a, b, c| u32::from(a > c && b < c));
    check32(&code("setp.gt.or.u32 %p, %a, %c, !%q;"), |a, b, c| u32::from(a > c || b >= c));
    check32(&code("setp.gt.xor.u32 %p, %a, %c, %q;"), |a, b, c| u32::from((a > c) != (b < c)));
    // The second target takes the opposite comparison, combined with the same predicate.
    check32(&code("setp.gt.and.u32 %q|%p, %a, %c, %q;"), |a, b, c| u32::from(a <= c && b < c));
}

#[test]
fn integers_become_other_integers_as_defined() {
    check("cvt.u32.u64 %x, %la;", |[a, _, _]| a & 0xffff_ffff);
    check("cvt.s64.s32 %lx, %a;", |[a, _, _]| a as i32 as u64);
    check("cvt.u64.u32 %lx, %a;", |[a, _, _]| a & 0xffff_ffff);
    check("cvt.s32.s8 %x, %a;", |[a, _, _]| u64::from(a as i8 as u32));
    check("cvt.u32.u8 %x, %a;", |[a, _, _]| a & 0xff);
    check("cvt.s32.s16 %x, %ha;", |[a, _, _]| u64::from(a as i16 as u32));
    check("cvt.u16.u32 %hx, %a;", |[a, _, _]| a & 0xffff);
    // Into a register that is wider than the type.
    check("cvt.s8.s32 %x, %a;", |[a, _, _]| u64::from(a as i8 as u32));
    check("cvt.u8.s32 %x, %a;", |[a, _, _]| a & 0xff);
    check("cvt.sat.s8.s32 %x, %a;", |[a, _, _]| u64::from((a as i32).clamp(-128, 127) as u32));
    check("cvt.sat.u8.s32 %x, %a;", |[a, _, _]| (a as i32).clamp(0, 255) as u64);
    check("cvt.sat.s32.u32 %x, %a;", |[a, _, _]| u64::from((a as u32).min(i32::MAX as u32)));
    check("cvt.sat.u16.s64 %hx, %la;", |[a, _, _]| (a as i64).clamp(0, 0xffff) as u64);
}

#[test]
fn numbers_become_floats_as_defined() {
    let bits = |x: f32| u64::from(x.to_bits());
    let code = |types: &str, from: &str| format!("cvt.{types} %fa, {from}; mov.b32 %x, %fa;");
    check(&code("rn.f32.u32", "%a"), |[a, _, _]| bits(a as u32 as f32));
    check(&code("rn.f32.s32", "%a"), |[a, _, _]| bits(a as i32 as f32));
    check(&code("rn.f32.s64", "%la"), |[a, _, _]| bits(a as i64 as f32));
    check(&code("rn.f32.u64", "%la"), |[a, _, _]| bits(a as f32));
    check(&code("rn.f32.s8", "%a"), |[a, _, _]| bits(f32::from(a as i8)));
    check(&code("rn.f32.u8", "%a"), |[a, _, _]| bits(f32::from(a as u8)));
    check(&code("rn.f32.u16", "%ha"), |[a, _, _]| bits(f32::from(a as u16)));
    check(&code("rz.f32.u32", "%a"), |[a, _, _]| {
        // The largest float that is not larger.
        let nearest = a as u32 as f32;
        bits(if f64::from(nearest) > f64::from(a as u32) { nearest.next_down() } else { nearest })
    });
    check("cvt.rn.f16.s32 %hx, %a;", |[a, _, _]| u64::from(f16::from_f64(f64::from(a as i32)).to_bits()));
    check("cvt.rn.bf16.s32 %hx, %a;", |[a, _, _]| u64::from(bf16::from_f64(f64::from(a as i32)).to_bits()));
}

#[test]
fn floats_become_integers_as_defined() {
    let float = |bits: u64| f32::from_bits(bits as u32);
    check("cvt.rzi.s32.f32 %x, %fa;", |[a, _, _]| u64::from(float(a) as i32 as u32));
    check("cvt.rni.s32.f32 %x, %fa;", |[a, _, _]| u64::from(float(a).round_ties_even() as i32 as u32));
    check("cvt.rmi.s32.f32 %x, %fa;", |[a, _, _]| u64::from(float(a).floor() as i32 as u32));
    check("cvt.rpi.u32.f32 %x, %fa;", |[a, _, _]| u64::from(float(a).ceil() as u32));
    check("cvt.rni.u64.f32 %lx, %fa;", |[a, _, _]| float(a).round_ties_even() as u64);
    check("cvt.rni.s8.f32 %x, %fa;", |[a, _, _]| u64::from(float(a).round_ties_even() as i8 as u32));
    check("cvt.rni.sat.u8.f32 %x, %fa;", |[a, _, _]| u64::from(float(a).round_ties_even() as u8));
    check_f32(&into_float("cvt.rni.f32.f32", "%fa"), |a, _, _| a.round_ties_even());
    // Halves, which random bits seldom are.
    let halves: Vec<Inputs> = (-9..10).map(|i| [u64::from((i as f32 / 2.0).to_bits()), 0, 0]).collect();
    let expected: Vec<u64> = (-9..10).map(|i| (f64::from(i) / 2.0).round_ties_even() as i32 as u32 as u64).collect();
    assert_eq!(evaluate("cvt.rni.s32.f32 %x, %fa;", &halves), expected);
}

/// Every f16 and bf16 there is.
#[test]
fn floats_of_16_bits_become_f32_exactly() {
    let all: Vec<Inputs> = (0..=0xffff).map(|bits| [bits, 0, 0]).collect();
    for (bits, result) in evaluate("cvt.f32.f16 %fa, %ha; mov.b32 %x, %fa;", &all).iter().enumerate() {
        let (result, expected) = (f32::from_bits(*result as u32), f16::from_bits(bits as u16).to_f32());
        let same = result.to_bits() == expected.to_bits() || (result.is_nan() && expected.is_nan());
        assert!(same, "{bits:#x}: {result} {expected}");
    }
    for (bits, result) in evaluate("cvt.f32.bf16 %fa, %ha; mov.b32 %x, %fa;", &all).iter().enumerate() {
        let (result, expected) = (f32::from_bits(*result as u32), bf16::from_bits(bits as u16).to_f32());
        let same = result.to_bits() == expected.to_bits() || (result.is_nan() && expected.is_nan());
        assert!(same, "{bits:#x}: {result} {expected}");
    }
}

/// All values of 16 bits, the middles between neighbours, and what lies next to both.
#[test]
fn f32_is_rounded_to_16_bits_to_the_nearest_even() {
    let around = |bits: u32| [bits, bits.wrapping_sub(1), bits + 1].map(|bits| [u64::from(bits), u64::from(!bits), 0]);
    let mut f16s: Vec<Inputs> = Vec::new();
    for bits in 0..0x7c00u16 {
        let (low, high) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
        let middle = if high.is_finite() { (low + high) / 2.0 } else { 65_520.0 };
        f16s.extend(around(middle.to_bits()));
        f16s.extend(around(low.to_bits()));
    }
    let results = evaluate("cvt.rn.f16.f32 %hx, %fa;", &f16s);
    for (input, result) in f16s.iter().zip(results) {
        let value = f32::from_bits(input[0] as u32);
        let expected = f16::from_f32(value);
        let same =
            result == u64::from(expected.to_bits()) || (value.is_nan() && f16::from_bits(result as u16).is_nan());
        assert!(same, "{value:e}: {result:#x}, not {:#x}", expected.to_bits());
    }
    let bf16s: Vec<Inputs> =
        (0..0x7f80u32).flat_map(|bits| around(bits << 16).into_iter().chain(around(bits << 16 | 0x8000))).collect();
    let results = evaluate("cvt.rn.bf16.f32 %hx, %fa;", &bf16s);
    for (input, result) in bf16s.iter().zip(results) {
        let value = f32::from_bits(input[0] as u32);
        let expected = bf16::from_f32(value);
        let same =
            result == u64::from(expected.to_bits()) || (value.is_nan() && bf16::from_bits(result as u16).is_nan());
        assert!(same, "{value:e}: {result:#x}, not {:#x}", expected.to_bits());
    }
}

#[test]
fn a_pair_of_floats_is_packed_with_the_second_lowest() {
    let same = |result: u64, value: f64| (f64::from(f16::from_bits(result as u16)) - value).abs() < 1e-6;
    let inputs: Vec<Inputs> =
        [[1.5f32, -2.0], [0.25, 1024.0]].map(|[a, b]| [a, b, 0.0].map(|x| u64::from(x.to_bits()))).into();
    for (input, result) in inputs.iter().zip(evaluate("cvt.rn.f16x2.f32 %x, %fa, %fb;", &inputs)) {
        let [a, b, _] = input.map(|bits| f64::from(f32::from_bits(bits as u32)));
        assert!(same(result >> 16, a) && same(result & 0xffff, b), "{result:#x}");
    }
    let results = evaluate("cvt.rn.bf16x2.f32 %x, %fa, %fb;", &inputs);
    assert_eq!(results, [0x3fc0_c000, 0x3e80_4480]);
}

/// A definition of `shfl.sync` from the manual, in which lanes are numbers and may be out of range.
#[test]
fn lanes_are_shuffled_as_defined() {
    type Source = fn(i32, i32) -> i32;
    let modes: [(&str, Source); 4] = [
        ("bfly", |lane, offset| lane ^ offset),
        ("up", |lane, offset| lane - offset),
        ("down", |lane, offset| lane + offset),
        ("idx", |_, offset| offset),
    ];
    for (mode, source) in modes {
        for width in [32, 16, 8] {
            for offset in [0, 1, 3, 8, 17, 31] {
                let clamp = (32 - width) << 8 | if mode == "up" { 0 } else { 31 };
                let code = format!(
                    "shfl.sync.{mode}.b32 %b|%p, %n, {offset}, {clamp}, -1; selp.u32 %x, 256, 0, %p; or.b32 %x, %x, %b;"
                );
                let results = evaluate(&code, &[[0; 3]; 64]);
                for (thread, result) in results.iter().enumerate() {
                    let lane = thread as i32 % 32;
                    // The segment of lanes within which this one exchanges values.
                    let first = lane / width * width;
                    let from = match mode {
                        "idx" => first + source(0, offset) % width,
                        _ => source(lane, offset),
                    };
                    let inside = match mode {
                        "up" => from >= first,
                        _ => from < first + width,
                    };
                    let value = thread as i32 / 32 * 32 + if inside { from } else { lane };
                    let expected = value as u64 + if inside { 256 } else { 0 };
                    assert_eq!(*result, expected, "{mode} by {offset} within {width}, thread {thread}");
                }
            }
        }
    }
}

#[test]
fn a_warp_votes_and_reduces_as_defined() {
    let values = numbers(128, 9);
    let inputs: Vec<Inputs> = values.iter().map(|value| [*value, *value % 3, 0]).collect();
    let check = |code: &str, expected: &dyn Fn(&[u32]) -> u32| {
        let results = evaluate(code, &inputs);
        for (warp, results) in results.chunks(32).enumerate() {
            let values: Vec<u32> = values[warp * 32..][..32].iter().map(|value| *value as u32).collect();
            assert!(results.iter().all(|result| *result == u64::from(expected(&values))), "{code}");
        }
    };
    let odd = "and.b32 %b, %a, 1; setp.eq.u32 %p, %b, 1;";
    let ballot = |values: &[u32]| values.iter().enumerate().fold(0, |mask, (lane, value)| mask | (value & 1) << lane);
    check(&format!("{odd} vote.sync.ballot.b32 %x, %p, -1;"), &ballot);
    let vote = |kind: &str| format!("{odd} vote.sync.{kind}.pred %q, %p, -1; selp.u32 %x, 1, 0, %q;");
    check(&vote("any"), &|values| u32::from(ballot(values) != 0));
    check(&vote("all"), &|values| u32::from(ballot(values) == u32::MAX));
    check(&vote("uni"), &|values| u32::from(matches!(ballot(values), 0 | u32::MAX)));
    check("setp.eq.u32 %p, 1, 1; vote.sync.all.pred %q, %p, -1; selp.u32 %x, 1, 0, %q;", &|_| 1);
    check("redux.sync.add.u32 %x, %a, -1;", &|values| values.iter().fold(0, |sum, value| sum.wrapping_add(*value)));
    check("redux.sync.max.u32 %x, %a, -1;", &|values| *values.iter().max().unwrap());
    check("redux.sync.min.s32 %x, %a, -1;", &|values| values.iter().map(|v| *v as i32).min().unwrap() as u32);
    check("redux.sync.xor.b32 %x, %a, -1;", &|values| values.iter().fold(0, |sum, value| sum ^ value));
    check("redux.sync.and.b32 %x, %a, -1;", &|values| values.iter().fold(u32::MAX, |sum, value| sum & value));
    check("redux.sync.or.b32 %x, %a, -1;", &|values| values.iter().fold(0, |sum, value| sum | value));
}

#[test]
fn lanes_know_their_place() {
    let inputs = [[0; 3]; 128];
    let check = |code: &str, expected: &dyn Fn(u64) -> u64| {
        for (thread, result) in evaluate(code, &inputs).iter().enumerate() {
            assert_eq!(*result, expected(thread as u64), "{code}, thread {thread}");
        }
    };
    check("mov.u32 %x, %tid.x;", &|thread| thread % 64);
    check("mov.u32 %x, %tid.y;", &|_| 0);
    check("mov.u32 %x, %ntid.x;", &|_| 64);
    check("mov.u32 %x, %ctaid.x;", &|thread| thread / 64);
    check("mov.u32 %x, %nctaid.x;", &|_| 2);
    check("mov.u32 %x, %nctaid.z;", &|_| 1);
    check("mov.u32 %x, %laneid;", &|thread| thread % 32);
    check("mov.u32 %x, %warpid;", &|thread| thread / 32 % 2);
    check("mov.u32 %x, %nwarpid;", &|_| 2);
    check("mov.u32 %x, %lanemask_eq;", &|thread| 1 << (thread % 32));
    check("mov.u32 %x, %lanemask_lt;", &|thread| (1 << (thread % 32)) - 1);
    check("mov.u32 %x, %lanemask_ge;", &|thread| 0xffff_ffff & !((1 << (thread % 32)) - 1));
    check("activemask.b32 %x;", &|_| 0xffff_ffff);
}

#[test]
fn values_are_loaded_and_stored_in_every_width() {
    // The thread's own 24 bytes of input are read again as other types.
    check("ld.global.u8 %x, [%in + 1];", |[a, _, _]| a >> 8 & 0xff);
    check("ld.global.s8 %x, [%in + 1];", |[a, _, _]| u64::from((a >> 8) as i8 as u32));
    check("ld.global.s8 %hx, [%in + 3];", |[a, _, _]| u64::from((a >> 24) as i8 as u16));
    check("ld.global.ca.u16 %x, [%in + 2];", |[a, _, _]| a >> 16 & 0xffff);
    check("ld.global.cs.s16 %lx, [%in + 6];", |[a, _, _]| (a >> 48) as i16 as u64);
    check("ld.global.nc.b16 %hx, [%in + 8];", |[_, b, _]| b & 0xffff);
    check("ld.global.s32 %lx, [%in + 4];", |[a, _, _]| (a >> 32) as i32 as u64);
    check("ld.global.L1::no_allocate.L2::128B.u32 %x, [%in + 20];", |[_, _, c]| c >> 32);
    check("ld.global.nc.L1::no_allocate.L2::256B.v2.u32 {%a, %x}, [%in + 8];", |[_, b, _]| b >> 32);
    check("ld.global.v2.u16 {%ha, %hx}, [%in + 4];", |[a, _, _]| a >> 48);
    let shared = ".shared .align 16 .b8 own[1024];
        mul.lo.u32 %b, %tid.x, 16; mov.u32 %c, own; add.u32 %c, %c, %b;";
    let code = |body: &str| format!("{shared} {body}");
    check(
        &code(
            "st.shared.v2.u64 [%c], {%la, %lb}; ld.shared.v4.u32 {%a, %x, %n, %count}, [%c]; mov.u32 %n, %ctaid.x; mad.lo.u32 %n, %n, 64, %tid.x;",
        ),
        |[a, _, _]| a >> 32,
    );
    check(
        &code(
            "st.shared.u64 [%c], %la; st.shared.u8 [%c + 1], %lb; st.shared.b16 [%c + 4], %hb; ld.shared.u64 %lx, [%c];",
        ),
        |[a, b, _]| a & !0xffff_0000_ff00 | (b & 0xff) << 8 | (b & 0xffff) << 32,
    );
    check(&code("st.shared.v4.b16 [%c], {%ha, %hb, %ha, %hb}; ld.shared.b32 %x, [%c + 4];"), |[a, b, _]| {
        (b & 0xffff) << 16 | a & 0xffff
    });
}

#[test]
fn atomic_operations_return_what_was_there() {
    let shared = ".shared .align 8 .b8 own[512];
        mul.lo.u32 %n, %tid.x, 8; mov.u32 %count, own; add.u32 %n, %n, %count; st.shared.u64 [%n], %la;";
    let restore = "mov.u32 %n, %ctaid.x; mad.lo.u32 %n, %n, 64, %tid.x;";
    let after = |body: &str| format!("{shared} {body} ld.shared.u64 %lx, [%n]; {restore}");
    let before = |body: &str| format!("{shared} {body} {restore}");
    check(&before("atom.shared.add.u32 %x, [%n], %b;"), |[a, _, _]| a & 0xffff_ffff);
    let low = |a: u64, new: u32| a >> 32 << 32 | u64::from(new);
    check(&after("red.shared.add.u32 [%n], %b;"), |[a, b, _]| low(a, (a as u32).wrapping_add(b as u32)));
    check(&after("atom.shared.max.s32 %x, [%n], %b;"), |[a, b, _]| low(a, (a as i32).max(b as i32) as u32));
    check(&after("atom.shared.min.u32 _, [%n], %b;"), |[a, b, _]| low(a, (a as u32).min(b as u32)));
    check(&after("atom.shared.xor.b32 %x, [%n], %b;"), |[a, b, _]| low(a, a as u32 ^ b as u32));
    check(&after("atom.shared.exch.b32 %x, [%n], %b;"), |[a, b, _]| low(a, b as u32));
    check(&after("atom.shared.max.u64 %la, [%n], %lb;"), |[a, b, _]| a.max(b));
    check(&after("atom.shared.min.s64 %la, [%n], %lb;"), |[a, b, _]| (a as i64).min(b as i64) as u64);
    check(&after("and.b32 %b, %b, 1; and.b32 %c, %a, 1; atom.shared.cas.b32 %x, [%n], %a, %c;"), |[a, _, _]| {
        low(a, a as u32 & 1)
    });
    check(&after("add.u32 %b, %a, 1; atom.shared.cas.b32 %x, [%n], %b, %c;"), |[a, _, _]| a);
    let ones = [[u64::from(1.5f32.to_bits()), u64::from(2.25f32.to_bits()), 0]; 4];
    assert_eq!(evaluate(&after("red.shared.add.f32 [%n], %fb;"), &ones), [u64::from(3.75f32.to_bits()); 4]);
    // In global memory, each thread finds what the others have added so far.
    let code = "sub.u64 %in, %in, %at; atom.global.add.u32 %x, [%in], 2;";
    let mut before = evaluate(code, &[[3, 5, 0]; 64]);
    before.sort_unstable();
    assert_eq!(before, (0..64).map(|index| 3 + 2 * index).collect::<Vec<u64>>());
}
