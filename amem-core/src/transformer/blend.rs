//! A context: cached KV put in place, the rows that need it computed again, fresh tokens on top.

use std::ops::Range;
use std::sync::Arc;

use super::backend::{Backend, Row, Span};
use super::forward::{Graph, Pass, Projection};
use super::select::{self, Candidate};
use crate::{Budget, Context, Error, KvChunk, ModelInfo, Piece, PrefixId, Repair, Result, Token, Usage};

/// A [`Context`] of a [`Transformer`](super::Transformer).
pub(crate) struct Blend<B: Backend> {
    graph: Arc<Graph<B>>,
    info: Arc<ModelInfo>,
    cache: B::Cache,
    tokens: Vec<Token>,
    /// For each token, what its row in the cache is worth.
    standing: Vec<Standing>,
    /// Tokens of cached pieces.
    cached: usize,
    /// So many rows from the start are what a cold prefill would have computed.
    exact: usize,
    logits: Vec<f32>,
    /// A pass failed half way, so the cache holds rows of two minds.
    broken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Standing {
    /// Computed here, or cached and exact here.
    Settled,
    /// Cached, computed behind something else, and not repaired so far.
    Reused { index: u32, sensitivity: f32 },
}

/// What a call put behind what stood.
struct Appended {
    /// The slots that are to be computed.
    fresh: Vec<u32>,
    /// Those from this one on make up the last piece, if that is fresh.
    question: usize,
    /// Tokens of cached pieces.
    cached: usize,
}

impl<B: Backend> Blend<B> {
    pub(crate) fn new(graph: Arc<Graph<B>>, info: Arc<ModelInfo>) -> Result<Self> {
        let cache = graph.backend.cache(&graph.shape)?;
        Ok(Self { graph, info, cache, tokens: vec![], standing: vec![], cached: 0, exact: 0, logits: vec![], broken: false })
    }

    /// Refuses what cannot be put into this context, before anything is touched.
    fn check(&self, pieces: &[Piece], repair: &Repair) -> Result<()> {
        if self.broken {
            return Err(Error::Model("the context broke in an earlier call: open another".into()));
        }
        let (new, limit) = (pieces.iter().map(|piece| piece.tokens().len()).sum::<usize>(), self.info.context);
        if self.tokens.len() + new > limit {
            return Err(Error::TooLong { what: "prompt", tokens: self.tokens.len() + new, limit });
        }
        for piece in pieces {
            check_tokens(piece.tokens(), &self.info)?;
            if let Piece::Cached(chunk) = piece
                && chunk.shape() != &self.info.shape
            {
                let reason = format!("a chunk of {:?} in a context of {:?}", chunk.shape(), self.info.shape);
                return Err(Error::WrongKv { reason });
            }
        }
        select::check(repair, self.info.shape.layers)
    }

    /// Puts a chunk's KV behind what stands.
    fn place(&mut self, chunk: &KvChunk) -> Result<()> {
        let first = self.tokens.len() as u32;
        let count = chunk.tokens().len() as u32;
        let positions: Vec<u32> = (first..first + count).collect();
        self.graph.backend.place(&mut self.cache, first, &self.graph.angles(&positions)?, chunk)?;
        let at_home = self.exact == self.tokens.len() && chunk.prefix() == PrefixId::of(&self.tokens);
        self.tokens.extend_from_slice(chunk.tokens());
        self.cached += count as usize;
        if at_home {
            self.standing.resize(self.tokens.len(), Standing::Settled);
            self.exact = self.tokens.len();
        } else {
            // A chunk that was never measured is taken to be equally uncertain everywhere.
            let sensitivity = |index: u32| chunk.sensitivity().map_or(1.0, |all| all[index as usize]);
            let reused = (0..count).map(|index| Standing::Reused { index, sensitivity: sensitivity(index) });
            self.standing.extend(reused);
        }
        Ok(())
    }

    /// Puts pieces behind what stands: cached ones with their KV, fresh ones by name only.
    fn append(&mut self, pieces: &[Piece]) -> Result<Appended> {
        let mut appended = Appended { fresh: Vec::new(), question: 0, cached: 0 };
        for piece in pieces {
            match piece {
                Piece::Cached(chunk) => {
                    self.place(chunk)?;
                    appended.cached += chunk.tokens().len();
                    appended.question = appended.fresh.len();
                }
                Piece::Fresh(tokens) => {
                    let first = self.tokens.len();
                    self.tokens.extend_from_slice(tokens);
                    self.standing.resize(self.tokens.len(), Standing::Settled);
                    if self.exact == first {
                        // They will be, once they are computed.
                        self.exact = self.tokens.len();
                    }
                    appended.question = appended.fresh.len();
                    appended.fresh.extend(first as u32..self.tokens.len() as u32);
                }
            }
        }
        Ok(appended)
    }

    fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(slot, standing): (usize, &Standing)| match *standing {
            Standing::Reused { index, sensitivity } => Some(Candidate { slot: slot as u32, index, sensitivity }),
            Standing::Settled => None,
        };
        self.standing.iter().enumerate().skip(self.exact).filter_map(candidate).collect()
    }

    fn row(&self, slot: u32) -> Row {
        let sees = Span { head: 0..0, body: self.graph.horizon(0, slot)..slot + 1 };
        Row { token: self.tokens[slot as usize], context: 0, slot, position: slot, sees }
    }

    fn rows(&self, slots: &[u32]) -> Vec<Row> {
        slots.iter().map(|&slot| self.row(slot)).collect()
    }

    /// The attention that each slot gets from the question, summed over some layers.
    fn attention<'g>(&mut self, graph: &'g Graph<B>, question: &[u32], layers: &Range<usize>) -> Result<Reading<'g, B>> {
        let mut mass = vec![0f32; self.tokens.len()];
        let mut pass = Pass::start(graph, self.rows(question))?;
        loop {
            let projection = pass.project()?;
            pass.write(&mut [&mut self.cache], &projection)?;
            if layers.contains(&pass.layer()) {
                let (rows, queries) = (pass.rows(), &projection.queries);
                let read = graph.backend.attention_mass(&[&mut self.cache], pass.layer(), rows, queries, mass.len())?;
                mass.iter_mut().zip(read).for_each(|(sum, mass)| *sum += mass);
            }
            if pass.layer() + 1 >= layers.end {
                return Ok(Reading { mass, pass, projection });
            }
            pass.finish(&[&mut self.cache], projection)?;
        }
    }

    /// The slots to repair, and what was computed of the question to choose them.
    fn choose<'g>(&mut self, graph: &'g Graph<B>, repair: &Repair, question: &[u32]) -> Result<Choice<'g, B>> {
        let candidates = self.candidates();
        let chosen = |keep: &dyn Fn(&&Candidate) -> bool| {
            let slots = candidates.iter().filter(keep).map(|candidate| candidate.slot).collect();
            Ok(Choice { slots, reading: None })
        };
        let (budget, layers, by_sensitivity) = match repair {
            _ if candidates.is_empty() => return chosen(&|_| false),
            Repair::None | Repair::Deviation { .. } => return chosen(&|_| false),
            Repair::All => return chosen(&|_| true),
            Repair::Heads(count) => return chosen(&|candidate| (candidate.index as usize) < *count),
            Repair::Attention { .. } if question.is_empty() => return chosen(&|_| false),
            Repair::Attention { budget, layers } => (*budget, layers, false),
            Repair::Weighted { budget, layers } => (*budget, layers, true),
        };
        let reading = if question.is_empty() || layers.is_empty() {
            None
        } else {
            Some(self.attention(graph, question, layers)?)
        };
        let weight = |candidate: &Candidate| {
            let attention = reading.as_ref().map_or(1.0, |reading| select::smoothed(&reading.mass, candidate.slot));
            if by_sensitivity { attention * candidate.sensitivity } else { attention }
        };
        let weights: Vec<f32> = candidates.iter().map(weight).collect();
        Ok(Choice { slots: select::heaviest(&candidates, &weights, budget, self.cached), reading })
    }

    /// CacheBlend: all candidates up to the check layer, then those whose keys differ most, which are returned.
    fn narrow(&mut self, pass: &mut Pass<'_, B>, ratio: f32, check_layer: usize) -> Result<Vec<u32>> {
        let candidates = self.candidates();
        while pass.layer() < check_layer {
            let projection = pass.project()?;
            pass.write(&mut [&mut self.cache], &projection)?;
            pass.finish(&[&mut self.cache], projection)?;
        }
        let mut projection = pass.project()?;
        let distances = pass.key_distance(&[&mut self.cache], &projection)?;
        pass.write(&mut [&mut self.cache], &projection)?;
        let weights: Vec<f32> = distances[..candidates.len()].to_vec();
        let chosen = select::heaviest(&candidates, &weights, Budget::Ratio(ratio), self.cached);
        let goes_on = |(index, row): &(usize, &Row)| *index >= candidates.len() || chosen.contains(&row.slot);
        let which: Vec<usize> = pass.rows().iter().enumerate().filter(goes_on).map(|(index, _)| index).collect();
        pass.keep(&mut projection, &which)?;
        pass.finish(&[&mut self.cache], projection)?;
        Ok(chosen)
    }

    /// Repairs, and computes the fresh slots, of which those from index `question` on make up the last piece.
    fn compute(&mut self, repair: &Repair, fresh: &[u32], question: usize) -> Result<Usage> {
        let graph = Arc::clone(&self.graph);
        self.logits.clear();
        let layers = self.info.shape.layers;
        let work_prefilling = (fresh.len() * layers) as u64;
        let mut usage = Usage { prefilled: fresh.len(), work_prefilling, ..Usage::default() };
        let (others, asked) = fresh.split_at(question);
        let last = |rows: usize| if asked.is_empty() { vec![] } else { vec![rows - 1] };
        let Choice { slots: mut repaired, reading } = self.choose(&graph, repair, asked)?;
        let work = match (reading, repair) {
            // The question stands before its second layer has seen anything cached: it goes on from there.
            (Some(Reading { pass: mut asking, mut projection, .. }), _) if asking.layer() <= 1 => {
                let rows = self.rows(&[&repaired, others].concat());
                if !rows.is_empty() {
                    let mut pass = Pass::start(&graph, rows)?;
                    while pass.layer() < asking.layer() {
                        let projection = pass.project()?;
                        pass.write(&mut [&mut self.cache], &projection)?;
                        pass.finish(&[&mut self.cache], projection)?;
                    }
                    let mut joined = pass.project()?;
                    pass.write(&mut [&mut self.cache], &joined)?;
                    pass.join(&mut joined, asking, &projection)?;
                    (asking, projection) = (pass, joined);
                }
                let wanted = last(asking.rows().len());
                self.logits = asking.run_on(&mut [&mut self.cache], projection, &wanted)?;
                asking.work()
            }
            (None, Repair::Deviation { ratio, check_layer }) if self.exact < self.tokens.len() => {
                let candidates: Vec<u32> = self.candidates().iter().map(|candidate| candidate.slot).collect();
                let mut pass = Pass::start(&graph, self.rows(&[&candidates, fresh].concat()))?;
                repaired = self.narrow(&mut pass, *ratio, *check_layer)?;
                if !pass.rows().is_empty() {
                    let wanted = last(pass.rows().len());
                    self.logits = pass.run(&mut [&mut self.cache], &wanted)?;
                }
                pass.work()
            }
            (reading, _) => {
                let rows = self.rows(&[&repaired, fresh].concat());
                let reading = reading.map_or(0, |reading| reading.pass.work());
                if rows.is_empty() {
                    reading
                } else {
                    let mut pass = Pass::start(&graph, rows)?;
                    let wanted = last(pass.rows().len());
                    self.logits = pass.run(&mut [&mut self.cache], &wanted)?;
                    reading + pass.work()
                }
            }
        };
        usage.repaired = repaired.len();
        usage.work_repairing = (repaired.len() * layers) as u64;
        usage.work_choosing = work - usage.work_repairing - work_prefilling;
        for &slot in &repaired {
            self.standing[slot as usize] = Standing::Settled;
        }
        // What was computed just now, with nothing inexact before it, is exact.
        let computed = |slot: &u32| repaired.contains(slot) || fresh.contains(slot);
        let exact = (self.exact as u32..self.tokens.len() as u32).take_while(computed).count();
        self.exact += exact;
        Ok(usage)
    }
}

