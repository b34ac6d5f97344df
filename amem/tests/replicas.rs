//! Servers that share one memory: records in PostgreSQL, KV in RAM over Redis. One of them is killed, or what they
//! share.
//!
//! The servers are this test's own binary, started again with the name of the ignored test below. They are told what to
//! do by lines of JSON.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
#[allow(dead_code)]
#[path = "../../amem-store/tests/common/postgres_server.rs"]
mod postgres_server;
#[path = "../../amem-store/tests/common/servers.rs"]
mod servers;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use amem_core::{
    ChunkId, Error, KvChunk, KvStore, Lease, Memory, NewRecord, PrefixId, Query, RamStore, RecordId, Result,
    StoreStats, StoredChunk, Tier, Tiered, UsageQuery, Wanted, WriteMode,
};
use amem_store::remote::{RemoteOptions, RemoteStore};
use amem_store::{PostgresLedger, PostgresOptions};
use async_trait::async_trait;
use common::block_on;
use serde_json::{Value, json};

const NAMESPACE: &str = "ours";
const POSTGRES: &str = "AMEM_TEST_POSTGRES";
const SCHEMA: &str = "AMEM_TEST_SCHEMA";
const REDIS: &str = "AMEM_TEST_REDIS";
const NAME: &str = "AMEM_TEST_NAME";
/// What a server's answers begin with, among the lines that the test harness prints.
const SAYS: &str = "server: ";

/// A store that is not told how long prefill takes. A tier that is slower than prefill is not read, and on a busy
/// machine it is chance which of the two is slower.
struct Untimed(Tiered);

#[async_trait]
impl KvStore for Untimed {
    async fn get_many(&self, ids: &[ChunkId]) -> Result<Vec<Option<KvChunk>>> {
        self.0.get_many(ids).await
    }

    async fn put(&self, chunks: &[KvChunk]) -> Result<()> {
        self.0.put(chunks).await
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        self.0.delete(ids).await
    }

    async fn contains_many(&self, ids: &[ChunkId]) -> Vec<bool> {
        self.0.contains_many(ids).await
    }

    async fn stats(&self) -> StoreStats {
        self.0.stats().await
    }

    async fn page(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<StoredChunk>> {
        self.0.page(after, limit).await
    }

    fn prefetch(&self, ids: &[ChunkId]) {
        self.0.prefetch(ids);
    }

    fn lease(&self, ids: &[ChunkId], time: Duration) -> Lease {
        self.0.lease(ids, time)
    }

    fn ask_of_late_writes(&self, wanted: Arc<dyn Wanted>) {
        self.0.ask_of_late_writes(wanted);
    }

    async fn sync(&self) -> Result<()> {
        self.0.sync().await
    }
}

/// The memory of the server with this name, and its RAM tier.
async fn open() -> (Memory, Arc<RamStore>) {
    let given = |name| std::env::var(name).expect("started by another test");
    let mut options = PostgresOptions::default();
    (options.schema, options.store) = (given(SCHEMA), given(NAME));
    options.connect_timeout = Duration::from_secs(1);
    let ledger = PostgresLedger::connect_with(&given(POSTGRES), options).await.unwrap();
    let (short, pause) = (Duration::from_millis(500), Duration::from_millis(50));
    let remote = RemoteOptions::default().deadline(short).write_deadline(short).pauses(3, pause, pause);
    let remote = RemoteStore::redis(&given(REDIS), remote).unwrap();
    let ram = Arc::new(RamStore::default());
    let tiers = vec![Tier::new(ram.clone(), 64 << 20), Tier::shared(Arc::new(remote)).write(WriteMode::Back)];
    let kv = Untimed(Tiered::open(tiers).await.unwrap());
    let memory = common::builder().kv(Arc::new(kv)).ledger(Arc::new(ledger)).meter_usage(true);
    (memory.build().unwrap(), ram)
}

#[test]
#[ignore = "a child of other tests"]
fn child_serves() {
    let (memory, ram) = block_on(open());
    // The harness may have begun a line.
    println!("\n{SAYS}{}", json!("ready"));
    for line in std::io::stdin().lines() {
        let command: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let said = block_on(serve(&memory, &ram, &command));
        let said = said.unwrap_or_else(|error| json!({"error": kind(&error), "message": error.to_string()}));
        println!("{SAYS}{said}");
    }
}

fn kind(error: &Error) -> &'static str {
    match error {
        Error::Ledger(_) => "ledger",
        Error::Store(_) => "store",
        _ => "other",
    }
}

