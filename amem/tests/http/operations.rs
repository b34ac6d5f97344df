//! What whoever runs a server looks at.

use amem::http::{self, Identity, KeyHeader, Limits};
use amem::keys::{Grant, KeyFile};
use amem::server::{Mode, Options, Server};
use amem_core::{ChunkId, Ledger, Namespace, OwnerId, Timestamp};
use amem_store::SqliteLedger;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::front::Front;
use super::{client, common, get, post};

fn question(user: &str, text: &str) -> Value {
    json!({ "user": user, "messages": [{ "role": "user", "content": text }] })
}

/// The value of one line of metrics.
fn value(metrics: &str, line: &str) -> f64 {
    let found = metrics.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {line} in\n{metrics}")).parse().unwrap()
}

#[test]
fn requests_are_counted_by_the_patterns_of_paths_and_nothing_else_of_them() {
    let front = Front::of(common::in_ram());
    for _ in 0..3 {
        assert_eq!(get(&front.url("/health"), None).0, 200);
    }
    post(front.url("/v1/memories"), &json!({ "texts": ["Zebulon lives in Denver."], "user": "zebulon" }));
    get(&front.url("/zebulon?user=zebulon"), None);
    let (status, metrics) = get(&front.url("/metrics"), None);
    assert_eq!(status, 200);
    let count = |labels: &str| value(&metrics, &format!("amem_http_requests_total{{{labels}}}"));
    assert_eq!(count(r#"method="GET",path="/health",status="200""#), 3.0);
    assert_eq!(count(r#"method="POST",path="/v1/memories",status="200""#), 1.0);
    let health = r#"method="GET",path="/health""#;
    assert_eq!(value(&metrics, &format!("amem_http_request_duration_seconds_count{{{health}}}")), 3.0);
    let everything = format!(r#"amem_http_request_duration_seconds_bucket{{{health},le="+Inf"}}"#);
    assert_eq!(value(&metrics, &everything), 3.0);
    for gauge in [
        "amem_engine_waiting",
        "amem_engine_running",
        "amem_sessions",
        r#"amem_kv_bytes{tier="0"}"#,
        r#"amem_kv_chunks{tier="0"}"#,
        r#"amem_kv_reads_total{found="hit"}"#,
    ] {
        assert_eq!(value(&metrics, gauge), 0.0, "{gauge}");
    }
    // The second question finds what was computed for the first.
    let [first, second] = [(); 2].map(|()| {
        let (status, _) = post(front.url("/v1/chat/completions"), &question("zebulon", "Where does Zebulon live?"));
        assert_eq!(status, 200);
        get(&front.url("/metrics"), None).1
    });
    for gauge in [r#"amem_kv_bytes{tier="0"}"#, r#"amem_kv_chunks{tier="0"}"#] {
        assert!(value(&first, gauge) > 0.0 && value(&first, gauge) == value(&second, gauge), "{gauge}\n{second}");
    }
    let grew = |line: &str| value(&second, line) - value(&first, line);
    let reads = ["hit", "miss"].map(|found| grew(&format!(r#"amem_kv_reads_total{{found="{found}"}}"#)));
    assert!(reads[0] > 0.0 && reads[1] == 0.0, "{reads:?}");
    assert_eq!(value(&second, "amem_kv_damaged_total"), 0.0);
    let kinds = ["missed", "reused", "resident", "prefilled", "generated"];
    let tokens = kinds.map(|kind| grew(&format!(r#"amem_tokens_total{{kind="{kind}"}}"#)));
    assert!(tokens[0] == 0.0 && tokens[1..].iter().all(|tokens| *tokens > 0.0), "{tokens:?}");
    assert!(value(&first, r#"amem_tokens_total{kind="missed"}"#) > 0.0, "{first}");
    assert!(!metrics.to_lowercase().contains("zebulon"), "{metrics}");
}

#[test]
fn a_users_memories_are_prefilled_when_that_is_asked_for() {
    let front = Front::of(common::in_ram());
    let texts = json!(["Alice lives in Denver.", "Alice has a dog called Rex."]);
    assert_eq!(post(front.url("/v1/memories"), &json!({ "user": "alice", "texts": texts })).0, 200);
    let prefill = || {
        let (status, answer) = post(front.url("/v1/memories/alice/prefill"), &json!({}));
        assert_eq!(status, 200, "{answer}");
        (answer["memories"].as_u64().unwrap(), answer["prefilled_tokens"].as_u64().unwrap())
    };
    let (memories, tokens) = prefill();
    assert!(memories == 2 && tokens > 0, "{memories} {tokens}");
    assert_eq!(prefill(), (0, 0), "all of it is held");
    let mut options = Options::default();
    options.read_only = true;
    let reader = Front::with(common::in_ram(), Identity::new(KeyHeader::Authorization), options);
    assert_eq!(post(reader.url("/v1/memories/alice/prefill"), &json!({})).0, 503, "what is computed would be lost");
    let (_, answer) = post(front.url("/v1/chat/completions"), &question("alice", "Where does Alice live?"));
    assert_eq!(answer["amem"]["memory_tokens_prefilled_now"], 0, "{answer}");
}

#[test]
fn with_prefill_ahead_no_question_waits_for_the_kv_of_what_was_remembered_changed_or_imported() {
    let mut options = Options::default();
    options.prefill_ahead = true;
    let memory = common::in_ram();
    let front = Front::with(memory.clone(), Identity::new(KeyHeader::Authorization), options);
    let held = |user: &str| {
        let chunks = common::block_on(memory.kv().owned(OwnerId::of(user))).unwrap();
        chunks.into_iter().map(|chunk| chunk.id).collect::<Vec<ChunkId>>()
    };
    let wait = |user: &str, is_there: &dyn Fn(&[ChunkId]) -> bool| {
        let began = std::time::Instant::now();
        while !is_there(&held(user)) {
            assert!(began.elapsed().as_secs() < 60, "{user}: {:?}", held(user));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        held(user)
    };
    let (_, added) = post(front.url("/v1/memories"), &json!({ "user": "alice", "texts": ["Alice lives in Denver."] }));
    let of_denver = wait("alice", &|held| held.len() == 1);
    let id = added["added"][0].as_str().unwrap();
    let changed = client().patch(front.url(&format!("/v1/memories/alice/{id}")));
    assert_eq!(changed.json(&json!({ "text": "Alice lives in Oslo." })).send().unwrap().status(), 200);
    wait("alice", &|held| held.len() == 1 && held != of_denver);
    let line = json!({ "text": "Bob lives in Lima." }).to_string();
    let imported = client().post(front.url("/v1/memories/bob/import")).body(line).send().unwrap();
    assert_eq!(imported.status(), 200);
    wait("bob", &|held| held.len() == 1);
    for (user, text) in [("alice", "Where does Alice live?"), ("bob", "Where does Bob live?")] {
        let (_, answer) = post(front.url("/v1/chat/completions"), &question(user, text));
        assert_eq!(answer["amem"]["memory_tokens_prefilled_now"], 0, "{answer}");
    }
}

#[test]
fn metrics_are_for_keys_that_may_do_everything_unless_they_are_open() {
    let dir = tempfile::tempdir().unwrap();
    let keys = KeyFile::at(dir.path().join("keys.json"));
    let (_, bound) = keys.create(Grant::Namespace(Namespace::new("alice").unwrap())).unwrap();
    let identity = Identity::new(KeyHeader::Authorization).admin(Some("all".into())).keys(keys);
    for open in [false, true] {
        let mut options = Options::default();
        options.open_metrics = open;
        let front = Front::with(common::in_ram(), identity.clone(), options);
        let status = |key: Option<&str>| get(&front.url("/metrics"), key).0;
        let of = [status(None), status(Some("other")), status(Some(bound.expose_secret())), status(Some("all"))];
        assert_eq!(of, if open { [200; 4] } else { [401, 401, 403, 200] });
        assert_eq!(get(&front.url("/ready"), None).0, 200, "a load balancer has no key");
    }
}

#[test]
fn a_server_wants_keys_for_as_long_as_it_runs_even_if_their_file_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.json");
    let keys = KeyFile::at(&path);
    let (_, alice) = keys.create(Grant::Namespace(Namespace::new("alice").unwrap())).unwrap();
    let identity = Identity::new(KeyHeader::Authorization).keys(KeyFile::at(&path));
    let front = Front::with(common::in_ram(), identity, Options::default());
    let status = |key: Option<&str>| get(&front.url("/v1/memories/alice"), key).0;
    let both = || [status(None), status(Some(alice.expose_secret()))];
    assert_eq!(both(), [401, 200]);
    std::fs::rename(&path, dir.path().join("backup")).unwrap();
    assert_eq!(both(), [401, 401]);
    std::fs::rename(dir.path().join("backup"), &path).unwrap();
    assert_eq!(both(), [401, 200]);
}

#[test]
fn whoever_runs_a_server_removes_what_is_gone_from_its_files_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let keys = KeyFile::at(dir.path().join("keys.json"));
    let (_, bound) = keys.create(Grant::Namespace(Namespace::new("alice").unwrap())).unwrap();
    let identity = Identity::new(KeyHeader::Authorization).admin(Some("all".into())).keys(keys);
    let memory = common::on_disk(&dir.path().join("data"));
    let (kept, let_go) = common::block_on(async {
        memory.remember_all("alice", ["Alice lives in Denver.", "Bob lives in Oslo."]).await.unwrap();
        memory.prefill("alice", |_, _| {}).await.unwrap();
        let held = memory.kv().owned(OwnerId::of("alice")).await.unwrap();
        memory.kv().evict(&[held[0].id]).await.unwrap();
        (held[1].id, held[0].id)
    });
    let on_disk = |id: &ChunkId| {
        let files = std::fs::read_dir(dir.path().join("data/kv")).unwrap().map(|file| file.unwrap().path());
        files.map(|file| std::fs::read(file).unwrap()).any(|bytes| bytes.windows(32).any(|bytes| bytes == id.0))
    };
    assert!(on_disk(&let_go), "its bytes stay until their room is needed");
    let front = Front::with(memory, identity, Options::default());
    let purge = |key: Option<&str>| {
        let request = client().post(front.url("/v1/admin/purge"));
        key.into_iter().fold(request, |request, key| request.bearer_auth(key)).send().unwrap()
    };
    let refused = [purge(None), purge(Some("other")), purge(Some(bound.expose_secret()))];
    assert_eq!(refused.map(|refused| refused.status().as_u16()), [401, 401, 403]);
    assert!(on_disk(&let_go));

    let reader = rusqlite::Connection::open(dir.path().join("data/ledger.sqlite")).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM record").unwrap();
    let writer = SqliteLedger::open(dir.path().join("data/ledger.sqlite")).unwrap();
    let (alice, now) = (Namespace::new("alice").unwrap(), Timestamp::now());
    common::block_on(writer.add(&alice, &["Carol lives in Lima.".into()], now)).unwrap();
    let not_yet = purge(Some("all"));
    assert_eq!(not_yet.status(), 503, "somebody reads the ledger as it was before");
    assert!(not_yet.headers().contains_key("retry-after"));
    drop(reader);
    let purged = purge(Some("all"));
    assert_eq!((purged.status().as_u16(), purged.text().unwrap().as_str()), (200, r#"{"status":"purged"}"#));
    assert!(on_disk(&kept) && !on_disk(&let_go));
    let (_, document) = get(&front.url("/openapi.json"), None);
    let document: Value = serde_json::from_str(&document).unwrap();
    assert!(document["paths"]["/v1/admin/purge"]["post"].is_object());
}

#[test]
fn users_of_a_gateway_do_not_purge_without_a_key() {
    let identity = Identity::new(KeyHeader::Authorization).gateway(Some("x-user".parse().unwrap()));
    let status = |identity: &Identity, headers: &[(&str, &str)]| {
        let front = Front::with(common::in_ram(), identity.clone(), Options::default());
        let request = client().post(front.url("/v1/admin/purge"));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.send().unwrap().status().as_u16()
    };
    assert_eq!([status(&identity, &[]), status(&identity, &[("x-user", "alice")])], [400, 403]);
    let identity = identity.admin(Some("all".into()));
    assert_eq!(status(&identity, &[("x-api-key", "all")]), 200);
    assert_eq!(status(&Identity::new(KeyHeader::Authorization), &[]), 200, "without keys everybody may do everything");
}

#[test]
fn a_server_whose_model_is_being_loaded_is_alive_and_not_ready() {
    let front = Front::start(Server::starting(Mode::Blend), Limits::default());
    let (status, health) = get(&front.url("/health"), None);
    assert_eq!((status, serde_json::from_str::<Value>(&health).unwrap()["status"].as_str()), (200, Some("starting")));
    let response = client().get(front.url("/ready")).send().unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(get(&front.url("/v1/models"), None).0, 503);
}

#[test]
fn while_work_is_done_the_same_listener_answers_and_then_takes_what_it_is_given() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (listener, address) = http::bind("127.0.0.1", 0).await.unwrap();
        let ask = move || tokio::task::spawn_blocking(move || get(&format!("http://{address}/ready"), None).0);
        let starting = Server::starting(Mode::Resident);
        let (listener, asked) = http::meanwhile(listener, starting, async { ask().await.unwrap() }).await.unwrap();
        assert_eq!(asked, 503);
        let server = Server::new(common::in_ram(), Identity::new(KeyHeader::Authorization), Options::default());
        let limits = Limits::default();
        let served = http::serve(listener, server.router(), &limits, async move {
            assert_eq!(ask().await.unwrap(), 200);
        });
        served.await.unwrap();
    });
}
