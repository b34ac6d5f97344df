//! Sessions: a conversation over a working set of memories that stays in place.
//!
//! A session is an append-only list of pieces: the head and system line, a snapshot of memories, then turn by turn the
//! memories that were newly recalled, the question and the answer. What stands is never computed again, but for rows
//! of cached memories that a later question shows to need it: repair accumulates. When the token budget is full, or a
//! memory in it has changed or is gone, a new *epoch* begins: the working set is picked anew and blended once.
//!
//! A client that sends its whole conversation each time ([`Prompt::Messages`]) costs no more: the turns that stand are
//! recognised, and the context is taken back to where the client's conversation differs from them.

mod epoch;
mod turns;
mod unfinished_turn;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures_channel::oneshot;

use self::epoch::Epoch;
use self::turns::{Turn, last_that_fit, recognised};
use self::unfinished_turn::{TurnEnd, UnfinishedTurn};
use super::attempts::Attempts;
use super::chunks::Source;
use super::cost::Cost;
use super::records::{Entry, Records};
use super::texts::Found;
use crate::{
    Answer, AnswerStream, Ask, Budget, Conversation, Error, Exchange, Filter, Memory, Namespace, Piece, Prompt, Recall,
    Recollection, Record, RecordId, Repair, Request, Result, State, Timestamp, Token, Usage,
};

/// How a session goes about its work.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Tokens that it holds at most; `None` for as many as the model can.
    pub budget_tokens: Option<usize>,
    /// The share of them that memories may take when an epoch begins, 0 to 1. The rest is for the conversation.
    pub memory_share: f32,
    /// Only memories that pass it stand in the session's context.
    pub filter: Option<Filter>,
    /// Whether questions and answers stay in the context, so that the next question may refer to them. Otherwise each
    /// question stands alone on the working set.
    pub conversation: bool,
    /// How a new working set is repaired, before any question is known.
    pub opening_repair: Repair,
    /// How a turn repairs what stands, and what it recalls. [`Ask::repair`] overrules it.
    pub turn_repair: Repair,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            budget_tokens: None,
            memory_share: 0.75,
            filter: None,
            conversation: true,
            opening_repair: Repair::Weighted { budget: Budget::Ratio(0.1), layers: 0..0 },
            turn_repair: Repair::Weighted { budget: Budget::Rows(8), layers: 1..2 },
        }
    }
}

impl SessionOptions {
    /// With so many tokens at most.
    #[must_use]
    pub fn budget_tokens(self, tokens: usize) -> Self {
        Self { budget_tokens: Some(tokens), ..self }
    }

    /// With this share of the tokens for memories when an epoch begins.
    #[must_use]
    pub fn memory_share(self, share: f32) -> Self {
        Self { memory_share: share, ..self }
    }

    /// With memories that pass this filter only.
    #[must_use]
    pub fn filter(self, filter: Filter) -> Self {
        Self { filter: Some(filter), ..self }
    }

    /// With or without what was said before in the context of a question.
    #[must_use]
    pub fn conversation(self, stays: bool) -> Self {
        Self { conversation: stays, ..self }
    }

    /// With new working sets repaired like this.
    #[must_use]
    pub fn opening_repair(self, repair: Repair) -> Self {
        Self { opening_repair: repair, ..self }
    }

    /// With what stands repaired like this in each turn.
    #[must_use]
    pub fn turn_repair(self, repair: Repair) -> Self {
        Self { turn_repair: repair, ..self }
    }
}

/// A conversation over a working set of memories that stays in place, so that a question costs its own tokens and
/// hardly more.
pub struct Session {
    memory: Memory,
    namespace: Namespace,
    options: SessionOptions,
    limit: usize,
    epoch: Option<Epoch>,
    /// The turn under way, which brings the epoch back when it is done.
    turn: Option<oneshot::Receiver<TurnEnd>>,
    /// Its end, if that has been seen and not been taken back.
    ended: Option<TurnEnd>,
    /// How often each memory was recalled in this session.
    recalls: HashMap<RecordId, u32>,
    /// What was said, for the next epoch.
    turns: Vec<Arc<Turn>>,
    epochs: usize,
}

