//! Prompts of every make, for tests of what blend promises: models with memories that they have computed, and
//! strategies that draw pieces from them.

use std::sync::{Arc, LazyLock};

use amem_core::transformer::Transformer;
use amem_core::{Context, Dtype, KvChunk, Model, Piece, Repair, Token, Usage};
use amem_cpu::Cpu;
use proptest::prelude::*;

/// What memories are computed behind.
pub const PREFIX: [Token; 4] = [1, 3, 5, 7];

/// A model, and chunks that it computed.
pub struct Subject {
    pub name: String,
    pub model: Transformer<Cpu>,
    /// [`PREFIX`] itself, behind nothing.
    pub prefix: KvChunk,
    /// Of different lengths, each behind [`PREFIX`] alone.
    pub memories: Vec<KvChunk>,
}

/// Every kind of attention, rotation and norm, with every kind of KV.
pub static SUBJECTS: LazyLock<Vec<Subject>> = LazyLock::new(|| {
    let cases = ["llama3", "llama31-rope", "llama-yarn", "mistral-sliding", "qwen2", "qwen3"];
    let kinds = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    let golden = |case, kind| (format!("{case} {kind:?}"), super::golden(case, one_thread(), kind));
    let tiny = cases.into_iter().flat_map(|case| kinds.map(|kind| golden(case, kind)));
    let demo = ("demo".to_owned(), super::demo(one_thread(), Dtype::F16));
    let settings = [
        ("gemma2", Dtype::F16),
        ("gemma3", Dtype::Bf16),
        ("phi3-longrope", Dtype::F16),
        ("smollm3", Dtype::F32),
        ("olmo2", Dtype::Bf16),
        ("granite", Dtype::F16),
        ("mixtral", Dtype::F32),
        ("qwen3-moe", Dtype::F16),
    ];
    let tiny = tiny.chain(settings.map(|(case, kind)| golden(case, kind)));
    tiny.chain([demo]).map(|(name, model)| Subject::new(name, model)).collect()
});

/// The subject of this name.
pub fn subject(name: &str) -> &'static Subject {
    SUBJECTS.iter().find(|subject| subject.name == name).unwrap()
}

fn one_thread() -> Cpu {
    super::exact(None, 1)
}

/// A text of so many tokens that all models know.
pub fn text(seed: u32, tokens: u32) -> Arc<[Token]> {
    (0..tokens).map(|index| (seed * 31 + index * 17) % 90 + 8).collect()
}

/// The chunks of texts, and what they took.
pub fn prefill(model: &dyn Model, prefix: &[Token], texts: &[Arc<[Token]>], measure: bool) -> (Vec<KvChunk>, Usage) {
    model.prefill(prefix, &model.info().prefill_texts("ours", prefix, texts), measure).unwrap()
}

impl Subject {
    fn new(name: String, model: Transformer<Cpu>) -> Self {
        // Single tokens, whole blocks of the cache, and one that is longer than the window of mistral-sliding.
        let texts = [(1, 1), (2, 2), (3, 7), (4, 16), (5, 23)].map(|(seed, tokens)| text(seed, tokens));
        let (memories, _) = prefill(&model, &PREFIX, &texts, true);
        let (mut prefix, _) = prefill(&model, &[], &[PREFIX.into()], false);
        Self { name, prefix: prefix.remove(0), memories, model }
    }

    /// The pieces that some parts stand for.
    pub fn pieces(&self, parts: &[Part]) -> Vec<Piece> {
        let piece = |part: &Part| match part {
            Part::CachedPrefix => Piece::Cached(self.prefix.clone()),
            Part::FreshPrefix => Piece::Fresh(PREFIX.into()),
            Part::Memory(index) => Piece::Cached(self.memories[*index].clone()),
            Part::Fresh(tokens) => Piece::Fresh(tokens.as_slice().into()),
        };
        parts.iter().map(piece).collect()
    }

    /// A context of these pieces.
    pub fn context(&self, pieces: &[Piece], repair: &Repair) -> Box<dyn Context> {
        self.model.blend(pieces, repair).unwrap().0
    }

    /// A context of the same tokens, computed with nothing at hand.
    pub fn cold(&self, pieces: &[Piece]) -> Box<dyn Context> {
        self.context(&[Piece::Fresh(tokens(pieces))], &Repair::None)
    }
}

/// The tokens of some pieces.
pub fn tokens(pieces: &[Piece]) -> Arc<[Token]> {
    pieces.iter().flat_map(|piece| piece.tokens()).copied().collect()
}

/// A context's logits, to the bit.
pub fn bits(context: &dyn Context) -> Vec<u32> {
    context.logits().iter().map(|logit| logit.to_bits()).collect()
}

/// A part of a prompt, of any subject.
#[derive(Clone, Debug)]
pub enum Part {
    CachedPrefix,
    FreshPrefix,
    Memory(usize),
    Fresh(Vec<Token>),
}

/// Any of the subjects.
pub fn any_subject() -> impl Strategy<Value = &'static Subject> {
    (0..SUBJECTS.len()).prop_map(|index| &SUBJECTS[index])
}

/// Any of the subjects whose rows see all that stands before them.
pub fn subject_without_window() -> impl Strategy<Value = &'static Subject> {
    const WINDOWED: [&str; 3] = ["sliding", "gemma", "mixtral"];
    let sees_all = |subject: &&Subject| !WINDOWED.iter().any(|name| subject.name.contains(name));
    any_subject().prop_filter("a subject without a window", sees_all)
}

/// Some tokens, at least one.
pub fn some_tokens() -> impl Strategy<Value = Vec<Token>> {
    prop::collection::vec(8..98 as Token, 1..5)
}

/// Memories in any order, any of them several times or not at all.
pub fn memories() -> impl Strategy<Value = Vec<Part>> {
    prop::collection::vec((0..5usize).prop_map(Part::Memory), 0..5)
}

/// Any parts: with the prefix in front or without, cached and fresh ones in any order.
pub fn parts() -> impl Strategy<Value = Vec<Part>> {
    let head = prop_oneof![Just(vec![]), Just(vec![Part::CachedPrefix]), Just(vec![Part::FreshPrefix])];
    let part = prop_oneof![
        3 => (0..5usize).prop_map(Part::Memory),
        1 => some_tokens().prop_map(Part::Fresh),
        1 => Just(Part::CachedPrefix),
    ];
    (head, prop::collection::vec(part, 0..5)).prop_map(|(head, parts)| [head, parts].concat())
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}
