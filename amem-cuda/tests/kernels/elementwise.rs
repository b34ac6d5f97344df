//! The kernels of `elementwise_<T>` and `rows`.

use amem_core::{f32_to_bf16, f32_to_f16};
use amem_ptxsim::{Counts, Kernel, Schedule};

use super::check::{Case, Check, TYPES, angles, at_floor, cut, hold, near, relative, rounded, same, slack, turned};
use super::harness::{Argument, Buffer, Device, Random, SCHEDULES, Type, kernel};

fn embed(kernel: &Kernel, schedule: Schedule, dtype: Type, columns: usize) -> Result<Counts, String> {
    let mut random = Random::new(columns as u64);
    let table = rounded(dtype, &random.units(7 * columns));
    let tokens = [3u32, 0, 6, 3];
    let mut device = Device::new();
    let table_at = device.upload_as(dtype, "table", &table);
    let tokens_at = device.upload("tokens", &tokens);
    let out = device.allocate("out", 4 * tokens.len() * columns);
    let arguments = [table_at.into(), tokens_at.into(), out.into(), (columns as u32).into()];
    let counts = device.launch(kernel, [tokens.len() as u32, 1, 1], 256, 0, &arguments, schedule)?;
    let expected: Vec<f32> = tokens.iter().flat_map(|&t| &table[t as usize * columns..][..columns]).copied().collect();
    same("embedding", &device.read::<f32>(out)?, &expected)?;
    Ok(counts)
}

/// Rows of different sizes, so that eps matters in one of them.
fn rows_of(random: &mut Random, rows: usize, length: usize) -> Vec<f32> {
    let scales = [1.0, 300.0, 2e-3];
    (0..rows).flat_map(|row| random.units(length).into_iter().map(move |x| x * scales[row % 3])).collect()
}

const EPS: f32 = 1e-5;

/// The norms of runs of `weight`'s length.
fn normed<'a>(dtype: Type, x: &'a [f32], weight: &'a [f32]) -> impl Iterator<Item = (f64, f64)> + 'a {
    x.chunks(weight.len()).flat_map(move |row| {
        let square: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
        let root = (square / weight.len() as f64 + f64::from(EPS)).sqrt();
        row.iter().zip(weight).map(move |(&x, &weight)| {
            let y = cut(dtype, f64::from(x) / root * f64::from(weight));
            (y, slack(dtype, y, y, relative(dtype)))
        })
    })
}

/// Weights, some of which are so large that numbers become too large for an f16.
fn weights(random: &mut Random, length: usize) -> Vec<f32> {
    random.units(length).into_iter().map(|x| if x.abs() > 0.7 { 1e6 * x } else { x }).collect()
}

fn rms_norm(kernel: &Kernel, schedule: Schedule, dtype: Type, length: usize) -> Result<Counts, String> {
    let mut random = Random::new(length as u64);
    let (x, weight) = (rows_of(&mut random, 3, length), weights(&mut random, length));
    let run = |rows: &[f32]| -> Result<(Vec<f32>, Counts), String> {
        let mut device = Device::new();
        let (x, weight) = (device.upload("x", rows), device.upload("weight", &weight));
        let count = rows.len() / length;
        let out = device.allocate("out", dtype.bytes() * rows.len());
        let arguments = [x.into(), weight.into(), out.into(), (length as u32).into(), EPS.into()];
        let counts = device.launch(kernel, [count as u32, 1, 1], 256, 0, &arguments, schedule)?;
        Ok((device.read_as(dtype, out)?, counts))
    };
    let (found, counts) = run(&x)?;
    near("norm", &found, normed(dtype, &x, &weight))?;
    // What a row yields does not depend on the others.
    same("a row alone", &run(&x[length..2 * length])?.0, &found[length..2 * length])?;
    Ok(counts)
}

