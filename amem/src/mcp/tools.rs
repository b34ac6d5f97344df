//! The five tools.

use std::sync::Arc;

use amem_core::{Added, Error, Listing, Namespace, NewRecord, Outcome, Query, Recall, RecordId, Timestamp};
use rmcp::handler::server::tool::{schema_for_output, schema_for_type};
use rmcp::model::{CallToolResult, ContentBlock, JsonObject, Tool, ToolAnnotations};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Session, resources};
use crate::http::{ApiError, Caller, Result};

/// The tools' names.
pub(super) const NAMES: [&str; 5] = ["remember", "recall", "list_memories", "forget", "update"];
/// Texts of one call at most.
const MAX_TEXTS: usize = 1000;
/// Bytes of a text or a query at most. No model is loaded that says how much fits into its context.
const MAX_TEXT_BYTES: usize = 64 << 10;
/// Memories that one call finds at most.
const MAX_RESULTS: usize = 100;
/// Memories of a page of the list.
const PAGE: usize = 200;

#[derive(Debug, Deserialize, JsonSchema)]
struct Remember {
    /// Facts to store, each a short sentence that stands by itself.
    #[schemars(length(min = 1, max = MAX_TEXTS))]
    texts: Vec<String>,
    /// What each fact is about, for facts that change over time (job, city, current goal): a fact with the key "employer"
    /// takes the place of the earlier fact with that key. As many as texts; null for a fact without.
    keys: Option<Vec<Option<String>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct RecallArguments {
    /// What the memories are to be about.
    query: String,
    /// Memories to return at most.
    #[serde(default = "results", deserialize_with = "null_results")]
    #[schemars(range(min = 1, max = MAX_RESULTS))]
    max_results: usize,
}

fn results() -> usize {
    8
}

/// A number of results; null is as good as none.
fn null_results<'de, D: serde::Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_else(results))
}

