//! Running the kernels of a case, and comparing what they wrote.

use amem_ptxsim::{Counts, Kernel, Schedule};

use super::case::{Case, Kernels};
use super::problem::{Plan, Problem};
use super::{BLOCK, POISON};
use crate::harness::{Argument, Device, NULL, SCHEDULES, Type, constant};

/// What the kernels wrote.
pub(super) struct Written {
    pub(super) out: Vec<u8>,
    pub(super) lse: Vec<u8>,
    pub(super) counts: Counts,
}

/// Runs a case's kernels, and compares what they wrote.
pub(super) fn attend(case: &Case, kernels: Kernels<'_>, schedule: Schedule) -> Result<Counts, String> {
    let problem = Problem::new(case);
    let plan = Plan::new(case, &problem, case.capacity());
    let written = launch(case, &problem, &plan, kernels, schedule)?;
    compare(case, &problem, &written)?;
    Ok(written.counts)
}

/// Runs a case's kernels.
pub(super) fn launch(
    case: &Case,
    problem: &Problem,
    plan: &Plan,
    kernels: Kernels<'_>,
    schedule: Schedule,
) -> Result<Written, String> {
    let heads = case.kv_heads * case.group;
    let module = case.module();
    let limit = |name| constant(&module, case.entry, name);
    let slices = case.group.div_ceil(limit("rows"));

    let mut device = Device::new();
    let queries = device.upload_as(case.dtype, "queries", &problem.queries);
    let k_cache = device.upload_as(case.dtype, "k_cache", &problem.keys);
    let v_cache = device.upload_as(case.dtype, "v_cache", &problem.values);
    let items = device.upload("items", &plan.items);
    let order = device.upload("order", &plan.order);
    let spans: Vec<[u32; 4]> =
        problem.rows.iter().map(|row| [row.shared.start, row.shared.end, row.own.start, row.own.end]).collect();
    let spans = device.upload("spans", &spans);
    let tables = device.upload("tables", &plan.tables);
    // One row more than there are: it stays as it was.
    let vectors = (problem.rows.len() as u32 + 1) * heads;
    let out = device.upload("out", &vec![POISON; vectors as usize * case.head_dim as usize * case.dtype.bytes()]);
    let lse = device.upload("lse", &vec![POISON; vectors as usize * 4]);
    let lse_argument: Argument = if case.with_lse { lse.into() } else { NULL };
    let partial_out = device.allocate("partial_out", (plan.partial_rows * case.head_dim * 4) as usize);
    let partial_lse = device.allocate("partial_lse", plan.partial_rows as usize * 4);

    let (scale, squash) = case.scales();
    let mut arguments: Vec<Argument> = vec![
        queries.into(),
        out.into(),
        lse_argument,
        k_cache.into(),
        v_cache.into(),
        items.into(),
        order.into(),
        spans.into(),
        tables.into(),
        case.kv_heads.into(),
        case.group.into(),
        scale.into(),
        squash.unwrap_or(0.0).into(),
        partial_out.into(),
        partial_lse.into(),
    ];
    if case.dtype == Type::F32 {
        arguments.push(case.head_dim.into());
    }
    let grid = [plan.items.len() as u32, case.kv_heads, slices];
    let counts = device.launch(kernels.attend, grid, limit("threads"), limit("shared"), &arguments, schedule)?;
    if let Some(combine) = kernels.combine {
        let joins = device.upload("joins", &plan.joins);
        let mut arguments: Vec<Argument> = vec![
            partial_out.into(),
            partial_lse.into(),
            out.into(),
            lse_argument,
            joins.into(),
            order.into(),
            case.kv_heads.into(),
            case.group.into(),
        ];
        if case.dtype == Type::F32 {
            arguments.push(case.head_dim.into());
        }
        let grid = [plan.joins.len() as u32, case.kv_heads, 1 + case.group % 3];
        device.launch(combine, grid, constant(&module, "combine", "threads"), 0, &arguments, schedule)?;
    }
    Ok(Written { out: device.read(out)?, lse: device.read(lse)?, counts })
}

/// How far a score may be off, for sums in f32: by the sum of the terms' magnitudes times a few roundings, and by what
/// capping it is off.
pub(super) fn score_error(case: &Case) -> f64 {
    let terms = f64::from(case.head_dim).sqrt() * f64::from(case.score) / 4.0;
    1e-6 + 4.0 * terms * f64::from(f32::EPSILON) + 5e-7 * f64::from(case.cap.unwrap_or(0.0))
}

