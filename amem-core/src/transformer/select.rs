//! Which cached rows are worth computing again.

use std::ops::Range;

use crate::{Budget, Error, Repair, Result};

/// A cached row that is not exact where it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// Its slot in the context.
    pub(super) slot: u32,
    /// Its place in its chunk, from 0.
    pub(super) index: u32,
    /// See [`KvChunk::sensitivity`](crate::KvChunk::sensitivity).
    pub(super) sensitivity: f32,
}

/// How the rows to repair are to be found.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Selection {
    /// They are known: slots in ascending order.
    Chosen(Vec<u32>),
    /// By their sensitivity alone.
    Sensitivity { budget: Budget },
    /// By the attention that the question pays to them in these layers, which exist and are at least one.
    Attention { budget: Budget, layers: Range<usize>, by_sensitivity: bool },
    /// By how far their keys are from fresh ones.
    Deviation { ratio: f32, check_layer: usize },
}

/// What a repair asks for, given the rows that may be repaired, whether there is a question, and the model's layers.
pub(super) fn selection(repair: &Repair, candidates: &[Candidate], asked: bool, layers: usize) -> Selection {
    let those = |keep: &dyn Fn(&&Candidate) -> bool| {
        Selection::Chosen(candidates.iter().filter(keep).map(|candidate| candidate.slot).collect())
    };
    let existing = |range: &Range<usize>| range.start..range.end.min(layers);
    match repair {
        _ if candidates.is_empty() => Selection::Chosen(Vec::new()),
        Repair::None => Selection::Chosen(Vec::new()),
        Repair::All => those(&|_| true),
        Repair::FirstRows(count) => those(&|candidate| (candidate.index as usize) < *count),
        Repair::Deviation { ratio, check_layer } => Selection::Deviation { ratio: *ratio, check_layer: *check_layer },
        Repair::Attention { .. } if !asked => Selection::Chosen(Vec::new()),
        Repair::Attention { budget, layers } => {
            Selection::Attention { budget: *budget, layers: existing(layers), by_sensitivity: false }
        }
        Repair::Weighted { budget, layers } if !asked || existing(layers).is_empty() => {
            Selection::Sensitivity { budget: *budget }
        }
        Repair::Weighted { budget, layers } => {
            Selection::Attention { budget: *budget, layers: existing(layers), by_sensitivity: true }
        }
    }
}

/// Refuses a repair whose numbers make no sense for a model of so many layers.
pub(super) fn check(repair: &Repair, layers: usize) -> Result<()> {
    let share = |what: &'static str, share: f32| match share {
        0.0..=1.0 => Ok(()),
        _ => Err(Error::BadValue { what, value: share.to_string(), expected: "between 0 and 1" }),
    };
    let budget = |budget: &Budget| match *budget {
        Budget::Ratio(ratio) => share("repair ratio", ratio),
        Budget::Mass(mass) => share("repair mass", mass),
        Budget::Rows(_) => Ok(()),
    };
    let read = |range: &Range<usize>| match !range.is_empty() && range.end <= layers {
        true => Ok(()),
        false => {
            let (value, expected) = (format!("{range:?}"), "at least one of the model's layers");
            Err(Error::BadValue { what: "repair layers", value, expected })
        }
    };
    match repair {
        Repair::None | Repair::FirstRows(_) | Repair::All => Ok(()),
        Repair::Deviation { ratio, check_layer } => {
            if !(1..layers).contains(check_layer) {
                let value = check_layer.to_string();
                let expected = "at least 1 and less than the model's layers";
                return Err(Error::BadValue { what: "check layer", value, expected });
            }
            share("repair ratio", *ratio)
        }
        Repair::Attention { budget: b, layers } => budget(b).and_then(|()| read(layers)),
        // A model may be too shallow for the layers to exist; then sensitivity decides.
        Repair::Weighted { budget: b, .. } => budget(b),
    }
}

/// The attention that candidates get, `mass` by slot, lent out to their neighbours: half of what the slots on either
/// side get is added, for a fact is spread over a few tokens.
pub(super) fn smoothed(mass: &[f32], slot: u32) -> f32 {
    let at = |slot: Option<usize>| slot.and_then(|slot| mass.get(slot)).copied().unwrap_or(0.0);
    let slot = slot as usize;
    at(Some(slot)) + 0.5 * (at(slot.checked_sub(1)) + at(slot.checked_add(1)))
}

/// The indexes of the `count` largest weights above zero, in ascending order. Of equal weights the earlier comes first.
pub(super) fn heaviest(weights: &[f32], count: usize) -> Vec<usize> {
    let mut ranked = ranked(weights);
    ranked.truncate(count);
    ranked.sort_unstable();
    ranked
}

/// The indexes of all weights above zero, the heaviest first.
fn ranked(weights: &[f32]) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..weights.len()).filter(|&index| weights[index] > 0.0).collect();
    ranked.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    ranked
}

/// The slots of the candidates with the most weight, as many as the budget allows, in ascending order. Ties go to the
/// earlier slot; candidates without weight are never chosen.
///
/// `cached` is how many rows a ratio is a share of.
pub(super) fn chosen(candidates: &[Candidate], weights: &[f32], budget: Budget, cached: usize) -> Vec<u32> {
    let count = match budget {
        Budget::Mass(share) => {
            let ranked = ranked(weights);
            let goal = f64::from(share) * ranked.iter().map(|&index| f64::from(weights[index])).sum::<f64>();
            let mut covered = 0.0;
            let wanting = |index: &&usize| {
                let wanting = covered < goal;
                covered += f64::from(weights[**index]);
                wanting
            };
            ranked.iter().take_while(wanting).count()
        }
        _ => max_rows(budget, cached).unwrap_or(0),
    };
    heaviest(weights, count).into_iter().map(|index| candidates[index].slot).collect()
}

