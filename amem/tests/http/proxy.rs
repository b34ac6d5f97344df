//! `amem proxy` in front of an upstream that keeps the bytes that it is sent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use amem::http::{Identity, KeyHeader, Limits};
use amem::keys::{Grant, KeyFile};
use amem::proxy::{Config, Kind, Options, Proxy, Secret, UpstreamConfig};
use amem_core::{Namespace, RamLedger, TextMemory, TextMemoryOptions};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use futures_util::stream;
use secrecy::ExposeSecret;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::client;
use super::front::{Front, Process};

/// A request as it came to the upstream.
#[derive(Clone)]
struct Seen {
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    body: Bytes,
}

impl Seen {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The bytes of each message.
    fn messages(&self) -> Vec<String> {
        #[derive(serde::Deserialize)]
        struct Messages {
            messages: Vec<Box<RawValue>>,
        }
        let body: Messages = serde_json::from_slice(&self.body).unwrap();
        body.messages.iter().map(|message| message.get().to_owned()).collect()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

type Answer = dyn Fn(&Seen) -> Response + Send + Sync;

/// An upstream that answers as it is told to.
struct Upstream {
    front: Front,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Upstream {
    fn new(answer: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Self {
        let (seen, answer): (Arc<Mutex<Vec<Seen>>>, Arc<Answer>) = (Arc::default(), Arc::new(answer));
        let keeps = Arc::clone(&seen);
        let handler = move |request: Request| {
            let (seen, answer) = (Arc::clone(&keeps), Arc::clone(&answer));
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, 1 << 24).await.unwrap();
                let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().map(str::to_owned));
                let request = Seen { path, query, headers: parts.headers, body };
                seen.lock().unwrap().push(request.clone());
                answer(&request)
            }
        };
        let router = Router::new().route("/{*path}", axum::routing::any(handler));
        Self { front: Front::start(router, Limits::default()), seen }
    }

    /// One that answers everything with the same words.
    fn of_words() -> Self {
        Self::new(|request| json_answer(&if request.path == "/v1/messages" { anthropic() } else { openai() }))
    }

    fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

fn openai() -> Value {
    let usage = json!({
        "prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107,
        "prompt_tokens_details": { "cached_tokens": 60 },
    });
    let choice = json!({ "index": 0, "message": { "role": "assistant", "content": "Yes." }, "finish_reason": "stop" });
    json!({ "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage })
}

fn anthropic() -> Value {
    let usage = json!({
        "input_tokens": 30, "output_tokens": 7, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 10,
    });
    json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
        "stop_sequence": null, "content": [{ "type": "text", "text": "Yes." }], "usage": usage,
    })
}

fn json_answer(body: &Value) -> Response {
    answer(200, &[("content-type", "application/json")], Body::from(body.to_string()))
}

fn answer(status: u16, headers: &[(&'static str, &'static str)], body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().append(*name, value.parse().unwrap());
    }
    response
}

/// A proxy in front of one upstream.
struct Proxied {
    upstream: Upstream,
    front: Front,
}

struct Setup {
    kind: Kind,
    identity: Identity,
    options: Options,
    own_key: bool,
    config: &'static str,
}

impl Setup {
    fn new(kind: Kind) -> Self {
        let (identity, options) = (Identity::new(KeyHeader::AmemKey), Options::default());
        Self { kind, identity, options, own_key: false, config: "" }
    }

    fn start(self, upstream: Upstream) -> Proxied {
        let url = upstream.front.url("");
        let front = self.at(&url);
        Proxied { upstream, front }
    }

    fn at(self, url: &str) -> Front {
        let mut upstream = UpstreamConfig::new(self.kind, url);
        upstream.key_env = self.own_key.then(|| "UPSTREAM_KEY".to_owned());
        let config = Config::parse(self.config).unwrap().only_upstream("fake", upstream);
        self.of(config)
    }

    fn of(self, config: Config) -> Front {
        let mut texts = TextMemoryOptions::default();
        texts.meter_usage = true;
        let memory = TextMemory::with_options(Arc::new(RamLedger::new()), texts);
        let key = |name: &str| (name == "UPSTREAM_KEY").then(|| "sk-of-the-server".to_owned());
        let proxy = Proxy::new(memory, self.identity, config, Secret::new([7; 32]), self.options, key).unwrap();
        Front::start(proxy.router(), Limits::default())
    }
}

impl Proxied {
    fn new(kind: Kind) -> Self {
        Setup::new(kind).start(Upstream::of_words())
    }

    fn send(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> (u16, HeaderMap, Bytes) {
        let mut request = client().post(self.front.url(path)).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().unwrap();
        (response.status().as_u16(), response.headers().clone(), response.bytes().unwrap())
    }

    /// What is sent upstream for a body.
    fn sent(&self, path: &str, body: &Value) -> Seen {
        let (status, _, answer) = self.send(path, &[], body);
        assert_eq!(status, 200, "{answer:?}");
        self.upstream.last()
    }

    fn chat(&self, user: &str, messages: &Value) -> Seen {
        self.sent("/v1/chat/completions", &json!({ "model": "m", "user": user, "messages": messages }))
    }

    fn remember(&self, user: &str, texts: &[&str]) -> Vec<String> {
        let (status, _, body) = self.send("/v1/memories", &[], &json!({ "user": user, "texts": texts }));
        assert_eq!(status, 200);
        let added: Value = serde_json::from_slice(&body).unwrap();
        serde_json::from_value(added["added"].clone()).unwrap()
    }

    fn get(&self, path: &str) -> Value {
        client().get(self.front.url(path)).send().unwrap().json().unwrap()
    }
}

/// A conversation, as clients send it: all of it each time.
struct Chat(Vec<Value>);

impl Chat {
    fn new(system: &str) -> Self {
        Self(vec![json!({ "role": "system", "content": system })])
    }

