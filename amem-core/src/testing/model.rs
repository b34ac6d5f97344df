//! What every [`Model`] promises.

use std::sync::Arc;

use crate::{Budget, Context, Error, KvChunk, Model, Namespace, Piece, PrefixId, Repair, Result, Token, Usage};

/// Checks a model against the promises of [`Model`] and [`Context`]. `make` gives one each time it is called; it must
/// hold at least 64 tokens and know at least 64.
///
/// # Panics
/// With the promise that was broken.
pub fn model<M: Model>(make: impl Fn() -> M) {
    let model = &make();
    let info = model.info();
    assert!(info.context >= 64 && info.vocabulary >= 64, "the suite needs a model of 64 tokens");
    a_chunk_says_what_it_is(model);
    ids_are_stable_and_namespaces_share_none(model, &make());
    a_chunk_is_the_same_alone_and_among_others(model);
    texts_that_no_context_can_hold_are_refused(model);
    an_empty_context_has_nothing(model);
    tokens_stand_in_the_order_of_their_pieces(model);
    logits_are_those_after_a_fresh_last_piece(model);
    a_context_goes_on_where_it_ended(model);
    a_chunk_in_its_own_place_is_exact(model);
    repair_of_all_rows_is_a_cold_prefill(model);
    a_budget_of_rows_is_kept(model);
    a_refused_call_changes_nothing(model);
    contexts_know_nothing_of_each_other(model);
}

fn ours() -> Namespace {
    Namespace::new("ours").unwrap()
}

fn text(first: Token, len: u32) -> Arc<[Token]> {
    (0..len).map(|index| 1 + (first + 7 * index) % 60).collect()
}

fn prefix() -> Arc<[Token]> {
    text(50, 3)
}

fn memories(model: &impl Model) -> Vec<KvChunk> {
    let texts = [text(1, 1), text(2, 5), text(3, 17)];
    model.prefill(&ours(), &prefix(), &texts, true).expect("texts are prefilled").0
}

fn cached(chunk: &KvChunk) -> Piece {
    Piece::Cached(chunk.clone())
}

fn fresh(tokens: &[Token]) -> Piece {
    Piece::Fresh(tokens.into())
}

fn blend(model: &impl Model, pieces: &[Piece], repair: &Repair) -> (Box<dyn Context>, Usage) {
    model.blend(pieces, repair).expect("pieces are blended")
}

/// The logits after the same tokens, computed with nothing at hand.
fn cold(model: &impl Model, pieces: &[Piece]) -> Vec<f32> {
    let tokens: Vec<Token> = pieces.iter().flat_map(|piece| piece.tokens()).copied().collect();
    blend(model, &[fresh(&tokens)], &Repair::None).0.logits().to_vec()
}

fn a_chunk_says_what_it_is(model: &impl Model) {
    let (info, texts) = (model.info(), [text(1, 4), text(2, 9)]);
    let (bare, usage) = model.prefill(&ours(), &prefix(), &texts, false).expect("texts are prefilled");
    let (measured, twice) = model.prefill(&ours(), &prefix(), &texts, true).expect("texts are prefilled and measured");
    assert_eq!(bare.len(), texts.len(), "each text has a chunk");
    for (chunk, text) in bare.iter().zip(&texts) {
        assert_eq!(chunk.tokens(), text, "chunks come in the order of their texts");
        assert_eq!(chunk.shape(), &info.shape, "a chunk has the shape that the model says");
        assert_eq!(chunk.prefix(), PrefixId::of(&prefix()), "a chunk knows what it was computed behind");
        assert_eq!(chunk.id(), info.chunk_id(&ours(), &chunk.prefix(), text), "a chunk has the id that the model says");
        assert!(chunk.sensitivity().is_none(), "what was not to be measured is not");
    }
    assert!(measured.iter().all(|chunk| chunk.sensitivity().is_some()), "what was to be measured is");
    assert!(measured.iter().zip(&bare).all(|(a, b)| a.bytes() == b.bytes()), "measuring changes no KV");
    assert_eq!(usage.prefilled, 13, "usage counts the tokens of the texts");
    assert!(usage.work_prefilling > 0 && twice.work_prefilling > usage.work_prefilling, "measuring is work");
    let none = model.prefill(&ours(), &prefix(), &[], true).expect("no texts may be prefilled");
    assert!(none.0.is_empty() && none.1 == Usage::default(), "no texts have no chunks and cost nothing");
}

