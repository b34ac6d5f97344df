//! Reading the data directory of the reference system: one log of operations for each user.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;

use amem_core::{Ledger, Namespace, NewRecord, Timestamp};
use md5::{Digest, Md5};
use serde::Deserialize;

use super::import::Importer;
use super::lines::Lines;
use super::moment::Moment;
use super::{Became, Imported, ImportedLine, TransferError};

/// What became of a file of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReferenceFile {
    /// It is a user's log, and was read.
    Read {
        /// The file's name.
        file: String,
        /// Where its records belong.
        namespace: Namespace,
        /// That namespace is one of the names that were given, which the file's name is a hash of. Otherwise it is what the
        /// file is called.
        named: bool,
        /// What became of its lines.
        imported: Imported,
    },
    /// It was not read.
    PassedOver {
        /// The file's name.
        file: String,
        /// Why.
        reason: String,
    },
}

#[derive(Deserialize)]
struct Operation {
    op: Option<String>,
    id: Option<Id>,
    text: Option<String>,
    key: Option<String>,
    created_at: Option<Moment>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(u64),
}

/// A text that a log added.
struct Entry {
    line: u64,
    text: String,
    key: Option<String>,
    created_at: Option<Timestamp>,
    is_superseded: bool,
    is_forgotten: bool,
}

/// A log, replayed.
#[derive(Default)]
struct Replay {
    /// In the order in which they were added.
    entries: Vec<Entry>,
    by_id: HashMap<String, usize>,
    /// The entry that each key has now.
    by_key: HashMap<String, usize>,
}

