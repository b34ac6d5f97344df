//! Small programs that show amem at work: the files beside this package's `Cargo.toml`.

// The README's program must compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
