//! What every [`Model`] promises.

use std::borrow::Cow;
use std::sync::Arc;

use crate::{
    AppendOptions, Budget, Context, Dtype, Encoding, Error, Exactness, Fingerprint, HostKv, KvChunk, KvData, Model,
    Piece, PrefixId, Progress, Repair, Reservation, Result, Sampler, Sampling, Step, Token, TokenMask, Usage,
};

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
    no_context_holds_more_than_the_model_says(model);
    a_full_kv_cache_has_room_again_once_contexts_end(model);
    an_empty_context_has_nothing(model);
    tokens_stand_in_the_order_of_their_pieces(model);
    logits_are_those_after_a_fresh_last_piece(model);
    a_context_goes_on_where_it_ended(model);
    a_chunk_in_its_own_place_is_exact(model);
    repair_of_all_rows_is_a_cold_prefill(model);
    a_budget_of_rows_is_kept(model);
    a_refused_call_changes_nothing(model);
    a_damaged_chunk_concerns_its_context_alone(model);
    contexts_know_nothing_of_each_other(model);
    contexts_in_one_pass_are_as_alone(model);
    a_fork_shares_what_stood_and_goes_its_own_way(model);
    what_is_not_computed_can_be_given_up(model);
    logits_of_several_rows_are_those_of_each(model);
    a_chunk_of_another_model_is_refused(model);
    tokens_are_drawn_from_the_logits(model);
    texts_that_are_prefilled_in_runs_have_the_same_chunks(model);
}

/// The chunks of texts of an owner, and what they took.
fn prefill(
    model: &dyn Model,
    owner: &str,
    prefix: &[Token],
    texts: &[Arc<[Token]>],
    measure: bool,
) -> Result<(Vec<KvChunk>, Usage)> {
    model.prefill(prefix, &model.info().prefill_texts(owner, prefix, texts), measure)
}

/// Asserts that two chunks hold the same KV, as exactly as the model promises.
fn assert_same_kv(model: &dyn Model, found: &KvChunk, expected: &KvChunk, promise: &str) {
    if model.info().exactness == Exactness::Bits {
        assert!(found.to_bytes().unwrap() == expected.to_bytes().unwrap(), "{promise}");
        return;
    }
    let numbers = |chunk: &KvChunk| {
        let shape = *chunk.shape();
        let (mut all, mut head) = (Vec::new(), vec![0.0; shape.head_dim]);
        for layer in 0..shape.layers {
            let kv = chunk.layer(layer).expect("a chunk's layers can be read");
            for (token, at) in
                (0..chunk.tokens().len()).flat_map(|token| (0..shape.kv_heads).map(move |at| (token, at)))
            {
                kv.key(token, at, &mut head);
                all.extend_from_slice(&head);
                kv.value(token, at, &mut head);
                all.extend_from_slice(&head);
            }
        }
        all
    };
    // Numbers that hardly differ may be rounded to neighbours.
    let step = match model.info().dtype {
        Dtype::F16 => 1.0 / 1024.0,
        Dtype::Bf16 => 1.0 / 128.0,
        _ => 0.0,
    };
    assert_near(model, &numbers(found), &numbers(expected), step, promise);
}

/// Asserts that numbers are the same, as exactly as the model promises.
fn assert_same(model: &dyn Model, found: &[f32], expected: &[f32], promise: &str) {
    assert_near(model, found, expected, 0.0, promise);
}

/// The same, but for so many times the number where the model does not promise equal bits.
fn assert_near(model: &dyn Model, found: &[f32], expected: &[f32], step: f32, promise: &str) {
    assert_eq!(found.len(), expected.len(), "{promise}");
    for (a, b) in found.iter().zip(expected) {
        let same = match model.info().exactness {
            Exactness::Within(tolerance) => (a - b).abs() <= tolerance * (1.0 + b.abs()) + step * b.abs(),
            _ => a.to_bits() == b.to_bits(),
        };
        assert!(same, "{promise}: {a} instead of {b}");
    }
}

fn text(first: Token, len: u32) -> Arc<[Token]> {
    (0..len).map(|index| 1 + (first + 7 * index) % 60).collect()
}

