//! Several contexts in one pass: whatever each of them has to compute next, their rows go through the layers together.
//!
//! A context has rows to repair chosen first, then it computes. Which rows are repaired may depend on the attention of
//! the question, which is read on the way:
//!
//! - Up to the second layer ([`SHALLOW`]) the question's rows are exact even over KV that was not repaired, because the
//!   first layer's keys and values depend on the token alone. A question of at most [`READ_ROWS`] rows pauses there until
//!   the rows to repair are chosen, and continues in the same pass, unless these and its own are more than [`IN_ONE_PASS`]. A
//!   longer one is read in runs of that length. Where it does not continue, all is computed afterwards, in runs.
//! - In deeper layers, the rows attend to KV that repair will change. Attention there is read in passes of its own, of runs
//!   of the same length, whose results are thrown away, and the question is computed afterwards.
//!
//! Runs have a fixed length so that sums are rounded alike however many contexts share a pass: which rows a context
//! repairs does not depend on its company.

use std::mem::take;
use std::ops::Range;

use super::backend::{Backend, BlockTable, Row};
use super::context::{PagedContext, Phase, Work};
use super::loaded_model::LoadedModel;
use super::pass::{Pass, PassScope, Written};
use super::pass_cache::PassCache;
use super::select::{self, Candidate, Selection};
use crate::{Budget, Error, Progress, Result};

/// Fresh rows whose attention is read at a time.
const READ_ROWS: usize = 512;

/// Rows of a question and of what it has repaired that are computed in the pass that reads the question's attention.
const IN_ONE_PASS: usize = 512;

/// The last layer that can be read on the way.
const SHALLOW: usize = 1;

/// Computes some of what these contexts have to compute. One result for each.
pub(super) fn advance<B: Backend>(
    model: &LoadedModel<B>,
    cache: &mut B::Cache,
    mut members: Vec<Member<'_, B>>,
) -> Vec<Result<Progress>> {
    let pending = members.iter_mut().map(|member| member.work.as_mut().map(|work| take(&mut work.pending)));
    let mut cache = PassCache::new(model, cache, pending.map(Option::unwrap_or_default));
    let done = PassScope::begin(&model.backend).and_then(|scope| {
        for member in &mut members {
            member.begin_choosing(model, &mut cache);
        }
        for member in &mut members {
            member.take_slots(&mut cache);
        }
        pass(model, &mut cache, &mut members)?;
        let loaded = cache.finish()?;
        scope.end()?;
        members.iter_mut().zip(loaded).for_each(|(member, loaded)| member.computed(loaded));
        Ok(())
    });
    if let Err(error) = done {
        // One pass computes for all: none of them knows how far it got.
        let error = std::sync::Arc::new(error);
        for member in members.iter_mut().filter(|member| member.result.is_none()) {
            member.result = Some(Err(Error::Model(error.clone().into())));
        }
    }
    members.into_iter().map(Member::finish).collect()
}

/// A context in a pass.
pub(super) struct Member<'c, B: Backend> {
    context: &'c mut PagedContext<B>,
    /// About how many of its rows the pass may compute.
    max_rows: usize,
    /// What it has to compute.
    work: Option<Work>,
    /// Rows to choose among by the attention of the question, which this pass reads.
    reading: Option<Reading>,
    /// Slots that this pass computes in full.
    slots: Vec<u32>,
    /// What came of it, once that is known.
    result: Option<Result<Progress>>,
}

/// Fresh rows that are read in this pass.
struct Reading {
    candidates: Vec<Candidate>,
    budget: Budget,
    layers: Range<usize>,
    by_sensitivity: bool,
    /// Slots below this one are seen by no row that asks, for the layers that are read have a window.
    unseen: u32,
    /// Which of the fresh rows are read.
    rows: Range<usize>,
    /// Whether they are all there are, and so go on from where they are read.
    continues: bool,
    /// Where they stand among the pass's rows.
    at: Range<usize>,
}

