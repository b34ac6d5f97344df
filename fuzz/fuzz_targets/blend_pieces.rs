//! Any pieces under any repair, in any order and with cuts in between, extend a context or leave it as it was; and where
//! everything was repaired, the logits are a cold prefill's, bit for bit.
#![no_main]

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use amem_core::transformer::{Options, Transformer};
use amem_core::{Budget, Context, Dtype, Encoding, HostKv, KvChunk, KvShape, Model, Piece, Repair, Token};
use amem_cpu::Cpu;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

/// Few enough that it is often full.
const CONTEXT: usize = 96;

struct Fixture {
    model: Transformer<Cpu>,
    /// The prefix, memories behind it with and without sensitivity, and one of another model.
    chunks: Vec<KvChunk>,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let mut options = Options::default();
    options.context = Some(CONTEXT);
    let backend = Cpu::with_threads(1).expect("a thread can be started");
    let model = Transformer::load(&amem_demo::files(), backend, options).expect("the demo model loads");
    let layout = model.chat().layout(amem_demo::SYSTEM).expect("its template has a system line");
    let texts = ["Anna has a dog named Rex.", "He", "Peter enjoys chess. His friend is Carl.", "Carl lives in Oslo."];
    let texts = texts.map(|text| layout.memory(&model.chat().encode(text).expect("text can be encoded")));
    let prefill = |prefix: &[Token], texts: &[Arc<[Token]>], measure| {
        model
            .prefill(prefix, &model.info().prefill_texts("fuzz", prefix, texts), measure)
            .expect("the texts fit into a context")
            .0
    };
    let head = prefill(&[], &[Arc::clone(&layout.prefix)], false);
    let measured = prefill(&layout.prefix, &texts[..3], true);
    let bare = prefill(&layout.prefix, &texts[3..], false);
    let foreign = foreign(&bare[0]);
    Fixture { chunks: [head, measured, bare, vec![foreign]].concat(), model }
});

/// The chunk as another model would have it.
fn foreign(chunk: &KvChunk) -> KvChunk {
    let (shape, encoding) = (KvShape { layers: 1, kv_heads: 1, head_dim: 2 }, Encoding::Plain(Dtype::Bf16));
    let data = HostKv::new(encoding, 1, vec![0u8; encoding.bytes(&shape, chunk.tokens().len())]);
    KvChunk::new(chunk.id(), chunk.prefix(), shape, Arc::clone(chunk.tokens()), Arc::new(data)).expect("the bytes fit")
}

#[derive(Arbitrary, Debug)]
enum Step {
    Extend(Vec<Part>, Mending),
    Truncate(u8),
}

#[derive(Arbitrary, Debug)]
enum Part {
    Cached(u8),
    /// A few ids are outside the vocabulary.
    Fresh(Vec<u16>),
}

#[derive(Arbitrary, Debug, PartialEq)]
enum Mending {
    None,
    FirstRows(usize),
    Deviation(f32, usize),
    Attention(Amount, Range<usize>),
    Weighted(Amount, Range<usize>),
    Default,
    All,
}

#[derive(Arbitrary, Debug, PartialEq)]
enum Amount {
    Ratio(f32),
    Percent(u8),
    Mass(f32),
    Rows(usize),
}

impl Part {
    fn piece(&self, chunks: &[KvChunk]) -> Piece {
        match self {
            Part::Cached(index) => Piece::Cached(chunks[*index as usize % chunks.len()].clone()),
            Part::Fresh(tokens) => Piece::Fresh(tokens.iter().map(|token| Token::from(token % 1540)).collect()),
        }
    }
}

impl Mending {
    fn repair(&self) -> Repair {
        match self {
            Mending::None => Repair::None,
            Mending::FirstRows(count) => Repair::FirstRows(*count),
            Mending::Deviation(ratio, check_layer) => Repair::Deviation { ratio: *ratio, check_layer: *check_layer },
            Mending::Attention(amount, layers) => Repair::Attention { budget: amount.budget(), layers: layers.clone() },
            Mending::Weighted(amount, layers) => Repair::Weighted { budget: amount.budget(), layers: layers.clone() },
            Mending::Default => Repair::default(),
            Mending::All => Repair::All,
        }
    }
}

impl Amount {
    fn budget(&self) -> Budget {
        match self {
            Amount::Ratio(ratio) => Budget::Ratio(*ratio),
            Amount::Percent(percent) => Budget::Ratio(f32::from(percent % 101) / 100.0),
            Amount::Mass(mass) => Budget::Mass(*mass),
            Amount::Rows(rows) => Budget::Rows(*rows),
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let Fixture { model, chunks } = &*FIXTURE;
    let mut context = model.open(0).expect("a context can be opened");
    let mut all_repaired = true;
    for step in steps.iter().take(8) {
        match step {
            Step::Truncate(len) => context.truncate(*len as usize),
            Step::Extend(parts, mending) => {
                let pieces: Vec<Piece> = parts.iter().take(8).map(|part| part.piece(chunks)).collect();
                let done = extend(model, &mut *context, &pieces, &mending.repair());
                all_repaired &= !done || *mending == Mending::All;
            }
        }
    }
    if all_repaired && !context.logits().is_empty() {
        let tokens = context.tokens();
        let cold = model.score(tokens).expect("what a context holds can be computed");
        assert_eq!(context.logits(), &cold[cold.len() - context.logits().len()..], "not what a cold prefill gives");
    }
});

/// Extends the context, and holds it to what it promises; returns whether it did.
fn extend(model: &dyn Model, context: &mut dyn Context, pieces: &[Piece], repair: &Repair) -> bool {
    let (before, logits) = (context.tokens().to_vec(), context.logits().to_vec());
    match model.extend(context, pieces, repair) {
        Err(_) => {
            assert_eq!((context.tokens(), context.logits()), (&*before, &*logits), "an error changed the context");
            false
        }
        Ok(usage) => {
            let new: Vec<Token> = pieces.iter().flat_map(|piece| piece.tokens().iter().copied()).collect();
            assert_eq!(context.tokens(), [before.as_slice(), &new].concat());
            assert_eq!(usage.resident, before.len());
            assert_eq!(usage.cached + usage.prefilled, new.len());
            assert!(usage.repaired <= usage.resident + usage.cached);
            let asked = matches!(pieces.last(), Some(Piece::Fresh(tokens)) if !tokens.is_empty());
            assert_eq!(!context.logits().is_empty(), asked);
            true
        }
    }
}
