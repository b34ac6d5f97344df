//! Whether a ledger's file is sound: when it is opened, and when somebody asks.

use std::path::Path;

use amem_core::{Namespace, RecordId};
use rusqlite::{Connection, Row};

use super::schema;
use super::tables::{record_name, text_hash};
use crate::{Error, Result};

/// What a ledger that is being opened is checked for, by its size.
struct Limits {
    /// One of so many bytes is checked in full: about 20,000 memories, a tenth of a second.
    full: u64,
    /// One of so many bytes is checked for what SQLite's quick_check finds: about 230,000 memories, a tenth of a second.
    quick: u64,
}

const LIMITS: Limits = Limits { full: 8 << 20, quick: 96 << 20 };
/// Problems that are told one by one at most, of each kind.
const PROBLEMS: usize = 100;

/// What [`SqliteLedger::verify`](super::SqliteLedger::verify) found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// Records, whatever their state.
    pub records: u64,
    /// Texts that they have or had.
    pub texts: u64,
    /// Links from records to the chunks of their KV.
    pub links: u64,
    /// What is wrong, in words, up to a hundred of each kind. Empty for a sound ledger.
    pub problems: Vec<String>,
    /// Records that are not what was written, or whose texts are not, up to a hundred: each can be
    /// [forgotten](amem_core::Ledger::forget) by itself ([`SqliteLedger::open_damaged`](super::SqliteLedger::open_damaged)).
    pub damaged: Vec<(Namespace, RecordId)>,
}

/// What is checked of a ledger that is being opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// As much as takes about a tenth of a second.
    All,
    /// Not the rows: some are known to be damaged.
    Structure,
}

/// Checks a ledger that is being opened. What it keeps of indexes is left out where it makes the ledger large: with
/// vectors it is several times the records, and one that is damaged is found when it is read and built again.
pub(super) fn at_open(connection: &Connection, path: &Path, check: Check) -> Result<()> {
    at_open_within(&LIMITS, connection, path, check)
}

fn at_open_within(limits: &Limits, connection: &Connection, path: &Path, check: Check) -> Result<()> {
    let failed = || Error::ledger("check the ledger", path);
    let size = Size::of(connection).map_err(Error::ledger("read the ledger's size", path))?;
    let problems = if size.all <= limits.full && check == Check::All {
        verify(connection, path)?.problems
    } else if size.all <= limits.quick {
        structure(connection, "PRAGMA quick_check(1)").map_err(failed())?
    } else if size.without_indexes <= limits.quick {
        structure_without_indexes(connection).map_err(failed())?
    } else {
        Vec::new()
    };
    match problems.into_iter().next() {
        Some(reason) => Err(Error::Damaged { path: path.to_owned(), reason }),
        None => Ok(()),
    }
}

/// Bytes of a ledger's file.
struct Size {
    all: u64,
    /// Less the saved indexes, and less what is free.
    without_indexes: u64,
}

impl Size {
    fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, u32>(0).map(u64::from));
        let (pages, page) = (number("page_count")?, number("page_size")?);
        let used = pages.saturating_sub(number("freelist_count")?) * page;
        let tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'saved_index'";
        let indexes = match connection.query_row(tables, [], |row| row.get(0))? {
            // Versions before 4 kept none.
            0 => 0,
            // SQLite knows a value's length without reading it.
            _ => connection.query_row("SELECT coalesce(sum(length(bytes)), 0) FROM saved_index", [], |row| {
                row.get::<_, i64>(0).map(i64::unsigned_abs)
            })?,
        };
        Ok(Self { all: pages * page, without_indexes: used.saturating_sub(indexes) })
    }
}

/// What quick_check finds in all tables but the one that the saved indexes are in.
fn structure_without_indexes(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'saved_index'";
    let mut statement = connection.prepare(tables)?;
    let names = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut found = Vec::new();
    for name in names {
        found.extend(structure(connection, &format!("PRAGMA quick_check(\"{}\")", name.replace('"', "\"\"")))?);
    }
    Ok(found)
}