impl<'c, B: Backend> Member<'c, B> {
    /// A context of which about so many rows may be computed. It is unusable until the pass has ended.
    pub(super) fn new(context: &'c mut PagedContext<B>, max_rows: usize) -> Self {
        let work = context.take_work();
        let result = work.is_none().then(|| Ok(Progress::Done(crate::Usage::default())));
        Self { context, max_rows: max_rows.max(1), work, reading: None, slots: Vec::new(), result }
    }

    /// Chooses the rows to repair, if that takes no part in the common pass; else says what has to be read for it.
    fn begin_choosing(&mut self, model: &LoadedModel<B>, cache: &mut PassCache<'_, B>) {
        let Some(work) = &mut self.work else { return };
        let Phase::Choose { read, .. } = work.phase else { return };
        match choose_alone(model, cache, self.context, work, read) {
            Ok(reading) => self.reading = reading,
            Err(error) => self.result = Some(Err(error)),
        }
    }

    /// Takes the slots that this pass computes, and makes them writable.
    fn take_slots(&mut self, cache: &mut PassCache<'_, B>) {
        if self.result.is_some() {
            return;
        }
        if let Some(Work { phase: Phase::Compute { slots, done }, .. }) = &self.work {
            let count = (slots.len() - done).min(self.max_rows);
            self.slots = slots[*done..done + count].to_vec();
            if let Err(error) = self.context.make_writable(cache, &self.slots) {
                self.result = Some(Err(error));
                self.slots.clear();
            }
        }
    }

    /// Takes note of the attention that the common pass read: rows are chosen once all of it is.
    fn add_attention(
        &mut self,
        backend: &B,
        cache: &mut PassCache<'_, B>,
        mass: &B::Tensor,
        layers: usize,
    ) -> Result<()> {
        let (Some(reading), Some(work)) = (&mut self.reading, &mut self.work) else { return Ok(()) };
        let chosen = reading.add(backend, mass, work, self.context.cached_rows())?;
        // Many rows are computed in runs, and the question then begins again behind them.
        reading.continues &= chosen.as_ref().is_none_or(|chosen| chosen.len() + reading.rows.len() <= IN_ONE_PASS);
        if !reading.continues {
            work.choosing += (reading.rows.len() * layers) as u64;
        }
        let Some(chosen) = chosen else { return Ok(()) };
        if !reading.continues {
            work.repair(chosen);
            return Ok(());
        }
        match self.context.make_writable(cache, &chosen) {
            Ok(()) => {
                self.slots.clone_from(&chosen);
                work.repair(chosen);
            }
            Err(error) => self.result = Some(Err(error)),
        }
        Ok(())
    }

    /// Takes note that the pass has computed its rows, if the KV that they depend on was whole.
    fn computed(&mut self, loaded: Result<()>) {
        if let (None, Err(error)) = (&self.result, loaded) {
            self.work.take().into_iter().for_each(|work| self.context.take_back(&work));
            self.result = Some(Err(error));
        }
        let Some(work) = self.work.as_mut().filter(|_| self.result.is_none()) else { return };
        let goes_on = self.reading.as_ref().is_some_and(|reading| reading.continues);
        if let Phase::Compute { slots, done } = &mut work.phase {
            match &self.reading {
                Some(_) if goes_on => *done = slots.len(),
                Some(_) => {}
                None => *done += self.slots.len(),
            }
            if *done == slots.len() {
                self.result = Some(Ok(Progress::Done(self.context.complete(work))));
                return;
            }
        }
        self.result = Some(Ok(Progress::Pending));
    }

    fn finish(self) -> Result<Progress> {
        let Self { context, work, result, slots, .. } = self;
        let result = result.unwrap_or(Ok(Progress::Pending));
        match (&result, work) {
            (Ok(Progress::Pending), Some(work)) => context.put_back(work),
            (Err(_), Some(work)) => context.fail(&work, !slots.is_empty()),
            _ => {}
        }
        result
    }
}

