//! From command-line options to a memory.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amem::keys::KeyFile;
use amem_core::transformer::{ModelSource, Options, Transformer};
use amem_core::{Memory, Model, Namespace, RamStore, Tier, Tiered};
use amem_cpu::Cpu;
use amem_store::{DataDir, ModelDir};
use clap::Args;

/// Where memory is kept.
#[derive(Args)]
pub(crate) struct Data {
    /// Where memories and their KV are kept.
    #[arg(long, env = "AMEM_DATA_DIR", default_value = "amem-data")]
    pub(crate) data_dir: PathBuf,
}

impl Data {
    /// The keys of who may ask a server of it.
    pub(crate) fn keys(&self) -> KeyFile {
        KeyFile::at(self.data_dir.join("keys.json"))
    }
}

/// Which model, and where its memory is kept.
#[derive(Args)]
pub(crate) struct Place {
    /// A Hugging Face model directory; the embedded demo model if left out.
    #[arg(long)]
    model: Option<PathBuf>,
    #[command(flatten)]
    data: Data,
    /// Changes nothing in the data directory, which may be one that cannot be written.
    #[arg(long)]
    read_only: bool,
    /// MiB of RAM for KV that is close at hand.
    #[arg(long, default_value_t = 1024)]
    ram_mib: u64,
    /// MiB of disk for KV; what is worth least makes room.
    #[arg(long, default_value_t = 16 * 1024)]
    disk_mib: u64,
    /// The line that memories stand under.
    #[arg(long, default_value = "Answer from the notes.")]
    system: String,
}

impl Place {
    /// The keys of who may ask a server of it.
    pub(crate) fn keys(&self) -> KeyFile {
        self.data.keys()
    }
}

/// The namespace that an option names.
pub(crate) fn namespace(name: &str) -> Result<Namespace, amem_core::Error> {
    Namespace::new(name)
}

/// Loads the model of a directory, or the demo model.
pub(crate) fn model(dir: Option<&Path>) -> Result<Arc<dyn Model>, Box<dyn Error>> {
    Ok(Arc::new(match dir {
        None => load(&amem_demo::files(), "demo")?,
        Some(dir) => load(&ModelDir::open(dir)?, &name(dir))?,
    }))
}

/// Opens a memory: its model, its ledger, its KV on disk and in RAM.
pub(crate) async fn memory(place: &Place) -> Result<Memory, Box<dyn Error>> {
    let model = model(place.model.as_deref())?;
    let open = if place.read_only { amem_store::open_read_only } else { amem_store::open };
    let DataDir { kv, ledger } = open(&place.data.data_dir)?;
    let ram = Tier::new(Arc::new(RamStore::default()), place.ram_mib << 20);
    let disk = Tier::new(Arc::new(kv), place.disk_mib << 20);
    let tiers = Tiered::open(vec![ram, disk]).await?;
    let memory = Memory::builder(model).kv(Arc::new(tiers)).ledger(Arc::new(ledger));
    Ok(memory.system(&place.system).meter_usage(!place.read_only).build()?)
}

fn load(source: &dyn ModelSource, name: &str) -> Result<Transformer<Cpu>, Box<dyn Error>> {
    let mut options = Options::default();
    options.name = name.to_owned();
    Ok(Transformer::load(source, Cpu::new()?, options)?)
}

fn name(dir: &Path) -> String {
    dir.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}