/// Compares all of the output.
pub(super) fn compare(case: &Case, problem: &Problem, written: &Written) -> Result<(), String> {
    let heads = case.kv_heads * case.group;
    let Written { out, lse, .. } = written;
    let numbers = case.dtype.decode(out);
    let vectors = problem.rows.len() * heads as usize;
    let size = case.head_dim as usize;
    let kept = |bytes: &[u8]| bytes.iter().all(|&byte| byte == POISON);
    if !kept(&out[vectors * size * case.dtype.bytes()..]) {
        return Err("wrote behind the last row of the output".into());
    }
    if !kept(&lse[if case.with_lse { vectors * 4 } else { 0 }..]) {
        return Err("wrote log-sum-exps that nobody asked for".into());
    }
    let lse: Vec<f32> = bytemuck::pod_collect_to_vec(lse);
    // A score is a sum of products in f32, and the weights of 16-bit types are rounded to that type.
    let rounding = case.dtype.rounding();
    let score = score_error(case);
    for row in 0..problem.rows.len() {
        for head in 0..heads {
            let vector = row * heads as usize + head as usize;
            let (expected, terms, expected_lse) = problem.expected(case, row, head);
            for column in 0..size {
                let found = f64::from(numbers[vector * size + column]);
                let allowed = rounding * (expected[column].abs() + 1.5 * terms[column]) + score * terms[column] + 1e-7;
                let wrong = (found - expected[column]).abs();
                if wrong.is_nan() || wrong > allowed {
                    return Err(format!(
                        "row {row} ({:?}) head {head} column {column}: {found} instead of {} (±{allowed})",
                        problem.rows[row], expected[column]
                    ));
                }
            }
            if case.with_lse {
                let found = f64::from(lse[vector]);
                let equal = found == expected_lse || (found - expected_lse).abs() <= 2.0 * score + 1e-6;
                if !equal {
                    return Err(format!("row {row} head {head}: log-sum-exp {found} instead of {expected_lse}"));
                }
            }
        }
    }
    Ok(())
}

/// Adds up what a case's rows attend to, and compares it. `kernels` are attention_mass and mass_sum.
pub(super) fn mass(case: &Case, kernels: [&Kernel; 2], schedule: Schedule) -> Result<(), String> {
    let problem = Problem::new(case);
    let heads = case.kv_heads * case.group;
    let module = case.module();
    let slots = case.contexts[0].0;
    // Every other row, backwards: those of an order that begins somewhere.
    let chosen: Vec<usize> = (0..problem.rows.len()).rev().step_by(2).collect();
    let order: Vec<u32> = [u32::MAX, 7].into_iter().chain(chosen.iter().map(|&row| row as u32)).collect();
    let spans: Vec<[u32; 4]> =
        problem.rows.iter().map(|row| [row.shared.start, row.shared.end, row.own.start, row.own.end]).collect();
    let table: Vec<u32> = [u32::MAX].iter().chain(&problem.tables[0]).copied().collect();
    let before: Vec<f32> = (0..slots + 3).map(|slot| slot as f32 / 16.0).collect();

    let mut lse = vec![f32::NAN; problem.rows.len() * heads as usize];
    let mut expected: Vec<f64> = before.iter().map(|&mass| f64::from(mass)).collect();
    for &row in &chosen {
        for head in 0..heads {
            let scores = problem.scores(case, row, head);
            let largest = scores.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|(_, score)| (score - largest).exp2()).sum();
            lse[row * heads as usize + head as usize] = (largest + sum.log2()) as f32;
            for (slot, score) in scores {
                expected[slot as usize] += (score - largest).exp2() / sum;
            }
        }
    }

    let mut device = Device::new();
    let partial = device.allocate("partial", (case.kv_heads * slots * 4) as usize);
    let sums = device.upload("mass", &before);
    let (scale, squash) = case.scales();
    let mut arguments: Vec<Argument> = vec![
        device.upload_as(case.dtype, "queries", &problem.queries).into(),
        device.upload("lse", &lse).into(),
        device.upload_as(case.dtype, "k_cache", &problem.keys).into(),
        device.upload("order", &order).into(),
        device.upload("spans", &spans).into(),
        device.upload("tables", &table).into(),
        2u32.into(),
        (chosen.len() as u32).into(),
        1u32.into(),
        case.kv_heads.into(),
        case.group.into(),
        scale.into(),
    ];
    arguments.extend(squash.map(Argument::from));
    arguments.extend([Argument::from(partial), slots.into()]);
    if case.dtype == Type::F32 {
        arguments.push(case.head_dim.into());
    }
    let [attention_mass, mass_sum] = kernels;
    let limit = |name| constant(&module, "attention_mass", name);
    let grid = [slots.div_ceil(BLOCK), case.kv_heads, 1];
    device.launch(attention_mass, grid, limit("threads"), limit("shared"), &arguments, schedule)?;
    let arguments = [partial.into(), sums.into(), case.kv_heads.into(), slots.into()];
    let threads = constant(&module, "mass_sum", "threads");
    device.launch(mass_sum, [slots.div_ceil(threads), 1, 1], threads, 0, &arguments, schedule)?;

    let found: Vec<f32> = device.read(sums)?;
    for (slot, (&found, expected)) in found.iter().zip(expected).enumerate() {
        let added = expected - f64::from(before[slot]);
        // Weights too small for an f32 are zero.
        let allowed = 1e-30 + 2.0 * score_error(case) * added + f64::from(f32::EPSILON) * 16.0 * expected;
        let wrong = (f64::from(found) - expected).abs();
        if wrong.is_nan() || wrong > allowed {
            return Err(format!("slot {slot}: mass {found} instead of {expected}"));
        }
    }
    Ok(())
}

pub(super) fn check_mass(cases: impl IntoIterator<Item = Case>) {
    let mut failures = Vec::new();
    for (index, case) in cases.into_iter().enumerate() {
        if let Err(error) = mass(&case, case.mass_kernels(), SCHEDULES[index % SCHEDULES.len()]) {
            failures.push(format!("{case:?}: {error}"));
        }
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

/// All of these, each in one order of warps and copies.
pub(super) fn check(cases: impl IntoIterator<Item = Case>) {
    let mut failures = Vec::new();
    for (index, case) in cases.into_iter().enumerate() {
        if let Err(error) = attend(&case, case.kernels(), SCHEDULES[index % SCHEDULES.len()]) {
            failures.push(format!("{case:?}: {error}"));
        }
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}
