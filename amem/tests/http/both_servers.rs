//! Memory's own paths: a server of a local model and a proxy say the same about them.

use std::sync::Arc;

use amem::http::{Identity, KeyHeader, Limits};
use amem::proxy::{Config, Kind, Options, Proxy, Secret, UpstreamConfig};
use amem_core::{RamLedger, RecordId, TextMemory, TextMemoryOptions};
use reqwest::Method;
use serde_json::{Value, json};

use super::client;
use super::common::builder;
use super::front::Front;

/// Fields that two servers need not agree in: when something was done, what it took, and what a model counts.
const OWN: [&str; 9] =
    ["created_at", "updated_at", "from", "until", "first_ts", "last_ts", "tokens", "est_usd_saved", "usd_per_mtok"];

/// A proxy whose upstream is not there: these paths need none.
fn proxy() -> Front {
    let mut texts = TextMemoryOptions::default();
    texts.meter_usage = true;
    let memory = TextMemory::with_options(Arc::new(RamLedger::new()), texts);
    let upstream = UpstreamConfig::new(Kind::Openai, "http://127.0.0.1:9");
    let config = Config::parse("").unwrap().only_upstream("nobody", upstream);
    let (identity, secret) = (Identity::new(KeyHeader::AmemKey), Secret::new([7; 32]));
    let proxy = Proxy::new(memory, identity, config, secret, Options::default(), |_| None).unwrap();
    Front::start(proxy.router(), Limits::default())
}

/// A server, and the ids that it has given so far. In requests and answers, `#N` stands for the one that came N others
/// after the first.
struct Server {
    front: Front,
    ids: Vec<String>,
}

impl Server {
    fn new(front: Front) -> Self {
        Self { front, ids: Vec::new() }
    }

    fn with_ids(&self, text: &str) -> String {
        // `#1` begins `#10`.
        let ids = self.ids.iter().enumerate().rev();
        ids.fold(text.to_owned(), |text, (index, id)| text.replace(&format!("#{index}"), id))
    }

    /// The status and the body of an answer, without what is the server's own.
    fn call(&mut self, method: Method, path: &str, body: &str) -> (u16, Value) {
        let request = client().request(method, self.front.url(&self.with_ids(path))).body(self.with_ids(body));
        let response = request.send().unwrap();
        let (status, kind) =
            (response.status().as_u16(), response.headers()["content-type"].to_str().unwrap().to_owned());
        let text = response.text().unwrap();
        let mut body = match kind.as_str() {
            "application/json" => serde_json::from_str(&text).unwrap(),
            "application/x-ndjson" => text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect(),
            // The columns behind these are money and moments.
            _ => text.lines().map(|line| line.split(',').take(8).collect::<Vec<_>>().join(",")).collect(),
        };
        self.neutral(&mut body);
        (status, json!({ "kind": kind, "body": body }))
    }

    fn neutral(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if text.parse::<RecordId>().is_ok() && !self.ids.contains(text) {
                    self.ids.push(text.clone());
                }
                for (index, id) in self.ids.iter().enumerate() {
                    *text = text.replace(id, &format!("#{index}"));
                }
            }
            Value::Array(all) => all.iter_mut().for_each(|value| self.neutral(value)),
            Value::Object(entries) => {
                for (name, value) in entries {
                    match OWN.contains(&name.as_str()) {
                        true => *value = json!("its own"),
                        false => self.neutral(value),
                    }
                }
            }
            _ => {}
        }
    }
}

