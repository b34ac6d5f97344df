//! `amem backup`, `amem restore` and `amem verify`: keeping what is remembered. `amem purge`: keeping nothing else.

use std::error::Error;
use std::path::PathBuf;

use amem_core::{KvStore, Ledger, Timestamp};
use amem_store::DataDir;

use super::open::Data;

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
                Err(format!("{dir}: {count} problems. Move ledger.sqlite away, then restore a backup (amem restore)")
                    .into())
            }
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct Purge {
    #[command(flatten)]
    data: Data,
}

impl Purge {
    /// An error if something is still to be removed: because another process writes to the KV, or reads the ledger.
    pub(crate) async fn run(self) -> Result<(), Box<dyn Error>> {
        let DataDir { kv, ledger } = amem_store::open(&self.data.data_dir)?;
        let now = Timestamp::now();
        let pending = ledger.pending_deletions(now).await?;
        kv.delete(&pending.iter().map(|deletion| deletion.chunk).collect::<Vec<_>>()).await?;
        ledger.confirm_deleted(&pending, now).await?;
        kv.purge().await?;
        if !ledger.wipe().await? {
            return Err("somebody reads the ledger as it was before: what was forgotten is wiped when that ends".into());
        }
        println!(
            "{} chunks of texts that no longer count were deleted; nothing of what is gone is left",
            pending.len()
        );
        Ok(())
    }
}