#[derive(Debug, Deserialize, JsonSchema)]
struct List {
    /// Where to go on: the `next_cursor` of the call before. From the beginning if left out.
    cursor: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Forget {
    /// The id of the memory, from recall or list_memories.
    memory_id: Option<String>,
    /// In place of an id, what the memories are about: all that have this key are forgotten, earlier ones included.
    key: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Update {
    /// The id of the memory, from recall or list_memories.
    memory_id: String,
    /// What it is to say from now on.
    text: String,
}

/// What became of the texts.
#[derive(Debug, Serialize, JsonSchema)]
struct Remembered {
    /// Whose memory it is.
    user: String,
    /// What became of each text, in the order of the texts.
    memories: Vec<RememberedText>,
    /// Memories that count now.
    active: usize,
    /// Memories whose place others took.
    superseded: usize,
    /// Memories that were forgotten.
    forgotten: usize,
}

#[derive(Debug, Serialize, JsonSchema)]
struct RememberedText {
    /// The id of the memory that holds the text.
    id: String,
    /// Whether it is new, was known already, or took another's place.
    outcome: Became,
    /// The memory whose place it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    superseded: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Became {
    Added,
    Duplicate,
    Changed,
    Superseded,
}

/// What was found.
#[derive(Debug, Serialize, JsonSchema)]
struct Recalled {
    /// Whose memory it is.
    user: String,
    /// The memories, best first.
    memories: Vec<RecalledMemory>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct RecalledMemory {
    id: String,
    text: String,
    /// How well it fits; comparable within one result.
    score: f32,
}

/// A page of the list.
#[derive(Debug, Serialize, JsonSchema)]
struct Listed {
    /// Whose memory it is.
    user: String,
    /// Memories that count, in the order in which they were remembered.
    memories: Vec<ListedMemory>,
    /// How many there are on all pages.
    total: usize,
    /// Where the next page begins; none after the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ListedMemory {
    id: String,
    text: String,
    /// What it is about, if that was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// When it was remembered.
    created_at: String,
}

/// What was forgotten.
#[derive(Debug, Serialize, JsonSchema)]
struct Forgotten {
    /// Whose memory it was.
    user: String,
    /// The id of the memory, if it was forgotten by that.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// The ids of all that was forgotten.
    ids: Vec<String>,
}

/// What a memory says now.
#[derive(Debug, Serialize, JsonSchema)]
struct Updated {
    /// Whose memory it is.
    user: String,
    id: String,
    text: String,
}

/// The tools. With a `choice` they take an argument `user`; it says whose memory it is if that is left out, if anything
/// does.
pub(super) fn all(choice: Option<&Option<Namespace>>) -> Vec<Tool> {
    let tool =
        |name, title, description, arguments: Arc<JsonObject>, output: Arc<JsonObject>, hints: ToolAnnotations| {
            let tool = Tool::new(name, description, input(&arguments, choice)).with_title(title);
            tool.with_raw_output_schema(Arc::new(plain(&output))).with_annotations(hints.open_world(false))
        };
    let hints = |title| ToolAnnotations::with_title(title);
    vec![
        tool(
            "remember",
            "Remember facts",
            "Saves facts to the user's long-term memory. Call it whenever the user says something worth knowing in later \
             conversations: who they are, what they prefer, what they decided, what they work on.",
            schema_for_type::<Remember>(),
            schema_for_output::<Remembered>(),
            // A key lets a fact take another's place, which stays in the records, superseded.
            hints("Remember facts").read_only(false).destructive(false).idempotent(true),
        ),
        tool(
            "recall",
            "Recall memories",
            "Finds the user's memories that a text is about, best first, each with its id. Call it before answering \
             anything that may depend on what was said in earlier conversations.",
            schema_for_type::<RecallArguments>(),
            schema_for_output::<Recalled>(),
            hints("Recall memories").read_only(true),
        ),
        tool(
            "list_memories",
            "List memories",
            "Lists the user's memories with their ids, which forget and update take, oldest first and a page at a time.",
            schema_for_type::<List>(),
            schema_for_output::<Listed>(),
            hints("List memories").read_only(true),
        ),
        tool(
            "forget",
            "Forget a memory",
            "Forgets a memory for good, by its id from recall or list_memories, or all memories of a key. Their texts cannot \
             be brought back.",
            schema_for_type::<Forget>(),
            schema_for_output::<Forgotten>(),
            hints("Forget a memory").read_only(false).destructive(true).idempotent(true),
        ),
        tool(
            "update",
            "Change a memory",
            "Replaces the text of a memory, by its id from recall or list_memories.",
            schema_for_type::<Update>(),
            schema_for_output::<Updated>(),
            hints("Change a memory").read_only(false).destructive(true).idempotent(true),
        ),
    ]
}

/// The schema of a tool's arguments, with the argument `user`, which all tools share, if there is a choice.
fn input(arguments: &JsonObject, choice: Option<&Option<Namespace>>) -> JsonObject {
    let mut schema = plain(arguments);
    schema.remove("title");
    if let (Some(own), Some(Value::Object(properties))) = (choice, schema.get_mut("properties")) {
        let mut user = json!({ "type": "string", "description": "Whose memory it is." });
        if let Some(own) = own {
            user["default"] = own.as_str().into();
        }
        properties.insert("user".to_owned(), user);
    }
    schema
}

/// A schema in words that all clients know: without the names of Rust's number types, of which validators complain, and
/// with each description on one line.
fn plain(schema: &JsonObject) -> JsonObject {
    fn plain_value(value: &Value) -> Value {
        match value {
            Value::Object(object) => Value::Object(plain(object)),
            Value::Array(values) => Value::Array(values.iter().map(plain_value).collect()),
            value => value.clone(),
        }
    }
    let entries = schema.iter().filter(|(key, value)| !(*key == "format" && value.is_string()));
    let entries = entries.map(|(key, value)| match value {
        Value::String(text) if key == "description" => (key.clone(), text.replace('\n', " ").into()),
        value => (key.clone(), plain_value(value)),
    });
    entries.collect()
}

/// What a model reads when a tool could not do what it was asked.
pub(super) fn failed(error: &ApiError) -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text(error.message())])
}

fn done<T: Serialize>(text: String, structured: &T) -> Result<CallToolResult> {
    let structured = serde_json::to_value(structured).map_err(|error| ApiError::internal(&error))?;
    let mut result = CallToolResult::success(vec![ContentBlock::text(text)]);
    result.structured_content = Some(structured);
    Ok(result)
}

fn parse<T: DeserializeOwned>(arguments: JsonObject) -> Result<T> {
    let refused = |error| ApiError::bad_request(format!("the arguments are not those of this tool: {error}"));
    serde_json::from_value(Value::Object(arguments)).map_err(refused)
}