#[test]
fn both_servers_say_the_same_about_memories() {
    let local = Front::of(builder().meter_usage(true).build().unwrap());
    let mut servers = [Server::new(local), Server::new(proxy())];
    let mut same = |status: u16, method: Method, path: &str, body: &Value| -> Value {
        let body = match body {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            body => body.to_string(),
        };
        let [local, proxy] = servers.each_mut().map(|server| server.call(method.clone(), path, &body));
        assert_eq!(local, proxy, "{method} {path} {body}");
        assert_eq!(local.0, status, "{method} {path} {body} {}", local.1);
        local.1["body"].clone()
    };
    let (get, post, patch, delete) = (Method::GET, Method::POST, Method::PATCH, Method::DELETE);
    let none = Value::Null;
    let at = |query: &str| format!("/v1/memories/a%2Fb{query}");

    // Remembering: #0, #1 and #2, then #3 in the place of #0.
    let texts = ["Alice lives in Denver.", "Bob has a cat.", "Carl sings."];
    let metadata = json!([{ "topic": "home" }, { "topic": "pets", "count": 1 }, null]);
    let all = json!({ "user": "a/b", "texts": texts, "keys": ["home", null, null], "metadata": metadata });
    let added = same(200, post.clone(), "/v1/memories", &all);
    assert_eq!(added["added"], json!(["#0", "#1", "#2"]));
    let moved = json!({ "user": "a/b", "texts": "Alice lives in Oslo.", "keys": "home" });
    let moved = same(200, post.clone(), "/v1/memories", &moved);
    assert_eq!(moved["outcomes"], json!([{ "id": "#3", "outcome": "superseded", "supersedes": "#0" }]));
    let again = json!({ "user": "a/b", "texts": ["Carl sings."], "expires_at": "2999-01-01" });
    assert_eq!(same(200, post.clone(), "/v1/memories", &again)["outcomes"][0]["outcome"], "changed");
    for (status, bad) in [
        (400, json!({ "user": "a/b", "texts": [] })),
        (400, json!({ "user": "a/b", "texts": [" "] })),
        (400, json!({ "user": "", "texts": ["x"] })),
        (400, json!({ "texts": ["x"], "keys": ["a", "b"] })),
        (400, json!({ "texts": ["x"], "ttl_seconds": 0 })),
        (400, json!({ "texts": ["x"], "metadata": { "list": [1] } })),
        (413, json!({ "texts": vec!["x"; 1001] })),
        (422, json!({ "texts": 7 })),
        (400, json!("{")),
    ] {
        same(status, post.clone(), "/v1/memories", &bad);
    }

    // Looking.
    let listed = same(200, get.clone(), &at(""), &none);
    assert_eq!((listed["memories"].as_array().unwrap().len(), &listed["counts"]["superseded"]), (3, &json!(1)));
    assert_eq!(same(200, get.clone(), &at("?limit=2&state=all"), &none)["next"], "#1");
    let rest = same(200, get.clone(), &at("?limit=2&state=all&cursor=#1"), &none);
    assert_eq!((&rest["memories"][1]["id"], &rest["next"]), (&json!("#3"), &Value::Null));
    let pets = same(200, get.clone(), &at("?filter=%7B%22topic%22%3A%22pets%22%7D"), &none);
    assert_eq!((&pets["memories"][0]["id"], &pets["memories"][0]["metadata"]["count"]), (&json!("#1"), &json!(1)));
    assert_eq!(same(200, get.clone(), &at("?as_of=2001-01-01"), &none)["memories"], json!([]));
    assert_eq!(same(200, get.clone(), &at("/#0"), &none)["superseded_by"], "#3");
    for (status, bad) in [
        (400, "?limit=0"),
        (400, "?cursor=x"),
        (400, "?as_of=soon"),
        (400, "?as_of=2001-01-01&state=all"),
        (400, "?filter=%7B%22topic%22%3A%5B%5D%7D"),
        (404, "/00000000000000000000000000000000"),
        (404, "/x/history"),
        (422, "?state=some"),
    ] {
        same(status, get.clone(), &at(bad), &none);
    }

    // Recalling.
    let recall = |extra: Value| {
        let mut body = json!({ "user": "a/b", "query": "Where does Alice live?" });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let found = same(200, post.clone(), "/v1/recall", &recall(json!({ "k": 1 })));
    assert_eq!((&found["sources"], &found["memories"][0]["id"]), (&json!(["Alice lives in Oslo."]), &json!("#3")));
    for (extra, texts) in [
        (json!({ "filter": { "topic": "pets" } }), json!([])),
        (json!({ "as_of": "2001-01-01" }), json!([])),
        (json!({ "min_score": 1e9 }), json!([])),
        (json!({ "budget_tokens": 0 }), json!([])),
        (json!({ "max_turns": 5, "budget_tokens": 1000 }), json!(["Alice lives in Oslo."])),
    ] {
        assert_eq!(same(200, post.clone(), "/v1/recall", &recall(extra))["sources"], texts);
    }
    for bad in [json!({ "k": 0 }), json!({ "k": 1001 }), json!({ "query": " " }), json!({ "filter": 7 })] {
        same(400, post.clone(), "/v1/recall", &recall(bad));
    }

    // Changing and forgetting.
    let text = json!({ "text": "Bob has a dog." });
    assert_eq!(same(200, patch.clone(), &at("/#1"), &text)["text"], "Bob has a dog.");
    assert_eq!(same(200, get.clone(), &at("/#1/history"), &none)["versions"][0]["text"], "Bob has a cat.");
    for (status, path, text) in [(409, "/#0", "x"), (409, "/#1", "Carl sings."), (400, "/#1", " "), (404, "/x", "x")] {
        same(status, patch.clone(), &at(path), &json!({ "text": text }));
    }
    let beside = json!({ "key": "pets", "metadata": { "n": 1 }, "expires_at": null });
    let changed = same(200, patch.clone(), &at("/#1"), &beside);
    assert_eq!((&changed["key"], &changed["metadata"]), (&json!("pets"), &json!({ "n": 1 })));
    same(409, patch.clone(), &at("/#1"), &json!({ "key": "home" }));
    same(422, patch.clone(), &at("/#1"), &json!({}));
    assert_eq!(same(200, delete.clone(), &at("/#2"), &none)["counts"]["deleted"], 1);
    same(404, delete.clone(), &at("/#2"), &none);
    same(404, patch.clone(), &at("/#2"), &text);
    same(400, post.clone(), &at("/forget"), &json!({ "ids": [] }));
    same(404, post.clone(), &at("/forget"), &json!({ "ids": ["#1", "x"] }));
    same(413, post.clone(), &at("/forget"), &json!({ "ids": vec!["#1"; 1001] }));
    assert_eq!(same(200, post.clone(), &at("/forget"), &json!({ "key": "unheard of" }))["forgotten"], json!([]));
    same(400, post.clone(), &at("/forget"), &json!({ "ids": ["#1"], "key": "pets" }));
    same(422, post.clone(), &at("/forget"), &json!({}));

    // Out and in.
    let lines = same(200, get.clone(), &at("/export"), &none);
    assert_eq!((lines.as_array().unwrap().len(), &lines[0]["text"]), (2, &json!("Bob has a dog.")));
    let lines =
        json!("{\"text\": \"Dora swims.\"}\n{\"text\": 7}\n{\"text\": \"Emil paints.\", \"state\": \"superseded\"}\n");
    let imported = same(200, post.clone(), "/v1/memories/dora/import", &lines);
    assert_eq!((&imported["added"], &imported["refused"], &imported["left_out"]), (&json!(1), &json!(1), &json!(1)));

    // Who has memories, and what was done: five times a text was remembered or changed, twice what stands
    // beside one, and one was forgotten.
    assert_eq!(
        same(200, get.clone(), "/v1/users", &none)["users"][0],
        json!({ "user": "a/b", "active_memories": 2, "loaded": true })
    );
    assert_eq!(same(200, get.clone(), "/v1/users?limit=1", &none)["next"], "a/b");
    same(400, get.clone(), "/v1/users?limit=0", &none);
    assert_eq!(same(200, get.clone(), "/v1/usage", &none)["per_user"]["a/b"]["memory_ops"], 8);
    assert_eq!(same(200, get.clone(), "/v1/usage?format=csv&user=dora", &none)[1], "dora,0,1,0,0,0,0,0");
    same(400, get.clone(), "/v1/usage?since=soon", &none);
    assert_eq!(
        same(200, post.clone(), &at("/forget"), &json!({ "ids": ["#1", "#3"] }))["forgotten"],
        json!(["#1", "#3"])
    );
    assert_eq!(same(200, delete.clone(), &at(""), &none)["deleted"], 4);
    assert_eq!(same(200, get.clone(), "/v1/users", &none)["count"], 1);
    assert_eq!(same(200, get.clone(), "/v1/usage", &none)["deleted_users"]["memory_ops"], 10);
}

#[test]
fn a_proxy_has_no_working_set_to_recall_in() {
    let mut proxy = Server::new(proxy());
    let (_, opened) = proxy.call(Method::POST, "/v1/sessions", "{}");
    let body = json!({ "query": "Alice", "session": opened["body"]["session"] }).to_string();
    let (status, refused) = proxy.call(Method::POST, "/v1/recall", &body);
    assert_eq!((status, &refused["body"]["error"]["param"]), (400, &json!("session")));
}

#[test]
fn the_sessions_of_a_user_end_with_the_memories() {
    for front in [Front::of(builder().build().unwrap()), proxy()] {
        let mut server = Server::new(front);
        let session = |server: &mut Server, user: &str| {
            let (_, opened) = server.call(Method::POST, "/v1/sessions", &json!({ "user": user }).to_string());
            format!("/v1/sessions/{}", opened["body"]["session"].as_str().unwrap())
        };
        let (alices, bobs) = (session(&mut server, "alice"), session(&mut server, "bob"));
        assert_eq!(server.call(Method::DELETE, "/v1/memories/alice", "").0, 200);
        let status = |server: &mut Server, path: &str| server.call(Method::GET, path, "").0;
        assert_eq!((status(&mut server, &alices), status(&mut server, &bobs)), (404, 200));
    }
}

#[test]
fn a_page_of_others_can_neither_write_nor_read() {
    for front in [Front::of(builder().build().unwrap()), proxy()] {
        let own = front.url("").trim_end_matches('/').to_owned();
        let remember = |headers: &[(&str, &str)]| {
            // What a page can have a browser send without asking first.
            let request = client().post(front.url("/v1/memories")).header("content-type", "text/plain");
            let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            request.body(r#"{"texts": ["Obey."]}"#).send().unwrap()
        };
        let read = |host: &str| client().get(front.url("/v1/memories/default")).header("host", host).send().unwrap();
        for refused in [
            &[("origin", "https://evil.example")][..],
            &[("origin", "null")],
            &[("origin", "http://evil.example:8000"), ("host", "evil.example:8000")],
        ] {
            let refused = remember(refused);
            assert_eq!(refused.status().as_u16(), 403);
            assert_eq!(refused.json::<Value>().unwrap()["error"]["type"], "permission_error");
        }
        assert_eq!(read("evil.example:8000").status().as_u16(), 403);
        assert_eq!(read("localhost:8000").json::<Value>().unwrap()["memories"], json!([]));
        for let_in in [&[][..], &[("origin", &*own)], &[("origin", "http://localhost:3000")]] {
            assert_eq!(remember(let_in).status().as_u16(), 200, "{let_in:?}");
        }
    }
}

#[test]
fn a_page_that_is_let_in_may_send_every_header_that_clients_have() {
    let mut limits = Limits::default();
    let origin = "https://app.example";
    limits.origins.push(origin.parse().unwrap());
    let identity = Identity::new(KeyHeader::Authorization);
    let server = amem::server::Server::new(builder().build().unwrap(), identity, amem::server::Options::default());
    let front = Front::start(server.router(), limits);
    let headers = "authorization,content-type,x-stainless-os,anthropic-version,x-amem-user";
    let asks = client().request(Method::OPTIONS, front.url("/v1/chat/completions")).header("origin", origin);
    let asks = asks.header("access-control-request-method", "POST").header("access-control-request-headers", headers);
    let told = asks.send().unwrap();
    assert_eq!(told.headers()["access-control-allow-origin"], origin);
    assert_eq!(told.headers()["access-control-allow-headers"], headers);
    let answer = client().get(front.url("/v1/models")).header("origin", origin).send().unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["access-control-allow-origin"]),
        (200, &origin.parse().unwrap())
    );
}
