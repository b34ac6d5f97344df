//! The kernels of `matvec_<T>`.

use amem_ptxsim::{Counts, Kernel, Schedule};

use super::check::{Case, TYPES, at_floor, cut, hold, near, rounded, same, slack};
use super::elementwise::gelu_tanh;
use super::harness::{Argument, Buffer, Device, NULL, Random, SCHEDULES, Type, constant, kernel};

/// A matrix `[outputs][inputs]`, and its bias unless there is none.
struct Matrix {
    outputs: usize,
    inputs: usize,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Matrix {
    fn new(random: &mut Random, dtype: Type, (outputs, inputs): (usize, usize), biased: bool) -> Self {
        let weight = rounded(dtype, &random.units(inputs * outputs));
        Self { outputs, inputs, weight, bias: biased.then(|| random.units(outputs)) }
    }

    fn upload(&self, device: &mut Device, dtype: Type) -> [Argument; 2] {
        let weight = device.upload_as(dtype, "weight", &self.weight);
        let bias = self.bias.as_ref().map_or(NULL, |bias| device.upload("bias", bias).into());
        [weight.into(), bias]
    }

    /// Products with rows of x, and for each the sum of the sizes of what was added up.
    fn product<'a>(&'a self, x: &'a [f32]) -> impl Iterator<Item = (f64, f64)> + 'a {
        x.chunks(self.inputs).flat_map(move |row| {
            (0..self.outputs).map(move |output| {
                let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[output]));
                let weights = &self.weight[output * self.inputs..][..self.inputs];
                let terms = || row.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
                (terms().sum::<f64>() + bias, terms().map(f64::abs).sum::<f64>() + bias.abs())
            })
        })
    }
}

/// Rows of very different sizes, so that what leaks from one to another shows; the sums of some are too large for an
/// f16.
fn rows_of(random: &mut Random, dtype: Type, rows: usize, inputs: usize) -> Vec<f32> {
    let sizes = [1.0, 2e-3, 3e4];
    let rows = (0..rows).flat_map(|row| random.units(inputs).into_iter().map(move |x| sizes[row % 3] * x));
    rounded(dtype, &rows.collect::<Vec<_>>())
}

/// Multiplies rows with matrices in one launch. `extra` stands before the only matrix, in a kernel that takes more.
fn launch(
    kernel: &Kernel,
    schedule: Schedule,
    (dtype, out_type): (Type, Type),
    x: &[f32],
    (matrices, extra): (&[Matrix], &[&Matrix]),
) -> Result<(Vec<Vec<f32>>, Counts), String> {
    let inputs = matrices[0].inputs;
    let rows = x.len() / inputs;
    let mut device = Device::new();
    let x_at = device.upload_as(dtype, "x", x);
    let mut arguments: Vec<Argument> = vec![x_at.into(), (rows as u32).into(), (inputs as u32).into()];
    for matrix in extra {
        arguments.extend(matrix.upload(&mut device, dtype));
    }
    let (mut outs, mut blocks) = (Vec::<Buffer>::new(), 0);
    let each = constant(&format!("matvec_{}", dtype.name()), kernel.name(), "outputs");
    for matrix in matrices {
        let out = device.allocate("out", rows * matrix.outputs * out_type.bytes());
        arguments.extend(matrix.upload(&mut device, dtype));
        arguments.extend([Argument::from(out), (matrix.outputs as u32).into()]);
        outs.push(out);
        blocks += (matrix.outputs as u32).div_ceil(each);
    }
    let counts = device.launch(kernel, [blocks, 1, 1], 256, 0, &arguments, schedule)?;
    let outs: Result<Vec<_>, _> = outs.into_iter().map(|out| device.read_as(out_type, out)).collect();
    Ok((outs?, counts))
}

/// Products of `rows` with matrices of so many outputs.
fn products(
    kernel: &Kernel,
    schedule: Schedule,
    types: (Type, Type),
    (rows, inputs, outputs): (usize, usize, &[usize]),
    biased: bool,
) -> Result<Counts, String> {
    let (dtype, out_type) = types;
    let mut random = Random::new((inputs * outputs[0] + rows) as u64);
    let x = rows_of(&mut random, dtype, rows, inputs);
    let matrices: Vec<Matrix> =
        outputs.iter().map(|&outputs| Matrix::new(&mut random, dtype, (outputs, inputs), biased)).collect();
    let (found, counts) = launch(kernel, schedule, types, &x, (&matrices, &[]))?;
    for (matrix, found) in matrices.iter().zip(&found) {
        let expected = matrix.product(&x).map(|(y, size)| (cut(out_type, y), slack(out_type, y, size, 5e-7)));
        near("product", found, expected)?;
    }
    // What a row yields does not depend on the others.
    if rows > 1 {
        let (alone, _) = launch(kernel, schedule, types, &x[(rows - 1) * inputs..], (&matrices, &[]))?;
        for ((matrix, alone), all) in matrices.iter().zip(&alone).zip(&found) {
            same("a row alone", alone, &all[(rows - 1) * matrix.outputs..])?;
        }
    }
    Ok(counts)
}

