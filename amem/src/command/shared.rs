//! What many servers share: their records, and KV.

use std::error::Error;
use std::sync::Arc;

use amem_core::{Ledger, Tier};
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
    /// Keeps KV on this Redis server too, behind RAM and disk, for all servers: redis://HOST:6379, or rediss:// for TLS. Needs
    /// a build with the feature `redis`.
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

    /// The tier of KV that is shared, if one is.
    pub(crate) fn tier(&self, protection: &Protection) -> Result<Option<Tier>, Box<dyn Error>> {
        self.shared_kv.as_ref().map(|url| redis(url, protection)).transpose()
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

#[cfg(feature = "redis")]
fn redis(url: &SecretString, protection: &Protection) -> Result<Tier, Box<dyn Error>> {
    use amem_store::remote::{RemoteOptions, RemoteStore};
    use secrecy::ExposeSecret;

    let store = RemoteStore::redis(url.expose_secret(), RemoteOptions::default())?;
    Ok(Tier::shared(protection.store(store)).write(amem_core::WriteMode::Back))
}

#[cfg(not(feature = "redis"))]
fn redis(_: &SecretString, _: &Protection) -> Result<Tier, Box<dyn Error>> {
    Err("this amem cannot use Redis: build it with the feature `redis`".into())
}
