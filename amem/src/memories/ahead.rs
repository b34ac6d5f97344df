//! KV that is computed before anybody asks.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

use amem_core::{Memory, Namespace};

/// Computes the KV of what was remembered in the background, namespace by namespace, beside whatever else the engine
/// computes. Cheap to clone; clones are the same.
#[derive(Clone)]
pub(crate) struct PrefillAhead {
    memory: Memory,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    namespaces: BTreeSet<Namespace>,
    /// The namespace whose turn it was last. The next by name comes after it, so that each has its turn.
    last: Option<Namespace>,
    /// Whether a task is at it.
    runs: bool,
}

/// Lets another task begin if the one that runs panics.
struct AgainAfterPanic(Arc<Mutex<Waiting>>);

impl Drop for AgainAfterPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).runs = false;
        }
    }
}

impl PrefillAhead {
    /// For this memory. Nothing waits yet.
    pub(crate) fn new(memory: Memory) -> Self {
        Self { memory, waiting: Arc::default() }
    }

    /// Has the KV of a namespace's memories computed, as far as it is not held. In a Tokio runtime.
    pub(crate) fn add(&self, namespace: &Namespace) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.namespaces.insert(namespace.clone());
        if !std::mem::replace(&mut waiting.runs, true) {
            tokio::spawn(self.clone().run());
        }
    }

    async fn run(self) {
        let _again = AgainAfterPanic(Arc::clone(&self.waiting));
        while let Some(namespace) = self.next() {
            match self.memory.prefill(&namespace, |_, _| {}).await {
                Ok(usage) => tracing::debug!(tokens = usage.prefilled, "memories were prefilled ahead"),
                // Questions compute it, then.
                Err(error) => tracing::warn!(%error, "memories could not be prefilled ahead"),
            }
        }
    }

    fn next(&self) -> Option<Namespace> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Waiting { namespaces, last, runs } = &mut *waiting;
        let behind = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let next = namespaces.range((behind, Bound::Unbounded)).next().or_else(|| namespaces.first()).cloned();
        *runs = next.is_some();
        last.clone_from(&next);
        namespaces.take(next.as_ref()?)
    }
}