fn prefix() -> Arc<[Token]> {
    text(50, 3)
}

fn memories(model: &impl Model) -> Vec<KvChunk> {
    let texts = [text(1, 1), text(2, 5), text(3, 17)];
    prefill(model, "ours", &prefix(), &texts, true).expect("texts are prefilled").0
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

/// Computes all that was appended, so many rows at a time.
fn compute(model: &impl Model, context: &mut dyn Context, max_rows: usize) {
    for _ in 0..=2 * model.info().context {
        if let Progress::Done(_) = model.advance(&mut [Step { context, max_rows }]).remove(0).expect("it is computed") {
            return;
        }
    }
    panic!("computing ends");
}

/// The logits after the same tokens, computed with nothing at hand.
fn cold(model: &impl Model, pieces: &[Piece]) -> Vec<f32> {
    let tokens: Vec<Token> = pieces.iter().flat_map(|piece| piece.tokens()).copied().collect();
    blend(model, &[fresh(&tokens)], &Repair::None).0.logits().to_vec()
}

fn a_chunk_says_what_it_is(model: &impl Model) {
    let (info, texts) = (model.info(), [text(1, 4), text(2, 9)]);
    let (bare, usage) = prefill(model, "ours", &prefix(), &texts, false).expect("texts are prefilled");
    let (measured, twice) = prefill(model, "ours", &prefix(), &texts, true).expect("texts are prefilled and measured");
    assert_eq!(bare.len(), texts.len(), "each text has a chunk");
    for (chunk, text) in bare.iter().zip(&texts) {
        assert_eq!(chunk.tokens(), text, "chunks come in the order of their texts");
        assert_eq!(chunk.shape(), &info.shape, "a chunk has the shape that the model says");
        assert_eq!(chunk.prefix(), PrefixId::of(&prefix()), "a chunk knows what it was computed behind");
        assert_eq!(chunk.id(), info.chunk_id("ours", &chunk.prefix(), text), "a chunk has the id that the model says");
        assert_eq!(chunk.model(), Some(info.fingerprint), "a chunk knows the model that computed it");
        assert!(chunk.sensitivity().is_none(), "what was not to be measured is not");
    }
    assert!(measured.iter().all(|chunk| chunk.sensitivity().is_some()), "what was to be measured is");
    for (measured, bare) in measured.iter().zip(&bare) {
        assert_same_kv(model, measured, bare, "measuring changes no KV");
    }
    assert_eq!(usage.prefilled, 13, "usage counts the tokens of the texts");
    assert!(usage.work_prefilling > 0 && twice.work_prefilling > usage.work_prefilling, "measuring is work");
    let none = prefill(model, "ours", &prefix(), &[], true).expect("no texts may be prefilled");
    assert!(none.0.is_empty() && none.1 == Usage::default(), "no texts have no chunks and cost nothing");
}

fn texts_that_are_prefilled_in_runs_have_the_same_chunks(model: &impl Model) {
    let texts = model.info().prefill_texts("ours", &prefix(), &[text(1, 4), text(2, 9), text(3, 1)]);
    for (measure, max_rows) in [(true, 1), (true, 3), (false, 5), (true, 1000)] {
        let (expected, cost) = model.prefill(&prefix(), &texts, measure).expect("texts are prefilled");
        let mut runs = model.begin_prefill(&prefix(), texts.clone(), measure).expect("texts are begun");
        let mut advanced = (0..100).map(|_| runs.advance(max_rows).expect("a run is computed"));
        let (found, usage) = advanced.find_map(|done| done).expect("texts are complete after some runs");
        assert_eq!(usage, cost, "runs cost what prefilling at once does");
        assert_eq!(found.len(), expected.len(), "each text that is prefilled in runs has a chunk");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.id(), expected.id(), "chunks of runs come in the order of their texts");
            assert_same_kv(model, found, expected, "a text's KV does not depend on runs");
            let sensitivity =
                [found, expected].map(|chunk| chunk.sensitivity().map(|all| all.to_vec()).unwrap_or_default());
            assert_same(model, &sensitivity[0], &sensitivity[1], "nor does its sensitivity");
        }
    }
    let unknown: [Arc<[Token]>; 1] = [[model.info().vocabulary as Token].into()];
    let unknown = model.info().prefill_texts("ours", &prefix(), &unknown);
    let refused = model.begin_prefill(&prefix(), unknown, false).and_then(|mut runs| runs.advance(1)).err();
    assert!(
        matches!(refused, Some(Error::BadValue { .. })),
        "a token that is not in the vocabulary is refused in runs"
    );
}