fn rms_norm_heads(
    kernel: &Kernel,
    schedule: Schedule,
    dtype: Type,
    (length, runs): (usize, usize),
) -> Result<(), String> {
    let mut random = Random::new((length * runs) as u64);
    let (x, weight) = (rounded(dtype, &rows_of(&mut random, runs, length)), weights(&mut random, length));
    for in_place in [false, true] {
        let mut device = Device::new();
        let (x_at, weight_at) = (device.upload_as(dtype, "x", &x), device.upload("weight", &weight));
        let out = if in_place { x_at } else { device.allocate("out", x_at.bytes) };
        let numbers = [(length as u32).into(), (runs as u32).into(), EPS.into()];
        let arguments = [&[x_at.into(), weight_at.into(), out.into()], &numbers[..]].concat();
        device.launch(kernel, [runs.div_ceil(8) as u32, 1, 1], 256, 0, &arguments, schedule)?;
        near("norm of runs", &device.read_as(dtype, out)?, normed(dtype, &x, &weight))?;
    }
    Ok(())
}

fn add_rms_norm(kernel: &Kernel, schedule: Schedule, dtype: Type, length: usize) -> Result<Counts, String> {
    let mut random = Random::new(length as u64 + 1);
    let x = rows_of(&mut random, 3, length);
    let y = rounded(dtype, &rows_of(&mut random, 3, length));
    let weight = weights(&mut random, length);
    let mut device = Device::new();
    let (x_at, y_at) = (device.upload("x", &x), device.upload_as(dtype, "y", &y));
    let (weight_at, out) = (device.upload("weight", &weight), device.allocate("out", y_at.bytes));
    let arguments = [x_at.into(), y_at.into(), weight_at.into(), out.into(), (length as u32).into(), EPS.into()];
    let counts = device.launch(kernel, [3, 1, 1], 256, 0, &arguments, schedule)?;
    let sums: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
    same("sum", &device.read::<f32>(x_at)?, &sums)?;
    near("norm of a sum", &device.read_as(dtype, out)?, normed(dtype, &sums, &weight))?;
    Ok(counts)
}

/// Grids for kernels that any grid suits.
fn grids(count: usize, each: usize) -> [[u32; 3]; 2] {
    [[count.div_ceil(256 * each) as u32, 1, 1], [1, 1, 1]]
}

fn add(kernel: &Kernel, schedule: Schedule, dtype: Type, count: usize) -> Result<Counts, String> {
    let mut random = Random::new(count as u64);
    let (x, y) = (random.units(count), rounded(dtype, &random.units(count)));
    let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
    let mut all = Counts::default();
    for grid in grids(count, 4) {
        let mut device = Device::new();
        let (x, y) = (device.upload("x", &x), device.upload_as(dtype, "y", &y));
        all = device.launch(kernel, grid, 256, 0, &[x.into(), y.into(), (count as u32).into()], schedule)?;
        same("sum", &device.read::<f32>(x)?, &expected)?;
    }
    Ok(all)
}

/// Inputs at which an exponential overflows or vanishes, and some between.
const STEEP: [f32; 22] = [
    0.0, -0.0, 1e-30, 1.0, -1.0, 20.0, -20.0, 60.0, -60.0, 80.0, -80.0, 87.0, -87.0, 89.0, -89.0, 200.0, 1000.0,
    -1000.0, 1e4, -1e4, 3e38, -3e38,
];

fn silu_mul(kernel: &Kernel, schedule: Schedule, dtype: Type, count: usize) -> Result<Counts, String> {
    let [gate, up] = gates(&mut Random::new(count as u64), dtype, count);
    gated(kernel, schedule, (dtype, count), [&gate, &up], |gate, up| {
        let y = gate / (1.0 + (-gate).exp()) * up;
        (y, y)
    })
}

/// Gates and what they are for, as `silu_mul` gets them.
fn gates(random: &mut Random, dtype: Type, count: usize) -> [Vec<f32>; 2] {
    let gate = random.units(count).into_iter().enumerate().map(|(i, x)| STEEP.get(i % 31).copied().unwrap_or(90.0 * x));
    let gate = rounded(dtype, &gate.collect::<Vec<_>>());
    // 90 times 6,000 is too large for an f16. The largest gates stay finite.
    let up = random.units(count).into_iter().zip(&gate);
    let up = up.map(|(x, gate)| if x > 0.5 && gate.abs() < 1e30 { 6000.0 * x } else { x });
    let up = rounded(dtype, &up.collect::<Vec<_>>());
    [gate, up]
}