fn ids_are_stable_and_namespaces_share_none(model: &impl Model, other: &impl Model) {
    let theirs = Namespace::new("theirs").unwrap();
    let id = |model: &dyn Model, namespace: &Namespace, prefix: &[Token], text: Arc<[Token]>| {
        model.prefill(namespace, prefix, &[text], false).expect("a text is prefilled").0.remove(0).id()
    };
    let ours = ours();
    let first = id(model, &ours, &prefix(), text(1, 4));
    assert_eq!(first, id(model, &ours, &prefix(), text(1, 4)), "the same text has the same id");
    assert_eq!(first, id(other, &ours, &prefix(), text(1, 4)), "an id outlives the model that gave it");
    assert_ne!(first, id(model, &theirs, &prefix(), text(1, 4)), "namespaces share no ids");
    assert_ne!(first, id(model, &ours, &[], text(1, 4)), "what a chunk was computed behind is part of its id");
    assert_ne!(first, id(model, &ours, &prefix(), text(2, 4)), "another text has another id");
}

fn a_chunk_is_the_same_alone_and_among_others(model: &impl Model) {
    for chunk in memories(model) {
        let alone = model.prefill(&ours(), &prefix(), &[Arc::clone(chunk.tokens())], true).unwrap().0.remove(0);
        assert!(alone.bytes() == chunk.bytes(), "what is computed beside a text does not touch its KV");
        assert_eq!(alone.sensitivity(), chunk.sensitivity(), "nor its sensitivity");
    }
}

fn texts_that_no_context_can_hold_are_refused(model: &impl Model) {
    let prefill = |text: Arc<[Token]>| model.prefill(&ours(), &prefix(), &[self::text(1, 2), text], false);
    assert!(matches!(prefill([].into()), Err(Error::Empty { .. })), "a text without tokens is refused");
    let room = model.info().context - prefix().len();
    prefill(text(1, room as u32)).expect("a text may fill a context behind the prefix");
    let error = prefill(text(1, room as u32 + 1));
    assert!(matches!(error, Err(Error::TooLong { .. })), "one token more is refused");
    let unknown = prefill([model.info().vocabulary as Token].into());
    assert!(matches!(unknown, Err(Error::BadValue { .. })), "a token that is not in the vocabulary is refused");
}

fn an_empty_context_has_nothing(model: &impl Model) {
    for repair in [Repair::None, Repair::default(), Repair::All] {
        let (context, usage) = blend(model, &[], &repair);
        assert!(context.tokens().is_empty() && context.logits().is_empty(), "an empty context has nothing");
        assert_eq!(usage, Usage::default(), "an empty context costs nothing");
    }
}

fn tokens_stand_in_the_order_of_their_pieces(model: &impl Model) {
    let chunks = memories(model);
    let pieces = [cached(&chunks[2]), fresh(&[9, 8]), cached(&chunks[0]), cached(&chunks[2]), fresh(&[7])];
    let (mut context, usage) = blend(model, &pieces, &Repair::None);
    let expected: Vec<Token> = pieces.iter().flat_map(|piece| piece.tokens()).copied().collect();
    assert_eq!(context.tokens(), expected, "tokens stand in the order of their pieces, repeated chunks too");
    assert_eq!((usage.resident, usage.cached, usage.prefilled), (0, 35, 3), "usage counts cached and fresh tokens");
    assert_eq!(usage.reused(), 35, "without repair all cached tokens are reused");
    let usage = context.extend(&[fresh(&[6])], &Repair::None).unwrap();
    assert_eq!((usage.resident, usage.cached, usage.prefilled), (38, 0, 1), "usage counts what stood there");
}

fn logits_are_those_after_a_fresh_last_piece(model: &impl Model) {
    let chunks = memories(model);
    let (mut context, _) = blend(model, &[fresh(&[9, 8]), cached(&chunks[1])], &Repair::default());
    assert!(context.logits().is_empty(), "behind a cached piece there are no logits");
    context.extend(&[fresh(&[9])], &Repair::default()).unwrap();
    assert_eq!(context.logits().len(), model.info().vocabulary, "every token of the vocabulary has a score");
    assert!(context.logits().iter().all(|logit| logit.is_finite()), "scores are finite");
    context.truncate(1000);
    assert!(!context.logits().is_empty(), "cutting nothing off changes nothing");
    context.truncate(7);
    assert_eq!((context.tokens().len(), context.logits().len()), (7, 0), "with tokens, the logits are cut off");
}

fn a_context_goes_on_where_it_ended(model: &impl Model) {
    let tokens = text(5, 12);
    let whole = cold(model, &[fresh(&tokens)]);
    let mut context = model.open().expect("a context is opened");
    for token in tokens.iter() {
        context.extend(&[fresh(&[*token])], &Repair::None).unwrap();
    }
    assert_eq!(context.logits(), whole, "token by token comes to the same as all at once");
    context.extend(&[fresh(&[1, 2, 3])], &Repair::None).unwrap();
    context.truncate(tokens.len() - 1);
    context.extend(&[fresh(&tokens[tokens.len() - 1..])], &Repair::None).unwrap();
    assert_eq!(context.logits(), whole, "what was cut off leaves no trace");
}

