//! Models from the Hugging Face Hub: one that is served here, in its place.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use amem::http::Limits;
use amem_core::testing::gguf;
use amem_core::transformer::WeightType;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use serde_json::json;

use super::front::Front;

/// The commit that the branch and the tag stand for.
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const TOKEN: &str = "hf_of_alice";

/// A Hub with the demo model as `org/demo`, open to who has a token, and what it was asked for.
#[derive(Clone)]
pub(crate) struct Hub {
    files: Arc<BTreeMap<String, Vec<u8>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// The demo model, in two files of weights if they are to be split, among files that no model needs.
    fn new(split: bool) -> Self {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (name, bytes) in amem_demo::files() {
            files.insert(name.to_owned(), bytes.to_vec());
        }
        if split {
            let weights = files.remove("model.safetensors").unwrap();
            let shards = shards(&weights);
            let mut map = serde_json::Map::new();
            for (index, (names, bytes)) in shards.into_iter().enumerate() {
                let file = format!("model-0000{}-of-00002.safetensors", index + 1);
                map.extend(names.into_iter().map(|name| (name, file.clone().into())));
                files.insert(file, bytes);
            }
            let index = json!({ "metadata": {}, "weight_map": map });
            files.insert("model.safetensors.index.json".to_owned(), index.to_string().into_bytes());
        }
        for other in ["README.md", "pytorch_model.bin", "original/consolidated.safetensors", "consolidated.safetensors"]
        {
            files.insert(other.to_owned(), b"not wanted".to_vec());
        }
        Self::of(files)
    }

    /// These files as `org/demo`.
    pub(crate) fn of(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self { files: Arc::new(files), asked: Arc::default() }
    }

    pub(crate) fn serve(&self) -> Front {
        Front::start(Router::new().route("/{*path}", any(answer)).with_state(self.clone()), Limits::default())
    }

    /// The files that were downloaded since this was last asked.
    pub(crate) fn downloaded(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

async fn answer(State(hub): State<Hub>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let known = request.headers().get("authorization").is_some_and(|token| token == format!("Bearer {TOKEN}").as_str());
    let failed = |status: StatusCode, code: &'static str| (status, [("x-error-code", code)]).into_response();
    if !path.contains("org/demo") {
        return failed(StatusCode::NOT_FOUND, "RepoNotFound");
    }
    if !known {
        return failed(StatusCode::FORBIDDEN, "GatedRepo");
    }
    if let Some(rest) = path.strip_prefix("/api/models/org/demo/") {
        let (what, revision) = rest.split_once('/').unwrap();
        return match (what, ["main", "v1", COMMIT].contains(&revision)) {
            (_, false) => failed(StatusCode::NOT_FOUND, "RevisionNotFound"),
            ("revision", true) => axum::Json(json!({ "id": "org/demo", "sha": COMMIT })).into_response(),
            _ => {
                let entry = |(name, bytes): (&String, &Vec<u8>)| json!({ "type": "file", "oid": "0", "size": bytes.len(), "path": name });
                axum::Json(hub.files.iter().map(entry).collect::<Vec<_>>()).into_response()
            }
        };
    }
    let Some(file) = path.strip_prefix(&format!("/org/demo/resolve/{COMMIT}/")) else {
        return failed(StatusCode::NOT_FOUND, "RevisionNotFound");
    };
    let Some(bytes) = hub.files.get(file) else { return failed(StatusCode::NOT_FOUND, "EntryNotFound") };
    if request.method() == Method::GET {
        hub.asked.lock().unwrap().push(file.to_owned());
    }
    let etag = format!("\"{}\"", blake3::hash(bytes).to_hex());
    let length = bytes.len().to_string();
    ([("etag", etag.as_str()), ("x-repo-commit", COMMIT), ("x-linked-size", &length)], Body::from(bytes.clone()))
        .into_response()
}

/// A file of weights as two, with the names of the tensors in each.
fn shards(weights: &[u8]) -> Vec<(Vec<String>, Vec<u8>)> {
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let (tensors, data): (BTreeMap<String, serde_json::Value>, _) =
        (serde_json::from_slice(&weights[8..8 + header]).unwrap(), &weights[8 + header..]);
    let tensors: Vec<_> = tensors.into_iter().filter(|(name, _)| name != "__metadata__").collect();
    let half = tensors.len() / 2;
    let shard = |tensors: &[(String, serde_json::Value)]| {
        let (mut header, mut bytes) = (serde_json::Map::new(), Vec::new());
        for (name, tensor) in tensors {
            let at = |end: usize| tensor["data_offsets"][end].as_u64().unwrap() as usize;
            let begin = bytes.len();
            bytes.extend_from_slice(&data[at(0)..at(1)]);
            let mut tensor = tensor.clone();
            tensor["data_offsets"] = json!([begin, bytes.len()]);
            header.insert(name.clone(), tensor);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes].concat();
        (tensors.iter().map(|(name, _)| name.clone()).collect(), file)
    };
    vec![shard(&tensors[..half]), shard(&tensors[half..])]
}

/// Asks a model of this Hub a question.
fn ask(hub: &str, home: &Path, model: &str, environment: &[(&str, &str)]) -> Output {
    let data = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_amem"))
        .args(["ask", "--model", model, "--remember", "Alice lives in Denver.", "Where does Alice live?"])
        .arg("--data-dir")
        .arg(data.path())
        .env_remove("HF_HUB_CACHE")
        .envs([("HF_ENDPOINT", hub), ("HF_TOKEN", TOKEN)])
        .env("HF_HOME", home)
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn answers(output: &Output) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("Denver"), "{out}\n{err}");
}

fn says(output: &Output, parts: &[&str]) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && parts.iter().all(|part| err.contains(part)), "{parts:?} not in {err}");
}

