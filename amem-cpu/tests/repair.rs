//! Which rows each [`Repair`] computes again, against its definition worked out by a forward pass that shares no code
//! with the engine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{LazyLock, Mutex, PoisonError};

use amem_core::testing::Probe;
use amem_core::transformer::Transformer;
use amem_core::{AppendOptions, Budget, Dtype, KvChunk, Model, Piece, PrefixId, Progress, Repair, Step, Token};
use amem_cpu::Cpu;
use common::plain::{Plain, PlainKv};
use common::prompts::{PREFIX, Part, memories, parts, prefill, some_tokens, text, tokens};
use proptest::prelude::*;

/// A model whose backend notes which rows it is given.
struct Subject {
    plain: Plain,
    probe: Probe<Cpu>,
    model: Transformer<Probe<Cpu>>,
    prefix: KvChunk,
    memories: Vec<KvChunk>,
}

/// Norms of heads, biases, a window on attention, a third layer; windows, caps and rotation in some layers.
static SUBJECTS: LazyLock<Vec<Mutex<Subject>>> = LazyLock::new(|| {
    ["qwen3", "qwen2", "mistral-sliding", "llama3", "qwen2-sliding", "gemma2", "smollm3"]
        .into_iter()
        .map(|case| Mutex::new(Subject::new(case)))
        .collect()
});

impl Subject {
    fn new(case: &str) -> Self {
        let probe = Probe::new(common::exact(None, 1));
        let model = common::golden(case, probe.clone(), Dtype::F32);
        let texts = [(1, 1), (2, 2), (3, 7), (4, 16), (5, 23)].map(|(seed, tokens)| text(seed, tokens));
        let (mut memories, _) = prefill(&model, &PREFIX, &texts, true);
        // One of them was never measured.
        memories[2] = prefill(&model, &PREFIX, &texts[2..3], false).0.remove(0);
        let prefix = prefill(&model, &[], &[PREFIX.into()], false).0.remove(0);
        Self { plain: Plain::open(case), probe, model, prefix, memories }
    }

    fn pieces(&self, parts: &[Part]) -> Vec<Piece> {
        let piece = |part: &Part| match part {
            Part::CachedPrefix => Piece::Cached(self.prefix.clone()),
            Part::FreshPrefix => Piece::Fresh(PREFIX.into()),
            Part::Memory(index) => Piece::Cached(self.memories[*index].clone()),
            Part::Fresh(tokens) => Piece::Fresh(tokens.as_slice().into()),
        };
        parts.iter().map(piece).collect()
    }

    /// The slots of cached rows that the model computes when it appends the pieces from `begin` on to those before.
    fn repaired(&self, pieces: &[Piece], begin: usize, repair: &Repair) -> BTreeSet<usize> {
        let mut context = self.model.open(0).unwrap();
        self.model.extend(&mut *context, &pieces[..begin], &Repair::None).unwrap();
        // Without logits, the last plan has all rows that go through all layers.
        context.append(&pieces[begin..], &AppendOptions::new(repair.clone()).logits(0)).unwrap();
        self.probe.take_plans();
        let usage = loop {
            let mut steps = [Step { context: &mut *context, max_rows: 1000 }];
            if let Progress::Done(usage) = self.model.advance(&mut steps).remove(0).unwrap() {
                break usage;
            }
        };
        let prompt = Prompt::of(pieces);
        let mut last = self.probe.take_plans().pop().unwrap_or_default();
        if usage.repaired == 0 && usage.prefilled == 0 {
            // If no row at all goes on beyond the check layer, there is no plan for those that do.
            last.clear();
        }
        let computed = last.iter().map(|row| row.slot as usize);
        let repaired: BTreeSet<usize> = computed.filter(|slot| prompt.cached.contains(slot)).collect();
        assert_eq!(usage.repaired, repaired.len(), "usage counts the rows that are computed again");
        repaired
    }
}

/// What the pieces of a prompt are worth.
struct Prompt {
    tokens: Vec<Token>,
    cached: BTreeSet<usize>,
    /// Slots of cached rows that are not what a cold prefill computes, their places in their chunks and sensitivities.
    candidates: Vec<(usize, usize, f64)>,
    /// The slots of the last piece if it is fresh.
    question: Range<usize>,
}

