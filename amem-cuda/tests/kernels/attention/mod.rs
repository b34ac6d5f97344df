//! Attention kernels against plain loops in f64.
//!
//! A case draws contexts, rows and what they see, makes work items of them as a backend would, runs the kernels, and
//! compares every number that they wrote. Numbers that nobody may read are NaN: slots that no row sees, outputs.

mod case;
mod problem;
mod run;

use amem_ptxsim::Kernel;

use crate::harness::{Random, SCHEDULES, Type, kernel};
use case::{Case, Kernels, Sight, Unseen};
use problem::{Plan, Problem};
use run::{attend, check, check_mass, launch, mass};

/// Slots in a block.
const BLOCK: u32 = 64;

/// Bytes that no kernel writes: a NaN in every number type.
const POISON: u8 = 0xff;

const HEAD_DIMS: [u32; 5] = [64, 80, 96, 128, 256];
const HALVES: [Type; 2] = [Type::Bf16, Type::F16];
const SIGHTS: [Sight; 7] =
    [Sight::Prefill, Sight::Scattered, Sight::Whole, Sight::Packed, Sight::Apart, Sight::Window, Sight::Blind];

#[test]
fn many_rows_attend_to_what_each_of_them_sees() {
    let cases = SIGHTS.map(|sight| Case { sight, contexts: vec![(150, 33), (64, 5)], ..Case::default() });
    check(cases);
}

#[test]
fn many_rows_attend_in_every_head_size_and_type() {
    check(HEAD_DIMS.into_iter().flat_map(|head_dim| HALVES.map(|dtype| Case { dtype, head_dim, ..Case::default() })));
}

#[test]
fn many_rows_attend_in_tiles_of_any_fill() {
    let counts = [1, 15, 16, 17, 63, 64, 65, 100];
    let groups = [1, 2, 3, 4, 7, 8, 1, 1];
    check(counts.into_iter().zip(groups).map(|(count, group)| Case {
        group,
        kv_heads: 1 + count % 2,
        contexts: vec![(129, count)],
        ..Case::default()
    }));
    // More query heads to a key head than packed rows in a tile: slices of them.
    check([(64, 130, Type::Bf16), (256, 70, Type::F16), (20, 17, Type::F32)].map(|(head_dim, group, dtype)| Case {
        dtype,
        head_dim,
        group,
        contexts: vec![(70, 2)],
        ..Case::default()
    }));
}

#[test]
fn scores_far_from_zero_do_not_drown_each_other() {
    let sights = [Sight::Prefill, Sight::Packed, Sight::Blind];
    check(sights.map(|sight| Case { sight, score: 400.0, contexts: vec![(300, 20)], ..Case::default() }));
}

/// Caps that scores hardly reach, that squash them, and at which they all stand.
const CAPS: [(f32, f32); 3] = [(50.0, 4.0), (3.0, 6.0), (50.0, 4000.0)];

#[test]
fn scores_are_capped_before_what_a_row_does_not_see_is_left_out() {
    let case = Case { contexts: vec![(150, 20), (64, 5)], ..Case::default() };
    let few = Case { entry: "attend_short", contexts: vec![(150, 9), (64, 5), (400, 1)], ..Case::default() };
    check([case, few].into_iter().flat_map(|case| {
        SIGHTS.into_iter().zip(CAPS.into_iter().cycle()).map(move |(sight, (cap, score))| Case {
            sight,
            score,
            cap: Some(cap),
            ..case.clone()
        })
    }));
}

#[test]
fn scores_are_capped_in_every_head_size_and_type() {
    let sizes = HEAD_DIMS.into_iter().zip(CAPS.into_iter().cycle());
    check(sizes.flat_map(|(head_dim, (cap, score))| {
        ["attend_rows", "attend_short"].into_iter().zip(HALVES).map(move |(entry, dtype)| Case {
            dtype,
            head_dim,
            entry,
            score,
            cap: Some(cap),
            contexts: vec![(300, 5)],
            splits: 3,
            ..Case::default()
        })
    }));
    check(["attend_rows", "attend_short"].into_iter().zip(CAPS).map(|(entry, (cap, score))| Case {
        dtype: Type::F32,
        head_dim: 66,
        entry,
        score,
        cap: Some(cap),
        splits: 2,
        unseen: Unseen::Infinite,
        ..Case::default()
    }));
}