#[test]
fn a_model_of_the_hub_is_downloaded_once_and_nothing_else_of_its_repository() {
    let (hub, home) = (Hub::new(false), tempfile::tempdir().unwrap());
    let front = hub.serve();
    answers(&ask(&front.url(""), home.path(), "org/demo", &[]));
    let mut downloaded = hub.downloaded();
    downloaded.sort();
    let mut needed: Vec<String> = amem_demo::files().iter().map(|(name, _)| (*name).to_owned()).collect();
    needed.sort();
    assert_eq!(downloaded, needed);
    for same in ["org/demo", "org/demo@v1", &format!("org/demo@{COMMIT}")] {
        answers(&ask(&front.url(""), home.path(), same, &[]));
        assert_eq!(hub.downloaded(), [""; 0], "{same}");
    }
    // The Hub is not asked, or cannot be.
    let nowhere = "http://127.0.0.1:9";
    answers(&ask(nowhere, home.path(), "org/demo", &[("HF_HUB_OFFLINE", "1")]));
    answers(&ask(nowhere, home.path(), "org/demo", &[]));
}

#[test]
fn weights_in_several_files_are_those_that_their_index_names() {
    let (hub, home) = (Hub::new(true), tempfile::tempdir().unwrap());
    let front = hub.serve();
    answers(&ask(&front.url(""), home.path(), "org/demo", &[]));
    let downloaded = hub.downloaded();
    let weights = downloaded.iter().filter(|file| file.ends_with(".safetensors")).count();
    assert_eq!((weights, downloaded.len()), (2, 6), "{downloaded:?}");
}

#[test]
fn why_a_model_is_not_here_is_said_with_what_to_do() {
    let (hub, home) = (Hub::new(false), tempfile::tempdir().unwrap());
    let front = hub.serve();
    let url = front.url("");
    says(&ask(&url, home.path(), "org/demo", &[("HF_HUB_OFFLINE", "1")]), &["not in the cache", "HF_HUB_OFFLINE"]);
    says(&ask("http://127.0.0.1:9", home.path(), "org/demo", &[]), &["cannot be reached", "--model"]);
    says(&ask(&url, home.path(), "org/other", &[]), &["no model org/other", "HF_TOKEN"]);
    says(&ask(&url, home.path(), "org/demo@v9", &[]), &["org/demo@v9", "no such branch"]);
    says(&ask(&url, home.path(), "org/demo", &[("HF_TOKEN", "hf_of_nobody")]), &["not open to everybody", "HF_TOKEN"]);
    says(&ask(&url, home.path(), "no-such-directory", &[]), &["no directory", "OWNER/NAME"]);
    assert_eq!(hub.downloaded(), [""; 0]);
}

/// A repository of the demo model in GGUF, in files of these names and types, among files that no model needs.
fn ggufs(files: &[(&str, WeightType)]) -> BTreeMap<String, Vec<u8>> {
    let models = files.iter().map(|(name, kind)| ((*name).to_owned(), gguf(&amem_demo::files(), *kind).bytes()));
    let others = ["README.md", "demo-IQ2_XS.gguf", "demo-Q2_K.gguf", "mmproj-demo-F16.gguf", "imatrix.gguf"];
    models.chain(others.map(|other| (other.to_owned(), b"not wanted".to_vec()))).collect()
}

#[test]
fn of_a_repository_of_gguf_files_the_one_that_is_asked_for_is_downloaded_once() {
    let files = [
        ("demo-F16.gguf", WeightType::F16),
        ("demo-Q8_0.gguf", WeightType::Q8_0),
        ("demo-Q4_0.gguf", WeightType::Q4_0),
    ];
    let (hub, home) = (Hub::of(ggufs(&files)), tempfile::tempdir().unwrap());
    let front = hub.serve();
    let (url, nowhere) = (front.url(""), "http://127.0.0.1:9");
    answers(&ask(&url, home.path(), "org/demo", &[]));
    assert_eq!(hub.downloaded(), ["demo-Q8_0.gguf"]);
    answers(&ask(&url, home.path(), "org/demo@v1:f16", &[]));
    assert_eq!(hub.downloaded(), ["demo-F16.gguf"]);
    for (hub, environment) in [(&*url, &[][..]), (nowhere, &[]), (nowhere, &[("HF_HUB_OFFLINE", "1")])] {
        for same in ["org/demo", "org/demo/demo-F16.gguf"] {
            answers(&ask(hub, home.path(), same, environment));
        }
    }
    assert_eq!(hub.downloaded(), [""; 0]);
    let output = ask(nowhere, home.path(), "org/demo:Q4_0", &[("HF_HUB_OFFLINE", "1")]);
    says(&output, &["org/demo:Q4_0 is not in the cache"]);
}

