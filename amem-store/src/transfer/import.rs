//! Reading records from lines.

use std::collections::HashMap;
use std::io::BufRead;

use amem_core::{
    Added, Error, Ledger, Listing, Metadata, Namespace, NewRecord, Outcome, Query, Record, RecordId, State, Timestamp,
};
use serde::Deserialize;

use super::lines::Lines;
use super::moment::Moment;
use super::{Became, Imported, ImportedLine, TransferError};

/// Texts that are added in one call at most, and bytes of them, about: a ledger pays for each call.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
/// Superseded records that are known at most while lines of many namespaces are read. Those of one may be more.
const KNOWN: usize = 1 << 20;

#[derive(Deserialize)]
struct Line {
    namespace: Option<String>,
    text: Option<String>,
    key: Option<String>,
    metadata: Option<Metadata>,
    created_at: Option<Moment>,
    updated_at: Option<Moment>,
    expires_at: Option<Moment>,
    state: Option<String>,
}

/// Adds the records of lines, in their order, so that a later line of a key supersedes an earlier one, unless it says
/// that it is from before: a line whose text is older, by its `updated_at` or else its `created_at`, than that of the
/// key's active record becomes a superseded record, as [`Ledger::add`] says. With a namespace, all of them to that one;
/// without, each to the one that its line names. Calls `told` with what became of each line, in the order of the lines
/// but for those that are not added, which may be told earlier. Blank lines are none.
///
/// Lines that are in the ledger already are recognised: by the text and key of a record that counts, and by these and the
/// moment of creation of one that another line superseded. So importing a file again adds nothing, unless its lines name
/// no moments. A later line of what a record says already can give that record another expiry and other metadata, as
/// [`NewRecord::restates`] says. What was forgotten since is added again, for nothing of it was kept by which it could be recognised.
///
/// Holds [`MAX_LINE_BYTES`](super::MAX_LINE_BYTES) and one batch of lines at a time, and some bytes for each superseded
/// record of a namespace, of many namespaces for a million records at most. That a model can hold each text is not
/// checked.
///
/// # Errors
/// [`TransferError::Read`] when the lines cannot be read, [`TransferError::Add`] and [`TransferError::Ledger`] when the
/// ledger fails. A line that cannot be read or is beyond a ledger's bounds is no error: it is told, and the others are
/// imported.
pub async fn import(
    ledger: &dyn Ledger,
    namespace: Option<&Namespace>,
    input: impl BufRead,
    told: impl FnMut(&ImportedLine),
) -> Result<Imported, TransferError> {
    import_checked(ledger, namespace, input, |_| Ok(()), told).await
}

/// As [`import`], but a line is refused as well if `check` has a reason against its record: that no context of a model
/// holds it, say.
///
/// # Errors
/// As [`import`].
pub async fn import_checked(
    ledger: &dyn Ledger,
    namespace: Option<&Namespace>,
    input: impl BufRead,
    check: impl Fn(&NewRecord) -> Result<(), String>,
    told: impl FnMut(&ImportedLine),
) -> Result<Imported, TransferError> {
    let (mut lines, mut importer) = (Lines::new(input), Importer::new(ledger, told));
    loop {
        let number = lines.number() + 1;
        let line = match lines.next().map_err(|source| TransferError::Read { line: number, source }) {
            Ok(Some(line)) => line,
            Ok(None) => break,
            // What was read so far is imported all the same.
            Err(error) => {
                importer.flush().await?;
                return Err(error);
            }
        };
        if line.is_blank() {
            continue;
        }
        match line.parse::<Line>().and_then(|line| line.read(namespace, &check)) {
            Ok(Ok((namespace, new))) => importer.add(number, &namespace, new).await?,
            Ok(Err(reason)) => importer.tell(number, Became::LeftOut { reason }),
            Err(reason) => importer.tell(number, Became::Refused { reason }),
        }
    }
    importer.flush().await?;
    Ok(importer.imported)
}

