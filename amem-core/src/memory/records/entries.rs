//! A namespace's active records as they are known, and how that is saved.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use crate::recall::saved::{Reader, Writer};
use crate::{ChunkId, Record, RecordId, Result, Timestamp, Token};

/// The first bytes of what is saved.
const MARK: &[u8; 8] = b"amemrec1";

/// A record and what it is to the model.
pub(crate) struct Entry {
    pub(crate) record: Record,
    content: OnceLock<Content>,
}

/// A record's text as the model has it.
#[derive(Clone)]
pub(crate) struct Content {
    /// The template's marks included.
    pub(crate) tokens: Arc<[Token]>,
    pub(crate) chunk: ChunkId,
}

impl Entry {
    pub(crate) fn new(record: Record) -> Self {
        Self { record, content: OnceLock::new() }
    }

    /// The record's tokens and the name of its chunk, computed by `compute` if nobody has yet.
    pub(crate) fn content(&self, compute: impl FnOnce(&Record) -> Result<Content>) -> Result<&Content> {
        if let Some(content) = self.content.get() {
            return Ok(content);
        }
        let content = compute(&self.record)?;
        Ok(self.content.get_or_init(|| content))
    }
}

/// The active records of one namespace, read or not.
#[derive(Default)]
pub(super) struct Entries {
    pub(super) by_id: BTreeMap<RecordId, Known>,
    /// Those that will expire, the next one first, so that a question need not look at all.
    pub(super) expiring: BTreeSet<(Timestamp, RecordId)>,
}

/// An active record, which may not have been read yet.
pub(super) struct Known {
    pub(super) updated_at: Timestamp,
    expires_at: Option<Timestamp>,
    pub(super) entry: Option<Arc<Entry>>,
    /// The entry is what was indexed. One that was read later may say already what the next changes tell of.
    pub(super) is_indexed: bool,
}

impl Known {
    /// Whether the record still counts at this moment.
    pub(super) fn counts(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|expiry| expiry > now)
    }
}

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn insert(&mut self, record: Record) {
        let (id, updated_at, expires_at) = (record.id, record.updated_at, record.expires_at);
        let content = self.saying(&record).map(|entry| entry.content.clone()).unwrap_or_default();
        self.remove(id);
        self.expiring.extend(expires_at.map(|at| (at, id)));
        let entry = Some(Arc::new(Entry { record, content }));
        self.by_id.insert(id, Known { updated_at, expires_at, entry, is_indexed: true });
    }

    /// The record's entry from before, if it was read and said the same.
    pub(super) fn saying(&self, record: &Record) -> Option<&Arc<Entry>> {
        self.by_id.get(&record.id)?.entry.as_ref().filter(|entry| entry.record.text == record.text)
    }

    /// Marks records whose indexed text may differ from their entry's.
    pub(super) fn set_unindexed(&mut self, ids: impl Iterator<Item = RecordId>) {
        for id in ids {
            if let Some(known) = self.by_id.get_mut(&id) {
                known.is_indexed = false;
            }
        }
    }

    pub(super) fn remove(&mut self, id: RecordId) {
        let removed = self.by_id.remove(&id);
        if let Some(at) = removed.and_then(|known| known.expires_at) {
            self.expiring.remove(&(at, id));
        }
    }

    /// Those whose time is over.
    pub(super) fn expired(&self, now: Timestamp) -> impl Iterator<Item = RecordId> {
        self.expiring.iter().take_while(move |(at, _)| *at <= now).map(|(_, id)| *id)
    }

    /// The names and dates of all, and the index.
    pub(super) fn save(&self, index: &[u8]) -> Vec<u8> {
        let mut writer = Writer::new(MARK);
        writer.number(self.by_id.len() as u64);
        for (id, known) in &self.by_id {
            writer.id(*id);
            writer.number(known.updated_at.0.cast_unsigned());
            writer.number(u64::from(known.expires_at.is_some()));
            known.expires_at.into_iter().for_each(|at| writer.number(at.0.cast_unsigned()));
        }
        writer.bytes(index);
        writer.done()
    }

    /// What [`save`](Self::save) wrote.
    pub(super) fn restore(saved: &[u8]) -> Option<(Self, &[u8])> {
        let mut reader = Reader::new(MARK, saved)?;
        let count = reader.count(18)?;
        let mut known: Vec<(RecordId, Known)> = Vec::with_capacity(count);
        for _ in 0..count {
            let (id, updated_at) = (reader.id()?, Timestamp(reader.number()?.cast_signed()));
            let expires_at = match reader.number()? {
                0 => None,
                1 => Some(Timestamp(reader.number()?.cast_signed())),
                _ => return None,
            };
            if known.last().is_some_and(|(last, _)| *last >= id) {
                return None;
            }
            known.push((id, Known { updated_at, expires_at, entry: None, is_indexed: false }));
        }
        let index = reader.bytes()?;
        reader.is_done()?;
        let expiring = known.iter().filter_map(|(id, known)| Some((known.expires_at?, *id))).collect();
        Some((Self { by_id: known.into_iter().collect(), expiring }, index))
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;
    use crate::{Ledger, Namespace, NewRecord, RamLedger};

    #[test]
    fn a_record_is_tokenised_once() {
        let (ledger, namespace) = (RamLedger::new(), Namespace::new("a").unwrap());
        let added = block_on(ledger.add(&namespace, &[NewRecord::new("a note")], Timestamp::now())).unwrap();
        let entry = Entry::new(added[0].record.clone());
        let mut calls = 0;
        for _ in 0..3 {
            let content = entry.content(|_| {
                calls += 1;
                Ok(Content { tokens: [7].into(), chunk: ChunkId([0; 32]) })
            });
            assert_eq!(&*content.unwrap().tokens, [7]);
        }
        assert_eq!(calls, 1);
    }
}
