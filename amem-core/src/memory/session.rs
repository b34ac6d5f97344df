//! Sessions: a conversation over a working set of memories that stays in place.
//!
//! A session is an append-only list of pieces: the head and system line, a snapshot of memories, then turn by turn the
//! memories that were newly recalled, the question and the answer. What stands is never computed again, but for rows
//! of cached memories that a later question shows to need it: repair accumulates. When the token budget is full, or a
//! memory in it has changed or is gone, a new *epoch* begins: the working set is picked anew and blended once.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures_channel::oneshot;

use super::Found;
use super::answer::Cost;
use super::records::{Entry, Records};
use crate::{
    Answer, AnswerStream, Ask, Budget, Completion, Context, Error, KvChunk, Memory, Namespace, Piece, Record, RecordId,
    Repair, Request, Result, Timestamp, Token, Usage,
};

/// How a session goes about its work.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionOptions {
    /// Tokens that it holds at most; `None` for as many as the model can.
    pub budget_tokens: Option<usize>,
    /// The share of them that memories may take when an epoch begins, 0 to 1. The rest is for the conversation.
    pub memory_share: f32,
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
            conversation: true,
            opening_repair: Repair::Weighted { budget: Budget::Ratio(0.1), layers: 0..0 },
            turn_repair: Repair::Weighted { budget: Budget::Rows(8), layers: 1..2 },
        }
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
    turn: Option<oneshot::Receiver<Epoch>>,
    /// How often each memory was recalled in this session.
    recalls: HashMap<RecordId, u32>,
    /// What was said, for the next epoch.
    turns: Vec<Turn>,
    epochs: usize,
}

/// A question and its answer, as tokens, and what they may tell of.
#[derive(Clone)]
struct Turn {
    question: Vec<Token>,
    answer: Vec<Token>,
    /// The memories that were recalled for it, as they were.
    recalled: Vec<Arc<Entry>>,
    /// All that stood in the context, or behind what was said there.
    stood: HashSet<RecordId>,
}

impl Turn {
    /// Whether it tells of nothing that has changed since: no memory that was recalled for it says something else now,
    /// and none that it could have been told from was forgotten.
    fn is_true(&self, records: &Records, forgotten: &HashSet<RecordId>) -> bool {
        self.recalled.iter().all(|entry| is_current(records, &entry.record))
            && self.stood.iter().all(|id| !forgotten.contains(id))
    }
}

/// Whether a memory still says what it said.
fn is_current(records: &Records, record: &Record) -> bool {
    records.get(record.id, Timestamp::now()).is_some_and(|now| now.record.text == record.text)
}

