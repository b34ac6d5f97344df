//! What blend promises: which contexts are a cold prefill to the bit, whatever they are made of.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;

use amem_core::{Budget, KvChunk, Model, Piece, Repair, Token};
use common::prompts::*;
use proptest::prelude::*;
use proptest::sample::subsequence;

fn fresh(tokens: &[Token]) -> Piece {
    Piece::Fresh(tokens.into())
}

/// The same chunk, as if nobody had measured it: all of its rows are worth repairing.
fn unmeasured(piece: Piece) -> Piece {
    match piece {
        Piece::Cached(chunk) => {
            let (id, prefix, shape) = (chunk.id(), chunk.prefix(), *chunk.shape());
            let data = Arc::clone(chunk.data());
            Piece::Cached(KvChunk::new(id, prefix, shape, Arc::clone(chunk.tokens()), data).unwrap())
        }
        fresh => fresh,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn with_all_rows_repaired_any_context_is_a_cold_one(
        subject in any_subject(),
        parts in parts(),
        question in some_tokens(),
    ) {
        let pieces = [subject.pieces(&parts), vec![fresh(&question)]].concat();
        let blended = subject.context(&pieces, &Repair::All);
        prop_assert_eq!(blended.tokens(), &*tokens(&pieces));
        prop_assert!(bits(&*blended) == bits(&*subject.cold(&pieces)));
    }

    #[test]
    fn every_way_of_choosing_all_rows_is_repair_of_all_rows(
        subject in subject_without_window(),
        parts in parts(),
        question in some_tokens(),
    ) {
        let pieces: Vec<Piece> = subject.pieces(&parts).into_iter().map(unmeasured).collect();
        let pieces = [pieces, vec![fresh(&question)]].concat();
        let cold = bits(&*subject.cold(&pieces));
        let layers = subject.model.info().shape.layers;
        let all = Budget::Ratio(1.0);
        for repair in [
            Repair::FirstRows(usize::MAX),
            Repair::Weighted { budget: all, layers: 1..2 },
            Repair::Weighted { budget: Budget::Rows(usize::MAX), layers: 0..layers },
            Repair::Weighted { budget: all, layers: 0..0 },
            Repair::Attention { budget: all, layers: 0..1 },
            Repair::Attention { budget: all, layers: 1..2 },
            Repair::Deviation { ratio: 1.0, check_layer: 1 },
            Repair::Deviation { ratio: 1.0, check_layer: layers - 1 },
        ] {
            prop_assert!(bits(&*subject.context(&pieces, &repair)) == cold, "not with {:?}", repair);
        }
    }

    #[test]
    fn a_chunk_in_its_own_place_is_exact_as_it_is(
        subject in any_subject(),
        memory in 0..5usize,
        head in prop_oneof![Just(Part::CachedPrefix), Just(Part::FreshPrefix)],
        question in some_tokens(),
    ) {
        let pieces = [subject.pieces(&[head, Part::Memory(memory)]), vec![fresh(&question)]].concat();
        let reused = subject.context(&pieces, &Repair::None);
        prop_assert!(bits(&*reused) == bits(&*subject.cold(&pieces)));
    }

    #[test]
    fn exact_rows_are_never_repaired(
        subject in any_subject(),
        first in 0..5usize,
        others in memories(),
        question in some_tokens(),
    ) {
        let parts = [vec![Part::CachedPrefix, Part::Memory(first)], others].concat();
        let pieces = subject.pieces(&parts);
        let exact = PREFIX.len() + subject.memories[first].tokens().len();
        let (_, usage) = subject.model.blend(&[pieces.clone(), vec![fresh(&question)]].concat(), &Repair::All).unwrap();
        prop_assert_eq!(usage.repaired, tokens(&pieces).len() - exact);
    }

    #[test]
    fn a_chunk_is_the_same_whatever_is_computed_beside_it(
        subject in any_subject(),
        beside in subsequence((0..5usize).collect::<Vec<_>>(), 0..=5).prop_shuffle(),
        own in 0..5usize,
        at in any::<prop::sample::Index>(),
    ) {
        let text = |index: &usize| Arc::clone(subject.memories[*index].tokens());
        let mut texts: Vec<_> = beside.iter().map(text).collect();
        let at = at.index(texts.len() + 1);
        texts.insert(at, text(&own));
        let packed = prefill(&subject.model, &PREFIX, &texts, true).0.remove(at);
        let alone = prefill(&subject.model, &PREFIX, &[text(&own)], true).0.remove(0);
        prop_assert_eq!(packed.id(), alone.id());
        prop_assert!(packed.to_bytes().unwrap() == alone.to_bytes().unwrap());
        prop_assert_eq!(packed.sensitivity(), alone.sensitivity());
    }

    /// In two layers with a window of 16, a row learns of the 30 before it and of no more. What stands further back only
    /// decides at which positions the others are.
    #[test]
    fn moving_a_whole_prompt_by_a_constant_changes_nothing_but_rounding(
        memories in memories(),
        question in some_tokens(),
        distance in 1..100u32,
    ) {
        let subject = subject("mistral-sliding F32");
        let pieces = [subject.pieces(&memories), vec![fresh(&text(8, 30)), fresh(&question)]].concat();
        let moved = [vec![fresh(&text(9, distance))], pieces.clone()].concat();
        for repair in [Repair::None, Repair::All] {
            let [here, there] = [&pieces, &moved].map(|pieces| subject.context(pieces, &repair));
            for (a, b) in here.logits().iter().zip(there.logits()) {
                prop_assert!((a - b).abs() < 1e-4, "{} became {}", a, b);
            }
        }
    }
}

#[test]
fn no_row_of_a_prompt_may_be_repaired_where_there_are_none() {
    let subject = subject("llama3 F16");
    for repair in [Repair::None, Repair::default(), Repair::All, Repair::Deviation { ratio: 1.0, check_layer: 1 }] {
        let (context, usage) = subject.model.blend(&[], &repair).unwrap();
        assert_eq!((context.tokens().len(), context.logits().len()), (0, 0));
        assert_eq!(usage, amem_core::Usage::default(), "{repair:?}");
    }
}
