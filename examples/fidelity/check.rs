//! Does what is claimed of the default repair hold?

use amem_core::Repair;

use crate::report::{Means, means, standard_error};
use crate::{Method, Trial};

/// What is claimed of the default repair, as shares.
#[derive(Clone, Copy)]
pub(crate) struct Claim {
    /// Answers equal to cold prefill's.
    pub(crate) agreement: f64,
    /// Rows times layers computed, of cold prefill's. Claimed to a tenth of a percent.
    pub(crate) work: f64,
}

/// The divergence that rounding alone causes: what is repaired lies elsewhere than in a cold prefill's computation of it, and
/// fast arithmetic adds up in another order.
const ROUNDING: f64 = 1e-9;

/// What does not hold, a sentence each.
///
/// A share of few questions scatters around the share of many, so two standard errors are allowed for: if the claim is
/// true, about one draw of questions in forty falls below that.
pub(crate) fn broken(claim: Claim, methods: &[Method], trials: &[Trial]) -> Vec<String> {
    let of = |repair: &Repair| means_of(repair, methods, trials);
    let (Some(default), Some(none), Some(all)) = (of(&Repair::default()), of(&Repair::None), of(&Repair::All)) else {
        return vec!["nothing was asked with the default repair, with none, or with all rows repaired".to_owned()];
    };
    let n = default.n;
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let mut broken = Vec::new();
    let least = claim.agreement - 2.0 * standard_error(claim.agreement, n);
    if default.agreement < least {
        broken.push(format!(
            "the default agrees with cold prefill in {} of {n} answers; the claim of {} leaves room for {}",
            percent(default.agreement),
            percent(claim.agreement),
            percent(least)
        ));
    }
    if (1000.0 * default.work).round() > (1000.0 * claim.work).round() {
        broken.push(format!("the default's work is {}; the claim is {}", percent(default.work), percent(claim.work)));
    }
    // One can be right where the other is wrong only where their answers differ.
    let least = all.correct - 2.0 * ((1.0 - claim.agreement) / n as f64).sqrt();
    if default.correct < least {
        broken.push(format!(
            "the default is right in {} of {n} answers; cold prefill's {} leaves room for {}",
            percent(default.correct),
            percent(all.correct),
            percent(least)
        ));
    }
    if default.kl >= none.kl {
        broken.push(format!("the default's KL is {}, and {} without repair: it repairs nothing", default.kl, none.kl));
    }
    if all.agreement < 1.0 || all.kl > ROUNDING {
        let agreement = percent(all.agreement);
        broken.push(format!("repairing everything is not a cold prefill: {agreement} of answers agree, KL {}", all.kl));
    }
    broken
}

/// The means of one way of repairing, if it was asked anything.
fn means_of(repair: &Repair, methods: &[Method], trials: &[Trial]) -> Option<Means> {
    let index = methods.iter().position(|method| method.repair == *repair)?;
    let trials: Vec<&Trial> = trials.iter().filter(|trial| trial.method == index).collect();
    (!trials.is_empty()).then(|| means(&trials))
}

#[cfg(test)]
mod tests {
    use amem_demo::world::Kind;

    use super::*;

    const QUESTIONS: usize = 100;
    /// Of 100 answers, the standard error is three.
    const CLAIM: Claim = Claim { agreement: 0.9, work: 0.096 };

    fn methods() -> [Method; 3] {
        [Repair::None, Repair::default(), Repair::All].map(|repair| Method { name: "", budget: 0.0, repair })
    }

    fn trials(change: impl Fn(&mut Trial, usize)) -> Vec<Trial> {
        let trial = |method, question| {
            let (kl, work) = [(0.5, 0.0), (0.1, 0.096), (0.0, 0.7)][method];
            let kind = Kind::OneHop;
            let mut trial = Trial { method, kind, agrees: true, correct: true, kl, work, work_with_question: work };
            change(&mut trial, question);
            trial
        };
        (0..3)
            .flat_map(|method| (0..QUESTIONS).map(move |question| (method, question)))
            .map(|(m, q)| trial(m, q))
            .collect()
    }

    fn broken(change: impl Fn(&mut Trial, usize)) -> Vec<String> {
        super::broken(CLAIM, &methods(), &trials(change))
    }

    #[test]
    fn a_claim_breaks_if_agreement_is_more_than_two_standard_errors_below_it() {
        assert!(broken(|trial, question| trial.agrees = trial.method != 1 || question < 85).is_empty());
        let broken = broken(|trial, question| trial.agrees = trial.method != 1 || question < 83);
        assert!(broken.len() == 1 && broken[0].starts_with("the default agrees"), "{broken:?}");
    }

    #[test]
    fn a_claim_breaks_if_work_is_above_it() {
        assert!(broken(|trial, _| trial.work += 0.0004).is_empty());
        let broken = broken(|trial, _| trial.work += 0.0006);
        assert!(broken.len() == 1 && broken[0].starts_with("the default's work"), "{broken:?}");
    }

    #[test]
    fn a_claim_breaks_if_answers_are_right_less_often_than_cold_prefills() {
        // Two standard errors are 6.3 answers.
        assert!(broken(|trial, question| trial.correct = trial.method != 1 || question < 94).is_empty());
        let broken = broken(|trial, question| trial.correct = trial.method != 1 || question < 93);
        assert!(broken.len() == 1 && broken[0].starts_with("the default is right"), "{broken:?}");
    }

    #[test]
    fn a_claim_breaks_if_repair_brings_the_first_token_no_closer() {
        let broken = broken(|trial, _| trial.kl = if trial.method == 2 { 0.0 } else { 0.5 });
        assert!(broken.len() == 1 && broken[0].contains("repairs nothing"), "{broken:?}");
    }

    #[test]
    fn a_claim_breaks_if_repairing_everything_is_off_in_one_answer_or_by_more_than_rounding() {
        let answer = broken(|trial, question| trial.agrees = trial.method != 2 || question > 0);
        let off_by = |kl: f64| {
            broken(|trial, question| {
                if trial.method == 2 && question == 0 {
                    trial.kl = kl;
                }
            })
        };
        for broken in [answer, off_by(2.0 * ROUNDING * QUESTIONS as f64)] {
            assert!(broken.len() == 1 && broken[0].contains("not a cold prefill"), "{broken:?}");
        }
        assert!(off_by(0.5 * ROUNDING * QUESTIONS as f64).is_empty());
    }

    #[test]
    fn a_claim_breaks_if_nothing_was_asked() {
        assert_eq!(super::broken(CLAIM, &methods(), &[]).len(), 1);
    }
}
