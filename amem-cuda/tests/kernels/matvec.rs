//! The kernels of `matvec_<T>`.

use amem_ptxsim::{Counts, Kernel, Schedule};

use super::check::{Case, TYPES, at_floor, cut, hold, near, rounded, same, slack};
use super::harness::{Argument, Device, NULL, Random, SCHEDULES, Type, constant, kernel};

#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

/// A product with `out` of a type, and with a bias or none.
fn product(
    kernel: &Kernel,
    schedule: Schedule,
    (dtype, out_type): (Type, Type),
    sizes: Sizes,
    biased: bool,
) -> Result<Counts, String> {
    let Sizes { rows, inputs, outputs } = sizes;
    let mut random = Random::new((inputs * outputs + rows) as u64);
    // Rows of very different sizes, so that what leaks from one to another shows; the sums of some are too large for an f16.
    let x: Vec<f32> = (0..rows)
        .flat_map(|row| random.units(inputs).into_iter().map(move |x| [1.0, 2e-3, 3e4][row % 3] * x))
        .collect();
    let (x, weight) = (rounded(dtype, &x), rounded(dtype, &random.units(inputs * outputs)));
    let bias = random.units(outputs);
    let run = |x: &[f32]| -> Result<(Vec<f32>, Counts), String> {
        let rows = x.len() / inputs;
        let mut device = Device::new();
        let (x_at, weight_at) = (device.upload_as(dtype, "x", x), device.upload_as(dtype, "weight", &weight));
        let bias_at = if biased { device.upload("bias", &bias).into() } else { NULL };
        let out = device.allocate("out", rows * outputs * out_type.bytes());
        let numbers: [Argument; 3] = [rows, inputs, outputs].map(|x| (x as u32).into());
        let arguments = [&[x_at.into(), weight_at.into(), bias_at, out.into()], &numbers[..]].concat();
        let each = constant(&format!("matvec_{}", dtype.name()), kernel.name(), "outputs");
        let grid = [(outputs as u32).div_ceil(each), 1, 1];
        let counts = device.launch(kernel, grid, 256, 0, &arguments, schedule)?;
        Ok((device.read_as(out_type, out)?, counts))
    };
    let (found, counts) = run(&x)?;
    let expected = (0..rows * outputs).map(|at| {
        let (row, output) = (&x[at / outputs * inputs..][..inputs], &weight[at % outputs * inputs..][..inputs]);
        let terms = || row.iter().zip(output).map(|(x, w)| f64::from(*x) * f64::from(*w));
        let (sum, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
        let bias = if biased { f64::from(bias[at % outputs]) } else { 0.0 };
        (cut(out_type, sum + bias), slack(out_type, sum + bias, size + bias.abs(), 5e-7))
    });
    near("product", &found, expected)?;
    // What a row yields does not depend on the others.
    if rows > 1 {
        let last = (rows - 1) * inputs;
        same("a row alone", &run(&x[last..])?.0, &found[(rows - 1) * outputs..])?;
    }
    Ok(counts)
}

/// The entries of a type's module, and the types of what they write.
fn entries(dtype: Type) -> Vec<(&'static str, Type)> {
    if dtype == Type::F32 { vec![("matvec", dtype)] } else { vec![("matvec", dtype), ("matvec_f32", Type::F32)] }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in TYPES {
        for (entry, out_type) in entries(dtype) {
            // Inputs that are less than a piece of 32, that end within one, that give some warps nothing, and that give
            // each warp more pieces than it has under way.
            for (rows, inputs, outputs) in [
                (1, 8, 1),
                (2, 32, 7),
                (3, 40, 16),
                (4, 264, 33),
                (8, 72, 5),
                (5, 1032, 17),
                (1, 2056, 24),
                (6, 16, 2),
                (7, 1288, 3),
            ] {
                let sizes = Sizes { rows, inputs, outputs };
                for biased in [false, true] {
                    all.push(Case::of("matvec", dtype, entry, move |kernel, schedule| {
                        product(kernel, schedule, (dtype, out_type), sizes, biased).map(drop)
                    }));
                }
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
fn weights_are_read_once() {
    let sizes = Sizes { rows: 4, inputs: 4096, outputs: 64 };
    for dtype in TYPES {
        for (entry, out_type) in entries(dtype) {
            let module = format!("matvec_{}", dtype.name());
            let blocks = 64 / constant(&module, entry, "outputs") as usize;
            let counts = product(kernel(&module, entry), SCHEDULES[0], (dtype, out_type), sizes, true).unwrap();
            // The matrix once, and x by each block, of f32 by each of its warps.
            let readers = if dtype == Type::F32 { 8 * blocks } else { blocks };
            let floor = dtype.bytes() * sizes.inputs * (sizes.outputs + readers * sizes.rows);
            assert_eq!(at_floor(&counts, floor, 0.02), Ok(()), "{entry} of {module}");
        }
    }
}