/// Chooses the rows to repair, if that takes no part in the common pass. Otherwise returns what that pass has to read for it,
/// beginning with the fresh row `read`.
fn choose_alone<B: Backend>(
    model: &LoadedModel<B>,
    cache: &mut PassCache<'_, B>,
    context: &mut PagedContext<B>,
    work: &mut Work,
    read: usize,
) -> Result<Option<Reading>> {
    let needs_candidates = !matches!(work.options.repair, crate::Repair::None);
    let candidates = if needs_candidates { context.candidates() } else { Vec::new() };
    let asked = work.question > 0;
    match select::selection(&work.options.repair, &candidates, asked, model.config.layers) {
        Selection::Chosen(slots) => work.repair(slots),
        Selection::Sensitivity { budget } => {
            let weights: Vec<f32> = candidates.iter().map(|candidate| candidate.sensitivity).collect();
            work.repair(select::chosen(&candidates, &weights, budget, context.cached_rows()));
        }
        Selection::Deviation { ratio, check_layer } => {
            narrow(model, cache, context, work, &candidates, (ratio, check_layer))?;
        }
        Selection::Attention { budget, layers, by_sensitivity } => {
            let shallow = layers.end <= SHALLOW + 1;
            let continues = shallow && work.fresh.len() <= READ_ROWS;
            let rows = read..work.fresh.len().min(read + READ_ROWS);
            let unseen = unseen(model, context, work, layers.clone());
            let reading = Reading { candidates, budget, layers, by_sensitivity, unseen, rows, continues, at: 0..0 };
            if shallow {
                return Ok(Some(reading));
            }
            read_in_own_pass(model, cache, context, work, reading)?;
        }
    }
    Ok(None)
}

/// The slots at the beginning that no row of the question sees in any of these layers.
fn unseen<B: Backend>(model: &LoadedModel<B>, context: &PagedContext<B>, work: &Work, layers: Range<usize>) -> u32 {
    let first = context.len() - work.question;
    let before = |layer: usize| model.window(layer).map_or(0, |window| (first + 1).saturating_sub(window));
    layers.map(before).min().unwrap_or(0) as u32
}