/// Imports the logs in the directory `dir`. A log whose name holds no user's name but a hash of it belongs to the one of
/// `users` with that hash, or, if there is none, to a namespace of the file's name without its ending. Calls `told` with
/// the file and what became of its line.
///
/// Embeddings (`.vec`) are passed over, and so is the metering (`_usage.jsonl`), whose events have no ids by which they
/// would be counted once. Files are taken from the directory itself only: links are not followed.
///
/// # Errors
/// As [`import_reference_log`]; [`TransferError::Open`] when the directory or a file cannot be read.
pub async fn import_reference(
    ledger: &dyn Ledger,
    dir: &Path,
    users: &[Namespace],
    mut told: impl FnMut(&str, &ImportedLine),
) -> Result<Vec<ReferenceFile>, TransferError> {
    let open = |path: &Path| {
        let path = path.to_owned();
        move |source| TransferError::Open { path, source }
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(open(dir))? {
        let entry = entry.map_err(open(dir))?;
        found.push((entry.file_name(), entry.file_type().map_err(open(&entry.path()))?.is_file()));
    }
    found.sort_unstable();
    let mut files = Vec::new();
    for (name, is_file) in found {
        let file = name.to_string_lossy().into_owned();
        if is_file && file.ends_with(".vec") {
            continue;
        }
        match whose(&file, is_file && name.to_str().is_some(), users) {
            Ok((namespace, named)) => {
                let path = dir.join(&name);
                let input = BufReader::new(File::open(&path).map_err(open(&path))?);
                let told = |line: &ImportedLine| told(&file, line);
                let imported = import_reference_log(ledger, &namespace, input, told).await?;
                files.push(ReferenceFile::Read { file, namespace, named, imported });
            }
            Err(reason) => files.push(ReferenceFile::PassedOver { file, reason }),
        }
    }
    Ok(files)
}

/// Whose log a file is, and whether one of `users` gave the name; or why it is none.
fn whose(file: &str, is_readable: bool, users: &[Namespace]) -> Result<(Namespace, bool), String> {
    let stem = file.strip_suffix(".jsonl").filter(|_| is_readable).ok_or("it is no log")?;
    if stem == "_usage" {
        return Err("metering is not imported: its events have no ids by which they would be counted once".to_owned());
    }
    let is_hash = |user: &&Namespace| stem.strip_prefix("user_") == Some(short_md5(user.as_str()).as_str());
    match users.iter().find(is_hash) {
        Some(user) => Ok((user.clone(), true)),
        None => Ok((Namespace::new(stem).map_err(|error| error.to_string())?, false)),
    }
}

/// The first 16 hexadecimal digits of a name's MD5 hash, which the reference system names files by.
fn short_md5(name: &str) -> String {
    Md5::digest(name.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Imports a log of the reference system: replays its operations in memory, then adds the texts that are left, in their
/// order and with their moments of creation. So what the log says was forgotten never reaches the ledger, and of a text
/// that was changed only the last one does. Calls `told` with what became of each line, those that are added last.
///
/// Importing a log again adds nothing, as [`import`](super::import::import) says. Holds the texts of the log.
///
/// # Errors
/// As [`import`](super::import::import).
pub async fn import_reference_log(
    ledger: &dyn Ledger,
    namespace: &Namespace,
    input: impl BufRead,
    told: impl FnMut(&ImportedLine),
) -> Result<Imported, TransferError> {
    let (mut lines, mut replay) = (Lines::new(input), Replay::default());
    let mut importer = Importer::new(ledger, told);
    loop {
        let number = lines.number() + 1;
        let Some(line) = lines.next().map_err(|source| TransferError::Read { line: number, source })? else { break };
        if line.is_blank() {
            continue;
        }
        match line.parse::<Operation>().and_then(|operation| replay.apply(number, operation)) {
            Ok(Some(became)) => importer.tell(number, became),
            Ok(None) => {}
            Err(reason) => importer.tell(number, Became::Refused { reason }),
        }
    }
    let left = replay.finish(|line, reason| importer.tell(line, Became::LeftOut { reason: reason.to_owned() }));
    for (line, new) in left {
        importer.add(line, namespace, new).await?;
    }
    importer.flush().await?;
    Ok(importer.imported)
}

impl Replay {
    /// Replays an operation, and says what became of its line, unless that is not known before the end.
    fn apply(&mut self, line: u64, operation: Operation) -> Result<Option<Became>, String> {
        let Operation { op, id, text, key, created_at } = operation;
        let id = id.map(|id| match id {
            Id::Text(id) => id,
            Id::Number(id) => id.to_string(),
        });
        match op.as_deref() {
            // Old logs have texts and no operations.
            Some("add") | None => {
                let mut new = NewRecord::new(text.ok_or("it has no text")?);
                new.key = key;
                new.check().map_err(|error| error.to_string())?;
                let created_at = created_at.map(|at| at.read()).transpose()?;
                self.add(line, id, new, created_at)?;
                Ok(None)
            }
            Some("forget") => {
                self.find(id)?.is_forgotten = true;
                Ok(Some(Became::Applied))
            }
            Some("update") => {
                let text = text.ok_or("it has no text")?;
                NewRecord::new(text.as_str()).check().map_err(|error| error.to_string())?;
                let entry = self.find(id)?;
                match (entry.is_forgotten, entry.is_superseded) {
                    (true, _) => return Err(format!("what line {} added is forgotten", entry.line)),
                    (_, true) => return Err(format!("what line {} added is superseded", entry.line)),
                    _ => entry.text = text,
                }
                Ok(Some(Became::Applied))
            }
            Some(other) => Err(format!("{other:?} is no operation")),
        }
    }

    fn add(&mut self, line: u64, id: Option<String>, new: NewRecord, at: Option<Timestamp>) -> Result<(), String> {
        if let Some(id) = id {
            if let Some(&other) = self.by_id.get(&id) {
                return Err(format!("line {} has the same id", self.entries[other].line));
            }
            self.by_id.insert(id, self.entries.len());
        }
        if let Some(key) = &new.key
            && let Some(older) = self.by_key.insert(key.clone(), self.entries.len())
        {
            self.entries[older].is_superseded = true;
        }
        let NewRecord { text, key, .. } = new;
        let entry = Entry { line, text, key, created_at: at, is_superseded: false, is_forgotten: false };
        self.entries.push(entry);
        Ok(())
    }

    fn find(&mut self, id: Option<String>) -> Result<&mut Entry, String> {
        let id = id.ok_or("it has no id")?;
        let found = self.by_id.get(&id).and_then(|at| self.entries.get_mut(*at));
        found.ok_or_else(|| format!("no line before it added the id {id:?}"))
    }

    /// What is to be added, with the lines. The others are told, with the reason.
    fn finish(self, mut left_out: impl FnMut(u64, &str)) -> Vec<(u64, NewRecord)> {
        // The last text of each key that would be added. One that was superseded must not count again, because what
        // superseded it was forgotten.
        let mut last: HashMap<&str, u64> = HashMap::new();
        for entry in self.entries.iter().filter(|entry| !entry.is_forgotten) {
            if let Some(key) = &entry.key {
                last.insert(key, entry.line);
            }
        }
        let is_last = |entry: &Entry| entry.key.as_deref().and_then(|key| last.get(key)) == Some(&entry.line);
        let back: Vec<bool> = self.entries.iter().map(|entry| entry.is_superseded && is_last(entry)).collect();
        // The latest moment of a text of each key so far. What the log adds later is newer, whatever the clock said.
        let (mut latest, now) = (HashMap::<String, Timestamp>::new(), Timestamp::now());
        let mut left = Vec::new();
        for (entry, back) in self.entries.into_iter().zip(back) {
            if entry.is_forgotten {
                left_out(entry.line, "a later line forgets it");
            } else if back {
                left_out(entry.line, "it was superseded by a text that a later line forgets");
            } else {
                let mut new = NewRecord::new(entry.text);
                if let Some(key) = &entry.key {
                    let at = entry.created_at.unwrap_or(now);
                    let latest = latest.entry(key.clone()).or_insert(at);
                    *latest = at.max(*latest);
                    new.updated_at = Some(*latest);
                }
                (new.key, new.created_at) = (entry.key, entry.created_at);
                left.push((entry.line, new));
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_of_a_name_is_its_md5() {
        // RFC 1321: MD5 of "abc" is 900150983cd24fb0d6963f7d28e17f72.
        assert_eq!(short_md5("abc"), "900150983cd24fb0");
    }
}
