//! `/v1/usage`, `/v1/stats` and `/v1/users`.

use amem::http::{Identity, KeyHeader};
use amem::keys::{Grant, KeyFile};
use amem::server::Options;
use amem_core::{Memory, Namespace};
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::client;
use super::common::{block_on, builder};
use super::front::Front;
use super::memories::{call, get};

/// A memory whose usage is counted.
fn metered() -> Memory {
    builder().meter_usage(true).build().unwrap()
}

#[test]
fn what_was_used_is_counted_by_user_and_in_all() {
    let memory = metered();
    let front = Front::of(memory.clone());
    block_on(memory.remember_all("alice", ["Alice lives in Denver.", "Alice likes tea."])).unwrap();
    block_on(memory.remember("bob, \"the\" builder", "Bob's locker code is 4817.")).unwrap();
    let first = block_on(memory.ask("alice", "Where does Alice live?")).unwrap().usage;
    let second = block_on(memory.ask("alice", "Where does Alice live?")).unwrap().usage;
    let usage = get(front.url("/v1/usage"));
    let row = &usage["per_user"]["alice"];
    let saved = first.reused() + second.reused();
    assert!(saved > 0, "the second question found KV");
    assert_eq!((&row["requests"], &row["memory_ops"]), (&json!(2), &json!(2)));
    assert_eq!(row["prefill_tokens_saved"], saved);
    let others = first.prefilled + first.repaired + second.prefilled + second.repaired;
    assert_eq!(row["tokens_in"], saved + others);
    assert_eq!(row["tokens_out"], first.generated + second.generated);
    assert_eq!((&row["chunks_blended"], &row["chunks_reused"]), (&json!(4), &json!(2)));
    let dollars = row["est_usd_saved"].as_f64().unwrap();
    assert!((dollars - saved as f64 * 0.2e-6).abs() < 1e-12, "{dollars}");
    assert!(row["first_ts"].as_f64().unwrap() <= row["last_ts"].as_f64().unwrap());
    assert_eq!(usage["totals"]["memory_ops"], 3);
    assert_eq!((&usage["instance"]["kv_token_hours"], &usage["metered"]), (&Value::Null, &json!(true)));
    let only = get(front.url("/v1/usage?user=alice&since=2020-01-01&until=4102444800"));
    assert_eq!((&only["totals"]["requests"], only["per_user"].as_object().unwrap().len()), (&json!(2), 1));
    assert_eq!(only["window"], json!({ "since": 1_577_836_800.0, "until": 4_102_444_800.0 }));
    assert_eq!(get(front.url("/v1/usage?until=2020-01-01"))["per_user"], json!({}));
    let response = client().get(front.url("/v1/usage?format=csv")).send().unwrap();
    assert_eq!(response.headers()["content-type"], "text/csv; charset=utf-8");
    let text = response.text().unwrap();
    let mut lines = csv::Reader::from_reader(text.as_bytes());
    assert_eq!(
        lines.headers().unwrap().iter().take(4).collect::<Vec<_>>(),
        ["user", "requests", "memory_ops", "prefill_tokens_saved"]
    );
    let rows: Vec<csv::StringRecord> = lines.records().map(Result::unwrap).collect();
    assert_eq!((&rows[0][0], &rows[0][3], &rows[1][0]), ("alice", &*saved.to_string(), "bob, \"the\" builder"));
    for bad in ["?since=soon", "?until=2020-13-01"] {
        assert_eq!(call(Method::GET, front.url(&format!("/v1/usage{bad}")), None).0, 400, "{bad}");
    }
    assert_eq!(call(Method::GET, front.url("/v1/usage?format=xml"), None).0, 422);
}

#[test]
fn what_deleted_users_used_still_counts_under_no_name() {
    let memory = metered();
    let front = Front::of(memory.clone());
    block_on(memory.remember("alice", "Alice lives in Denver.")).unwrap();
    call(Method::DELETE, front.url("/v1/memories/alice"), None);
    let usage = get(front.url("/v1/usage"));
    assert_eq!((&usage["per_user"], &usage["deleted_users"]["memory_ops"]), (&json!({}), &json!(1)));
    assert_eq!(usage["totals"]["memory_ops"], 1);
    let csv = client().get(front.url("/v1/usage?format=csv")).send().unwrap().text().unwrap();
    assert!(csv.lines().nth(1).unwrap().starts_with(",0,1,"), "{csv}");
}