impl Prompt {
    fn of(pieces: &[Piece]) -> Self {
        let (mut cached, mut candidates, mut question) = (BTreeSet::new(), Vec::new(), 0..0);
        let (mut so_far, mut exact): (Vec<Token>, bool) = (Vec::new(), true);
        for piece in pieces {
            let first = so_far.len();
            question = first..first;
            match piece {
                Piece::Fresh(tokens) => question.end += tokens.len(),
                Piece::Cached(chunk) => {
                    exact &= chunk.prefix() == PrefixId::of(&so_far);
                    cached.extend(first..first + chunk.tokens().len());
                    let sensitivity = |index: usize| chunk.sensitivity().map_or(1.0, |all| f64::from(all[index]));
                    if !exact {
                        candidates
                            .extend((0..chunk.tokens().len()).map(|index| (first + index, index, sensitivity(index))));
                    }
                }
            }
            so_far.extend(piece.tokens());
        }
        Self { tokens: so_far, cached, candidates, question }
    }

    /// The tokens of some slots.
    fn rows(&self, slots: impl Iterator<Item = usize>) -> Vec<(usize, Token)> {
        slots.map(|slot| (slot, self.tokens[slot])).collect()
    }

    fn fresh(&self) -> Vec<(usize, Token)> {
        self.rows((0..self.tokens.len()).filter(|slot| !self.cached.contains(slot)))
    }
}

/// The cached pieces in their places, and nothing else.
fn loaded(plain: &Plain, pieces: &[Piece]) -> PlainKv {
    let mut kv = plain.kv(pieces.iter().map(|piece| piece.tokens().len()).sum());
    let mut first = 0;
    for piece in pieces {
        if let Piece::Cached(chunk) = piece {
            plain.load(&mut kv, chunk, first);
        }
        first += piece.tokens().len();
    }
    kv
}

/// The attention that the question pays to each slot in these layers, over the cached rows as they are, with half of
/// what the slots on either side get; and the first slot that it sees.
fn attention(plain: &Plain, pieces: &[Piece], prompt: &Prompt, layers: Range<usize>) -> (Vec<f64>, usize) {
    let fresh = prompt.fresh();
    let (_, paid) = plain.run(&mut loaded(plain, pieces), &fresh, layers.end);
    let mut mass = vec![0.0; prompt.tokens.len()];
    for of_layer in &paid[layers] {
        for ((slot, _), by_slot) in fresh.iter().zip(of_layer) {
            if prompt.question.contains(slot) {
                mass.iter_mut().zip(by_slot).for_each(|(mass, paid)| *mass += paid);
            }
        }
    }
    let at = |slot: Option<usize>| slot.and_then(|slot| mass.get(slot)).copied().unwrap_or(0.0);
    let smoothed = (0..mass.len()).map(|slot| mass[slot] + (at(slot.checked_sub(1)) + at(Some(slot + 1))) / 2.0);
    (smoothed.collect(), mass.iter().position(|paid| *paid > 0.0).unwrap_or(0))
}

/// CacheBlend: how far the keys of the candidates are at a layer from those that they have there when they are computed
/// anew, together with the fresh rows of the pieces from `begin` on. Fresh rows before that stay as they are.
fn deviation(plain: &Plain, pieces: &[Piece], begin: usize, prompt: &Prompt, layer: usize) -> Vec<f64> {
    let candidates: BTreeSet<usize> = prompt.candidates.iter().map(|(slot, ..)| *slot).collect();
    let resident: usize = pieces[..begin].iter().map(|piece| piece.tokens().len()).sum();
    let (before, new): (Vec<_>, Vec<_>) = prompt.fresh().into_iter().partition(|(slot, _)| *slot < resident);
    let mut stale = loaded(plain, pieces);
    plain.run(&mut stale, &before, plain.layers);
    let mut computed: Vec<(usize, Token)> = [prompt.rows(candidates.iter().copied()), new].concat();
    computed.sort_unstable();
    let (hidden, _) = plain.run(&mut stale.clone(), &computed, layer);
    let mut distances = vec![0.0; prompt.tokens.len()];
    for ((slot, _), hidden) in computed.iter().zip(&hidden).filter(|((slot, _), _)| candidates.contains(slot)) {
        let fresh = plain.key(layer, hidden, *slot);
        let [key, _] = stale.0[layer][*slot].as_ref().unwrap();
        distances[*slot] = fresh.iter().zip(key).map(|(a, b)| (a - b) * (a - b)).sum();
    }
    distances
}

