//! A good recaller with one fault at a time.

use std::collections::BTreeMap;
use std::sync::Mutex;

use amem_core::recall::Lexical;
use amem_core::{Namespace, RecallQuery, Recalled, Recaller, Record, RecordId, Result, State, Timestamp, testing};
use async_trait::async_trait;

use super::each_is_caught;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    FindsMoreThanK,
    FindsOneForNone,
    FiltersAfterTheBestK,
    FiltersNothing,
    RunsBackwards,
    TiesRunBackwards,
    ScoresAreNoNumbers,
    FindsTheFirstOnly,
    RemovesNothing,
    RemovesAll,
    RemovesFromAllNamespaces,
    KeepsOldTexts,
    FindsARecordTwice,
    IndexesWhatIsNotActive,
    KeepsWhatIsActiveNoMore,
    KeepsWhatIsForgotten,
    ClearsNothing,
    ClearsAllNamespaces,
    ClearsForGood,
    CountsWordsOfAllNamespaces,
    FindsAllForNothing,
    FailsOnNothing,
    FailsOnUnknownRecords,
    SavesNothingUnderAName,
    SavesWithoutAName,
    SavesUnderChangingNames,
    RestoresNothing,
    RefusesToRestore,
    AddsToWhatIsKnown,
    RestoresAllNamespaces,
    RestoresWhatMakesNoSense,
    KeepsWhatIsKnown,
    RestoresForGood,
}

const FAULTS: [(Fault, &str); 33] = [
    (Fault::FindsMoreThanK, "more than"),
    (Fault::FindsOneForNone, "more than 0 records"),
    (Fault::FiltersAfterTheBestK, "the best k of those that count"),
    (Fault::FiltersNothing, "the best k of those that count"),
    (Fault::RunsBackwards, "asked for"),
    (Fault::TiesRunBackwards, "ties by id"),
    (Fault::ScoresAreNoNumbers, "not best first"),
    (Fault::FindsTheFirstOnly, "equal texts come in order of their ids"),
    (Fault::RemovesNothing, "a removed record is found"),
    (Fault::RemovesAll, "a record is lost by the removal of another"),
    (Fault::RemovesFromAllNamespaces, "a removal in another namespace reaches this one"),
    (Fault::KeepsOldTexts, "the new text is not found"),
    (Fault::FindsARecordTwice, "not best first"),
    (Fault::IndexesWhatIsNotActive, "was not indexed before"),
    (Fault::KeepsWhatIsActiveNoMore, "a record that is superseded is found"),
    (Fault::KeepsWhatIsForgotten, "a record that is forgotten is found"),
    (Fault::ClearsNothing, "a cleared namespace has a record left"),
    (Fault::ClearsAllNamespaces, "clearing a namespace reaches another one"),
    (Fault::ClearsForGood, "a cleared namespace can be filled again"),
    (Fault::CountsWordsOfAllNamespaces, "move the scores of this one"),
    (Fault::FindsAllForNothing, "an empty question finds something"),
    (Fault::FailsOnNothing, "index nothing"),
    (Fault::FailsOnUnknownRecords, "remove what is not there"),
    (Fault::SavesNothingUnderAName, "whoever saves nothing has no name for it"),
    (Fault::SavesWithoutAName, "whoever saves has a name for it"),
    (Fault::SavesUnderChangingNames, "equal recallers save under one name"),
    (Fault::RestoresNothing, "answers like what was saved"),
    (Fault::RefusesToRestore, "what was saved can be restored"),
    (Fault::AddsToWhatIsKnown, "answers like what was saved"),
    (Fault::RestoresAllNamespaces, "restoring a namespace reaches another one"),
    (Fault::RestoresWhatMakesNoSense, "bytes that make no sense are refused"),
    (Fault::KeepsWhatIsKnown, "and then nothing is known"),
    (Fault::RestoresForGood, "what was restored can be added to"),
];