fn ids_are_stable_and_namespaces_share_none(model: &impl Model, other: &impl Model) {
    let id = |model: &dyn Model, owner: &str, prefix: &[Token], text: Arc<[Token]>| {
        prefill(model, owner, prefix, &[text], false).expect("a text is prefilled").0.remove(0).id()
    };
    let first = id(model, "ours", &prefix(), text(1, 4));
    assert_eq!(first, id(model, "ours", &prefix(), text(1, 4)), "the same text has the same id");
    assert_eq!(first, id(other, "ours", &prefix(), text(1, 4)), "an id outlives the model that gave it");
    assert_ne!(first, id(model, "theirs", &prefix(), text(1, 4)), "namespaces share no ids");
    assert_ne!(first, id(model, "ours", &[], text(1, 4)), "what a chunk was computed behind is part of its id");
    assert_ne!(first, id(model, "ours", &prefix(), text(2, 4)), "another text has another id");
}

fn a_chunk_is_the_same_alone_and_among_others(model: &impl Model) {
    for chunk in memories(model) {
        let alone = prefill(model, "ours", &prefix(), &[Arc::clone(chunk.tokens())], true).unwrap().0.remove(0);
        assert_same_kv(model, &alone, &chunk, "what is computed beside a text does not touch its KV");
        let (ours, theirs) =
            (alone.sensitivity().expect("it is measured"), chunk.sensitivity().expect("it is measured"));
        assert_same(model, ours, theirs, "nor its sensitivity");
    }
}

fn texts_that_no_context_can_hold_are_refused(model: &impl Model) {
    let with = |text: Arc<[Token]>| prefill(model, "ours", &prefix(), &[self::text(1, 2), text], false);
    assert!(matches!(with([].into()), Err(Error::Empty { .. })), "a text without tokens is refused");
    let room = model.info().context - prefix().len();
    with(text(1, room as u32)).expect("a text may fill a context behind the prefix");
    let error = with(text(1, room as u32 + 1));
    assert!(matches!(error, Err(Error::TooLong { .. })), "one token more is refused");
    let unknown = with([model.info().vocabulary as Token].into());
    assert!(matches!(unknown, Err(Error::BadValue { .. })), "a token that is not in the vocabulary is refused");
}

fn no_context_holds_more_than_the_model_says(model: &impl Model) {
    let most = model.info().context;
    let opened = model.open(most + 1).map(drop);
    assert!(matches!(opened, Err(Error::TooLong { .. })), "no context is opened for more than one may hold");
    let mut context = model.open(0).expect("a context is opened");
    let reserved = context.reserve(Reservation::new(most + 1));
    assert!(matches!(reserved, Err(Error::TooLong { .. })), "no room is reserved for more than a context may hold");
}

fn a_full_kv_cache_has_room_again_once_contexts_end(model: &impl Model) {
    let most = model.info().context;
    let mut open = Vec::new();
    let full = loop {
        match model.open(most) {
            // Of a larger one nobody wants to see the end.
            Ok(_) if open.len() == 10_000 => return,
            Ok(context) => open.push(context),
            Err(error) => break error,
        }
    };
    assert!(!open.is_empty(), "one full context has room");
    assert!(full.lacks_room_for_now(), "a full KV cache says that it would have room if contexts ended: {full}");
    drop(open.pop());
    let mut context = model.open(0).expect("an empty context takes no room");
    let with_a_fork = context.reserve(Reservation { tokens: most, forks: 1, forked_at: 0 });
    assert!(matches!(with_a_fork, Err(Error::KvCacheFull { .. })), "forks count where room is reserved for them");
    assert_eq!(context.bytes(), 0, "a reservation that has no room takes none");
    context.reserve(Reservation::new(most)).expect("without a fork there is room");
    drop((open, context));
    model.open(most).expect("the room of contexts that ended comes back");
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
    let usage = model.extend(&mut *context, &[fresh(&[6])], &Repair::None).unwrap();
    assert_eq!((usage.resident, usage.cached, usage.prefilled), (38, 0, 1), "usage counts what stood there");
}

