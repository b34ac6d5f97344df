//! The `amem` command.

mod ask;
mod open;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Agent memory that lives in a model's KV cache.
#[derive(Parser)]
#[command(name = "amem", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Remembers texts and answers a question from what is remembered.
    Ask(ask::Args),
    /// Prints the version.
    Version,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Ask(args) => futures_lite::future::block_on(ask::run(args)),
        Command::Version => {
            println!("amem {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("amem: {error}");
            ExitCode::FAILURE
        }
    }
}