/// What the question attends to, and how far it has come.
struct Reading<'g, B: Backend> {
    /// By slot.
    mass: Vec<f32>,
    /// After the second step of the last layer that was read.
    pass: Pass<'g, B>,
    projection: Projection<B>,
}

/// What is to be repaired.
struct Choice<'g, B: Backend> {
    /// In ascending order.
    slots: Vec<u32>,
    reading: Option<Reading<'g, B>>,
}

impl<B: Backend> Context for Blend<B> {
    fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    fn extend(&mut self, pieces: &[Piece], repair: &Repair) -> Result<Usage> {
        self.check(pieces, repair)?;
        let resident = self.tokens.len();
        let result = self.append(pieces).and_then(|appended| {
            let usage = self.compute(repair, &appended.fresh, appended.question)?;
            Ok(Usage { resident, cached: appended.cached, ..usage })
        });
        self.broken = result.is_err();
        result
    }

    fn truncate(&mut self, len: usize) {
        if len < self.tokens.len() {
            self.tokens.truncate(len);
            self.standing.truncate(len);
            self.exact = self.exact.min(len);
            self.cached = self.cached.min(len);
            self.logits.clear();
        }
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }
}

/// Refuses tokens that the model does not know.
pub(crate) fn check_tokens(tokens: &[Token], info: &ModelInfo) -> Result<()> {
    match tokens.iter().find(|token| **token as usize >= info.vocabulary) {
        None => Ok(()),
        Some(token) => {
            let (value, expected) = (token.to_string(), "an id in the model's vocabulary");
            Err(Error::BadValue { what: "token", value, expected })
        }
    }
}

/// The logits after each token of a text, `[tokens][vocabulary]`.
pub(crate) fn score<B: Backend>(graph: &Arc<Graph<B>>, info: &Arc<ModelInfo>, tokens: &[Token]) -> Result<Vec<f32>> {
    let mut blend = Blend::new(Arc::clone(graph), Arc::clone(info))?;
    let pieces = [Piece::Fresh(tokens.into())];
    blend.check(&pieces, &Repair::None)?;
    let fresh = blend.append(&pieces)?.fresh;
    let wanted: Vec<usize> = (0..fresh.len()).collect();
    Pass::start(graph, blend.rows(&fresh))?.run(&mut [&mut blend.cache], &wanted)
}
