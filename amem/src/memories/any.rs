//! A memory with KV, or of texts alone.

use super::PrefillAhead;
use amem_core::{
    Added, Change, Memory, Namespace, NewRecord, Recall, Recollection, Record, RecordId, Result, TextMemory,
};

/// The memory that a server has.
///
/// What only reads goes to [`texts`](Self::texts). What changes records has a method here, because a memory with KV deletes
/// the KV of what no longer counts; and recalling has one, because it looks for records whose KV is to be deleted.
#[derive(Clone)]
pub(crate) enum AnyMemory {
    /// A local model's, with the KV of its texts, which may be computed ahead.
    Kv(Memory, Option<PrefillAhead>),
    /// For models that run elsewhere.
    Texts(TextMemory),
}

impl AnyMemory {
    /// The memory of texts: for reading.
    pub(crate) fn texts(&self) -> &TextMemory {
        match self {
            Self::Kv(memory, _) => memory.texts(),
            Self::Texts(memory) => memory,
        }
    }

    /// As [`Memory::remember_all`] and [`TextMemory::remember_all`].
    pub(crate) async fn remember_all(&self, namespace: &Namespace, new: Vec<NewRecord>) -> Result<Vec<Added>> {
        match self {
            Self::Kv(memory, _) => {
                let added = memory.remember_all(namespace, new).await?;
                self.prefill_ahead(namespace);
                Ok(added)
            }
            Self::Texts(memory) => memory.remember_all(namespace, new).await,
        }
    }

    /// As [`Memory::recall`] and [`TextMemory::recall`].
    pub(crate) async fn recall(&self, namespace: &Namespace, recall: Recall) -> Result<Vec<Recollection>> {
        match self {
            Self::Kv(memory, _) => memory.recall(namespace, recall).await,
            Self::Texts(memory) => memory.recall(namespace, recall).await,
        }
    }

    /// As [`Memory::change`] and [`TextMemory::change`].
    pub(crate) async fn change(&self, namespace: &Namespace, id: RecordId, change: Change) -> Result<Record> {
        match self {
            Self::Kv(memory, _) => {
                let record = memory.change(namespace, id, change).await?;
                self.prefill_ahead(namespace);
                Ok(record)
            }
            Self::Texts(memory) => memory.change(namespace, id, change).await,
        }
    }

    /// As [`Memory::forget_many`] and [`TextMemory::forget_many`].
    pub(crate) async fn forget_many(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<Vec<Record>> {
        match self {
            Self::Kv(memory, _) => memory.forget_many(namespace, ids).await,
            Self::Texts(memory) => memory.forget_many(namespace, ids).await,
        }
    }

    /// As [`Memory::forget_key`] and [`TextMemory::forget_key`].
    pub(crate) async fn forget_key(&self, namespace: &Namespace, key: &str) -> Result<Vec<Record>> {
        match self {
            Self::Kv(memory, _) => memory.forget_key(namespace, key).await,
            Self::Texts(memory) => memory.forget_key(namespace, key).await,
        }
    }

    /// As [`Memory::delete_namespace`] and [`TextMemory::delete_namespace`].
    pub(crate) async fn delete_namespace(&self, namespace: &Namespace) -> Result<usize> {
        match self {
            Self::Kv(memory, _) => memory.delete_namespace(namespace).await,
            Self::Texts(memory) => memory.delete_namespace(namespace).await,
        }
    }

    /// To be called after a namespace's records were written to the ledger by another way than these methods: deletes the KV
    /// of what no longer counts, and computes that of what is new, if it is to be computed ahead.
    pub(crate) async fn written(&self, namespace: &Namespace) {
        if let Self::Kv(memory, _) = self {
            memory.delete_outdated().await;
            self.prefill_ahead(namespace);
        }
    }

    fn prefill_ahead(&self, namespace: &Namespace) {
        if let Self::Kv(_, Some(ahead)) = self {
            ahead.add(namespace);
        }
    }

    /// Whether a text is one that can be remembered: a model's context must hold it, where there is a model.
    pub(crate) fn check(&self, new: &NewRecord) -> Result<()> {
        match self {
            Self::Kv(memory, _) => memory.check(new),
            Self::Texts(_) => new.check().map(|_| ()),
        }
    }

    /// The tokens of a text: as the model counts them, or an estimate where there is no model.
    pub(crate) fn tokens(&self, text: &str) -> Result<usize> {
        match self {
            _ if text.is_empty() => Ok(0),
            Self::Kv(memory, _) => Ok(memory.model().chat().encode(text)?.len()),
            Self::Texts(_) => Ok(estimated_tokens(text.len()) as usize),
        }
    }
}

/// Tokens that so many bytes are, about.
pub(crate) fn estimated_tokens(bytes: usize) -> u64 {
    bytes.div_ceil(4) as u64
}
