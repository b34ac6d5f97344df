//! GGUF files against what they were made of: models of an independent implementation, and the demo model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::path::Path;

use amem_core::testing::gguf;
use amem_core::transformer::{Gguf, ModelSource, Options, Transformer, WeightType};
use amem_core::{Dtype, Model, Sampling, Token};
use amem_cpu::Cpu;

fn options() -> Options {
    Options::default().kv(Dtype::F32).kv_cache_bytes(64 << 20)
}

/// The logits are those of PyTorch, and the files were written by the `gguf` package of llama.cpp's project.
#[test]
fn logits_of_files_made_elsewhere_equal_those_of_an_independent_implementation() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf");
    let mut count = 0;
    for file in std::fs::read_dir(files).unwrap() {
        let file = file.unwrap().path();
        let case = file.file_stem().unwrap().to_str().unwrap();
        count += 1;
        let (tokens, expected) = common::expected(&common::case(case).join("golden.safetensors"));
        let model = Gguf::open(case, std::fs::read(&file).unwrap()).unwrap();
        let chat = Box::new(common::Numbers);
        let cpu = common::exact(None, 2);
        let model = Transformer::with_chat(&model, cpu, options(), chat, Sampling::default()).unwrap();
        let logits = model.score(&tokens).unwrap();
        assert_eq!(logits.len(), expected.len());
        let error = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{case}: {error:.2e}");
        assert!(error <= 1e-4, "{case}: off by {error}");
    }
    assert_eq!(count, 9);
}

fn load(source: &dyn ModelSource) -> Transformer<Cpu> {
    Transformer::load(source, common::exact(None, 2), options()).unwrap()
}

fn demo(dtype: WeightType) -> Transformer<Cpu> {
    load(&Gguf::open("demo.gguf", gguf(&amem_demo::files(), dtype).bytes()).unwrap())
}

/// A conversation in the demo model's words.
fn prompt(model: &Transformer<Cpu>) -> Vec<Token> {
    let layout = model.chat().layout(amem_demo::SYSTEM).unwrap();
    let text = |text: &str| model.chat().encode(text).unwrap();
    let memories = ["Alice lives in Denver.", "Bob's locker code is 2096.", "Carol works at Lego. Her boss is Dan."];
    let mut tokens = layout.prefix.to_vec();
    for memory in memories {
        tokens.extend(layout.memory(&text(memory)).iter());
    }
    tokens.extend(layout.to_question.iter());
    tokens.extend(text("Where does Alice live?"));
    tokens.extend(layout.to_answer.iter());
    tokens
}

#[test]
fn the_demo_model_in_f16_computes_the_same_bits_as_from_its_directory() {
    let (directory, file) = (load(&amem_demo::files()), demo(WeightType::F16));
    let tokens = prompt(&directory);
    assert_eq!(prompt(&file), tokens);
    assert_eq!(file.chat().stops(), directory.chat().stops());
    let bits = |model: &Transformer<Cpu>| -> Vec<u32> {
        model.score(&tokens).unwrap().into_iter().map(f32::to_bits).collect()
    };
    assert!(bits(&file) == bits(&directory));
}

#[test]
fn quantised_models_stay_close_by_as_much_as_their_bits_allow() {
    let exact = demo(WeightType::F32);
    let tokens = prompt(&exact);
    let expected = exact.score(&tokens).unwrap();
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    for (dtype, least) in [(WeightType::F16, 0.999_999), (WeightType::Q8_0, 0.9995), (WeightType::Q4_0, 0.95)] {
        let logits = demo(dtype).score(&tokens).unwrap();
        let cosine = product(&logits, &expected) / (product(&logits, &logits) * product(&expected, &expected)).sqrt();
        println!("{dtype}: {cosine}");
        assert!(cosine >= least, "{dtype}: {cosine}");
    }
    let q8 = demo(WeightType::Q8_0);
    assert_ne!(q8.info().fingerprint, exact.info().fingerprint);
}
