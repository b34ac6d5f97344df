//! A context: cached KV put in place, the rows that need it computed again, fresh tokens on top.

use std::sync::Arc;

use super::backend::{Backend, Row, Span};
use super::forward::{Graph, Pass};
use super::select::{self, Candidate};
use crate::{Context, Error, KvChunk, ModelInfo, Piece, PrefixId, Repair, Result, Scoring, Token, Usage};

/// A [`Context`] of a [`Transformer`](super::Transformer).
pub(crate) struct Blend<B: Backend> {
    graph: Arc<Graph<B>>,
    info: Arc<ModelInfo>,
    cache: B::Cache,
    tokens: Vec<Token>,
    /// For each token, what its row in the cache is worth.
    standing: Vec<Standing>,
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
        Ok(Self { graph, info, cache, tokens: vec![], standing: vec![], exact: 0, logits: vec![], broken: false })
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

    /// The attention that each slot gets from the question, summed over the scoring layers, and what finding out cost.
    fn attention(&mut self, question: &[u32], scoring: &Scoring) -> Result<(Vec<f32>, u64)> {
        let layers = select::layers_of(scoring, self.info.shape.layers);
        let mut mass = vec![0f32; self.tokens.len()];
        let graph = Arc::clone(&self.graph);
        let mut pass = Pass::start(&graph, self.rows(question))?;
        while pass.layer() < layers.end {
            let projection = pass.project()?;
            pass.write(&mut [&mut self.cache], &projection)?;
            if layers.contains(&pass.layer()) {
                let (rows, queries) = (pass.rows(), &projection.queries);
                let layer =
                    graph.backend.attention_mass(&[&mut self.cache], pass.layer(), rows, queries, mass.len())?;
                mass.iter_mut().zip(layer).for_each(|(sum, mass)| *sum += mass);
            }
            if pass.layer() + 1 == layers.end {
                break;
            }
            pass.finish(&[&mut self.cache], projection)?;
        }
        Ok((mass, pass.work()))
    }

    /// The slots to repair, and what choosing them cost.
    fn choose(&mut self, repair: &Repair, question: &[u32]) -> Result<(Vec<u32>, u64)> {
        let candidates = self.candidates();
        if candidates.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let slots = |keep: &dyn Fn(&&Candidate) -> bool| candidates.iter().filter(keep).map(|c| c.slot).collect();
        match repair {
            Repair::None | Repair::Deviation { .. } => Ok((Vec::new(), 0)),
            Repair::All => Ok((slots(&|_| true), 0)),
            Repair::Heads(count) => Ok((slots(&|c| (c.index as usize) < *count), 0)),
            Repair::Attention { .. } if question.is_empty() => Ok((Vec::new(), 0)),
            Repair::Attention { budget, scoring } => {
                let (mass, work) = self.attention(question, scoring)?;
                let weights: Vec<f32> = candidates.iter().map(|c| mass[c.slot as usize]).collect();
                Ok((select::heaviest(&candidates, &weights, *budget), work))
            }
            Repair::Weighted { budget, scoring } => {
                let (mass, work) = match question {
                    [] => (None, 0),
                    _ if select::layers_of(scoring, self.info.shape.layers).is_empty() => (None, 0),
                    _ => self.attention(question, scoring).map(|(mass, work)| (Some(mass), work))?,
                };
                let attention = |slot| mass.as_ref().map_or(1.0, |mass| select::smoothed(mass, slot));
                let weights: Vec<f32> = candidates.iter().map(|c| attention(c.slot) * c.sensitivity).collect();
                Ok((select::heaviest(&candidates, &weights, *budget), work))
            }
        }
    }

    /// CacheBlend: all candidates up to the check layer, then those whose keys differ most. Returns how many went on.
    fn narrow(&mut self, pass: &mut Pass<'_, B>, ratio: f32, check_layer: usize) -> Result<Vec<u32>> {
        let graph = Arc::clone(&self.graph);
        while pass.layer() < check_layer {
            let projection = pass.project()?;
            pass.write(&mut [&mut self.cache], &projection)?;
            pass.finish(&[&mut self.cache], projection)?;
        }
        let mut projection = pass.project()?;
        let keys = &projection.keys;
        let (layer, angles) = (pass.layer(), pass.angles());
        let distances = graph.backend.key_distance(&[&mut self.cache], layer, pass.rows(), angles, keys)?;
        pass.write(&mut [&mut self.cache], &projection)?;
        let candidates = self.candidates();
        let by_slot = pass.rows().iter().map(|row| row.slot).zip(distances);
        let mut candidate = candidates.iter().peekable();
        let weights: Vec<f32> =
            by_slot.filter(|(slot, _)| candidate.next_if(|c| c.slot == *slot).is_some()).map(|(_, d)| d).collect();
        let chosen = select::heaviest(&candidates, &weights, crate::Budget::Ratio(ratio));
        let fresh = |slot: u32| self.standing[slot as usize] == Standing::Settled;
        let goes_on = |row: &Row| fresh(row.slot) || chosen.binary_search(&row.slot).is_ok();
        let rows = pass.rows().iter().enumerate();
        let which: Vec<usize> = rows.filter(|(_, row)| goes_on(row)).map(|(index, _)| index).collect();
        pass.keep(&mut projection, &which)?;
        pass.finish(&[&mut self.cache], projection)?;
        Ok(chosen)
    }

    /// Repairs, and computes the fresh slots, of which those from index `question` on make up the last piece.
    fn compute(&mut self, repair: &Repair, fresh: &[u32], question: usize) -> Result<Usage> {
        let (mut repaired, work_choosing) = self.choose(repair, &fresh[question..])?;
        let candidates = if let Repair::Deviation { .. } = repair { self.candidates() } else { Vec::new() };
        let carried = candidates.iter().map(|c| c.slot).chain(repaired.iter().copied());
        let mut slots: Vec<u32> = carried.chain(fresh.iter().copied()).collect();
        slots.sort_unstable();
        let mut usage = Usage { prefilled: fresh.len(), work_choosing, ..Usage::default() };
        self.logits.clear();
        if slots.is_empty() {
            return Ok(usage);
        }
        let graph = Arc::clone(&self.graph);
        let mut pass = Pass::start(&graph, self.rows(&slots))?;
        if let Repair::Deviation { ratio, check_layer } = *repair {
            repaired = self.narrow(&mut pass, ratio, check_layer)?;
            usage.work_choosing += ((candidates.len() - repaired.len()) * (check_layer + 1)) as u64;
        }
        let wanted: Vec<usize> = if question < fresh.len() { vec![pass.rows().len() - 1] } else { vec![] };
        self.logits = pass.run(&mut [&mut self.cache], &wanted)?;
        let layers = self.info.shape.layers;
        usage.repaired = repaired.len();
        usage.work_repairing = (repaired.len() * layers) as u64;
        usage.work_prefilling = (fresh.len() * layers) as u64;
        for &slot in &repaired {
            self.standing[slot as usize] = Standing::Settled;
        }
        // What was computed just now, with nothing inexact before it, is exact.
        let computed = |slot: usize| slots.binary_search(&(slot as u32)).is_ok();
        while self.standing.get(self.exact) == Some(&Standing::Settled) && computed(self.exact) {
            self.exact += 1;
        }
        Ok(usage)
    }
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
