//! `amem export`: what is remembered, as lines of JSON.

use std::error::Error;
use std::io::{BufWriter, IsTerminal, stderr, stdout};

use amem_core::{Ledger, Namespace, Timestamp};
use amem_store::Export;
use indicatif::{ProgressBar, ProgressStyle};

use super::open::Records;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Whose memories.
    #[arg(required_unless_present = "all", value_parser = super::open::namespace)]
    namespace: Option<Namespace>,
    /// The memories of all namespaces.
    #[arg(long, conflicts_with = "namespace")]
    all: bool,
    /// Superseded, expired and forgotten memories as well, with their states; forgotten ones have no text.
    #[arg(long)]
    all_states: bool,
    #[command(flatten)]
    records: Records,
}

impl Args {
    pub(crate) async fn run(self) -> Result<(), Box<dyn Error>> {
        let ledger = self.records.open_read_only().await?;
        let mut what = self.namespace.map_or_else(Export::all, |namespace| Export::all().namespace(namespace));
        if self.all_states {
            what = what.all_states();
        }
        let bar = if stderr().is_terminal() { bar(ledger.as_ref(), &what).await? } else { ProgressBar::hidden() };
        amem_store::export(ledger.as_ref(), &what, BufWriter::new(stdout().lock()), |written| {
            bar.set_position(written)
        })
        .await?;
        bar.finish_and_clear();
        Ok(())
    }
}

async fn bar(ledger: &dyn Ledger, what: &Export) -> Result<ProgressBar, Box<dyn Error>> {
    let namespaces = match &what.namespace {
        Some(namespace) => vec![namespace.clone()],
        None => ledger.namespaces().await?,
    };
    let (mut records, now) = (0, Timestamp::now());
    for namespace in namespaces {
        let stats = ledger.stats(&namespace, now).await?;
        records += stats.active;
        if what.all_states {
            records += stats.superseded + stats.expired + stats.forgotten;
        }
    }
    let style = ProgressStyle::with_template("{wide_bar} {human_pos} of {human_len} records, {eta} left")?;
    Ok(ProgressBar::new(records as u64).with_style(style))
}
