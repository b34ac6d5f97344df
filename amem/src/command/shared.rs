//! What many servers share: their records, and KV.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use amem_core::{KvStore, Ledger, Tier, WriteMode};
#[cfg(any(feature = "redis", feature = "s3"))]
use amem_store::remote::RemoteOptions;
use clap::Args;
use secrecy::{ExposeSecret, SecretString};

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
    /// Where KV is kept too, behind RAM and disk, for all servers: on the Redis server redis://HOST:6379 (rediss:// for TLS,
    /// redis+unix:///SOCKET?db=N for a socket), or in the bucket s3://BUCKET/PREFIX?region=REGION, of another service than AWS with &endpoint=URL. Credentials for S3
    /// are found as AWS's tools find them. The place is noted in the data directory, and then it has to be named wherever KV
    /// is deleted. Needs a build with the feature `redis` or `s3`.
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
        let (store, place) = remote(url)?;
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
    let mut options = amem_store::PostgresOptions::default();
    server.clone_into(&mut options.store);
    let ledger = amem_store::PostgresLedger::connect_with(url.expose_secret(), options).await?;
    Ok(protection.ledger(ledger).await?)
}

#[cfg(not(feature = "postgres"))]
async fn postgres(_: &SecretString, _: &str, _: &Protection) -> Result<Arc<dyn Ledger>, Box<dyn Error>> {
    Err("this amem cannot use PostgreSQL: build it with the feature `postgres`".into())
}

#[cfg(any(feature = "redis", feature = "s3"))]
type Remote = amem_store::remote::RemoteStore;
/// A build that knows no servers.
#[cfg(not(any(feature = "redis", feature = "s3")))]
type Remote = amem_core::RamStore;

/// The store at a URL, and what it is called without its password.
fn remote(url: &SecretString) -> Result<(Remote, String), Box<dyn Error>> {
    let url = url.expose_secret();
    if url.starts_with("s3:") { s3(url) } else { redis(url) }
}

#[cfg(feature = "redis")]
fn redis(url: &str) -> Result<(Remote, String), Box<dyn Error>> {
    let store = Remote::redis(url, RemoteOptions::default())?;
    let parsed = reqwest::Url::parse(url)?;
    let database = parsed.path().trim_start_matches('/');
    let place = match parsed.host_str().filter(|host| !host.is_empty()) {
        Some(host) => {
            let database = if database.is_empty() { "0" } else { database };
            format!("redis {host}:{}/{database}", parsed.port().unwrap_or(6379))
        }
        None => {
            let database = parsed.query_pairs().find(|(name, _)| name == "db").map(|(_, database)| database);
            match database.filter(|database| database != "0") {
                Some(database) => format!("redis {}?db={database}", parsed.path()),
                None => format!("redis {}", parsed.path()),
            }
        }
    };
    Ok((store, place))
}

#[cfg(not(feature = "redis"))]
fn redis(_: &str) -> Result<(Remote, String), Box<dyn Error>> {
    Err("this amem cannot use Redis: build it with the feature `redis`".into())
}

#[cfg(feature = "s3")]
fn s3(url: &str) -> Result<(Remote, String), Box<dyn Error>> {
    let Bucket { name, prefix, region, endpoint } = Bucket::parse(url)?;
    let mut bucket = amem_store::remote::opendal::services::S3::default().bucket(&name);
    if let Some(region) = region {
        bucket = bucket.region(&region);
    }
    let mut place = format!("s3 {name}");
    if let Some(endpoint) = endpoint {
        bucket = bucket.endpoint(&endpoint);
        place = format!("{place} at {endpoint}");
    }
    let mut options = RemoteOptions::default();
    if let Some(prefix) = prefix {
        place = format!("{place} under {prefix}");
        options = options.prefix(prefix);
    }
    Ok((Remote::s3(bucket, options)?, place))
}