impl Line {
    /// The record and where it belongs; the inner error is why it does not count.
    fn read(
        self,
        namespace: Option<&Namespace>,
        check: impl Fn(&NewRecord) -> Result<(), String>,
    ) -> Result<Result<(Namespace, NewRecord), String>, String> {
        match self.state.as_deref() {
            None | Some("active") => {}
            Some(state @ ("superseded" | "expired" | "forgotten")) => return Ok(Err(format!("it is {state}"))),
            Some(state) => return Err(format!("{state:?} is no state of a record")),
        }
        let namespace = match (namespace, self.namespace) {
            (Some(namespace), _) => namespace.clone(),
            (None, Some(name)) => Namespace::new(name).map_err(|error| error.to_string())?,
            (None, None) => return Err("it names no namespace: say which one to import into".to_owned()),
        };
        let mut new = NewRecord::new(self.text.ok_or("it has no text")?);
        new.key = self.key;
        new.metadata = self.metadata.unwrap_or_default();
        new.created_at = self.created_at.map(|at| at.read()).transpose()?;
        new.updated_at = self.updated_at.map(|at| at.read()).transpose()?;
        new.expires_at = self.expires_at.map(|at| at.read()).transpose()?;
        new.check().map_err(|error| error.to_string())?;
        check(&new)?;
        Ok(if new.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            Err("it has expired".to_owned())
        } else {
            Ok((namespace, new))
        })
    }
}

/// Adds records in batches.
pub(super) struct Importer<'l, F> {
    ledger: &'l dyn Ledger,
    told: F,
    namespace: Option<Namespace>,
    /// With their lines.
    batch: Vec<(u64, NewRecord)>,
    bytes: usize,
    /// Superseded records of the namespaces that one was asked for in, by a hash of what a line says.
    superseded: HashMap<Namespace, HashMap<[u8; 16], RecordId>>,
    pub(super) imported: Imported,
}

impl<'l, F: FnMut(&ImportedLine)> Importer<'l, F> {
    pub(super) fn new(ledger: &'l dyn Ledger, told: F) -> Self {
        let imported = Imported::default();
        Self { ledger, told, namespace: None, batch: Vec::new(), bytes: 0, superseded: HashMap::new(), imported }
    }

    /// Tells what became of a line that is not added.
    pub(super) fn tell(&mut self, line: u64, became: Became) {
        self.imported.count(&became);
        (self.told)(&ImportedLine { line, became });
    }

    /// Adds a record, which must have been checked, now or with those that follow.
    pub(super) async fn add(&mut self, line: u64, namespace: &Namespace, new: NewRecord) -> Result<(), TransferError> {
        if self.namespace.as_ref() != Some(namespace) {
            self.flush().await?;
            self.namespace = Some(namespace.clone());
        }
        if let Some(id) = self.was_superseded(namespace, &new).await? {
            self.tell(line, Became::Held { id, outcome: Outcome::Duplicate });
            return Ok(());
        }
        self.bytes += new.text.len();
        self.batch.push((line, new));
        if self.batch.len() >= BATCH || self.bytes >= BATCH_BYTES { self.flush().await } else { Ok(()) }
    }

    /// The record of an earlier import of this line whose place another one of its key has taken since.
    async fn was_superseded(
        &mut self,
        namespace: &Namespace,
        new: &NewRecord,
    ) -> Result<Option<RecordId>, TransferError> {
        let (Some(key), Some(at)) = (&new.key, new.created_at) else { return Ok(None) };
        if !self.superseded.contains_key(namespace) {
            let found = superseded(self.ledger, namespace).await?;
            // What it takes to know that there is none counts too.
            let known: usize = self.superseded.values().map(|known| 1 + known.len()).sum();
            if known + found.len() >= KNOWN {
                self.superseded.clear();
            }
            self.superseded.insert(namespace.clone(), found);
        }
        let hash = hash(key, new.text.trim(), at);
        Ok(self.superseded.get(namespace).and_then(|superseded| superseded.get(&hash)).copied())
    }