/// Checks everything: SQLite's own structures, every checksum, and what rows say of one another.
pub(super) fn verify(connection: &Connection, path: &Path) -> Result<Verification> {
    let version = schema::identify(connection, path)?;
    let mut found = Verification::default();
    let links = if version < 4 { "link" } else { "kv_link" };
    let all = connection.unchecked_transaction().and_then(|view| {
        found.problems = structure(&view, "PRAGMA integrity_check(100)")?;
        let count = |table: &str| {
            let counted = view.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0));
            counted.map(i64::unsigned_abs)
        };
        (found.records, found.texts, found.links) = (count("record")?, count("version")?, count(links)?);
        found.problems.extend(wrong_texts(&view)?);
        if version == schema::VERSION {
            for (problem, rows) in PROBLEMS_OF_ROWS {
                found
                    .problems
                    .extend(problems(&view, rows, |row| Ok(Some(format!("{}: {problem}", record_name(row, 0)))))?);
            }
            found.damaged = damaged(&view)?;
        }
        Ok(())
    });
    match all.map_err(Error::ledger("check the ledger", path)) {
        Ok(()) => Ok(found),
        // Damage may keep SQLite from looking any further.
        Err(Error::Damaged { reason, .. }) => {
            found.problems.push(reason);
            Ok(found)
        }
        Err(error) => Err(error),
    }
}

/// What can be wrong with rows, and the ids of the records where it is.
const PROBLEMS_OF_ROWS: [(&str, &str); 11] = [
    ("it is not what was written", concat!("SELECT r.id FROM record r WHERE r.checksum IS NOT ", record_checksum!())),
    (
        "one of its texts is not what was written",
        concat!(
            "SELECT r.id FROM version v LEFT JOIN record r ON r.seq = v.record WHERE v.checksum IS NOT ",
            version_checksum!()
        ),
    ),
    (
        "its text is missing",
        "SELECT r.id FROM record r WHERE NOT EXISTS (SELECT 1 FROM version v WHERE v.seq = r.version AND v.record = r.seq)",
    ),
    (
        "it is missing, and one of its texts is there",
        "SELECT NULL FROM version v WHERE NOT EXISTS (SELECT 1 FROM record r WHERE r.seq = v.record)",
    ),
    (
        "it is missing, and KV is linked to it",
        "SELECT NULL FROM kv_link l WHERE NOT EXISTS (SELECT 1 FROM record r WHERE r.seq = l.record)",
    ),
    (
        "KV is linked to it as if it expired at another time, or no longer counted",
        "SELECT r.id FROM kv_link l JOIN record r ON r.seq = l.record WHERE l.expires_at IS NOT r.expires_at OR r.state <> 0",
    ),
    (
        "an event of usage is not what was written",
        concat!("SELECT NULL FROM usage u WHERE u.checksum IS NOT ", usage_checksum!()),
    ),
    (
        "the index of a namespace is not what was written",
        concat!("SELECT NULL FROM saved_index i WHERE i.checksum IS NOT ", saved_index_checksum!()),
    ),
    (
        "the record that took its place is missing",
        "SELECT r.id FROM record r WHERE r.state = 1 AND NOT EXISTS (SELECT 1 FROM record by WHERE by.id = r.ended_by)",
    ),
    (
        "it was forgotten, and something of it is left",
        "SELECT r.id FROM record r WHERE r.state = 2 AND (r.key IS NOT NULL OR r.metadata IS NOT NULL OR EXISTS \
         (SELECT 1 FROM version v WHERE v.record = r.seq AND (v.text <> '' OR v.hash IS NOT NULL)))",
    ),
    (
        "it has changed since the ledger's last change",
        "SELECT r.id FROM record r WHERE r.revision > (SELECT max(last_change) FROM ledger) OR (SELECT count(*) FROM ledger) <> 1",
    ),
];

/// Refuses a ledger in which a text is not what its hash says.
pub(super) fn texts(connection: &Connection, path: &Path) -> Result<()> {
    let wrong = wrong_texts(connection).map_err(Error::ledger("check the ledger's texts", path))?;
    match wrong.into_iter().next() {
        Some(reason) => Err(Error::Damaged { path: path.to_owned(), reason }),
        None => Ok(()),
    }
}