async fn serve(memory: &Memory, ram: &RamStore, command: &Value) -> Result<Value> {
    let text = |name: &str| command[name].as_str().expect("the command has it");
    let id = || RecordId::from_bytes(serde_json::from_value::<[u8; 16]>(command["id"].clone()).unwrap());
    match text("do") {
        "remember" => {
            let new = NewRecord::new(text("text"));
            let new = command["key"].as_str().into_iter().fold(new, |new, key| new.key(key));
            let added = memory.remember(NAMESPACE, new).await?;
            Ok(json!({"id": added.record.id.to_bytes(), "new": !added.is_duplicate()}))
        }
        "update" => memory.update(NAMESPACE, id(), text("text")).await.map(|_| json!({})),
        "forget" => memory.forget(NAMESPACE, id()).await.map(|_| json!({})),
        "ask" => {
            let answer = memory.ask(NAMESPACE, text("question")).await?;
            let recalled: Vec<String> = answer.recalled.into_iter().map(|found| found.record.text).collect();
            let usage = answer.usage;
            let tokens = [usage.reused(), usage.repaired, usage.prefilled, usage.generated];
            Ok(json!({"text": answer.text, "recalled": recalled, "tokens": tokens, "missed": usage.missed}))
        }
        "list" => {
            let all = memory.list(NAMESPACE, Query::All).await?;
            let active = all.into_iter().filter(|record| record.state == amem_core::State::Active);
            Ok(active.map(|record| record.text).collect::<Vec<_>>().into())
        }
        "sync" => {
            memory.settle().await;
            memory.kv().sync().await.map(|()| json!({}))
        }
        "ram" => Ok(ram.list().await?.iter().map(|held| held.id.to_string()).collect::<Vec<_>>().into()),
        "usage" => {
            let totals = memory.usage(&UsageQuery::all()).await?;
            Ok(totals.first().map_or([0; 8], |total| total.amounts.to_array()).to_vec().into())
        }
        other => panic!("no such command: {other}"),
    }
}

/// What servers share.
struct Shared<'s> {
    postgres: &'s postgres_server::Server,
    schema: String,
    redis: servers::Server,
    /// Names chunks as the servers do.
    names: Memory,
}

/// What was told to have been done, in the order of [`Amounts::to_array`](amem_core::Amounts::to_array) as far as the
/// generated tokens.
type Told = [u64; 6];

/// A server.
struct Replica {
    child: Child,
    commands: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    told: Told,
}

impl<'s> Shared<'s> {
    fn new(postgres: Option<&'s postgres_server::Server>) -> Option<Self> {
        let (postgres, redis) = (postgres?, servers::redis(None)?);
        Some(Self { postgres, schema: postgres.new_schema(), redis, names: common::in_ram() })
    }

