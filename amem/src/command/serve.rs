//! `amem kv-serve` and `amem serve`: a local model with memory, over HTTP.

use std::error::Error;

use amem::http::{self, Identity, KeyHeader, Limits};
use amem::keys::KeyFile;
use amem::server::{Mode, Options, Server};
use axum::http::{HeaderName, HeaderValue};
use secrecy::SecretString;

use super::open::{self, Place};

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
    /// An origin whose pages may call the server from a browser; may be given several times.
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<HeaderValue>,
    /// MiB that a request's body may have.
    #[arg(long, default_value_t = 16)]
    max_body_mib: usize,
}

impl Door {
    /// How callers are told apart, and what a server takes.
    pub(crate) fn open(&self, header: KeyHeader, keys: KeyFile) -> (Identity, Limits) {
        let identity = Identity::new(header)
            .admin(self.api_key.clone())
            .keys(keys)
            .gateway(self.trusted_header.clone())
            .multi_tenant(self.multi_tenant);
        let mut limits = Limits::default();
        limits.body_bytes = self.max_body_mib << 20;
        limits.origins.clone_from(&self.allow_origin);
        (identity, limits)
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
    /// Memories that are recalled for a question.
    #[arg(long, default_value_t = 8)]
    k: usize,
    /// Tokens to answer with at most, if a request does not say how many.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// Tokens that a session holds at most; as many as the model can if left out.
    #[arg(long)]
    budget_tokens: Option<usize>,
    /// US dollars that a million tokens of input cost elsewhere: for estimates of what was saved.
    #[arg(long, default_value_t = 0.20)]
    usd_per_mtok: f64,
}

/// Serves until the process is told to stop.
pub(crate) async fn run(args: Args, mode: Mode) -> Result<(), Box<dyn Error>> {
    let (identity, limits) = args.door.open(KeyHeader::Authorization, args.place.keys());
    let memory = open::memory(&args.place).await?;
    let kv = memory.kv().clone();
    let mut options = Options::default();
    options.mode = mode;
    (options.k, options.max_tokens, options.budget_tokens) = (args.k, args.max_tokens, args.budget_tokens);
    options.usd_per_mtok = args.usd_per_mtok;
    let router = http::layers(Server::new(memory, identity, options).router(), &limits);
    let (listener, address) = http::bind(args.door.host(), args.port).await?;
    println!("amem {} listens on http://{address}", mode.name());
    http::serve(listener, router, &limits, stopped()).await?;
    Ok(kv.sync().await?)
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