fn logits_are_those_after_a_fresh_last_piece(model: &impl Model) {
    let chunks = memories(model);
    let (mut context, _) = blend(model, &[fresh(&[9, 8]), cached(&chunks[1])], &Repair::default());
    assert!(context.logits().is_empty(), "behind a cached piece there are no logits");
    model.extend(&mut *context, &[fresh(&[9])], &Repair::default()).unwrap();
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
    let mut context = model.open(0).expect("a context is opened");
    for token in tokens.iter() {
        model.extend(&mut *context, &[fresh(&[*token])], &Repair::None).unwrap();
    }
    assert_same(model, context.logits(), &whole, "token by token comes to the same as all at once");
    model.extend(&mut *context, &[fresh(&[1, 2, 3])], &Repair::None).unwrap();
    context.truncate(tokens.len() - 1);
    model.extend(&mut *context, &[fresh(&tokens[tokens.len() - 1..])], &Repair::None).unwrap();
    assert_same(model, context.logits(), &whole, "what was cut off leaves no trace");
}

fn a_chunk_in_its_own_place_is_exact(model: &impl Model) {
    for chunk in memories(model) {
        let pieces = [fresh(&prefix()), cached(&chunk), fresh(&[9, 8])];
        let (context, _) = blend(model, &pieces, &Repair::None);
        assert_same(model, context.logits(), &cold(model, &pieces), "a chunk behind its prefix is exact as it is");
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
        let promise = format!("with all rows repaired, chunks {order:?} are a cold prompt");
        assert_same(model, context.logits(), &cold(model, &pieces), &promise);
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
        assert_eq!(usage.repaired, rows.min(22), "as many rows are repaired as were allowed, and no exact one");
    }
    for budget in [Budget::Ratio(1.5), Budget::Ratio(f32::NAN), Budget::Mass(-0.1)] {
        let refused = model.blend(&pieces, &Repair::Weighted { budget, layers: 0..0 });
        assert!(matches!(refused, Err(Error::BadValue { .. })), "{budget:?} makes no sense");
    }
    // Of the first chunk, which stands where it was computed, all rows are exact.
    for (repair, rows) in [
        (Repair::FirstRows(2), 4),
        (Repair::Attention { budget: Budget::Rows(5), layers: 0..1 }, 5),
        (Repair::Weighted { budget: Budget::Ratio(0.1), layers: 1..2 }, 2),
    ] {
        let (_, usage) = blend(model, &pieces, &repair);
        assert_eq!(usage.repaired, rows, "{repair:?} repairs the rows that it names");
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
    let mut refused =
        |pieces: &[Piece], repair: &Repair| -> Result<Usage> { model.extend(&mut *context, pieces, repair) };
    let error = refused(&[chunk(), too_long], &Repair::None);
    assert!(matches!(error, Err(Error::TooLong { .. })), "more than a context holds is refused");
    let error = refused(&[chunk(), unknown], &Repair::None);
    assert!(matches!(error, Err(Error::BadValue { .. })), "a token that is not in the vocabulary is refused");
    let error = refused(&[chunk()], &nonsense);
    assert!(matches!(error, Err(Error::BadValue { .. })), "a repair without sense is refused");
    let error = refused(&[chunk(), of_another_shape(&chunks[0])], &Repair::None);
    assert!(matches!(error, Err(Error::WrongKv { .. })), "a chunk of another shape is refused");
    assert_eq!(context.tokens(), untouched.tokens(), "a refused call adds no tokens");
    assert_same(model, context.logits(), untouched.logits(), "a refused call leaves the logits");
    for context in [&mut context, &mut untouched] {
        model.extend(&mut **context, &[fresh(&[3])], &Repair::All).unwrap();
    }
    assert_same(model, context.logits(), untouched.logits(), "a refused call leaves no trace");
}

/// Damage may be noticed when a chunk is appended, or only when it is computed with.
fn a_damaged_chunk_concerns_its_context_alone(model: &impl Model) {
    let chunks = memories(model);
    let stood = [cached(&chunks[1]), fresh(&[9, 8])];
    let behind = [cached(&chunks[2]), fresh(&[5, 6])];
    let [mut broken, mut sound, mut alone] = [(); 3].map(|()| blend(model, &stood, &Repair::None).0);
    let usage = model.extend(&mut *alone, &behind, &Repair::None).unwrap();
    let options = AppendOptions::new(Repair::None);
    sound.append(&behind, &options).expect("sound chunks are appended");
    let appended = broken.append(&[elsewhere(&chunks[0]), damaged(&chunks[2]), fresh(&[5, 6])], &options);
    let (mut refused, mut computed) = (appended.err(), None);
    while refused.is_none() || computed.is_none() {
        let contexts = [(&mut broken, refused.is_none()), (&mut sound, computed.is_none())];
        let going = contexts.map(|(context, is_on)| is_on.then_some(context)).into_iter().flatten();
        let mut steps: Vec<Step<'_>> = going.map(|context| Step { context: &mut **context, max_rows: 1000 }).collect();
        let mut results = model.advance(&mut steps).into_iter();
        if refused.is_none() {
            match results.next().expect("each step has a result") {
                Err(error) => refused = Some(error),
                Ok(Progress::Pending) => {}
                Ok(Progress::Done(_)) => panic!("a chunk that cannot be read is refused"),
            }
        }
        if computed.is_none()
            && let Progress::Done(usage) = results.next().expect("each step has a result").expect("it is not damaged")
        {
            computed = Some(usage);
        }
    }
    assert!(matches!(refused, Some(Error::DamagedKv { .. })), "damage is called so");
    assert_eq!(computed, Some(usage), "beside a damaged chunk as much is computed as without");
    assert_same(model, sound.logits(), alone.logits(), "a damaged chunk of another context changes nothing");
    assert!(broken.is_usable(), "a context breaks only where rows that stood were written");
    assert_eq!(broken.tokens(), [&**chunks[1].tokens(), &[9, 8]].concat(), "of what was refused no tokens stand");
    model.extend(&mut *broken, &behind, &Repair::None).unwrap();
    assert_same(model, broken.logits(), alone.logits(), "damage leaves no trace");
    // Where rows that stood are repaired in the same pass, they are as any repair leaves them.
    let [mut repaired, mut straight] = [(); 2].map(|()| blend(model, &stood, &Repair::None).0);
    let damage = model.extend(&mut *repaired, &[damaged(&chunks[2]), fresh(&[5, 6])], &Repair::All);
    assert!(matches!(damage, Err(Error::DamagedKv { .. })) && repaired.is_usable(), "damage breaks no context");
    for context in [&mut repaired, &mut straight] {
        model.extend(&mut **context, &behind, &Repair::All).unwrap();
    }
    assert_same(model, repaired.logits(), straight.logits(), "what was repaired beside a damaged chunk is repaired");
}

fn of_another_shape(chunk: &KvChunk) -> Piece {
    let mut shape = *chunk.shape();
    shape.layers += 1;
    let bytes = vec![0u8; chunk.encoding().bytes(&shape, chunk.tokens().len())];
    let data = Arc::new(HostKv::new(chunk.encoding(), shape.layers, bytes));
    Piece::Cached(KvChunk::new(chunk.id(), chunk.prefix(), shape, Arc::clone(chunk.tokens()), data).unwrap())
}

/// KV that is read layer by layer. The last layer may be one that cannot be read.
struct Elsewhere {
    chunk: KvChunk,
    is_damaged: bool,
}

impl KvData for Elsewhere {
    fn encoding(&self) -> Encoding {
        self.chunk.encoding()
    }

    fn size(&self) -> usize {
        self.chunk.size()
    }

    fn layer(&self, layer: usize) -> Result<Cow<'_, [u8]>> {
        if self.is_damaged && layer + 1 == self.chunk.shape().layers {
            return Err(Error::DamagedKv { chunk: self.chunk.id(), reason: "a test says so".to_owned() });
        }
        self.chunk.data().layer(layer)
    }
}

