//! What many servers share: their records, and KV.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use amem_core::{KvStore, Ledger, Tier, WriteMode};
use clap::Args;
use secrecy::SecretString;

use super::encryption::Protection;

/// What is shared with servers on other machines. Each has a data directory of its own beside it.
#[derive(Args, Default)]
pub(crate) struct Shared {
    /// Keeps records in this PostgreSQL database rather than in the data directory: postgresql://USER@HOST/DATABASE. Needs
    /// `--server-name`, and a build with the feature `postgres`.
    #[arg(long, value_name = "URL", env = "AMEM_LEDGER", hide_env_values = true, requires = "server_name")]
    ledger: Option<SecretString>,
    /// This server's name among those that share the records: another one for each, and the same at each start. What is
    /// forgotten elsewhere is deleted from this server's KV under it.
    #[arg(long, value_name = "NAME", env = "AMEM_SERVER_NAME", requires = "ledger")]
    server_name: Option<String>,
}

/// KV that is shared with servers on other machines.
#[derive(Args, Default)]
pub(crate) struct SharedKv {
    /// The Redis server that KV is kept on too, behind RAM and disk, for all servers: redis://HOST:6379, or rediss:// for TLS.
    /// That it is one is noted in the data directory, and then it has to be named wherever KV is deleted. Needs a build with
    /// the feature `redis`.
    #[arg(long, value_name = "URL", env = "AMEM_SHARED_KV", hide_env_values = true)]
    shared_kv: Option<SecretString>,
}

impl Shared {
    /// The ledger that is shared, if one is.
    pub(crate) async fn ledger(&self, protection: &Protection) -> Result<Option<Arc<dyn Ledger>>, Box<dyn Error>> {
        let server = self.server_name.as_deref().unwrap_or_default();
        match &self.ledger {
            Some(url) => Ok(Some(postgres(url, server, protection).await?)),
            None => Ok(None),
        }
    }
}

impl SharedKv {
    /// The store that is shared, if one is. An error if KV of the data directory is in another one, from which nobody would
    /// delete what is forgotten. With `notes` it is noted there that KV is in this one.
    pub(crate) fn store(&self, data: &Path, notes: bool) -> Result<Option<impl KvStore + use<>>, Box<dyn Error>> {
        let Some(url) = &self.shared_kv else {
            amem_store::check_shared_kv(data, None)?;
            return Ok(None);
        };
        let (store, place) = redis(url)?;
        match notes {
            true => amem_store::note_shared_kv(data, &place)?,
            false => amem_store::check_shared_kv(data, Some(&place))?,
        }
        Ok(Some(store))
    }

    /// As a tier behind all others.
    pub(crate) fn tier(
        &self,
        data: &Path,
        notes: bool,
        protection: &Protection,
    ) -> Result<Option<Tier>, Box<dyn Error>> {
        let store = self.store(data, notes)?;
        Ok(store.map(|store| Tier::shared(protection.store(store)).write(WriteMode::Back)))
    }
}

#[cfg(feature = "postgres")]
async fn postgres(
    url: &SecretString,
    server: &str,
    protection: &Protection,
) -> Result<Arc<dyn Ledger>, Box<dyn Error>> {
    use secrecy::ExposeSecret;

    let mut options = amem_store::PostgresOptions::default();
    server.clone_into(&mut options.store);
    let ledger = amem_store::PostgresLedger::connect_with(url.expose_secret(), options).await?;
    Ok(protection.ledger(ledger).await?)
}

#[cfg(not(feature = "postgres"))]
async fn postgres(_: &SecretString, _: &str, _: &Protection) -> Result<Arc<dyn Ledger>, Box<dyn Error>> {
    Err("this amem cannot use PostgreSQL: build it with the feature `postgres`".into())
}

/// The store on a Redis server, and what it is called without its password.
#[cfg(feature = "redis")]
fn redis(url: &SecretString) -> Result<(impl KvStore + use<>, String), Box<dyn Error>> {
    use amem_store::remote::{RemoteOptions, RemoteStore};
    use secrecy::ExposeSecret;

    let url = url.expose_secret();
    let store = RemoteStore::redis(url, RemoteOptions::default())?;
    let parsed = reqwest::Url::parse(url)?;
    let database = parsed.path().trim_start_matches('/');
    let place = match parsed.host_str().filter(|host| !host.is_empty()) {
        Some(host) => {
            let database = if database.is_empty() { "0" } else { database };
            format!("redis {host}:{}/{database}", parsed.port().unwrap_or(6379))
        }
        None => format!("redis {}", parsed.path()),
    };
    Ok((store, place))
}

#[cfg(not(feature = "redis"))]
fn redis(_: &SecretString) -> Result<(amem_core::RamStore, String), Box<dyn Error>> {
    Err("this amem cannot use Redis: build it with the feature `redis`".into())
}
