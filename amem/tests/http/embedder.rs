//! An encoder beside the model: recall by meaning, and `/v1/embeddings`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use amem_core::transformer::{Encoder, EncoderOptions, Purpose};
use amem_cpu::Cpu;
use amem_store::ModelDir;
use serde_json::{Value, json};

use super::front::Process;
use super::hub::Hub;
use super::post;

/// The directory of an encoder with random weights.
fn dir(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../amem-cpu/tests/golden/encoders").join(case)
}

fn encoder(case: &str) -> Encoder {
    let files = ModelDir::open(dir(case)).unwrap();
    Encoder::load(&files, Cpu::with_threads(1).unwrap(), EncoderOptions::default()).unwrap()
}

/// Unit vectors, as the encoder computes them in this process.
fn expected(encoder: &Encoder, texts: &[&str], purpose: Purpose) -> Vec<Vec<f32>> {
    let encoded = futures_lite::future::block_on(encoder.encode(texts, purpose)).unwrap();
    let unit = |vector: Vec<f32>| {
        let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.into_iter().map(|x| x / norm).collect()
    };
    encoded.into_iter().map(|encoded| unit(encoded.vector)).collect()
}

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap_or_else(|| panic!("{answer}"));
    data.iter().map(|one| serde_json::from_value(one["embedding"].clone()).unwrap()).collect()
}

fn close(a: &[Vec<f32>], b: &[Vec<f32>]) -> bool {
    let same =
        |(a, b): (&Vec<f32>, &Vec<f32>)| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    a.len() == b.len() && a.iter().zip(b).all(same)
}

fn with_embedder<'a>(command: &[&'a str], embedder: &'a str) -> Vec<&'a str> {
    [command, &["--embedder", embedder]].concat()
}

#[test]
fn embeddings_are_the_encoders() {
    let (data, case) = (tempfile::tempdir().unwrap(), "xlm-roberta");
    let embedder = dir(case);
    let server = Process::start(&with_embedder(&["kv-serve"], embedder.to_str().unwrap()), data.path());
    let (encoder, url) = (encoder(case), server.url("/v1/embeddings"));
    let texts = ["where does alice live", "alice in rome", "x"];
    for (input_type, purpose) in [
        (Value::Null, Purpose::Plain),
        (json!("query"), Purpose::Query),
        (json!("passage"), Purpose::Passage),
        (json!("document"), Purpose::Passage),
    ] {
        let (status, answer) = post(url.clone(), &json!({ "input": texts, "model": "any", "input_type": input_type }));
        assert_eq!((status, &answer["model"]), (200, &json!(case)), "{answer}");
        assert!(close(&vectors(&answer), &expected(&encoder, &texts, purpose)), "{input_type}");
        let encoded = futures_lite::future::block_on(encoder.encode(&texts, purpose)).unwrap();
        let tokens: usize = encoded.iter().map(|encoded| encoded.tokens).sum();
        assert_eq!(answer["usage"], json!({ "prompt_tokens": tokens, "total_tokens": tokens }));
    }
    for (param, body) in [
        ("input", json!({ "input": "" })),
        ("input", json!({ "input": [] })),
        ("input", json!({ "input": [1, 2] })),
        ("input", json!({ "input": [[1], [2]] })),
        ("input", json!({ "input": vec!["a"; 2049] })),
        ("dimensions", json!({ "input": "a", "dimensions": 31 })),
        ("input_type", json!({ "input": "a", "input_type": "question" })),
    ] {
        let (status, answer) = post(url.clone(), &body);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    }
    let (status, answer) = post(url, &json!({ "input": "a", "dimensions": 32, "encoding_format": "base64" }));
    assert_eq!(status, 200, "{answer}");
}

/// A text and a question that share no word, and point the same way.
const TEXT: &str = "Oslo";
const QUESTION: &str = "rome";

#[test]
fn what_shares_no_word_with_a_question_is_found_by_its_meaning() {
    let found = expected(&encoder("bert"), &[TEXT, QUESTION], Purpose::Plain);
    let cosine: f32 = found[0].iter().zip(&found[1]).map(|(a, b)| a * b).sum();
    assert!(cosine > 0.01, "they point apart by {cosine}: take others");
    let embedder = dir("bert");
    for arguments in [&["kv-serve"][..], &["proxy", "--upstream", "http://127.0.0.1:9"]] {
        let recalled = |arguments: &[&str]| {
            let data = tempfile::tempdir().unwrap();
            let server = Process::start(arguments, data.path());
            let (status, answer) = post(server.url("/v1/memories"), &json!({ "user": "a", "texts": [TEXT] }));
            assert_eq!(status, 200, "{answer}");
            let (status, answer) = post(server.url("/v1/recall"), &json!({ "user": "a", "query": QUESTION }));
            assert_eq!(status, 200, "{answer}");
            answer.to_string().contains(TEXT)
        };
        assert!(!recalled(arguments), "by words alone it is found too");
        assert!(recalled(&with_embedder(arguments, embedder.to_str().unwrap())), "{arguments:?}");
    }
}

