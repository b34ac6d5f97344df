//! `amem kv-serve` and `amem serve`: a local model with memory, over HTTP.

use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use amem::http::{self, Identity, KeyHeader, Limits};
use amem::keys::KeyFile;
use amem::server::{Mode, Options, Server};
use axum::http::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};

use super::open::{self, Opened, Place, Recalled, Tuning};

/// Where a server listens, and to whom.
#[derive(clap::Args)]
pub(crate) struct Door {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// A key that every request must carry, and that may do everything.
    #[arg(long, env = "AMEM_API_KEY", hide_env_values = true)]
    api_key: Option<SecretString>,
    /// Refuses requests that do not say whose memory they are about.
    #[arg(long)]
    multi_tenant: bool,
    /// Trusts this header to say whose memory a request is about; for a gateway that sets it itself.
    #[arg(long, value_name = "HEADER")]
    trusted_header: Option<HeaderName>,
    /// An origin whose pages may call the server from a browser, beside its own; may be given several times.
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    allow_origin: Vec<HeaderValue>,
    /// A name that the server is called by, beside `localhost`, addresses and that of `--host`; may be given several times.
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// MiB that a request's body may have.
    #[arg(long, default_value_t = 16)]
    max_body_mib: usize,
}

/// An origin as browsers write it.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let origin = HeaderValue::from_str(text.trim_end_matches('/')).map_err(|error| error.to_string())?;
    match text.contains("://") && !text.contains('*') || text == "null" {
        true => Ok(origin),
        false => Err("an origin is a scheme and a host, with a port or without: https://app.example".to_owned()),
    }
}

impl Door {
    /// How callers are told apart, and what a server takes.
    ///
    /// # Errors
    /// When the key that may do everything is empty.
    pub(crate) fn open(&self, header: KeyHeader, keys: KeyFile) -> Result<(Identity, Limits), Box<dyn Error>> {
        if self.api_key.as_ref().is_some_and(|key| key.expose_secret().is_empty()) {
            return Err("--api-key or AMEM_API_KEY is empty: give a key, or leave it out to let anybody in".into());
        }
        let identity = Identity::new(header)
            .admin(self.api_key.clone())
            .keys(keys)
            .gateway(self.trusted_header.clone())
            .multi_tenant(self.multi_tenant);
        let mut limits = Limits::default();
        limits.body_bytes = self.max_body_mib << 20;
        limits.origins.clone_from(&self.allow_origin);
        limits.hosts = self.hosts();
        Ok((identity, limits))
    }

    /// The names that the server may be called by. Whoever listens on all addresses may be called by any name, unless some
    /// are given.
    fn hosts(&self) -> Option<Vec<String>> {
        let is_everywhere = self.host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
        if is_everywhere && self.allow_host.is_empty() {
            return None;
        }
        let own = (!is_everywhere).then(|| self.host.clone());
        Some(self.allow_host.iter().cloned().chain(own).collect())
    }

    /// Says it where anybody who reaches the server may do everything, and others than this machine may.
    pub(crate) fn warn(&self, identity: &Identity) {
        let is_own = self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if !is_own && !identity.is_on() && self.trusted_header.is_none() {
            eprintln!(
                "no key is needed: whoever reaches {} may read and change everybody's memories. Make keys with `amem key \
                 create`, or give --api-key",
                self.host
            );
        }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }
}

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    door: Door,
    /// The port to listen on; 0 for any that is free.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    tuning: Tuning,
    #[command(flatten)]
    recalled: Recalled,
    /// Tokens to answer with at most, if a request does not say how many.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// Tokens that a session holds at most; as many as the model can if left out.
    #[arg(long)]
    budget_tokens: Option<usize>,
    /// Sessions that are held at most; beyond that, and when the KV cache is full, the user who has most loses the one that
    /// was used longest ago.
    #[arg(long, value_name = "SESSIONS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_sessions: u32,
    /// Seconds after which a session ends that nobody uses.
    #[arg(long, value_name = "SECONDS", default_value_t = 30 * 60)]
    session_idle: u64,
    /// Computes the KV of a user's memories that is not held in the background, whenever something is remembered for them,
    /// rather than with the first question that recalls it. Give it where all KV has room in the tiers.
    #[arg(long, conflicts_with = "read_only")]
    prefill_ahead: bool,
    /// US dollars that a million tokens of input cost elsewhere: for estimates of what was saved.
    #[arg(long, default_value_t = 0.20)]
    usd_per_mtok: f64,
    /// Seconds that the server goes on for when it is told to stop, saying that it is not ready, so that a load balancer
    /// can send requests elsewhere.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    drain: u64,
    /// Who may read /metrics: whoever has a key that may do everything, or everybody.
    #[arg(long, value_enum, default_value_t = MetricsAuth::Key)]
    metrics_auth: MetricsAuth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum MetricsAuth {
    Key,
    Open,
}

/// Serves until the process is told to stop.
pub(crate) async fn run(args: Args, mode: Mode) -> Result<(), Box<dyn Error>> {
    let (identity, limits) = args.door.open(KeyHeader::Authorization, args.place.keys())?;
    args.door.warn(&identity);
    if args.place.is_demo() {
        eprintln!("no --model is given: the demo model answers, which knows no more than short notes about people");
    }
    let (listener, address) = http::bind(args.door.host(), args.port).await?;
    let starting = http::layers(Server::starting(mode), &limits);
    let (listener, opened) = http::meanwhile(listener, starting, open::memory(&args.place, &args.tuning)).await?;
    let Opened { memory, tiers, embedding_model } = opened?;
    let mut options = Options::default();
    options.mode = mode;
    options.embedding_model = embedding_model;
    (options.k, options.max_tokens, options.budget_tokens) = (args.recalled.k(), args.max_tokens, args.budget_tokens);
    options.recompute_ratio = args.tuning.recompute_ratio();
    options.max_sessions = args.max_sessions as usize;
    options.session_idle = Duration::from_secs(args.session_idle);
    options.max_waiting = args.tuning.max_waiting().unwrap_or(options.max_waiting);
    (options.prefill_ahead, options.read_only) = (args.prefill_ahead, args.place.is_read_only());
    options.usd_per_mtok = args.usd_per_mtok;
    options.open_metrics = args.metrics_auth == MetricsAuth::Open;
    let server = Server::new(memory, identity, options);
    let router = http::layers(server.clone().router(), &limits);
    println!("amem {} listens on http://{address}", mode.name());
    let drain = Duration::from_secs(args.drain);
    let stop = async move {
        stopped().await;
        server.stopping();
        tokio::time::sleep(drain).await;
    };
    http::serve(listener, router, &limits, stop).await?;
    Ok(tiers.close().await?)
}

/// Resolves when the process is told to stop.
pub(crate) async fn stopped() {
    let interrupted = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        let terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        if let Ok(mut terminated) = terminated {
            tokio::select! { _ = interrupted => {}, _ = terminated.recv() => {} }
            return;
        }
    }
    // Without a handler the process ends at once, as it would have.
    let _ = interrupted.await;
}
