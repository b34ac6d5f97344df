//! Memory's own paths.

use std::collections::HashSet;

use amem::http::{Identity, KeyHeader};
use amem::keys::{Grant, KeyFile};
use amem::server::Options;
use amem_core::Namespace;
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::common::{block_on, in_ram};
use super::front::Front;
use super::scripted::Scripted;
use super::{client, post};

/// What a server says to a request; `null` for an empty body.
pub(crate) fn call(method: Method, url: String, body: Option<&Value>) -> (u16, Value) {
    let request = client().request(method, url);
    let request = match body {
        Some(body) => request.json(body),
        None => request,
    };
    let response = request.send().unwrap();
    let status = response.status().as_u16();
    let text = response.text().unwrap();
    let json = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect(&text) };
    (status, json)
}

/// What a server says to a `GET` that it answers.
pub(crate) fn get(url: String) -> Value {
    let (status, body) = call(Method::GET, url, None);
    assert_eq!(status, 200, "{body}");
    body
}

/// Remembers texts; the answer.
fn remember(front: &Front, body: &Value) -> Value {
    let (status, answer) = post(front.url("/v1/memories"), body);
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The texts of a list of memories.
fn texts(memories: &Value) -> Vec<&str> {
    memories.as_array().unwrap().iter().map(|memory| memory["text"].as_str().unwrap()).collect()
}

#[test]
fn each_text_is_answered_with_the_id_of_the_memory_that_holds_it() {
    let front = Front::of(in_ram());
    let answer = remember(&front, &json!({ "user": "a", "texts": ["one", "two", "one"], "keys": [null, "k", null] }));
    let ids: Vec<&str> = answer["added"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    assert!(ids.len() == 3 && ids[0] == ids[2] && ids[0] != ids[1], "{answer}");
    assert_eq!(answer["ids"], answer["added"]);
    let outcomes: Vec<&str> =
        answer["outcomes"].as_array().unwrap().iter().map(|o| o["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["added", "added", "duplicate"]);
    let again = remember(&front, &json!({ "user": "a", "texts": "three", "keys": "k" }));
    assert_eq!(again["outcomes"][0]["outcome"], "superseded");
    assert_eq!(again["outcomes"][0]["supersedes"], ids[1]);
    assert_eq!(again["active"], 2);
    let counts = json!({ "active": 2, "superseded": 1, "expired": 0, "forgotten": 0, "deleted": 0, "total": 3 });
    assert_eq!(again["counts"], counts);
    let list = get(front.url("/v1/memories/a"));
    assert_eq!(
        (texts(&list["memories"]), &list["counts"], &list["next"]),
        (vec!["one", "three"], &counts, &Value::Null)
    );
    let all = get(front.url("/v1/memories/a?state=all"));
    assert_eq!(all["memories"][1]["superseded_by"], again["added"][0]);
    assert_eq!(all["memories"][1]["state"], "superseded");
}

#[test]
fn an_empty_key_is_no_key() {
    let front = Front::of(in_ram());
    remember(&front, &json!({ "texts": ["one", "two"], "keys": ["", ""] }));
    assert_eq!(texts(&get(front.url("/v1/memories/default"))["memories"]), ["one", "two"]);
}

#[test]
fn a_memory_is_changed_keeps_its_history_and_is_forgotten() {
    let front = Front::of(in_ram());
    let added = remember(&front, &json!({ "user": "a", "texts": ["old"], "metadata": { "source": "mail", "n": 3 } }));
    let id = added["added"][0].as_str().unwrap();
    let url = || front.url(&format!("/v1/memories/a/{id}"));
    let (status, updated) = call(Method::PATCH, url(), Some(&json!({ "text": " new " })));
    assert_eq!(
        (status, &updated["updated"], &updated["text"], &updated["id"]),
        (200, &json!(true), &json!("new"), &json!(id))
    );
    let one = get(url());
    assert_eq!((&one["text"], &one["metadata"]), (&json!("new"), &json!({ "n": 3, "source": "mail" })));
    let history = get(format!("{}/history", url()));
    assert_eq!(texts(&history["versions"]), ["old", "new"]);
    assert_eq!(history["versions"][0]["until"], history["versions"][1]["from"]);
    let (status, forgotten) = call(Method::DELETE, url(), None);
    assert_eq!((status, &forgotten["forgotten"], &forgotten["counts"]["forgotten"]), (200, &json!(true), &json!(1)));
    assert_eq!(call(Method::DELETE, url(), None).0, 404);
    assert_eq!(call(Method::PATCH, url(), Some(&json!({ "text": "x" }))).0, 404);
    let tombstone = get(url());
    assert_eq!(
        (&tombstone["state"], &tombstone["text"], &tombstone["metadata"]),
        (&json!("forgotten"), &json!(""), &json!({}))
    );
}

#[test]
fn what_stands_beside_a_text_is_changed_and_taken_away() {
    let front = Front::of(in_ram());
    let body =
        json!({ "user": "a", "texts": ["one", "two"], "keys": ["k", "other"], "metadata": { "source": "mail" } });
    let ids = remember(&front, &body)["added"].clone();
    let patch = |body: Value| {
        call(Method::PATCH, front.url(&format!("/v1/memories/a/{}", ids[0].as_str().unwrap())), Some(&body))
    };
    let until = "2101-09-09T01:46:40.000Z";
    let (status, changed) = patch(json!({ "key": "home", "metadata": { "n": 1 }, "expires_at": until }));
    let expected = (200, &json!("one"), &json!("home"), &json!({ "n": 1 }), &json!(until));
    assert_eq!((status, &changed["text"], &changed["key"], &changed["metadata"], &changed["expires_at"]), expected);
    let (_, changed) = patch(json!({ "text": "uno" }));
    let kept = (&json!("uno"), &json!("home"), &json!({ "n": 1 }), &json!(until));
    assert_eq!((&changed["text"], &changed["key"], &changed["metadata"], &changed["expires_at"]), kept);
    let (_, changed) = patch(json!({ "key": null, "metadata": null, "expires_at": null }));
    let none = (&json!("uno"), &Value::Null, &json!({}), &Value::Null);
    assert_eq!((&changed["text"], &changed["key"], &changed["metadata"], &changed["expires_at"]), none);
    let one = get(front.url(&format!("/v1/memories/a/{}", ids[0].as_str().unwrap())));
    assert_eq!((&one["key"], &one["metadata"], &one["expires_at"]), (&Value::Null, &json!({}), &Value::Null));
    assert_eq!(patch(json!({ "key": "other" })).0, 409, "another memory has it");
    assert_eq!(patch(json!({})).0, 422, "nothing is to change");
    for bad in [
        json!({ "key": "k".repeat(513) }),
        json!({ "metadata": { "list": [1] } }),
        json!({ "expires_at": "soon" }),
        json!({ "ttl_seconds": 0 }),
        json!({ "ttl_seconds": 9, "expires_at": until }),
    ] {
        assert_eq!(patch(bad.clone()).0, 400, "{bad}");
    }
    assert_eq!(patch(json!({ "ttl_seconds": 9 })).0, 200);
}

#[test]
fn what_is_told_again_has_what_was_stated_last() {
    let front = Front::of(in_ram());
    let tell = |body: Value| remember(&front, &body)["outcomes"][0]["outcome"].clone();
    assert_eq!(tell(json!({ "user": "a", "texts": ["one"], "metadata": { "source": "mail" } })), "added");
    let until = "2101-09-09T01:46:40.000Z";
    assert_eq!(tell(json!({ "user": "a", "texts": ["one"], "expires_at": until })), "changed");
    assert_eq!(tell(json!({ "user": "a", "texts": ["one"] })), "duplicate");
    let one = get(front.url("/v1/memories/a"))["memories"][0].clone();
    assert_eq!((&one["expires_at"], &one["metadata"]), (&json!(until), &json!({ "source": "mail" })));
}

#[test]
fn what_was_superseded_or_has_expired_is_there_but_cannot_be_changed() {
    let front = Front::of(in_ram());
    let gone = json!({ "user": "a", "texts": ["short"], "expires_at": "2001-09-09T01:46:40Z" });
    let expired = remember(&front, &gone)["added"][0].as_str().unwrap().to_owned();
    let old = remember(&front, &json!({ "user": "a", "texts": ["old"], "keys": ["k"] }))["added"][0]
        .as_str()
        .unwrap()
        .to_owned();
    let new = remember(
        &front,
        &json!({ "user": "a", "texts": ["new", "other"], "keys": ["k", null], "ttl_seconds": 3600.5 }),
    );
    let patch = |id: &str, text: &str| {
        call(Method::PATCH, front.url(&format!("/v1/memories/a/{id}")), Some(&json!({ "text": text }))).0
    };
    assert_eq!(patch(&expired, "x"), 409);
    assert_eq!(patch(&old, "x"), 409);
    assert_eq!(get(front.url(&format!("/v1/memories/a/{expired}")))["state"], "expired");
    let kept = get(front.url(&format!("/v1/memories/a/{}", new["added"][0].as_str().unwrap())));
    let (from, until) = (kept["created_at"].as_str().unwrap(), kept["expires_at"].as_str().unwrap());
    let seconds = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_millisecond();
    assert!((3_600_000..3_605_000).contains(&(seconds(until) - seconds(from))), "{kept}");
    assert_eq!(patch(new["added"][0].as_str().unwrap(), "other text"), 200);
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_of_it_is_done() {
    let mut options = Options::default();
    options.max_texts = 3;
    let front = Front::with(in_ram(), Identity::new(KeyHeader::Authorization), options);
    let long = "x".repeat(600);
    let cases = [
        (400, json!({ "texts": [] })),
        (400, json!({ "texts": ["one", "  "] })),
        (400, json!({ "texts": ["one", "two"], "keys": ["k"] })),
        (400, json!({ "texts": ["one"], "keys": [long] })),
        (400, json!({ "texts": ["one"], "metadata": [{}, {}] })),
        (400, json!({ "texts": ["one"], "metadata": { "a": [1] } })),
        (400, json!({ "texts": ["one"], "metadata": { "a": 9_007_199_254_740_993u64 } })),
        (400, json!({ "texts": ["one"], "expires_at": "soon" })),
        (400, json!({ "texts": ["one"], "expires_at": 2e9, "ttl_seconds": 5 })),
        (400, json!({ "texts": ["one"], "ttl_seconds": 0 })),
        (400, json!({ "texts": ["one"], "ttl_seconds": -1.5 })),
        (400, json!({ "texts": ["one"], "ttl_seconds": 1e300 })),
        (400, json!({ "texts": ["one"], "user": "" })),
        (413, json!({ "texts": ["1", "2", "3", "4"] })),
        (422, json!({ "texts": 1 })),
        (422, json!({ "texts": [1] })),
        (422, json!({ "texts": ["one"], "metadata": 1 })),
        (422, json!({})),
        (422, json!([])),
    ];
    for (expected, body) in cases {
        let (status, answer) = post(front.url("/v1/memories"), &body);
        assert_eq!(status, expected, "{body}: {answer}");
        assert!(answer["detail"].is_string() && answer["error"]["message"].is_string());
    }
    assert_eq!(post(front.url("/v1/memories"), &json!({ "texts": ["word ".repeat(5000)] })).0, 400);
    for (expected, path) in [
        (400, "?limit=0"),
        (400, "?limit=1001"),
        (422, "?limit=-1"),
        (400, "?cursor=x"),
        (400, "?cursor=00000000000000000000000000000000"),
        (422, "?state=gone"),
        (400, "?as_of=never"),
        (400, "?state=all&as_of=2020-01-01"),
        (400, "?filter=%7B"),
        (400, "?filter=%7B%22a%22%3A%5B%5D%7D"),
        (404, "/x"),
        (404, "/00000000000000000000000000000000"),
        (404, "/00000000000000000000000000000000/history"),
    ] {
        let (status, answer) = call(Method::GET, front.url(&format!("/v1/memories/default{path}")), None);
        assert_eq!(status, expected, "{path}: {answer}");
    }
    assert_eq!(call(Method::GET, front.url("/v1/memories/%FF"), None).0, 404);
    assert_eq!(call(Method::GET, front.url("/v1/memories/%0A"), None).0, 400);
    assert_eq!(get(front.url("/v1/memories/default"))["counts"]["total"], 0);
}

#[test]
fn any_name_is_a_user_and_none_is_a_path() {
    let front = Front::of(in_ram());
    let users = ["../../etc/passwd", "a/b", "a b", "a%20b", "a%b", "ä·日本", "a?b#c", "export", "a.b", "+", "\\"];
    for user in users {
        remember(&front, &json!({ "user": user, "texts": [format!("of {user}")] }));
    }
    for user in users {
        let escaped: String = user.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let list = get(front.url(&format!("/v1/memories/{escaped}")));
        assert_eq!((&list["user"], texts(&list["memories"])), (&json!(user), vec![format!("of {user}").as_str()]));
        let id = list["memories"][0]["id"].as_str().unwrap();
        assert_eq!(get(front.url(&format!("/v1/memories/{escaped}/{id}")))["id"], id);
        assert_eq!(call(Method::GET, front.url(&format!("/v1/memories/nobody/{id}")), None).0, 404);
    }
    let mut names = users.to_vec();
    names.sort_unstable();
    let listed = get(front.url("/v1/users"));
    let listed: Vec<&str> =
        listed["users"].as_array().unwrap().iter().map(|user| user["user"].as_str().unwrap()).collect();
    assert_eq!(listed, names);
}

#[test]
fn all_memories_are_listed_in_one_answer_or_page_by_page() {
    let memory = in_ram();
    let all: Vec<String> = (0..2500).map(|n| format!("note {n} \"quoted\"")).collect();
    block_on(memory.remember_all("a", all.iter().map(String::as_str))).unwrap();
    let front = Front::of(memory);
    let whole = get(front.url("/v1/memories/a"));
    assert_eq!(texts(&whole["memories"]), all);
    assert_eq!((&whole["user"], &whole["next"], &whole["counts"]["active"]), (&json!("a"), &Value::Null, &json!(2500)));
    let (mut paged, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = get(front.url(&format!("/v1/memories/a?limit=700&cursor={cursor}")));
        paged.extend(page["memories"].as_array().unwrap().clone());
        pages += 1;
        match page["next"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!((Value::from(paged), pages), (whole["memories"].clone(), 4));
    let rest = get(front.url(&format!("/v1/memories/a?cursor={cursor}")));
    assert_eq!(texts(&rest["memories"]), all[2100..]);
}

#[test]
fn memories_are_found_by_what_they_carry_and_as_of_a_moment() {
    let front = Front::of(in_ram());
    let body = json!({ "user": "a", "texts": ["Alice likes tea.", "Alice likes jazz.", "Alice likes Rome."],
        "metadata": [{ "topic": "food", "n": 1 }, { "topic": "music", "n": 2 }, null], "created_at": "2020-01-01" });
    let ids = remember(&front, &body)["added"].clone();
    let list = |query: &str| get(front.url(&format!("/v1/memories/a?{query}")));
    let filter = |filter: &Value| {
        format!("filter={}", filter.to_string().bytes().map(|b| format!("%{b:02X}")).collect::<String>())
    };
    assert_eq!(texts(&list(&filter(&json!({ "topic": "music" })))["memories"]), ["Alice likes jazz."]);
    let either = json!({ "not": { "n": { "lt": 2 } } });
    assert_eq!(texts(&list(&filter(&either))["memories"]), ["Alice likes jazz.", "Alice likes Rome."]);
    assert_eq!(texts(&list(&filter(&json!({ "created_at": { "lt": "2020-01-01" } })))["memories"]), Vec::<&str>::new());
    assert_eq!(list("limit=1")["memories"][0]["created_at"], "2020-01-01T00:00:00.000Z");
    let url = front.url(&format!("/v1/memories/a/{}", ids[0].as_str().unwrap()));
    call(Method::PATCH, url, Some(&json!({ "text": "Alice likes coffee." })));
    let recall = |more: Value| {
        let mut body = json!({ "user": "a", "query": "What does Alice like?" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(front.url("/v1/recall"), &body).1
    };
    let found = |answer: &Value| texts(&answer["memories"]).iter().map(|t| (*t).to_owned()).collect::<HashSet<_>>();
    let set = |all: &[&str]| all.iter().map(|t| (*t).to_owned()).collect::<HashSet<_>>();
    assert_eq!(found(&recall(json!({}))), set(&["Alice likes coffee.", "Alice likes jazz.", "Alice likes Rome."]));
    assert_eq!(found(&recall(json!({ "filter": { "topic": { "in": ["food"] } } }))), set(&["Alice likes coffee."]));
    let before = recall(json!({ "as_of": "2021-06-01T00:00:00Z", "filter": { "n": { "gte": 1 } } }));
    assert_eq!(found(&before), set(&["Alice likes tea.", "Alice likes jazz."]));
    assert_eq!(found(&recall(json!({ "as_of": "2019-12-31" }))), set(&[]));
    assert_eq!(texts(&list("as_of=2021")["memories"]).len(), 0, "2021 are seconds");
    assert_eq!(texts(&list("as_of=2021-01-01")["memories"])[0], "Alice likes tea.");
}

#[test]
fn a_recall_keeps_within_its_tokens_as_the_model_counts_them() {
    let memory = in_ram();
    let front = Front::of(memory.clone());
    let texts_of = ["Alice lives in Denver.", "Alice works in Paris.", "Alice has a dog named Rex."];
    remember(&front, &json!({ "user": "a", "texts": texts_of }));
    let recall = |body: Value| post(front.url("/v1/recall"), &body);
    let (status, all) = recall(json!({ "user": "a", "query": "Alice" }));
    let count = |text: &str| memory.model().chat().encode(text).unwrap().len();
    assert_eq!((status, &all["n_turns"], &all["memory_active_turns"]), (200, &json!(3), &json!(3)));
    let working_set = all["working_set"].as_str().unwrap();
    assert_eq!(working_set, texts(&all["memories"]).join("\n"));
    assert_eq!(all["tokens"], count(working_set));
    assert_eq!(all["sources"], json!(texts(&all["memories"])));
    assert!(all["memories"][0]["score"].as_f64().unwrap() > 0.0);
    let budget = count(working_set) - 1;
    let (_, less) = recall(json!({ "user": "a", "query": "Alice", "budget_tokens": budget }));
    assert!(less["tokens"].as_u64().unwrap() <= budget as u64 && less["n_turns"] == 2, "{less}");
    let (_, none) = recall(json!({ "user": "a", "query": "Alice", "budget_tokens": 0 }));
    assert_eq!((&none["working_set"], &none["tokens"], &none["memories"]), (&json!(""), &json!(0), &json!([])));
    assert_eq!(recall(json!({ "user": "a", "query": "Alice", "k": 1 })).1["n_turns"], 1);
    assert_eq!(recall(json!({ "user": "a", "query": "Alice", "max_turns": 2 })).1["n_turns"], 2);
    assert_eq!(recall(json!({ "user": "a", "query": "Alice", "min_score": 1e6 })).1["n_turns"], 0);
    assert_eq!(recall(json!({ "user": "nobody", "query": "Alice" })).1["memories"], json!([]));
    for bad in [json!({ "query": " " }), json!({ "query": "a", "k": 0 }), json!({ "query": "a", "k": 1001 })] {
        assert_eq!(recall(bad.clone()).0, 400, "{bad}");
    }
    assert_eq!(recall(json!({ "query": "a", "session": "sess-x" })).0, 404);
}

#[test]
fn many_memories_are_forgotten_at_once_or_none_of_them() {
    let front = Front::of(in_ram());
    let ids = remember(&front, &json!({ "user": "a", "texts": ["one", "two", "three"] }))["added"].clone();
    let forget = |ids: Value| post(front.url("/v1/memories/a/forget"), &json!({ "ids": ids }));
    assert_eq!(forget(json!([])).0, 400);
    assert_eq!(forget(json!([ids[0], "x"])).0, 404);
    assert_eq!(forget(json!([ids[0], "00000000000000000000000000000000"])).0, 404);
    assert_eq!(get(front.url("/v1/memories/a"))["counts"]["active"], 3);
    let (status, answer) = forget(json!([ids[2], ids[0]]));
    assert_eq!((status, &answer["forgotten"]), (200, &json!([ids[2], ids[0]])));
    assert_eq!(texts(&get(front.url("/v1/memories/a"))["memories"]), ["two"]);
    assert_eq!(forget(json!([ids[0]])).0, 200, "forgetting again changes nothing");
    let (status, deleted) = call(Method::DELETE, front.url("/v1/memories/a"), None);
    assert_eq!((status, &deleted["deleted"]), (200, &json!(3)));
    assert_eq!(get(front.url("/v1/memories/a"))["counts"]["total"], 0);
    assert_eq!(get(front.url("/v1/users"))["count"], 0);
}

#[test]
fn all_that_was_said_under_a_key_is_forgotten_at_once() {
    let front = Front::of(in_ram());
    let body = json!({ "user": "a", "texts": ["one", "two", "three"], "keys": ["k", "k", "other"] });
    let ids = remember(&front, &body)["added"].clone();
    let forget = |body: Value| post(front.url("/v1/memories/a/forget"), &body);
    let (status, answer) = forget(json!({ "key": "k" }));
    assert_eq!((status, &answer["forgotten"]), (200, &json!([ids[0], ids[1]])));
    assert_eq!(answer["counts"]["forgotten"], 2);
    assert_eq!(texts(&get(front.url("/v1/memories/a"))["memories"]), ["three"]);
    let (status, answer) = forget(json!({ "key": "k" }));
    assert_eq!((status, &answer["forgotten"]), (200, &json!([])), "no memory has it now");
    assert_eq!(forget(json!({ "key": "other", "ids": [ids[2]] })).0, 400, "one of the two");
    assert_eq!(forget(json!({})).0, 422);
    assert_eq!(get(front.url("/v1/memories/a"))["counts"]["active"], 1);
}

#[test]
fn the_facts_of_a_text_are_its_sentences_where_the_model_names_none() {
    let front = Front::of(in_ram());
    let text = "Alice moved to Denver. Her sister Maria lives in Paris!\nBob's code is 4.5";
    let (status, answer) = post(front.url("/v1/extract"), &json!({ "user": "a", "text": text }));
    let facts = ["Alice moved to Denver.", "Her sister Maria lives in Paris!", "Bob's code is 4.5"];
    assert_eq!((status, &answer["facts"], &answer["method"]), (200, &json!(facts), &json!("sentences")));
    let list = get(front.url("/v1/memories/a"));
    assert_eq!((texts(&list["memories"]), answer["active"].as_u64()), (facts.to_vec(), Some(3)));
    let ids: Vec<&Value> = list["memories"].as_array().unwrap().iter().map(|memory| &memory["id"]).collect();
    assert_eq!(answer["added"], json!(ids));
    assert_eq!(post(front.url("/v1/extract"), &json!({ "user": "a", "text": " \n" })).0, 400);
    assert_eq!(post(front.url("/v1/extract"), &json!({ "text": "x".repeat(65 << 10) })).0, 413);
}

#[test]
fn the_facts_that_a_model_lists_count_as_far_as_the_text_says_them() {
    let said = r#"Facts: ["Maria lives in Paris.", "Maria lives in Rome.", "Maria is 41."]"#;
    let (memory, model) = Scripted::new(&[("Maria", said), ("nothing", "[]"), ("secret", "I will not.")]).memory();
    let front = Front::of(memory);
    let extract = |text: &str| {
        let (status, answer) = post(front.url("/v1/extract"), &json!({ "user": "a", "text": text }));
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let found = extract("I met Maria. She is 41, and she lives in Paris.");
    assert_eq!(
        (&found["facts"], &found["method"]),
        (&json!(["Maria lives in Paris.", "Maria is 41."]), &json!("model"))
    );
    assert_eq!((found["added"].as_array().unwrap().len(), &found["active"]), (2, &json!(2)));
    let prompt = model.prompts().pop().unwrap();
    assert!(prompt.contains("JSON list") && prompt.contains("I met Maria. She is 41"), "{prompt}");
    let none = extract("There is nothing here.");
    assert_eq!((&none["facts"], &none["method"], &none["active"]), (&json!([]), &json!("model"), &json!(2)));
    let asked = model.prompts().len();
    let sentences = "There is nothing here.\n".repeat(1001);
    assert_eq!(post(front.url("/v1/extract"), &json!({ "user": "a", "text": sentences })).0, 413);
    assert_eq!(model.prompts().len(), asked, "it is not asked about more than it may be told");
    let own = extract("It is a secret. Nobody knows.");
    assert_eq!((&own["facts"], &own["method"]), (&json!(["It is a secret.", "Nobody knows."]), &json!("sentences")));
    let invented = extract("Maria went to Oslo.");
    assert_eq!((&invented["facts"], &invented["method"]), (&json!(["Maria went to Oslo."]), &json!("sentences")));
}

#[test]
fn what_is_exported_is_imported_elsewhere_as_it_was() {
    let memory = in_ram();
    let front = Front::of(memory.clone());
    let body = json!({ "user": "a", "texts": ["one", "two", "three"], "keys": [null, "k", "k"],
        "metadata": { "n": 2.5 }, "created_at": "2020-02-02" });
    remember(&front, &body);
    let export = |query: &str| {
        let response = client().get(front.url(&format!("/v1/memories/a/export{query}"))).send().unwrap();
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        response.text().unwrap()
    };
    let lines = export("");
    assert_eq!(lines.lines().count(), 2);
    assert_eq!(export("?state=all").lines().count(), 3);
    let import = |user: &str, lines: String| {
        let response = client().post(front.url(&format!("/v1/memories/{user}/import"))).body(lines).send().unwrap();
        (response.status().as_u16(), response.json::<Value>().unwrap())
    };
    let long = json!({ "text": "word ".repeat(5000) });
    let more = format!("{lines}\n{{\"text\":\n{long}\n{}", export("?state=all"));
    let (status, answer) = import("b", more);
    assert_eq!(
        (status, &answer["added"], &answer["duplicates"], &answer["refused"]),
        (200, &json!(2), &json!(2), &json!(2))
    );
    let named: Vec<u64> =
        answer["errors"].as_array().unwrap().iter().map(|error| error["line"].as_u64().unwrap()).collect();
    assert_eq!(named, [4, 5, 7], "the blank line is counted; the superseded one is left out");
    assert!(answer["errors"][1]["reason"].as_str().unwrap().contains("tokens"), "{answer}");
    let list = |user: &str| {
        let mut list = get(front.url(&format!("/v1/memories/{user}")))["memories"].take();
        for memory in list.as_array_mut().unwrap() {
            for changes in ["id", "updated_at"] {
                memory.as_object_mut().unwrap().remove(changes);
            }
        }
        list
    };
    assert_eq!(list("a"), list("b"));
    block_on(memory.remember_all("big", (0..5000).map(|n| format!("note {n} {}", "x".repeat(80))))).unwrap();
    let big = client().get(front.url("/v1/memories/big/export")).send().unwrap().text().unwrap();
    assert_eq!(big.lines().count(), 5000);
    assert_eq!(import("copy", big).1["added"], 5000);
}

#[test]
fn a_key_that_is_bound_to_a_user_reaches_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let keys = KeyFile::at(dir.path().join("keys.json"));
    let (_, key) = keys.create(Grant::Namespace(Namespace::new("alice").unwrap())).unwrap();
    let memory = in_ram();
    let theirs = block_on(memory.remember("bob", "Bob's locker code is 4817.")).unwrap().record.id;
    let front = Front::with(memory, Identity::new(KeyHeader::Authorization).keys(keys), Options::default());
    let call = |method: Method, path: &str, body: Value| {
        let request = client().request(method, front.url(path)).bearer_auth(key.expose_secret()).json(&body);
        let response = request.send().unwrap();
        (response.status().as_u16(), response.text().unwrap())
    };
    let of = |path: &str| format!("/v1/memories/bob{path}");
    let one = of(&format!("/{theirs}"));
    let cases = [
        (Method::POST, "/v1/memories".to_owned(), json!({ "user": "bob", "texts": ["x"] })),
        (Method::POST, "/v1/recall".to_owned(), json!({ "user": "bob", "query": "code" })),
        (Method::POST, "/v1/extract".to_owned(), json!({ "user": "bob", "text": "x" })),
        (Method::POST, "/v1/sessions".to_owned(), json!({ "user": "bob" })),
        (Method::GET, "/v1/usage?user=bob".to_owned(), Value::Null),
        (Method::GET, "/v1/users".to_owned(), Value::Null),
        (Method::GET, of(""), Value::Null),
        (Method::DELETE, of(""), Value::Null),
        (Method::GET, one.clone(), Value::Null),
        (Method::GET, format!("{one}/history"), Value::Null),
        (Method::PATCH, one.clone(), json!({ "text": "x" })),
        (Method::DELETE, one, Value::Null),
        (Method::POST, of("/forget"), json!({ "ids": [theirs.to_string()] })),
        (Method::GET, of("/export"), Value::Null),
        (Method::POST, of("/import"), json!({ "text": "x" })),
    ];
    for (method, path, body) in cases {
        let (status, answer) = call(method.clone(), &path, body);
        assert_eq!(status, 403, "{method} {path}");
        assert!(!answer.contains("4817"), "{method} {path}");
    }
    assert_eq!(call(Method::GET, &format!("/v1/memories/alice/{theirs}"), Value::Null).0, 404);
    assert_eq!(call(Method::POST, "/v1/memories", json!({ "texts": ["mine"] })).0, 200);
    assert!(call(Method::GET, "/v1/memories/alice", Value::Null).1.contains("mine"), "it is alice by default");
    assert_eq!(client().get(front.url("/v1/memories/alice")).send().unwrap().status().as_u16(), 401);
}