/// SiLU or GELU of one product times another.
fn gated(
    kernel: &Kernel,
    schedule: Schedule,
    dtype: Type,
    (rows, inputs, outputs): (usize, usize, usize),
    biased: bool,
) -> Result<Counts, String> {
    let gelu = kernel.name() == "matvec_geglu";
    let mut random = Random::new((inputs * outputs + rows) as u64);
    // Numbers whose sums are exact, so that it is known how the products are rounded.
    let exact =
        |numbers: Vec<f32>, scale: f32| -> Vec<f32> { numbers.iter().map(|x| (4.0 * x).round() * scale).collect() };
    // Some of them are too large for an f16.
    let scale = if rows > 4 { 8192.0 } else { 0.25 };
    let x = exact(random.units(rows * inputs), 0.25);
    let [gate, up] = [0.25, scale].map(|scale| {
        let matrix = Matrix::new(&mut random, dtype, (outputs, inputs), biased);
        let bias = matrix.bias.map(|bias| exact(bias, 1.0 / 1024.0));
        Matrix { weight: exact(matrix.weight, scale), bias, ..matrix }
    });
    let expected: Vec<(f64, f64)> = {
        let round = |x: f64| f64::from(rounded(dtype, &[x as f32])[0]);
        let pairs = gate.product(&x).zip(up.product(&x));
        pairs.map(|((gate, _), (up, _))| (round(gate), round(up))).collect()
    };
    let expected = expected.into_iter().map(|(gate, up)| {
        let (y, size) = if gelu { gelu_tanh(gate) } else { (gate / (1.0 + (-gate).exp()), 1.0) };
        let y = y * up;
        // An exponential that is hardly there has few digits.
        let least = (gate * up).abs() * 2f64.powi(-149);
        (cut(dtype, y), slack(dtype, y, y * size, 2e-5) + least)
    });
    let (found, counts) = launch(kernel, schedule, (dtype, dtype), &x, (&[gate], &[&up]))?;
    near(kernel.name(), &found[0], expected)?;
    Ok(counts)
}

/// Rows, the experts that each of them chose, and the matrices of these.
pub(crate) struct OfExperts {
    dtype: Type,
    each: usize,
    inputs: usize,
    outputs: usize,
    /// `[rows][each]`.
    pub(crate) chosen: Vec<u32>,
    /// A row for each row, or one for each choice.
    x: Vec<f32>,
    x_of_choices: bool,
    /// By expert; `None` for those that nobody chose.
    gate: Vec<Option<Matrix>>,
    /// None at all if there is one product only.
    up: Vec<Option<Matrix>>,
}

impl OfExperts {
    pub(crate) fn new(
        dtype: Type,
        (rows, inputs, outputs): (usize, usize, usize),
        (experts, each): (usize, usize),
        gated: bool,
    ) -> Self {
        let mut random = Random::new((inputs * outputs + rows * each) as u64);
        // Every other row chooses like the one before it, in another order, so that they share experts.
        let mut chosen: Vec<Vec<u32>> = Vec::new();
        for row in 0..rows {
            let mut all: Vec<u32> = match chosen.last() {
                Some(before) if row % 2 == 1 => before.clone(),
                _ => (0..experts as u32).collect(),
            };
            let count = all.len() as u32;
            (0..all.len()).for_each(|at| all.swap(at, random.below(count) as usize));
            all.truncate(each);
            chosen.push(all);
        }
        let chosen = chosen.concat();
        // Numbers whose sums are exact, so that it is known how the two products of a gate are rounded.
        let exact = |numbers: Vec<f32>| -> Vec<f32> { numbers.iter().map(|x| (4.0 * x).round() * 0.25).collect() };
        let x = match gated {
            true => exact(random.units(rows * inputs)),
            false => rows_of(&mut random, dtype, rows * each, inputs),
        };
        let mut matrices = || -> Vec<Option<Matrix>> {
            let mut of_expert = |expert: u32| {
                chosen.contains(&expert).then(|| {
                    let matrix = Matrix::new(&mut random, dtype, (outputs, inputs), false);
                    if gated { Matrix { weight: exact(matrix.weight), ..matrix } } else { matrix }
                })
            };
            (0..experts as u32).map(&mut of_expert).collect()
        };
        let (gate, up) = (matrices(), if gated { matrices() } else { Vec::new() });
        Self { dtype, each, inputs, outputs, chosen, x, x_of_choices: !gated, gate, up }
    }