    fn start(&self, name: &str) -> Replica {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_serves", "--ignored", "--nocapture"]).env(NAME, name);
        command.env(POSTGRES, self.postgres.address()).env(SCHEMA, &self.schema);
        command.env(REDIS, format!("redis://127.0.0.1:{}", self.redis.port));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (commands, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut replica = Replica { child, commands, lines: BufReader::new(output).lines(), told: [0; 6] };
        assert_eq!(replica.answer(&json!({"do": "start"})).expect("it starts"), "ready");
        replica
    }

    /// The name of a memory's chunk.
    fn chunk(&self, text: &str) -> String {
        let (prefix, tokens) = (PrefixId::of(&self.names.layout().prefix), self.names.tokens(text).unwrap());
        self.names.model().info().chunk_id(NAMESPACE, &prefix, &tokens).to_string()
    }

    /// The name of the system line's chunk.
    fn system_chunk(&self) -> String {
        let tokens = &self.names.layout().prefix;
        self.names.model().info().chunk_id("", &PrefixId::of(&[]), tokens).to_string()
    }

    /// The chunks of which Redis has any object.
    fn in_redis(&self) -> BTreeSet<String> {
        let keys = servers::ask_redis(&self.redis, "KEYS *");
        let objects = keys.lines().filter_map(|key| Some(key.rsplit_once('/')?.1.split_once('.')?.0.to_owned()));
        objects.collect()
    }

    /// Deletions that some server has not done yet.
    fn pending(&self) -> String {
        self.postgres.sql(&format!("SELECT count(*) FROM {}.pending_deletion", self.schema))
    }
}

impl Replica {
    fn send(&mut self, command: &Value) {
        writeln!(self.commands, "{command}").expect("it runs");
    }

    /// What it says to the command that it was sent longest ago, `None` if it has ended.
    fn answer(&mut self, command: &Value) -> Option<Value> {
        let said = |line: String| Some(serde_json::from_str(line.strip_prefix(SAYS)?).expect("a whole line"));
        let answer: Value = self.lines.by_ref().map_while(|line| line.ok()).find_map(said)?;
        if answer["error"].is_null() {
            match command["do"].as_str().unwrap() {
                "ask" => {
                    self.told[0] += 1;
                    let tokens = answer["tokens"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap());
                    self.told[2..].iter_mut().zip(tokens).for_each(|(sum, count)| *sum += count);
                }
                "remember" => self.told[1] += u64::from(answer["new"].as_bool().unwrap()),
                "update" | "forget" => self.told[1] += 1,
                _ => {}
            }
        }
        Some(answer)
    }

    /// Has it do something, which may fail.
    fn attempt(&mut self, command: Value) -> Value {
        self.send(&command);
        self.answer(&command).expect("it runs")
    }

    fn call(&mut self, command: Value) -> Value {
        let answer = self.attempt(command.clone());
        assert!(answer["error"].is_null(), "{command}: {answer}");
        answer
    }

    fn remember(&mut self, text: &str) -> Value {
        self.call(json!({"do": "remember", "text": text}))["id"].clone()
    }

    fn remember_as(&mut self, key: &str, text: &str) -> Value {
        self.call(json!({"do": "remember", "text": text, "key": key}))["id"].clone()
    }

    /// Asks, and waits until the KV that was computed for it is in Redis.
    fn ask(&mut self, question: &str) -> Value {
        let answer = self.call(json!({"do": "ask", "question": question}));
        self.call(json!({"do": "sync"}));
        answer
    }

    fn texts(&mut self) -> BTreeSet<String> {
        serde_json::from_value(self.call(json!({"do": "list"}))).unwrap()
    }

    fn in_ram(&mut self) -> BTreeSet<String> {
        serde_json::from_value(self.call(json!({"do": "ram"}))).unwrap()
    }

    /// What is counted, as far as [`Told`] goes.
    fn usage(&mut self) -> Told {
        let amounts: Vec<u64> = serde_json::from_value(self.call(json!({"do": "usage"}))).unwrap();
        amounts[..6].try_into().unwrap()
    }

    /// Ends it at once.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sum<const N: usize>(all: [Told; N]) -> Told {
    std::array::from_fn(|at| all.iter().map(|told| told[at]).sum())
}

/// Numbers that look random, the same ones for a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % end as u64) as usize
    }
}

const CODE: &str = "What is Bob's locker code?";

