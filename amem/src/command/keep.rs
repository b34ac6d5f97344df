//! `amem backup`, `amem restore` and `amem verify`: keeping what is remembered. `amem forget` and `amem purge`: keeping
//! nothing else.

use std::error::Error;
use std::path::PathBuf;

use amem_core::{Error as CoreError, KvStore, Ledger, Namespace, RecordId, Timestamp};
use amem_store::{Error as StoreError, SegmentOptions, SegmentStore, SqliteLedger};

use super::open::Data;
use super::shared::SharedKv;

#[derive(clap::Args)]
pub(crate) struct Backup {
    /// The backup's file, which must not exist.
    file: PathBuf,
    #[command(flatten)]
    data: Data,
}

impl Backup {
    pub(crate) fn run(self) -> Result<(), Box<dyn Error>> {
        amem_store::backup(&self.data.data_dir, &self.file)?;
        println!("{} is a backup of {}", self.file.display(), self.data.data_dir.display());
        Ok(())
    }
}

#[derive(clap::Args)]
pub(crate) struct Restore {
    /// The backup's file.
    file: PathBuf,
    #[command(flatten)]
    data: Data,
}

impl Restore {
    pub(crate) fn run(self) -> Result<(), Box<dyn Error>> {
        amem_store::restore(&self.file, &self.data.data_dir)?;
        println!("{} is restored to {}", self.file.display(), self.data.data_dir.display());
        Ok(())
    }
}

#[derive(clap::Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    data: Data,
}

impl Verify {
    /// Reports on standard output; an error if there is damage.
    pub(crate) fn run(self) -> Result<(), Box<dyn Error>> {
        let found = amem_store::verify(&self.data.data_dir)?;
        println!("{} records, {} texts, {} links to KV", found.records, found.texts, found.links);
        found.problems.iter().for_each(|problem| println!("{problem}"));
        match found.problems.len() {
            0 => {
                println!("no damage");
                Ok(())
            }
            count => {
                let dir = self.data.data_dir.display();
                if !found.damaged.is_empty() {
                    println!("to lose what is damaged and keep the rest:");
                }
                for (namespace, id) in &found.damaged {
                    let [dir, name] = [dir.to_string(), namespace.to_string()].map(|text| quoted(&text));
                    println!("amem forget --data-dir {dir} -- {name} {id}");
                }
                Err(format!("{dir}: {count} problems. Move ledger.sqlite away, then restore a backup (amem restore)")
                    .into())
            }
        }
    }
}

/// A text as a shell reads it, whoever chose it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[derive(clap::Args)]
pub(crate) struct Forget {
    /// Whose memories, by the name that `amem verify` says. In an encrypted ledger that is not the name that clients use.
    #[arg(value_parser = super::open::namespace)]
    namespace: Namespace,
    /// The memories' ids.
    #[arg(required_unless_present = "key")]
    ids: Vec<RecordId>,
    /// Forget all memories that have this key, in whatever state. An encrypted ledger does not know it: there only ids
    /// name memories.
    #[arg(long, conflicts_with = "ids")]
    key: Option<String>,
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    shared_kv: SharedKv,
}

impl Forget {
    /// The texts are forgotten even where their KV cannot be deleted yet, which is an error then.
    pub(crate) async fn run(self) -> Result<(), Box<dyn Error>> {
        let ledger = SqliteLedger::open_damaged(self.data.ledger())?;
        let (namespace, now) = (&self.namespace, Timestamp::now());
        let count = match &self.key {
            Some(key) => ledger.forget_key(namespace, key, now).await?.len(),
            None => ledger.forget_many(namespace, &self.ids, now).await?.len(),
        };
        if count == 0 {
            return Err(format!("{namespace} has no memory of this key").into());
        }
        let deleted = async {
            let places = Places::open(&self.data, &self.shared_kv)?;
            Ok::<_, Box<dyn Error>>(places.delete_pending(&ledger).await?)
        };
        match deleted.await {
            Ok(Some(_)) => println!("{count} memories are forgotten, and their KV is deleted"),
            Ok(None) => println!(
                "{count} memories are forgotten; the process that writes to the KV deletes theirs with its next call"
            ),
            Err(error) => {
                return Err(format!("{count} memories are forgotten, but their KV is not deleted yet: {error}").into());
            }
        }
        Ok(())
    }
}

/// Every place where KV of a data directory is kept, but for the RAM of servers that run.
struct Places {
    disk: SegmentStore,
    shared: Option<Box<dyn KvStore>>,
}

impl Places {
    /// An error where one of them is not at hand: then no deletion may be confirmed.
    fn open(data: &Data, shared_kv: &SharedKv) -> Result<Self, Box<dyn Error>> {
        let shared = shared_kv.store(&data.data_dir, false)?.map(|store| Box::new(store) as Box<dyn KvStore>);
        Ok(Self { disk: amem_store::open_kv(&data.data_dir, SegmentOptions::default())?, shared })
    }

    /// Deletes the KV of texts that no longer count. Says of how many chunks; `None` if another process writes to the disk,
    /// and deletes it.
    async fn delete_pending(&self, ledger: &impl Ledger) -> amem_core::Result<Option<usize>> {
        let now = Timestamp::now();
        let pending = ledger.pending_deletions(now).await?;
        let chunks = pending.iter().map(|deletion| deletion.chunk).collect::<Vec<_>>();
        match self.disk.delete(&chunks).await {
            Err(CoreError::ReadOnly { .. }) => return Ok(None),
            deleted => deleted?,
        }
        if let Some(shared) = &self.shared {
            shared.delete(&chunks).await?;
        }
        ledger.confirm_deleted(&pending, now).await?;
        Ok(Some(pending.len()))
    }
}

#[derive(clap::Args)]
pub(crate) struct Purge {
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    shared_kv: SharedKv,
}

impl Purge {
    /// An error if something is still to be removed: because another process writes to the KV, or reads the ledger.
    pub(crate) async fn run(self) -> Result<(), Box<dyn Error>> {
        let ledger = amem_store::open_ledger(&self.data.data_dir)?;
        let places = Places::open(&self.data, &self.shared_kv)?;
        let deleted = places.delete_pending(&ledger).await?;
        // Also where another process writes, which it then says.
        places.disk.purge().await.map_err(|error| match error {
            error @ StoreError::ReadOnly { .. } => {
                format!(
                    "{error}; have a server that runs do it, with a key that may do everything: POST /v1/admin/purge"
                )
            }
            error => error.to_string(),
        })?;
        if !ledger.wipe().await? {
            return Err("somebody reads the ledger as it was before: what was forgotten is wiped when that ends".into());
        }
        let deleted = deleted.unwrap_or_default();
        println!("{deleted} chunks of texts that no longer count were deleted; nothing of what is gone is left");
        Ok(())
    }
}