/// Memories as lines. A text of several lines stays one item.
fn lines<'m>(memories: impl Iterator<Item = (&'m str, &'m str)>) -> String {
    let line = |(id, text): (&str, &str)| format!("- [{id}] {}", text.replace('\n', "\n  "));
    memories.map(line).collect::<Vec<_>>().join("\n")
}

fn check_length(what: &'static str, text: &str) -> Result<()> {
    match text.len() {
        0..=MAX_TEXT_BYTES => Ok(()),
        bytes => Err(ApiError::too_large(format!("{what} of {bytes} bytes: at most {MAX_TEXT_BYTES} are taken"))),
    }
}

fn id_of(memory_id: &str) -> Result<RecordId> {
    memory_id.trim().parse().map_err(|_| no_such(memory_id))
}

fn no_such(memory_id: &str) -> ApiError {
    ApiError::not_found(format!("No active memory with id {memory_id}."))
}

/// What an error about a memory is to whoever gave its id.
fn about(memory_id: &str, error: Error) -> ApiError {
    match error {
        Error::UnknownRecord { .. } => no_such(memory_id),
        error => error.into(),
    }
}

impl Session {
    /// Calls the tool of this name.
    ///
    /// # Errors
    /// What the model is told.
    pub(super) async fn call(
        &self,
        name: &str,
        arguments: JsonObject,
        caller: Option<&Caller>,
    ) -> Result<CallToolResult> {
        let user = match arguments.get("user") {
            None | Some(Value::Null) => None,
            Some(Value::String(user)) => Some(user.as_str()),
            Some(_) => return Err(ApiError::bad_request("`user` is a name").param("user")),
        };
        let user = self.users().named(caller, user)?;
        match name {
            "remember" => self.remember(user, parse(arguments)?).await,
            "recall" => self.recall(user, parse(arguments)?).await,
            "list_memories" => self.list(user, parse(arguments)?).await,
            "forget" => self.forget(user, parse(arguments)?).await,
            "update" => self.update(user, parse(arguments)?).await,
            name => Err(ApiError::not_found(format!("there is no tool {name:?}"))),
        }
    }

    async fn remember(&self, user: Namespace, arguments: Remember) -> Result<CallToolResult> {
        let Remember { texts, keys } = arguments;
        if !(1..=MAX_TEXTS).contains(&texts.len()) {
            let message = format!("{} texts: give between 1 and {MAX_TEXTS}", texts.len());
            return Err(ApiError::bad_request(message).param("texts"));
        }
        let keys = keys.unwrap_or_else(|| vec![None; texts.len()]);
        if keys.len() != texts.len() {
            let message = format!("{} keys for {} texts: give one for each, null for none", keys.len(), texts.len());
            return Err(ApiError::bad_request(message).param("keys"));
        }
        texts.iter().try_for_each(|text| check_length("a text", text))?;
        let new = texts.into_iter().zip(keys).map(|(text, key)| {
            let key = key.filter(|key| !key.trim().is_empty());
            key.into_iter().fold(NewRecord::new(text), NewRecord::key)
        });
        let added = self.memory().remember_all(&user, new).await?;
        let ids: Vec<RecordId> = added.iter().filter(|added| !added.is_duplicate()).flat_map(changed_by).collect();
        if !ids.is_empty() {
            self.watchers().changed(&user, &ids);
        }
        let stats = self.memory().stats(&user).await?;
        let memories: Vec<RememberedText> = added.iter().map(RememberedText::from).collect();
        let (active, superseded, forgotten) = (stats.active, stats.superseded, stats.forgotten);
        let duplicates = added.iter().filter(|added| added.is_duplicate()).count();
        let ids: Vec<String> = memories.iter().map(|memory| format!("'{}'", memory.id)).collect();
        let mut text = format!(
            "Saved {} memory item(s) for '{user}'. active={active} superseded={superseded} deleted={forgotten}. ids=[{}]",
            added.len() - duplicates,
            ids.join(", ")
        );
        if duplicates > 0 {
            text += &format!(" {duplicates} of the texts were known already.");
        }
        done(text, &Remembered { user: user.to_string(), memories, active, superseded, forgotten })
    }