/// What a turn is to say.
struct Next {
    /// What stands between the memories and the first turn.
    opening: Vec<Token>,
    /// The turns before it. Once there is an epoch for it, those are taken out that stand in the context.
    before: Vec<Arc<Turn>>,
    /// How many of the last of `before` must be in the context: results of tools need their question and calls.
    needed: usize,
    /// Tokens of these.
    needed_tokens: usize,
    /// In a context without turns, `before` may use 1/`room_divisor` of the free tokens.
    room_divisor: usize,
    is_question: bool,
    prompt: Vec<Token>,
    /// Tokens that it needs beside memories and the turns before it: what stands around it, the prompt, the answer.
    reserve: usize,
}

impl Session {
    pub(crate) fn new(memory: Memory, namespace: Namespace, options: SessionOptions) -> Result<Self> {
        let most = memory.model().info().context;
        let limit = options.budget_tokens.unwrap_or(most);
        let least = memory.layout().prefix.len() + 2;
        if !(least..=most).contains(&limit) {
            let expected = "at least the system line and at most the model's context";
            return Err(Error::BadValue { what: "token budget", value: limit.to_string(), expected });
        }
        if !(0.0..=1.0).contains(&options.memory_share) {
            let value = options.memory_share.to_string();
            return Err(Error::BadValue { what: "memory share", value, expected: "between 0 and 1" });
        }
        Ok(Self {
            memory,
            namespace,
            options,
            limit,
            epoch: None,
            turn: None,
            ended: None,
            recalls: HashMap::new(),
            turns: Vec::new(),
            epochs: 0,
        })
    }

    /// Puts the working set in place before the first question, chosen for what a text is about, and says what that
    /// recalled. A working set that stands, and still says what it said, stays as it is.
    ///
    /// # Errors
    /// As [`recall`](Self::recall); [`Error::KvCacheFull`] when the KV cache has no room, [`Error::Overloaded`] when too
    /// many requests wait; [`Error::Model`] when the model fails.
    pub async fn open(&mut self, about: impl Into<Recall>) -> Result<Vec<Recollection>> {
        let about = about.into();
        let mut attempts = Attempts::default();
        loop {
            match self.try_open(about.clone(), attempts.source()).await {
                Err(error) => attempts.retry_after(error, self.memory.chunks()).await?,
                opened => return opened,
            }
        }
    }

    async fn try_open(&mut self, about: Recall, source: Source) -> Result<Vec<Recollection>> {
        self.finish_turn().await;
        self.memory.meter().check().await?;
        let (records, found) = self.find(about).await?;
        let resident: Vec<RecordId> = self.epoch.iter().flat_map(|epoch| epoch.resident.keys().copied()).collect();
        self.memory.texts().load(&self.namespace, &records, &resident).await?;
        let filter = self.options.filter.as_ref();
        self.epoch = self.epoch.take().and_then(|epoch| epoch.current(&records, filter));
        if self.epoch.is_none() {
            // For a question that is not known yet.
            let reserve = self.limit / 4;
            let (epoch, cost) = self.begin_epoch(&records, &found, reserve, source).await?;
            self.epoch = Some(epoch);
            self.memory.record_usage(&self.namespace, cost.amounts()).await?;
        }
        Ok(found.iter().map(Found::recollection).collect())
    }

    /// The records that a text is about, of those that may stand in this session, best first. They count as recalled in
    /// it: the next working set holds them before others. What stands in the context stays as it is.
    ///
    /// # Errors
    /// As [`Memory::recall`]; [`Error::BadValue`] for a recall as of another moment or with a filter of its own, as in
    /// [`ask_stream`](Self::ask_stream).
    pub async fn recall(&mut self, about: impl Into<Recall>) -> Result<Vec<Recollection>> {
        let (_, found) = self.find(about.into()).await?;
        Ok(found.iter().map(Found::recollection).collect())
    }

