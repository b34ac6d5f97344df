//! Many clients at once, and servers that are killed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use amem_core::EngineOptions;
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};

use super::common::builder;
use super::front::{Front, Process};

/// Clients at once.
const CLIENTS: usize = 64;

/// How long clients ask for. `AMEM_LOAD_SECONDS` makes it longer than a test should take by itself.
fn how_long() -> Duration {
    let seconds = std::env::var("AMEM_LOAD_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(4))
}

/// Steps of a linear congruential generator (Knuth's MMIX): every client does something else, and the same each time.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// What a client has seen.
#[derive(Default)]
struct Seen {
    done: AtomicUsize,
    refused: AtomicUsize,
    generated: AtomicU64,
}

/// One user: a word that nobody else's texts have, and what is remembered.
struct User<'a> {
    client: Client,
    server: &'a Process,
    seen: &'a Seen,
    name: String,
    word: String,
    held: HashMap<String, String>,
    count: usize,
}

impl User<'_> {
    /// The body of an answer that must be a success or a refusal for want of room, and must hold no one else's word.
    fn body(&self, response: Response) -> Option<String> {
        let status = response.status().as_u16();
        if status == 429 {
            assert!(response.headers().contains_key("retry-after"));
            self.seen.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let body = response.text().unwrap();
        assert_eq!(status, 200, "{body}");
        for (at, _) in body.match_indices("secret") {
            assert!(body[at..].starts_with(&self.word), "{} got another's word: {body}", self.name);
        }
        self.seen.done.fetch_add(1, Ordering::Relaxed);
        Some(body)
    }

    fn post(&self, path: &str, body: &Value) -> Option<String> {
        self.body(self.client.post(self.server.url(path)).json(body).send().unwrap())
    }

    fn step(&mut self, draw: &mut Draw) {
        match draw.below(6) {
            0 | 1 => self.remember(),
            2 => self.forget(),
            3 => {
                let body = json!({ "user": self.name, "query": format!("{} lives", self.word) });
                self.post("/v1/recall", &body);
            }
            4 => {
                let path = format!("/v1/memories/{}", self.name);
                let body = self.body(self.client.get(self.server.url(&path)).send().unwrap()).unwrap();
                let listed: Value = serde_json::from_str(&body).unwrap();
                let listed = listed["memories"].as_array().unwrap();
                assert_eq!(listed.len(), self.held.len(), "{}: {body}", self.name);
                for memory in listed {
                    assert_eq!(self.held[memory["id"].as_str().unwrap()], memory["text"].as_str().unwrap());
                }
            }
            _ => self.ask(draw.below(2) == 0),
        }
    }

    fn remember(&mut self) {
        self.count += 1;
        let text = format!("{} lives in town number {}.", self.word, self.count);
        let body = json!({ "user": self.name, "texts": [text] });
        let Some(body) = self.post("/v1/memories", &body) else { return };
        let body: Value = serde_json::from_str(&body).unwrap();
        self.held.insert(body["added"][0].as_str().unwrap().to_owned(), text);
    }

    fn forget(&mut self) {
        let Some(id) = self.held.keys().next().cloned() else { return };
        let path = format!("/v1/memories/{}/{id}", self.name);
        if self.body(self.client.delete(self.server.url(&path)).send().unwrap()).is_some() {
            self.held.remove(&id);
        }
    }

    fn ask(&self, stream: bool) {
        let messages = json!([{ "role": "user", "content": format!("Where does {} live?", self.word) }]);
        let body =
            json!({ "model": "demo", "user": self.name, "messages": messages, "max_tokens": 12, "stream": stream });
        if let Some(body) = self.post("/v1/chat/completions", &body) {
            if stream {
                assert!(body.trim_end().ends_with("data: [DONE]"), "{body}");
            }
            self.seen.generated.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// KiB of memory that a process holds.
#[cfg(target_os = "linux")]
fn resident_kib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn many_users_at_once_get_what_is_theirs_and_the_server_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start(&["kv-serve", "--ram-mib", "32", "--disk-mib", "64", "--multi-tenant"], dir.path());
    let (seen, until) = (Seen::default(), Instant::now() + how_long());
    std::thread::scope(|scope| {
        for index in 0..CLIENTS {
            let (server, seen) = (&server, &seen);
            scope.spawn(move || {
                let client = Client::builder().timeout(Duration::from_secs(120)).build().unwrap();
                let (name, word) = (format!("user/{index}").replace('/', "-"), format!("secret{index:02}"));
                let mut user = User { client, server, seen, name, word, held: HashMap::new(), count: 0 };
                let mut draw = Draw(index as u64);
                while Instant::now() < until {
                    user.step(&mut draw);
                }
            });
        }
    });
    let (done, refused) = (seen.done.into_inner(), seen.refused.into_inner());
    let (answers, kib) = (seen.generated.into_inner(), resident_kib(&server));
    println!("{done} requests, {answers} of them answers, {refused} refused; {} MiB resident", kib >> 10);
    assert!(done > CLIENTS && answers > 0);
    // The model's context cache and 64 threads' buffers take most of it; what is remembered is a few kilobytes a user.
    assert!(kib < 1 << 20, "{kib} KiB");
}

/// Remembers until the server is gone; the ids that were acknowledged.
fn remember_until_it_is_gone(server: &Process, round: usize) -> Vec<String> {
    let client = Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
    let mut acknowledged = Vec::new();
    for count in 0.. {
        let texts = [format!("Round {round}, fact {count}."), format!("Round {round}, another fact {count}.")];
        let sent = client.post(server.url("/v1/memories")).json(&json!({ "texts": texts })).send();
        let Ok(response) = sent.and_then(Response::error_for_status) else { break };
        let Ok(body) = response.json::<Value>() else { break };
        acknowledged.extend(body["added"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()));
    }
    acknowledged
}

fn ids(server: &Process) -> Vec<String> {
    let body: Value = reqwest::blocking::get(server.url("/v1/memories/default")).unwrap().json().unwrap();
    body["memories"].as_array().unwrap().iter().map(|memory| memory["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_a_killed_server_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let start = |dir: &Path| Process::start(&["kv-serve"], dir);
    let mut acknowledged = Vec::new();
    for round in 0..4 {
        let mut server = start(dir.path());
        let held = ids(&server);
        assert!(
            acknowledged.iter().all(|id| held.contains(id)),
            "round {round}: {} of {}",
            held.len(),
            acknowledged.len()
        );
        assert!(
            held.len() <= acknowledged.len() + 2 * round,
            "one request of each round may not have been acknowledged"
        );
        // Killed at another moment in each round.
        let (child, moment) = (server.child.id(), Duration::from_millis(60 + 37 * round as u64));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(moment);
            let killed = std::process::Command::new("kill").args(["-9", &child.to_string()]).status();
            assert!(killed.unwrap().success());
        });
        acknowledged.extend(remember_until_it_is_gone(&server, round));
        killer.join().unwrap();
        server.child.wait().unwrap();
    }
    assert!(!acknowledged.is_empty());
}

#[test]
fn whoever_finds_the_queue_full_is_told_when_to_come_back() {
    let engine = EngineOptions::default().max_running(16).max_waiting(1);
    let front = Front::of(builder().engine(engine).build().unwrap());
    let url = front.url("/v1/chat/completions");
    let messages = json!([{ "role": "user", "content": "Tell me a story." }]);
    // So hot that answers hardly ever end by themselves. One request runs, one waits, and eight come at once.
    let body = json!({ "messages": messages, "n": 16, "max_tokens": 400, "temperature": 2, "seed": 1 });
    let statuses = std::thread::scope(|scope| {
        let ask = || {
            let response = Client::new().post(&url).json(&body).send().unwrap();
            let (status, after) = (response.status().as_u16(), response.headers().get("retry-after").cloned());
            let body: Value = response.json().unwrap();
            assert_eq!(status == 429, after.is_some_and(|after| after == "1"), "{body}");
            assert_eq!(status == 429, body["error"]["type"] == "rate_limit_error", "{body}");
            status
        };
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
}
