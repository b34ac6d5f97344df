//! Rows of records and their texts, and the checksums by which a row that is not what was written is found.

use amem_core::{Metadata, Namespace, Record, RecordId, State, Timestamp};
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use super::error::Failure;

pub(super) const ACTIVE: i16 = 0;
pub(super) const SUPERSEDED: i16 = 1;
pub(super) const FORGOTTEN: i16 = 2;

/// The columns that [`Found::from_row`] reads, of records `r` and versions `v`.
macro_rules! columns {
    () => {
        "r.seq, r.id, r.key, r.metadata, r.version, r.created_at, r.expires_at, r.state, r.ended_at, r.ended_by, \
         r.revision, r.checksum, v.record, v.number, v.text, v.hash, v.from_at, v.until_at, v.checksum"
    };
}

/// A row of `record`.
#[derive(Clone, Debug)]
pub(super) struct RecordRow {
    pub(super) seq: i64,
    pub(super) id: Vec<u8>,
    pub(super) key: Option<Vec<u8>>,
    pub(super) metadata: Option<Vec<u8>>,
    pub(super) version: i32,
    pub(super) created_at: i64,
    pub(super) expires_at: Option<i64>,
    pub(super) state: i16,
    pub(super) ended_at: Option<i64>,
    pub(super) ended_by: Option<Vec<u8>>,
    pub(super) revision: i64,
}

/// A row of `version`.
#[derive(Clone, Debug)]
pub(super) struct VersionRow {
    pub(super) record: i64,
    pub(super) number: i32,
    pub(super) text: Vec<u8>,
    pub(super) hash: Option<i64>,
    pub(super) from_at: i64,
    pub(super) until_at: Option<i64>,
}

impl RecordRow {
    /// Of all columns, so that none can be changed or moved to another namespace unnoticed.
    pub(super) fn checksum(&self, namespace: &NameHash) -> i64 {
        let mut sum = Checksum::new(namespace);
        sum.number(Some(self.seq)).bytes(Some(&self.id)).bytes(self.key.as_deref()).bytes(self.metadata.as_deref());
        sum.number(Some(self.version.into())).number(Some(self.created_at)).number(self.expires_at);
        sum.number(Some(self.state.into())).number(self.ended_at).bytes(self.ended_by.as_deref());
        sum.number(Some(self.revision)).finish()
    }

    /// A record `r` of the columns from `first` on, whether it is what was written or not.
    pub(super) fn unchecked(row: &Row, first: usize) -> Result<Self, Failure> {
        Ok(Self {
            seq: get(row, first)?,
            id: get(row, first + 1)?,
            key: get(row, first + 2)?,
            metadata: get(row, first + 3)?,
            version: get(row, first + 4)?,
            created_at: get(row, first + 5)?,
            expires_at: get(row, first + 6)?,
            state: get(row, first + 7)?,
            ended_at: get(row, first + 8)?,
            ended_by: get(row, first + 9)?,
            revision: get(row, first + 10)?,
        })
    }

    /// Whether it counts at this moment.
    pub(super) fn is_active(&self, now: Timestamp) -> bool {
        self.state == ACTIVE && self.expires_at.is_none_or(|at| at > now.0)
    }
}

impl VersionRow {
    pub(super) fn checksum(&self, namespace: &NameHash) -> i64 {
        let mut sum = Checksum::new(namespace);
        sum.number(Some(self.record)).number(Some(self.number.into())).bytes(Some(&self.text)).number(self.hash);
        sum.number(Some(self.from_at)).number(self.until_at).finish()
    }

    /// A version `v` of the columns from `first` on; `None` if there is none.
    fn from_row(row: &Row, first: usize, namespace: &NameHash) -> Result<Option<Self>, Failure> {
        if get::<Option<i64>>(row, first)?.is_none() {
            return Ok(None);
        }
        let version = Self {
            record: get(row, first)?,
            number: get(row, first + 1)?,
            text: get(row, first + 2)?,
            hash: get(row, first + 3)?,
            from_at: get(row, first + 4)?,
            until_at: get(row, first + 5)?,
        };
        let is_sound = get::<i64>(row, first + 6)? == version.checksum(namespace);
        Ok(is_sound.then_some(version))
    }
}

/// A record with one of its texts, both as they were written.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) record: RecordRow,
    pub(super) version: VersionRow,
}

impl Found {
    /// What [`columns`] gave, from column `first` on.
    pub(super) fn from_row(row: &Row, first: usize, namespace: &NameHash) -> Result<Self, Failure> {
        let record = RecordRow::unchecked(row, first)?;
        let version = VersionRow::from_row(row, first + 12, namespace)?.filter(|version| version.record == record.seq);
        match version {
            Some(version) if get::<i64>(row, first + 11)? == record.checksum(namespace) => Ok(Self { record, version }),
            _ => Err(Failure::Damaged(format!("{} is not what was written", name(&record.id)))),
        }
    }

