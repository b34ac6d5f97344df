//! The server on a GPU: a simulated one, whose kernels run on the CPU.

use std::process::Command;

use serde_json::json;

use super::front::Process;
use super::post;

fn on_gpu(arguments: &[&str], data: &std::path::Path) -> Command {
    let mut command = Process::command(arguments, data);
    command.env("LD_LIBRARY_PATH", amem_cuda_simulator::library_path().unwrap());
    command
}

#[test]
fn a_memory_is_answered_from_by_a_gpu() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["kv-serve", "--device", "cuda:0", "--kv-cache-mib", "64", "--gpu-kv-mib", "16"];
    let server = Process::spawn(on_gpu(&flags, dir.path()));
    let notes = ["Alice lives in Denver.", "Bob is a nurse."];
    let (status, _) = post(server.url("/v1/memories"), &json!({ "user": "you", "texts": notes }));
    assert_eq!(status, 200);
    let messages = json!([{ "role": "user", "content": "Where does Alice live?" }]);
    for _ in 0..2 {
        let (status, answer) =
            post(server.url("/v1/chat/completions"), &json!({ "user": "you", "messages": messages }));
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["choices"][0]["message"]["content"], "Alice lives in Denver.");
    }
    server.stop();
}

#[test]
fn weights_of_few_bits_answer_from_memory_too() {
    let dir = tempfile::tempdir().unwrap();
    for flags in [&["--weights", "int8", "--threads", "1"][..], &["--weights", "int4"], &["--exact"]] {
        // What one arithmetic has computed is not taken for another's, so the directory may be the same.
        let server = Process::spawn(Process::command(&[&["kv-serve"], flags].concat(), dir.path()));
        let note = json!({ "user": "you", "texts": ["Alice lives in Denver."] });
        assert_eq!(post(server.url("/v1/memories"), &note).0, 200);
        let messages = json!([{ "role": "user", "content": "Where does Alice live?" }]);
        let (status, answer) =
            post(server.url("/v1/chat/completions"), &json!({ "user": "you", "messages": messages }));
        assert_eq!(
            (status, &answer["choices"][0]["message"]["content"]),
            (200, &json!("Alice lives in Denver.")),
            "{flags:?}"
        );
        server.stop();
    }
}

#[test]
fn a_device_that_is_not_there_is_said_before_anything_else_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let cases = [
        (&["--device", "cuda:7"][..], "there is no GPU 7"),
        (&["--device", "cuda", "--dtype", "f16", "--kv-cache-mib", "1000000"], "the GPU has no room"),
        (&["--dtype", "f16"], "--device cuda"),
        (&["--device", "cuda", "--weights", "int8"], "for the CPU"),
        (&["--exact", "--weights", "int8"], "in exact arithmetic"),
    ];
    for (flags, expected) in cases {
        let refused = on_gpu(&[&["kv-serve"], flags].concat(), &data).output().unwrap();
        assert!(!refused.status.success(), "{flags:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains(expected), "{flags:?}: {said}");
        assert!(!data.exists(), "{flags:?}");
    }
}
