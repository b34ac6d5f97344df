//! Small programs that show amem at work. See the files beside `Cargo.toml`.
