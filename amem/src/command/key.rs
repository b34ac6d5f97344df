//! `amem key`: keys that are bound to namespaces.

use std::error::Error;

use amem::keys::Grant;
use amem_core::Namespace;
use clap::Subcommand;
use secrecy::ExposeSecret;

use super::open::{self, Data};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    data: Data,
}

#[derive(Subcommand)]
enum Action {
    /// Makes a key and prints it. It is kept as a hash only, so it is never seen again.
    Create {
        /// Whose memory it opens.
        #[arg(long, value_parser = open::namespace, required_unless_present = "admin")]
        namespace: Option<Namespace>,
        /// Lets it do everything, for every namespace.
        #[arg(long, conflicts_with = "namespace")]
        admin: bool,
    },
    /// Lists the keys by their ids, without the keys themselves.
    List,
    /// Makes a key count no more, at once.
    Revoke {
        /// Its id.
        id: String,
    },
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Box<dyn Error>> {
        let file = self.data.keys();
        match self.action {
            Action::Create { namespace, .. } => {
                let (key, secret) = file.create(namespace.map_or(Grant::Admin, Grant::Namespace))?;
                eprintln!("key {}: keep it, it is not shown again", key.id);
                println!("{}", secret.expose_secret());
            }
            Action::List => {
                for key in &*file.keys()? {
                    let what = match &key.grant {
                        Grant::Admin => "admin".to_owned(),
                        Grant::Namespace(namespace) => format!("namespace {namespace}"),
                    };
                    println!("{}  {what}", key.id);
                }
            }
            Action::Revoke { id } => file.revoke(&id)?,
        }
        Ok(())
    }
}
