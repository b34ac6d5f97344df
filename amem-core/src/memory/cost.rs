//! What questions cost: what memories took to put in place, and what the engine did.

use std::sync::Arc;

use super::meter::Meter;
use crate::{Amounts, Completion, Error, Namespace, Result, Usage};

/// What it took to get as far as the context.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) usage: Usage,
    /// What stands in the context was put there for this question, and is in `usage` already.
    pub(crate) opened: bool,
    /// Memories that stand in the context.
    pub(crate) resident: usize,
    /// Memories that were put into it.
    pub(crate) chunks: usize,
    /// Those among them whose KV had to be computed.
    pub(crate) computed: usize,
}

impl Cost {
    /// What the question used in all, of which the engine used this much from the context on.
    pub(crate) fn total(&self, engine: Usage) -> Usage {
        let resident = if self.opened { 0 } else { engine.resident };
        self.usage + Usage { resident, ..engine }
    }

    /// What is counted of it.
    pub(crate) fn amounts(&self) -> Amounts {
        let (chunks, reused_chunks) = (self.chunks as u64, (self.chunks - self.computed) as u64);
        Amounts { chunks, reused_chunks, ..amounts_of(&self.usage) }
    }
}

/// What an answer used, or a part of it.
pub(super) fn amounts_of(usage: &Usage) -> Amounts {
    Amounts {
        reused_tokens: usage.reused() as u64,
        repaired_tokens: usage.repaired as u64,
        prefilled_tokens: usage.prefilled as u64,
        generated_tokens: usage.generated as u64,
        ..Amounts::default()
    }
}

/// What a question used until it was put to the engine, and for whom.
pub(crate) struct Bill {
    meter: Arc<Meter>,
    namespace: Namespace,
    cost: Cost,
}

impl Bill {
    pub(super) fn new(meter: Arc<Meter>, namespace: Namespace, cost: Cost) -> Self {
        Self { meter, namespace, cost }
    }

    /// Counts the question, with what the engine did for it. Of one that failed, only what was computed is counted.
    pub(crate) fn record(self, completion: Result<&Completion, &Error>) {
        let mut cost = self.cost;
        if let Ok(completion) = completion {
            cost.usage = cost.total(completion.usage);
        }
        let amounts = match completion {
            Ok(_) | Err(Error::Cancelled) => Amounts { requests: 1, ..cost.amounts() },
            Err(_) => amounts_of(&cost.usage),
        };
        self.meter.note_and_write(&self.namespace, amounts);
    }
}