fn elsewhere(chunk: &KvChunk) -> Piece {
    Piece::Cached(chunk.clone().with_data(Arc::new(Elsewhere { chunk: chunk.clone(), is_damaged: false })).unwrap())
}

fn read_by_layers(piece: &Piece) -> Piece {
    match piece {
        Piece::Cached(chunk) => elsewhere(chunk),
        Piece::Fresh(_) => piece.clone(),
    }
}

fn damaged(chunk: &KvChunk) -> Piece {
    Piece::Cached(chunk.clone().with_data(Arc::new(Elsewhere { chunk: chunk.clone(), is_damaged: true })).unwrap())
}

/// Contexts that begin and end at different times, with different repairs, in one pass after the other.
fn contexts_in_one_pass_are_as_alone(model: &impl Model) {
    let chunks = memories(model);
    let weighted = |layers| Repair::Weighted { budget: Budget::Rows(4), layers };
    let prompts: Vec<(Vec<Piece>, Repair)> = vec![
        (vec![fresh(&text(7, 30))], Repair::None),
        (vec![cached(&chunks[2]), cached(&chunks[1]), fresh(&[9, 8])], Repair::None),
        (vec![cached(&chunks[1]), fresh(&[5]), cached(&chunks[2]), fresh(&text(8, 9))], weighted(1..2)),
        (vec![cached(&chunks[2]), cached(&chunks[0]), fresh(&text(9, 5))], weighted(0..0)),
        (vec![cached(&chunks[2]), cached(&chunks[1]), fresh(&text(6, 5))], Repair::All),
        (vec![cached(&chunks[2]), cached(&chunks[1])], Repair::All),
        (vec![fresh(&[4])], Repair::default()),
    ];
    let alone: Vec<(Box<dyn Context>, Usage)> =
        prompts.iter().map(|(pieces, repair)| blend(model, pieces, repair)).collect();
    for max_rows in [1, 3, 1000] {
        let mut contexts: Vec<Box<dyn Context>> = prompts.iter().map(|_| model.open(0).unwrap()).collect();
        let mut usages: Vec<Option<Usage>> = vec![None; prompts.len()];
        let mut begun = 0;
        let mut passes = 0;
        while usages.iter().any(Option::is_none) {
            if let Some((pieces, repair)) = prompts.get(begun) {
                // Where chunks lie, and how they are read, changes nothing.
                let pieces: Vec<Piece> = match max_rows {
                    3 => pieces.iter().map(read_by_layers).collect(),
                    _ => pieces.clone(),
                };
                contexts[begun].append(&pieces, &AppendOptions::new(repair.clone())).expect("pieces are appended");
                begun += 1;
            }
            let open = contexts.iter_mut().take(begun).zip(&usages).filter(|(_, usage)| usage.is_none());
            let mut steps: Vec<Step<'_>> =
                open.map(|(context, _)| Step { context: &mut **context, max_rows }).collect();
            assert!(steps.iter().all(|step| step.context.pending() > 0), "what is not computed is pending");
            let results = model.advance(&mut steps);
            assert_eq!(results.len(), steps.len(), "each step has a result");
            passes += 1;
            assert!(passes <= prompts.len() + 2 * model.info().context, "computing ends");
            let running: Vec<usize> = (0..begun).filter(|&index| usages[index].is_none()).collect();
            for (index, result) in running.into_iter().zip(results) {
                if let Progress::Done(usage) = result.expect("a pass is computed") {
                    usages[index] = Some(usage);
                }
            }
        }
        for (index, (context, usage)) in contexts.iter().zip(usages).enumerate() {
            let promise = format!("prompt {index} is the same alone and with others, {max_rows} rows at a time");
            assert_eq!(context.pending(), 0, "what is computed is not pending");
            assert_eq!(context.tokens(), alone[index].0.tokens(), "{promise}");
            assert_same(model, context.logits(), alone[index].0.logits(), &promise);
            assert_eq!(usage, Some(alone[index].1), "{promise}");
        }
    }
}