    pub(crate) fn upload_x(&self, device: &mut Device) -> Buffer {
        device.upload_as(self.dtype, "x", &self.x)
    }

    /// The tables of weights, of up before that of gate. An expert that nobody chose has no weights: to read them is an
    /// error.
    pub(crate) fn upload_tables(&self, device: &mut Device) -> Vec<Argument> {
        let mut table = |of_all: &[Option<Matrix>]| {
            let mut addresses = vec![0; of_all.len()];
            for (address, matrix) in addresses.iter_mut().zip(of_all) {
                let Some(matrix) = matrix else { continue };
                *address = device.upload_as(self.dtype, "weight", &matrix.weight).address;
            }
            device.upload("table", &addresses).into()
        };
        [&self.up, &self.gate].into_iter().filter(|of_all| !of_all.is_empty()).map(|of_all| table(of_all)).collect()
    }

    pub(crate) fn allocate_out(&self, device: &mut Device) -> Buffer {
        device.allocate("out", self.chosen.len() * self.outputs * self.dtype.bytes())
    }

    /// Checks what a kernel made of it.
    pub(crate) fn check(&self, name: &str, found: &[f32]) -> Result<(), String> {
        let Self { dtype, each, inputs, .. } = *self;
        let mut expected = Vec::new();
        for (choice, &expert) in self.chosen.iter().enumerate() {
            let row = if self.x_of_choices { choice } else { choice / each };
            let product = |of_all: &[Option<Matrix>]| -> Vec<(f64, f64)> {
                let matrix = of_all[expert as usize].as_ref().unwrap_or_else(|| panic!("{expert} was chosen"));
                matrix.product(&self.x[row * inputs..][..inputs]).collect()
            };
            if self.up.is_empty() {
                let products = product(&self.gate).into_iter();
                expected.extend(products.map(|(y, size)| (cut(dtype, y), slack(dtype, y, size, 5e-7))));
                continue;
            }
            let round = |x: f64| f64::from(rounded(dtype, &[x as f32])[0]);
            for ((gate, _), (up, _)) in product(&self.gate).into_iter().zip(product(&self.up)) {
                let (gate, up) = (round(gate), round(up));
                let y = gate / (1.0 + (-gate).exp()) * up;
                expected.push((cut(dtype, y), slack(dtype, y, y, 2e-5) + (gate * up).abs() * 2f64.powi(-149)));
            }
        }
        near(name, found, expected.into_iter())
    }
}

/// Products of rows with the experts that each of them chose, of which there are `each` for a row.
fn of_experts(
    kernel: &Kernel,
    schedule: Schedule,
    dtype: Type,
    sizes: (usize, usize, usize),
    (experts, each): (usize, usize),
) -> Result<Counts, String> {
    let (rows, inputs, outputs) = sizes;
    let of = OfExperts::new(dtype, sizes, (experts, each), kernel.name() == "matvec_experts_swiglu");
    let mut device = Device::new();
    let (x, chosen) = (of.upload_x(&mut device), device.upload("chosen", &of.chosen));
    let mut arguments: Vec<Argument> = vec![x.into(), (rows as u32).into(), (inputs as u32).into()];
    arguments.extend([Argument::from(chosen), (each as u32).into()]);
    arguments.extend(of.upload_tables(&mut device));
    let out = of.allocate_out(&mut device);
    arguments.extend([Argument::from(out), (outputs as u32).into()]);
    let blocks = (outputs as u32).div_ceil(constant(&format!("matvec_{}", dtype.name()), kernel.name(), "outputs"));
    let counts = device.launch(kernel, [blocks, (rows * each) as u32, 1], 256, 0, &arguments, schedule)?;
    of.check(kernel.name(), &device.read_as(dtype, out)?)?;
    Ok(counts)
}

/// The entries of a type's module with one matrix, and the types of what they write.
fn entries(dtype: Type) -> Vec<(&'static str, Type)> {
    if dtype == Type::F32 { vec![("matvec", dtype)] } else { vec![("matvec", dtype), ("matvec_f32", Type::F32)] }
}

/// Rows, inputs and outputs. Inputs that are less than a piece of 32, that end within one, that give some warps nothing,
/// and that give each warp more pieces than it has under way.
const SIZES: [(usize, usize, usize); 9] = [
    (1, 8, 1),
    (2, 32, 7),
    (3, 40, 16),
    (4, 264, 33),
    (8, 72, 5),
    (5, 1032, 17),
    (1, 2056, 24),
    (6, 16, 2),
    (7, 1288, 3),
];

/// Experts and how many of them a row chooses, with rows, inputs and outputs.
pub(crate) type ExpertSizes = ((usize, usize), (usize, usize, usize));