    /// Answers a question.
    ///
    /// # Errors
    /// As [`Memory::ask`].
    pub async fn ask(&mut self, question: impl Into<Ask>) -> Result<Answer> {
        let answer = match self.ask_stream(question).await {
            Ok(stream) => stream.answer().await,
            Err(error) => Err(error),
        };
        self.finish_turn().await;
        answer
    }

    /// As [`ask`](Self::ask), with the text as it is generated. Dropping the stream ends the turn where it is. It returns
    /// when [`Memory::ask_stream`] does.
    ///
    /// # Errors
    /// As [`Memory::ask`]; [`Error::BadValue`] for a recall as of another moment, for what stands in a session is what
    /// counts now, and for a filter of its own, for what stands would not be filtered ([`SessionOptions::filter`] is for
    /// that).
    pub async fn ask_stream(&mut self, question: impl Into<Ask>) -> Result<AnswerStream> {
        let (started, ask) = (Instant::now(), question.into());
        let mut attempts = Attempts::default();
        loop {
            match self.try_ask(ask.clone(), started, attempts.source()).await {
                Err(error) => attempts.retry_after(error, self.memory.chunks()).await?,
                answer => return answer,
            }
        }
    }

    /// Asks once.
    ///
    /// # Errors
    /// [`Error::DamagedKv`] when KV from the store is lost before anything is generated.
    async fn try_ask(&mut self, ask: Ask, started: Instant, source: Source) -> Result<AnswerStream> {
        self.finish_turn().await;
        self.check_recall(&ask.recall)?;
        let Conversation { opening, mut exchanges } = self.memory.conversation(&ask).await?;
        let Some(Exchange { is_question, prompt, .. }) = exchanges.pop() else {
            return Err(Error::Empty { what: "question" });
        };
        ask.generation.check()?;
        self.memory.meter().check().await?;
        let reserve = self.reserve(&opening, &prompt, ask.generation.max_tokens)?;
        let (records, found) = self.find(ask.recall.clone()).await?;
        let forgotten = self.forgotten(&records).await?;
        // They may have left the cache since the last turn, and come back unread.
        let recalled = self.turns.iter().flat_map(|turn| turn.recalled.iter()).map(|entry| entry.record.id);
        let resident = self.epoch.iter().flat_map(|epoch| epoch.resident.keys().copied());
        let in_use: Vec<RecordId> = recalled.chain(resident).collect();
        self.memory.texts().load(&self.namespace, &records, &in_use).await?;
        self.turns.retain(|turn| turn.is_true(&records, &forgotten));
        let (before, room_divisor) = match ask.prompt {
            // Room is left for what comes, or the next turn would begin an epoch again.
            Prompt::Question(_) => (self.turns.clone(), 2),
            Prompt::Messages(_) => (recognised(self.memory.model().chat(), &self.turns, exchanges), 1),
        };
        // Results of tools mean nothing without the question and the calls before them.
        let since_question = before.iter().rev().position(|turn| turn.is_question).map_or(0, |index| index + 1);
        let needed = if is_question { 0 } else { since_question };
        let layout = self.memory.layout();
        let needed_tokens: usize = before.iter().rev().take(needed).map(|turn| turn.len(layout)).sum();
        let least = layout.prefix.len() + reserve + needed_tokens;
        if needed > 0 && least > self.limit {
            return Err(Error::TooLong { what: "conversation", tokens: least, limit: self.limit });
        }
        let mut next = Next { opening, before, needed, needed_tokens, room_divisor, is_question, prompt, reserve };
        let cost = self.epoch_for(&mut next, &records, &found, source).await?;
        self.submit_turn(next, ask, found, cost, started, source).await
    }

