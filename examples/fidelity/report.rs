//! Figures out of trials: a table for people, JSON for programs.

use std::collections::BTreeMap;

use crate::{KINDS, Method, Trial};

/// Means over some trials.
pub(crate) struct Means {
    pub(crate) n: usize,
    pub(crate) agreement: f64,
    pub(crate) correct: f64,
    pub(crate) kl: f64,
    pub(crate) work: f64,
    pub(crate) work_with_question: f64,
}

impl Means {
    /// The standard error of the agreement.
    pub(crate) fn standard_error(&self) -> f64 {
        standard_error(self.agreement, self.n)
    }
}

/// The standard error of a share that was counted over `n` questions.
pub(crate) fn standard_error(share: f64, n: usize) -> f64 {
    (share * (1.0 - share) / n.max(1) as f64).sqrt()
}

pub(crate) fn means(trials: &[&Trial]) -> Means {
    let n = trials.len();
    let mean = |value: &dyn Fn(&Trial) -> f64| trials.iter().map(|trial| value(trial)).sum::<f64>() / n.max(1) as f64;
    Means {
        n,
        agreement: mean(&|trial| f64::from(u8::from(trial.agrees))),
        correct: mean(&|trial| f64::from(u8::from(trial.correct))),
        kl: mean(&|trial| trial.kl),
        work: mean(&|trial| trial.work),
        work_with_question: mean(&|trial| trial.work_with_question),
    }
}

/// The trials of a method, all of them and by kind of question.
pub(crate) fn grouped(trials: &[Trial], method: usize) -> BTreeMap<String, Vec<&Trial>> {
    let mut groups: BTreeMap<String, Vec<&Trial>> = BTreeMap::new();
    for trial in trials.iter().filter(|trial| trial.method == method) {
        groups.entry("all".to_owned()).or_default().push(trial);
        groups.entry(trial.kind.to_string()).or_default().push(trial);
    }
    groups
}

/// Prints a row for each method.
pub(crate) fn print_table(methods: &[Method], trials: &[Trial]) {
    let names: Vec<String> = KINDS.iter().map(ToString::to_string).collect();
    print!("{:<23} {:>6} {:>6} {:>6} {:>7}", "repair", "budget", "work", "+q", "agrees");
    print!(" {:>5} {:>7} {:>8}", "±", "correct", "KL");
    names.iter().for_each(|name| print!(" {name:>12}"));
    println!();
    for (index, method) in methods.iter().enumerate() {
        let groups = grouped(trials, index);
        let all = means(groups.get("all").map_or(&[], Vec::as_slice));
        let percent = |x: f64| format!("{:.1}", 100.0 * x);
        print!(
            "{:<23} {:>6} {:>6} {:>6} {:>7} {:>5} {:>7} {:>8.5}",
            method.name,
            method.budget,
            percent(all.work),
            percent(all.work_with_question),
            percent(all.agreement),
            format!("{:.2}", 100.0 * all.standard_error()),
            percent(all.correct),
            all.kl
        );
        for name in &names {
            let kind = means(groups.get(name).map_or(&[], Vec::as_slice));
            print!(" {:>6} of {:<3}", percent(kind.agreement), kind.n);
        }
        println!();
    }
    println!("\nwork, agrees and correct in percent, ± the standard error of agrees, KL in nats");
    println!("by kind: agreement with cold prefill");
}

/// The figures of each method and kind of question.
pub(crate) fn json(methods: &[Method], trials: &[Trial]) -> serde_json::Value {
    let rows = methods.iter().enumerate().flat_map(|(index, method)| {
        grouped(trials, index).into_iter().map(move |(kind, trials)| {
            let Means { n, agreement, correct, kl, work, work_with_question } = means(&trials);
            serde_json::json!({
                "repair": method.name, "budget": method.budget, "kind": kind, "n": n, "agreement": agreement,
                "correct": correct, "kl": kl, "work": work, "work_with_question": work_with_question,
            })
        })
    });
    rows.collect()
}
