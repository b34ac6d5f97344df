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
    /// So many rows from the start are what a cold prefill would have computed.
    exact: usize,
    logits: Vec<f32>,
    /// A pass failed half way, so the cache holds rows of two minds.
    broken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Standing {
    /// Of a fresh piece.
    Fresh,
    /// Of a cached piece: exact here, or repaired since.
    Settled,
    /// Of a cached piece: computed behind something else, and not repaired so far.
    Reused { index: u32, sensitivity: f32 },
}

/// What a call put behind what stood.
struct Appended {
    /// The slots that are to be computed, in ascending order.
    fresh: Vec<u32>,
    /// How many of them, at the end, make up the last piece: none if that is cached.
    question: usize,
    /// Tokens of cached pieces.
    cached: usize,
}

impl<B: Backend> Blend<B> {
    pub(crate) fn new(graph: Arc<Graph<B>>, info: Arc<ModelInfo>) -> Result<Self> {
        let cache = graph.backend.cache(&graph.shape, graph.dtype)?;
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
                    appended.question = 0;
                }
                Piece::Fresh(tokens) => {
                    let first = self.tokens.len();
                    self.tokens.extend_from_slice(tokens);
                    self.standing.resize(self.tokens.len(), Standing::Fresh);
                    if self.exact == first {
                        // They will be, once they are computed.
                        self.exact = self.tokens.len();
                    }
                    appended.question = tokens.len();
                    appended.fresh.extend(first as u32..self.tokens.len() as u32);
                }
            }
        }
        Ok(appended)
    }

    fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(slot, standing): (usize, &Standing)| match *standing {
            Standing::Reused { index, sensitivity } => Some(Candidate { slot: slot as u32, index, sensitivity }),
            Standing::Fresh | Standing::Settled => None,
        };
        self.standing.iter().enumerate().skip(self.exact).filter_map(candidate).collect()
    }

    /// Rows of cached pieces: what a ratio is a share of.
    fn cached(&self) -> usize {
        self.standing.iter().filter(|standing| **standing != Standing::Fresh).count()
    }

    fn row(&self, slot: u32) -> Row {
        let sees = Span { head: 0..0, body: self.graph.horizon(0, slot)..slot + 1 };
        Row { token: self.tokens[slot as usize], context: 0, slot, position: slot, sees }
    }

    fn rows(&self, slots: &[u32]) -> Vec<Row> {
        slots.iter().map(|&slot| self.row(slot)).collect()
    }

    /// Rows of these slots, after the second step of a layer.
    fn send<'g>(&mut self, graph: &'g Graph<B>, slots: &[u32], layer: usize) -> Result<Underway<'g, B>> {
        let mut pass = Pass::start(graph, self.rows(slots))?;
        let projection = pass.reach(&mut [&mut self.cache], layer)?;
        Ok(Underway { pass, projection })
    }

    /// The attention that each slot gets from the question, summed over some layers. All fresh rows go that far together,
    /// for the question looks at the others too.
    fn read<'g>(&mut self, graph: &'g Graph<B>, appended: &Appended, layers: &Range<usize>) -> Result<Reading<'g, B>> {
        let mut mass = vec![0f32; self.tokens.len()];
        let question = appended.fresh.len() - appended.question..appended.fresh.len();
        let asked: Vec<usize> = question.clone().collect();
        let Underway { mut pass, mut projection } = self.send(graph, &appended.fresh, layers.start)?;
        loop {
            let (rows, queries) = (&pass.rows()[question.clone()], graph.backend.take(&projection.queries, &asked)?);
            let read = graph.backend.attention_mass(&[&mut self.cache], pass.layer(), rows, &queries, mass.len())?;
            mass.iter_mut().zip(read).for_each(|(sum, mass)| *sum += mass);
            if pass.layer() + 1 == layers.end {
                return Ok(Reading { mass, underway: Underway { pass, projection } });
            }
            pass.finish(&[&mut self.cache], projection)?;
            projection = pass.reach(&mut [&mut self.cache], pass.layer())?;
        }
    }

    /// The candidates to repair, as slots in ascending order, and what was read to choose them.
    fn choose<'g>(
        &mut self,
        graph: &'g Graph<B>,
        appended: &Appended,
        candidates: &[Candidate],
        repair: &Repair,
    ) -> Result<(Vec<u32>, Option<Underway<'g, B>>)> {
        let those = |keep: &dyn Fn(&&Candidate) -> bool| {
            Ok((candidates.iter().filter(keep).map(|candidate| candidate.slot).collect(), None))
        };
        let unasked = appended.question == 0;
        let (budget, layers, by_sensitivity) = match repair {
            _ if candidates.is_empty() => return those(&|_| false),
            Repair::None => return those(&|_| false),
            Repair::All | Repair::Deviation { .. } => return those(&|_| true),
            Repair::FirstRows(count) => return those(&|candidate| (candidate.index as usize) < *count),
            Repair::Attention { .. } if unasked => return those(&|_| false),
            Repair::Attention { budget, layers } => (*budget, layers, false),
            Repair::Weighted { budget, layers } => (*budget, layers, true),
        };
        let layers = layers.start..layers.end.min(self.info.shape.layers);
        let reading = if unasked || layers.is_empty() { None } else { Some(self.read(graph, appended, &layers)?) };
        let weight = |candidate: &Candidate| {
            let attention = reading.as_ref().map_or(1.0, |reading| select::smoothed(&reading.mass, candidate.slot));
            if by_sensitivity { attention * candidate.sensitivity } else { attention }
        };
        let weights: Vec<f32> = candidates.iter().map(weight).collect();
        let chosen = select::heaviest(candidates, &weights, budget, self.cached());
        Ok((chosen, reading.map(|reading| reading.underway)))
    }

    /// Chooses rows to repair, and sends them and the fresh ones on their way.
    fn set_out<'g>(
        &mut self,
        graph: &'g Graph<B>,
        appended: &Appended,
        candidates: &[Candidate],
        repair: &Repair,
    ) -> Result<Journey<'g, B>> {
        let (repaired, read) = self.choose(graph, appended, candidates, repair)?;
        match read {
            // What a row computes before its second layer's attention depends on tokens alone: it can go on from there.
            Some(fresh) if fresh.pass.layer() <= 1 => {
                let underway = if repaired.is_empty() {
                    fresh
                } else {
                    let Underway { mut pass, mut projection } = self.send(graph, &repaired, fresh.pass.layer())?;
                    pass.join(&mut projection, fresh.pass, &fresh.projection)?;
                    Underway { pass, projection }
                };
                Ok(Journey { repaired, underway: Some(underway), spent: 0 })
            }
            read => {
                let spent = read.map_or(0, |read| read.pass.work());
                let slots = [repaired.as_slice(), &appended.fresh].concat();
                let underway = if slots.is_empty() { None } else { Some(self.send(graph, &slots, 0)?) };
                Ok(Journey { repaired, underway, spent })
            }
        }
    }

    /// CacheBlend: sends all candidates and the fresh rows as far as the check layer, and from there on those whose keys
    /// differ most.
    fn narrow<'g>(
        &mut self,
        graph: &'g Graph<B>,
        appended: &Appended,
        candidates: &[Candidate],
        (ratio, check_layer): (f32, usize),
    ) -> Result<Journey<'g, B>> {
        let slots: Vec<u32> = candidates.iter().map(|candidate| candidate.slot).collect();
        let slots = [slots.as_slice(), &appended.fresh].concat();
        let Underway { mut pass, projection } = self.send(graph, &slots, check_layer - 1)?;
        pass.finish(&[&mut self.cache], projection)?;
        let mut projection = pass.project()?;
        let mut distances = pass.key_distance(&[&mut self.cache], &projection)?;
        distances.truncate(candidates.len());
        pass.write(&mut [&mut self.cache], &projection)?;
        let repaired = select::heaviest(candidates, &distances, Budget::Ratio(ratio), self.cached());
        let goes_on = |&index: &usize| index >= candidates.len() || repaired.binary_search(&slots[index]).is_ok();
        let which: Vec<usize> = (0..slots.len()).filter(goes_on).collect();
        if which.is_empty() {
            return Ok(Journey { repaired, underway: None, spent: pass.work() });
        }
        pass.keep(&mut projection, &which)?;
        Ok(Journey { repaired, underway: Some(Underway { pass, projection }), spent: 0 })
    }

    /// Repairs, and computes what was appended.
    fn compute(&mut self, repair: &Repair, appended: &Appended) -> Result<Usage> {
        let graph = Arc::clone(&self.graph);
        let candidates = self.candidates();
        let Journey { repaired, underway, spent } = match *repair {
            Repair::Deviation { ratio, check_layer } if !candidates.is_empty() => {
                self.narrow(&graph, appended, &candidates, (ratio, check_layer))?
            }
            _ => self.set_out(&graph, appended, &candidates, repair)?,
        };
        let mut work = spent;
        self.logits.clear();
        if let Some(Underway { mut pass, projection }) = underway {
            // The row after which the answer begins is the last one.
            let wanted: Vec<usize> = if appended.question == 0 { vec![] } else { vec![pass.rows().len() - 1] };
            self.logits = pass.run_on(&mut [&mut self.cache], projection, &wanted)?;
            work += pass.work();
        }
        self.settle(&repaired, &appended.fresh);
        let in_full = |rows: usize| (rows * self.info.shape.layers) as u64;
        let (work_repairing, work_prefilling) = (in_full(repaired.len()), in_full(appended.fresh.len()));
        Ok(Usage {
            cached: appended.cached,
            repaired: repaired.len(),
            prefilled: appended.fresh.len(),
            work_choosing: work - work_repairing - work_prefilling,
            work_repairing,
            work_prefilling,
            ..Usage::default()
        })
    }

    /// Takes note of what has been computed.
    fn settle(&mut self, repaired: &[u32], fresh: &[u32]) {
        for &slot in repaired {
            self.standing[slot as usize] = Standing::Settled;
        }
        // What was computed just now, with nothing inexact before it, is exact.
        let computed = |slot: &u32| repaired.binary_search(slot).is_ok() || fresh.binary_search(slot).is_ok();
        self.exact += (self.exact as u32..self.tokens.len() as u32).take_while(computed).count();
    }
}