#[test]
fn statistics_tell_what_is_held_and_what_was_saved() {
    let memory = metered();
    let front = Front::of(memory.clone());
    block_on(memory.remember_all("alice", ["Alice lives in Denver.", "Alice likes tea."])).unwrap();
    for _ in 0..2 {
        block_on(memory.ask("alice", "Where does Alice live?")).unwrap();
    }
    let stats = get(front.url("/v1/stats"));
    assert_eq!((&stats["turns"], &stats["users"], &stats["sessions"]), (&json!(2), &json!(1), &json!(0)));
    assert_eq!(
        (&stats["chunks_blended"], &stats["chunks_reused"], &stats["reuse_rate"]),
        (&json!(4), &json!(2), &json!(0.5))
    );
    assert_eq!(stats["prefill_saved_tokens"], get(front.url("/v1/usage"))["totals"]["prefill_tokens_saved"]);
    let tokens: usize =
        ["Alice lives in Denver.", "Alice likes tea."].map(|text| memory.tokens(text).unwrap().len()).iter().sum();
    let policy = &stats["policy"];
    // The system line is held too.
    let held = tokens + memory.layout().prefix.len();
    assert_eq!(
        (&policy["chunks"], &policy["hot_tokens"], &policy["hot_budget"]),
        (&json!(3), &json!(held), &Value::Null)
    );
    assert_eq!((&policy["tiers"][0]["chunks"], &policy["tiers"][0]["tokens"]), (&json!(3), &json!(held)));
    assert_eq!((&stats["engine"]["waiting"], &stats["engine"]["running"]), (&json!(0), &json!(0)));
    assert_eq!(stats["engine"]["prefilled_tokens"], held);
}

#[test]
fn users_are_listed_with_their_memories_page_by_page() {
    let memory = metered();
    for (user, count) in [("carol", 1), ("alice", 3), ("bob", 2)] {
        block_on(memory.remember_all(user, (0..count).map(|n| format!("note {n}")))).unwrap();
    }
    let front = Front::of(memory.clone());
    block_on(memory.recall("bob", "note")).unwrap();
    let user =
        |name: &str, count: usize, loaded: bool| json!({ "user": name, "active_memories": count, "loaded": loaded });
    let all = [user("alice", 3, false), user("bob", 2, true), user("carol", 1, false)];
    assert_eq!(get(front.url("/v1/users")), json!({ "users": all, "count": 3, "next": null }));
    assert_eq!(get(front.url("/v1/users?limit=2")), json!({ "users": all[..2], "count": 3, "next": "bob" }));
    assert_eq!(get(front.url("/v1/users?limit=2&cursor=bob")), json!({ "users": all[2..], "count": 3, "next": null }));
    assert_eq!(call(Method::GET, front.url("/v1/users?limit=0"), None).0, 400);
}

#[test]
fn a_key_that_is_bound_to_a_user_sees_that_users_usage_only() {
    let dir = tempfile::tempdir().unwrap();
    let keys = KeyFile::at(dir.path().join("keys.json"));
    let (_, bound) = keys.create(Grant::Namespace(Namespace::new("alice").unwrap())).unwrap();
    let (_, admin) = keys.create(Grant::Admin).unwrap();
    let memory = metered();
    for (user, count) in [("alice", 1), ("bob", 5)] {
        block_on(memory.remember_all(user, (0..count).map(|n| format!("note {n}")))).unwrap();
    }
    block_on(memory.ask("bob", "note")).unwrap();
    let front = Front::with(memory, Identity::new(KeyHeader::Authorization).keys(keys), Options::default());
    let get = |key: &secrecy::SecretString, path: &str| {
        client().get(front.url(path)).bearer_auth(key.expose_secret()).send().unwrap().text().unwrap()
    };
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let (ours, all) = (json(&get(&bound, "/v1/usage")), json(&get(&admin, "/v1/usage")));
    assert_eq!((&ours["totals"]["memory_ops"], &all["totals"]["memory_ops"]), (&json!(1), &json!(6)));
    for path in ["/v1/usage", "/v1/usage?format=csv", "/v1/stats"] {
        assert!(!get(&bound, path).contains("bob"), "{path}");
    }
    let stats = json(&get(&bound, "/v1/stats"));
    assert_eq!((&stats["turns"], &stats["users"]), (&json!(0), &json!(1)));
    assert_eq!(json(&get(&admin, "/v1/stats"))["turns"], 1);
}