#[test]
fn each_fault_of_a_recaller_is_caught() {
    testing::recaller(|| Box::new(Faulty::new(None)));
    each_is_caught(&FAULTS, |fault| testing::recaller(|| Box::new(Faulty::new(Some(fault)))));
}

/// A good recaller, but for one fault.
struct Faulty {
    inner: Lexical,
    fault: Option<Fault>,
    /// The records that were indexed, with the namespaces that they came from.
    known: Mutex<BTreeMap<RecordId, Namespace>>,
    cleared: Mutex<Vec<Namespace>>,
}

impl Faulty {
    fn new(fault: Option<Fault>) -> Self {
        Self { inner: Lexical::default(), fault, known: Mutex::default(), cleared: Mutex::default() }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn known(&self) -> BTreeMap<RecordId, Namespace> {
        self.known.lock().unwrap().clone()
    }

    fn fails() -> Result<()> {
        Err(amem_core::Error::Empty { what: "records" })
    }
}

/// Where all records stand of a recaller that knows no namespaces.
fn everybodys() -> Namespace {
    Namespace::new("everybody's").unwrap()
}

#[async_trait]
impl Recaller for Faulty {
    async fn index(&self, records: &[Record]) -> Result<()> {
        if records.is_empty() && self.has(Fault::FailsOnNothing) {
            return Self::fails();
        }
        let known = self.known();
        let mut indexed = records.to_vec();
        match self.fault {
            Some(Fault::KeepsOldTexts) => indexed.retain(|record| !known.contains_key(&record.id)),
            Some(Fault::IndexesWhatIsNotActive) => {
                let new = indexed.iter_mut().filter(|record| !known.contains_key(&record.id));
                new.for_each(|record| record.state = State::Active);
            }
            Some(Fault::KeepsWhatIsActiveNoMore) => indexed.retain(|record| record.state == State::Active),
            Some(Fault::KeepsWhatIsForgotten) => {
                indexed.retain(|record| !matches!(record.state, State::Forgotten { .. }));
            }
            Some(Fault::ClearsForGood | Fault::RestoresForGood) => {
                indexed.retain(|record| !self.cleared.lock().unwrap().contains(&record.namespace));
            }
            Some(Fault::CountsWordsOfAllNamespaces) => {
                indexed.iter_mut().for_each(|record| record.namespace = everybodys());
            }
            _ => {}
        }
        self.known.lock().unwrap().extend(records.iter().map(|record| (record.id, record.namespace.clone())));
        self.inner.index(&indexed).await
    }

