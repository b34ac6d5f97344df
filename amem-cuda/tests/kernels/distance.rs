//! The kernel of `distance_<T>`.

use amem_ptxsim::{Counts, Kernel, Schedule};

use super::check::{Case, TYPES, at_floor, hold, near, relative, rounded, same};
use super::harness::{Argument, Device, Random, SCHEDULES, Type, kernel};

/// Distances of `rows` pairs of rows, added to sums that stand there.
fn distances(
    kernel: &Kernel,
    schedule: Schedule,
    dtype: Type,
    (rows, columns): (usize, usize),
) -> Result<Counts, String> {
    const FACTOR: f32 = 0.3;
    // Sums of rows behind those that are asked for, which are not the kernel's.
    const BEHIND: usize = 3;
    let mut random = Random::new((rows * columns) as u64);
    let [x, y] = [(); 2].map(|()| rounded(dtype, &random.units(rows * columns)));
    let sums = random.units(rows + BEHIND);
    let mut device = Device::new();
    let x_at = device.upload_as(dtype, "x", &x);
    let y_at = device.upload_as(dtype, "y", &y);
    let sums_at = device.upload("sums", &sums);
    let arguments: [Argument; 6] =
        [x_at.into(), y_at.into(), sums_at.into(), (rows as u32).into(), (columns as u32).into(), FACTOR.into()];
    let counts = device.launch(kernel, [(rows as u32).div_ceil(8), 1, 1], 256, 0, &arguments, schedule)?;
    let found: Vec<f32> = device.read(sums_at)?;
    let pairs = x.chunks(columns).zip(y.chunks(columns));
    let expected = pairs.zip(&sums).map(|((x, y), sum)| {
        let square: f64 = x.iter().zip(y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
        let sum = f64::from(*sum) + f64::from(FACTOR) * square;
        (sum, (1.0 + square) * relative(dtype))
    });
    near("distance", &found[..rows], expected)?;
    same("the other sums", &found[rows..], &sums[rows..])?;
    Ok(counts)
}

pub(crate) fn cases() -> Vec<Case> {
    // Fewer columns than a warp takes at a time, as many, more; rows that fill no block, one block, and more.
    let sizes = [(1, 8), (7, 64), (8, 256), (9, 264), (17, 1032)];
    TYPES
        .into_iter()
        .flat_map(|t| {
            sizes
                .map(|size| Case::of("distance", t, "add_row_distance", move |k, s| distances(k, s, t, size).map(drop)))
        })
        .collect()
}

#[test]
fn distances_of_rows_are_those_of_f64_and_are_added() {
    hold(cases(), "add_row_distance");
}

#[test]
fn rows_are_read_once() {
    let (rows, columns) = (64, 1024);
    for dtype in TYPES {
        let kernel = kernel(&format!("distance_{}", dtype.name()), "add_row_distance");
        let counts = distances(kernel, SCHEDULES[0], dtype, (rows, columns)).unwrap();
        assert_eq!(at_floor(&counts, rows * (2 * columns * dtype.bytes() + 8), 0.05), Ok(()), "{}", dtype.name());
    }
}