/// A gate's activation times what it is for: f(gate, up) is the number, and its size where it is rounded off.
fn gated(
    kernel: &Kernel,
    schedule: Schedule,
    (dtype, count): (Type, usize),
    [gate, up]: [&[f32]; 2],
    f: impl Fn(f64, f64) -> (f64, f64),
) -> Result<Counts, String> {
    let expected = || {
        gate.iter().zip(up).map(|(&gate, &up)| {
            let (y, size) = f(gate.into(), up.into());
            (cut(dtype, y), slack(dtype, y, size, if dtype == Type::F32 { 1e-6 } else { 2e-5 }))
        })
    };
    let mut all = Counts::default();
    for grid in grids(count, 16 / dtype.bytes()) {
        let mut device = Device::new();
        let (gate, up) = (device.upload_as(dtype, "gate", gate), device.upload_as(dtype, "up", up));
        let out = device.allocate("out", gate.bytes);
        let arguments = [gate.into(), up.into(), out.into(), (count as u32).into()];
        all = device.launch(kernel, grid, 256, 0, &arguments, schedule)?;
        near(kernel.name(), &device.read_as(dtype, out)?, expected())?;
        // In place.
        let arguments = [gate.into(), up.into(), gate.into(), (count as u32).into()];
        device.launch(kernel, grid, 256, 0, &arguments, schedule)?;
        near(kernel.name(), &device.read_as(dtype, gate)?, expected())?;
    }
    Ok(all)
}

/// GELU, approximated with a tangent, and how much larger than itself a rounding of its exponent makes it.
pub(crate) fn gelu_tanh(x: f64) -> (f64, f64) {
    let exponent = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
    let y = if exponent < -700.0 { 0.0 } else { x / (1.0 + (-exponent).exp()) };
    (y, 1.0 + exponent.abs())
}

fn gelu_mul(kernel: &Kernel, schedule: Schedule, dtype: Type, count: usize) -> Result<Counts, String> {
    let [mut gate, up] = gates(&mut Random::new(count as u64), dtype, count);
    // Most of what is between does not vanish.
    gate.iter_mut().filter(|gate| gate.abs() < 90.0 && gate.abs() > 1.0).for_each(|gate| *gate /= 16.0);
    let gate = rounded(dtype, &gate);
    gated(kernel, schedule, (dtype, count), [&gate, &up], |gate, up| {
        let (y, size) = gelu_tanh(gate);
        (y * up, if y == 0.0 { 0.0 } else { y * up * size })
    })
}

/// Changes numbers where they lie. `f` gives each number and how far it may be off in f32.
fn in_place(
    kernel: &Kernel,
    schedule: Schedule,
    dtype: Type,
    (x, real): (&[f32], Option<f32>),
    f: impl Fn(f64) -> (f64, f64),
) -> Result<Counts, String> {
    let mut all = Counts::default();
    for grid in grids(x.len(), 16 / dtype.bytes()) {
        let mut device = Device::new();
        let at = device.upload_as(dtype, "x", x);
        let mut arguments: Vec<Argument> = vec![at.into(), (x.len() as u32).into()];
        arguments.extend(real.map(Argument::from));
        all = device.launch(kernel, grid, 256, 0, &arguments, schedule)?;
        let expected = x.iter().map(|&x| f(x.into())).map(|(y, off)| (cut(dtype, y), slack(dtype, y, off, 1.0)));
        near(kernel.name(), &device.read_as(dtype, at)?, expected)?;
    }
    Ok(all)
}