    fn ask(&mut self, question: &str) -> Value {
        if self.0.len() > 1 {
            self.0.push(json!({ "role": "assistant", "content": "Yes." }));
        }
        self.0.push(json!({ "role": "user", "content": question }));
        json!(self.0)
    }
}

#[test]
fn what_is_sent_begins_with_the_same_bytes_until_something_in_it_is_forgotten_or_updated() {
    for kind in [Kind::Openai, Kind::Vllm] {
        let proxied = Proxied::new(kind);
        let ids = proxied.remember("alice", &["Alice lives in Denver.", "Bob has a cat."]);
        let mut chat = Chat::new("Be kind.");
        let mut before = proxied.chat("alice", &chat.ask("Where does Alice live?")).messages();
        assert!(before.concat().contains("Denver"));
        for n in 0..4 {
            proxied.remember("alice", &[&format!("The cat of house {n} is called Tom{n}.")]);
            let now = proxied.chat("alice", &chat.ask(&format!("What is the cat of house {n} called?"))).messages();
            assert_eq!(now[..before.len()], before[..]);
            assert!(now.last().unwrap().contains(&format!("called Tom{n}.")), "{now:?}");
            before = now;
        }
        // What a turn was told, and what the snapshot holds.
        let delete = |id: &str| client().delete(proxied.front.url(&format!("/v1/memories/alice/{id}"))).send().unwrap();
        assert_eq!(delete(&ids[0]).status().as_u16(), 200);
        let now = proxied.chat("alice", &chat.ask("Where does Alice live?")).messages();
        assert!(!now.concat().contains("Denver"));
        let (path, update) = (format!("/v1/memories/alice/{}", ids[1]), json!({ "text": "Bob has a dog." }));
        let updated = client().patch(proxied.front.url(&path)).json(&update).send().unwrap();
        assert_eq!(updated.status().as_u16(), 200);
        let then = proxied.chat("alice", &chat.ask("What does Bob have?")).messages();
        assert!(!then.concat().contains("a cat.") && then.concat().contains("Bob has a dog."));
        let after = proxied.chat("alice", &chat.ask("And Alice?")).messages();
        assert_eq!(after[..then.len()], then[..], "the new prefix stays, too");
    }
}

#[test]
fn a_superseded_memory_is_told_no_more() {
    let proxied = Proxied::new(Kind::Openai);
    let remember = |text: &str| {
        let body = json!({ "user": "alice", "texts": [text], "keys": ["home"] });
        assert_eq!(proxied.send("/v1/memories", &[], &body).0, 200);
    };
    remember("Alice lives in Denver.");
    let mut chat = Chat::new("Be kind.");
    assert!(proxied.chat("alice", &chat.ask("Where does Alice live?")).messages().concat().contains("Denver"));
    remember("Alice lives in Oslo.");
    let now = proxied.chat("alice", &chat.ask("Where now?")).messages().concat();
    assert!(now.contains("Oslo") && !now.contains("Denver"), "{now}");
}

#[test]
fn what_a_client_sends_keeps_its_bytes_and_its_place() {
    let proxied = Proxied::new(Kind::Openai);
    proxied.remember("default", &["Alice lives in Denver."]);
    let tools = r#"[ {"type":"function", "function":{"name":"f","parameters":{"x":1.50}}} ]"#;
    let old = r#"{"role":"assistant" , "content":"caf\u00e9","extra":1e2}"#;
    let system = r#"{ "content":"Be kind.", "role":"system" }"#;
    let body = format!(
        r#"{{"temperature":0.70,"tools":{tools},"model":"m","messages":[{system},{{"role":"user","content":"Hi"}},{old},{{"role":"user","content":"Where does Alice live?"}}],"seed":12345678901234567890123}}"#
    );
    let url = proxied.front.url("/v1/chat/completions");
    assert_eq!(client().post(url).body(body).send().unwrap().status().as_u16(), 200);
    let sent = String::from_utf8(proxied.upstream.last().body.to_vec()).unwrap();
    let begins = format!(r#"{{"temperature":0.70,"tools":{tools},"model":"m","messages":[{system},"#);
    assert!(sent.starts_with(&begins), "{sent}");
    assert!(sent.contains(old) && sent.contains("\"seed\":12345678901234567890123"), "{sent}");
}

#[test]
fn a_snapshot_for_anthropic_is_a_block_of_its_own_with_a_breakpoint_if_it_is_long_enough() {
    let setup = Setup { config: "[models]\nlong = { min_cacheable_tokens = 100000 }", ..Setup::new(Kind::Anthropic) };
    let proxied = setup.start(Upstream::of_words());
    let texts: Vec<String> = (0..40).map(|n| format!("House {n} is {} green.", "very ".repeat(40))).collect();
    proxied.remember("alice", &texts.iter().map(String::as_str).collect::<Vec<_>>());
    let ask = |model: &str, system: &Value| {
        let messages = json!([{ "role": "user", "content": "Which house is green?" }]);
        let body = json!({ "model": model, "max_tokens": 9, "user": "alice", "system": system, "messages": messages });
        proxied.sent("/v1/messages", &body).json()["system"].clone()
    };
    let system = ask("claude-sonnet-4-5", &json!("Be kind."));
    assert_eq!(system[0], json!({ "type": "text", "text": "Be kind." }));
    assert_eq!(system[1]["cache_control"], json!({ "type": "ephemeral" }));
    assert!(system[1]["text"].as_str().unwrap().contains("green"));
    assert_eq!(ask("long", &json!("Be kind."))[1].get("cache_control"), None);
    let own = json!({ "type": "text", "text": "x", "cache_control": { "type": "ephemeral" } });
    let four = json!([own, own, own, own]);
    assert_eq!(ask("claude-sonnet-4-5", &four)[4].get("cache_control"), None);
    let sent = proxied.upstream.last();
    assert_eq!(sent.path, "/v1/messages");
    assert_eq!(sent.header("anthropic-version"), Some("2023-06-01"));
    assert_eq!(sent.json().get("user"), None);
}

#[test]
fn each_upstream_gets_the_marks_that_its_cache_takes_and_no_names() {
    let asked = |proxied: &Proxied, user: &str, question: &str| {
        let sent = proxied.chat(user, &json!([{ "role": "user", "content": question }]));
        assert!(!String::from_utf8_lossy(&sent.body).contains(user));
        sent.json()
    };
    let openai = Proxied::new(Kind::Openai);
    let key = |user, question| asked(&openai, user, question)["prompt_cache_key"].as_str().unwrap().to_owned();
    let keys = [key("tenant-a", "One?"), key("tenant-a", "Two?"), key("tenant-b", "One?")];
    assert_eq!(keys[0], key("tenant-a", "One?"));
    assert!(keys[0] != keys[1] && keys[0] != keys[2] && keys[0].len() <= 64);
    for kind in [Kind::Vllm, Kind::Sglang] {
        let proxied = Proxied::new(kind);
        let salt = |user, question| asked(&proxied, user, question)["cache_salt"].as_str().unwrap().to_owned();
        assert_eq!(salt("tenant-a", "One?"), salt("tenant-a", "Two?"));
        assert_ne!(salt("tenant-a", "One?"), salt("tenant-b", "One?"));
        let chosen = json!({ "user": "tenant-b", "cache_salt": salt("tenant-a", "One?"),
            "messages": [{ "role": "user", "content": "One?" }] });
        let sent = proxied.sent("/v1/chat/completions", &chosen).json();
        assert_ne!(sent["cache_salt"], chosen["cache_salt"], "nobody can choose another's salt");
    }
    for kind in [Kind::OpenaiCompatible, Kind::Ollama, Kind::LlamaCpp] {
        let sent = asked(&Proxied::new(kind), "tenant-a", "One?");
        assert!(sent.get("cache_salt").is_none() && sent.get("prompt_cache_key").is_none());
    }
}

/// Events as an upstream may send them, cut where no event ends.
const PARTS: [&[u8]; 4] = [
    b": comment\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"caf\xc3",
    b"\xa9\"}}]}\n\ndata:{\"x\":1}\n\n",
    b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":7,\"prompt_tok",
    b"ens_details\":{\"cached_tokens\":60}}}\n\ndata: [DONE]\n\n",
];

fn streamed(_: &Seen) -> Response {
    let parts = PARTS.map(|part| Ok::<_, std::convert::Infallible>(Bytes::from_static(part)));
    let headers = [("content-type", "text/event-stream; charset=utf-8"), ("x-request-id", "req-7")];
    answer(200, &headers, Body::from_stream(stream::iter(parts)))
}

#[test]
fn a_stream_passes_byte_for_byte_and_is_counted() {
    let proxied = Setup::new(Kind::Openai).start(Upstream::new(streamed));
    let body = json!({ "user": "alice", "stream": true, "messages": [{ "role": "user", "content": "Hi" }] });
    let (status, headers, bytes) = proxied.send("/v1/chat/completions", &[], &body);
    assert_eq!((status, &bytes[..]), (200, &PARTS.concat()[..]));
    assert_eq!(headers["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(headers["x-request-id"], "req-7");
    assert!(!headers.contains_key("set-cookie"));
    let used = &proxied.get("/v1/usage")["per_user"]["alice"];
    let counted =
        ["requests", "prefill_tokens_saved", "tokens_in", "tokens_out"].map(|name| used[name].as_u64().unwrap());
    assert_eq!(counted, [1, 60, 100, 7]);
}

#[test]
fn a_stream_whose_client_leaves_ends_upstream_and_counts_as_a_request() {
    let left = Arc::new(std::sync::atomic::AtomicBool::new(false));
    struct Leaves(Arc<std::sync::atomic::AtomicBool>);
    impl Drop for Leaves {
        fn drop(&mut self) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let shared = Arc::clone(&left);
    let endless = move |_: &Seen| {
        let leaves = Leaves(Arc::clone(&shared));
        let events = stream::unfold(leaves, |leaves| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Some((Ok::<_, std::convert::Infallible>(Bytes::from_static(b"data: {}\n\n")), leaves))
        });
        answer(200, &[("content-type", "text/event-stream")], Body::from_stream(events))
    };
    let proxied = Setup::new(Kind::Openai).start(Upstream::new(endless));
    let body = json!({ "user": "alice", "stream": true, "messages": [{ "role": "user", "content": "Hi" }] });
    let mut response = client().post(proxied.front.url("/v1/chat/completions")).json(&body).send().unwrap();
    std::io::Read::read_exact(&mut response, &mut [0; 20]).unwrap();
    drop(response);
    let begun = std::time::Instant::now();
    while !left.load(std::sync::atomic::Ordering::Relaxed)
        || proxied.get("/v1/usage")["per_user"]["alice"]["requests"] != 1
    {
        assert!(begun.elapsed() < Duration::from_secs(20), "nobody noticed that the client left");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(proxied.get("/v1/stats")["unmetered"], 1);
}

#[test]
fn an_answer_keeps_its_bytes_beside_what_is_said_about_it() {
    let text = "{ \"id\":\"x\", \"n\":1.50, \"usage\":{\"prompt_tokens\":100,\"completion_tokens\":7} }\n";
    let upstream = Upstream::new(move |_| answer(200, &[("content-type", "application/json")], Body::from(text)));
    let proxied = Setup::new(Kind::Openai).start(upstream);
    let ids = proxied.remember("alice", &["Alice lives in Denver."]);
    let body = json!({ "model": "gpt-4o", "user": "alice", "messages": [{ "role": "user", "content": "Where does Alice live?" }] });
    let (_, _, bytes) = proxied.send("/v1/chat/completions", &[], &body);
    let bytes = String::from_utf8(bytes.to_vec()).unwrap();
    assert!(bytes.starts_with(text.trim_end().trim_end_matches('}')), "{bytes}");
    let report = &serde_json::from_str::<Value>(&bytes).unwrap()["amem"];
    assert_eq!(report["recalled"], json!(ids));
    assert_eq!((&report["n_turns_resident"], &report["epoch"]), (&json!(1), &json!(1)));
    // 100 tokens at 2.5 and 7 at 10 dollars a million.
    assert!((report["cost_usd"].as_f64().unwrap() - 0.00032).abs() < 1e-12, "{report}");
    let plain = proxied.send("/v1/chat/completions", &[("x-amem-report", "false")], &body).2;
    assert_eq!(plain, text.as_bytes());
}

#[test]
fn errors_of_an_upstream_pass_with_their_bodies_and_headers() {
    let refuse = |request: &Seen| {
        let status = request.json()["status"].as_u64().unwrap() as u16;
        let headers = [("content-type", "application/json"), ("retry-after", "17"), ("request-id", "req_9")];
        answer(status, &headers, Body::from("{ \"error\" : {\"type\":\"rate_limit\"} }"))
    };
    let proxied = Setup::new(Kind::Anthropic).start(Upstream::new(refuse));
    for status in [400, 401, 403, 404, 429, 500, 529] {
        let body = json!({ "status": status, "messages": [{ "role": "user", "content": "Hi" }] });
        let (got, headers, bytes) = proxied.send("/v1/messages", &[], &body);
        assert_eq!((u64::from(got), &bytes[..]), (status, &b"{ \"error\" : {\"type\":\"rate_limit\"} }"[..]));
        assert_eq!(
            (&headers["retry-after"], &headers["request-id"]),
            (&"17".parse().unwrap(), &"req_9".parse().unwrap())
        );
    }
    assert_eq!(proxied.get("/v1/usage")["per_user"], json!({}), "nothing was answered");
}

#[test]
fn an_upstream_that_is_not_there_or_says_nothing_is_502_and_504() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", unused.local_addr().unwrap());
    let mut setup = Setup::new(Kind::Openai);
    setup.options.timeout = Duration::from_millis(200);
    let front = setup.at(&silent);
    let body = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
    let ask = |front: &Front| super::post(front.url("/v1/chat/completions"), &body);
    let (status, said) = ask(&front);
    assert_eq!(status, 504);
    assert!(said["error"]["message"].as_str().unwrap().contains("in time"), "{said}");
    assert!(!said.to_string().contains("127.0.0.1"), "an upstream's address is its operator's");
    drop(unused);
    assert_eq!(ask(&Setup::new(Kind::Openai).at(&silent)).0, 502);
}

#[test]
fn the_servers_key_is_for_callers_that_it_knows_and_theirs_for_themselves() {
    let identity = Identity::new(KeyHeader::AmemKey).admin(Some("door".into()));
    let known = Setup { identity, own_key: true, ..Setup::new(Kind::Openai) }.start(Upstream::of_words());
    let open = Setup { own_key: true, ..Setup::new(Kind::Openai) }.start(Upstream::of_words());
    let body = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
    let ask = |proxied: &Proxied, headers: &[(&str, &str)]| {
        let before = proxied.upstream.count();
        let (status, _, answer) = proxied.send("/v1/chat/completions", headers, &body);
        assert!(!String::from_utf8_lossy(&answer).contains("sk-of-the-server"));
        let went = proxied.upstream.count() > before;
        (status, went.then(|| proxied.upstream.last().header("authorization").unwrap_or("none").to_owned()))
    };
    let (door, theirs) = (("x-amem-key", "door"), ("authorization", "Bearer sk-theirs"));
    assert_eq!(ask(&known, &[door]), (200, Some("Bearer sk-of-the-server".into())));
    assert_eq!(ask(&known, &[door, theirs]), (200, Some("Bearer sk-theirs".into())));
    assert_eq!(ask(&known, &[]), (401, None));
    assert_eq!(ask(&known, &[theirs]), (401, None), "it has no key for this server");
    assert_eq!(ask(&known, &[("x-amem-key", "wrong")]), (401, None));
    assert_eq!(ask(&open, &[]), (401, None), "everybody may ask, but nobody is known");
    assert_eq!(ask(&open, &[("x-amem-key", "door")]), (401, None));
    assert_eq!(ask(&open, &[theirs]), (200, Some("Bearer sk-theirs".into())));
    for proxied in [&known, &open] {
        for seen in proxied.upstream.seen.lock().unwrap().iter() {
            assert!(seen.headers.keys().all(|name| !name.as_str().starts_with("x-amem")));
            assert!(!format!("{:?}{:?}", seen.headers, seen.body).contains("door"));
        }
    }
}

#[test]
fn models_are_listed_by_an_upstream_that_speaks_the_format_of_the_client_and_no_other_gets_its_key() {
    let [anthropic, openai] = ["a", "o"].map(|id| Upstream::new(move |_| json_answer(&json!({ "data": [id] }))));
    let of = |default: &str| {
        let (a, o) = (anthropic.front.url(""), openai.front.url(""));
        let text = format!(
            "default_upstream = \"{default}\"\n\
             [upstreams.anthropic]\nkind = \"anthropic\"\nurl = \"{a}\"\nmodels = [\"claude\"]\n\
             [upstreams.openai]\nkind = \"openai\"\nurl = \"{o}\"\nmodels = [\"gpt\"]"
        );
        Setup::new(Kind::Openai).of(Config::parse(&text).unwrap())
    };
    let list = |front: &Front, query: &str, (name, value): (&str, &str)| {
        let response = client().get(front.url(&format!("/v1/models{query}"))).header(name, value).send().unwrap();
        (response.status().as_u16(), response.json::<Value>().unwrap())
    };
    let (of_openais, of_anthropics) = (("authorization", "Bearer sk-theirs"), ("x-api-key", "sk-theirs"));
    for default in ["anthropic", "openai"] {
        let front = of(default);
        let before = [anthropic.count(), openai.count()];
        assert_eq!(list(&front, "", of_openais), (200, json!({ "data": ["o"] })), "{default}");
        assert_eq!(openai.last().header("authorization"), Some("Bearer sk-theirs"));
        assert_eq!(anthropic.count(), before[0]);
        assert_eq!(list(&front, "", of_anthropics), (200, json!({ "data": ["a"] })), "{default}");
        assert_eq!(anthropic.last().header("x-api-key"), Some("sk-theirs"));
        assert_eq!(openai.count(), before[1] + 1);
        assert_eq!(list(&front, "?provider=anthropic", of_openais).0, 200);
        let sent = anthropic.last();
        assert_eq!((sent.header("x-api-key"), sent.header("authorization")), (Some("sk-theirs"), None));
    }
    // A key that is known by how it begins is sent where it belongs, whatever the client.
    let front = of("openai");
    assert_eq!(list(&front, "", ("authorization", "Bearer sk-ant-theirs")), (200, json!({ "data": ["a"] })));
    assert_eq!(anthropic.last().header("x-api-key"), Some("sk-ant-theirs"));
    // Where all models are asked of one upstream, so is what there are.
    let only = Setup::new(Kind::Anthropic).at(&anthropic.front.url(""));
    assert_eq!(list(&only, "", of_openais), (200, json!({ "data": ["a"] })));
}

#[test]
fn models_are_listed_by_the_default_upstream_for_whoever_brings_no_key() {
    let [anthropic, openai] = ["a", "o"].map(|id| Upstream::new(move |_| json_answer(&json!({ "data": [id] }))));
    let (a, o) = (anthropic.front.url(""), openai.front.url(""));
    let text = format!(
        "default_upstream = \"anthropic\"\n\
         [upstreams.anthropic]\nkind = \"anthropic\"\nurl = \"{a}\"\nmodels = [\"claude\"]\n\
         [upstreams.openai]\nkind = \"openai\"\nurl = \"{o}\"\nmodels = [\"gpt\"]\n\
         [upstreams.own]\nkind = \"vllm\"\nurl = \"{o}\"\nmodels = [\"Qwen/\"]"
    );
    let front = Setup::new(Kind::Openai).of(Config::parse(&text).unwrap());
    let listed = client().get(front.url("/v1/models")).send().unwrap();
    assert_eq!(listed.json::<Value>().unwrap(), json!({ "data": ["a"] }));
    let with_key = client().get(front.url("/v1/models")).header("authorization", "Bearer sk-theirs").send().unwrap();
    assert_eq!(with_key.status(), 400, "two others could be meant");
    assert_eq!(openai.count(), 0);
}

#[test]
fn what_a_query_says_of_models_goes_to_the_upstream_and_so_does_the_name_of_one() {
    let [anthropic, openai] = ["a", "o"].map(|id| Upstream::new(move |_| json_answer(&json!({ "id": id }))));
    let (a, o) = (anthropic.front.url(""), openai.front.url(""));
    let text = format!(
        "default_upstream = \"openai\"\n\
         [upstreams.anthropic]\nkind = \"anthropic\"\nurl = \"{a}\"\nmodels = [\"claude\"]\n\
         [upstreams.openai]\nkind = \"openai\"\nurl = \"{o}\"\nmodels = [\"gpt\"]"
    );
    let front = Setup::new(Kind::Openai).of(Config::parse(&text).unwrap());
    let get = |path: &str| {
        let response = client().get(front.url(&format!("/v1/models{path}"))).send().unwrap();
        (response.status().as_u16(), response.json::<Value>().unwrap())
    };
    for (path, upstream, sent, query) in [
        ("?provider=anthropic", &anthropic, "/v1/models", None),
        ("?limit=2&provider=anthropic&after_id=a%2Fb", &anthropic, "/v1/models", Some("limit=2&after_id=a%2Fb")),
        ("/claude-sonnet-4-6?x=1", &anthropic, "/v1/models/claude-sonnet-4-6", Some("x=1")),
        ("/gpt-4o", &openai, "/v1/models/gpt-4o", None),
        ("/gpt-4o?provider=anthropic", &anthropic, "/v1/models/gpt-4o", None),
        ("/Qwen/Qwen3-8B", &openai, "/v1/models/Qwen/Qwen3-8B", None),
        ("/Qwen%2Fa%3Fb%25", &openai, "/v1/models/Qwen/a%3Fb%25", None),
    ] {
        let before = upstream.count();
        assert_eq!(get(path).0, 200, "{path}");
        let seen = upstream.last();
        assert_eq!((seen.path.as_str(), seen.query.as_deref(), upstream.count()), (sent, query, before + 1), "{path}");
    }
    let before = [anthropic.count(), openai.count()];
    for nothing in ["/..%2Ffiles", "/a/..%2F..%2Ffiles", "/.%09.%2Ffiles", "/a%2F%2Fb"] {
        let (status, said) = get(nothing);
        assert_eq!((status, &said["error"]["code"]), (404, &json!("model_not_found")), "{nothing}");
    }
    assert_eq!(get("/gpt-4o?provider=nobody").0, 400);
    assert_eq!(
        [anthropic.count(), openai.count()],
        before,
        "the upstreams have other paths, and the server keys for them"
    );
}

#[test]
fn paths_of_chat_apis_that_are_not_there_say_which_are() {
    let proxied = Proxied::new(Kind::Openai);
    for path in ["/v1/completions", "/v1/embeddings", "/v1/responses"] {
        let (status, _, answer) = proxied.send(path, &[], &json!({ "model": "m", "input": "Hi" }));
        let error = &serde_json::from_slice::<Value>(&answer).unwrap()["error"];
        assert_eq!((status, &error["code"]), (404, &json!("unsupported_path")), "{path}");
        let said = error["message"].as_str().unwrap();
        assert!(said.contains("/v1/chat/completions") && said.contains("/v1/messages"), "{said}");
    }
    assert_eq!(proxied.upstream.count(), 0);
}

#[test]
fn tenants_see_nothing_of_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let keys = KeyFile::at(dir.path().join("keys.json"));
    let [alice, bob] = ["alice", "bob"].map(|name| {
        let (_, secret) = keys.create(Grant::Namespace(Namespace::new(name).unwrap())).unwrap();
        secret.expose_secret().to_owned()
    });
    let identity = Identity::new(KeyHeader::AmemKey).keys(keys);
    let proxied = Setup { identity, ..Setup::new(Kind::Vllm) }.start(Upstream::of_words());
    let send = |key: &str, path: &str, body: Value| {
        let (status, _, answer) = proxied.send(path, &[("x-amem-key", key)], &body);
        (status, String::from_utf8(answer.to_vec()).unwrap())
    };
    let chat = |key: &str, extra: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "What is the secret word?" }] });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        send(key, "/v1/chat/completions", body)
    };
    assert_eq!(send(&alice, "/v1/memories", json!({ "texts": ["The secret word is xylophone."] })).0, 200);
    assert_eq!(chat(&alice, json!({ "session": "shared" })).0, 200);
    let hers = proxied.upstream.last();
    assert!(hers.messages().concat().contains("xylophone"));
    for extra in [json!({}), json!({ "session": "shared" })] {
        let (status, answer) = chat(&bob, extra);
        let his = proxied.upstream.last();
        assert_eq!(status, 200);
        assert!(!his.messages().concat().contains("xylophone") && !answer.contains("xylophone"));
        assert_ne!(his.json()["cache_salt"], hers.json()["cache_salt"]);
    }
    let before = proxied.upstream.count();
    assert_eq!(chat(&bob, json!({ "user": "alice" })).0, 403);
    assert_eq!(send(&bob, "/v1/recall", json!({ "user": "alice", "query": "secret word" })).0, 403);
    assert_eq!(proxied.upstream.count(), before);
    let (_, recalled) = send(&bob, "/v1/recall", json!({ "query": "secret word" }));
    assert!(!recalled.contains("xylophone"));
    let (_, opened) = send(&alice, "/v1/sessions", json!({ "seed_query": "secret" }));
    let opened: Value = serde_json::from_str(&opened).unwrap();
    assert_eq!(opened["resident_turns"], 1);
    let url = proxied.front.url(&format!("/v1/sessions/{}", opened["session"].as_str().unwrap()));
    let status = |key: &str| client().get(&url).header("x-amem-key", key).send().unwrap().status().as_u16();
    assert_eq!((status(&alice), status(&bob)), (200, 404));
    let stats = |key: &str| -> Value {
        client().get(proxied.front.url("/v1/stats")).header("x-amem-key", key).send().unwrap().json().unwrap()
    };
    assert_eq!((&stats(&bob)["requests"], &stats(&bob)["conversations"]), (&json!(2), &Value::Null));
}

