//! Do the tests need every instruction of every kernel?
//!
//! Each instruction is deleted in turn, and the kernel's cases run on what is left. If they hold, either the instruction
//! changes nothing that anyone may rely on, which `survivors.txt` says with the reason, or the cases are too weak.
//!
//! ```sh
//! cargo test --release -p amem-cuda --test kernels mutations -- --ignored --nocapture
//! ```
//!
//! `AMEM_MUTATE` restricts it to kernels whose name, `module/entry`, contains that text.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use amem_ptxsim::{Kernel, Schedule};

use super::check::Case;
use super::harness::{SCHEDULES, Type, kernel};
use super::{attention, distance, elementwise, experts, kv, matvec, select};

/// Instructions that the warps of a block may execute: many times more than any block of the cases does.
const STEPS: u64 = 300_000;

/// The reason in `survivors.txt` of what a test could find and none does.
const UNTESTED: &str = "Untested";

/// The share of deletions that change something, of which tests have to find this many at least.
const FOUND: f64 = 0.95;

/// The cases of kernels. What comes from one template differs in little for types and head sizes, so some of them do.
/// Attention in f32 is left out: its cases take so long that deletions would take an hour.
fn cases() -> Vec<(Case, Schedule)> {
    let mut cases = distance::cases();
    cases.extend(elementwise::cases());
    cases.extend(experts::cases());
    cases.extend(kv::cases());
    cases.extend(matvec::cases());
    cases.extend(select::cases());
    cases.retain(|case| !case.module.ends_with("_f16"));
    for (dtype, head_dim) in [(Type::Bf16, 64), (Type::F16, 80)] {
        let module = format!("attention_{}_d{head_dim}", dtype.name());
        cases.extend(attention::subjects(dtype, head_dim).into_iter().map(|(kernel, check)| Case {
            module: module.clone(),
            entry: kernel.name().to_owned(),
            check: Box::new(move |kernel: &Kernel, _: Schedule| check(kernel)),
        }));
    }
    cases.into_iter().zip(SCHEDULES.into_iter().cycle()).collect()
}

/// A kernel and those of its instructions that nothing needs.
struct Outcome {
    module: String,
    entry: String,
    instructions: usize,
    tried: usize,
    survivors: Vec<usize>,
}

impl Outcome {
    fn kernel(&self) -> &'static Kernel {
        kernel(&self.module, &self.entry)
    }

    /// The texts of the survivors, and how often each is among them.
    fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for &index in &self.survivors {
            *counts.entry(self.kernel().instruction_text(index)).or_default() += 1;
        }
        counts
    }
}

/// Deletes each instruction of each kernel, on all cores.
fn mutate(filter: &str) -> Vec<Outcome> {
    let mut outcomes = BTreeMap::new();
    let chosen = |case: &Case| format!("{}/{}", case.module, case.entry).contains(filter);
    for (case, schedule) in cases().into_iter().filter(|(case, _)| chosen(case)) {
        let whole = kernel(&case.module, &case.entry).with_step_limit(STEPS);
        assert_eq!((case.check)(&whole, schedule), Ok(()), "{} of {}", case.entry, case.module);
        let instructions = whole.instructions();
        let (module, entry) = (case.module, case.entry);
        let key = (module.clone(), entry.clone());
        outcomes.entry(key).or_insert(Outcome { module, entry, instructions, tried: 0, survivors: Vec::new() });
    }
    let outcomes: Vec<Mutex<Outcome>> = outcomes.into_values().map(Mutex::new).collect();
    let work: Vec<(usize, usize)> = outcomes
        .iter()
        .enumerate()
        .flat_map(|(at, outcome)| (0..outcome.lock().unwrap().instructions).map(move |index| (at, index)))
        .collect();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut cases = cases();
                while let Some(&(at, index)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (kernel, module, entry) = {
                        let outcome = outcomes[at].lock().unwrap();
                        (outcome.kernel(), outcome.module.clone(), outcome.entry.clone())
                    };
                    let broken = kernel.without(index).with_step_limit(STEPS);
                    let found = cases.iter().position(|(case, schedule)| {
                        case.module == module && case.entry == entry && (case.check)(&broken, *schedule).is_err()
                    });
                    let mut outcome = outcomes[at].lock().unwrap();
                    match found {
                        // What finds one mistake mostly finds the next one too.
                        Some(case) => cases[..=case].rotate_right(1),
                        None => outcome.survivors.push(index),
                    }
                    outcome.tried += 1;
                    if outcome.tried == outcome.instructions {
                        println!("{module}/{entry}: {} of {} survive", outcome.survivors.len(), outcome.instructions);
                        for (instruction, count) in outcome.counts() {
                            println!("    {module}/{entry}: {count} {instruction}");
                        }
                    }
                }
            });
        }
    });
    let mut outcomes: Vec<Outcome> = outcomes.into_iter().map(|outcome| outcome.into_inner().unwrap()).collect();
    outcomes.iter_mut().for_each(|outcome| outcome.survivors.sort_unstable());
    outcomes
}