    async fn remove(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<()> {
        match self.fault {
            Some(Fault::RemovesNothing) => Ok(()),
            Some(Fault::RemovesAll) => self.inner.clear(namespace).await,
            Some(Fault::FailsOnUnknownRecords) if ids.iter().any(|id| !self.known().contains_key(id)) => Self::fails(),
            Some(Fault::RemovesFromAllNamespaces) => {
                for id in ids {
                    let home = self.known().get(id).cloned().unwrap_or(namespace.clone());
                    self.inner.remove(&home, &[*id]).await?;
                }
                Ok(())
            }
            Some(Fault::CountsWordsOfAllNamespaces) => {
                let mut own = ids.to_vec();
                own.retain(|id| self.known().get(id) == Some(namespace));
                self.inner.remove(&everybodys(), &own).await
            }
            _ => self.inner.remove(namespace, ids).await,
        }
    }

    async fn clear(&self, namespace: &Namespace) -> Result<()> {
        if !self.has(Fault::RestoresForGood) {
            self.cleared.lock().unwrap().push(namespace.clone());
        }
        match self.fault {
            Some(Fault::ClearsNothing) => Ok(()),
            Some(Fault::ClearsAllNamespaces) => {
                for namespace in self.known().values() {
                    self.inner.clear(namespace).await?;
                }
                Ok(())
            }
            Some(Fault::CountsWordsOfAllNamespaces) => {
                let known = self.known();
                let own: Vec<RecordId> = known.iter().filter(|(_, of)| *of == namespace).map(|(id, _)| *id).collect();
                self.inner.remove(&everybodys(), &own).await
            }
            _ => self.inner.clear(namespace).await,
        }
    }

    fn index_name(&self) -> Option<String> {
        match self.fault {
            Some(Fault::SavesWithoutAName) => None,
            Some(Fault::SavesUnderChangingNames) => Some(RecordId::new().to_string()),
            _ => self.inner.index_name(),
        }
    }

    async fn save(&self, namespace: &Namespace) -> Result<Option<Vec<u8>>> {
        match self.fault {
            Some(Fault::SavesNothingUnderAName) => Ok(None),
            Some(Fault::CountsWordsOfAllNamespaces) => self.inner.save(&everybodys()).await,
            _ => self.inner.save(namespace).await,
        }
    }

    async fn restore(&self, namespace: &Namespace, saved: &[u8]) -> Result<bool> {
        let before: Vec<Recalled> = self.inner.recall(namespace, &RecallQuery::new("Lisbon", 9)).await?;
        let known = self.inner.save(namespace).await?.unwrap();
        match self.fault {
            Some(Fault::RestoresNothing) => Ok(true),
            Some(Fault::RefusesToRestore) => Ok(false),
            Some(Fault::RestoresAllNamespaces) => {
                for other in self.known().values() {
                    self.inner.clear(other).await?;
                }
                self.inner.restore(namespace, saved).await
            }
            Some(Fault::RestoresForGood) => {
                self.cleared.lock().unwrap().push(namespace.clone());
                self.inner.restore(namespace, saved).await
            }
            Some(Fault::RestoresWhatMakesNoSense) => self.inner.restore(namespace, saved).await.map(|_| true),
            Some(Fault::AddsToWhatIsKnown) => {
                let restored = self.inner.restore(namespace, saved).await?;
                for Recalled { id, .. } in before {
                    let mut old = Record::new(id, namespace.clone(), "Our train to Lisbon", Timestamp(0));
                    old.state = State::Active;
                    self.inner.index(&[old]).await?;
                }
                Ok(restored)
            }
            Some(Fault::KeepsWhatIsKnown) => {
                let restored = self.inner.restore(namespace, saved).await?;
                if !restored {
                    self.inner.restore(namespace, &known).await?;
                }
                Ok(restored)
            }
            _ => self.inner.restore(namespace, saved).await,
        }
    }

    async fn recall(&self, namespace: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<Recalled>> {
        let known = self.known();
        let ours = |id: RecordId| query.may_find(id) && known.get(&id) == Some(namespace);
        let mut asked = *query;
        match self.fault {
            Some(Fault::FindsMoreThanK) => asked.k = asked.k.saturating_add(1),
            Some(Fault::FindsOneForNone) => asked.k = asked.k.max(1),
            Some(Fault::FiltersAfterTheBestK | Fault::FiltersNothing) => asked.counts = None,
            _ => {}
        }
        if self.has(Fault::CountsWordsOfAllNamespaces) {
            return self.inner.recall(&everybodys(), &asked.only(&ours)).await;
        }
        let mut found = self.inner.recall(namespace, &asked).await?;
        match self.fault {
            Some(Fault::FiltersAfterTheBestK) => found.retain(|found| query.may_find(found.id)),
            Some(Fault::RunsBackwards) => found.reverse(),
            Some(Fault::TiesRunBackwards) => {
                found.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.id.cmp(&a.id)));
            }
            Some(Fault::ScoresAreNoNumbers) => found.iter_mut().for_each(|found| found.score = f32::NAN),
            Some(Fault::FindsTheFirstOnly) => found.truncate(1),
            Some(Fault::FindsARecordTwice) if query.k > found.len() => {
                found.extend(found.first().copied());
                found.sort_by(|a, b| b.score.total_cmp(&a.score));
            }
            Some(Fault::FindsAllForNothing) if query.text.is_empty() => {
                found.extend(known.keys().take(query.k).map(|id| Recalled { id: *id, score: 0.0 }));
            }
            _ => {}
        }
        Ok(found)
    }
}