fn a_chunk_in_its_own_place_is_exact(model: &impl Model) {
    for chunk in memories(model) {
        let pieces = [fresh(&prefix()), cached(&chunk), fresh(&[9, 8])];
        let (context, _) = blend(model, &pieces, &Repair::None);
        assert_eq!(context.logits(), cold(model, &pieces), "a chunk behind its prefix is exact as it is");
        let (_, usage) = blend(model, &pieces, &Repair::All);
        assert_eq!(usage.repaired, 0, "exact rows are never repaired");
    }
}

fn repair_of_all_rows_is_a_cold_prefill(model: &impl Model) {
    let chunks = memories(model);
    for order in [&[0, 1, 2][..], &[2, 1, 0], &[1, 1], &[2], &[]] {
        let mut pieces: Vec<Piece> = order.iter().map(|&index| cached(&chunks[index])).collect();
        pieces.insert(pieces.len() / 2, fresh(&[11, 12]));
        pieces.push(fresh(&[9, 8]));
        let (context, usage) = blend(model, &pieces, &Repair::All);
        assert_eq!(
            context.logits(),
            cold(model, &pieces),
            "with all rows repaired, chunks {order:?} are a cold prompt"
        );
        assert_eq!(usage.repaired, usage.cached, "and all rows were repaired");
    }
}

fn a_budget_of_rows_is_kept(model: &impl Model) {
    let chunks = memories(model);
    let pieces = [fresh(&prefix()), cached(&chunks[0]), cached(&chunks[2]), cached(&chunks[1]), fresh(&[9, 8])];
    let (_, cold) = blend(model, &pieces, &Repair::None);
    assert_eq!((cold.repaired, cold.work_choosing, cold.work_repairing), (0, 0, 0), "no repair is no work");
    for rows in [0, 1, 5, 1000] {
        let (_, usage) = blend(model, &pieces, &Repair::Weighted { budget: Budget::Rows(rows), layers: 0..0 });
        assert!(usage.repaired <= rows.min(22), "no more rows are repaired than were allowed, and no exact one");
    }
    for budget in [Budget::Ratio(1.5), Budget::Ratio(f32::NAN), Budget::Mass(-0.1)] {
        let refused = model.blend(&pieces, &Repair::Weighted { budget, layers: 0..0 });
        assert!(matches!(refused, Err(Error::BadValue { .. })), "{budget:?} makes no sense");
    }
}

fn a_refused_call_changes_nothing(model: &impl Model) {
    let chunks = memories(model);
    let (mut context, _) = blend(model, &[cached(&chunks[1]), fresh(&[9, 8])], &Repair::None);
    let (mut untouched, _) = blend(model, &[cached(&chunks[1]), fresh(&[9, 8])], &Repair::None);
    let nonsense = Repair::Weighted { budget: Budget::Ratio(7.0), layers: 0..0 };
    let too_long = fresh(&text(1, model.info().context as u32));
    let unknown = fresh(&[model.info().vocabulary as Token]);
    let chunk = || cached(&chunks[0]);
    let mut refused = |pieces: &[Piece], repair: &Repair| -> Result<Usage> { context.extend(pieces, repair) };
    let error = refused(&[chunk(), too_long], &Repair::None);
    assert!(matches!(error, Err(Error::TooLong { .. })), "more than a context holds is refused");
    let error = refused(&[chunk(), unknown], &Repair::None);
    assert!(matches!(error, Err(Error::BadValue { .. })), "a token that is not in the vocabulary is refused");
    let error = refused(&[chunk()], &nonsense);
    assert!(matches!(error, Err(Error::BadValue { .. })), "a repair without sense is refused");
    let error = refused(&[chunk(), of_another_shape(&chunks[0])], &Repair::None);
    assert!(matches!(error, Err(Error::WrongKv { .. })), "a chunk of another shape is refused");
    assert_eq!(context.tokens(), untouched.tokens(), "a refused call adds no tokens");
    assert_eq!(context.logits(), untouched.logits(), "a refused call leaves the logits");
    for context in [&mut context, &mut untouched] {
        context.extend(&[fresh(&[3])], &Repair::All).unwrap();
    }
    assert_eq!(context.logits(), untouched.logits(), "a refused call leaves no trace");
}

fn of_another_shape(chunk: &KvChunk) -> Piece {
    let mut shape = *chunk.shape();
    shape.layers += 1;
    let data = Arc::new(vec![0u8; shape.bytes(chunk.tokens().len())]);
    Piece::Cached(KvChunk::new(chunk.id(), chunk.prefix(), shape, Arc::clone(chunk.tokens()), data).unwrap())
}

fn contexts_know_nothing_of_each_other(model: &impl Model) {
    let (question, other) = ([fresh(&[9, 8])], [fresh(&[3, 2, 1])]);
    let alone = cold(model, &question);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut first = model.open().unwrap();
                let mut second = model.open().unwrap();
                second.extend(&other, &Repair::None).unwrap();
                first.extend(&question, &Repair::None).unwrap();
                assert_eq!(first.logits(), alone, "contexts know nothing of each other");
            });
        }
    });
}