#[cfg(not(feature = "s3"))]
fn s3(_: &str) -> Result<(Remote, String), Box<dyn Error>> {
    Err("this amem cannot use S3: build it with the feature `s3`".into())
}

/// A bucket of S3, and which part of it.
#[cfg(feature = "s3")]
#[derive(Debug, PartialEq)]
struct Bucket {
    name: String,
    prefix: Option<String>,
    region: Option<String>,
    endpoint: Option<String>,
}

#[cfg(feature = "s3")]
impl Bucket {
    /// Reads `s3://BUCKET/PREFIX?region=REGION&endpoint=URL`.
    fn parse(url: &str) -> Result<Self, String> {
        const FORM: &str =
            "it must be s3://BUCKET, s3://BUCKET/PREFIX, or either with ?region=REGION and &endpoint=URL behind";
        let parsed =
            reqwest::Url::parse(url).map_err(|error| format!("the URL of the bucket is wrong ({error}): {FORM}"))?;
        let name =
            parsed.host_str().filter(|name| !name.is_empty()).ok_or_else(|| format!("no bucket is named: {FORM}"))?;
        // It would be in the note of where KV is, and is asked for nowhere.
        if !parsed.username().is_empty() || parsed.password().is_some() || parsed.port().is_some() {
            return Err(format!(
                "credentials are taken from the environment, as AWS's tools do, and not from the URL: {FORM}"
            ));
        }
        let prefix = parsed.path().trim_matches('/');
        let prefix = (!prefix.is_empty()).then(|| prefix.to_owned());
        let mut bucket = Self { name: name.to_owned(), prefix, region: None, endpoint: None };
        for (key, value) in parsed.query_pairs() {
            match &*key {
                "region" => bucket.region = Some(value.into_owned()),
                "endpoint" => bucket.endpoint = Some(endpoint(&value)?),
                other => return Err(format!("{other:?} says nothing of a bucket: {FORM}")),
            }
        }
        Ok(bucket)
    }
}

/// Where a service of S3 is. Its name is noted, so it holds no password.
#[cfg(feature = "s3")]
fn endpoint(url: &str) -> Result<String, String> {
    let wrong = || "the endpoint must be https://HOST or http://HOST, with a port or without".to_owned();
    let parsed = reqwest::Url::parse(url).map_err(|_| wrong())?;
    let is_bare = parsed.username().is_empty() && parsed.password().is_none() && parsed.query().is_none();
    if !matches!(parsed.scheme(), "http" | "https") || !is_bare {
        return Err(wrong());
    }
    Ok(parsed.as_str().trim_end_matches('/').to_owned())
}

#[cfg(all(test, feature = "s3"))]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_named_by_a_url_without_credentials() {
        let bucket = |name: &str, prefix: Option<&str>, region: Option<&str>, endpoint: Option<&str>| Bucket {
            name: name.to_owned(),
            prefix: prefix.map(str::to_owned),
            region: region.map(str::to_owned),
            endpoint: endpoint.map(str::to_owned),
        };
        for (url, expected) in [
            ("s3://agents-kv", bucket("agents-kv", None, None, None)),
            (
                "s3://agents-kv/team/a/?region=eu-central-1",
                bucket("agents-kv", Some("team/a"), Some("eu-central-1"), None),
            ),
            (
                "s3://kv?endpoint=http://127.0.0.1:9000/&region=auto",
                bucket("kv", None, Some("auto"), Some("http://127.0.0.1:9000")),
            ),
        ] {
            assert_eq!(Bucket::parse(url), Ok(expected), "{url}");
        }
        for wrong in [
            "s3:",
            "s3:///prefix",
            "s3://key:secret@bucket",
            "s3://bucket:9000",
            "s3://bucket?regoin=eu",
            "s3://bucket?endpoint=127.0.0.1:9000",
            "s3://bucket?endpoint=http://key:secret@host",
        ] {
            let refused = Bucket::parse(wrong).expect_err(wrong);
            assert!(!refused.contains("secret"), "{refused}");
        }
    }
}