fn a_fork_shares_what_stood_and_goes_its_own_way(model: &impl Model) {
    let chunks = memories(model);
    let pieces = [cached(&chunks[2]), cached(&chunks[1]), fresh(&[9, 8])];
    let straight = |more: &[Piece], repair: &Repair| {
        let (mut context, _) = blend(model, &pieces, &Repair::None);
        model.extend(&mut *context, more, repair).unwrap();
        context.logits().to_vec()
    };
    let (mut context, _) = blend(model, &pieces, &Repair::None);
    let mut fork = context.fork().expect("a context is forked");
    assert_eq!(fork.tokens(), context.tokens(), "a fork begins with the same tokens");
    assert_same(model, fork.logits(), context.logits(), "a fork begins with the same logits");
    // Both write, the fork over rows that stood before it was forked.
    let (one, other) = ([fresh(&[3, 4])], [cached(&chunks[0]), fresh(&[5])]);
    model.extend(&mut *fork, &other, &Repair::All).unwrap();
    model.extend(&mut *context, &one, &Repair::None).unwrap();
    assert_same(model, fork.logits(), &straight(&other, &Repair::All), "a fork goes its own way");
    assert_same(model, context.logits(), &straight(&one, &Repair::None), "the forked context knows nothing of it");
    drop(context);
    let mut second = fork.fork().expect("a fork is forked");
    model.extend(&mut *second, &one, &Repair::None).unwrap();
    model.extend(&mut *fork, &one, &Repair::None).unwrap();
    assert_same(model, fork.logits(), second.logits(), "forks of the same context go the same way");
    let (mut straight, _) = blend(model, &pieces, &Repair::None);
    model.extend(&mut *straight, &other, &Repair::All).unwrap();
    model.extend(&mut *straight, &one, &Repair::None).unwrap();
    assert_same(model, fork.logits(), straight.logits(), "a fork knows nothing of what it was forked from");
}

