//! Small programs that show amem at work: the files beside this package's `Cargo.toml`.

// The programs of READMEs must compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[doc = include_str!("../../amem-core/README.md")]
#[doc = include_str!("../../amem-cpu/README.md")]
struct Readmes;