#[test]
fn anthropics_user_id_names_the_user_where_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let keys = KeyFile::at(dir.path().join("keys.json"));
    let (_, alices) = keys.create(Grant::Namespace(Namespace::new("alice").unwrap())).unwrap();
    let identity = Identity::new(KeyHeader::AmemKey).admin(Some("root".into())).keys(keys);
    let proxied = Setup { identity, ..Setup::new(Kind::Anthropic) }.start(Upstream::of_words());
    let (alice, root) = (("x-amem-key", alices.expose_secret()), ("x-amem-key", "root"));
    let texts = json!({ "user": "bob", "texts": ["The secret word is xylophone."] });
    assert_eq!(proxied.send("/v1/memories", &[root], &texts).0, 200);
    let told = |path: &str, headers: &[(&str, &str)], extra: Value| {
        let messages = json!([{ "role": "user", "content": "What is the secret word?" }]);
        let mut body = json!({ "model": "m", "max_tokens": 9, "messages": messages });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let (status, _, answer) = proxied.send(path, headers, &body);
        assert_eq!(status, 200, "{answer:?}");
        let knows = String::from_utf8_lossy(&proxied.upstream.last().body).contains("xylophone");
        let user = serde_json::from_slice::<Value>(&answer).unwrap()["amem"]["user"].as_str().unwrap().to_owned();
        (user, knows)
    };
    let of = |name: &str, knows: bool| (name.to_owned(), knows);
    let by_id = json!({ "metadata": { "user_id": "bob" } });
    assert_eq!(told("/v1/messages", &[root], json!({})), of("default", false));
    assert_eq!(told("/v1/messages", &[root], json!({ "metadata": {} })), of("default", false));
    assert_eq!(told("/v1/messages", &[root], by_id.clone()), of("bob", true));
    assert_eq!(proxied.upstream.last().json()["metadata"], by_id["metadata"], "it is for the upstream, too");
    assert_eq!(told("/v1/messages", &[root, ("x-amem-user", "carol")], by_id.clone()), of("carol", false));
    let named = json!({ "user": "dora", "metadata": { "user_id": "bob" } });
    assert_eq!(told("/v1/messages", &[root], named), of("dora", false));
    assert_eq!(told("/v1/messages", &[alice], by_id.clone()), of("alice", false));
    assert_eq!(told("/v1/chat/completions", &[root], by_id), of("default", false), "there it is no user's name");
    let shapeless = json!({ "messages": [{ "role": "user", "content": "Hi" }], "metadata": { "user_id": 7 } });
    assert_eq!(proxied.send("/v1/messages", &[root], &shapeless).0, 422);
}

