//! The suites of amem-core that every backend and every model must pass.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use amem_core::testing::{self, Profile};
use amem_core::{Dtype, Error};
use amem_cpu::{Arithmetic, Cpu, CpuOptions, Instructions, WeightFormat};

fn available() -> impl Iterator<Item = Instructions> {
    Instructions::ALL.into_iter().filter(|set| set.is_available())
}

#[test]
fn in_exact_arithmetic_it_is_a_backend_with_all_instructions() {
    for instructions in available() {
        testing::backend(&Profile::default(), || common::exact(Some(instructions), 2));
    }
}

#[test]
fn in_fast_arithmetic_it_is_a_backend_with_all_instructions() {
    for instructions in available() {
        let make = || Cpu::open(CpuOptions::default().threads(2).instructions(instructions)).unwrap();
        let mut profile = Profile::default();
        profile.weights = vec![Dtype::F32, Dtype::F16];
        testing::backend(&profile, make);
        // Activations are rounded to the eight bits of bf16, each by up to 1/512 of itself.
        profile.weights = vec![Dtype::Bf16];
        profile.tolerance = 2e-2;
        testing::backend(&profile, make);
    }
}

#[test]
fn instructions_that_the_machine_lacks_are_refused() {
    for instructions in Instructions::ALL {
        let opened = Cpu::open(CpuOptions::default().threads(1).instructions(instructions));
        match instructions.is_available() {
            true => assert_eq!(opened.unwrap().instructions(), instructions),
            false => assert!(matches!(opened, Err(Error::BadValue { .. }))),
        }
    }
    let exact = CpuOptions::default().arithmetic(Arithmetic::Exact);
    for weights in [WeightFormat::Int8, WeightFormat::Int4] {
        assert!(matches!(Cpu::open(exact.clone().weights(weights)), Err(Error::BadValue { .. })));
    }
}

#[test]
fn the_reference_is_a_backend() {
    testing::backend(&Profile::default(), testing::Reference::default);
}

#[test]
fn every_family_is_a_model() {
    let cases = [
        "llama3",
        "mistral-sliding",
        "qwen2-tied-bf16",
        "qwen2-sliding",
        "qwen3",
        "gemma2",
        "gemma3",
        "phi3",
        "phi3-longrope",
        "smollm3",
        "olmo2",
        "granite",
        "mixtral",
        "qwen3-moe",
    ];
    for case in cases {
        testing::model(|| common::golden(case, Cpu::with_threads(1).unwrap(), Dtype::F16));
    }
    testing::model(|| common::demo(Cpu::with_threads(2).unwrap(), Dtype::F16));
}

#[test]
fn on_the_reference_it_is_a_model_too() {
    for case in ["qwen3", "gemma2", "mixtral"] {
        testing::model(|| common::golden(case, testing::Reference, Dtype::Bf16));
    }
}