#[test]
fn gguf_files_beside_a_model_in_safetensors_are_taken_where_they_are_asked_for() {
    let mut files = ggufs(&[("demo-Q8_0.gguf", WeightType::Q8_0)]);
    files.extend(amem_demo::files().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())));
    let (hub, home) = (Hub::of(files.clone()), tempfile::tempdir().unwrap());
    let front = hub.serve();
    answers(&ask(&front.url(""), home.path(), "org/demo:Q8_0", &[]));
    assert_eq!(hub.downloaded(), ["demo-Q8_0.gguf"]);
    answers(&ask(&front.url(""), home.path(), "org/demo", &[]));
    assert!(hub.downloaded().contains(&"model.safetensors".to_owned()));

    // Many repositories of GGUF files have the configuration of the model that they were made of.
    files.remove("model.safetensors");
    let (hub, home) = (Hub::of(files), tempfile::tempdir().unwrap());
    let front = hub.serve();
    answers(&ask(&front.url(""), home.path(), "org/demo", &[]));
    let downloaded = hub.downloaded();
    assert!(downloaded.contains(&"demo-Q8_0.gguf".to_owned()) && downloaded.iter().all(|file| !file.contains("IQ2")));
}

#[test]
fn a_gguf_model_in_several_files_is_downloaded_whole_or_not_at_all() {
    let whole = gguf(&amem_demo::files(), WeightType::Q8_0);
    let embedding = ["token_embd.weight", "output_norm.weight"];
    let of_layer =
        ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];
    let layers = (0..5).flat_map(|layer| of_layer.map(|tensor| format!("blk.{layer}.{tensor}.weight")));
    let layers: Vec<String> = layers.collect();
    let part = |number: u8, without: &[&str]| {
        let part = whole.clone().value("split.no", 2, vec![number - 1, 0]).value("split.count", 2, vec![2, 0]);
        without.iter().fold(part, |part, tensor| part.without_tensor(tensor)).bytes()
    };
    let name = |number: u8| format!("Q8_0/demo-Q8_0-{number:05}-of-00002.gguf");
    let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    let mut files = BTreeMap::from([(name(1), part(1, &layers)), (name(2), part(2, &embedding))]);
    let (hub, home) = (Hub::of(files.clone()), tempfile::tempdir().unwrap());
    let front = hub.serve();
    answers(&ask(&front.url(""), home.path(), "org/demo", &[]));
    let mut downloaded = hub.downloaded();
    downloaded.sort();
    assert_eq!(downloaded, [name(1), name(2)]);
    answers(&ask("http://127.0.0.1:9", home.path(), &format!("org/demo/{}", name(2)), &[("HF_HUB_OFFLINE", "1")]));

    files.remove(&name(2));
    let (hub, home) = (Hub::of(files), tempfile::tempdir().unwrap());
    let front = hub.serve();
    says(&ask(&front.url(""), home.path(), "org/demo:Q8_0", &[]), &["2 files", &name(2), "not there"]);
    assert_eq!(hub.downloaded(), [""; 0]);
}

#[test]
fn gguf_files_that_cannot_be_read_are_refused_before_they_are_downloaded() {
    let files = [("demo-F16.gguf", WeightType::F16), ("demo-Q8_0.gguf", WeightType::Q8_0)];
    let (hub, home) = (Hub::of(ggufs(&files)), tempfile::tempdir().unwrap());
    let front = hub.serve();
    let refused = |model: &str, parts: &[&str]| says(&ask(&front.url(""), home.path(), model, &[]), parts);
    refused("org/demo:IQ2_XS", &["IQ2_XS cannot be read", "F16 (", "Q8_0 (", "MiB)"]);
    refused("org/demo/demo-Q2_K.gguf", &["demo-Q2_K.gguf cannot be read", "Q8_0 ("]);
    refused("org/demo:Q6_K", &["no GGUF file Q6_K", "Q8_0 ("]);
    refused("org/demo:Q8_0@v1", &["no directory", ":QUANTISATION"]);
    assert_eq!(hub.downloaded(), [""; 0]);

    let (hub, home) = (Hub::of(ggufs(&[])), tempfile::tempdir().unwrap());
    let front = hub.serve();
    says(&ask(&front.url(""), home.path(), "org/demo", &[]), &["IQ2_XS, Q2_K cannot be read", "Q4_K_M"]);
    let nothing = Hub::of(BTreeMap::from([("README.md".to_owned(), Vec::new())]));
    let front = nothing.serve();
    says(&ask(&front.url(""), home.path(), "org/demo", &[]), &["no config.json and no GGUF file"]);
}