    /// The memories that stand in the context, oldest first. Empty before the first question, and from when an answer is
    /// streamed until the next question.
    pub fn resident(&self) -> Vec<Record> {
        let resident = self.epoch.iter().flat_map(|epoch| epoch.resident.values());
        let mut records: Vec<Record> = resident.map(|entry| entry.record.clone()).collect();
        records.sort_by_key(|record| record.id);
        records
    }

    /// Tokens that stand in the context; 0 whenever [`resident`](Self::resident) is empty for want of a context.
    pub fn resident_tokens(&self) -> usize {
        self.epoch.as_ref().map_or(0, Epoch::len)
    }

    /// Bytes of the model's KV cache that its context holds, those included that it shares with other contexts; 0 while an
    /// answer is being streamed.
    pub fn kv_cache_bytes(&mut self) -> u64 {
        if let Some(Ok(Some(end))) = self.turn.as_mut().map(oneshot::Receiver::try_recv) {
            (self.turn, self.ended) = (None, Some(end));
        }
        let epoch = self.epoch.as_ref().or(self.ended.as_ref().map(|end| &end.epoch));
        epoch.map_or(0, |epoch| epoch.context.bytes())
    }

    /// Tokens that the session holds at most.
    pub fn budget_tokens(&self) -> usize {
        self.limit
    }

    /// Waits for the answer that is being streamed to end, if one is, so that what stands can be looked at.
    pub async fn settle(&mut self) {
        self.finish_turn().await;
    }

    /// How often the working set was built, the first time included.
    pub fn epochs(&self) -> usize {
        self.epochs
    }

    /// Takes back the epoch that the last turn worked on. If its context broke there is none, and the next question begins
    /// a new one.
    async fn finish_turn(&mut self) {
        // Taken only once it is here: a caller may give up waiting and ask again.
        if let Some(turn) = &mut self.turn {
            self.ended = turn.await.ok();
            self.turn = None;
        }
        let Some(TurnEnd { mut epoch, answered, stopped }) = self.ended.take() else { return };
        if stopped {
            epoch.leave_out_stop_text(self.memory.model().chat());
        }
        if answered {
            self.turns = epoch.turns.iter().map(|placed| Arc::clone(&placed.turn)).collect();
        }
        self.epoch = Some(epoch);
    }

    /// Whether a recall is one that a session can do: what stands in it counts now, and passes the session's own filter.
    fn check_recall(&self, recall: &Recall) -> Result<()> {
        if recall.filter.is_some() {
            let (value, expected) =
                ("given for one question".to_owned(), "given to the session, for all that stands in it");
            return Err(Error::BadValue { what: "the filter", value, expected });
        }
        if let Some(moment) = recall.as_of {
            let expected = "absent in a session: ask the memory itself about the past";
            return Err(Error::BadValue { what: "as_of", value: moment.0.to_string(), expected });
        }
        Ok(())
    }

    /// The records that a text is about, which count as recalled.
    async fn find(&mut self, mut recall: Recall) -> Result<(Arc<Records>, Vec<Found>)> {
        self.check_recall(&recall)?;
        recall.filter.clone_from(&self.options.filter);
        let (records, found) = self.memory.find(&self.namespace, &recall).await?;
        for found in &found {
            *self.recalls.entry(found.entry.record.id).or_default() += 1;
        }
        Ok((records, found))
    }

    /// Tokens that a turn may need beside memories and the turns before it: what stands around it, the prompt, the answer.
    fn reserve(&self, opening: &[Token], prompt: &[Token], answer: usize) -> Result<usize> {
        let layout = self.memory.layout();
        let around = layout.late_memories.len() + layout.late_question.len().max(opening.len());
        let question = layout.next_question.len() + prompt.len() + around;
        let least = layout.prefix.len() + question + 1;
        if least > self.limit {
            return Err(Error::TooLong { what: "question", tokens: least, limit: self.limit });
        }
        Ok(question + answer.min((self.limit - least) / 2 + 1))
    }

