//! The life of a context: it is extended, cut back, repaired turn by turn, and counts what that cost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;

use amem_core::{Budget, Context, Error, HostKv, KvChunk, Model, Piece, Repair, Token, Usage};
use common::prompts::*;
use proptest::prelude::*;

fn fresh(tokens: &[Token]) -> Piece {
    Piece::Fresh(tokens.into())
}

/// What choosing rows costs, by what the whole call did.
type Choosing<'a> = &'a dyn Fn(&Usage) -> usize;

/// A context of pieces that come one by one.
fn one_by_one(subject: &Subject, pieces: &[Piece], repair: &Repair) -> (Box<dyn Context>, Usage) {
    let mut context = subject.model.open(0).unwrap();
    let extend = |piece: &Piece| subject.model.extend(&mut *context, std::slice::from_ref(piece), repair).unwrap();
    let usage = pieces.iter().map(extend).sum();
    (context, usage)
}

/// The same pieces, with every fresh one cut into its tokens.
fn single_tokens(pieces: &[Piece]) -> Vec<Piece> {
    let cut = |piece: &Piece| match piece {
        Piece::Fresh(tokens) => tokens.chunks(1).map(fresh).collect(),
        cached => vec![cached.clone()],
    };
    pieces.iter().flat_map(cut).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_context_is_the_same_in_one_call_piece_by_piece_and_token_by_token(
        subject in any_subject(),
        parts in parts(),
        question in some_tokens(),
    ) {
        let pieces = [subject.pieces(&parts), vec![fresh(&question)]].concat();
        let whole = subject.context(&pieces, &Repair::None);
        for pieces in [&pieces, &single_tokens(&pieces)] {
            let (parted, _) = one_by_one(subject, pieces, &Repair::None);
            prop_assert_eq!(parted.tokens(), whole.tokens());
            prop_assert!(bits(&*parted) == bits(&*whole));
        }
    }

    #[test]
    fn repairing_every_piece_as_it_comes_is_a_cold_prefill(
        subject in any_subject(),
        parts in parts(),
        question in some_tokens(),
    ) {
        let pieces = [subject.pieces(&parts), vec![fresh(&question)]].concat();
        let (repaired, _) = one_by_one(subject, &pieces, &Repair::All);
        prop_assert!(bits(&*repaired) == bits(&*subject.cold(&pieces)));
    }

    /// As long as no fresh row was computed from them, that is: fresh rows are never computed again.
    #[test]
    fn reused_rows_can_be_repaired_in_a_later_call(
        subject in any_subject(),
        memories in memories(),
        question in some_tokens(),
    ) {
        let pieces = subject.pieces(&memories);
        let (mut context, _) = one_by_one(subject, &pieces, &Repair::None);
        subject.model.extend(&mut *context, &[fresh(&question)], &Repair::All).unwrap();
        prop_assert!(bits(&*context) == bits(&*subject.cold(&[pieces, vec![fresh(&question)]].concat())));
    }

    #[test]
    fn no_row_is_repaired_twice(subject in any_subject(), parts in parts(), question in some_tokens()) {
        let pieces = [subject.pieces(&parts), vec![fresh(&question)]].concat();
        let (_, all) = subject.model.blend(&pieces, &Repair::All).unwrap();
        let (mut context, first) = subject.model.blend(&pieces, &Repair::FirstRows(1)).unwrap();
        let mut turn = |repair: Repair| subject.model.extend(&mut *context, &[fresh(&[9])], &repair).unwrap().repaired;
        let turns = [Repair::FirstRows(1), Repair::FirstRows(2), Repair::All, Repair::All].map(&mut turn);
        prop_assert_eq!(turns[0], 0, "the first row of every chunk was repaired before");
        prop_assert_eq!(turns[3], 0, "nothing is left when all has been repaired");
        prop_assert_eq!(first.repaired + turns.iter().sum::<usize>(), all.repaired);
    }

    #[test]
    fn what_is_cut_off_leaves_no_trace(
        subject in any_subject(),
        parts in parts(),
        cut_off in parts(),
        then in memories(),
        question in some_tokens(),
        ratio in 0.0f32..=1.0,
    ) {
        let pieces = subject.pieces(&parts);
        let [mut context, mut straight] = [(); 2].map(|()| subject.context(&pieces, &Repair::None));
        let len = context.tokens().len();
        subject.model.extend(&mut *context, &[subject.pieces(&cut_off), vec![fresh(&question)]].concat(), &Repair::None).unwrap();
        context.truncate(len + 1000);
        prop_assert!(!context.logits().is_empty(), "there was nothing to cut off");
        context.truncate(len);
        prop_assert!(context.logits().is_empty());
        let repair = Repair::Weighted { budget: Budget::Ratio(ratio), layers: 1..2 };
        let then = [subject.pieces(&then), vec![fresh(&question)]].concat();
        let usages = [&mut context, &mut straight].map(|context| subject.model.extend(&mut **context, &then, &repair).unwrap());
        prop_assert_eq!(usages[0], usages[1]);
        prop_assert!(bits(&*context) == bits(&*straight));
    }

    #[test]
    fn a_chunk_may_be_cut_anywhere(
        subject in any_subject(),
        memories in memories(),
        at in any::<prop::sample::Index>(),
        question in some_tokens(),
    ) {
        let mut context = subject.context(&subject.pieces(&memories), &Repair::None);
        let len = at.index(context.tokens().len() + 1);
        context.truncate(len);
        let left = fresh(context.tokens());
        subject.model.extend(&mut *context, &[fresh(&question)], &Repair::All).unwrap();
        prop_assert!(bits(&*context) == bits(&*subject.cold(&[left, fresh(&question)])));
    }

    #[test]
    fn usage_counts_every_row_of_every_layer(
        subject in any_subject(),
        parts in parts(),
        question in some_tokens(),
        rows in 0..40usize,
    ) {
        let pieces = [subject.pieces(&parts), vec![fresh(&question)]].concat();
        let fresh_rows: usize = pieces.iter().map(|p| if let Piece::Fresh(t) = p { t.len() } else { 0 }).sum();
        let layers = subject.model.info().shape.layers;
        let usage = |repair: &Repair| subject.model.blend(&pieces, repair).unwrap().1;
        let candidates = usage(&Repair::All).repaired;

        // What is computed to choose rows, in rows times layers, besides those that are computed anyway.
        let budget = Budget::Rows(rows);
        let up_to_the_check = |usage: &Usage| 2 * (candidates - usage.repaired);
        // Beyond the second layer, fresh rows have attended to what is about to be repaired: they are computed again.
        let last = layers - 1;
        let up_to_the_last = |_: &Usage| if candidates > 0 && last > 1 { layers * fresh_rows } else { 0 };
        let cases: [(Repair, Choosing<'_>); 8] = [
            (Repair::None, &|_| 0),
            (Repair::All, &|_| 0),
            (Repair::FirstRows(rows), &|_| 0),
            (Repair::Weighted { budget, layers: 0..0 }, &|_| 0),
            (Repair::Weighted { budget, layers: 1..2 }, &|_| 0),
            (Repair::Attention { budget, layers: 0..2 }, &|_| 0),
            (Repair::Deviation { ratio: 0.2, check_layer: 1 }, &up_to_the_check),
            (Repair::Attention { budget, layers: last..layers }, &up_to_the_last),
        ];
        for (repair, choosing) in &cases {
            let usage = usage(repair);
            let cached = tokens(&pieces).len() - fresh_rows;
            prop_assert_eq!((usage.resident, usage.cached, usage.prefilled, usage.generated), (0, cached, fresh_rows, 0));
            prop_assert!(usage.repaired <= candidates, "{:?}", repair);
            prop_assert_eq!(usage.work_prefilling, (fresh_rows * layers) as u64, "{:?}", repair);
            prop_assert_eq!(usage.work_repairing, (usage.repaired * layers) as u64, "{:?}", repair);
            prop_assert_eq!(usage.work_choosing, choosing(&usage) as u64, "{:?}", repair);
        }
        prop_assert_eq!(usage(&Repair::None).repaired, 0);
    }

    #[test]
    fn so_many_rows_are_repaired_as_were_asked_for(
        subject in subject_without_window(),
        parts in parts(),
        question in some_tokens(),
        rows in 0..40usize,
        ratio in 0.0f32..=1.0,
    ) {
        let pieces = [subject.pieces(&parts), vec![fresh(&question)]].concat();
        let repaired = |repair: Repair| subject.model.blend(&pieces, &repair).unwrap().1.repaired;
        let by_attention = |budget| repaired(Repair::Attention { budget, layers: 1..2 });
        let candidates = repaired(Repair::All);
        let cached = subject.model.blend(&pieces, &Repair::None).unwrap().1.cached;
        prop_assert_eq!(by_attention(Budget::Rows(rows)), rows.min(candidates));
        let share = (f64::from(ratio) * cached as f64 + 1e-6) as usize;
        prop_assert_eq!(by_attention(Budget::Ratio(ratio)), share.min(candidates));
        prop_assert!(by_attention(Budget::Mass(ratio)) <= by_attention(Budget::Mass(1.0)));
        prop_assert_eq!(by_attention(Budget::Mass(0.0)), 0);
    }

    #[test]
    fn a_chunk_computed_behind_these_very_tokens_is_exact(
        subject in any_subject(),
        parts in parts(),
        question in some_tokens(),
    ) {
        let pieces = subject.pieces(&parts);
        let (computed, _) = prefill(&subject.model, &tokens(&pieces), &[text(6, 9)], false);
        let then = [Piece::Cached(computed[0].clone()), fresh(&question)];
        let mut context = subject.context(&pieces, &Repair::All);
        prop_assert_eq!(subject.model.extend(&mut *context, &then, &Repair::All).unwrap().repaired, 0);
        prop_assert!(bits(&*context) == bits(&*subject.cold(&[pieces.as_slice(), &then].concat())));
    }

    #[test]
    fn a_call_that_is_refused_leaves_no_trace(subject in any_subject(), parts in parts(), question in some_tokens()) {
        let pieces = [subject.pieces(&parts), vec![fresh(&question)]].concat();
        let mut context = subject.context(&pieces, &Repair::None);
        let mut untouched = subject.context(&pieces, &Repair::None);
        let info = subject.model.info();
        let rest = info.context - context.tokens().len();
        let unknown = fresh(&[8, info.vocabulary as Token]);
        let other_shape = Piece::Cached(a_chunk_of_another_shape());
        let unread = Repair::Attention { budget: Budget::Rows(1), layers: 1..info.shape.layers + 1 };

        let mut refused = |pieces: &[Piece], repair: &Repair| subject.model.extend(&mut *context, pieces, repair).unwrap_err();
        let error = refused(&[fresh(&vec![8; rest + 1])], &Repair::None);
        prop_assert!(matches!(error, Error::TooLong { limit, .. } if limit == info.context), "{}", error);
        let error = refused(&[pieces[0].clone(), unknown], &Repair::None);
        prop_assert!(matches!(error, Error::BadValue { what: "token", .. }), "{}", error);
        let error = refused(&[pieces[0].clone(), other_shape], &Repair::None);
        prop_assert!(matches!(error, Error::WrongKv { .. }), "{}", error);
        let error = refused(&pieces, &unread);
        prop_assert!(matches!(error, Error::BadValue { .. }), "{}", error);

        prop_assert!(bits(&*context) == bits(&*untouched));
        for context in [&mut context, &mut untouched] {
            subject.model.extend(&mut **context, &[fresh(&[9, 8])], &Repair::All).unwrap();
        }
        prop_assert_eq!(context.tokens(), untouched.tokens());
        prop_assert!(bits(&*context) == bits(&*untouched));
    }
}

fn a_chunk_of_another_shape() -> KvChunk {
    let chunk = &subject("llama3 F16").memories[0];
    let mut shape = *chunk.shape();
    shape.layers += 7;
    let bytes = vec![0; chunk.encoding().bytes(&shape, chunk.tokens().len())];
    let data = Arc::new(HostKv::new(chunk.encoding(), shape.layers, bytes));
    KvChunk::new(chunk.id(), chunk.prefix(), shape, Arc::clone(chunk.tokens()), data).unwrap()
}

#[test]
fn a_context_may_be_filled_to_its_last_token() {
    let subject = subject("llama3 F16");
    let limit = subject.model.info().context;
    let mut context = subject.context(&[fresh(&text(1, limit as u32 - 1))], &Repair::None);
    subject.model.extend(&mut *context, &[fresh(&[8])], &Repair::None).unwrap();
    assert_eq!(context.tokens().len(), limit);
    assert!(matches!(subject.model.extend(&mut *context, &[fresh(&[8])], &Repair::None), Err(Error::TooLong { .. })));
    context.truncate(limit - 1);
    subject.model.extend(&mut *context, &[fresh(&[8])], &Repair::None).unwrap();
    assert_eq!(bits(&*context), bits(&*subject.cold(&[fresh(context.tokens())])));
}

#[test]
fn there_are_logits_when_the_last_piece_is_fresh_and_only_then() {
    let subject = subject("llama3 F16");
    let memory = Piece::Cached(subject.memories[2].clone());
    let question = fresh(&[9, 8]);
    for repair in [Repair::None, Repair::default(), Repair::Deviation { ratio: 0.5, check_layer: 1 }, Repair::All] {
        let logits = |pieces: &[Piece]| subject.context(pieces, &repair).logits().len();
        assert_eq!(logits(&[memory.clone(), question.clone()]), subject.model.info().vocabulary, "{repair:?}");
        assert_eq!(logits(&[question.clone(), memory.clone()]), 0, "{repair:?}");
        assert_eq!(logits(std::slice::from_ref(&memory)), 0, "{repair:?}");
        let mut context = subject.context(&[memory.clone(), question.clone()], &repair);
        subject.model.extend(&mut *context, &[], &repair).unwrap();
        assert_eq!(context.logits().len(), 0, "{repair:?}");
    }
}
