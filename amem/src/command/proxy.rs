//! `amem proxy`: memory in front of a model that runs elsewhere.

use std::error::Error;
use std::path::PathBuf;

use amem::http::{self, KeyHeader};
use amem::proxy::{Config, Kind, Options, Proxy, Secret, UpstreamConfig};
use amem_core::{TextMemory, TextMemoryOptions};
use amem_cpu::Cpu;

use super::embedder::{self, Embedder};
use super::open::Records;
use super::serve::{Door, stopped};

/// The name of the upstream that `--upstream` gives.
const UPSTREAM: &str = "upstream";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    door: Door,
    /// The port to listen on; 0 for any that is free.
    #[arg(long, default_value_t = 8100)]
    port: u16,
    #[command(flatten)]
    records: Records,
    #[command(flatten)]
    embedder: Embedder,
    /// A TOML file with upstreams, and with prices and minimum cacheable lengths of models.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The upstream of models whose names say nothing of theirs: anthropic, openai, or one of the configuration. Without it and
    /// --upstream, such models are refused.
    #[arg(long, value_name = "NAME", conflicts_with = "upstream")]
    default_provider: Option<String>,
    /// Where all requests go that name no other upstream.
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// What runs there: openai-compatible, openai, anthropic, vllm, sglang, ollama or llama-cpp. If it is not said, openai
    /// at api.openai.com and openai-compatible elsewhere.
    #[arg(long, value_name = "KIND", requires = "upstream")]
    upstream_kind: Option<Kind>,
    /// The environment variable that holds this server's own key for it, for callers that have one of this server's keys.
    #[arg(long, value_name = "NAME", requires = "upstream")]
    upstream_key_env: Option<String>,
    /// The model that is asked if a request names none, or `amem`.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Memories that are recalled for a question.
    #[arg(long, default_value_t = 8)]
    k: usize,
    /// Memories that a conversation's snapshot holds at most.
    #[arg(long, default_value_t = 40)]
    max_turns: usize,
    /// Tokens that it holds at most, about.
    #[arg(long, default_value_t = 6000)]
    budget_tokens: usize,
}

impl Args {
    fn config(&self) -> Result<Config, Box<dyn Error>> {
        let text = match &self.config {
            Some(path) => {
                std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?
            }
            None => String::new(),
        };
        let mut config = Config::parse(&text).map_err(|error| format!("the configuration: {error}"))?;
        if let Some(url) = &self.upstream {
            let is_openais = url.strip_prefix("https://").is_some_and(|rest| rest.starts_with("api.openai.com"));
            let kind = if is_openais { Kind::Openai } else { Kind::OpenaiCompatible };
            let mut upstream = UpstreamConfig::new(self.upstream_kind.unwrap_or(kind), url);
            upstream.key_env.clone_from(&self.upstream_key_env);
            config = config.only_upstream(UPSTREAM, upstream);
        }
        config.default_upstream = self.default_provider.clone().or(config.default_upstream);
        config.default_model = self.model.clone().or(config.default_model);
        Ok(config)
    }
}

/// Serves until the process is told to stop.
pub(crate) async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let (identity, limits) = args.door.open(KeyHeader::AmemKey, args.records.data.keys())?;
    args.door.warn(&identity);
    let config = args.config()?;
    let mut texts = TextMemoryOptions::default();
    texts.meter_usage = true;
    texts.recaller = embedder::recaller(args.embedder.open(Cpu::new).await?.as_ref());
    let ledger = args.records.open().await?;
    let memory = TextMemory::with_options(ledger, texts);
    let path = args.records.data.data_dir.join("proxy-secret");
    let secret = Secret::in_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut options = Options::default();
    (options.k, options.max_turns, options.budget_tokens) = (args.k, args.max_turns, args.budget_tokens);
    let proxy = Proxy::new(memory, identity, config, secret, options, |name| std::env::var(name).ok())?;
    let router = http::layers(proxy.router(), &limits);
    let (listener, address) = http::bind(args.door.host(), args.port).await?;
    println!("amem proxy listens on http://{address}");
    Ok(http::serve(listener, router, &limits, stopped()).await?)
}