    /// Those of the memories that ever stood behind what was said that have been forgotten since.
    ///
    /// A context is not `Sync`: only with `&mut self` does the future go from thread to thread.
    async fn forgotten(&mut self, records: &Records) -> Result<HashSet<RecordId>> {
        let now = Timestamp::now();
        let stood: HashSet<RecordId> = self.turns.iter().flat_map(|turn| turn.stood.iter().copied()).collect();
        let left: Vec<RecordId> = stood.into_iter().filter(|id| !records.counts(*id, now)).collect();
        if left.is_empty() {
            return Ok(HashSet::new());
        }
        let found = self.memory.ledger().get_many(&self.namespace, &left, now).await?;
        // Rather than changed or outlived.
        let is_forgotten = |record: &Option<Record>| {
            record.as_ref().is_none_or(|record| matches!(record.state, State::Forgotten { .. }))
        };
        Ok(left.into_iter().zip(found).filter(|(_, record)| is_forgotten(record)).map(|(id, _)| id).collect())
    }

    /// Whether an epoch can take another turn, with the turns before it that follow those that stand.
    fn has_room(
        &self,
        epoch: &Epoch,
        found: &[Found],
        before: &[Arc<Turn>],
        reserve: usize,
        is_question: bool,
    ) -> Result<bool> {
        let layout = self.memory.layout();
        // Turns before the first one that stands are said as far as there is room.
        let before = if epoch.turns.is_empty() { &[] } else { before };
        let said: usize = before.iter().map(|turn| turn.len(layout)).sum();
        // No memories come with results of tools.
        let new = if is_question || epoch.turns.is_empty() { self.new_tokens(epoch, found, reserve)? } else { 0 };
        Ok(epoch.len() + said + new + reserve <= self.limit)
    }

    /// The tokens of the memories that do not stand in an epoch yet, of those that a new epoch would have room for: another
    /// one would be begun in vain for the rest.
    fn new_tokens(&self, epoch: &Epoch, found: &[Found], reserve: usize) -> Result<usize> {
        let mut found = found.to_vec();
        self.memory.fit(&mut found, self.limit.saturating_sub(self.memory.layout().prefix.len() + reserve))?;
        let new = found.iter().filter(|found| !epoch.resident.contains_key(&found.entry.record.id));
        new.map(|found| Ok(self.memory.chunks().content(&found.entry)?.tokens.len())).sum()
    }

    /// Has an epoch stand with room for a turn: the one that stands, taken back to where the conversation differs from it,
    /// or else a new one, whose cost is returned. Turns that stand in it are taken out of those before the turn.
    async fn epoch_for(&mut self, next: &mut Next, records: &Records, found: &[Found], source: Source) -> Result<Cost> {
        let filter = self.options.filter.as_ref();
        if let Some(mut epoch) = self.epoch.take().and_then(|epoch| epoch.current(records, filter)) {
            let passed = epoch.keep(&next.opening, &next.before);
            let missing = if epoch.turns.is_empty() { next.needed_tokens } else { 0 };
            let (before, reserve) = (&next.before[passed..], next.reserve + missing);
            let has_room = self.has_room(&epoch, found, before, reserve, next.is_question);
            if !matches!(has_room, Ok(false)) {
                self.epoch = Some(epoch);
            }
            if has_room? {
                next.before.drain(..passed);
                return Ok(Cost::default());
            }
        }
        let (mut epoch, cost) = self.begin_epoch(records, found, next.reserve + next.needed_tokens, source).await?;
        let passed = epoch.keep(&next.opening, &next.before);
        next.before.drain(..passed);
        self.epoch = Some(epoch);
        Ok(cost)
    }