#[test]
fn what_conversations_were_told_takes_no_more_room_than_there_is() {
    let mut setup = Setup::new(Kind::Openai);
    setup.options.conversation_bytes = 1 << 20;
    let proxied = setup.start(Upstream::of_words());
    let texts: Vec<String> = (0..100).map(|n| format!("House {n} is {}.", "x".repeat(2000))).collect();
    proxied.remember("alice", &texts.iter().map(String::as_str).collect::<Vec<_>>());
    let conversations = || proxied.get("/v1/stats")["conversations"].as_u64().unwrap();
    let ask = |n: usize| {
        let messages = json!([{ "role": "user", "content": format!("{n}?") }]);
        let body = json!({ "user": "alice", "max_turns": 500, "budget_tokens": 1_000_000, "messages": messages });
        let sent = proxied.sent("/v1/chat/completions", &body);
        assert!(sent.body.len() > 200_000, "{}", sent.body.len());
    };
    let open = || {
        let body = json!({ "user": "alice", "max_turns": 500, "budget_tokens": 1_000_000 });
        let (status, _, opened) = proxied.send("/v1/sessions", &[], &body);
        assert_eq!((status, &serde_json::from_slice::<Value>(&opened).unwrap()["resident_turns"]), (200, &json!(100)));
    };
    for n in 0..6 {
        ask(n);
        assert!((1..=2).contains(&conversations()), "{}", conversations());
    }
    for _ in 0..6 {
        open();
        assert!((1..=2).contains(&conversations()), "{}", conversations());
    }
}

