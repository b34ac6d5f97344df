//! Several ways to recall, as one: reciprocal rank fusion (Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion
//! Outperforms Condorcet and Individual Rank Learning Methods", 2009).

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Recalled, Recaller, best};
use crate::{Namespace, Record, RecordId, Result};

/// How little the first ranks differ; the value of the paper.
const FLATNESS: f32 = 60.0;
/// Answers taken from each recaller, for each that is wanted.
const DEPTH: usize = 3;

/// Asks several recallers and adds up `1 / (60 + rank)` over their answers. Scores need not be comparable.
pub struct Hybrid {
    recallers: Vec<Arc<dyn Recaller>>,
}

impl Hybrid {
    /// All of these as one.
    pub fn new(recallers: Vec<Arc<dyn Recaller>>) -> Self {
        Self { recallers }
    }
}

#[async_trait]
impl Recaller for Hybrid {
    /// Indexes in all recallers, even if one fails; the first failure is returned.
    async fn index(&self, records: &[Record]) -> Result<()> {
        let mut result = Ok(());
        for recaller in &self.recallers {
            result = result.and(recaller.index(records).await);
        }
        result
    }

    /// Removes from all recallers, even if one fails; the first failure is returned.
    async fn remove(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<()> {
        let mut result = Ok(());
        for recaller in &self.recallers {
            result = result.and(recaller.remove(namespace, ids).await);
        }
        result
    }

    async fn recall(&self, namespace: &Namespace, query: &str, k: usize) -> Result<Vec<Recalled>> {
        let mut scores: HashMap<RecordId, f32> = HashMap::new();
        for recaller in &self.recallers {
            let found = recaller.recall(namespace, query, k.saturating_mul(DEPTH)).await?;
            for (rank, found) in (1..).zip(found) {
                *scores.entry(found.id).or_default() += 1.0 / (FLATNESS + rank as f32);
            }
        }
        Ok(best(scores.into_iter().map(|(id, score)| Recalled { id, score }).collect(), k))
    }
}