/// The share of the normal distribution that is less than x, by the series of the error function.
fn normal_distribution(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// Numbers that end with these, which are gone through one by one where they are what is left over.
fn ending(mut numbers: Vec<f32>, end: [f32; 3]) -> Vec<f32> {
    let first = numbers.len().saturating_sub(end.len());
    numbers[first..].iter_mut().zip(end).for_each(|(x, end)| *x = end);
    numbers
}

fn gelu(kernel: &Kernel, schedule: Schedule, dtype: Type, count: usize) -> Result<Counts, String> {
    let x = Random::new(count as u64).units(count).into_iter().enumerate();
    let x = x.map(|(i, x)| STEEP.get(i % 61).copied().unwrap_or(6.0 * x));
    let x = rounded(dtype, &ending(x.collect(), [-4.0, 17.3, -3.1]));
    in_place(kernel, schedule, dtype, (&x, None), |x| (x * normal_distribution(x), 1.5e-7 * x.abs()))
}

fn scale(kernel: &Kernel, schedule: Schedule, dtype: Type, count: usize) -> Result<Counts, String> {
    const FACTOR: f32 = 0.22;
    let x = Random::new(count as u64).units(count).into_iter().enumerate();
    // Some of them become too large for an f16.
    let x = x.map(|(i, x)| x * [1.0, 3e-4, 65504.0][i % 3] / if dtype == Type::F16 { 1.0 } else { FACTOR });
    let x = rounded(dtype, &x.collect::<Vec<_>>());
    let factor = if dtype == Type::F16 { 1.0 / FACTOR } else { FACTOR };
    in_place(kernel, schedule, dtype, (&x, Some(factor)), |x| {
        let y = x * f64::from(factor);
        (y, y.abs() * Type::F32.rounding())
    })
}

fn soft_cap(kernel: &Kernel, schedule: Schedule, count: usize) -> Result<Counts, String> {
    const CAP: f32 = 30.0;
    let x = Random::new(count as u64).units(count).into_iter().enumerate();
    let x = x.map(|(i, x)| STEEP.get(i % 61).copied().unwrap_or([100.0, 15.0][i % 2] * x));
    let x = ending(x.collect(), [12.0, -70.0, 17.3]);
    in_place(kernel, schedule, Type::F32, (&x, Some(CAP)), |x| {
        let y = f64::from(CAP) * (x / f64::from(CAP)).tanh();
        (y, 5e-7 * y.abs())
    })
}

fn sum_rows(
    kernel: &Kernel,
    schedule: Schedule,
    dtype: Type,
    (sums, each, columns): (usize, usize, usize),
) -> Result<Counts, String> {
    const ROWS: usize = 9;
    let mut random = Random::new((each * columns) as u64);
    let x = rounded(dtype, &rows_of(&mut random, ROWS, columns));
    // Some sums are too large for an f16.
    let weight = |random: &mut Random| random.unit() * [1.0, 1.0, 1e6][random.below(3) as usize];
    let picked: Vec<(u32, f32)> = (0..sums * each).map(|_| (random.below(ROWS as u32), weight(&mut random))).collect();
    let words: Vec<[u32; 2]> = picked.iter().map(|(row, weight)| [*row, weight.to_bits()]).collect();
    let mut device = Device::new();
    let (x_at, picked_at) = (device.upload_as(dtype, "x", &x), device.upload("picked", &words));
    let out = device.allocate("out", sums * columns * dtype.bytes());
    let arguments = [x_at.into(), picked_at.into(), out.into(), (each as u32).into(), (columns as u32).into()];
    let counts = device.launch(kernel, [sums as u32, 1, 1], 256, 0, &arguments, schedule)?;
    let expected = picked.chunks(each).flat_map(|picked| {
        let x = &x;
        (0..columns).map(move |column| {
            let terms = || picked.iter().map(|(row, w)| f64::from(*w) * f64::from(x[*row as usize * columns + column]));
            let (y, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            (cut(dtype, y), slack(dtype, y, size, relative(dtype)))
        })
    });
    near("sum of rows", &device.read_as(dtype, out)?, expected)?;
    Ok(counts)
}

fn layer_norm(
    kernel: &Kernel,
    schedule: Schedule,
    dtype: Type,
    (rows, columns): (usize, usize),
) -> Result<Counts, String> {
    let mut random = Random::new((rows * columns) as u64);
    let mut x = rows_of(&mut random, rows, columns);
    // About other numbers than zero.
    x.chunks_mut(columns).enumerate().for_each(|(row, x)| x.iter_mut().for_each(|x| *x += row as f32 - 2.0));
    let (weight, bias) = (weights(&mut random, columns), random.units(columns));
    let run = |x: &[f32]| -> Result<(Vec<f32>, Counts), String> {
        let count = x.len() / columns;
        let mut device = Device::new();
        let out = device.allocate("out", x.len() * dtype.bytes());
        let arguments = [
            device.upload("x", x).into(),
            device.upload("weight", &weight).into(),
            device.upload("bias", &bias).into(),
            out.into(),
            (count as u32).into(),
            (columns as u32).into(),
            EPS.into(),
        ];
        let counts = device.launch(kernel, [count.div_ceil(8) as u32, 1, 1], 256, 0, &arguments, schedule)?;
        Ok((device.read_as(dtype, out)?, counts))
    };
    let (found, counts) = run(&x)?;
    let expected = x.chunks(columns).flat_map(|row| {
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / columns as f64;
        let square: f64 = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
        let root = (square / columns as f64 + f64::from(EPS)).sqrt();
        row.iter().zip(&weight).zip(&bias).map(move |((&x, &weight), &bias)| {
            let (x, weight, bias) = (f64::from(x), f64::from(weight), f64::from(bias));
            let size = (x.abs() + mean.abs()) / root * weight.abs() + bias.abs();
            let y = (x - mean) / root * weight + bias;
            (cut(dtype, y), slack(dtype, y, size, relative(dtype)))
        })
    });
    near("layer norm", &found, expected)?;
    // What a row yields does not depend on the others.
    same("a row alone", &run(&x[(rows - 1) * columns..])?.0, &found[(rows - 1) * columns..])?;
    Ok(counts)
}

fn rotate(
    kernel: &Kernel,
    schedule: Schedule,
    dtype: Type,
    (head_dim, heads): (usize, usize),
) -> Result<Counts, String> {
    let mut random = Random::new((head_dim * heads) as u64);
    let positions = [5u32, 0, 39];
    let mut x = random.units(positions.len() * heads * head_dim);
    // Some become too large for an f16.
    x.iter_mut().filter(|x| x.abs() > 0.8).for_each(|x| *x *= 65504.0);
    let x = rounded(dtype, &x);
    let table = angles(40, head_dim);
    let mut device = Device::new();
    let (x_at, table_at) = (device.upload_as(dtype, "x", &x), device.upload("angles", &table));
    let positions_at = device.upload("positions", &positions);
    let sizes = [(heads as u32).into(), (head_dim as u32).into()];
    let arguments = [&[x_at.into(), table_at.into(), positions_at.into()], &sizes[..]].concat();
    let counts = device.launch(kernel, [positions.len() as u32, 1, 1], 128, 0, &arguments, schedule)?;
    let row_angles = |row: usize| &table[positions[row] as usize * head_dim..][..head_dim];
    let expected = x.chunks(head_dim).enumerate().flat_map(|(i, head)| turned(dtype, head, row_angles(i / heads)));
    near("rotation", &device.read_as(dtype, x_at)?, expected)?;
    Ok(counts)
}

/// Numbers that round in every way there is, to `count` of them.
fn to_round(count: usize) -> Vec<f32> {
    let mut random = Random::new(5);
    let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 65504.0, 65519.9, 65520.0, -1e6, 3e38, 1e-7];
    let mut numbers = special.to_vec();
    while numbers.len() < count {
        // Ties of f16 and of bf16 and their neighbours, over all magnitudes.
        let bits = random.next() as u32;
        let tie = match random.below(4) {
            0 => bits & !0x1fff | 0x1000,
            1 => bits & !0xffff | 0x8000,
            2 => (bits & !0x1fff | 0x1000) + 1,
            _ => bits,
        };
        // Half of them of the magnitudes that f16 has.
        numbers.push(f32::from_bits(if bits & 1 == 0 { tie } else { tie & 0x8fff_ffff | 0x3000_0000 }));
    }
    numbers.truncate(count);
    numbers
}

fn narrow(kernel: &Kernel, schedule: Schedule, dtype: Type, count: usize) -> Result<Counts, String> {
    let numbers = to_round(count);
    let bits = |x: &f32| match dtype {
        Type::F32 => x.to_bits(),
        Type::F16 => u32::from(f32_to_f16(*x)),
        Type::Bf16 => u32::from(f32_to_bf16(*x)),
    };
    // What kind of NaN it is, is not said.
    let expected: Vec<_> = numbers.iter().map(|x| (!x.is_nan()).then(|| bits(x))).collect();
    let mut all = Counts::default();
    for grid in grids(count, 4) {
        let mut device = Device::new();
        let x = device.upload("x", &numbers);
        let out = device.allocate("out", dtype.bytes() * count);
        all = device.launch(kernel, grid, 256, 0, &[x.into(), out.into(), (count as u32).into()], schedule)?;
        let bytes = device.read::<u8>(out)?;
        let nan = dtype.decode(&bytes).into_iter().map(f32::is_nan);
        let found: Vec<_> = bytes
            .chunks(dtype.bytes())
            .map(|bytes| bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u32::from(*byte)))
            .zip(nan)
            .map(|(bits, nan)| (!nan).then_some(bits))
            .collect();
        same("rounding", &found, &expected)?;
    }
    Ok(all)
}