/// Reads attention beyond the layers that can be read on the way, of one run of rows. Runs before it have written their
/// KV.
fn read_in_own_pass<B: Backend>(
    model: &LoadedModel<B>,
    cache: &mut PassCache<'_, B>,
    context: &PagedContext<B>,
    work: &mut Work,
    reading: Reading,
) -> Result<()> {
    let table = context.table();
    let tables: [BlockTable<'_>; 1] = [&table];
    let rows: Vec<Row> = context.rows(0, &work.fresh[reading.rows.clone()]).collect();
    let asked = reading.asked(work)..rows.len();
    let mut mass = model.backend.upload(context.len(), &vec![0.0; context.len()])?;
    let mut written = Pass::start(model, rows, &tables)?.advance_to(cache, reading.layers.start)?;
    loop {
        if !asked.is_empty() {
            written.attention_mass(cache, asked.clone(), &mut mass)?;
        }
        if written.layer() + 1 >= reading.layers.end {
            break;
        }
        let next = written.layer() + 1;
        written = written.finish(cache)?.advance_to(cache, next)?;
    }
    work.choosing += (reading.rows.len() * reading.layers.end) as u64;
    if let Some(chosen) = reading.add(&model.backend, &mass, work, context.cached_rows())? {
        work.repair(chosen);
    }
    Ok(())
}

/// CacheBlend: computes all candidates and the fresh rows as far as the check layer, and from there on those whose
/// keys differ most.
fn narrow<B: Backend>(
    model: &LoadedModel<B>,
    cache: &mut PassCache<'_, B>,
    context: &mut PagedContext<B>,
    work: &mut Work,
    candidates: &[Candidate],
    (ratio, check_layer): (f32, usize),
) -> Result<()> {
    let slots: Vec<u32> = candidates.iter().map(|candidate| candidate.slot).collect();
    let slots = [slots.as_slice(), &work.fresh].concat();
    context.make_writable(cache, &slots)?;
    // From here on a failure leaves rows half written.
    work.repaired = slots[..candidates.len()].to_vec();
    let table = context.table();
    let tables: [BlockTable<'_>; 1] = [&table];
    let rows: Vec<Row> = context.rows(0, &slots).collect();
    let pass = Pass::start(model, rows, &tables)?.advance_to(cache, check_layer - 1)?.finish(cache)?;
    debug_assert_eq!(pass.layer(), check_layer);
    let projected = pass.project()?;
    let mut distances = projected.key_distance(cache)?;
    distances.truncate(candidates.len());
    let written = projected.write(cache)?;
    let budget = Budget::Ratio(ratio);
    let repaired = select::chosen(candidates, &distances, budget, context.cached_rows());
    let goes_on = |&index: &usize| index >= candidates.len() || repaired.binary_search(&slots[index]).is_ok();
    let which: Vec<usize> = (0..slots.len()).filter(goes_on).collect();
    if !which.is_empty() {
        let kept: Vec<u32> = which.iter().map(|&index| slots[index]).collect();
        let wanted = work.wanted(context.len(), &kept);
        let logits = written.keep(&which)?.run(cache, &wanted)?;
        context.add_logits(&logits);
    }
    work.choosing += ((candidates.len() - repaired.len()) * (check_layer + 1)) as u64;
    work.repaired = repaired;
    work.phase = Phase::Compute { done: slots.len(), slots };
    Ok(())
}

impl Work {
    /// Goes over to computing: these slots and the fresh ones, in ascending order, so that any run of them sees all
    /// that it depends on.
    fn repair(&mut self, repaired: Vec<u32>) {
        let mut slots = [repaired.as_slice(), &self.fresh].concat();
        slots.sort_unstable();
        self.repaired = repaired;
        self.phase = Phase::Compute { slots, done: 0 };
    }

    /// Which of these slots' logits are asked for, by their indexes. `len` is the context's length.
    fn wanted(&self, len: usize, slots: &[u32]) -> Vec<usize> {
        let first = len - self.options.logits.min(self.question);
        let wanted = |(index, &slot): (usize, &u32)| (slot as usize >= first).then_some(index);
        slots.iter().enumerate().filter_map(wanted).collect()
    }
}

impl Reading {
    /// The first of its rows that asks: only the last piece does. Their number if none does.
    fn asked(&self, work: &Work) -> usize {
        (work.fresh.len() - work.question).saturating_sub(self.rows.start).min(self.rows.len())
    }

    /// Adds the attention of its rows to that of the rows before them. Chooses, once these are the last ones.
    fn add<B: Backend>(
        &self,
        backend: &B,
        mass: &B::Tensor,
        work: &mut Work,
        cached_rows: usize,
    ) -> Result<Option<Vec<u32>>> {
        let Phase::Choose { read, mass: sums } = &mut work.phase else { return Ok(None) };
        if self.rows == (0..work.fresh.len()) {
            return self.choose_there(backend, mass, cached_rows).map(Some);
        }
        let mass = backend.read(mass)?;
        sums.resize(mass.len(), 0.0);
        sums.iter_mut().zip(mass).for_each(|(sum, mass)| *sum += mass);
        *read = self.rows.end;
        Ok((self.rows.end == work.fresh.len()).then(|| self.choose(sums, cached_rows)))
    }

    /// Chooses by attention that lies where the backend computes, and there if it can.
    fn choose_there<B: Backend>(&self, backend: &B, mass: &B::Tensor, cached_rows: usize) -> Result<Vec<u32>> {
        let (mut chosen, seen, budget) = self.choose_unseen(cached_rows);
        let Some(count) = select::max_rows(budget, cached_rows) else {
            chosen.extend(self.choose_seen(&backend.read(mass)?, seen, budget, cached_rows));
            return Ok(chosen);
        };
        let slots: Vec<u32> = seen.iter().map(|candidate| candidate.slot).collect();
        let factors: Option<Vec<f32>> =
            self.by_sensitivity.then(|| seen.iter().map(|candidate| candidate.sensitivity).collect());
        let heaviest = backend.heaviest(mass, &slots, factors.as_deref(), count)?;
        chosen.extend(heaviest.into_iter().filter_map(|index| slots.get(index)));
        Ok(chosen)
    }

    fn choose(&self, mass: &[f32], cached_rows: usize) -> Vec<u32> {
        let (mut chosen, seen, budget) = self.choose_unseen(cached_rows);
        chosen.extend(self.choose_seen(mass, seen, budget, cached_rows));
        chosen
    }

    fn choose_seen(&self, mass: &[f32], seen: &[Candidate], budget: Budget, cached_rows: usize) -> Vec<u32> {
        let weight = |candidate: &Candidate| {
            let attention = select::smoothed(mass, candidate.slot);
            if self.by_sensitivity { attention * candidate.sensitivity } else { attention }
        };
        let weights: Vec<f32> = seen.iter().map(weight).collect();
        select::chosen(seen, &weights, budget, cached_rows)
    }

    /// Chooses among the candidates that no row which asks sees in the layers that are read: by their sensitivity, where that
    /// counts, as large a share of the budget as they are of all that have any. Returns the other candidates, and what is left
    /// for them.
    fn choose_unseen(&self, cached_rows: usize) -> (Vec<u32>, &[Candidate], Budget) {
        let (unseen, seen) = self.candidates.split_at(self.candidates.partition_point(|one| one.slot < self.unseen));
        if unseen.is_empty() || !self.by_sensitivity {
            return (Vec::new(), &self.candidates, self.budget);
        }
        let (budget, left) = match select::max_rows(self.budget, cached_rows) {
            None => (self.budget, self.budget),
            Some(rows) => {
                let sensitive = |some: &[Candidate]| some.iter().filter(|one| one.sensitivity > 0.0).count();
                let (of_unseen, all) = (sensitive(unseen), sensitive(&self.candidates));
                let rows = rows.min(all);
                let share = (rows * of_unseen).checked_div(all).unwrap_or(0);
                (Budget::Rows(share), Budget::Rows(rows - share))
            }
        };
        let weights: Vec<f32> = unseen.iter().map(|candidate| candidate.sensitivity).collect();
        (select::chosen(unseen, &weights, budget, cached_rows), seen, left)
    }
}

/// The pass that all share.
fn pass<B: Backend>(model: &LoadedModel<B>, cache: &mut PassCache<'_, B>, members: &mut [Member<'_, B>]) -> Result<()> {
    let read_tables: Vec<Vec<u32>> = members.iter().map(|member| member.context.table()).collect();
    let read_tables: Vec<BlockTable<'_>> = read_tables.iter().map(Vec::as_slice).collect();
    let stop = SHALLOW.min(model.config.layers - 1);
    let read = read_on_the_way(model, cache, members, &read_tables, stop)?;

    let tables: Vec<Vec<u32>> = members.iter().map(|member| member.context.table()).collect();
    let tables: Vec<BlockTable<'_>> = tables.iter().map(Vec::as_slice).collect();
    // Rows that begin in this pass and rows that were read and go on, with the slot of each and whose it is.
    let (mut rows, mut slots): (Vec<Row>, Vec<(usize, u32)>) = Default::default();
    let (mut kept, mut kept_slots): (Vec<usize>, Vec<(usize, u32)>) = Default::default();
    for (index, member) in members.iter().enumerate().filter(|(_, member)| member.result.is_none()) {
        rows.extend(member.context.rows(index, &member.slots));
        slots.extend(member.slots.iter().map(|&slot| (index, slot)));
        if let (Some(reading), Some(work)) = (&member.reading, &member.work)
            && reading.continues
        {
            kept.extend(reading.at.clone());
            kept_slots.extend(work.fresh.iter().map(|&slot| (index, slot)));
        }
    }
    // Those that go on stand behind the others.
    slots.append(&mut kept_slots);
    let computed = match (rows.is_empty(), read.filter(|_| !kept.is_empty())) {
        (true, None) => None,
        (true, Some(read)) => Some(read.keep(&kept)?),
        (false, None) => Some(Pass::start(model, rows, &tables)?.advance_to(cache, 0)?),
        (false, Some(read)) => {
            let repaired = Pass::start(model, rows, &tables)?.advance_to(cache, stop)?;
            Some(repaired.concat(read.keep(&kept)?)?)
        }
    };
    if let Some(computed) = computed {
        let wanted = wanted(members, &slots);
        let logits = computed.run(cache, &wanted)?;
        for (row, logits) in wanted.iter().zip(logits.chunks_exact((logits.len() / wanted.len().max(1)).max(1))) {
            members[slots[*row].0].context.add_logits(logits);
        }
    }
    Ok(())
}

/// The rows whose logits are asked for, by their indexes.
fn wanted<B: Backend>(members: &[Member<'_, B>], slots: &[(usize, u32)]) -> Vec<usize> {
    let mut wanted = Vec::new();
    let mut first = 0;
    for run in slots.chunk_by(|a, b| a.0 == b.0) {
        let member = &members[run[0].0];
        let of_member: Vec<u32> = run.iter().map(|(_, slot)| *slot).collect();
        if let Some(work) = &member.work {
            wanted.extend(work.wanted(member.context.len(), &of_member).into_iter().map(|index| first + index));
        }
        first += run.len();
    }
    wanted
}

/// Sends the rows that are to be read as far as `stop`, and lets their contexts choose. Returns the rows, if there are
/// any, after the second step of that layer.
fn read_on_the_way<'a, B: Backend>(
    model: &'a LoadedModel<B>,
    cache: &mut PassCache<'_, B>,
    members: &mut [Member<'_, B>],
    tables: &'a [BlockTable<'a>],
    stop: usize,
) -> Result<Option<Written<'a, B>>> {
    let mut rows: Vec<Row> = Vec::new();
    for (index, member) in members.iter_mut().enumerate() {
        if let (Some(reading), Some(work)) = (&mut member.reading, &member.work) {
            let first = rows.len();
            rows.extend(member.context.rows(index, &work.fresh[reading.rows.clone()]));
            reading.at = first..rows.len();
        }
    }
    if rows.is_empty() {
        return Ok(None);
    }
    let mut masses = Vec::new();
    for member in members.iter().filter(|member| member.reading.is_some()) {
        let len = member.context.len();
        masses.push(model.backend.upload(len, &vec![0.0; len])?);
    }
    let mut written = Pass::start(model, rows, tables)?.advance_to(cache, 0)?;
    loop {
        let readings = members.iter().filter_map(|member| Some((member.reading.as_ref()?, member.work.as_ref()?)));
        for ((reading, work), mass) in readings.zip(&mut masses) {
            let asked = reading.at.start + reading.asked(work)..reading.at.end;
            if reading.layers.contains(&written.layer()) && !asked.is_empty() {
                written.attention_mass(cache, asked, mass)?;
            }
        }
        if written.layer() == stop {
            break;
        }
        let next = written.layer() + 1;
        written = written.finish(cache)?.advance_to(cache, next)?;
    }
    let readers = members.iter_mut().filter(|member| member.reading.is_some());
    for (member, mass) in readers.zip(masses) {
        member.add_attention(&model.backend, cache, &mass, stop + 1)?;
    }
    Ok(Some(written))
}