    /// Begins an epoch: picks the working set and blends it.
    async fn begin_epoch(
        &mut self,
        records: &Records,
        found: &[Found],
        reserve: usize,
        source: Source,
    ) -> Result<(Epoch, Cost)> {
        let room = self.limit.saturating_sub(self.memory.layout().prefix.len() + reserve);
        let entries = self.working_set(records, found, room).await?;
        let base = self.memory.chunks().base().await?;
        let fetched = self.memory.fetch(&self.namespace, &entries, source).await?;
        let mut usage = base.usage + fetched.usage;
        let pieces: Vec<Piece> = fetched.chunks.into_iter().map(Piece::Cached).collect();
        let context = match base.context {
            Some(context) if pieces.is_empty() => {
                if !base.is_new {
                    usage.resident += context.tokens().len();
                }
                context
            }
            context => {
                let repair = self.options.opening_repair.clone();
                let blended = self.memory.engine().blend(&self.namespace, context, pieces, repair).await?;
                usage += if base.is_new { Usage { resident: 0, ..blended.1 } } else { blended.1 };
                blended.0
            }
        };
        self.epochs += 1;
        let computed = fetched.computed;
        let cost = Cost { usage, opened: true, resident: entries.len(), chunks: entries.len(), computed };
        Ok((Epoch::new(context, entries), cost))
    }

