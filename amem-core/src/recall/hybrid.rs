//! Several ways to recall, as one: reciprocal rank fusion (Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion
//! Outperforms Condorcet and Individual Rank Learning Methods", 2009).

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::saved::{Reader, Writer};
use super::{Language, RecallQuery, Recalled, Recaller, best};
use crate::{Namespace, Record, RecordId, Result};

/// How little the first ranks differ; the value of the paper.
const FLATNESS: f32 = 60.0;
/// Answers taken from each recaller, for each that is wanted.
const DEPTH: usize = 3;
const MARK: &[u8; 8] = b"amemhyb1";

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

    /// Clears all recallers, even if one fails; the first failure is returned.
    async fn clear(&self, namespace: &Namespace) -> Result<()> {
        let mut result = Ok(());
        for recaller in &self.recallers {
            result = result.and(recaller.clear(namespace).await);
        }
        result
    }

    fn language(&self) -> Option<Language> {
        self.recallers.iter().find_map(|recaller| recaller.language())
    }

    fn index_name(&self) -> Option<String> {
        let names: Option<Vec<String>> = self.recallers.iter().map(|recaller| recaller.index_name()).collect();
        Some(format!("{} ({})", MARK.escape_ascii(), names?.join(", ")))
    }

    fn worth_saving(&self) -> usize {
        self.recallers.iter().map(|recaller| recaller.worth_saving()).min().unwrap_or(1)
    }

    async fn save(&self, namespace: &Namespace) -> Result<Option<Vec<u8>>> {
        let mut writer = Writer::new(MARK);
        writer.number(self.recallers.len() as u64);
        for recaller in &self.recallers {
            let Some(saved) = recaller.save(namespace).await? else { return Ok(None) };
            writer.bytes(&saved);
        }
        Ok(Some(writer.done()))
    }

    /// Restores all recallers or none of them.
    async fn restore(&self, namespace: &Namespace, saved: &[u8]) -> Result<bool> {
        let parts = || {
            let mut reader = Reader::new(MARK, saved)?;
            let count = reader.count(1).filter(|count| *count == self.recallers.len())?;
            let parts = (0..count).map(|_| reader.bytes()).collect::<Option<Vec<_>>>()?;
            reader.is_done().map(|()| parts)
        };
        if let Some(parts) = parts() {
            let mut sound = true;
            for (recaller, part) in self.recallers.iter().zip(parts) {
                sound &= recaller.restore(namespace, part).await?;
            }
            if sound {
                return Ok(true);
            }
        }
        self.clear(namespace).await?;
        Ok(false)
    }

    /// What the recallers find. One that fails is passed over, unless all do.
    async fn recall(&self, namespace: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<Recalled>> {
        let deep = RecallQuery { k: query.k.saturating_mul(DEPTH), ..*query };
        let mut scores: HashMap<RecordId, f32> = HashMap::new();
        let mut failures = Vec::new();
        for recaller in &self.recallers {
            match recaller.recall(namespace, &deep).await {
                Ok(found) => {
                    for (rank, found) in (1..).zip(found) {
                        *scores.entry(found.id).or_default() += 1.0 / (FLATNESS + rank as f32);
                    }
                }
                Err(error) => {
                    log::warn!("a recaller failed: {error}");
                    failures.push(error);
                }
            }
        }
        if failures.len() == self.recallers.len()
            && let Some(error) = failures.pop()
        {
            return Err(error);
        }
        Ok(best(scores.into_iter().map(|(id, score)| Recalled { id, score }).collect(), query.k))
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;

    use super::*;
    use crate::Error;

    /// Always finds the same, or fails.
    struct Fixed(Option<Vec<u8>>);

    fn finds(ids: &[u8]) -> Arc<dyn Recaller> {
        Arc::new(Fixed(Some(ids.to_vec())))
    }

    fn fails() -> Arc<dyn Recaller> {
        Arc::new(Fixed(None))
    }

    #[async_trait]
    impl Recaller for Fixed {
        async fn index(&self, _: &[Record]) -> Result<()> {
            Ok(())
        }

        async fn remove(&self, _: &Namespace, _: &[RecordId]) -> Result<()> {
            Ok(())
        }

        async fn clear(&self, _: &Namespace) -> Result<()> {
            Ok(())
        }

        async fn recall(&self, _: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<Recalled>> {
            let Some(found) = &self.0 else { return Err(Error::Recall("the embedding model is down".into())) };
            let found = found.iter().take(query.k);
            Ok(found.map(|id| Recalled { id: RecordId::from_bytes([*id; 16]), score: 1.0 }).collect())
        }
    }

    #[test]
    fn what_two_recallers_rank_well_beats_what_one_ranks_best() {
        let hybrid = Hybrid::new(vec![finds(&[1, 2, 3]), finds(&[4, 2, 5])]);
        let found = block_on(hybrid.recall(&Namespace::new("home").unwrap(), &RecallQuery::new("?", 3))).unwrap();
        let ids: Vec<u8> = found.iter().map(|found| found.id.to_bytes()[0]).collect();
        assert_eq!(ids, [2, 1, 4]);
    }

    #[test]
    fn one_recaller_that_fails_costs_its_part_of_the_ranking_only() {
        let recall = |recallers: Vec<Arc<dyn Recaller>>| {
            block_on(Hybrid::new(recallers).recall(&Namespace::new("home").unwrap(), &RecallQuery::new("?", 3)))
        };
        let found = recall(vec![fails(), finds(&[4, 2])]).unwrap();
        assert_eq!(found.iter().map(|found| found.id.to_bytes()[0]).collect::<Vec<_>>(), [4, 2]);
        assert!(matches!(recall(vec![fails(), fails()]), Err(Error::Recall(_))));
        assert_eq!(recall(Vec::new()).unwrap(), []);
    }

    #[cfg(feature = "testing")]
    #[test]
    fn hybrid_keeps_the_traits_promises() {
        use crate::recall::Lexical;
        crate::testing::recaller(|| {
            Box::new(Hybrid::new(vec![Arc::new(Lexical::default()), Arc::new(Lexical::default())]))
        });
    }
}
