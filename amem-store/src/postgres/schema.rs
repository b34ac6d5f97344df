//! What a ledger's schema is: how one is made, told from others, and brought up to date.

use super::error::{Failure, PostgresError};
use super::options::Settings;
use super::session::Session;

/// What brings a ledger from each version to the next; the first makes one. A later version adds its own at the end.
const MIGRATIONS: [&str; 2] = [include_str!("schema_1.sql"), include_str!("schema_2.sql")];
/// The version that this code reads and writes.
pub(super) const VERSION: i32 = MIGRATIONS.len() as i32;
/// What `amem_ledger` says of a ledger.
const APPLICATION: &str = "amem";

/// Makes the ledger if it is not there, and brings it up to date if it is of an earlier version.
pub(super) async fn prepare(session: &Session, settings: &Settings) -> Result<(), Failure> {
    if version(session, settings).await? == VERSION {
        return Ok(());
    }
    // Others may be doing the same.
    let schema = &settings.options.schema;
    session.batch("BEGIN").await?;
    session.execute("SELECT pg_advisory_xact_lock($1)", &[&lock(schema)]).await?;
    let found = version(session, settings).await?;
    if found == 0 && !has_schema(session, schema).await? {
        session.batch(&format!("CREATE SCHEMA \"{schema}\"")).await?;
    }
    for migration in MIGRATIONS.iter().skip(found.unsigned_abs() as usize) {
        session.batch(migration).await?;
    }
    session.execute("UPDATE amem_ledger SET version = $1", &[&VERSION]).await?;
    session.batch("COMMIT").await?;
    Ok(())
}

/// The version of the ledger that is there; 0 for none. Others than this code can read or bring up to date are errors.
async fn version(session: &Session, settings: &Settings) -> Result<i32, Failure> {
    let (schema, ledger) = (&settings.options.schema, &settings.ledger);
    let not_ours = || PostgresError::NotALedger { ledger: ledger.clone() };
    let tables = "SELECT c.relname::text FROM pg_catalog.pg_class c \
                  JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace WHERE s.nspname = $1 AND c.relkind = 'r'";
    let tables = session.rows(tables, &[schema]).await?;
    let tables: Vec<&str> = tables.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    if tables.is_empty() {
        return Ok(0);
    }
    if !tables.contains(&"amem_ledger") {
        return Err(not_ours().into());
    }
    let rows = session.rows("SELECT application, version FROM amem_ledger", &[]).await?;
    let [row] = rows.as_slice() else { return Err(not_ours().into()) };
    let (application, version): (&str, i32) = (row.try_get(0)?, row.try_get(1)?);
    match version {
        1..=VERSION if application == APPLICATION => Ok(version),
        _ if version > VERSION && application == APPLICATION => Err(newer(settings, version).into()),
        _ => Err(not_ours().into()),
    }
}

pub(super) fn newer(settings: &Settings, found: i32) -> PostgresError {
    PostgresError::NewerSchema { ledger: settings.ledger.clone(), found, supported: VERSION }
}

async fn has_schema(session: &Session, schema: &str) -> Result<bool, Failure> {
    let named = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1";
    Ok(!session.rows(named, &[&schema]).await?.is_empty())
}

/// The number of the lock under which a ledger is made.
fn lock(schema: &str) -> i64 {
    let mut hash = blake3::Hasher::new_derive_key("amem 2026-11 ledger schema lock");
    hash.update(schema.as_bytes());
    super::rows::first_bits(&hash)
}