    async fn recall(&self, user: Namespace, arguments: RecallArguments) -> Result<CallToolResult> {
        let RecallArguments { query, max_results } = arguments;
        if !(1..=MAX_RESULTS).contains(&max_results) {
            let message = format!("max_results is {max_results}: give between 1 and {MAX_RESULTS}");
            return Err(ApiError::bad_request(message).param("max_results"));
        }
        check_length("a query", &query)?;
        let found = self.memory().recall(&user, Recall::new(query).k(max_results)).await?;
        let memories: Vec<RecalledMemory> = found
            .into_iter()
            .map(|found| RecalledMemory {
                id: found.record.id.to_string(),
                text: found.record.text,
                score: found.score,
            })
            .collect();
        let text = match memories.is_empty() {
            true => "(no relevant memories)".to_owned(),
            false => lines(memories.iter().map(|memory| (&*memory.id, &*memory.text))),
        };
        done(text, &Recalled { user: user.to_string(), memories })
    }

    async fn list(&self, user: Namespace, arguments: List) -> Result<CallToolResult> {
        let mut listing = Listing::new(Query::At(Timestamp::now())).limit(PAGE);
        listing.after = arguments.cursor.as_deref().map(resources::cursor_id).transpose()?;
        let page = self.memory().page(&user, &listing).await.map_err(resources::stale_cursor)?;
        let total = self.memory().count(&user).await?;
        let next_cursor = page.next.map(|next| next.to_string());
        let memories: Vec<ListedMemory> = page
            .records
            .into_iter()
            .map(|record| ListedMemory {
                id: record.id.to_string(),
                text: record.text,
                key: record.key,
                created_at: resources::iso(record.created_at),
            })
            .collect();
        let mut text = match total {
            0 => format!("(no memories for '{user}')"),
            total => format!("{total} active memory item(s) for '{user}':\n"),
        };
        text += &lines(memories.iter().map(|memory| (&*memory.id, &*memory.text)));
        if let Some(next) = &next_cursor {
            text += &format!("\nThere are more: call list_memories with cursor \"{next}\".");
        }
        done(text, &Listed { user: user.to_string(), memories, total, next_cursor })
    }

    async fn forget(&self, user: Namespace, arguments: Forget) -> Result<CallToolResult> {
        let memory_id = match (arguments.memory_id, arguments.key) {
            (Some(memory_id), None) => memory_id,
            (None, Some(key)) => return self.forget_key(user, &key).await,
            _ => return Err(ApiError::bad_request("give memory_id or key, one of the two").param("memory_id")),
        };
        let id = id_of(&memory_id)?;
        self.memory().forget(&user, id).await.map_err(|error| about(&memory_id, error))?;
        self.watchers().changed(&user, &[id]);
        let ids = vec![id.to_string()];
        done(format!("Forgot memory {id}."), &Forgotten { user: user.to_string(), id: Some(id.to_string()), ids })
    }

    async fn forget_key(&self, user: Namespace, key: &str) -> Result<CallToolResult> {
        let forgotten = self.memory().forget_key(&user, key).await?;
        let ids: Vec<RecordId> = forgotten.iter().map(|record| record.id).collect();
        if !ids.is_empty() {
            self.watchers().changed(&user, &ids);
        }
        let text = match ids.len() {
            0 => format!("No memory has the key {key:?}."),
            count => format!("Forgot {count} memory item(s) with the key {key:?}."),
        };
        let ids = ids.iter().map(ToString::to_string).collect();
        done(text, &Forgotten { user: user.to_string(), id: None, ids })
    }

    async fn update(&self, user: Namespace, arguments: Update) -> Result<CallToolResult> {
        let Update { memory_id, text } = arguments;
        let id = id_of(&memory_id)?;
        check_length("a text", &text)?;
        let record = self.memory().update(&user, id, &text).await.map_err(|error| about(&memory_id, error))?;
        self.watchers().changed(&user, &[id]);
        let updated = Updated { user: user.to_string(), id: id.to_string(), text: record.text };
        done(format!("Updated memory {id}."), &updated)
    }
}

impl From<&Added> for RememberedText {
    fn from(added: &Added) -> Self {
        let (outcome, superseded) = match added.outcome {
            Outcome::Duplicate => (Became::Duplicate, None),
            Outcome::Changed => (Became::Changed, None),
            Outcome::Superseded(id) => (Became::Superseded, Some(id.to_string())),
            _ => (Became::Added, None),
        };
        Self { id: added.record.id.to_string(), outcome, superseded }
    }
}

/// The memories that changed because this one was added.
fn changed_by(added: &Added) -> Vec<RecordId> {
    match added.outcome {
        Outcome::Superseded(superseded) => vec![added.record.id, superseded],
        _ => vec![added.record.id],
    }
}