#[test]
fn what_one_server_is_told_another_answers_from_the_first_ones_kv() {
    let Some(shared) = Shared::new(postgres_server::shared()) else { return };
    let (mut one, mut other) = (shared.start("one"), shared.start("other"));
    one.remember("Bob's locker code is 4817.");
    one.remember("Maria lives in Paris.");
    let first = one.ask(CODE);
    assert_eq!(first["text"], "Bob's locker code is 4817.");
    let second = other.ask(CODE);
    assert_eq!((&second["text"], &second["recalled"]), (&first["text"], &first["recalled"]));
    assert_eq!(second["missed"], 0, "no memory is computed a second time");
    assert!(second["tokens"][0].as_u64() > Some(0), "its KV is reused");
    let chunk = shared.chunk("Bob's locker code is 4817.");
    assert!(shared.in_redis().contains(&chunk) && one.in_ram().contains(&chunk) && other.in_ram().contains(&chunk));
    let told = sum([one.told, other.told]);
    assert_eq!((one.usage(), other.usage()), (told, told));
}

#[test]
fn what_one_server_forgets_or_changes_no_other_has_after_its_next_question() {
    let Some(shared) = Shared::new(postgres_server::shared()) else { return };
    let (mut one, mut other) = (shared.start("one"), shared.start("other"));
    let texts = ["Bob's locker code is 4817.", "Bob's locker code is 2096.", "Bob's locker code is 3355."];
    let chunks = texts.map(|text| shared.chunk(text));
    let bob = one.remember_as("code", texts[0]);
    one.remember("Maria lives in Paris.");
    let gone = |other: &mut Replica, chunk: &String, how: &str| {
        assert!(!shared.in_redis().contains(chunk), "{how}: its KV is gone from Redis when the call returns");
        let answer = other.ask(CODE);
        assert!(!other.in_ram().contains(chunk), "{how}: its KV is gone from the other server");
        answer
    };
    let knows = |one: &mut Replica, other: &mut Replica, at: usize| {
        for server in [one, other] {
            assert_eq!(server.ask(CODE)["text"], texts[at]);
            assert!(server.in_ram().contains(&chunks[at]));
        }
        assert!(shared.in_redis().contains(&chunks[at]));
    };
    knows(&mut one, &mut other, 0);
    one.call(json!({"do": "update", "id": bob, "text": texts[1]}));
    assert_eq!(gone(&mut other, &chunks[0], "updated")["text"], texts[1]);
    knows(&mut one, &mut other, 1);
    let bob = one.remember_as("code", texts[2]);
    assert_eq!(gone(&mut other, &chunks[1], "superseded")["text"], texts[2]);
    knows(&mut one, &mut other, 2);
    one.call(json!({"do": "forget", "id": bob}));
    let answer = gone(&mut other, &chunks[2], "forgotten");
    assert!(!answer["text"].as_str().unwrap().contains("3355"), "{answer}");
    assert_eq!(
        answer["recalled"].as_array().unwrap().iter().filter(|text| texts.contains(&text.as_str().unwrap())).count(),
        0
    );
    one.ask(CODE);
    assert_eq!(shared.pending(), "0");
}

/// A record as the test knows it.
struct Known {
    id: Value,
    text: String,
}