#[test]
fn of_sessions_of_one_name_each_is_its_users() {
    let proxied = Proxied::new(Kind::Openai);
    let ask = |user: &str, session: &str| {
        let messages = json!([{ "role": "user", "content": "Hi" }]);
        proxied.sent("/v1/chat/completions", &json!({ "user": user, "session": session, "messages": messages }));
    };
    let call = |method: reqwest::Method, path: &str| {
        let response = client().request(method, proxied.front.url(&format!("/v1/sessions/{path}"))).send().unwrap();
        (response.status().as_u16(), response.json::<Value>().unwrap())
    };
    let (get, delete) = (reqwest::Method::GET, reqwest::Method::DELETE);
    for user in ["alice", "bob"] {
        ask(user, "main");
    }
    ask("alice", "own");
    for method in [&get, &delete] {
        let (status, refused) = call(method.clone(), "main");
        assert_eq!((status, &refused["error"]["param"]), (400, &json!("user")), "{refused}");
        assert_eq!(call(method.clone(), "main?user=carol").0, 404);
        assert_eq!(call(method.clone(), "own?user=bob").0, 404);
    }
    assert_eq!(call(get.clone(), "own").1["user"], "alice", "nobody else has one of this name");
    assert_eq!(call(get.clone(), "main?user=bob").1["user"], "bob");
    assert_eq!(call(delete.clone(), "main?user=bob").0, 200);
    assert_eq!(call(get.clone(), "main?user=bob").0, 404);
    assert_eq!(call(get, "main").1["user"], "alice");
    assert_eq!(call(delete, "main").0, 200);
}