fn widen(kernel: &Kernel, schedule: Schedule, dtype: Type, count: usize) -> Result<(), String> {
    // All bits that there are, in a scattered order.
    let bytes: Vec<u8> =
        (0..count).flat_map(|i| (i as u32).wrapping_mul(40_503).to_le_bytes()[..dtype.bytes()].to_vec()).collect();
    let bits = |x: f32| (!x.is_nan()).then(|| x.to_bits());
    let expected: Vec<_> = dtype.decode(&bytes).into_iter().map(bits).collect();
    for grid in grids(count, 4) {
        let mut device = Device::new();
        let (x, out) = (device.upload("x", &bytes), device.allocate("out", 4 * count));
        device.launch(kernel, grid, 256, 0, &[x.into(), out.into(), (count as u32).into()], schedule)?;
        same("number", &device.read::<f32>(out)?.into_iter().map(bits).collect::<Vec<_>>(), &expected)?;
    }
    Ok(())
}

fn gather_rows(kernel: &Kernel, schedule: Schedule, words: usize) -> Result<Counts, String> {
    let mut random = Random::new(words as u64);
    let x: Vec<u32> = (0..9 * words).map(|_| random.next() as u32).collect();
    let rows = [8u32, 1, 1, 0, 5];
    let mut device = Device::new();
    let (x_at, rows_at) = (device.upload("x", &x), device.upload("rows", &rows));
    let out = device.allocate("out", 4 * rows.len() * words);
    let arguments = [x_at.into(), rows_at.into(), out.into(), (words as u32).into()];
    let counts = device.launch(kernel, [rows.len() as u32, 1, 1], 256, 0, &arguments, schedule)?;
    let expected: Vec<u32> = rows.iter().flat_map(|&row| &x[row as usize * words..][..words]).copied().collect();
    same("row", &device.read::<u32>(out)?, &expected)?;
    Ok(counts)
}

