//! Model directories as hubs lay them out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use amem_core::transformer::ModelSource;
use std::fs::{self, File};

use amem_store::{Error, ModelDir};

#[test]
fn a_hub_cache_of_links_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (dir.path().join("blobs"), dir.path().join("snapshot"));
    fs::create_dir_all(snapshot.join("a.json")).unwrap();
    fs::create_dir(&blobs).unwrap();
    for (name, contents) in [("model.safetensors", "weights"), ("config.json", "{}"), ("chat_template.jinja", "{{}}")] {
        fs::write(blobs.join(name), contents).unwrap();
        std::os::unix::fs::symlink(blobs.join(name), snapshot.join(name)).unwrap();
    }
    fs::write(snapshot.join("README.md"), "text").unwrap();
    fs::write(snapshot.join("empty.safetensors"), "").unwrap();
    let model = ModelDir::open(&snapshot).unwrap();
    let names: Vec<_> = model.names().collect();
    assert_eq!(names, ["chat_template.jinja", "config.json", "empty.safetensors", "model.safetensors"]);
    assert_eq!(model.file("model.safetensors"), Some(&b"weights"[..]));
    assert_eq!(model.file("config.json"), Some(&b"{}"[..]));
    assert_eq!(model.file("empty.safetensors"), Some(&b""[..]));
    assert_eq!(model.file("README.md"), None);
}

#[test]
fn what_cannot_be_a_model_is_a_typed_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(ModelDir::open(dir.path().join("nowhere")), Err(Error::Io { .. })));
    std::os::unix::fs::symlink("nowhere", dir.path().join("config.json")).unwrap();
    assert!(matches!(ModelDir::open(dir.path()), Err(Error::Io { .. })), "a link that leads nowhere");
    fs::remove_file(dir.path().join("config.json")).unwrap();
    File::create(dir.path().join("tokenizer.json")).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(ModelDir::open(dir.path()), Err(Error::TooLarge { .. })));
}
