//! Model directories as hubs lay them out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs::{self, File};
use std::path::Path;

use amem_core::testing::{GgufWriter, gguf};
use amem_core::transformer::{Config, ModelSource, WeightType, Weights};
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
fn the_settings_of_an_encoders_modules_are_read_too() {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["1_Pooling", "2_Normalize", "onnx", "Pooling_1", "1_", "1_Pool.ing"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
    }
    for folder in ["1_Pooling", "onnx", "Pooling_1", "1_", "1_Pool.ing"] {
        fs::write(dir.path().join(folder).join("config.json"), "{}").unwrap();
    }
    fs::write(dir.path().join("1_Pooling/model.safetensors"), "weights").unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let model = ModelDir::open(dir.path()).unwrap();
    assert_eq!(model.names().collect::<Vec<_>>(), ["1_Pooling/config.json", "config.json"]);
    assert_eq!(model.file("1_Pooling/config.json"), Some(&b"{}"[..]));
    let large = File::create(dir.path().join("2_Normalize/config.json")).unwrap();
    large.set_len(1 << 40).unwrap();
    assert!(matches!(ModelDir::open(dir.path()), Err(Error::TooLarge { .. })));
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

/// The demo model as a GGUF file.
fn demo() -> GgufWriter {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo-model/model");
    gguf(&ModelDir::open(dir).unwrap(), WeightType::Q8_0)
}

fn layers(model: &ModelDir) -> usize {
    Weights::open(model, &Config::parse(model).unwrap()).unwrap().layers.len()
}

#[test]
fn a_gguf_file_is_opened_by_its_name_and_by_that_of_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("demo-q8_0.gguf");
    fs::write(&file, demo().bytes()).unwrap();
    fs::write(dir.path().join("README.md"), "text").unwrap();
    for path in [&file, dir.path()] {
        let model = ModelDir::open(path).unwrap();
        assert_eq!(model.names().collect::<Vec<_>>(), ["demo-q8_0.gguf"]);
        assert_eq!(layers(&model), 5);
    }

    fs::write(dir.path().join("other.gguf"), "").unwrap();
    let error = ModelDir::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::SeveralModels { .. }));
    assert!(error.to_string().ends_with("name one of demo-q8_0.gguf, other.gguf"), "{error}");
    let error = ModelDir::open(dir.path().join("other.gguf")).unwrap_err();
    assert!(matches!(error, Error::Model { .. }) && error.to_string().contains("other.gguf"), "{error}");

    // Beside a model in the hub's own layout, GGUF files are passed over.
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert_eq!(ModelDir::open(dir.path()).unwrap().names().collect::<Vec<_>>(), ["config.json"]);
}

#[test]
fn a_model_in_parts_is_opened_by_any_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let whole = demo();
    let name = |number: u8| dir.path().join(format!("demo-{number:05}-of-00002.gguf"));
    for number in 1..=2 {
        let mut part = whole.clone().value("split.no", 2, vec![number - 1, 0]).value("split.count", 2, vec![2, 0]);
        for layer in 0..5 {
            for tensor in
                ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
            {
                if (layer < 3) != (number == 1) {
                    part = part.without_tensor(&format!("blk.{layer}.{tensor}.weight"));
                }
            }
        }
        if number == 2 {
            part = part.without_tensor("token_embd.weight").without_tensor("output_norm.weight");
        }
        fs::write(name(number), part.bytes()).unwrap();
    }
    for path in [dir.path(), &name(1), &name(2)] {
        let model = ModelDir::open(path).unwrap();
        assert_eq!((layers(&model), model.names().count()), (5, 2));
    }
    fs::remove_file(name(2)).unwrap();
    assert!(matches!(ModelDir::open(dir.path()), Err(Error::Io { .. })));
}

#[test]
fn the_name_of_one_part_gives_those_of_all() {
    let parts = |name: &str| ModelDir::parts(name).collect::<Vec<_>>();
    let all = ["q8/m-00001-of-00003.gguf", "q8/m-00002-of-00003.gguf", "q8/m-00003-of-00003.gguf"];
    for part in all {
        assert_eq!(parts(part), all);
    }
    for whole in ["m.gguf", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-1-of-3.gguf", "m-00001-of-00002.bin"] {
        assert_eq!(parts(whole), [whole]);
    }
}

/// Bytes of a mapped file that stand in memory, as the system counts them.
#[cfg(target_os = "linux")]
fn resident(name: &str) -> usize {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = maps.lines().skip_while(|line| !line.ends_with(name));
    let rss = lines.find_map(|line| line.strip_prefix("Rss:")).expect("the file is mapped");
    rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[cfg(target_os = "linux")]
#[test]
fn weights_that_were_taken_over_leave_memory_and_can_be_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, numbers) = (4 << 20, |at: usize| (at * 7 % 251) as u8);
    fs::write(dir.path().join("released.safetensors"), (0..whole).map(numbers).collect::<Vec<u8>>()).unwrap();
    let model = ModelDir::open(dir.path()).unwrap();
    let bytes = model.file("released.safetensors").unwrap();
    let right = |bytes: &[u8]| bytes.iter().enumerate().all(|(at, byte)| *byte == numbers(at));
    assert!(right(bytes));
    assert_eq!(resident("released.safetensors"), whole);
    model.release(&bytes[..whole / 2]);
    assert_eq!(resident("released.safetensors"), whole / 2);
    // Bytes of something else are nobody's business.
    model.release(&[0; 10]);
    model.release(bytes);
    assert_eq!(resident("released.safetensors"), 0);
    assert!(right(bytes));
}
