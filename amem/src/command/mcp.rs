//! `amem mcp`: memory for clients of the Model Context Protocol.

use std::error::Error;

use amem::http::{self, KeyHeader};
use amem::mcp::{self, HttpOptions, Mcp};
use amem_core::{Namespace, TextMemory, TextMemoryOptions};
use amem_cpu::Cpu;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args as _, Command, FromArgMatches};

use super::embedder::{self, Embedder};
use super::open::{self, Records};
use super::serve::{self, Door};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Whose memory it is: `default`, or over HTTP that of the request's key, if left out.
    #[arg(long, env = "AMEM_USER", value_name = "NAME", value_parser = open::namespace)]
    user: Option<Namespace>,
    /// Lets the model name another user in each call.
    #[arg(long)]
    allow_user: bool,
    #[command(flatten)]
    http: OverHttp,
    #[command(flatten)]
    door: Door,
    /// The port to listen on; 0 for any that is free.
    #[arg(long, default_value_t = 8200, requires = "http")]
    port: u16,
    #[command(flatten)]
    records: Records,
    #[command(flatten)]
    embedder: Embedder,
}

/// Whether it is HTTP that is spoken. Where it is not, what a command line says of the door is an error, because it would
/// count for nothing. What the environment says there may be for other commands.
struct OverHttp(bool);

impl clap::Args for OverHttp {
    fn augment_args(command: Command) -> Command {
        let help = "Serves many clients over HTTP, at the path /mcp, rather than one on standard input and output";
        command.arg(Arg::new("http").long("http").help(help).action(ArgAction::SetTrue))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OverHttp {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let is_on = matches.get_flag("http");
        let door = Door::augment_args(Command::new("door"));
        let is_given = |arg: &&Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        match door.get_arguments().find(is_given).filter(|_| !is_on) {
            None => Ok(Self(is_on)),
            Some(arg) => {
                let name = arg.get_long().unwrap_or_default();
                let message = format!("--{name} is for HTTP alone: add --http, or leave it out");
                Err(clap::Error::raw(ErrorKind::MissingRequiredArgument, message))
            }
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Serves until the client leaves or, over HTTP, the process is told to stop. Beside the protocol nothing is written to
/// standard output.
pub(crate) async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let ledger = args.records.open().await?;
    let mut options = TextMemoryOptions::default();
    options.meter_usage = true;
    options.recaller = embedder::recaller(args.embedder.open(Cpu::new).await?.as_ref());
    let memory = TextMemory::with_options(ledger, options);
    let mcp = Mcp::new(memory, args.user.clone(), args.allow_user);
    if args.http.0 { over_http(mcp, args).await } else { mcp.stdio().await }
}

async fn over_http(mcp: Mcp, args: Args) -> Result<(), Box<dyn Error>> {
    let (identity, limits) = args.door.open(KeyHeader::Authorization, args.records.data.keys())?;
    args.door.warn(&identity);
    let mut options = HttpOptions::default();
    options.body_bytes = limits.body_bytes;
    let (router, end_streams) = mcp::router(mcp, identity, &options);
    let router = http::layers(router, &limits);
    let (listener, address) = http::bind(args.door.host(), args.port).await?;
    println!("amem mcp listens on http://{address}/mcp");
    let stop = async move {
        serve::stopped().await;
        end_streams();
    };
    Ok(http::serve(listener, router, &limits, stop).await?)
}
