//! Where a ledger's server is, and how long it may take.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::PostgresError;

/// How a [`PostgresLedger`](super::PostgresLedger) uses its server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostgresOptions {
    /// The schema that holds the ledger's tables, made if it is not there: "amem". One database can hold several ledgers,
    /// each in its own. Small letters, digits and underscores, not a digit first.
    pub schema: String,
    /// Names what this process deletes chunks from; empty for one KV store that all processes share, and nothing else.
    ///
    /// Give each process a name of its own where it has KV on its own disk or in its own RAM, over a store that is shared
    /// too, and the same one at each start: a pending deletion is then named to each of them until each has confirmed it.
    /// A store with a name counts from the first connection on, for it may hold KV that others computed; the one without
    /// from the first [`link`](amem_core::Ledger::link) on.
    pub store: String,
    /// A file with the certificates (PEM) of those who vouch for the server's. Without it, those that the operating system
    /// trusts count.
    pub root_certificates: Option<PathBuf>,
    /// Connections at most, and so calls that run at the same time: 8. Others wait for their turn.
    pub connections: usize,
    /// How long connecting may take: 5 seconds.
    pub connect_timeout: Duration,
    /// How long a change waits for others of the same namespace: 10 seconds. It waits no longer for a
    /// [wipe](super::PostgresLedger::wipe) either, and a wipe waits no longer for other calls.
    pub lock_timeout: Duration,
    /// How long the server may take over one statement: 30 seconds. So long waits, at most, a call that reads while the
    /// tables are [wiped](super::PostgresLedger::wipe).
    pub statement_timeout: Duration,
    /// How long a call may take in all, with waiting for a connection and trying again: 60 seconds.
    pub call_timeout: Duration,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            schema: "amem".to_owned(),
            store: String::new(),
            root_certificates: None,
            connections: 8,
            connect_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            call_timeout: Duration::from_secs(60),
        }
    }
}

impl PostgresOptions {
    fn check(&self) -> Result<(), PostgresError> {
        let bad = |option, value: String, expected| Err(PostgresError::BadOption { option, value, expected });
        let name = self.schema.as_str();
        let is_plain = |byte: u8| byte == b'_' || byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let begins_well = !name.starts_with(|first: char| first.is_ascii_digit()) && !name.starts_with("pg_");
        if !(1..=63).contains(&name.len()) || !begins_well || !name.bytes().all(is_plain) {
            let expected = "1 to 63 small letters, digits and underscores, not a digit or pg_ first";
            return bad("schema", format!("{name:?}"), expected);
        }
        if self.store.len() > 256 {
            return bad("store", format!("a name of {} bytes", self.store.len()), "at most 256 bytes");
        }
        if !(1..=1000).contains(&self.connections) {
            return bad("connections", self.connections.to_string(), "1 to 1000");
        }
        let times = [
            ("connect_timeout", self.connect_timeout),
            ("lock_timeout", self.lock_timeout),
            ("statement_timeout", self.statement_timeout),
            ("call_timeout", self.call_timeout),
        ];
        // PostgreSQL counts milliseconds, and takes none of them for no limit at all.
        let day = Duration::from_secs(86_400);
        match times.into_iter().find(|(_, time)| *time < Duration::from_millis(1) || *time > day) {
            Some((option, time)) => bad(option, format!("{time:?}"), "a millisecond to a day"),
            None => Ok(()),
        }
    }
}

/// All that is needed to connect to a ledger's server.
pub(super) struct Settings {
    pub(super) options: PostgresOptions,
    pub(super) config: Config,
    /// `None` where the address says that there shall be none.
    pub(super) tls: Option<MakeRustlsConnect>,
    /// What to call the ledger in errors: its server and schema, without user and password.
    pub(super) ledger: String,
    /// What a transaction that changes something begins with.
    pub(super) begin_change: String,
}

impl Settings {
    pub(super) fn new(address: &str, options: PostgresOptions) -> Result<Self, PostgresError> {
        options.check()?;
        let mut config = parse(address)?;
        let PostgresOptions { ref schema, .. } = options;
        let hosts: Vec<String> = config.get_hosts().iter().map(host_name).collect();
        let database = config.get_dbname().or(config.get_user()).unwrap_or("?");
        let ledger = format!("the ledger {schema} of database {database} at {}", hosts.join(", "));
        if config.get_application_name().is_none() {
            config.application_name("amem");
        }
        // Of several servers only one takes changes, and only that one has seen all of them: others would still give what
        // was forgotten.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config.connect_timeout(options.connect_timeout);
        let over_network = config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(_)));
        let wanted =
            config.get_ssl_mode() == SslMode::Require || (config.get_ssl_mode() != SslMode::Disable && over_network);
        let tls = wanted.then(|| tls(options.root_certificates.as_deref())).transpose()?;
        // Not for reads: they wait for nobody but who writes a table's file anew, and that may take long.
        let begin_change = format!("BEGIN; SET LOCAL lock_timeout TO {}", options.lock_timeout.as_millis());
        Ok(Self { options, config, tls, ledger, begin_change })
    }
}

fn parse(address: &str) -> Result<Config, PostgresError> {
    let bad = |reason: &str| Err(PostgresError::BadAddress { reason: reason.to_owned() });
    let config: Config = match address.parse::<Config>() {
        Ok(config) => config,
        Err(error) => {
            // What it says of an unknown option quotes the address, in which a password is.
            let told = super::error::told(&error);
            let known = ["sslmode", "port", "connect_timeout", "target_session_attrs"];
            let option = known.iter().find(|option| told.ends_with(&format!("invalid value for option `{option}`")));
            return match option {
                Some(option) => bad(&format!("{option} has a value that is not one")),
                None => bad("it is not written as one; a character like @ or / in a password is written %40 or %2F"),
            };
        }
    };
    if config.get_hosts().is_empty() {
        return bad("it names no host");
    }
    // A password with such a character in it was cut there, and its rest must not be told as the name of a server.
    let names = config.get_hosts().iter().map(host_name).chain(config.get_dbname().map(str::to_owned));
    if names.into_iter().any(|name| name.contains('@')) {
        return bad("there is more than one @ in it; write the one in a password %40");
    }
    Ok(config)
}

fn host_name(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    }
}

/// Verifies the server's certificate by those of `roots`, or else by those that the operating system trusts.
fn tls(roots: Option<&Path>) -> Result<MakeRustlsConnect, PostgresError> {
    let mut store = RootCertStore::empty();
    match roots {
        Some(path) => {
            let bad = |value: String| PostgresError::BadOption {
                option: "root_certificates",
                value,
                expected: "a file with certificates (PEM)",
            };
            let told = |error: &dyn std::fmt::Display| bad(format!("{} ({error})", path.display()));
            let certificates = CertificateDer::pem_file_iter(path).map_err(|error| told(&error))?;
            for certificate in certificates {
                store.add(certificate.map_err(|error| told(&error))?).map_err(|error| told(&error))?;
            }
            if store.is_empty() {
                return Err(bad(format!("{} (no certificate is in it)", path.display())));
            }
        }
        None => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| PostgresError::BadAddress { reason: format!("no TLS: {error}") })?;
    Ok(MakeRustlsConnect::new(builder.with_root_certificates(store).with_no_client_auth()))
}