fn what_is_not_computed_can_be_given_up(model: &impl Model) {
    let chunks = memories(model);
    let (mut context, _) = blend(model, &[cached(&chunks[1]), fresh(&[9, 8])], &Repair::None);
    let len = context.tokens().len();
    context.append(&[cached(&chunks[2]), fresh(&text(3, 20))], &AppendOptions::new(Repair::All)).unwrap();
    let again = context.append(&[fresh(&[1])], &AppendOptions::new(Repair::None));
    assert!(matches!(again, Err(Error::BadValue { .. })), "what was appended has to be computed first");
    assert!(context.fork().is_err(), "a context that is not complete cannot be forked");
    let mut steps = [Step { context: &mut *context, max_rows: 2 }];
    assert!(
        matches!(model.advance(&mut steps).remove(0), Ok(Progress::Pending)),
        "20 rows are not done in one step of 2"
    );
    context.truncate(len + 5);
    assert_eq!((context.tokens().len(), context.pending()), (len, 0), "nothing stays of what was not computed");
    assert!(context.logits().is_empty(), "what was given up has no logits, nor has what stood before it");
    context.reserve(Reservation::new(len + 8)).expect("there is room for some tokens");
    context.release();
    assert!(context.bytes() > 0 && context.is_usable(), "a context that holds tokens holds memory, and can go on");
    let (mut straight, _) = blend(model, &[cached(&chunks[1]), fresh(&[9, 8])], &Repair::None);
    // Nothing was repaired of what stood, so both are equally far from a cold prompt.
    for context in [&mut context, &mut straight] {
        model.extend(&mut **context, &[fresh(&[6, 7])], &Repair::None).unwrap();
    }
    assert_eq!(context.tokens(), straight.tokens(), "what was given up leaves no token");
}

