//! The `amem` command.

mod command;

use std::error::Error;
use std::process::ExitCode;

use amem::server::Mode;
use clap::{Parser, Subcommand};
use command::{ask, bench, export, import, keep, key, mcp, proxy, serve};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

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
    /// Measures what questions on one memory cost, with its KV kept and with its text prefilled each time.
    Bench(bench::Args),
    /// Writes what is remembered as lines of JSON, one record a line, to standard output.
    Export(export::Args),
    /// Forgets single memories, even damaged ones, which `amem verify` names; without the server, on the same machine.
    Forget(keep::Forget),
    /// Remembers what an export, or another program, wrote as lines of JSON.
    Import(import::Args),
    /// Removes the bytes of what was forgotten, changed, superseded or let go from the files, now rather than in time.
    Purge(keep::Purge),
    /// Makes, lists and revokes keys that are bound to namespaces.
    Key(key::Args),
    /// Serves a local model with memory over HTTP; each question is answered from memories blended for it.
    KvServe(serve::Args),
    /// Serves memory to clients of the Model Context Protocol, on standard input and output or over HTTP. No model is loaded.
    Mcp(mcp::Args),
    /// Puts memory in front of a model that runs elsewhere: OpenAI's, Anthropic's, or one behind an OpenAI-compatible API.
    Proxy(proxy::Args),
    /// Puts a backup into a data directory that has no ledger.
    Restore(keep::Restore),
    /// Serves a local model with memory over HTTP; each user's working set of memories stays in place.
    Serve(serve::Args),
    /// Checks everything that is remembered for damage.
    Verify(keep::Verify),
    /// Prints the version.
    Version,
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    log_to_stderr();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("amem: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("amem: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Ask(args) => ask::run(args).await,
        Command::Backup(args) => args.run(),
        Command::Bench(args) => args.run().await,
        Command::Export(args) => args.run().await,
        Command::Forget(args) => args.run().await,
        Command::Import(args) => args.run().await,
        Command::Key(args) => args.run(),
        Command::KvServe(args) => serve::run(args, Mode::Blend).await,
        Command::Mcp(args) => mcp::run(args).await,
        Command::Proxy(args) => proxy::run(args).await,
        Command::Purge(args) => args.run().await,
        Command::Restore(args) => args.run(),
        Command::Serve(args) => serve::run(args, Mode::Resident).await,
        Command::Verify(args) => args.run(),
        Command::Version => {
            println!("amem {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    }
}

/// Warnings go to standard error, and more as `AMEM_LOG` says: `AMEM_LOG=info`, or `AMEM_LOG=amem=debug`. With
/// `AMEM_LOG_FORMAT=json` each line is JSON.
fn log_to_stderr() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).with_env_var("AMEM_LOG");
    let mut filter = filter.from_env_lossy();
    // With more than errors this library logs what clients say, and so their texts.
    if let Ok(directive) = "rmcp=error".parse() {
        filter = filter.add_directive(directive);
    }
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var("AMEM_LOG_FORMAT").is_ok_and(|format| format == "json") {
        log.json().init();
    } else {
        log.init();
    }
}