    /// Takes note of records that have just been superseded.
    async fn note_superseded(&mut self, namespace: &Namespace, added: &[Added]) -> Result<(), TransferError> {
        let Some(known) = self.superseded.get_mut(namespace) else { return Ok(()) };
        let over = |added: &Added| match added.outcome {
            Outcome::Superseded(id) => Some(id),
            _ => Some(added.record.id).filter(|_| matches!(added.record.state, State::Superseded { .. })),
        };
        let ids: Vec<RecordId> = added.iter().filter_map(over).collect();
        if !ids.is_empty() {
            let records = self.ledger.get_many(namespace, &ids, Timestamp::now()).await?;
            known.extend(records.iter().flatten().filter_map(hashed));
        }
        Ok(())
    }

    /// Adds what waits.
    pub(super) async fn flush(&mut self) -> Result<(), TransferError> {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        let (Some(namespace), Some(&(line, _))) = (self.namespace.clone(), batch.first()) else { return Ok(()) };
        let (lines, new): (Vec<u64>, Vec<NewRecord>) = batch.into_iter().unzip();
        match self.ledger.add(&namespace, &new, Timestamp::now()).await {
            Ok(added) => {
                self.note_superseded(&namespace, &added).await?;
                for (line, added) in lines.into_iter().zip(added) {
                    self.tell(line, Became::Held { id: added.record.id, outcome: added.outcome });
                }
                Ok(())
            }
            // A ledger may have closer bounds: then the one that is beyond them must not keep out the others.
            Err(Error::BadValue { .. } | Error::Empty { .. } | Error::TooLong { .. }) => {
                for (line, new) in lines.into_iter().zip(new) {
                    self.add_alone(line, &namespace, new).await?;
                }
                Ok(())
            }
            Err(source) => Err(TransferError::Add { line, source }),
        }
    }

    async fn add_alone(&mut self, line: u64, namespace: &Namespace, new: NewRecord) -> Result<(), TransferError> {
        let became = match self.ledger.add(namespace, &[new], Timestamp::now()).await {
            Ok(mut added) => {
                self.note_superseded(namespace, &added).await?;
                match added.pop() {
                    Some(added) => Became::Held { id: added.record.id, outcome: added.outcome },
                    None => Became::Refused { reason: "the ledger did not say what became of it".to_owned() },
                }
            }
            Err(error @ (Error::BadValue { .. } | Error::Empty { .. } | Error::TooLong { .. })) => {
                Became::Refused { reason: error.to_string() }
            }
            Err(source) => return Err(TransferError::Add { line, source }),
        };
        self.tell(line, became);
        Ok(())
    }
}

/// The superseded records of a namespace.
async fn superseded(ledger: &dyn Ledger, namespace: &Namespace) -> amem_core::Result<HashMap<[u8; 16], RecordId>> {
    let (mut found, mut listing) = (HashMap::new(), Listing::new(Query::All).limit(256));
    loop {
        let page = ledger.page(namespace, &listing).await?;
        found.extend(page.records.iter().filter_map(hashed));
        match page.next {
            Some(next) => listing = listing.after(next),
            None => return Ok(found),
        }
    }
}

/// A superseded record, by what a line of it says.
fn hashed(record: &Record) -> Option<([u8; 16], RecordId)> {
    let key = record.key.as_deref().filter(|_| matches!(record.state, State::Superseded { .. }))?;
    Some((hash(key, &record.text, record.created_at), record.id))
}

fn hash(key: &str, text: &str, at: Timestamp) -> [u8; 16] {
    let mut hash = blake3::Hasher::new();
    hash.update(&(key.len() as u64).to_le_bytes());
    hash.update(key.as_bytes());
    hash.update(text.as_bytes());
    hash.update(&at.0.to_le_bytes());
    let mut short = [0; 16];
    hash.finalize_xof().fill(&mut short);
    short
}
