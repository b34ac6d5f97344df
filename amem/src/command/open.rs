//! From command-line options to a memory.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amem::keys::KeyFile;
use amem::server::EmbeddingModel;
use amem_core::transformer::{ModelSource, Options};
use amem_core::{Budget, Dtype, Encoding, EngineOptions, KvStore, Ledger, Memory, Namespace, RamStore, Repair, Tier};
use amem_store::{ModelDir, SegmentOptions, SegmentStore};
use clap::{Args, ValueEnum};

use super::device::{Compute, Loaded};
use super::embedder::{self, Embedder};
use super::encryption::{Encryption, Protection};
use super::hub::{self, HubModel, Kind};
use super::residency::{Residency, Tiers};
use super::shared::{Shared, SharedKv};

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

    /// The file of the ledger.
    pub(crate) fn ledger(&self) -> PathBuf {
        self.data_dir.join("ledger.sqlite")
    }
}

/// Where records are kept, and how.
#[derive(Args)]
pub(crate) struct Records {
    #[command(flatten)]
    pub(crate) data: Data,
    #[command(flatten)]
    encryption: Encryption,
}

impl Records {
    /// Opens the ledger.
    pub(crate) async fn open(&self) -> Result<Arc<dyn Ledger>, Box<dyn Error>> {
        Ok(self.encryption.open()?.ledger(amem_store::open_ledger(&self.data.data_dir)?).await?)
    }

    /// Opens the ledger for reading.
    pub(crate) async fn open_read_only(&self) -> Result<Arc<dyn Ledger>, Box<dyn Error>> {
        Ok(self.encryption.open()?.ledger(amem_store::open_ledger_read_only(&self.data.data_dir)?).await?)
    }
}

/// Which model, and where its memory is kept.
#[derive(Args)]
pub(crate) struct Place {
    /// A model: its directory, in Hugging Face's layout or with a GGUF file in it; a GGUF file; or OWNER/NAME or
    /// OWNER/NAME@REVISION on the Hugging Face Hub, from which it is downloaded once. The embedded demo model if left out.
    ///
    /// Of a repository that has no weights in safetensors, the GGUF file with Q4_K_M is taken, or else with Q8_0, or else
    /// the smallest that can be read. OWNER/NAME:Q8_0 takes the one with Q8_0, and OWNER/NAME/FILE.gguf that file.
    #[arg(long, value_name = "DIR|FILE|ID", value_parser = model_name)]
    model: Option<ModelName>,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    embedder: Embedder,
    #[command(flatten)]
    records: Records,
    /// Changes nothing in the data directory, which may be one that cannot be written.
    #[arg(long)]
    read_only: bool,
    /// MiB of RAM for KV that is close at hand.
    #[arg(long, default_value_t = 1024)]
    ram_mib: u64,
    /// MiB of KV on disk; what is worth least makes room. Its files have at most two and a quarter times as much, for what
    /// made room stays in them for a while.
    #[arg(long, default_value_t = 16 * 1024)]
    disk_mib: u64,
    /// The type of numbers of KV in RAM, if they have more bits than that. Fewer bits take less room, and change some
    /// answers: of the demo model's, f16 and bf16 change 2 or 3 in a thousand, int8 3, int4 12.
    #[arg(long, value_enum, value_name = "TYPE")]
    ram_kv: Option<KvType>,
    /// The same for KV on disk. What is read from there into RAM keeps its type.
    #[arg(long, value_enum, value_name = "TYPE")]
    disk_kv: Option<KvType>,
    #[command(flatten)]
    shared_kv: SharedKv,
    #[command(flatten)]
    residency: Residency,
    /// The line that memories stand under.
    #[arg(long, default_value = "Answer from the notes.")]
    system: String,
}

impl Place {
    /// The keys of who may ask a server of it.
    pub(crate) fn keys(&self) -> KeyFile {
        self.records.data.keys()
    }

    /// Bytes of KV on disk.
    fn disk_bytes(&self) -> u64 {
        self.disk_mib.saturating_mul(1 << 20)
    }

    /// How the files of KV are kept. At worst a bit less than half of what is in each is dead, but for the one that is
    /// written to, and there is room for one more that a deletion writes anew.
    fn segments(&self) -> SegmentOptions {
        let options = SegmentOptions::default();
        let segment = (self.disk_bytes() / 8).clamp(64 << 10, options.segment_bytes);
        let most = self.disk_bytes().saturating_add(segment).saturating_mul(2);
        options.segment_bytes(segment).max_bytes(most).read_only(self.read_only)
    }