/// A context and what stands in it.
struct Epoch {
    context: Box<dyn Context>,
    resident: HashMap<RecordId, Arc<Entry>>,
    turns: Vec<Turn>,
    /// Tokens of the last answer that were drawn but never computed. They come before the next question.
    pending: Vec<Token>,
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
            recalls: HashMap::new(),
            turns: Vec::new(),
            epochs: 0,
        })
    }

    /// Answers a question.
    ///
    /// # Errors
    /// As [`Memory::ask`].
    pub async fn ask(&mut self, question: impl Into<Ask>) -> Result<Answer> {
        let answer = self.ask_stream(question).await?.answer().await?;
        self.settle().await;
        Ok(answer)
    }

    /// As [`ask`](Self::ask), with the text as it is generated. Dropping the stream ends the turn where it is.
    ///
    /// # Errors
    /// As [`Memory::ask`]; [`Error::BadValue`] for a recall as of another moment: what stands in a session is what counts
    /// now.
    pub async fn ask_stream(&mut self, question: impl Into<Ask>) -> Result<AnswerStream> {
        let started = Instant::now();
        let ask = question.into();
        self.settle().await;
        if let Some(moment) = ask.recall.as_of {
            let expected = "absent in a session: ask the memory itself about the past";
            return Err(Error::BadValue { what: "as_of", value: moment.0.to_string(), expected });
        }
        let (records, found) = self.memory.find(&self.namespace, &ask.recall).await?;
        for found in &found {
            *self.recalls.entry(found.entry.record.id).or_default() += 1;
        }
        let mut usage = Usage::default();
        let reserve = self.reserve(&ask)?;
        if let Some(sampling) = &ask.generation.sampling {
            sampling.check()?;
        }
        let epochs = self.epochs;
        let forgotten = self.forgotten(&records).await?;
        self.turns.retain(|turn| turn.is_true(&records, &forgotten));
        let stands = match &self.epoch {
            Some(epoch) => self.stands(epoch, &records, &found, reserve)?,
            None => false,
        };
        if !stands {
            self.epoch = None;
            let (epoch, cost) = self.open(&records, &found, reserve).await?;
            usage += cost;
            self.epoch = Some(epoch);
        }
        let Some(epoch) = self.epoch.take() else { return Err(Error::Cancelled) };
        let cost = Cost { usage, opened: self.epochs > epochs };
        self.turn(epoch, ask, found, cost, started).await
    }

    /// The memories that stand in the context, oldest first. Empty before the first question, and from when an answer is
    /// streamed until the next question.
    pub fn resident(&self) -> Vec<Record> {
        let resident = self.epoch.iter().flat_map(|epoch| epoch.resident.values());
        let mut records: Vec<Record> = resident.map(|entry| entry.record.clone()).collect();
        records.sort_by_key(|record| record.id);
        records
    }

    /// How often the working set was built, the first time included.
    pub fn epochs(&self) -> usize {
        self.epochs
    }

    /// Takes back the epoch that the last turn worked on. If its context broke there is none, and the next question begins
    /// a new one.
    async fn settle(&mut self) {
        // Taken only once it is here: a caller may give up waiting and ask again.
        if let Some(turn) = &mut self.turn {
            let epoch = turn.await.ok();
            self.turn = None;
            if let Some(epoch) = epoch {
                self.turns.clone_from(&epoch.turns);
                self.epoch = Some(epoch);
            }
        }
    }

    /// Tokens that a turn may need beside memories: the question, what stands around it, and the answer.
    fn reserve(&self, ask: &Ask) -> Result<usize> {
        let layout = self.memory.layout();
        let around = layout.late_memories.len() + layout.late_question.len().max(layout.to_question.len());
        let question = self.memory.question(&layout.next_question, &ask.question)?.len() + around;
        let least = layout.prefix.len() + question + 1;
        if least > self.limit {
            return Err(Error::TooLong { what: "question", tokens: least, limit: self.limit });
        }
        Ok(question + ask.generation.max_tokens.min((self.limit - least) / 2 + 1))
    }

    /// Those of the memories that ever stood behind what was said that have been forgotten since.
    async fn forgotten(&self, records: &Records) -> Result<HashSet<RecordId>> {
        let stood: HashSet<RecordId> = self.turns.iter().flat_map(|turn| turn.stood.iter().copied()).collect();
        let (mut forgotten, now) = (HashSet::new(), Timestamp::now());
        for id in stood {
            if records.get(id, now).is_none() && self.memory.is_forgotten(&self.namespace, id).await? {
                forgotten.insert(id);
            }
        }
        Ok(forgotten)
    }

    /// Whether an epoch can take another turn: all that stands in it is still true, memories and turns alike, and there
    /// is room.
    fn stands(&self, epoch: &Epoch, records: &Records, found: &[Found], reserve: usize) -> Result<bool> {
        let mut needed = epoch.context.tokens().len() + reserve;
        for found in found.iter().filter(|found| !epoch.resident.contains_key(&found.entry.record.id)) {
            needed += self.memory.entry_tokens(&found.entry)?.len();
        }
        let is_true = epoch.resident.values().all(|entry| is_current(records, &entry.record));
        Ok(is_true && epoch.turns.len() <= self.turns.len() && needed <= self.limit)
    }

    /// Begins an epoch: picks the working set, blends it, and says again what was said.
    async fn open(&mut self, records: &Records, found: &[Found], reserve: usize) -> Result<(Epoch, Usage)> {
        let room = self.limit.saturating_sub(self.memory.layout().prefix.len() + reserve);
        let entries = self.working_set(records, found, room)?;
        let base = self.memory.base().await?;
        let fetched = self.memory.fetch(&self.namespace, &entries).await?;
        let mut usage = base.usage + fetched.usage;
        let taken: usize = fetched.chunks.iter().map(|chunk| chunk.tokens().len()).sum();
        let (turns, said) = self.said_again(room.saturating_sub(taken));
        let mut pieces: Vec<Piece> = fetched.chunks.into_iter().map(Piece::Cached).collect();
        if !said.is_empty() {
            pieces.push(Piece::Fresh(said.into()));
        }
        let context = match base.context {
            Some(context) if pieces.is_empty() => context,
            context => {
                let repair = self.options.opening_repair.clone();
                let blended = self.memory.engine().blend(&self.namespace, context, pieces, repair).await?;
                usage += if base.is_new { Usage { resident: 0, ..blended.1 } } else { blended.1 };
                blended.0
            }
        };
        self.epochs += 1;
        let resident = entries.into_iter().map(|entry| (entry.record.id, entry)).collect();
        Ok((Epoch { context, resident, turns, pending: Vec::new() }, usage))
    }

    /// The memories that an epoch begins with: those that the question is about, then those that were recalled most
    /// often in this session, then the latest; as many as there is room for, in the order in which they were told.
    fn working_set(&self, records: &Records, found: &[Found], room: usize) -> Result<Vec<Arc<Entry>>> {
        /// What fits no more is passed over for what is smaller, but not for ever: a large namespace would be tokenised
        /// whole to fill a last gap.
        const PASSED_OVER: usize = 32;
        let mut left = room.min((self.options.memory_share * self.limit as f32) as usize);
        let asked: HashMap<RecordId, usize> = (0..).zip(found).map(|(rank, f)| (f.entry.record.id, rank)).collect();
        let mut active = records.active(Timestamp::now());
        active.sort_by_cached_key(|entry| {
            let record = &entry.record;
            let rank = asked.get(&record.id).copied().unwrap_or(usize::MAX);
            let recalls = self.recalls.get(&record.id).copied().unwrap_or_default();
            (rank, Reverse(recalls), Reverse(record.updated_at), Reverse(record.id))
        });
        let (mut chosen, mut passed_over) = (Vec::new(), 0);
        for entry in active {
            let tokens = self.memory.entry_tokens(&entry)?.len();
            if tokens <= left {
                left -= tokens;
                passed_over = 0;
                chosen.push(entry);
            } else {
                passed_over += 1;
            }
            if left == 0 || passed_over == PASSED_OVER {
                break;
            }
        }
        chosen.sort_by_key(|entry| entry.record.id);
        Ok(chosen)
    }

    /// The last turns of the conversation that fit, and their tokens, up to the last answer's end.
    fn said_again(&self, room: usize) -> (Vec<Turn>, Vec<Token>) {
        let layout = self.memory.layout();
        let mut left = room / 2;
        let fits = |turn: &&Turn| {
            let tokens = turn.question.len() + turn.answer.len() + layout.next_question.len() + layout.to_answer.len();
            let fits = tokens <= left;
            left = left.saturating_sub(tokens);
            fits
        };
        let count = self.turns.iter().rev().take_while(fits).count();
        let turns = self.turns[self.turns.len() - count..].to_vec();
        let mut tokens = Vec::new();
        for (index, turn) in turns.iter().enumerate() {
            tokens.extend_from_slice(if index == 0 { &layout.to_question } else { &layout.next_question });
            tokens.extend_from_slice(&turn.question);
            tokens.extend_from_slice(&layout.to_answer);
            tokens.extend_from_slice(&turn.answer);
        }
        (turns, tokens)
    }

    /// Starts a turn on a thread of its own.
    async fn turn(
        &mut self,
        mut epoch: Epoch,
        ask: Ask,
        found: Vec<Found>,
        mut cost: Cost,
        started: Instant,
    ) -> Result<AnswerStream> {
        let layout = self.memory.layout();
        let room = self.limit.saturating_sub(epoch.context.tokens().len() + self.reserve(&ask)?);
        let is_new = |found: &Found| !epoch.resident.contains_key(&found.entry.record.id);
        let (mut new, standing): (Vec<_>, Vec<_>) = found.into_iter().partition(is_new);
        self.memory.fit(&mut new, room)?;
        new.sort_by_key(|found| found.entry.record.id);
        let entries: Vec<Arc<Entry>> = new.iter().map(|found| Arc::clone(&found.entry)).collect();
        let fetched = self.memory.fetch(&self.namespace, &entries).await?;
        cost.usage += fetched.usage;
        self.memory.note(&new, &fetched.chunks);
        let late = !epoch.turns.is_empty();
        let stood_before = (epoch.context.tokens().len(), epoch.pending.clone());
        let mut pieces = Vec::new();
        let mut before = std::mem::take(&mut epoch.pending);
        if late && !new.is_empty() {
            before.extend_from_slice(&layout.late_memories);
            pieces.push(Piece::Fresh(before.into()));
            before = layout.late_question.to_vec();
        } else {
            before.extend_from_slice(if late { &layout.next_question } else { &layout.to_question });
        }
        pieces.extend(fetched.chunks.iter().cloned().map(Piece::Cached));
        let question = self.memory.model().chat().encode(&ask.question)?;
        pieces.push(Piece::Fresh([before.as_slice(), &question, &layout.to_answer].concat().into()));
        let asked: usize = pieces.iter().map(|piece| piece.tokens().len()).sum();
        let new_ids: Vec<RecordId> = entries.iter().map(|entry| entry.record.id).collect();
        epoch.resident.extend(entries.into_iter().map(|entry| (entry.record.id, entry)));
        let added: usize = fetched.chunks.iter().map(|chunk: &KvChunk| chunk.tokens().len()).sum();
        let stays = epoch.context.tokens().len() + added;
        let mut found = [standing, new].concat();
        found.sort_by_key(|found| found.entry.record.id);
        let about: Vec<Arc<Entry>> = found.iter().map(|found| Arc::clone(&found.entry)).collect();
        let said = epoch.turns.iter().flat_map(|turn| turn.stood.iter().copied());
        let stood: HashSet<RecordId> = epoch.resident.keys().copied().chain(said).collect();
        let repair = ask.repair.unwrap_or_else(|| self.options.turn_repair.clone());
        let (give_back, turn) = oneshot::channel();
        self.turn = Some(turn);
        let Epoch { context, mut resident, mut turns, .. } = epoch;
        let conversation = self.options.conversation;
        // Called with what came of the turn, and on the way out if nothing did.
        let finally = move |context: Option<Box<dyn Context>>, completion: Result<&Completion, &Error>| {
            let Some(mut context) = context else { return };
            let (len, pending) = stood_before;
            let answer = completion.ok().and_then(|completion| completion.choices.first());
            let pending = match answer {
                // A turn that was given up before its question was computed never was.
                Some(choice) if context.tokens().len() >= len + asked => {
                    if conversation {
                        turns.push(Turn { question, answer: choice.tokens.clone(), recalled: about, stood });
                        choice.unwritten.clone()
                    } else {
                        context.truncate(stays);
                        Vec::new()
                    }
                }
                _ => {
                    context.truncate(len);
                    new_ids.iter().for_each(|id| drop(resident.remove(id)));
                    pending
                }
            };
            // A context that broke is of no use, and a session that is gone needs none.
            if context.is_usable() {
                let _ = give_back.send(Epoch { context, resident, turns, pending });
            }
        };
        let request = Request::new(self.namespace.clone(), pieces).context(context).limit(self.limit);
        let request = request.repair(repair).generation(ask.generation).started(started).finally(Box::new(finally));
        let output = self.memory.engine().submit(request)?;
        let recalled = found.iter().map(Found::recollection).collect();
        Ok(AnswerStream::new(output, recalled, cost))
    }
}
