//! Matrix instructions against the layouts of fragments that the PTX manual gives.

use amem_ptxsim::{Launch, Memory, Module, Schedule, run};
use half::{bf16, f16};
use proptest::prelude::*;

/// Runs one warp with `words` words of input for each lane, and returns `results` words for each.
fn run_warp(load: &str, code: &str, input: &[u32], words: usize, results: usize) -> Vec<Vec<u32>> {
    let store: String =
        (0..results).map(|index| format!("st.global.u32 [%out + {}], %x{index};\n", index * 4)).collect();
    let text = format!(
        ".version 8.0
.target sm_80
.address_size 64
.visible .entry test(.param .u64 in, .param .u64 out)
{{
    .reg .b32 %r<16>, %x<4>, %t;
    .reg .b64 %in, %out, %at;
    .shared .align 16 .b8 tile[512];
    ld.param.u64 %in, [in];
    ld.param.u64 %out, [out];
    mov.u32 %t, %tid.x;
    mul.wide.u32 %at, %t, {};
    add.u64 %in, %in, %at;
    mul.wide.u32 %at, %t, {};
    add.u64 %out, %out, %at;
    {load}
    {code}
    {store}
}}
",
        words * 4,
        results * 4
    );
    let module = Module::parse(&text).unwrap_or_else(|error| panic!("{error}"));
    let mut memory = Memory::new();
    let bytes: Vec<u8> = input.iter().flat_map(|word| word.to_le_bytes()).collect();
    let source = memory.allocate("input", bytes.len());
    memory.write(source, &bytes).unwrap();
    let target = memory.allocate("output", 32 * results * 4);
    let parameters: Vec<u8> = [source, target].iter().flat_map(|address| address.to_le_bytes()).collect();
    let launch = Launch {
        kernel: module.kernel("test").unwrap(),
        grid: [1; 3],
        block: [32, 1, 1],
        dynamic_shared: 0,
        parameters: &parameters,
        schedule: Schedule::default(),
    };
    run(&launch, &mut memory).unwrap_or_else(|fault| panic!("{fault}"));
    let mut output = vec![0; 32 * results * 4];
    memory.read(target, &mut output).unwrap();
    let words: Vec<u32> = output.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect();
    words.chunks(results).map(<[u32]>::to_vec).collect()
}

fn load(words: usize) -> String {
    (0..words).map(|index| format!("ld.global.u32 %r{index}, [%in + {}];\n", index * 4)).collect()
}

/// An element of 16 bits as a number.
fn number(bits: u16, brain: bool) -> f64 {
    if brain { bf16::from_bits(bits).to_f64() } else { f16::from_bits(bits).to_f64() }
}

/// The manual's figures for `m16n8k16` and `m16n8k8`: which element of A is the `i`-th of a lane.
fn place_in_a(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
    let column = thread * 2 + (i & 1) + if i >= 4 { 8 } else { 0 };
    (row, column)
}

fn place_in_b(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    (thread * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, group)
}

fn place_in_c(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
}