/// How many rows a budget allows, if that does not depend on what they weigh.
pub(super) fn max_rows(budget: Budget, cached: usize) -> Option<usize> {
    match budget {
        Budget::Ratio(ratio) => Some((f64::from(ratio) * cached as f64 + 1e-6) as usize),
        Budget::Rows(rows) => Some(rows),
        Budget::Mass(_) => None,
    }
}

/// How many rows a repair computes again at most, of so many that may be repaired and so many cached ones.
pub(super) fn repaired_at_most(repair: &Repair, candidates: usize, cached: usize) -> usize {
    match repair {
        Repair::None => 0,
        Repair::All | Repair::FirstRows(_) | Repair::Deviation { .. } => candidates,
        Repair::Attention { budget, .. } | Repair::Weighted { budget, .. } => {
            max_rows(*budget, cached).map_or(candidates, |rows| rows.min(candidates))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates(count: usize) -> Vec<Candidate> {
        (0..count as u32).map(|slot| Candidate { slot: 2 * slot + 1, index: slot, sensitivity: 1.0 }).collect()
    }

    proptest! {
        #[test]
        fn no_row_left_out_weighs_more_than_one_chosen(
            weights in prop::collection::vec(0.0f32..1.0, 0..60),
            ratio in 0.0f32..=1.0,
        ) {
            let candidates = candidates(weights.len());
            for budget in [Budget::Ratio(ratio), Budget::Mass(ratio), Budget::Rows((ratio * 70.0) as usize)] {
                let slots = chosen(&candidates, &weights, budget, weights.len());
                prop_assert!(slots.is_sorted());
                let chosen = |c: &&Candidate| slots.contains(&c.slot);
                let weight = |c: &Candidate| weights[c.index as usize];
                let lightest = candidates.iter().filter(chosen).map(weight).fold(f32::INFINITY, f32::min);
                let left = candidates.iter().filter(|c| !chosen(c)).map(weight).fold(0.0, f32::max);
                prop_assert!(left <= lightest);
            }
        }

        #[test]
        fn a_share_of_the_mass_is_covered_with_no_row_to_spare(
            weights in prop::collection::vec(0.01f32..1.0, 1..60),
            share in 0.0f32..=1.0,
        ) {
            let slots = chosen(&candidates(weights.len()), &weights, Budget::Mass(share), 0);
            let chosen: Vec<f32> = slots.iter().map(|slot| weights[*slot as usize / 2]).collect();
            let (total, covered): (f32, f32) = (weights.iter().sum(), chosen.iter().sum());
            let lightest = chosen.iter().copied().fold(f32::INFINITY, f32::min);
            prop_assert!(covered >= share * total - 1e-4);
            prop_assert!(chosen.is_empty() || covered - lightest <= share * total + 1e-4);
        }
    }

    #[test]
    fn a_slot_gets_its_own_attention_and_half_of_its_neighbours() {
        let mass = [1.0, 2.0, 4.0];
        for (slot, expected) in [(0, 1.0 + 2.0 / 2.0), (1, 2.0 + (1.0 + 4.0) / 2.0), (2, 4.0 + 2.0 / 2.0)] {
            assert_eq!(smoothed(&mass, slot), expected, "slot {slot}");
        }
        assert_eq!(smoothed(&mass, 3), 2.0, "a slot that got none has a neighbour that did");
        assert_eq!((smoothed(&mass, 4), smoothed(&mass, u32::MAX), smoothed(&[], 0)), (0.0, 0.0, 0.0));
    }

    #[test]
    fn the_heaviest_rows_are_chosen_and_of_equals_the_earlier() {
        // Slots 1, 3, 5, 7 and 9. The weights sum up to 9.
        let weights = [3.0, 0.0, 2.0, 3.0, 1.0];
        let cases: [(Budget, usize, &[u32]); 14] = [
            (Budget::Rows(0), 5, &[]),
            (Budget::Rows(1), 5, &[1]),
            (Budget::Rows(2), 5, &[1, 7]),
            (Budget::Rows(3), 5, &[1, 5, 7]),
            (Budget::Rows(5), 5, &[1, 5, 7, 9]),
            (Budget::Mass(0.0), 5, &[]),
            (Budget::Mass(0.3), 5, &[1]),
            (Budget::Mass(0.5), 5, &[1, 7]),
            (Budget::Mass(0.75), 5, &[1, 5, 7]),
            (Budget::Mass(1.0), 5, &[1, 5, 7, 9]),
            // Two and a half rows.
            (Budget::Ratio(0.5), 5, &[1, 7]),
            (Budget::Ratio(1.0), 5, &[1, 5, 7, 9]),
            // The nearest f32 is a little less than 0.3, and three rows are meant all the same.
            (Budget::Ratio(0.3), 10, &[1, 5, 7]),
            (Budget::Ratio(1.0), 0, &[]),
        ];
        for (budget, cached, expected) in cases {
            assert_eq!(chosen(&candidates(5), &weights, budget, cached), expected, "{budget:?} of {cached}");
        }
    }

    #[test]
    fn settings_without_sense_are_refused() {
        for repair in [
            Repair::Deviation { ratio: 0.1, check_layer: 0 },
            Repair::Deviation { ratio: 0.1, check_layer: 4 },
            Repair::Deviation { ratio: f32::NAN, check_layer: 1 },
            Repair::Attention { budget: Budget::Ratio(0.1), layers: 0..0 },
            Repair::Weighted { budget: Budget::Ratio(-0.1), layers: 0..0 },
            Repair::Attention { budget: Budget::Mass(0.5), layers: 1..5 },
        ] {
            assert!(check(&repair, 4).is_err(), "{repair:?} was accepted");
        }
    }
}
