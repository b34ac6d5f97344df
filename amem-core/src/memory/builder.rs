//! Putting a memory together from its parts.

use std::sync::Arc;

use super::background::Background;
use super::chunks::Chunks;
use super::disk_space::DiskSpace;
use super::linked_store::LinkedStore;
use super::outdated::Outdated;
use super::{Memory, Parts, TextMemory, TextMemoryOptions};
use crate::{Engine, EngineOptions, KvStore, Ledger, Model, RamLedger, RamStore, Recaller, Repair, Result};

/// The parts of a [`Memory`]. Each has a default that needs nothing but RAM: a [`RamStore`] without a limit, a [`RamLedger`],
/// recall by words, the line "Answer from the notes.", and [`Repair::default`].
pub struct MemoryBuilder {
    model: Arc<dyn Model>,
    kv: Arc<dyn KvStore>,
    ledger: Arc<dyn Ledger>,
    texts: TextMemoryOptions,
    system: String,
    repair: Repair,
    engine: EngineOptions,
    id_secret: Option<[u8; 32]>,
}

impl MemoryBuilder {
    pub(super) fn new(model: Arc<dyn Model>) -> Self {
        Self {
            model,
            kv: Arc::new(RamStore::default()),
            ledger: Arc::new(RamLedger::default()),
            texts: TextMemoryOptions::default(),
            system: "Answer from the notes.".to_owned(),
            repair: Repair::default(),
            engine: EngineOptions::default(),
            id_secret: None,
        }
    }

    /// Where KV is kept; a [`Tiered`](crate::Tiered) where it has to be bounded. It is used in the background too, on threads that belong to
    /// no asynchronous runtime.
    #[must_use]
    pub fn kv(mut self, kv: Arc<dyn KvStore>) -> Self {
        self.kv = kv;
        self
    }

    /// Where records are kept. It is used in the background too, on threads that belong to no asynchronous runtime.
    #[must_use]
    pub fn ledger(mut self, ledger: Arc<dyn Ledger>) -> Self {
        self.ledger = ledger;
        self
    }

    /// What finds the records that a question is about. It is used in the background too, on threads that belong to no
    /// asynchronous runtime.
    #[must_use]
    pub fn recaller(mut self, recaller: Arc<dyn Recaller>) -> Self {
        self.texts.recaller = recaller;
        self
    }

    /// The system line that memories stand under. It is part of what their KV is computed behind, so another line
    /// means other KV.
    #[must_use]
    pub fn system(mut self, system: impl Into<String>) -> Self {
        self.system = system.into();
        self
    }

    /// How recalled memories are repaired in their new context.
    #[must_use]
    pub fn repair(mut self, repair: Repair) -> Self {
        self.repair = repair;
        self
    }

    /// How requests are computed together.
    #[must_use]
    pub fn engine(mut self, options: EngineOptions) -> Self {
        self.engine = options;
        self
    }

    /// Records that are held in RAM and in the recaller's index, about (100,000 unless said otherwise). Beyond that, the
    /// namespaces that were asked about longest ago leave, and are read from the ledger when they are asked about again.
    #[must_use]
    pub fn cached_records(mut self, records: usize) -> Self {
        self.texts.cached_records = records;
        self
    }

    /// Whether what is done is counted in the ledger, by namespace ([`Memory::usage`]); it is not unless said otherwise.
    ///
    /// Then an answer is told to be complete, and a call returns, once its usage is durable; if that fails, so does the
    /// call, and the usage is written with the next one. Only on a full disk it waits in RAM, as [`Memory::ask`] says.
    /// Answers that are given up are counted as far as they got, and questions that are given up before their memories' KV
    /// is there are not.
    #[must_use]
    pub fn meter_usage(mut self, metered: bool) -> Self {
        self.texts.meter_usage = metered;
        self
    }

    /// A secret that the ids of chunks are hashed with. Without one, an id is a hash of a text that anybody can compute, and
    /// so lets whoever sees a store's files or a ledger's links check a guess of a text. Another secret means other ids, so
    /// KV that was kept before is computed again.
    #[must_use]
    pub fn id_secret(mut self, secret: [u8; 32]) -> Self {
        self.id_secret = Some(secret);
        self
    }

    /// The memory, with an engine of its own.
    ///
    /// # Errors
    /// [`Error::BadModel`](crate::Error::BadModel) when the model's chat template cannot express a conversation under
    /// this system line; [`Error::BadValue`](crate::Error::BadValue) for options of the engine that are zero;
    /// [`Error::Model`](crate::Error::Model) when its thread cannot be started.
    pub fn build(self) -> Result<Memory> {
        let Self { model, kv, ledger, texts, system, repair, engine, id_secret } = self;
        let layout = model.chat().layout(&system)?;
        let engine = Engine::start(Arc::clone(&model), engine)?;
        let disk_space = Arc::new(DiskSpace::shared_with(Arc::clone(&kv)));
        let outdated: Arc<Outdated> = Arc::default();
        let texts =
            TextMemory::beside_kv(Arc::clone(&ledger), texts, Arc::clone(&disk_space), Some(Arc::clone(&outdated)));
        let store = LinkedStore::new(kv, ledger, disk_space);
        let chunks = Chunks::new(model, engine, store, outdated, layout, id_secret);
        let (background, chunks) = (Background::default(), Arc::new(chunks));
        Ok(Memory { parts: Arc::new(Parts { background, texts, chunks, repair }) })
    }
}