/// Rows after the second step of some layer.
struct Underway<'g, B: Backend> {
    pass: Pass<'g, B>,
    projection: Projection<B>,
}

/// What the question attends to, and how far the fresh rows have come.
struct Reading<'g, B: Backend> {
    /// By slot.
    mass: Vec<f32>,
    underway: Underway<'g, B>,
}

/// What is to be repaired, with the fresh rows.
struct Journey<'g, B: Backend> {
    /// In ascending order.
    repaired: Vec<u32>,
    /// Rows to repair, then fresh ones; `None` if there are neither.
    underway: Option<Underway<'g, B>>,
    /// Rows times layers computed on ways that were given up.
    spent: u64,
}

impl<B: Backend> Context for Blend<B> {
    fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    fn extend(&mut self, pieces: &[Piece], repair: &Repair) -> Result<Usage> {
        self.check(pieces, repair)?;
        let resident = self.tokens.len();
        let result = self.append(pieces).and_then(|appended| self.compute(repair, &appended));
        if result.is_err() {
            self.broken = true;
            self.truncate(resident);
        }
        Ok(Usage { resident, ..result? })
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
    if tokens.is_empty() {
        return Ok(Vec::new());
    }
    let mut blend = Blend::new(Arc::clone(graph), Arc::clone(info))?;
    let pieces = [Piece::Fresh(tokens.into())];
    blend.check(&pieces, &Repair::None)?;
    let fresh = blend.append(&pieces)?.fresh;
    let wanted: Vec<usize> = (0..fresh.len()).collect();
    Pass::start(graph, blend.rows(&fresh))?.run(&mut [&mut blend.cache], &wanted)
}