#[test]
fn two_servers_that_change_one_memory_in_turn_agree_and_keep_no_kv_of_what_is_gone() {
    let Some(shared) = Shared::new(postgres_server::shared()) else { return };
    let mut pair = [shared.start("one"), shared.start("other")];
    let mut numbers = Numbers(7);
    let mut known: Vec<Known> = Vec::new();
    for step in 0..30 {
        let text = format!("Bob's locker code is {}.", 1000 + step);
        let server = &mut pair[numbers.below(2)];
        match numbers.below(5) {
            0 if !known.is_empty() => {
                let Known { id, .. } = known.remove(numbers.below(known.len()));
                server.call(json!({"do": "forget", "id": id}));
            }
            1 if !known.is_empty() => {
                let at = numbers.below(known.len());
                let record = &mut known[at];
                server.call(json!({"do": "update", "id": record.id, "text": text}));
                record.text = text;
            }
            _ => known.push(Known { id: server.remember(&text), text }),
        }
        // Not each change is seen by each server at once.
        for server in &mut pair {
            if numbers.below(2) == 0 {
                let answer = server.ask(CODE);
                let active: BTreeSet<&str> = known.iter().map(|record| &*record.text).collect();
                let recalled = answer["recalled"].as_array().unwrap();
                assert_eq!(recalled.len(), active.len().min(8), "step {step}");
                assert!(recalled.iter().all(|text| active.contains(text.as_str().unwrap())), "step {step}: {answer}");
                let held: BTreeSet<String> =
                    known.iter().map(|record| shared.chunk(&record.text)).chain([shared.system_chunk()]).collect();
                let in_ram = server.in_ram();
                assert!(in_ram.is_subset(&held), "step {step}: KV of what is gone is in RAM");
                let in_redis = shared.in_redis();
                assert!(in_redis.is_subset(&held), "step {step}: KV of what is gone is in Redis");
            }
        }
    }
    let texts: BTreeSet<String> = known.into_iter().map(|record| record.text).collect();
    assert!(!texts.is_empty() && pair.iter_mut().all(|server| server.texts() == texts));
    pair.iter_mut().for_each(|server| drop(server.ask(CODE)));
    assert_eq!(shared.pending(), "0");
    let told = sum([pair[0].told, pair[1].told]);
    assert!(pair.iter_mut().all(|server| server.usage() == told));
}

#[test]
fn a_killed_server_loses_nothing_that_it_acknowledged_and_the_others_go_on() {
    let Some(shared) = Shared::new(postgres_server::shared()) else { return };
    let mut survivor = shared.start("survivor");
    let mut numbers = Numbers(11);
    let (mut acknowledged, mut sent) = (BTreeSet::new(), BTreeSet::new());
    // What servers that are gone were told to have done, and what they may have done besides.
    let (mut gone, mut unsure) = ([0; 6], 0);
    for round in 0..3 {
        let mut victim = shared.start("victim");
        let told_before = survivor.told;
        let commands = |first: usize| {
            (first..first + 20).flat_map(|n| {
                let remember = json!({"do": "remember", "text": format!("Bob's locker code is {}.", 1000 + n)});
                [remember, json!({"do": "ask", "question": CODE})]
            })
        };
        let (to_victim, to_survivor): (Vec<_>, Vec<_>) =
            (commands(round * 100).collect(), commands(round * 100 + 50).collect());
        to_victim.iter().for_each(|command| victim.send(command));
        to_survivor.iter().for_each(|command| survivor.send(command));
        let mut note = |command: &Value, answer: &Value| {
            assert!(answer["error"].is_null(), "round {round}: {command}: {answer}");
            command["text"].as_str().into_iter().for_each(|text| _ = acknowledged.insert(text.to_owned()));
        };
        let stop = 2 + numbers.below(25);
        let mut answered = 0;
        for command in &to_victim {
            if answered == stop {
                victim.kill();
            }
            // What it said before its end is still to be read.
            let Some(answer) = victim.answer(command) else { break };
            note(command, &answer);
            answered += 1;
        }
        assert!(answered >= stop, "round {round}: it was killed after {answered} answers");
        for command in &to_survivor {
            let answer = survivor.answer(command).expect("it goes on");
            note(command, &answer);
        }
        assert_eq!(survivor.told[0] - told_before[0], 20);
        let all = to_victim.iter().chain(&to_survivor).filter_map(|command| command["text"].as_str());
        sent.extend(all.map(str::to_owned));
        unsure += u64::from(answered < to_victim.len());
        gone = sum([gone, victim.told]);

        let texts = survivor.texts();
        assert!(texts.is_superset(&acknowledged) && texts.is_subset(&sent), "round {round}");
        assert!(texts.len() as u64 <= acknowledged.len() as u64 + unsure, "round {round}");
        let mut third = shared.start("third");
        let (before, after) = (survivor.ask(CODE), third.ask(CODE));
        assert_eq!((&before["text"], &before["recalled"]), (&after["text"], &after["recalled"]), "round {round}");
        assert_eq!(
            after["missed"], 0,
            "round {round}: what the survivor has, one that is started now need not compute"
        );
        assert_eq!(third.texts(), texts, "round {round}");
        gone = sum([gone, third.told]);
        let (counted, told) = (third.usage(), sum([gone, survivor.told]));
        assert_eq!(survivor.usage(), counted, "round {round}");
        let more: Vec<u64> =
            counted.iter().zip(told).map(|(counted, told)| counted.checked_sub(told).unwrap()).collect();
        assert!(more[0] + more[1] <= unsure, "round {round}: {more:?} counted beyond what was told");
        assert!(more[0] > 0 || more[2..] == [0; 4], "round {round}: {more:?}");
    }
}

