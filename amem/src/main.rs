//! The `amem` command.

mod ask;
mod export;
mod import;
mod keep;
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
    /// Writes a backup of what is remembered to a new file, while the data directory may be in use.
    Backup(keep::Backup),
    /// Writes what is remembered as lines of JSON, one record a line, to standard output.
    Export(export::Args),
    /// Remembers what an export, or another program, wrote as lines of JSON.
    Import(import::Args),
    /// Removes the bytes of what was forgotten, changed, superseded or let go from the files, now rather than in time.
    Purge(keep::Purge),
    /// Puts a backup into a data directory that has no ledger.
    Restore(keep::Restore),
    /// Checks everything that is remembered for damage.
    Verify(keep::Verify),
    /// Prints the version.
    Version,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Ask(args) => futures_lite::future::block_on(ask::run(args)),
        Command::Backup(args) => args.run(),
        Command::Export(args) => futures_lite::future::block_on(args.run()),
        Command::Import(args) => futures_lite::future::block_on(args.run()),
        Command::Purge(args) => futures_lite::future::block_on(args.run()),
        Command::Restore(args) => args.run(),
        Command::Verify(args) => args.run(),
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