fn ask(embedder: &str, more: &[&str], hub: Option<(&str, &Path)>) -> std::process::Output {
    let data = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_amem"));
    command.args(["ask", "--remember", "Alice lives in Denver.", "Where does Alice live?"]);
    command.args(["--embedder", embedder]).args(more).arg("--data-dir").arg(data.path());
    if let Some((url, home)) = hub {
        command.env_remove("HF_HUB_CACHE").envs([("HF_ENDPOINT", url), ("HF_TOKEN", super::hub::TOKEN)]);
        command.env("HF_HOME", home);
    }
    command.output().unwrap()
}

#[test]
fn an_encoder_of_the_hub_is_downloaded_with_the_files_that_it_needs() {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for file in ["config.json", "model.safetensors", "modules.json", "sentence_bert_config.json", "tokenizer.json"] {
        files.insert(file.to_owned(), std::fs::read(dir("bert").join(file)).unwrap());
    }
    files.insert("1_Pooling/config.json".to_owned(), std::fs::read(dir("bert").join("1_Pooling/config.json")).unwrap());
    let needed: Vec<String> = files.keys().cloned().collect();
    for other in ["README.md", "pytorch_model.bin", "onnx/model.onnx", "onnx/config.json", "vocab.txt"] {
        files.insert(other.to_owned(), b"not wanted".to_vec());
    }
    let (hub, home) = (Hub::of(files), tempfile::tempdir().unwrap());
    let front = hub.serve();
    let output = ask("org/demo", &[], Some((&front.url(""), home.path())));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("Denver"), "{out}\n{err}");
    let mut downloaded = hub.downloaded();
    downloaded.sort();
    assert_eq!(downloaded, needed);
    let output = ask("org/other", &[], Some(("http://127.0.0.1:9", home.path())));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--embedder"));
}

/// An encoder in a GGUF file.
fn gguf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../amem-cpu/tests/golden/gguf-encoders/bert.gguf")
}

#[test]
fn an_encoder_in_a_gguf_file_is_taken_from_here_or_from_the_hub() {
    let answers = |output: &std::process::Output| {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && out.contains("Denver"), "{out}\n{err}");
    };
    answers(&ask(gguf().to_str().unwrap(), &[], None));
    let files = ["bert-F32.gguf", "bert-Q2_K.gguf", "README.md"].map(|name| (name.to_owned(), b"not wanted".to_vec()));
    let mut files = BTreeMap::from(files);
    files.insert("bert-F32.gguf".to_owned(), std::fs::read(gguf()).unwrap());
    let (hub, home) = (Hub::of(files), tempfile::tempdir().unwrap());
    let front = hub.serve();
    answers(&ask("org/demo", &[], Some((&front.url(""), home.path()))));
    assert_eq!(hub.downloaded(), ["bert-F32.gguf"]);
    answers(&ask("org/demo:f32", &[], Some(("http://127.0.0.1:9", home.path()))));
}

#[test]
fn what_is_no_encoder_is_refused_with_its_reason() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo-model/model");
    let says = |output: &std::process::Output, parts: &[&str]| {
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && parts.iter().all(|part| err.contains(part)), "{parts:?} not in {err}");
    };
    says(&ask(model.to_str().unwrap(), &[], None), &["--embedder", "model_type llama", "bert"]);
    says(&ask("no-such-directory", &[], None), &["no directory", "OWNER/NAME"]);
    let as_model = Command::new(env!("CARGO_BIN_EXE_amem")).args(["ask", "a", "--model"]).arg(gguf()).output().unwrap();
    says(&as_model, &["bert.gguf", "model_type bert"]);
    let prompt = "x".repeat(5000);
    let too_long = ["--embedder-query-prompt", prompt.as_str()];
    says(&ask(dir("bert").to_str().unwrap(), &too_long, None), &["prompt", "5000"]);
}