#[test]
fn the_mass_of_slots_is_that_of_capped_scores() {
    let types = HALVES.into_iter().chain([Type::F32]);
    check_mass(types.flat_map(|dtype| {
        HEAD_DIMS.into_iter().zip(CAPS.into_iter().cycle()).map(move |(head_dim, (cap, score))| Case {
            dtype,
            head_dim,
            score,
            cap: Some(cap),
            contexts: vec![(129, if dtype == Type::F32 { 20 } else { 80 })],
            ..Case::default()
        })
    }));
}

#[test]
fn what_stands_in_slots_that_nobody_sees_changes_nothing() {
    let unseen = [Unseen::Nan, Unseen::Infinite, Unseen::Large];
    check(unseen.into_iter().flat_map(|unseen| {
        [64, 80, 256].map(|head_dim| Case {
            unseen,
            head_dim,
            dtype: Type::F16,
            entry: if head_dim == 80 { "attend_short" } else { "attend_rows" },
            contexts: vec![(70, 20)],
            sight: Sight::Window,
            ..Case::default()
        })
    }));
}

/// The bank conflicts of a case's tiles: what more slots add to them.
fn bank_conflicts_of_tiles(case: &Case) -> u64 {
    let run = |slots| {
        let case = Case { contexts: vec![(slots, 40)], sight: Sight::Prefill, ..case.clone() };
        attend(&case, case.kernels(), SCHEDULES[0]).unwrap_or_else(|error| panic!("{case:?}: {error}"))
    };
    run(5 * BLOCK).bank_conflicts - run(3 * BLOCK).bank_conflicts
}

#[test]
fn tiles_are_read_from_shared_memory_without_bank_conflicts() {
    for (head_dim, entry) in HEAD_DIMS.into_iter().flat_map(|size| [(size, "attend_rows"), (size, "attend_short")]) {
        let case = Case { head_dim, entry, ..Case::default() };
        assert_eq!(bank_conflicts_of_tiles(&case), 0, "{case:?}");
    }
}

#[test]
fn few_rows_attend_to_what_each_of_them_sees() {
    let case = Case { entry: "attend_short", contexts: vec![(150, 9), (64, 5), (400, 1)], ..Case::default() };
    check(SIGHTS.map(|sight| Case { sight, ..case.clone() }));
}

#[test]
fn few_rows_attend_in_every_head_size_and_type() {
    check(HEAD_DIMS.into_iter().flat_map(|head_dim| {
        HALVES.map(|dtype| Case { dtype, head_dim, entry: "attend_short", contexts: vec![(500, 3)], ..Case::default() })
    }));
}

#[test]
fn few_rows_attend_in_groups_of_any_size() {
    check([1, 2, 3, 4, 7, 8, 16, 17, 40].map(|group| Case {
        group,
        kv_heads: 1 + group % 3,
        entry: "attend_short",
        contexts: vec![(129, 3)],
        ..Case::default()
    }));
}

#[test]
fn splits_of_a_context_are_merged() {
    let splits = [2, 3, 5, 9, 40];
    check(splits.into_iter().zip(HEAD_DIMS).flat_map(|(splits, head_dim)| {
        ["attend_rows", "attend_short"].map(|entry| Case {
            splits,
            head_dim,
            group: splits,
            entry,
            contexts: vec![(300, 3)],
            sight: SIGHTS[splits as usize % SIGHTS.len()],
            score: 20.0,
            ..Case::default()
        })
    }));
}