fn logits_of_several_rows_are_those_of_each(model: &impl Model) {
    let tokens = text(4, 12);
    let mut context = model.open(0).unwrap();
    context.append(&[fresh(&tokens)], &AppendOptions::new(Repair::None).logits(5)).unwrap();
    compute(model, &mut *context, 3);
    let expected: Vec<f32> = (8..=12).flat_map(|len| cold(model, &[fresh(&tokens[..len])])).collect();
    assert_same(model, context.logits(), &expected, "the logits of the last five rows are those of five prompts");
    let logits = |pieces: &[Piece], rows: usize| {
        let mut context = model.open(0).unwrap();
        context.append(pieces, &AppendOptions::new(Repair::None).logits(rows)).unwrap();
        compute(model, &mut *context, 1000);
        context.logits().to_vec()
    };
    assert!(logits(&[fresh(&tokens)], 0).is_empty(), "there are no logits where none are asked for");
    let of_two = logits(&[fresh(&tokens[..10]), fresh(&tokens[10..])], 5);
    assert_eq!(of_two.len(), 2 * model.info().vocabulary, "there are no more logits than the last piece has tokens");
    assert_same(model, &of_two, &expected[3 * model.info().vocabulary..], "and they are those of its tokens");
}

fn tokens_are_drawn_from_the_logits(model: &impl Model) {
    let vocabulary = model.info().vocabulary;
    let (context, _) = blend(model, &[fresh(&text(1, 9))], &Repair::None);
    for temperature in [0.0, 1.0] {
        let sampling = Sampling { temperature, ..Sampling::default() };
        let (mut ours, mut theirs) = (Sampler::new(&sampling).unwrap(), Sampler::new(&sampling).unwrap());
        for _ in 0..20 {
            let found = model.sample(&*context, &mut ours, None).expect("a token is drawn");
            if model.info().exactness == Exactness::Bits {
                let expected = theirs.pick(context.logits(), context.tokens()).unwrap();
                assert_eq!(found, expected, "a token is drawn as a sampler draws it from the logits");
            }
            assert!((found as usize) < vocabulary, "a token of the vocabulary is drawn");
        }
        let mut some = TokenMask::new(vocabulary);
        (0..vocabulary as Token).step_by(7).for_each(|token| some.insert(token));
        for _ in 0..20 {
            let found = model.sample(&*context, &mut ours, Some(&some)).expect("a token is drawn");
            assert!(some.contains(found), "only tokens that are allowed are drawn");
        }
    }
    let mut of_three = model.open(0).unwrap();
    of_three.append(&[fresh(&text(1, 9))], &AppendOptions::new(Repair::None).logits(3)).unwrap();
    compute(model, &mut *of_three, 1000);
    if model.info().exactness == Exactness::Bits {
        let draw = |context: &dyn Context| {
            let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
            let mut sampler = Sampler::new(&sampling).unwrap();
            [(); 20].map(|()| model.sample(context, &mut sampler, None).expect("a token is drawn"))
        };
        assert_eq!(draw(&*of_three), draw(&*context), "a token follows the last one, however many have logits");
    }
}

fn a_chunk_of_another_model_is_refused(model: &impl Model) {
    let chunk = memories(model).remove(1);
    let other = chunk.clone().with_model(Fingerprint([0xee; 32]));
    let refused = model.blend(&[cached(&other)], &Repair::None);
    assert!(matches!(refused.map(drop), Err(Error::WrongKv { .. })), "a chunk of another model is refused");
    // An encoding that loses something is no other chunk, but not exact either.
    let coarse = chunk.encoded_as(Encoding::Int8).unwrap();
    let pieces = [fresh(&prefix()), cached(&coarse), fresh(&[9, 8])];
    let (context, usage) = blend(model, &pieces, &Repair::All);
    assert_eq!(usage.repaired, chunk.tokens().len(), "what its encoding lost can be repaired");
    assert_same(model, context.logits(), &cold(model, &pieces), "and is a cold prompt then");
    let (_, usage) = blend(model, &pieces, &Repair::default());
    assert_eq!(
        usage.repaired, 0,
        "where a chunk stands behind its prefix, repair is not spent on what its encoding lost"
    );
}

fn contexts_know_nothing_of_each_other(model: &impl Model) {
    let (question, other) = ([fresh(&[9, 8])], [fresh(&[3, 2, 1])]);
    let alone = cold(model, &question);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut first = model.open(0).unwrap();
                let mut second = model.open(0).unwrap();
                model.extend(&mut *second, &other, &Repair::None).unwrap();
                model.extend(&mut *first, &question, &Repair::None).unwrap();
                assert_same(model, first.logits(), &alone, "contexts know nothing of each other");
            });
        }
    });
}
