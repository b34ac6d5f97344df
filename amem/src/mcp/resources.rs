//! Memories as resources: `amem://memories` is the list of them, `amem://memories/{id}` one of them.

use amem_core::{Error, Listing, Namespace, Query, Record, RecordId, TextMemory, Timestamp};
use rmcp::model::{ListResourcesResult, ReadResourceResult, Resource, ResourceContents, ResourceTemplate};
use serde::Serialize;

use crate::http::{ApiError, Result};

/// The list of memories.
pub(super) const LIST: &str = "amem://memories";
const JSON: &str = "application/json";
/// Memories of a page of the list of resources.
const PAGE: usize = 100;
/// Memories that one reading of the list holds at most.
const READ: usize = 1000;
/// Characters of a text that stand for it where it is named.
const NAME_CHARS: usize = 80;

/// A memory as JSON.
#[derive(Debug, Serialize)]
struct Memory<'r> {
    id: String,
    text: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'r str>,
    created_at: String,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    state: &'static str,
}

impl<'r> From<&'r Record> for Memory<'r> {
    fn from(record: &'r Record) -> Self {
        Self {
            id: record.id.to_string(),
            text: &record.text,
            key: record.key.as_deref(),
            created_at: iso(record.created_at),
            updated_at: iso(record.updated_at),
            expires_at: record.expires_at.map(iso),
            state: record.state.name(),
        }
    }
}

/// The list as JSON.
#[derive(Debug, Serialize)]
struct Memories<'r> {
    user: &'r str,
    memories: Vec<Memory<'r>>,
    /// The resource that holds what comes after these.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// What a URI names.
enum Named {
    /// The list, or what comes after this memory of it.
    List(Option<RecordId>),
    /// A memory.
    One(RecordId),
}

impl Named {
    fn of(uri: &str) -> Option<Self> {
        match uri.strip_prefix(LIST)? {
            "" => Some(Named::List(None)),
            rest => match rest.strip_prefix("?after=") {
                Some(after) => Some(Named::List(Some(after.parse().ok()?))),
                None => Some(Named::One(rest.strip_prefix('/')?.parse().ok()?)),
            },
        }
    }
}

/// The URI of a memory.
pub(super) fn uri(id: RecordId) -> String {
    format!("{LIST}/{id}")
}

fn after(id: RecordId) -> String {
    format!("{LIST}?after={id}")
}

/// Whether a URI can be one of ours.
///
/// # Errors
/// 404 if it cannot.
pub(super) fn check(uri: &str) -> Result<()> {
    Named::of(uri).map(drop).ok_or_else(|| unknown(uri))
}

fn unknown(uri: &str) -> ApiError {
    ApiError::not_found(format!("there is no resource {uri:?}"))
}

/// The kinds of resources.
pub(super) fn templates() -> Vec<ResourceTemplate> {
    let one = ResourceTemplate::new(format!("{LIST}/{{id}}"), "memory")
        .with_title("A memory")
        .with_description("A memory: its text, its key, when it was remembered, and whether it still counts.");
    let page = ResourceTemplate::new(format!("{LIST}{{?after}}"), "memories")
        .with_title("Memories after one of them")
        .with_description("The part of the list of memories that comes after this id.");
    vec![one.with_mime_type(JSON), page.with_mime_type(JSON)]
}

/// A page of the list of resources: the list of memories, then each memory by itself.
///
/// # Errors
/// 400 for a cursor that is not from here.
pub(super) async fn list(memory: &TextMemory, of: &Namespace, cursor: Option<&str>) -> Result<ListResourcesResult> {
    let mut listing = Listing::new(Query::At(Timestamp::now())).limit(PAGE);
    listing.after = cursor.map(cursor_id).transpose()?;
    let page = memory.page(of, &listing).await.map_err(stale_cursor)?;
    let list = Resource::new(LIST, "memories")
        .with_title("Memories")
        .with_description(format!("All that is remembered of {of}."))
        .with_mime_type(JSON);
    let mut resources = if cursor.is_none() { vec![list] } else { Vec::new() };
    resources.extend(page.records.iter().map(|record| {
        let resource = Resource::new(uri(record.id), record.id.to_string()).with_title(named(&record.text));
        resource.with_mime_type(JSON)
    }));
    let mut result = ListResourcesResult::with_all_items(resources);
    result.next_cursor = page.next.map(|next| next.to_string());
    Ok(result)
}

/// What a resource holds.
///
/// # Errors
/// 404 for one that is not there.
pub(super) async fn read(memory: &TextMemory, of: &Namespace, uri: &str) -> Result<ReadResourceResult> {
    let text = match Named::of(uri).ok_or_else(|| unknown(uri))? {
        Named::List(after_id) => {
            let mut listing = Listing::new(Query::At(Timestamp::now())).limit(READ);
            listing.after = after_id;
            let page = memory.page(of, &listing).await?;
            let memories = page.records.iter().map(Memory::from).collect();
            json(&Memories { user: of.as_str(), memories, next: page.next.map(after) })
        }
        Named::One(id) => match memory.get(of, id).await {
            Ok(record) => json(&Memory::from(&record)),
            Err(Error::UnknownRecord { .. }) => Err(unknown(uri)),
            Err(error) => Err(error.into()),
        },
    }?;
    Ok(ReadResourceResult::new(vec![ResourceContents::text(text, uri).with_mime_type(JSON)]))
}

/// The memory after which a cursor goes on.
///
/// # Errors
/// 400 for one that is not from here.
pub(super) fn cursor_id(cursor: &str) -> Result<RecordId> {
    cursor.parse().map_err(|_| ApiError::bad_request("the cursor is not one of this server's").param("cursor"))
}

/// What a listing's error is to whoever gave the cursor.
pub(super) fn stale_cursor(error: Error) -> ApiError {
    match error {
        Error::UnknownRecord { .. } => ApiError::bad_request("the cursor is not one of this list's").param("cursor"),
        error => error.into(),
    }
}

/// A moment as ISO 8601 writes it.
pub(super) fn iso(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.0).map_or_else(|_| at.0.to_string(), |at| at.to_string())
}

/// The beginning of a text, on one line.
fn named(text: &str) -> String {
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = words.char_indices().nth(NAME_CHARS) {
        words.truncate(end);
        words.push('…');
    }
    words
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| ApiError::internal(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_the_list_a_part_of_it_or_a_memory_and_nothing_else() {
        let id = RecordId::new();
        assert!(matches!(Named::of(LIST), Some(Named::List(None))));
        assert!(matches!(Named::of(&after(id)), Some(Named::List(Some(named))) if named == id));
        assert!(matches!(Named::of(&uri(id)), Some(Named::One(named)) if named == id));
        for other in ["", "amem://", "amem://memories/", "amem://memories/x", "amem://memoriesx", "file:///etc/passwd"]
        {
            assert_eq!(check(other).unwrap_err().status(), 404, "{other}");
        }
    }

    #[test]
    fn a_long_text_is_named_by_its_beginning_on_one_line() {
        assert_eq!(named(" Alice lives\n in Denver. "), "Alice lives in Denver.");
        let long = "ä".repeat(NAME_CHARS + 1);
        assert_eq!(named(&long), format!("{}…", "ä".repeat(NAME_CHARS)));
    }
}