/// A line of `survivors.txt`: `module/entry: count of instruction`, where `*` at the module's end stands for the rest.
struct Expected {
    reason: String,
    kernel: String,
    count: usize,
    instruction: String,
}

impl Expected {
    fn is_of(&self, outcome: &Outcome) -> bool {
        let Some((module, entry)) = self.kernel.split_once('/') else { return false };
        entry == outcome.entry
            && match module.strip_suffix('*') {
                Some(prefix) => outcome.module.starts_with(prefix),
                None => module == outcome.module,
            }
    }
}

/// Paragraphs of a reason, behind `#`, and the survivors that it explains.
fn expected() -> Vec<Expected> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels/survivors.txt");
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut reason = "";
    let mut all = Vec::new();
    for line in text.lines() {
        if let Some(text) = line.strip_prefix("# ") {
            reason = text;
        } else if let Some((kernel, rest)) = line.split_once(": ") {
            let (count, instruction) = rest.split_once(' ').unwrap_or_else(|| panic!("no instruction: {line}"));
            let count = count.parse().unwrap_or_else(|_| panic!("no count: {line}"));
            let [reason, kernel, instruction] = [reason, kernel, instruction].map(str::to_owned);
            all.push(Expected { reason, kernel, count, instruction });
        } else {
            assert!(line.is_empty(), "no survivor: {line}");
        }
    }
    all
}

#[test]
#[ignore = "takes minutes: runs the kernels' cases once for each of their instructions"]
fn a_kernel_that_lacks_an_instruction_is_found_out() {
    let filter = std::env::var("AMEM_MUTATE").unwrap_or_default();
    let outcomes = mutate(&filter);
    let expected = expected();
    let (mut wrong, mut instructions, mut equivalent, mut untested) = (Vec::new(), 0, 0, 0);
    for outcome in &outcomes {
        let name = format!("{}/{}", outcome.module, outcome.entry);
        let mut counts = outcome.counts();
        for expected in expected.iter().filter(|expected| expected.is_of(outcome)) {
            let found = counts.remove(&*expected.instruction).unwrap_or(0);
            if found != expected.count {
                wrong.push(format!("{name}: {found} {} (not {})", expected.instruction, expected.count));
            }
            if expected.reason.starts_with(UNTESTED) { untested += found } else { equivalent += found }
        }
        instructions += outcome.instructions;
        untested += counts.values().sum::<usize>();
        wrong.extend(counts.iter().map(|(instruction, count)| format!("{name}: {count} {instruction}")));
    }
    let needed = instructions - equivalent;
    let share = (needed - untested) as f64 / needed as f64;
    println!(
        "{instructions} instructions, {equivalent} that change nothing, {untested} untested: {:.2} %",
        share * 100.0
    );
    assert!(!outcomes.is_empty(), "no kernel is called {filter}");
    assert!(wrong.is_empty(), "survivors.txt does not list:\n{}", wrong.join("\n"));
    assert!(share >= FOUND, "only {:.2} % of the deletions are found", share * 100.0);
}