fn wrong_texts(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let texts = "SELECT r.id, r.namespace, r.key, v.text, v.hash FROM version v JOIN record r ON r.seq = v.record \
                 WHERE v.hash IS NOT NULL";
    problems(connection, texts, |row| {
        let bytes = |column| row.get_ref(column)?.as_bytes_or_null().map_err(rusqlite::Error::from);
        let hash =
            text_hash(bytes(1)?.unwrap_or_default(), bytes(2)?.unwrap_or_default(), bytes(3)?.unwrap_or_default());
        Ok((row.get::<_, i64>(4)? != hash)
            .then(|| format!("{}: a text of it is not what was written", record_name(row, 0))))
    })
}

/// Records that are damaged, as far as they can be named.
fn damaged(connection: &Connection) -> rusqlite::Result<Vec<(Namespace, RecordId)>> {
    let records = format!(
        concat!(
            "SELECT r.namespace, r.id FROM record r WHERE r.checksum IS NOT ",
            record_checksum!(),
            " OR EXISTS (SELECT 1 FROM version v WHERE v.record = r.seq AND v.checksum IS NOT ",
            version_checksum!(),
            ") OR NOT EXISTS (SELECT 1 FROM version v WHERE v.seq = r.version AND v.record = r.seq) LIMIT {}"
        ),
        PROBLEMS
    );
    let mut statement = connection.prepare(&records)?;
    let (mut rows, mut found) = (statement.query([])?, Vec::new());
    while let Some(row) = rows.next()? {
        let name = row.get::<_, String>(0).ok().and_then(|name| Namespace::new(name).ok());
        found.extend(name.zip(row.get(1).ok().map(RecordId::from_bytes)));
    }
    Ok(found)
}

fn structure(connection: &Connection, check: &str) -> rusqlite::Result<Vec<String>> {
    problems(connection, check, |row| Ok(Some(row.get::<_, String>(0)?).filter(|found| found != "ok")))
}

/// What is wrong with some rows, for as many as are told.
fn problems(
    connection: &Connection,
    sql: &str,
    mut problem: impl FnMut(&Row<'_>) -> rusqlite::Result<Option<String>>,
) -> rusqlite::Result<Vec<String>> {
    let (mut statement, mut found) = (connection.prepare(sql)?, Vec::new());
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        found.extend(problem(row)?);
        if found.len() == PROBLEMS {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use amem_core::{Ledger, Namespace, NewRecord, Revision, SavedIndex, Timestamp};
    use futures_lite::future::block_on;

    use super::*;
    use crate::SqliteLedger;

    /// Writes zeros over the first page of a table, and says what a check within `limits` makes of it.
    fn checked(limits: &Limits, table: Option<&str>) -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let (path, ours) = (dir.path().join("ledger.sqlite"), Namespace::new("ours").unwrap());
        let ledger = SqliteLedger::open(&path).unwrap();
        let new: Vec<NewRecord> = (0..50).map(|n| NewRecord::new(format!("note {n}"))).collect();
        block_on(ledger.add(&ours, &new, Timestamp::now())).unwrap();
        let index = SavedIndex { revision: Revision(50), bytes: vec![7; 1 << 20] };
        assert!(block_on(ledger.save_index(&ours, "vectors", &index)).unwrap());
        assert!(block_on(ledger.wipe()).unwrap(), "all of it is in the one file");
        drop(ledger);
        if let Some(table) = table {
            let place = "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = ?1";
            let connection = Connection::open(&path).unwrap();
            let place = connection.query_row(place, [table], |row| Ok((row.get::<_, u32>(0)?, row.get::<_, u32>(1)?)));
            let (page, size) = place.unwrap();
            drop(connection);
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(&vec![0; size as usize], u64::from((page - 1) * size)).unwrap();
        }
        let connection = Connection::open(&path).unwrap();
        at_open_within(limits, &connection, &path, Check::All)
    }

    #[test]
    fn saved_indexes_keep_no_ledger_from_being_checked() {
        // The records take less than this, and the index takes more.
        let limits = Limits { full: 1 << 10, quick: 512 << 10 };
        checked(&limits, None).unwrap();
        for table in ["record", "version", "record_by_key", "usage", "ledger"] {
            let refused = checked(&limits, Some(table));
            assert!(matches!(refused, Err(Error::Damaged { .. })), "{table}: {refused:?}");
        }
    }

    #[test]
    fn a_ledger_with_more_records_than_can_be_checked_in_time_is_opened() {
        let limits = Limits { full: 1 << 10, quick: 1 << 10 };
        checked(&limits, Some("usage")).unwrap();
    }
}