#[test]
fn a_request_cannot_say_where_it_goes() {
    let proxied = Proxied::new(Kind::Openai);
    for provider in ["http://169.254.169.254/latest", "nobody", ""] {
        let body = json!({ "provider": provider, "messages": [{ "role": "user", "content": "Hi" }] });
        assert_eq!(proxied.send("/v1/chat/completions", &[], &body).0, 400, "{provider}");
    }
    let redirect = |_: &Seen| answer(302, &[("location", "http://127.0.0.1:9/v1")], Body::empty());
    let redirected = Setup::new(Kind::Openai).start(Upstream::new(redirect));
    let body = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
    let plain = reqwest::blocking::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let response = plain.post(redirected.front.url("/v1/chat/completions")).json(&body).send().unwrap();
    assert_eq!(response.status().as_u16(), 302, "it is not followed");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_sent() {
    let proxied = Proxied::new(Kind::Openai);
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    let with = |name: &str, value: Value| {
        let mut body = json!({ "messages": messages });
        body[name] = value;
        proxied.send("/v1/chat/completions", &[], &body).0
    };
    assert_eq!(with("k", json!(101)), 400);
    assert_eq!(with("k", json!("many")), 422);
    assert_eq!(with("session", json!("")), 400);
    assert_eq!(with("user", json!("")), 400);
    assert_eq!(with("messages", json!("Hi")), 422);
    assert_eq!(with("messages", Value::Null), 422);
    assert_eq!(proxied.send("/v1/messages", &[], &json!({ "messages": messages })).0, 400, "it speaks OpenAI's format");
    assert_eq!(
        client()
            .post(proxied.front.url("/v1/chat/completions"))
            .body("{\"messages\"")
            .send()
            .unwrap()
            .status()
            .as_u16(),
        400
    );
    assert_eq!(proxied.upstream.count(), 0);
}

#[test]
fn a_question_without_residency_is_told_what_it_is_about_and_nothing_else() {
    let proxied = Proxied::new(Kind::Openai);
    proxied.remember("alice", &["Alice lives in Denver.", "Bob has a cat."]);
    let body = json!({ "user": "alice", "residency": false, "messages": [{ "role": "user", "content": "Where does Alice live?" }] });
    let messages = proxied.sent("/v1/chat/completions", &body).messages();
    assert_eq!(messages.len(), 1);
    assert!(messages[0].contains("Denver") && !messages[0].contains("cat"));
}

#[test]
fn an_upstream_of_which_nothing_is_said_is_sent_what_every_one_takes() {
    let (dir, upstream) = (tempfile::tempdir().unwrap(), Upstream::of_words());
    let proxy = Process::start(&["proxy", "--upstream", &upstream.front.url("/v1")], dir.path());
    let texts = json!({ "user": "alice", "texts": ["Alice lives in Denver."] });
    assert_eq!(super::post(proxy.url("/v1/memories"), &texts).0, 200);
    let messages = Chat::new("Be kind.").ask("Where does Alice live?");
    let body = json!({ "model": "m", "user": "alice", "messages": messages });
    assert_eq!(super::post(proxy.url("/v1/chat/completions"), &body).0, 200);
    let sent = upstream.last().json();
    let fields: Vec<&String> = sent.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["model", "messages"]);
    let roles: Vec<&Value> = sent["messages"].as_array().unwrap().iter().map(|message| &message["role"]).collect();
    assert_eq!(roles, ["system", "user"], "many templates take one system message");
    assert!(sent["messages"][0]["content"].as_str().unwrap().contains("Denver"));
}

