//! The suites of amem-core that every backend and every model must pass.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use amem_core::Dtype;
use amem_core::testing::{self, Profile};
use amem_cpu::Cpu;

#[test]
fn with_the_best_instructions_it_is_a_backend() {
    testing::backend(&Profile::default(), || Cpu::with_threads(2).unwrap());
}

#[test]
fn with_portable_instructions_it_is_a_backend() {
    testing::backend(&Profile::default(), || Cpu::portable(1).unwrap());
}

#[test]
fn the_reference_is_a_backend() {
    testing::backend(&Profile::default(), testing::Reference::default);
}

#[test]
fn every_family_is_a_model() {
    for case in ["llama3", "mistral-sliding", "qwen2-tied-bf16", "qwen3"] {
        testing::model(|| common::golden(case, Cpu::with_threads(1).unwrap(), Dtype::F16));
    }
    testing::model(|| common::demo(Cpu::with_threads(2).unwrap(), Dtype::F16));
}

#[test]
fn on_the_reference_it_is_a_model_too() {
    testing::model(|| common::golden("qwen3", testing::Reference, Dtype::Bf16));
}
