//! Which KV stays in a tier that is full, and what was learned about that.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use amem_core::residency::{FairShare, Gdsf, Lfu, Lru, S3Fifo, SecondUse, Value};
use amem_core::{ResidencyPolicy, Tier, Tiered};
use amem_store::{ResidencyFile, ResidencySaver, SaveTimes};
use clap::{Args, ValueEnum};

/// Which KV stays.
#[derive(Args)]
pub(crate) struct Residency {
    /// What makes room in a tier that is full: what is worth least by the work that it saves (value), what was not used for
    /// longest (lru), what was used least often (lfu), or what these two make of that: gdsf, s3-fifo.
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = Policy::Value)]
    residency: Policy,
    /// Gives each namespace an equal share of a tier that is full: KV makes room only where its namespace has more.
    #[arg(long)]
    fair_share: bool,
    /// Writes KV to the disk, and to what is slower, only when it is used a second time: where much is remembered that is
    /// asked about once or never.
    #[arg(long)]
    second_use: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Policy {
    Value,
    Lru,
    Lfu,
    Gdsf,
    S3Fifo,
}

impl Policy {
    fn make(self) -> Box<dyn ResidencyPolicy> {
        match self {
            Self::Value => Box::<Value>::default(),
            Self::Lru => Box::<Lru>::default(),
            Self::Lfu => Box::<Lfu>::default(),
            Self::Gdsf => Box::<Gdsf>::default(),
            Self::S3Fifo => Box::<S3Fifo>::default(),
        }
    }
}

impl Residency {
    /// Stacks tiers, fastest first, under the policy. What it had learned before is in the data directory `data`. If it
    /// `saves`, what it learns is written there now and then and by [`Tiers::close`].
    pub(crate) async fn open(&self, tiers: Vec<Tier>, data: &Path, saves: bool) -> Result<Tiers, Box<dyn Error>> {
        let file = ResidencyFile::new(data.join("residency"));
        let mut learned = file.load().into_iter();
        let chosen = self.residency;
        let with_policy = |(at, tier): (usize, Tier)| {
            let second_use = self.second_use && at > 0;
            let make = move || -> Box<dyn ResidencyPolicy> {
                if second_use { Box::new(SecondUse::new(chosen.make())) } else { chosen.make() }
            };
            let policy = if self.fair_share { Box::new(FairShare::new(make)) } else { make() };
            tier.policy(policy).residency(learned.next().unwrap_or_default())
        };
        let tiered = Arc::new(Tiered::open(tiers.into_iter().enumerate().map(with_policy).collect()).await?);
        let saver =
            saves.then(|| ResidencySaver::start(file, Arc::clone(&tiered), SaveTimes::default())).transpose()?;
        Ok(Tiers { tiered, saver })
    }
}

/// Tiers whose policies remember what they learned.
pub(crate) struct Tiers {
    pub(crate) tiered: Arc<Tiered>,
    saver: Option<ResidencySaver>,
}

impl Tiers {
    /// Waits for what is still to be written, and saves what the policies have learned.
    pub(crate) async fn close(self) -> amem_core::Result<()> {
        use amem_core::KvStore;

        self.tiered.sync().await?;
        if let Some(Err(error)) = self.saver.map(ResidencySaver::close) {
            // The policies learn it again.
            tracing::warn!("what was learned of the KV's use is lost: {error}");
        }
        Ok(())
    }
}