#[test]
fn servers_go_on_without_redis_and_delete_there_what_they_could_not_once_it_is_back() {
    let Some(mut shared) = Shared::new(postgres_server::shared()) else { return };
    let (mut one, mut other) = (shared.start("one"), shared.start("other"));
    let (text, chunk) = ("Bob's locker code is 4817.", shared.chunk("Bob's locker code is 4817."));
    let bob = one.remember(text);
    one.remember("Maria lives in Paris.");
    one.ask(CODE);
    other.ask(CODE);

    shared.redis.signal("STOP");
    assert_eq!(one.attempt(json!({"do": "forget", "id": bob}))["error"], "store", "its KV is still in Redis");
    for server in [&mut one, &mut other] {
        let answer = server.ask(CODE);
        assert!(!answer["recalled"].as_array().unwrap().contains(&json!(text)), "{answer}");
        assert!(!server.in_ram().contains(&chunk));
    }
    shared.redis.signal("CONT");
    // It is left alone for a while.
    for _ in 0..200 {
        one.ask(CODE);
        other.ask(CODE);
        if shared.pending() == "0" {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(shared.pending(), "0");
    assert!(!shared.in_redis().contains(&chunk));

    shared.redis.kill();
    one.remember("Bob's locker code is 2096.");
    for server in [&mut one, &mut other] {
        let answer = server.ask(CODE);
        assert_eq!(answer["text"], "Bob's locker code is 2096.");
        assert!(answer["missed"].as_u64() > Some(0), "each computes it: {answer}");
        assert_eq!(server.ask(CODE)["missed"], 0, "and keeps it in RAM");
    }
    shared.redis.restart();
    assert_eq!(other.ask(CODE)["text"], "Bob's locker code is 2096.");
}

#[test]
fn servers_say_that_postgres_is_gone_and_go_on_when_it_is_back() {
    let Some(postgres) = postgres_server::start("") else { return };
    let Some(shared) = Shared::new(Some(&postgres)) else { return };
    let (mut one, mut other) = (shared.start("one"), shared.start("other"));
    one.remember("Bob's locker code is 4817.");
    let answers = [one.ask(CODE), other.ask(CODE)];
    for _ in 0..2 {
        postgres.kill();
        for server in [&mut one, &mut other] {
            for command in
                [json!({"do": "remember", "text": "Maria lives in Paris."}), json!({"do": "ask", "question": CODE})]
            {
                let answer = server.attempt(command);
                assert_eq!(answer["error"], "ledger", "{answer}");
            }
        }
        postgres.start_again("");
        for server in [&mut one, &mut other] {
            let answer = server.ask(CODE);
            assert_eq!((&answer["text"], &answer["missed"]), (&answers[0]["text"], &json!(0)));
        }
    }
    other.remember("Maria lives in Paris.");
    assert_eq!(one.texts().len(), 2);
    let told = sum([one.told, other.told]);
    assert_eq!((one.usage(), other.usage()), (told, told));
}