    pub(super) fn is_forgotten(&self) -> bool {
        self.record.state == FORGOTTEN
    }

    pub(super) fn is_active(&self, now: Timestamp) -> bool {
        self.record.is_active(now)
    }

    /// The record as it is at `now`.
    pub(super) fn record(&self, namespace: &Namespace, now: Timestamp) -> Result<Record, Failure> {
        let Self { record: row, version } = self;
        let damaged = |what| Failure::Damaged(format!("the {what} of {} is not what was written", name(&row.id)));
        let id = record_id(&row.id).ok_or_else(|| damaged("id"))?;
        let at = Timestamp(row.ended_at.unwrap_or_default());
        let state = match (row.state, row.expires_at) {
            (ACTIVE, Some(at)) if at <= now.0 => State::Expired { at: Timestamp(at) },
            (ACTIVE, _) => State::Active,
            (SUPERSEDED, _) => {
                let by = row.ended_by.as_deref().and_then(record_id).ok_or_else(|| damaged("end"))?;
                State::Superseded { by, at }
            }
            (FORGOTTEN, _) => State::Forgotten { at },
            _ => return Err(damaged("state")),
        };
        let text = utf8(&version.text).ok_or_else(|| damaged("text"))?;
        let mut record = Record::new(id, namespace.clone(), text, Timestamp(row.created_at));
        record.key = match &row.key {
            Some(key) => Some(utf8(key).ok_or_else(|| damaged("key"))?),
            None => None,
        };
        record.metadata = match &row.metadata {
            Some(json) => serde_json::from_slice(json).map_err(|_| damaged("metadata"))?,
            None => Metadata::default(),
        };
        record.updated_at = Timestamp(version.from_at);
        record.expires_at = row.expires_at.map(Timestamp);
        record.state = state;
        Ok(record)
    }
}

/// The BLAKE3 hash of a namespace's name: what it is found by, and known by once it is deleted.
pub(super) type NameHash = [u8; 32];

pub(super) fn name_hash(namespace: &Namespace) -> NameHash {
    blake3::hash(namespace.as_str().as_bytes()).into()
}

/// What equal texts under equal keys of one namespace have in common. Others may have it too, by chance.
pub(super) fn text_hash(namespace: &NameHash, key: Option<&str>, text: &str) -> i64 {
    let mut hash = blake3::Hasher::new();
    let key = key.unwrap_or_default().as_bytes();
    hash.update(namespace).update(&(key.len() as u64).to_le_bytes()).update(key).update(text.as_bytes());
    first_bits(&hash)
}

pub(super) fn index_checksum(namespace: &NameHash, name: &str, revision: i64, bytes: &[u8]) -> i64 {
    let mut sum = Checksum::new(namespace);
    sum.bytes(Some(name.as_bytes())).number(Some(revision)).bytes(Some(bytes)).finish()
}

/// 64 bits of a hash, as PostgreSQL's integers have them.
pub(super) fn first_bits(hash: &blake3::Hasher) -> i64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash.finalize().as_bytes();
    i64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// A column's value. A row that was written by this code has no other kind of value.
pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, Failure> {
    row.try_get(column).map_err(|error| Failure::Damaged(super::error::told(&error)))
}

pub(super) fn utf8(bytes: &[u8]) -> Option<String> {
    Some(std::str::from_utf8(bytes).ok()?.to_owned())
}

pub(super) fn record_id(bytes: &[u8]) -> Option<RecordId> {
    Some(RecordId::from_bytes(bytes.try_into().ok()?))
}

/// What to call the record of a row, whose id may be damaged too.
pub(super) fn name(id: &[u8]) -> String {
    record_id(id).map_or_else(|| "a record".to_owned(), |id| format!("record {id}"))
}

struct Checksum(blake3::Hasher);

impl Checksum {
    fn new(namespace: &NameHash) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(namespace);
        Self(hash)
    }

    /// Each value is preceded by its kind and length, so that no two rows give the same bytes.
    fn value(&mut self, kind: u8, bytes: &[u8]) -> &mut Self {
        self.0.update(&[kind]).update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        self
    }

    fn number(&mut self, value: Option<i64>) -> &mut Self {
        match value {
            Some(value) => self.value(1, &value.to_le_bytes()),
            None => self.value(0, &[]),
        }
    }

    fn bytes(&mut self, value: Option<&[u8]>) -> &mut Self {
        match value {
            Some(bytes) => self.value(4, bytes),
            None => self.value(0, &[]),
        }
    }

    fn finish(&self) -> i64 {
        first_bits(&self.0)
    }
}