#[test]
fn the_mass_of_slots_is_what_rows_attend_to_them() {
    check_mass(SIGHTS.into_iter().zip([1, 2, 3, 4, 7, 8, 5]).map(|(sight, group)| Case {
        sight,
        group,
        kv_heads: 1 + group % 3,
        contexts: vec![(100 + 50 * group, 40)],
        ..Case::default()
    }));
    check_mass(HEAD_DIMS.into_iter().flat_map(|head_dim| {
        HALVES.map(|dtype| Case { dtype, head_dim, contexts: vec![(129, 80)], score: 100.0, ..Case::default() })
    }));
}

#[test]
fn exact_kernels_attend_in_any_even_head_size() {
    let sizes = [2, 6, 20, 64, 66, 128, 130, 256];
    check(sizes.into_iter().zip([1, 2, 3, 4, 7, 8, 17, 40]).map(|(head_dim, group)| Case {
        dtype: Type::F32,
        head_dim,
        group,
        kv_heads: 1 + group % 3,
        entry: if group % 2 == 0 { "attend_rows" } else { "attend_short" },
        contexts: vec![(130, 9), (64, 3)],
        sight: SIGHTS[group as usize % SIGHTS.len()],
        splits: 1 + group % 3,
        unseen: [Unseen::Nan, Unseen::Infinite][group as usize % 2],
        ..Case::default()
    }));
    check_mass(sizes.map(|head_dim| Case { dtype: Type::F32, head_dim, contexts: vec![(129, 41)], ..Case::default() }));
}

#[test]
fn what_a_row_yields_depends_on_no_row_beside_it() {
    for (entry, dtype, head_dim) in [
        ("attend_rows", Type::Bf16, 64),
        ("attend_rows", Type::F16, 256),
        ("attend_short", Type::Bf16, 80),
        ("attend_rows", Type::F32, 20),
    ] {
        for sight in [Sight::Packed, Sight::Window] {
            let contexts = vec![(300, 12)];
            let case = Case { entry, dtype, head_dim, sight, contexts, score: 30.0, ..Case::default() };
            let problem = Problem::new(&case);
            let [alone, together] = [1, case.capacity()].map(|capacity| {
                let plan = Plan::new(&case, &problem, capacity);
                launch(&case, &problem, &plan, case.kernels(), SCHEDULES[capacity % 3]).unwrap()
            });
            assert!(alone.out == together.out && alone.lse == together.lse, "{case:?}");
        }
    }
}

/// Every sight, group and fill, with all else drawn at random.
fn sweep(entry: &'static str, head_dims: &[u32], dtypes: &[Type]) {
    let mut cases = Vec::new();
    let mut random = Random::new(7);
    for &head_dim in head_dims {
        for &dtype in dtypes {
            for sight in SIGHTS {
                for group in [1, 2, 3, 4, 7, 8] {
                    for (length, count) in
                        [(1, 1), (63, 15), (64, 16), (65, 17), (200, 63), (321, 64), (400, 65), (129, 100)]
                    {
                        cases.push(Case {
                            dtype,
                            head_dim,
                            kv_heads: 1 + random.below(3),
                            group,
                            entry,
                            contexts: vec![(length, count), (1 + random.below(100), 1 + random.below(9))],
                            sight,
                            splits: [1, 1, 2, 5][random.below(4) as usize],
                            score: [0.1, 4.0, 50.0, 400.0][random.below(4) as usize],
                            cap: [None, None, Some(3.0), Some(50.0)][random.below(4) as usize],
                            unseen: [Unseen::Nan, Unseen::Infinite, Unseen::Large][random.below(3) as usize],
                            with_lse: random.below(4) > 0,
                            seed: random.next(),
                        });
                    }
                }
            }
        }
    }
    cases.retain(|case| case.sight != Sight::Prefill || case.contexts.iter().all(|(length, count)| count <= length));
    check(cases);
}

#[test]
#[ignore = "takes minutes: every sight, group and fill"]
fn many_rows_attend_rightly_in_a_wide_sweep() {
    sweep("attend_rows", &HEAD_DIMS, &HALVES);
}

#[test]
#[ignore = "takes minutes: every sight, group and fill"]
fn exact_kernels_attend_rightly_in_a_wide_sweep() {
    sweep("attend_rows", &[2, 20, 64, 130, 256], &[Type::F32]);
}