/// Checks that these rows are the heaviest, as many as the budget asks for. Of two whose weights are closer than f32
/// can tell, either will do.
fn assert_heaviest(repaired: &BTreeSet<usize>, weights: &[(usize, f64)], budget: Budget, cached: usize, case: &str) {
    let mut ranked: Vec<(usize, f64)> = weights.iter().copied().filter(|(_, weight)| *weight > 0.0).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let slack = 1e-4 * ranked.first().map_or(0.0, |(_, weight)| *weight);
    let count = match budget {
        Budget::Rows(rows) => rows.min(ranked.len()),
        Budget::Ratio(ratio) => ((f64::from(ratio) * cached as f64 + 1e-6).floor() as usize).min(ranked.len()),
        Budget::Mass(share) => {
            let total: f64 = ranked.iter().map(|(_, weight)| weight).sum();
            let goal = f64::from(share) * total;
            let covered = |rows: usize| ranked[..rows].iter().map(|(_, weight)| weight).sum::<f64>();
            let fewest = (0..=ranked.len()).find(|rows| covered(*rows) >= goal).unwrap_or(ranked.len());
            // Where a row more or less decides by less than rounding, both are right.
            let close = |rows: usize| (covered(rows) - goal).abs() < 1e-4 * total;
            let alike = |rows: &usize| *rows <= ranked.len() && (*rows == fewest || close(*rows) || close(rows - 1));
            let near = [fewest, fewest.saturating_sub(1), fewest + 1].into_iter().filter(alike);
            near.into_iter().find(|rows| *rows == repaired.len()).unwrap_or(fewest)
        }
        _ => unreachable!("{budget:?}"),
    };
    assert_eq!(repaired.len(), count, "{case}: so many rows are asked for");
    let weight = |slot: usize| weights.iter().find(|(of, _)| *of == slot).map_or(0.0, |(_, weight)| *weight);
    let lightest = repaired.iter().map(|slot| weight(*slot)).fold(f64::INFINITY, f64::min);
    for (slot, weight) in ranked.iter().filter(|(slot, _)| !repaired.contains(slot)) {
        assert!(*weight <= lightest + slack, "{case}: slot {slot} weighs {weight}, and one of {lightest} was chosen");
    }
}

/// So many rows of a prompt's candidates a budget asks for at most.
fn rows_of(budget: Budget, prompt: &Prompt) -> usize {
    let rows = match budget {
        Budget::Rows(rows) => rows,
        Budget::Ratio(ratio) => (f64::from(ratio) * prompt.cached.len() as f64 + 1e-6).floor() as usize,
        _ => prompt.candidates.len(),
    };
    rows.min(prompt.candidates.len())
}

fn budgets(rows: usize, share: f32) -> [Budget; 3] {
    [Budget::Rows(rows), Budget::Ratio(share), Budget::Mass(share)]
}