    /// The memories that an epoch begins with: those that the question is about, then those that were recalled most
    /// often in this session, then the latest; as many as there is room for, in the order in which they were told. From one
    /// on that the question is about, and that memories' share has no room for, they come with the question.
    ///
    /// `&mut self` as in [`forgotten`](Self::forgotten).
    async fn working_set(&mut self, records: &Records, found: &[Found], room: usize) -> Result<Vec<Arc<Entry>>> {
        /// What fits no more is passed over for what is smaller, but not for ever: a large namespace would be tokenised
        /// whole to fill a last gap.
        const PASSED_OVER: usize = 32;
        /// Records that are read from the ledger at a time.
        const AT_A_TIME: usize = 256;
        let (mut free, mut left) = (room, room.min((self.options.memory_share * self.limit as f32) as usize));
        let asked: HashMap<RecordId, usize> = (0..).zip(found).map(|(rank, f)| (f.entry.record.id, rank)).collect();
        let mut active = records.active(Timestamp::now());
        active.sort_by_cached_key(|(id, updated_at)| {
            let rank = asked.get(id).copied().unwrap_or(usize::MAX);
            let recalls = self.recalls.get(id).copied().unwrap_or_default();
            (rank, Reverse(recalls), Reverse(*updated_at), Reverse(*id))
        });
        let (mut chosen, mut passed_over) = (Vec::new(), 0);
        'all: for some in active.chunks(AT_A_TIME) {
            let ids: Vec<RecordId> = some.iter().map(|(id, _)| *id).collect();
            let mut entries = self.memory.texts().load(&self.namespace, records, &ids).await?;
            entries.retain(|entry| self.options.filter.as_ref().is_none_or(|filter| filter.matches(&entry.record)));
            for entry in entries {
                let tokens = self.memory.chunks().content(&entry)?.tokens.len();
                if tokens <= left {
                    (left, free) = (left - tokens, free - tokens);
                    passed_over = 0;
                    chosen.push(entry);
                } else if tokens <= free && asked.contains_key(&entry.record.id) {
                    break 'all;
                } else {
                    passed_over += 1;
                }
                if left == 0 || passed_over == PASSED_OVER {
                    break 'all;
                }
            }
        }
        chosen.sort_by_key(|entry| entry.record.id);
        Ok(chosen)
    }

    /// The turns that are put into the context before the next one: all that follow those that stand; or where none
    /// stands, the last that there is room for, and at least those that are needed.
    fn history<'n>(&self, epoch: &Epoch, next: &'n Next, found: &[Found]) -> Result<&'n [Arc<Turn>]> {
        let before = &next.before[..];
        if !epoch.turns.is_empty() {
            return Ok(before);
        }
        let left = self.limit.saturating_sub(epoch.len() + self.new_tokens(epoch, found, next.reserve)? + next.reserve);
        let needed = &before[before.len() - next.needed.min(before.len())..];
        let fitting = last_that_fit(before, self.memory.layout(), left / next.room_divisor);
        Ok(if fitting.len() < needed.len() { needed } else { fitting })
    }

    /// Has a turn computed, with what has to stand before it.
    async fn submit_turn(
        &mut self,
        next: Next,
        ask: Ask,
        found: Vec<Found>,
        mut cost: Cost,
        started: Instant,
        source: Source,
    ) -> Result<AnswerStream> {
        let layout = self.memory.layout();
        let Some(epoch) = &self.epoch else { return Err(Error::Cancelled) };
        let before = self.history(epoch, &next, &found)?;
        let said: usize = before.iter().map(|turn| turn.len(layout)).sum();
        let room = self.limit.saturating_sub(epoch.len() + said + next.reserve);
        let is_new = |found: &Found| !epoch.resident.contains_key(&found.entry.record.id);
        let (mut new, standing): (Vec<_>, Vec<_>) = found.into_iter().partition(is_new);
        // Memories stand before the first turn, or else before a question.
        if !epoch.turns.is_empty() && !next.is_question {
            new.clear();
        }
        self.memory.fit(&mut new, room)?;
        new.sort_by_key(|found| found.entry.record.id);
        let entries: Vec<Arc<Entry>> = new.iter().map(|found| Arc::clone(&found.entry)).collect();
        let fetched = self.memory.fetch(&self.namespace, &entries, source).await?;
        cost.usage += fetched.usage;
        (cost.chunks, cost.computed) = (cost.chunks + entries.len(), cost.computed + fetched.computed);
        let bill = self.memory.bill(&self.namespace, cost);
        self.memory.note(&new, &fetched.chunks);
        let cached = fetched.chunks.into_iter().map(Piece::Cached).collect();

        // From here on nothing waits: a caller who gives up loses no epoch.
        let Some(epoch) = self.epoch.take() else { return Err(Error::Cancelled) };
        let mut laid_out = epoch.lay_out(layout, before, cached, next.is_question, &next.prompt);
        let pieces = std::mem::take(&mut laid_out.pieces);
        let Epoch { context, mut resident, opening, pending, .. } = epoch;
        let memories = entries.iter().map(|entry| entry.record.id).collect();
        resident.extend(entries.into_iter().map(|entry| (entry.record.id, entry)));
        cost.resident = resident.len();
        let mut found = [standing, new].concat();
        found.sort_by_key(|found| found.entry.record.id);
        let recalled = found.iter().map(|found| Arc::clone(&found.entry)).collect();
        let behind = laid_out.turns.iter().flat_map(|placed| placed.turn.stood.iter().copied());
        let stood: HashSet<RecordId> = resident.keys().copied().chain(behind).collect();
        let turn = Turn::unanswered(next.is_question, next.prompt, recalled, stood);
        let conversation = self.options.conversation;
        let (give_back, end) = oneshot::channel();
        self.turn = Some(end);
        let unfinished =
            UnfinishedTurn { turn, laid_out, memories, resident, opening, pending, conversation, bill, give_back };
        let repair = ask.repair.unwrap_or_else(|| self.options.turn_repair.clone());
        let request = Request::new(self.namespace.clone(), pieces).context(context).limit(self.limit);
        let request = request.repair(repair).generation(ask.generation).started(started);
        // Called with what came of the turn, and on the way out if nothing did.
        let request = request.finally(Box::new(move |context, completion| unfinished.finish(context, completion)));
        let mut output = self.memory.engine().submit(request)?;
        output.loaded().await?;
        let recalled = found.iter().map(Found::recollection).collect();
        Ok(AnswerStream::new(&self.memory, output, recalled, cost, &ask.tools))
    }
}