const EXPERTS: [ExpertSizes; 8] = [
    ((4, 2), (1, 32, 16)),
    ((1, 1), (1, 8, 1)),
    ((8, 2), (8, 72, 21)),
    ((16, 8), (5, 264, 33)),
    ((3, 3), (7, 40, 5)),
    ((40, 12), (3, 16, 17)),
    ((5, 1), (6, 1032, 7)),
    ((6, 4), (2, 2056, 24)),
];

const QKV_OUTPUTS: [&[usize]; 3] = [&[33, 16, 5], &[1, 17, 40], &[16, 20, 0]];

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (t, biased) in TYPES.into_iter().flat_map(|dtype| [(dtype, false), (dtype, true)]) {
        for (rows, inputs, outputs) in SIZES {
            for (entry, out_type) in entries(t) {
                all.push(Case::of("matvec", t, entry, move |k, s| {
                    products(k, s, (t, out_type), (rows, inputs, &[outputs]), biased).map(drop)
                }));
            }
            if t != Type::F32 {
                for entry in ["matvec_swiglu", "matvec_geglu"] {
                    all.push(Case::of("matvec", t, entry, move |k, s| {
                        gated(k, s, t, (rows, inputs, outputs), biased).map(drop)
                    }));
                }
            }
        }
        // They have no biases.
        for (of_experts_, sizes) in EXPERTS.into_iter().filter(|_| t != Type::F32 && !biased) {
            for entry in ["matvec_experts", "matvec_experts_swiglu"] {
                all.push(Case::of("matvec", t, entry, move |k, s| of_experts(k, s, t, sizes, of_experts_).map(drop)));
            }
        }
        for (outputs, (rows, inputs)) in QKV_OUTPUTS.into_iter().zip([(3, 2056), (1, 24), (8, 72)]) {
            if t != Type::F32 {
                all.push(Case::of("matvec", t, "matvec_qkv", move |k, s| {
                    products(k, s, (t, t), (rows, inputs, outputs), biased).map(drop)
                }));
            }
        }
    }
    all
}

#[test]
fn products_with_few_rows_are_those_of_f64_and_of_each_row_alone() {
    hold(cases(), "matvec");
}

#[test]
fn products_may_stay_f32() {
    hold(cases(), "matvec_f32");
}

#[test]
fn three_products_may_come_from_one_launch() {
    hold(cases(), "matvec_qkv");
}

#[test]
fn a_swiglu_is_that_of_two_rounded_products() {
    hold(cases(), "matvec_swiglu");
}

#[test]
fn a_geglu_is_that_of_two_rounded_products() {
    hold(cases(), "matvec_geglu");
}

#[test]
fn a_row_is_multiplied_with_the_experts_that_it_chose() {
    hold(cases(), "matvec_experts");
}

#[test]
fn a_swiglu_may_be_that_of_the_experts_that_a_row_chose() {
    hold(cases(), "matvec_experts_swiglu");
}

#[test]
fn weights_are_read_once() {
    let (s, rows, inputs, outputs) = (SCHEDULES[0], 4, 4096, 64);
    for dtype in TYPES {
        let module = format!("matvec_{}", dtype.name());
        // The matrices once, and x by each block for each of them; of f32 by each of a block's warps.
        let blocks = outputs / constant(&module, "matvec", "outputs") as usize;
        let readers = if dtype == Type::F32 { 8 * blocks } else { blocks };
        let floor = |matrices: usize| dtype.bytes() * inputs * matrices * (outputs + readers * rows);
        for (entry, out_type) in entries(dtype) {
            let sizes = (rows, inputs, &[outputs][..]);
            let counts = products(kernel(&module, entry), s, (dtype, out_type), sizes, true).unwrap();
            assert_eq!(at_floor(&counts, floor(1), 0.02), Ok(()), "{entry} of {module}");
        }
        if dtype != Type::F32 {
            for entry in ["matvec_swiglu", "matvec_geglu"] {
                let counts = gated(kernel(&module, entry), s, dtype, (rows, inputs, outputs), true).unwrap();
                assert_eq!(at_floor(&counts, floor(2), 0.02), Ok(()), "{entry} of {module}");
            }
            // Two rows and two experts, which both of them chose: each expert once, and for each of them, x by each block.
            for (entry, matrices) in [("matvec_experts", 2), ("matvec_experts_swiglu", 4)] {
                let counts = of_experts(kernel(&module, entry), s, dtype, (2, inputs, outputs), (2, 2)).unwrap();
                let floor = dtype.bytes() * inputs * matrices * (outputs + blocks * 2);
                assert_eq!(at_floor(&counts, floor, 0.02), Ok(()), "{entry} of {module}");
            }
        }
    }
}