fn check_product(depth: usize, brain: bool, elements: &[f32], sums: &[f32]) {
    let half = |x: f32| if brain { bf16::from_f32(x).to_bits() } else { f16::from_f32(x).to_bits() };
    let bits: Vec<u16> = elements.iter().map(|x| half(*x)).collect();
    let a = |row: usize, k: usize| bits[row * 16 + k];
    let b = |k: usize, column: usize| bits[256 + k * 8 + column];
    let (in_a, in_b) = (depth / 2, depth / 4);
    let pack = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
    let mut input = Vec::new();
    for lane in 0..32 {
        let a = |i| a(place_in_a(lane, i).0, place_in_a(lane, i).1);
        let b = |i| b(place_in_b(lane, i).0, place_in_b(lane, i).1);
        input.extend((0..in_a / 2).map(|i| pack(a(2 * i), a(2 * i + 1))));
        input.extend((0..in_b / 2).map(|i| pack(b(2 * i), b(2 * i + 1))));
        input.extend((0..4).map(|i| sums[place_in_c(lane, i).0 * 8 + place_in_c(lane, i).1].to_bits()));
    }
    let words = in_a / 2 + in_b / 2 + 4;
    let registers = |from: usize, count: usize| {
        (from..from + count).map(|index| format!("%r{index}")).collect::<Vec<_>>().join(", ")
    };
    let ty = if brain { "bf16" } else { "f16" };
    let code = format!(
        "mma.sync.aligned.m16n8k{depth}.row.col.f32.{ty}.{ty}.f32 {{%x0, %x1, %x2, %x3}}, {{{}}}, {{{}}}, {{{}}};",
        registers(0, in_a / 2),
        registers(in_a / 2, in_b / 2),
        registers(words - 4, 4)
    );
    for (lane, results) in run_warp(&load(words), &code, &input, words, 4).iter().enumerate() {
        for (i, result) in results.iter().enumerate() {
            let (row, column) = place_in_c(lane, i);
            let terms = (0..depth).map(|k| number(a(row, k), brain) * number(b(k, column), brain));
            let start = f64::from(sums[row * 8 + column]);
            let (sum, size) = terms.fold((start, start.abs()), |(sum, size), term| (sum + term, size + term.abs()));
            let result = f64::from(f32::from_bits(*result));
            assert!((result - sum).abs() <= size * 2e-6, "row {row}, column {column}: {result}, not {sum}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn a_matrix_product_is_the_sum_of_products(
        elements in prop::collection::vec(-8f32..8.0, 16 * 16 + 16 * 8),
        sums in prop::collection::vec(-8f32..8.0, 16 * 8),
        brain in any::<bool>(),
        deep in any::<bool>(),
    ) {
        check_product(if deep { 16 } else { 8 }, brain, &elements, &sums);
    }

    /// Lane `l` gives row `l % 8` of matrix `l / 8`, and gets of each matrix the elements `2 (l % 4)` and the next of
    /// row `l / 4`; with `.trans`, of column `l / 4`.
    #[test]
    fn a_matrix_is_loaded_into_the_fragments_of_the_manual(
        elements in prop::collection::vec(any::<u16>(), 4 * 64),
        order in Just((0..32usize).collect::<Vec<_>>()).prop_shuffle(),
        matrices in prop::sample::select(vec![1usize, 2, 4]),
        transpose in any::<bool>(),
    ) {
        // The rows lie in shared memory in any order.
        let mut input = vec![0u32; 32 * 5];
        for (row, slot) in order.iter().enumerate() {
            for pair in 0..4 {
                let [low, high] = [0, 1].map(|half| u32::from(elements[row * 8 + pair * 2 + half]));
                input[slot * 5 + pair] = low | high << 16;
            }
        }
        for (row, slot) in order.iter().enumerate() {
            input[row * 5 + 4] = *slot as u32 * 16;
        }
        let load = format!(
            "{} mov.u32 %r6, tile; mad.lo.u32 %r5, %t, 16, %r6;
             st.shared.v4.u32 [%r5], {{%r0, %r1, %r2, %r3}}; add.u32 %r6, %r6, %r4; bar.warp.sync -1;",
            load(5)
        );
        let targets = (0..matrices).map(|index| format!("%x{index}")).collect::<Vec<_>>().join(", ");
        let trans = if transpose { ".trans" } else { "" };
        let code = format!("ldmatrix.sync.aligned.m8n8.x{matrices}{trans}.shared.b16 {{{targets}}}, [%r6];");
        for (lane, results) in run_warp(&load, &code, &input, 5, matrices).iter().enumerate() {
            for (matrix, result) in results.iter().enumerate() {
                let element = |i: usize| {
                    let (major, minor) = (lane / 4, lane % 4 * 2 + i);
                    let (row, column) = if transpose { (minor, major) } else { (major, minor) };
                    elements[matrix * 64 + row * 8 + column]
                };
                let expected = u32::from(element(0)) | u32::from(element(1)) << 16;
                prop_assert_eq!(*result, expected, "lane {}, matrix {}", lane, matrix);
            }
        }
    }
}