/// Counts that leave something over, and such that end with a block or within one.
const COUNTS: [usize; 6] = [1, 3, 7, 257, 1024, 4103];

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for t in TYPES {
        let of = |entry: &str, check: Box<Check>| Case::of("elementwise", t, entry, check);
        for columns in [8, 40, 1032] {
            all.push(of("embed", Box::new(move |k, s| embed(k, s, t, columns).map(drop))));
        }
        // In steps of the 1,024 numbers that the threads hold one four each of, and more than they hold at all.
        for length in [1, 4, 7, 64, 257, 1028, 2052, 3076, 4100, 5124, 6148, 7172, 10_300] {
            all.push(of("rms_norm", Box::new(move |k, s| rms_norm(k, s, t, length).map(drop))));
            all.push(of("add_rms_norm", Box::new(move |k, s| add_rms_norm(k, s, t, length).map(drop))));
        }
        for size in [(2, 9), (16, 8), (20, 3), (64, 7), (80, 1), (96, 17), (128, 8), (256, 5), (257, 3), (600, 2)] {
            all.push(of("rms_norm_heads", Box::new(move |k, s| rms_norm_heads(k, s, t, size))));
        }
        for size in [(2, 3), (16, 1), (20, 17), (64, 9), (80, 8), (96, 3), (128, 17), (258, 2)] {
            all.push(of("rotate", Box::new(move |k, s| rotate(k, s, t, size).map(drop))));
        }
        for size in [(1, 1, 8), (3, 2, 40), (5, 3, 264), (2, 8, 2056), (1, 5, 4096)] {
            all.push(of("sum_rows", Box::new(move |k, s| sum_rows(k, s, t, size).map(drop))));
        }
        // Rows that end within each of the fours that lanes hold, with the last of them, and behind them.
        let ends = [(3, 4), (9, 64), (2, 148), (3, 276), (8, 404), (1, 532), (2, 660), (3, 788), (2, 916)];
        for size in ends.into_iter().chain([(5, 1024), (4, 1028), (3, 1540), (2, 3000)]) {
            all.push(of("layer_norm", Box::new(move |k, s| layer_norm(k, s, t, size).map(drop))));
        }
        for count in COUNTS {
            all.push(of("add", Box::new(move |k, s| add(k, s, t, count).map(drop))));
            all.push(of("silu_mul", Box::new(move |k, s| silu_mul(k, s, t, count).map(drop))));
            all.push(of("gelu_mul", Box::new(move |k, s| gelu_mul(k, s, t, count).map(drop))));
            all.push(of("gelu", Box::new(move |k, s| gelu(k, s, t, count).map(drop))));
            all.push(of("scale", Box::new(move |k, s| scale(k, s, t, count).map(drop))));
            if t != Type::F32 {
                all.push(of("scale_f32", Box::new(move |k, s| scale(k, s, Type::F32, count).map(drop))));
            }
            all.push(of("soft_cap", Box::new(move |k, s| soft_cap(k, s, count).map(drop))));
            all.push(of("narrow", Box::new(move |k, s| narrow(k, s, t, count).map(drop))));
            all.push(of("widen", Box::new(move |k, s| widen(k, s, t, count))));
        }
    }
    for words in [1, 4, 7, 257, 1024, 2000, 9000] {
        all.push(Case::new("rows", "gather_rows", move |k, s| gather_rows(k, s, words).map(drop)));
    }
    all
}

