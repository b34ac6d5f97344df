//! `amem kv-serve` and `amem serve` as processes.

use std::path::Path;
use std::process::Command;

use amem_core::testing::gguf;
use amem_core::transformer::WeightType;
use serde_json::{Value, json};

use super::front::{Front, Process};
use super::{client, common, post};

#[test]
fn a_server_says_where_it_listens_and_that_it_is_alive() {
    let dir = tempfile::tempdir().unwrap();
    for mode in ["kv-serve", "serve"] {
        let server = Process::start(&[mode], dir.path());
        let health: Value = client().get(server.url("/health")).send().unwrap().json().unwrap();
        assert_eq!(health["status"], "ok");
        assert_eq!(health["mode"], mode);
        assert_eq!(health["auth"], "off");
    }
}

#[test]
fn errors_are_json_with_what_every_client_looks_for() {
    let front = Front::of(common::in_ram());
    let (status, body) = post(front.url("/v1/memories"), &json!({ "texts": [] }));
    assert_eq!(status, 400);
    for message in [&body["detail"], &body["error"]["message"]] {
        assert!(message.as_str().unwrap().contains("texts is empty"), "{body}");
    }
    assert_eq!(body["type"], "error");
    assert_eq!(post(front.url("/v1/memories"), &json!({ "texts": 1 })).0, 422);
    assert_eq!(post(front.url("/nowhere"), &json!({})).0, 404);
    assert_eq!(post(front.url("/health"), &json!({})).0, 405);
    let response = client().post(front.url("/v1/memories")).body("{").send().unwrap();
    assert_eq!(response.status().as_u16(), 400);
    assert!(response.headers().contains_key("x-request-id"));
}

#[test]
fn a_bench_counts_what_each_way_computed_and_draws_it() {
    let dir = tempfile::tempdir().unwrap();
    let (out, chart) = (dir.path().join("numbers.json"), dir.path().join("chart.svg"));
    let (memories, questions) = (dir.path().join("memories.txt"), dir.path().join("questions.txt"));
    std::fs::write(&memories, "Alice lives in Denver.\n\nBob works at Lego.\nCarol's dog is called Rex.\n").unwrap();
    std::fs::write(&questions, "Where does Alice live?\nWhere does Bob work?\nWhere does Alice live?\n").unwrap();
    let bench = |more: &[&str]| -> Value {
        let bench = Command::new(env!("CARGO_BIN_EXE_amem"))
            .args(["bench", "--k", "3", "--memory-file"])
            .arg(&memories)
            .arg("--queries-file")
            .arg(&questions)
            .arg("--out")
            .arg(&out)
            .arg("--chart")
            .arg(&chart)
            .args(more)
            .output()
            .unwrap();
        assert!(bench.status.success(), "{}", String::from_utf8_lossy(&bench.stderr));
        serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap()
    };
    let report = bench(&[]);
    let computed = |report: &Value, way: usize| {
        let costs = &report["costs"][way];
        let tokens: Vec<u64> = serde_json::from_value(costs["computed_tokens"].clone()).unwrap();
        (costs["way"].as_str().unwrap().to_owned(), tokens)
    };
    for (kept, prefilled) in [(0, 1), (2, 3)] {
        let ((name, kept), (other, prefilled)) = (computed(&report, kept), computed(&report, prefilled));
        assert_eq!(other, format!("{name}, prefilled"));
        assert_eq!((kept.len(), prefilled.len()), (3, 3));
        // The third question is the first one again: all that it needs stands, or is kept.
        assert!(kept[2] - kept[1] < prefilled[2] - prefilled[1], "{name}: {kept:?} {prefilled:?}");
    }
    assert_eq!(report["costs"][2]["same_answers"], 1.0, "so few memories are blended without a difference");
    assert!(std::fs::read_to_string(&chart).unwrap().contains("session, prefilled"));
    std::fs::write(&questions, "What do Alice, Bob and Carol do?\n").unwrap();
    let [none, all] = ["0", "1"].map(|ratio| bench(&["--recompute-ratio", ratio]));
    for way in [0, 2] {
        let ((name, none), (_, all)) = (computed(&none, way), computed(&all, way));
        assert!(none[0] < all[0], "{name}: {none:?} {all:?}");
    }
    let kl = |report: &Value, way: usize| report["costs"][way]["first_token_kl"].as_f64().unwrap();
    assert_eq!((kl(&none, 1), kl(&none, 3)), (0.0, 0.0), "what others are compared with");
    assert!(kl(&all, 2) < 1e-5 && kl(&none, 2) > 10.0 * kl(&all, 2), "{} {}", kl(&all, 2), kl(&none, 2));
}

#[test]
fn a_gguf_file_is_served_by_its_name_as_a_directory_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("demo.gguf");
    let model = gguf(&amem_demo::files(), WeightType::Q8_0).bytes();
    std::fs::write(&file, &model).unwrap();
    let ask = |path: &Path| {
        Command::new(env!("CARGO_BIN_EXE_amem"))
            .args(["ask", "--remember", "Alice lives in Denver.", "Where does Alice live?", "--model"])
            .arg(path)
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .output()
            .unwrap()
    };
    for path in [&file, dir.path()] {
        let output = ask(path);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && out.contains("Denver"), "{out}\n{err}");
    }
    std::fs::write(&file, &model[..model.len() / 2]).unwrap();
    let output = ask(&file);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && err.contains("demo.gguf") && err.contains("cut off"), "{err}");
}