    /// Whether nothing in the data directory is changed.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether it is the demo model's, because none was named.
    pub(crate) fn is_demo(&self) -> bool {
        self.model.is_none()
    }
}

/// The namespace that an option names.
pub(crate) fn namespace(name: &str) -> Result<Namespace, amem_core::Error> {
    Namespace::new(name)
}

/// A model by its place.
#[derive(Clone, Debug)]
pub(crate) enum ModelName {
    /// A directory, or a GGUF file.
    Dir(PathBuf),
    /// On the Hub.
    Hub(HubModel),
}

/// The model that an option names: a directory or file that is there, or else one on the Hub.
pub(crate) fn model_name(name: &str) -> Result<ModelName, hub::NotAModel> {
    let dir = PathBuf::from(name);
    if dir.exists() { Ok(ModelName::Dir(dir)) } else { name.parse().map(ModelName::Hub) }
}

/// What numbers of KV are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KvType {
    F16,
    Bf16,
    Int8,
    Int4,
}

impl KvType {
    fn encoding(self) -> Encoding {
        match self {
            Self::F16 => Encoding::Plain(Dtype::F16),
            Self::Bf16 => Encoding::Plain(Dtype::Bf16),
            Self::Int8 => Encoding::Int8,
            Self::Int4 => Encoding::Int4,
        }
    }
}

/// A tier that stores KV in this type, if one is given.
fn tier(store: Arc<dyn KvStore>, budget: u64, kv: Option<KvType>) -> Tier {
    let tier = Tier::new(store, budget);
    match kv {
        Some(kv) => tier.encoding(kv.encoding()),
        None => tier,
    }
}

/// How a server goes about a model and its KV.
#[derive(Args, Default)]
pub(crate) struct Tuning {
    /// Tokens of KV in RAM, in place of --ram-mib.
    #[arg(long, value_name = "TOKENS", conflicts_with = "ram_mib")]
    hot_budget: Option<u64>,
    /// The share of cached tokens that are computed again in their new context, 0 to 1; 0.1 if left out. In a session, of
    /// those that it begins with.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    recompute_ratio: Option<f32>,
    /// Where KV is kept on disk, if not in the data directory. That is noted there: its directory `kv` becomes a link to
    /// this one, which every later command finds without this option.
    #[arg(long, value_name = "DIR")]
    disk_dir: Option<PathBuf>,
    /// Requests that wait to be computed at most, 1,024 if left out; one more is told to come back later (429). As many
    /// wait at most for what comes before that: for their sessions, say.
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..))]
    max_waiting: Option<u32>,
    #[command(flatten)]
    shared: Shared,
}

impl Tuning {
    /// Requests that wait at most, if that is given.
    pub(crate) fn max_waiting(&self) -> Option<usize> {
        self.max_waiting.map(|most| most as usize)
    }

    /// The share of cached tokens that are computed again, if one is given.
    pub(crate) fn recompute_ratio(&self) -> Option<f32> {
        self.recompute_ratio
    }
}

/// How much is recalled.
#[derive(Args)]
pub(crate) struct Recalled {
    /// Memories that are recalled for a question; 8 if left out.
    #[arg(long)]
    k: Option<usize>,
    /// The same, under the reference system's name for it; --k goes before it.
    #[arg(long)]
    max_turns: Option<usize>,
}

impl Recalled {
    /// Memories that are recalled for a question.
    pub(crate) fn k(&self) -> usize {
        self.k.or(self.max_turns).unwrap_or(8)
    }
}

/// A share, as an option takes it.
pub(crate) fn share(text: &str) -> Result<f32, String> {
    let share: f32 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("it is not between 0 and 1".to_owned()) }
}

/// Loads a model; the demo model if none is named.
pub(crate) async fn model(name: Option<&ModelName>, compute: &Compute) -> Result<Loaded, Box<dyn Error>> {
    let load = |source: &dyn ModelSource, name: &str| compute.load(source, Options::default().name(name));
    let load_dir = |dir: &Path, name: &str| load(&ModelDir::open(dir)?, name);
    match name {
        None => load(&amem_demo::files(), "demo"),
        Some(ModelName::Dir(dir)) => load_dir(dir, &dir_name(dir)),
        Some(ModelName::Hub(model)) => load_dir(&hub::model(model, Kind::Language).await?, model.name()),
    }
}