#[test]
fn embedding_copies_and_widens_the_rows_of_tokens() {
    hold(cases(), "embed");
}

#[test]
fn norms_are_those_of_each_row_alone() {
    hold(cases(), "rms_norm");
}

#[test]
fn heads_are_normed_one_by_one_and_in_place() {
    hold(cases(), "rms_norm_heads");
}

#[test]
fn a_sum_is_kept_and_normed() {
    hold(cases(), "add_rms_norm");
}

#[test]
fn sums_are_those_of_f32() {
    hold(cases(), "add");
}

#[test]
fn silu_is_right_where_an_exponential_overflows() {
    hold(cases(), "silu_mul");
}

#[test]
fn gelu_is_right_where_an_exponential_overflows() {
    hold(cases(), "gelu_mul");
    hold(cases(), "gelu");
}

#[test]
fn numbers_are_scaled_and_rounded_once() {
    hold(cases(), "scale");
    hold(cases(), "scale_f32");
}

#[test]
fn caps_keep_the_digits_of_small_numbers() {
    hold(cases(), "soft_cap");
}

#[test]
fn rows_are_added_up_by_their_weights() {
    hold(cases(), "sum_rows");
}

#[test]
fn layer_norms_are_those_of_each_row_alone() {
    hold(cases(), "layer_norm");
}

