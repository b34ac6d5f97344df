//! Writing records as lines.

use std::io::Write;

use amem_core::{Error, Ledger, Listing, Metadata, Namespace, Query, Record, State, Timestamp};
use serde::Serialize;

use super::TransferError;
use super::moment::Moment;

/// What is to be exported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Export {
    /// Of this namespace only.
    pub namespace: Option<Namespace>,
    /// Records that no longer count as well, with their states. Forgotten ones have no text.
    pub all_states: bool,
}

impl Export {
    /// The records of all namespaces that count.
    pub fn all() -> Self {
        Self::default()
    }

    /// The records of this namespace only.
    #[must_use]
    pub fn namespace(self, namespace: Namespace) -> Self {
        Self { namespace: Some(namespace), ..self }
    }

    /// Records that no longer count as well.
    #[must_use]
    pub fn all_states(self) -> Self {
        Self { all_states: true, ..self }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    namespace: &'a str,
    id: String,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    metadata: &'a Metadata,
    created_at: Moment,
    updated_at: Moment,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Moment>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    superseded_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<Moment>,
}

impl<'a> Line<'a> {
    fn of(record: &'a Record) -> Self {
        let (superseded_by, ended_at) = match record.state {
            State::Superseded { by, at } => (Some(by.to_string()), Some(at)),
            State::Forgotten { at } | State::Expired { at } => (None, Some(at)),
            _ => (None, None),
        };
        Self {
            namespace: record.namespace.as_str(),
            id: record.id.to_string(),
            text: &record.text,
            key: record.key.as_deref(),
            metadata: &record.metadata,
            created_at: Moment::of(record.created_at),
            updated_at: Moment::of(record.updated_at),
            expires_at: record.expires_at.map(Moment::of),
            state: record.state.name(),
            superseded_by,
            ended_at: ended_at.map(Moment::of),
        }
    }
}

/// Writes records as lines, those of a namespace together and in the order in which they were added. What changes
/// meanwhile is written as it was when this began, unless it is forgotten. Holds one page of records at a time. Calls
/// `progress` with the number of records written so far. Returns that number.
///
/// # Errors
/// [`TransferError::Write`] when the lines cannot be written, [`TransferError::Ledger`] when the ledger cannot be read.
pub async fn export(
    ledger: &dyn Ledger,
    what: &Export,
    mut out: impl Write,
    mut progress: impl FnMut(u64),
) -> Result<u64, TransferError> {
    const PAGE: usize = 256;
    let namespaces = match &what.namespace {
        Some(namespace) => vec![namespace.clone()],
        None => ledger.namespaces().await?,
    };
    let query = if what.all_states { Query::All } else { Query::At(Timestamp::now()) };
    let (mut written, mut bytes) = (0, Vec::new());
    for namespace in namespaces {
        let mut listing = Listing::new(query).limit(PAGE);
        loop {
            let page = match ledger.page(&namespace, &listing).await {
                Ok(page) => page,
                // It was deleted meanwhile.
                Err(Error::UnknownRecord { .. }) => break,
                Err(error) => return Err(error.into()),
            };
            for record in &page.records {
                bytes.clear();
                serde_json::to_writer(&mut bytes, &Line::of(record))
                    .map_err(|error| TransferError::Write(error.into()))?;
                bytes.push(b'\n');
                out.write_all(&bytes).map_err(TransferError::Write)?;
                written += 1;
            }
            progress(written);
            match page.next {
                Some(next) => listing = listing.after(next),
                None => break,
            }
        }
    }
    out.flush().map_err(TransferError::Write)?;
    Ok(written)
}