#[test]
#[ignore = "takes minutes: every sight, group and fill"]
fn few_rows_attend_rightly_in_a_wide_sweep() {
    sweep("attend_short", &HEAD_DIMS, &HALVES);
}

/// Small cases that between them need every instruction of a kernel of one module, as far as deleting it can be noticed.
fn probes(dtype: Type, head_dim: u32, entry: &'static str) -> Vec<Case> {
    let case = Case { dtype, head_dim, entry, kv_heads: 3, ..Case::default() };
    let rows = if entry == "attend_rows" { 60 } else { 9 };
    vec![
        Case { sight: Sight::Prefill, contexts: vec![(333, rows), (70, 1)], ..case.clone() },
        Case { sight: Sight::Packed, contexts: vec![(433, rows)], splits: 2, unseen: Unseen::Infinite, ..case.clone() },
        Case { sight: Sight::Blind, contexts: vec![(65, rows)], group: 7, with_lse: false, ..case.clone() },
        Case { sight: Sight::Prefill, contexts: vec![(300, rows)], group: 1, score: 400.0, ..case.clone() },
        Case { sight: Sight::Window, contexts: vec![(400, rows)], score: 400.0, splits: 3, ..case.clone() },
        Case { sight: Sight::Apart, contexts: vec![(800, rows)], kv_heads: 1, ..case.clone() },
        Case { sight: Sight::Prefill, contexts: vec![(333, rows)], score: 6.0, cap: Some(3.0), ..case.clone() },
        Case { group: 17, contexts: vec![(70, 3)], cap: Some(3.0), ..case.clone() },
        Case { sight: Sight::Blind, contexts: vec![(9, 1)], ..case.clone() },
        Case { contexts: vec![(300, 4)], splits: 5, ..case.clone() },
        Case { sight: Sight::Whole, contexts: vec![(40 * BLOCK, 1)], splits: 40, unseen: Unseen::Infinite, ..case },
    ]
}

/// A kernel, and what finds out whether a version of it is right.
pub(crate) type Subject = (&'static Kernel, Box<dyn Fn(&Kernel) -> Result<(), String>>);

/// The kernels of one module with their probes.
pub(crate) fn subjects(dtype: Type, head_dim: u32) -> Vec<Subject> {
    let module = Case { dtype, head_dim, ..Case::default() }.module();
    let get = |entry| kernel(&module, entry);
    let mut subjects: Vec<Subject> = Vec::new();
    for entry in ["attend_rows", "attend_short"] {
        subjects.push((
            get(entry),
            Box::new(move |attend| {
                let cases = probes(dtype, head_dim, entry);
                cases.iter().zip(SCHEDULES.iter().cycle()).try_for_each(|(case, &schedule)| {
                    self::attend(case, Kernels { attend, ..case.kernels() }, schedule).map(drop)
                })
            }),
        ));
    }
    subjects.push((
        get("combine"),
        Box::new(move |combine| {
            probes(dtype, head_dim, "attend_short").iter().filter(|case| case.splits > 1).try_for_each(|case| {
                attend(case, Kernels { combine: Some(combine), ..case.kernels() }, SCHEDULES[0]).map(drop)
            })
        }),
    ));
    let masses = [(0, "attention_mass", None), (0, "attention_mass_capped", Some(3.0)), (1, "mass_sum", None)];
    for (index, entry, cap) in masses {
        subjects.push((
            get(entry),
            Box::new(move |kernel| {
                let mut cases = probes(dtype, head_dim, "attend_rows");
                cases.truncate(6);
                let contexts = |case: &Case| vec![(case.contexts[0].0, 120)];
                cases.iter_mut().for_each(|case| (case.contexts, case.cap) = (contexts(case), cap));
                let mut kernels: [&Kernel; 2] = cases[0].mass_kernels();
                kernels[index] = kernel;
                cases
                    .iter()
                    .zip(SCHEDULES.iter().cycle())
                    .try_for_each(|(case, &schedule)| mass(case, kernels, schedule))
            }),
        ));
    }
    subjects
}
