//! Encoders for tests: directories as sentence-transformers writes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// All golden encoders.
pub const CASES: [&str; 5] = ["bert", "bert-cls", "xlm-roberta", "nomic", "nomic-new"];

pub type Files = BTreeMap<String, Vec<u8>>;

/// A text, its tokens and its vector, with no prompt before it.
#[derive(Deserialize)]
pub struct Golden {
    pub text: String,
    pub tokens: Vec<u32>,
    pub vector: Vec<f32>,
}

/// The directory of an encoder.
pub fn case(name: &str) -> PathBuf {
    super::golden_files().join("encoders").join(name)
}

/// The files of a directory and of the folders in it.
pub fn directory(path: &Path) -> Files {
    let mut files = Files::new();
    for entry in std::fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            files.extend(directory(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
    files
}

/// The files of a golden encoder.
pub fn files(name: &str) -> Files {
    directory(&case(name))
}

/// What its vectors are.
pub fn golden(name: &str) -> Vec<Golden> {
    serde_json::from_slice(&std::fs::read(case(name).join("golden.json")).unwrap()).unwrap()
}