#[test]
fn heads_are_rotated_to_their_rows_positions() {
    hold(cases(), "rotate");
}

#[test]
fn numbers_round_as_the_core_rounds_them() {
    hold(cases(), "narrow");
}

#[test]
fn numbers_widen_without_loss() {
    hold(cases(), "widen");
}

#[test]
fn every_16_bit_number_widens_without_loss() {
    for dtype in [Type::F16, Type::Bf16] {
        let module = format!("elementwise_{}", dtype.name());
        assert_eq!(widen(kernel(&module, "widen"), SCHEDULES[0], dtype, 1 << 16), Ok(()));
    }
}

#[test]
fn rows_are_gathered_in_any_order() {
    hold(cases(), "gather_rows");
}

#[test]
fn no_kernel_moves_more_than_it_must() {
    let s = SCHEDULES[0];
    for t in TYPES {
        let (size, module) = (t.bytes(), format!("elementwise_{}", t.name()));
        let of = |entry| kernel(&module, entry);
        let check = |what: &str, counts: Result<Counts, String>, floor: usize| {
            let result = counts.and_then(|counts| at_floor(&counts, floor, 0.02));
            assert_eq!(result, Ok(()), "{what} of {module}");
        };
        check("embed", embed(of("embed"), s, t, 4096), 4 * 4096 * (4 + size));
        // Each of three rows reads the weights.
        check("rms_norm", rms_norm(of("rms_norm"), s, t, 4096), 3 * 4096 * (4 + size + 4));
        check("add_rms_norm", add_rms_norm(of("add_rms_norm"), s, t, 8192), 3 * 8192 * (8 + 2 * size + 4));
        check("add", add(of("add"), s, t, 16384), 16384 * (8 + size));
        check("silu_mul", silu_mul(of("silu_mul"), s, t, 16384), 16384 * 3 * size);
        check("gelu_mul", gelu_mul(of("gelu_mul"), s, t, 16384), 16384 * 3 * size);
        check("gelu", gelu(of("gelu"), s, t, 16384), 16384 * 2 * size);
        check("scale", scale(of("scale"), s, t, 16384), 16384 * 2 * size);
        check("soft_cap", soft_cap(of("soft_cap"), s, 16384), 16384 * 8);
        // Pairs are read by each of a block's eight warps, for each 4,096 bytes of a row.
        check("sum_rows", sum_rows(of("sum_rows"), s, t, (3, 8, 4096)), 3 * (4096 * 9 * size + 8 * 8 * 32 * size));
        // Each of four rows reads weights and biases.
        check("layer_norm", layer_norm(of("layer_norm"), s, t, (4, 1024)), 4 * 1024 * (4 + size + 8));
        check("narrow", narrow(of("narrow"), s, t, 16384), 16384 * (4 + size));
        let floor = 3 * (32 * 128 * 2 * size + 4 * 128);
        check("rotate", rotate(of("rotate"), s, t, (128, 32)), floor);
    }
    let counts = gather_rows(kernel("rows", "gather_rows"), s, 4096).unwrap();
    assert_eq!(at_floor(&counts, 5 * 4096 * 8, 0.02), Ok(()));
}

#[test]
fn an_argument_is_not_written_outside_of_its_bounds() {
    // The kernels get the middle of a buffer, and what is before and behind must stay.
    let mut device = Device::new();
    let x = device.upload("x", &[1f32; 64]);
    let y = device.upload("y", &[2f32; 64]);
    let inside = |buffer: Buffer| Argument::Pointer(buffer.address + 16);
    let arguments = [inside(x), inside(y), 37u32.into()];
    device.launch(kernel("elementwise_f32", "add"), [1, 1, 1], 256, 0, &arguments, SCHEDULES[0]).unwrap();
    let expected: Vec<f32> = (0..64).map(|i| if (4..41).contains(&i) { 3.0 } else { 1.0 }).collect();
    assert_eq!(device.read::<f32>(x).unwrap(), expected);
}