/// A prompt, and before which of its pieces a second call begins.
fn prompts() -> impl Strategy<Value = (usize, Vec<Part>, Option<Vec<Token>>, prop::sample::Index)> {
    let question = prop::option::weighted(0.8, some_tokens());
    let parts = prop_oneof![parts(), memories()];
    (0..SUBJECTS.len(), parts, question, any::<prop::sample::Index>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_repair_computes_the_rows_that_its_definition_names(
        (subject, parts, question, begin) in prompts(),
        rows in 0..20usize,
        share in 0.0f32..=1.0,
    ) {
        let subject = SUBJECTS[subject].lock().unwrap_or_else(PoisonError::into_inner);
        let asks = question.is_some();
        let question: Vec<Piece> = question.iter().map(|tokens| Piece::Fresh(tokens.as_slice().into())).collect();
        let pieces = [subject.pieces(&parts), question].concat();
        let begin = begin.index(pieces.len().max(1));
        let (plain, prompt) = (&subject.plain, Prompt::of(&pieces));
        // Parts may end with a fresh piece: that is a question too.
        let asked = !prompt.question.is_empty();
        prop_assert!(asked || !asks);
        let case = |repair: &Repair| format!("{repair:?} of {pieces:?}");
        let repaired = |repair: Repair| (subject.repaired(&pieces, begin, &repair), case(&repair));
        let candidates: BTreeSet<usize> = prompt.candidates.iter().map(|(slot, ..)| *slot).collect();

        prop_assert!(repaired(Repair::None).0.is_empty());
        prop_assert_eq!(&repaired(Repair::All).0, &candidates);
        let first: BTreeSet<usize> =
            prompt.candidates.iter().filter(|(_, index, _)| *index < rows).map(|(slot, ..)| *slot).collect();
        prop_assert_eq!(repaired(Repair::FirstRows(rows)).0, first);

        let weigh = |weight: &dyn Fn(usize, f64) -> f64| -> Vec<(usize, f64)> {
            prompt.candidates.iter().map(|(slot, _, sensitivity)| (*slot, weight(*slot, *sensitivity))).collect()
        };
        for layers in [0..1, 1..2, 0..2, plain.layers - 1..plain.layers] {
            let (attention, first_seen) = attention(plain, &pieces, &prompt, layers.clone());
            for budget in budgets(rows, share) {
                let (by_attention, case) = repaired(Repair::Attention { budget, layers: layers.clone() });
                if asked {
                    let weights = weigh(&|slot, _| attention[slot]);
                    assert_heaviest(&by_attention, &weights, budget, prompt.cached.len(), &case);
                } else {
                    prop_assert!(by_attention.is_empty(), "nobody asks: {}", case);
                }
                let (weighted, case) = repaired(Repair::Weighted { budget, layers: layers.clone() });
                let weights =
                    weigh(&|slot, sensitivity| if asked { attention[slot] * sensitivity } else { sensitivity });
                // What lies before the window of the layers has its share of the budget, by sensitivity.
                let unseen = candidates.iter().filter(|slot| asked && **slot < first_seen).count();
                let sensitive = |some: &[(usize, usize, f64)]| some.iter().filter(|(.., s)| *s > 0.0).count();
                let all = sensitive(&prompt.candidates);
                let rows = rows_of(budget, &prompt).min(all);
                let of_unseen = (rows * sensitive(&prompt.candidates[..unseen])).checked_div(all).unwrap_or(0);
                let split = |rows: usize| if let Budget::Mass(_) = budget { budget } else { Budget::Rows(rows) };
                let sensitivities = weigh(&|_, sensitivity| sensitivity);
                let (before, behind): (BTreeSet<_>, BTreeSet<_>) = weighted.iter().partition(|slot| **slot < first_seen && asked);
                assert_heaviest(&before, &sensitivities[..unseen], split(of_unseen), 0, &case);
                let left = split(if unseen == 0 { rows_of(budget, &prompt) } else { rows - of_unseen });
                assert_heaviest(&behind, &weights[unseen..], left, 0, &case);
            }
        }
        for layers in [0..0, plain.layers..plain.layers + 2] {
            for budget in budgets(rows, share) {
                let (weighted, case) = repaired(Repair::Weighted { budget, layers: layers.clone() });
                assert_heaviest(&weighted, &weigh(&|_, sensitivity| sensitivity), budget, prompt.cached.len(), &case);
            }
        }
        for check_layer in 1..plain.layers {
            let distances = deviation(plain, &pieces, begin, &prompt, check_layer);
            let (by_deviation, case) = repaired(Repair::Deviation { ratio: share, check_layer });
            let weights = weigh(&|slot, _| distances[slot]);
            // What moves by less than rounding is not told from what does not move.
            let moves = |(_, distance): &(usize, f64)| *distance > 1e-9;
            let still: BTreeSet<usize> = weights.iter().filter(|w| !moves(w)).map(|(slot, _)| *slot).collect();
            if still.is_empty() {
                assert_heaviest(&by_deviation, &weights, Budget::Ratio(share), prompt.cached.len(), &case);
            }
        }
    }
}

/// The forward pass that repairs are compared with is itself compared with the golden numbers.
#[test]
fn the_plain_forward_pass_gives_the_golden_logits() {
    for case in ["qwen3", "qwen2", "mistral-sliding", "llama3"] {
        let plain = Plain::open(case);
        let (tokens, logits) = common::expected(&common::case(case).join("golden.safetensors"));
        let rows: Vec<(usize, Token)> = tokens.iter().copied().enumerate().collect();
        let (hidden, _) = plain.run(&mut plain.kv(rows.len()), &rows, plain.layers);
        let ours: Vec<f64> = hidden.iter().flat_map(|hidden| plain.logits(hidden)).collect();
        assert_eq!(ours.len(), logits.len());
        for (ours, theirs) in ours.iter().zip(&logits) {
            assert!((ours - f64::from(*theirs)).abs() < 1e-4, "{case}: {ours} instead of {theirs}");
        }
    }
}

/// A case's model with contexts of 2,048 tokens, watched.
fn with_long_contexts(case: &str) -> (Transformer<Probe<Cpu>>, Probe<Cpu>) {
    let mut files = common::directory(&common::case(case));
    let mut config: serde_json::Value = serde_json::from_slice(&files["config.json"]).unwrap();
    config["max_position_embeddings"] = 2048.into();
    files.insert("config.json".into(), serde_json::to_vec(&config).unwrap());
    let probe = Probe::new(common::exact(None, 1));
    (common::of_files(&files, probe.clone(), Dtype::F32), probe)
}

/// A question over much memory has its rows repaired in runs, so that others' tokens need not wait for all of them.
#[test]
fn many_rows_that_a_question_has_repaired_are_computed_in_runs() {
    let (model, probe) = with_long_contexts("llama3");
    let memories = prefill(&model, &PREFIX, &[text(4, 700), text(5, 600)], true).0;
    let question: Vec<Token> = (0..20).map(|at| (at * 7 % 90 + 5) as Token).collect();
    let pieces: Vec<Piece> = memories.into_iter().map(Piece::Cached).chain([Piece::Fresh(question.into())]).collect();
    let all = Repair::Weighted { budget: Budget::Ratio(1.0), layers: 1..2 };
    let mut context = model.open(0).unwrap();
    context.append(&pieces, &AppendOptions::new(all.clone())).unwrap();
    assert_eq!(context.pending(), 1320, "the rows that may be repaired are pending, too");
    let mut rows = Vec::new();
    let usage = loop {
        probe.take_plans();
        let mut steps = [Step { context: &mut *context, max_rows: 100 }];
        let progress = model.advance(&mut steps).remove(0).unwrap();
        rows.push(probe.take_plans().iter().map(Vec::len).max().unwrap());
        if let Progress::Done(usage) = progress {
            break usage;
        }
    };
    assert_eq!((usage.repaired, usage.work_choosing), (1300, 40), "the question was read through two layers");
    assert!(rows.len() >= 14 && rows.iter().all(|rows| *rows <= 100), "{rows:?} rows were computed at a time");
    let at_once = model.blend(&pieces, &Repair::All).unwrap().0;
    assert_eq!(context.logits(), at_once.logits());
    let few = Repair::Weighted { budget: Budget::Rows(100), layers: 1..2 };
    let mut context = model.open(0).unwrap();
    context.append(&pieces, &AppendOptions::new(few)).unwrap();
    let mut steps = [Step { context: &mut *context, max_rows: 200 }];
    let done = model.advance(&mut steps).remove(0).unwrap();
    assert!(
        matches!(done, Progress::Done(usage) if usage.work_choosing == 0),
        "few rows go with the question: {done:?}"
    );
}

/// Attention in deep layers is read in runs of 512 rows, however long the question is.
#[test]
fn a_long_question_is_read_in_runs() {
    let case = "llama3";
    let (model, probe) = with_long_contexts(case);
    let plain = Plain::open(case);
    let texts = [(4, 16), (5, 23)].map(|(seed, tokens)| text(seed, tokens));
    let (memories, _) = prefill(&model, &PREFIX, &texts, true);
    let prefix = prefill(&model, &[], &[PREFIX.into()], false).0.remove(0);
    let question: Vec<Token> = (0..1100).map(|at| (at * 7 % 90 + 5) as Token).collect();
    let cached = [prefix, memories[0].clone(), memories[1].clone()].map(Piece::Cached);
    let pieces = [&cached[..], &[Piece::Fresh(question.as_slice().into())]].concat();
    let prompt = Prompt::of(&pieces);

    assert!(plain.layers > 2, "the first two layers are read on the way");
    let (budget, layers) = (Budget::Rows(6), plain.layers - 1..plain.layers);
    let mut context = model.open(0).unwrap();
    let repair = Repair::Attention { budget, layers: layers.clone() };
    context.append(&pieces, &AppendOptions::new(repair).logits(0)).unwrap();
    let mut runs = Vec::new();
    let usage = loop {
        probe.take_plans();
        let mut steps = [Step { context: &mut *context, max_rows: 2000 }];
        let progress = model.advance(&mut steps).remove(0).unwrap();
        runs.push(probe.take_plans());
        if let Progress::Done(usage) = progress {
            break usage;
        }
    };
    let last: Vec<usize> = runs.pop().unwrap().pop().unwrap().iter().map(|row| row.slot as usize).collect();
    let lengths: Vec<usize> = runs.iter().map(|plans| plans.iter().map(Vec::len).max().unwrap()).collect();
    assert_eq!(lengths, [512, 512], "the third run is read in the call that computes");
    assert_eq!(usage.work_choosing as usize, 1100 * plain.layers);
    let repaired: BTreeSet<usize> = last.into_iter().filter(|slot| prompt.cached.contains(slot)).collect();
    let (attention, _) = attention(&plain, &pieces, &prompt, layers);
    let weights: Vec<(usize, f64)> = prompt.candidates.iter().map(|(slot, ..)| (*slot, attention[*slot])).collect();
    assert_heaviest(&repaired, &weights, budget, prompt.cached.len(), case);
}

/// Two copies of one chunk weigh the same by their sensitivity: the earlier rows come first.
#[test]
fn of_rows_that_weigh_the_same_the_earlier_are_repaired() {
    let subject = SUBJECTS[0].lock().unwrap_or_else(PoisonError::into_inner);
    let pieces = subject.pieces(&[Part::Memory(3), Part::Memory(3)]);
    let sensitivity = subject.memories[3].sensitivity().unwrap();
    let mut by_weight: Vec<usize> = (0..16).collect();
    by_weight.sort_by(|a, b| sensitivity[*b].total_cmp(&sensitivity[*a]));
    assert_eq!(tokens(&pieces).len(), 32);
    for rows in 0..=32 {
        let repaired = subject.repaired(&pieces, 0, &Repair::Weighted { budget: Budget::Rows(rows), layers: 0..0 });
        // Of each pair the earlier one, then the later one.
        let expected = by_weight.iter().flat_map(|row| [*row, row + 16]).take(rows);
        assert_eq!(repaired, expected.collect(), "{rows} rows");
    }
}

/// The notes that the model measures with, learned from what its backend computes for a prefix that is new to it: the
/// prefix, then the notes side by side.
fn notes(subject: &Subject, prefix: &[Token]) -> Vec<Vec<Token>> {
    subject.probe.take_plans();
    prefill(&subject.model, prefix, &[text(1, 2)], true);
    let plans = subject.probe.take_plans();
    // A plan for each kind of layer.
    let of_prefix =
        |rows: &&Vec<amem_core::transformer::Row>| rows.iter().map(|row| row.token).eq(prefix.iter().copied());
    assert!(of_prefix(&&plans[0]));
    let mut notes: Vec<Vec<Token>> = Vec::new();
    for row in plans.iter().find(|rows| !of_prefix(rows)).unwrap() {
        match notes.last_mut() {
            Some(note) if row.position as usize > prefix.len() => note.push(row.token),
            _ => notes.push(vec![row.token]),
        }
    }
    notes
}

/// A text computed behind the prefix alone, and behind the prefix and notes of which none knows of the others: what its
/// keys and values move by, in units of the mean squared length of those of the notes. The second layer counts in
/// full, each further one three tenths of the one before it.
#[test]
fn a_sensitivity_is_how_far_a_row_moves_behind_other_notes() {
    for subject in SUBJECTS.iter() {
        let subject = subject.lock().unwrap_or_else(PoisonError::into_inner);
        let (plain, prefix) = (&subject.plain, [9, 3, 5, 11]);
        let notes = notes(&subject, &prefix);
        assert!(notes.len() > 1 && notes.iter().all(|note| !note.is_empty()));
        let at =
            |first: usize, tokens: &[Token]| -> Vec<(usize, Token)> { (first..).zip(tokens.iter().copied()).collect() };
        // Each behind the prefix alone.
        let alone = |tokens: &[Token]| {
            let mut kv = plain.kv(prefix.len() + tokens.len());
            plain.run(&mut kv, &at(0, &prefix), plain.layers);
            plain.run(&mut kv, &at(prefix.len(), tokens), plain.layers);
            kv
        };
        let of_notes: Vec<PlainKv> = notes.iter().map(|note| alone(note)).collect();
        let length = |half: &[f64]| half.iter().map(|number| number * number).sum::<f64>();
        let rows: usize = notes.iter().map(Vec::len).sum();
        let scales: Vec<[f64; 2]> = (0..plain.layers)
            .map(|layer| {
                let halves = of_notes.iter().zip(&notes).flat_map(|(kv, note)| {
                    (prefix.len()..prefix.len() + note.len()).map(move |slot| plain.unrotated(kv, layer, slot))
                });
                let sums =
                    halves.fold([0.0; 2], |sums, [key, value]| [sums[0] + length(&key), sums[1] + length(&value)]);
                sums.map(|sum| sum / rows as f64)
            })
            .collect();
        let texts: Vec<_> = [(1, 1), (3, 7), (5, 23)].map(|(seed, tokens)| text(seed, tokens)).to_vec();
        let (chunks, _) = prefill(&subject.model, &prefix, &texts, true);
        let (of_texts, _) = prefill(
            &subject.model,
            &prefix,
            &notes.iter().map(|note| note.as_slice().into()).collect::<Vec<_>>(),
            false,
        );
        let moves = |chunk: &KvChunk| chunk.sensitivity().unwrap().iter().any(|sensitivity| *sensitivity > 1e-3);
        assert!(chunks.iter().all(moves), "where nothing moves, nothing is shown");
        for chunk in &chunks {
            let here = alone(chunk.tokens());
            let first = prefix.len() + rows;
            let mut there = plain.kv(first + chunk.tokens().len());
            plain.run(&mut there, &at(0, &prefix), plain.layers);
            let mut slot = prefix.len();
            for note in &of_texts {
                plain.load(&mut there, note, slot);
                slot += note.tokens().len();
            }
            plain.run(&mut there, &at(first, chunk.tokens()), plain.layers);
            for (index, sensitivity) in chunk.sensitivity().unwrap().iter().enumerate() {
                let mut expected = 0.0;
                for (layer, scales) in scales.iter().enumerate().skip(1) {
                    let ours = plain.unrotated(&here, layer, prefix.len() + index);
                    let theirs = plain.unrotated(&there, layer, first + index);
                    for ((ours, theirs), scale) in ours.iter().zip(&theirs).zip(scales) {
                        let moved: f64 = ours.iter().zip(theirs).map(|(a, b)| (a - b) * (a - b)).sum();
                        expected += 0.3f64.powi(layer as i32 - 1) * moved / scale;
                    }
                }
                let off = (f64::from(*sensitivity) - expected).abs();
                assert!(off <= 1e-6 + 1e-3 * expected, "row {index}: {sensitivity} instead of {expected}");
            }
        }
    }
}