#[test]
fn memories_and_the_names_for_upstreams_outlive_the_process() {
    let (dir, upstream) = (tempfile::tempdir().unwrap(), Upstream::of_words());
    let url = upstream.front.url("/v1");
    let ask = |proxy: &Process| {
        let body = json!({ "model": "amem", "user": "alice", "messages": [{ "role": "user", "content": "Where does Alice live?" }] });
        let (status, answer) = super::post(proxy.url("/v1/chat/completions"), &body);
        assert_eq!(status, 200, "{answer}");
        upstream.last().json()
    };
    let start = || Process::start(&["proxy", "--upstream", &url, "--model", "gpt-4o"], dir.path());
    let proxy = start();
    let health: Value = client().get(proxy.url("/health")).send().unwrap().json().unwrap();
    assert_eq!((&health["status"], &health["mode"]), (&json!("ok"), &json!("proxy")));
    let (status, _) =
        super::post(proxy.url("/v1/memories"), &json!({ "user": "alice", "texts": ["Alice lives in Denver."] }));
    assert_eq!(status, 200);
    let first = ask(&proxy);
    drop(proxy);
    let second = ask(&start());
    assert_eq!(first["model"], "gpt-4o");
    assert!(first["messages"][0]["content"].as_str().unwrap().contains("Denver"));
    assert_eq!(first, second);
}