/// A memory that is open.
pub(crate) struct Opened {
    pub(crate) memory: Memory,
    /// To be closed at the end.
    pub(crate) tiers: Tiers,
    /// What finds memories by meaning, if anything does.
    pub(crate) embedding_model: Option<EmbeddingModel>,
}

/// Opens a memory: its model, its ledger, its KV on disk and in RAM, and its encoder.
pub(crate) async fn memory(place: &Place, tuning: &Tuning) -> Result<Opened, Box<dyn Error>> {
    let embedding_model = place.embedder.open(|| place.compute.cpu_for_encoder()).await?;
    let (model, gpu) = model(place.model.as_ref(), &place.compute).await?;
    let protection = place.records.encryption.open()?;
    let ledger = ledger(place, tuning, &protection).await?;
    let info = model.info();
    let token_bytes = (info.shape.token_numbers() * info.dtype.size()) as u64;
    let ram = tuning.hot_budget.map_or(place.ram_mib << 20, |tokens| tokens.saturating_mul(token_bytes));
    let ram = tier(Arc::new(RamStore::default()), ram, place.ram_kv);
    let disk = kv(place, tuning)?;
    // One process saves what policies learn: the one that writes the KV.
    let saves = !place.read_only && disk.is_writer();
    let disk = tier(protection.store(disk), place.disk_bytes(), place.disk_kv);
    let shared = place.shared_kv.tier(&place.records.data.data_dir, !place.read_only, &protection)?;
    let tiers = gpu.into_iter().chain([ram, disk]).chain(shared).collect();
    let tiers = place.residency.open(tiers, &place.records.data.data_dir, saves).await?;
    let mut engine = EngineOptions::default();
    if let Some(most) = tuning.max_waiting() {
        engine = engine.max_waiting(most);
    }
    let kv = Arc::clone(&tiers.tiered) as Arc<dyn KvStore>;
    let recaller = embedder::recaller(embedding_model.as_ref());
    let mut memory = Memory::builder(model).kv(kv).ledger(ledger).recaller(recaller).engine(engine);
    if let Some(secret) = protection.id_secret() {
        memory = memory.id_secret(secret);
    }
    if let Some(ratio) = tuning.recompute_ratio {
        memory = memory.repair(repair(ratio));
    }
    let memory = memory.system(&place.system).meter_usage(!place.read_only).build()?;
    Ok(Opened { memory, tiers, embedding_model })
}

/// The default repair, of this share of cached rows.
pub(crate) fn repair(ratio: f32) -> Repair {
    Repair::Weighted { budget: Budget::Ratio(ratio), layers: 1..2 }
}

/// The records, where the options say.
async fn ledger(place: &Place, tuning: &Tuning, protection: &Protection) -> Result<Arc<dyn Ledger>, Box<dyn Error>> {
    let data = &place.records.data.data_dir;
    match tuning.shared.ledger(protection).await? {
        Some(ledger) => Ok(ledger),
        None if place.read_only => Ok(protection.ledger(amem_store::open_ledger_read_only(data)?).await?),
        None => Ok(protection.ledger(amem_store::open_ledger(data)?).await?),
    }
}

/// The KV on disk, where the options say.
fn kv(place: &Place, tuning: &Tuning) -> Result<SegmentStore, amem_store::Error> {
    let (data, options) = (&place.records.data.data_dir, place.segments());
    match &tuning.disk_dir {
        // Nothing is deleted, so nobody need know where from.
        Some(dir) if place.read_only => SegmentStore::open_with(dir, options),
        Some(dir) => {
            amem_store::keep_kv_in(data, dir)?;
            amem_store::open_kv(data, options)
        }
        None => amem_store::open_kv(data, options),
    }
}

/// What a directory, or a GGUF file, is called.
pub(crate) fn dir_name(dir: &Path) -> String {
    let gguf = dir.extension().is_some_and(|extension| extension == "gguf");
    let name = if gguf { dir.file_stem() } else { dir.file_name() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn memories_are_recalled_by_either_name_and_k_goes_before_the_other() {
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            recalled: Recalled,
        }
        for (flags, k) in [
            (&[][..], 8),
            (&["--k", "3"], 3),
            (&["--max-turns", "4"], 4),
            (&["--k", "3", "--max-turns", "4"], 3),
            (&["--max-turns", "4", "--k", "3"], 3),
        ] {
            assert_eq!(Cli::parse_from([&["amem"], flags].concat()).recalled.k(), k, "{flags:?}");
        }
    }
}