#[test]
fn openais_clients_ask_anthropics_models_with_the_snapshot_in_its_place() {
    let proxied = Setup::new(Kind::Anthropic).start(Upstream::of_words());
    proxied.remember("alice", &["Alice lives in Denver."]);
    let mut chat = Chat::new("Be kind.");
    let ask = |messages: Value| {
        let body = json!({ "model": "claude-sonnet-4-5", "user": "alice", "messages": messages });
        let (status, _, answer) = proxied.send("/v1/chat/completions", &[("authorization", "Bearer theirs")], &body);
        assert_eq!(status, 200, "{answer:?}");
        (proxied.upstream.last(), serde_json::from_slice::<Value>(&answer).unwrap())
    };
    let (first, answer) = ask(chat.ask("Where does Alice live?"));
    assert_eq!((first.path.as_str(), first.header("x-api-key")), ("/v1/messages", Some("theirs")));
    assert_eq!(first.header("authorization"), None);
    assert_eq!(first.json()["system"][0], json!({ "type": "text", "text": "Be kind." }));
    assert!(first.json()["system"][1]["text"].as_str().unwrap().contains("Denver"));
    assert_eq!(answer["choices"][0]["message"]["content"], "Yes.");
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["amem"]["cache_read_tokens"]), (&json!(100), &json!(60)));
    let (second, _) = ask(chat.ask("And Bob?"));
    assert_eq!(second.json()["system"], first.json()["system"]);
    assert_eq!(second.messages()[..1], first.messages()[..]);
    assert_eq!(ask(json!([{ "role": "user", "content": "Hi" }])).1["object"], "chat.completion");
    let usage = &proxied.get("/v1/usage")["per_user"]["alice"];
    assert_eq!((&usage["requests"], &usage["tokens_in"]), (&json!(3), &json!(300)));
}

#[test]
fn a_stream_of_anthropics_is_told_to_openais_clients_as_theirs() {
    let events = [
        json!({ "type": "message_start", "message": { "id": "msg_1", "usage": { "input_tokens": 40, "cache_read_input_tokens": 60 } } }),
        json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "Yes." } }),
        json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn" }, "usage": { "output_tokens": 7 } }),
        json!({ "type": "message_stop" }),
    ];
    let stream: String = events.iter().map(|event| format!("event: e\ndata: {event}\n\n")).collect();
    let upstream =
        Upstream::new(move |_| answer(200, &[("content-type", "text/event-stream")], Body::from(stream.clone())));
    let proxied = Setup::new(Kind::Anthropic).start(upstream);
    let body = json!({
        "model": "claude", "user": "alice", "stream": true, "stream_options": { "include_usage": true },
        "messages": [{ "role": "user", "content": "Hi" }],
    });
    let (status, _, bytes) = proxied.send("/v1/chat/completions", &[], &body);
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let data: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!((status, data.len(), data[4]), (200, 5, "[DONE]"));
    let chunk = |index: usize| serde_json::from_str::<Value>(data[index]).unwrap();
    assert_eq!(chunk(1)["choices"][0]["delta"]["content"], "Yes.");
    assert_eq!(chunk(3)["usage"]["prompt_tokens_details"]["cached_tokens"], 60);
    assert_eq!(proxied.upstream.last().json()["stream"], true);
    assert_eq!(proxied.get("/v1/usage")["per_user"]["alice"]["tokens_in"], 100);
}

#[test]
fn tokens_are_counted_with_what_is_remembered_and_cost_nothing() {
    let proxied = Setup::new(Kind::Anthropic).start(Upstream::new(|_| json_answer(&json!({ "input_tokens": 9 }))));
    proxied.remember("alice", &["Alice lives in Denver."]);
    let body =
        json!({ "model": "m", "user": "alice", "messages": [{ "role": "user", "content": "Where does Alice live?" }] });
    let (status, _, answer) = proxied.send("/v1/messages/count_tokens", &[], &body);
    assert_eq!((status, &answer[..]), (200, &b"{\"input_tokens\":9}"[..]));
    let sent = proxied.upstream.last();
    assert_eq!(sent.path, "/v1/messages/count_tokens");
    assert!(sent.json()["system"][0]["text"].as_str().unwrap().contains("Denver"));
    assert_eq!(proxied.get("/v1/usage")["per_user"]["alice"]["requests"], 0);
}
