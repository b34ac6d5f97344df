//! A good ledger with one fault at a time.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use amem_core::{
    Added, Change, Changes, ChunkId, Error, Filter, Ledger, Listing, MetaValue, Metadata, Namespace, NewRecord,
    Outcome, Page, PendingDeletion, Query, RamLedger, Record, RecordId, RecordStats, Result, Revision, SavedIndex,
    State, Timestamp, UsageEvent, UsageQuery, UsageTotal, Version, testing,
};
use async_trait::async_trait;

use super::each_is_caught;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    KeepsBlanks,
    AddsUpToTheBadOne,
    AddsInReverse,
    LosesKeys,
    LosesMetadata,
    LosesExpiry,
    LosesMomentsOfCreation,
    TakesMomentsYetToCome,
    OlderTakeTheNewersPlace,
    OlderOfOneCallTakePlaces,
    OlderGoByTheirBeginning,
    OlderByTheClockAreOld,
    FirstOfOneMomentStays,
    NewerOfThePastCountFromNow,
    LosesMomentsOfChange,
    RoundsNumbers,
    CutsLongKeys,
    RefusesTheLongestKeys,
    KnowsNoDuplicates,
    SeesDuplicatesUnderOtherKeys,
    WritesDuplicates,
    SupersedesNothing,
    SupersedesWithoutKeys,
    SupersededLoseTheirText,
    UpdatesToNothing,
    UpdatesToTextsOfOthers,
    RefusesTextsOfThePast,
    UpdatesTheSuperseded,
    UpdatesAreBeginnings,
    WritesTheSameText,
    UpdatesLoseMetadata,
    HistoryHasTheLastTextOnly,
    HistoryRunsBackwards,
    HistoryNeverEnds,
    ForgetsNoHistory,
    ForgetsNoKeys,
    ForgetsNoViews,
    ForgetsTwice,
    ForgetsUpToTheUnknown,
    ForgetsInOrderOfIds,
    ExpiresTooLate,
    ViewsHaveWhatExpired,
    ViewsHaveWhatWasBornExpired,
    CountsWhatWasBornExpired,
    ViewsHaveSuperseded,
    ViewsAreOfNow,
    ExpiredLoseTheirText,
    ChangesAreAsOfThen,
    ChangesReuseRevisions,
    ChangesAreAlwaysAll,
    ChangesNameRecordsTwice,
    ChangesOmitSuperseded,
    ChangesOmitForgotten,
    ChangesTellOfNoDeletion,
    ChangesTellOfDeletionsAgain,
    LinksNothing,
    LinksUpToTheUnknown,
    LinksOfForgottenAreLost,
    LinksCallOffNothing,
    ForgettingSparesNothing,
    UpdatingSparesNothing,
    ExpiredSpareChunks,
    SupersededSpareChunks,
    ConfirmsAll,
    ConfirmsNothing,
    ConfirmsLaterDeletions,
    NamesDeletionsTwice,
    NothingIsLinked,
    LinkedInOrderOfIds,
    ExpiredAreLinked,
    FiltersAfterTheLimit,
    FiltersAnything,
    FiltersByWhatIsNow,
    FiltersNothingNegative,
    PagesIgnoreTheirLimit,
    PagesOfNothingHaveAll,
    PagesBeyondTheMost,
    PagesNeverEnd,
    PagesBeginAnywhere,
    PagesBeginBehindOthers,
    CountsAll,
    CountsAllNamespaces,
    NamespacesStandAsAdded,
    NamespacesOfForgottenAreGone,
    DeletedNamespacesStayListed,
    DeletionCountsActive,
    DeletionKeepsChunks,
    LeaksGet,
    LeaksUpdate,
    LeaksForget,
    LeaksHistory,
    LeaksLink,
    LeaksPages,
    LeaksChanges,
    SupersedingKeepsChunks,
    LinksOfSupersededAreLost,
    ExpiryKeepsChunks,
    LinksOfExpiredAreLost,
    ConfirmsNothingOfExpired,
    SupersedingSparesNothing,
    ReadsManyWithoutTheUnknown,
    ReadsManyInOrderOfIds,
    FailsToReadManyWithUnknown,
    LeaksGetMany,
    StatsLeak,
    StatsCountExpiredAsActive,
    StatsForgetTheForgotten,
    CountsEventsTwice,
    UsageHasOneTotal,
    UsageOfOthersToo,
    UsageHasNoEnd,
    UsageHasNoBeginning,
    UsageHasNoBounds,
    UsageGoesWithItsNamespace,
    UsageKeepsNames,
    IndexesHaveOneName,
    TheFirstIndexStays,
    IndexesGoWithAnyChange,
    IndexesStayWhenForgetting,
    IndexesOfAllGo,
    IndexesOfThePastAreKept,
    IndexesAreNeverKeptAgain,
    IndexesOutliveTheirNamespace,
    IndexesOfDeletedAreKept,
    ChangesLoseKeys,
    ChangesLoseMetadata,
    ChangesLoseExpiry,
    ChangesAreUpdates,
    ChangesDropChunks,
    ChangesTakeKeys,
    ChangesAskForNothing,
    ChangesLeaveKeys,
    TellingAgainChangesNothing,
    TellingAgainIsNotTold,
    TellingAgainTakesAway,
    TellingOfThePastCounts,
    TellingWhatIsOverCounts,
    WhatIsOverTakesPlaces,
    ForgetsTheActiveOfAKey,
    ForgetsAllOfTheKeysNamespace,
}

const FAULTS: [(Fault, &str); 140] = [
    (Fault::KeepsBlanks, "without the blanks at their ends"),
    (Fault::AddsUpToTheBadOne, "texts are added all or none"),
    (Fault::AddsInReverse, "in the order in which they were added"),
    (Fault::LosesKeys, "key and expiry come back"),
    (Fault::LosesMetadata, "metadata comes back"),
    (Fault::LosesExpiry, "key and expiry come back"),
    (Fault::LosesMomentsOfCreation, "the moment when it was first said"),
    (Fault::TakesMomentsYetToCome, "a moment yet to come counts as now"),
    (Fault::OlderTakeTheNewersPlace, "an older text does not take a newer one's place"),
    (Fault::OlderOfOneCallTakePlaces, "the texts of one call know of each other's moments"),
    (Fault::OlderGoByTheirBeginning, "a text that an update gave is as new as the update"),
    (Fault::OlderByTheClockAreOld, "what is said now is the newest"),
    (Fault::FirstOfOneMomentStays, "of one moment, the text counts that is added later"),
    (Fault::NewerOfThePastCountFromNow, "from the moment on when it was said"),
    (Fault::LosesMomentsOfChange, "a text may have changed since it was said"),
    (Fault::RoundsNumbers, "metadata comes back"),
    (Fault::CutsLongKeys, "keys and metadata have bounds"),
    (Fault::RefusesTheLongestKeys, "the longest key is taken"),
    (Fault::KnowsNoDuplicates, "a text stands once"),
    (Fault::SeesDuplicatesUnderOtherKeys, "and so is another key"),
    (Fault::WritesDuplicates, "a duplicate writes nothing"),
    (Fault::SupersedesNothing, "supersedes the key's active record"),
    (Fault::SupersedesWithoutKeys, "get gives what add gave"),
    (Fault::SupersededLoseTheirText, "it keeps its text"),
    (Fault::UpdatesToNothing, "a record must say something"),
    (Fault::UpdatesToTextsOfOthers, "two active records must not say the same"),
    (Fault::RefusesTextsOfThePast, "that no active record says"),
    (Fault::UpdatesTheSuperseded, "its life is over"),
    (Fault::UpdatesAreBeginnings, "an update is a change, not a beginning"),
    (Fault::WritesTheSameText, "the same text is no change"),
    (Fault::UpdatesLoseMetadata, "an update keeps the metadata"),
    (Fault::HistoryHasTheLastTextOnly, "the history has all texts"),
    (Fault::HistoryRunsBackwards, "oldest first"),
    (Fault::HistoryNeverEnds, "and when they stood"),
    (Fault::ForgetsNoHistory, "its history has no texts"),
    (Fault::ForgetsNoKeys, "nor key nor metadata"),
    (Fault::ForgetsNoViews, "it appears in no view"),
    (Fault::ForgetsTwice, "forgetting again changes nothing"),
    (Fault::ForgetsUpToTheUnknown, "and then none is forgotten"),
    (Fault::ForgetsInOrderOfIds, "they come back in the order of their ids"),
    (Fault::ExpiresTooLate, "it expires at its time, not after"),
    (Fault::ViewsHaveWhatExpired, "it does not count from its time on"),
    (Fault::ViewsHaveWhatWasBornExpired, "no view has what expired before it was added"),
    (Fault::CountsWhatWasBornExpired, "nor is it counted"),
    (Fault::ViewsHaveSuperseded, "a superseded record does not count"),
    (Fault::ViewsAreOfNow, "but it did before"),
    (Fault::ExpiredLoseTheirText, "an expired record keeps its text"),
    (Fault::ChangesAreAsOfThen, "changes gives records as they are now"),
    (Fault::ChangesReuseRevisions, "every change has a later revision"),
    (Fault::ChangesAreAlwaysAll, "a duplicate writes nothing"),
    (Fault::ChangesNameRecordsTwice, "each of them once"),
    (Fault::ChangesOmitSuperseded, "what was added, updated or superseded has changed"),
    (Fault::ChangesOmitForgotten, "a forgotten record has changed"),
    (Fault::ChangesTellOfNoDeletion, "learns that it was deleted"),
    (Fault::ChangesTellOfDeletionsAgain, "but learns it once"),
    (Fault::LinksNothing, "forgetting a record deletes all its chunks"),
    (Fault::LinksUpToTheUnknown, "a failed link links nothing"),
    (Fault::LinksOfForgottenAreLost, "is to be deleted at once"),
    (Fault::LinksCallOffNothing, "is called off"),
    (Fault::ForgettingSparesNothing, "a chunk that another active record links stays"),
    (Fault::UpdatingSparesNothing, "an update spares a chunk that another active record links"),
    (Fault::ExpiredSpareChunks, "a chunk that no other active record links is to be deleted"),
    (Fault::SupersededSpareChunks, "a chunk that no other active record links is to be deleted"),
    (Fault::ConfirmsAll, "a deletion is pending until it is confirmed"),
    (Fault::ConfirmsNothing, "a deletion is pending until it is confirmed"),
    (Fault::ConfirmsLaterDeletions, "confirming a deletion leaves a later one of the same chunk pending"),
    (Fault::NamesDeletionsTwice, "a pending deletion is named once"),
    (Fault::NothingIsLinked, "a chunk is linked as long as an active record has it"),
    (Fault::LinkedInOrderOfIds, "in the order of the ids"),
    (Fault::ExpiredAreLinked, "not by one whose time is over"),
    (Fault::FiltersAfterTheLimit, "a page is full of what passes"),
    (Fault::FiltersAnything, "a filter has bounds"),
    (Fault::FiltersByWhatIsNow, "what passes"),
    (Fault::FiltersNothingNegative, "what passes"),
    (Fault::PagesIgnoreTheirLimit, "pages hold what counts"),
    (Fault::PagesOfNothingHaveAll, "a page of nothing is refused"),
    (Fault::PagesBeyondTheMost, "a page has no more records than any page may have"),
    (Fault::PagesNeverEnd, "and the last one says so"),
    (Fault::PagesBeginAnywhere, "a page cannot begin behind an unknown record"),
    (Fault::PagesBeginBehindOthers, "page knows its namespace only"),
    (Fault::CountsAll, "what was superseded does not count"),
    (Fault::CountsAllNamespaces, "count knows its namespace only"),
    (Fault::NamespacesStandAsAdded, "in order of their names"),
    (Fault::NamespacesOfForgottenAreGone, "a forgotten record is still a record"),
    (Fault::DeletedNamespacesStayListed, "it is not listed"),
    (Fault::DeletionCountsActive, "all its records are counted"),
    (Fault::DeletionKeepsChunks, "all its chunks are to be deleted"),
    (Fault::LeaksGet, "get knows its namespace only"),
    (Fault::LeaksUpdate, "update knows its namespace only"),
    (Fault::LeaksForget, "forget knows its namespace only"),
    (Fault::LeaksHistory, "history knows its namespace only"),
    (Fault::LeaksLink, "link knows its namespace only"),
    (Fault::LeaksPages, "list knows its namespace only"),
    (Fault::LeaksChanges, "changes knows its namespace only"),
    (Fault::SupersedingKeepsChunks, "superseding a record deletes its chunks"),
    (Fault::LinksOfSupersededAreLost, "the chunk of a superseded text is to be deleted at once"),
    (Fault::ExpiryKeepsChunks, "a record that expires deletes its chunks"),
    (Fault::LinksOfExpiredAreLost, "the chunk of an expired text is to be deleted at once"),
    (Fault::ConfirmsNothingOfExpired, "that no other active record links is to be deleted"),
    (Fault::SupersedingSparesNothing, "an active record spares a superseded one's chunk"),
    (Fault::ReadsManyWithoutTheUnknown, "get_many answers in the order of the ids"),
    (Fault::ReadsManyInOrderOfIds, "get_many answers in the order of the ids"),
    (Fault::FailsToReadManyWithUnknown, "unknown records are no error"),
    (Fault::LeaksGetMany, "get_many answers in the order of the ids"),
    (Fault::StatsLeak, "records are counted by their states"),
    (Fault::StatsCountExpiredAsActive, "as they are at the moment"),
    (Fault::StatsForgetTheForgotten, "records are counted by their states"),
    (Fault::CountsEventsTwice, "an event counts once"),
    (Fault::UsageHasOneTotal, "for its namespace"),
    (Fault::UsageOfOthersToo, "usage can be asked for of one namespace"),
    (Fault::UsageHasNoEnd, "and between two moments"),
    (Fault::UsageHasNoBeginning, "and between two moments"),
    (Fault::UsageHasNoBounds, "no amount is beyond the most that counts"),
    (Fault::UsageGoesWithItsNamespace, "what a deleted namespace used still counts"),
    (Fault::UsageKeepsNames, "under no name"),
    (Fault::IndexesHaveOneName, "the last index that was saved comes back"),
    (Fault::TheFirstIndexStays, "the last index that was saved comes back"),
    (Fault::IndexesGoWithAnyChange, "it stays when records are added and changed"),
    (Fault::IndexesStayWhenForgetting, "it is gone once something of the namespace is forgotten"),
    (Fault::IndexesOfAllGo, "which concerns no other namespace"),
    (Fault::IndexesOfThePastAreKept, "an index from before something was forgotten is refused"),
    (Fault::IndexesAreNeverKeptAgain, "one from after that is kept"),
    (Fault::IndexesOutliveTheirNamespace, "it goes with its namespace"),
    (Fault::IndexesOfDeletedAreKept, "an index from before its namespace was deleted is refused"),
    (Fault::ChangesLoseKeys, "a change gives a key"),
    (Fault::ChangesLoseMetadata, "a change gives metadata"),
    (Fault::ChangesLoseExpiry, "a change gives an end"),
    (Fault::ChangesAreUpdates, "a change gives a key, and nothing else"),
    (Fault::ChangesDropChunks, "the chunks of a text that did not change stay"),
    (Fault::ChangesTakeKeys, "a key has one active record"),
    (Fault::ChangesAskForNothing, "a change for other metadata is refused"),
    (Fault::ChangesLeaveKeys, "a change takes a key away"),
    (Fault::TellingAgainChangesNothing, "what is told again has the expiry that was stated last"),
    (Fault::TellingAgainIsNotTold, "what is told again has the expiry that was stated last"),
    (Fault::TellingAgainTakesAway, "what is not stated stays"),
    (Fault::TellingOfThePastCounts, "what was said no later changes nothing"),
    (Fault::TellingWhatIsOverCounts, "what is over when it is told again changes nothing"),
    (Fault::WhatIsOverTakesPlaces, "what has expired before it was added takes no place"),
    (Fault::ForgetsTheActiveOfAKey, "all records of a key are forgotten"),
    (Fault::ForgetsAllOfTheKeysNamespace, "and no others"),
];

#[test]
fn each_fault_of_a_ledger_is_caught() {
    testing::ledger(|| Faulty::new(None));
    each_is_caught(&FAULTS, |fault| testing::ledger(|| Faulty::new(Some(fault))));
}

/// A good ledger, but for one fault.
struct Faulty {
    inner: RamLedger,
    fault: Option<Fault>,
    aside: Mutex<Aside>,
}

/// What some faults remember.
struct Aside {
    forgotten: BTreeMap<RecordId, (Record, Vec<Version>)>,
    links: BTreeMap<RecordId, BTreeSet<ChunkId>>,
    pending: BTreeSet<ChunkId>,
    namespaces: Vec<Namespace>,
    latest: Timestamp,
    added: usize,
    indexes: BTreeMap<(Namespace, String), SavedIndex>,
    /// The change after which an index may be kept.
    forgotten_at: BTreeMap<Namespace, Revision>,
    usage: Vec<UsageEvent>,
}

/// Sets off what a fault adds to a text or a key.
const MARK: char = '\u{2063}';

fn unmarked(text: &str) -> String {
    text.split(MARK).next().unwrap_or_default().to_owned()
}

impl Faulty {
    fn new(fault: Option<Fault>) -> Self {
        let aside = Aside {
            forgotten: BTreeMap::new(),
            links: BTreeMap::new(),
            pending: BTreeSet::new(),
            namespaces: Vec::new(),
            latest: Timestamp(0),
            added: 0,
            indexes: BTreeMap::new(),
            forgotten_at: BTreeMap::new(),
            usage: Vec::new(),
        };
        Self { inner: RamLedger::new(), fault, aside: Mutex::new(aside) }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// A record as callers see it.
    fn shown(&self, mut record: Record) -> Record {
        let moment = match record.state {
            State::Superseded { .. } => Some(Fault::SupersededLoseTheirText),
            State::Expired { .. } => Some(Fault::ExpiredLoseTheirText),
            _ => None,
        };
        if moment.is_some() && moment == self.fault {
            record.text.clear();
        }
        record.text = unmarked(&record.text);
        record.key = record.key.map(|key| unmarked(&key)).filter(|key| !key.is_empty());
        match self.fault {
            Some(Fault::LosesKeys) => record.key = None,
            Some(Fault::LosesMetadata) => record.metadata = Metadata::default(),
            Some(Fault::UpdatesAreBeginnings) => record.created_at = record.updated_at,
            Some(Fault::ForgetsNoKeys) => {
                if let Some((before, _)) = self.aside.lock().unwrap().forgotten.get(&record.id) {
                    record.key.clone_from(&before.key);
                }
            }
            Some(Fault::RoundsNumbers) => {
                for value in record.metadata.0.values_mut() {
                    if let MetaValue::Number(number) = value {
                        *number = f64::from(*number as f32);
                    }
                }
            }
            _ => {}
        }
        record
    }

    fn stored(&self, new: &NewRecord) -> NewRecord {
        let mut new = new.clone();
        match self.fault {
            Some(Fault::KnowsNoDuplicates) if !new.text.trim().is_empty() => {
                let mut aside = self.aside.lock().unwrap();
                aside.added += 1;
                new.text = format!("{}{MARK}{}", new.text.trim(), aside.added);
            }
            Some(Fault::SupersedesNothing) => {
                new.key = new.key.map(|key| format!("{key}{MARK}{}", &new.text[..new.text.len().min(100)]));
            }
            Some(Fault::SupersedesWithoutKeys) => new.key = new.key.or(Some(MARK.to_string())),
            Some(Fault::LosesExpiry) => new.expires_at = None,
            Some(Fault::LosesMomentsOfCreation) => new.created_at = None,
            Some(Fault::LosesMomentsOfChange) => new.updated_at = None,
            Some(Fault::CutsLongKeys) => {
                new.key = new.key.map(|key| key.chars().take(NewRecord::MAX_KEY_BYTES).collect());
            }
            Some(Fault::RefusesTheLongestKeys) => {
                new.key = new.key.map(|key| if key.len() == NewRecord::MAX_KEY_BYTES { key + "k" } else { key });
            }
            _ => {}
        }
        new
    }

    /// When a text counts as said, where it is not what it says: of texts with keys, `count` of which are added at once.
    async fn moment(&self, namespace: &Namespace, new: &NewRecord, count: usize, now: Timestamp) -> Option<Timestamp> {
        let all = self.inner.list(namespace, Query::All).await.unwrap();
        let standing = all.into_iter().find(|record| record.key == new.key && record.state == State::Active);
        let Some(standing) = standing.filter(|_| new.key.is_some()) else {
            return new.created_at.filter(|_| !(self.has(Fault::OlderOfOneCallTakePlaces) && count > 1));
        };
        let (is_before, is_now) = (Timestamp(standing.updated_at.0 - 1), None);
        match (self.fault, new.created_at) {
            (Some(Fault::OlderTakeTheNewersPlace), Some(_)) => is_now,
            (Some(Fault::OlderGoByTheirBeginning), Some(at))
                if at >= standing.created_at && at < standing.updated_at =>
            {
                is_now
            }
            (Some(Fault::OlderByTheClockAreOld), None) if now < standing.updated_at => Some(Timestamp(now.0 - 1)),
            (Some(Fault::FirstOfOneMomentStays), Some(at)) if at == standing.updated_at => Some(is_before),
            (Some(Fault::NewerOfThePastCountFromNow), Some(at)) if at >= standing.updated_at => is_now,
            (_, at) => at,
        }
    }

    /// Writes something that nobody sees, so that there is a new revision.
    async fn revise(&self) -> Result<()> {
        let nobody = Namespace::new("nobody at all")?;
        self.inner.add(&nobody, &["nothing".into()], Timestamp(0)).await?;
        self.inner.delete_namespace(&nobody).await.map(drop)
    }

    /// Drops a namespace's indexes, unless this is the fault.
    async fn drop_indexes(&self, namespace: &Namespace, fault: Fault) -> Result<()> {
        let revision = self.inner.changes(namespace, Revision(0), Timestamp(0)).await?.revision;
        let mut aside = self.aside.lock().unwrap();
        aside.forgotten_at.insert(namespace.clone(), revision);
        if !self.has(fault) {
            let all = self.has(Fault::IndexesOfAllGo);
            aside.indexes.retain(|(owner, _), _| owner != namespace && !all);
        }
        Ok(())
    }

    /// Records whose time was over when they were added.
    async fn born_expired(&self, namespace: &Namespace) -> Result<Vec<Record>> {
        let mut records = self.inner.list(namespace, Query::All).await?;
        records.retain(|record| record.expires_at.is_some_and(|at| at <= record.created_at));
        Ok(records)
    }

    /// Confirms whatever deletions of these chunks are pending.
    async fn confirm(&self, chunks: &[ChunkId], now: Timestamp) -> Result<()> {
        let mut pending = self.inner.pending_deletions(now).await?;
        pending.retain(|deletion| chunks.contains(&deletion.chunk));
        self.inner.confirm_deleted(&pending, now).await
    }

    /// The namespace in which a record stands, if the fault is to look there.
    async fn home(&self, fault: Fault, namespace: &Namespace, id: Option<RecordId>) -> Namespace {
        if let (true, Some(id)) = (self.has(fault), id) {
            for other in self.inner.namespaces().await.unwrap() {
                if self.inner.history(&other, id).await.is_ok() {
                    return other;
                }
            }
        }
        namespace.clone()
    }
}

#[async_trait]
impl Ledger for Faulty {
    async fn add(&self, namespace: &Namespace, new: &[NewRecord], now: Timestamp) -> Result<Vec<Added>> {
        let mut stored: Vec<NewRecord> = new.iter().map(|new| self.stored(new)).collect();
        for stored in &mut stored {
            stored.created_at = self.moment(namespace, stored, new.len(), now).await;
        }
        let active = self.inner.list(namespace, Query::At(now)).await?;
        let standing = |new: &NewRecord| {
            active.iter().find(|record| record.key == new.key && record.text == new.text.trim()).map(|record| record.id)
        };
        for new in &mut stored {
            let (id, is_over) = (standing(new), new.is_over(now));
            match self.fault {
                Some(Fault::TellingAgainChangesNothing) if id.is_some() && !is_over => {
                    (new.expires_at, new.metadata) = (None, Metadata::default());
                }
                Some(Fault::TellingOfThePastCounts) if id.is_some() => new.created_at = None,
                Some(Fault::TellingWhatIsOverCounts) if is_over => {
                    if let Some(id) = id {
                        self.inner.change(namespace, id, &Change::new().expires_at(now), now).await?;
                    }
                }
                Some(Fault::TellingAgainTakesAway) if new.expires_at.is_none() => {
                    if let Some(id) = id {
                        self.inner.change(namespace, id, &Change::new().no_expiry(), now).await?;
                    }
                }
                Some(Fault::WhatIsOverTakesPlaces) if is_over && new.key.is_some() => {
                    let mut taker = new.clone();
                    taker.expires_at = None;
                    let taken = self.inner.add(namespace, &[taker], now).await?;
                    self.inner.forget(namespace, taken[0].record.id, now).await?;
                }
                _ => {}
            }
        }
        {
            let mut aside = self.aside.lock().unwrap();
            if !aside.namespaces.contains(namespace) {
                aside.namespaces.push(namespace.clone());
            }
            aside.latest = aside.latest.max(now);
        }
        let mut added = Vec::new();
        match self.fault {
            Some(Fault::AddsUpToTheBadOne) => {
                for new in &stored {
                    added.extend(self.inner.add(namespace, std::slice::from_ref(new), now).await?);
                }
            }
            Some(Fault::AddsInReverse) => {
                stored.reverse();
                added = self.inner.add(namespace, &stored, now).await?;
                added.reverse();
            }
            Some(Fault::SeesDuplicatesUnderOtherKeys) if stored.len() == 1 => {
                let standing = self.inner.list(namespace, Query::At(now)).await?;
                match standing.into_iter().find(|record| record.text == stored[0].text.trim()) {
                    Some(record) => added.push(Added { record, outcome: Outcome::Duplicate }),
                    None => added = self.inner.add(namespace, &stored, now).await?,
                }
            }
            _ => added = self.inner.add(namespace, &stored, now).await?,
        }
        for added in &added {
            let Outcome::Superseded(old) = added.outcome else { continue };
            let links: Vec<ChunkId> =
                self.aside.lock().unwrap().links.get(&old).into_iter().flatten().copied().collect();
            match self.fault {
                Some(Fault::SupersedingKeepsChunks) => self.confirm(&links, now).await?,
                Some(Fault::SupersedingSparesNothing) => self.aside.lock().unwrap().pending.extend(links),
                _ => {}
            }
        }
        for (added, new) in added.iter_mut().zip(new) {
            added.record = self.shown(added.record.clone());
            match self.fault {
                Some(Fault::KeepsBlanks) => added.record.text.clone_from(&new.text),
                Some(Fault::TakesMomentsYetToCome) => {
                    added.record.created_at = new.created_at.unwrap_or(added.record.created_at);
                }
                Some(Fault::TellingAgainIsNotTold) if added.outcome == Outcome::Changed => {
                    added.outcome = Outcome::Duplicate;
                }
                Some(Fault::WritesDuplicates) if added.outcome == Outcome::Duplicate => self.revise().await?,
                _ => {}
            }
        }
        Ok(added)
    }

    async fn get(&self, namespace: &Namespace, id: RecordId, now: Timestamp) -> Result<Record> {
        let namespace = self.home(Fault::LeaksGet, namespace, Some(id)).await;
        let late = i64::from(self.has(Fault::ExpiresTooLate));
        Ok(self.shown(self.inner.get(&namespace, id, Timestamp(now.0 - late)).await?))
    }

    async fn page(&self, namespace: &Namespace, listing: &Listing) -> Result<Page> {
        let mut asked = listing.clone();
        match (self.fault, listing.query) {
            (Some(Fault::ViewsAreOfNow), Query::At(moment)) => {
                asked.query = Query::At(moment.max(self.aside.lock().unwrap().latest));
            }
            (Some(Fault::FiltersAfterTheLimit | Fault::FiltersByWhatIsNow), _) => asked.filter = None,
            (Some(Fault::FiltersNothingNegative), _) => {
                asked.filter =
                    asked.filter.filter(|filter| !matches!(filter, Filter::Not(_)) || filter.check().is_err());
            }
            (Some(Fault::FiltersAnything), _) if listing.check().is_err() && listing.limit > 0 => {
                asked.filter = Some(Filter::Or(Vec::new()));
            }
            (Some(Fault::PagesIgnoreTheirLimit), _) => asked.limit = asked.limit.saturating_mul(100),
            (Some(Fault::PagesOfNothingHaveAll), _) => asked.limit = asked.limit.max(1),
            (Some(Fault::PagesBeginBehindOthers), _) => {
                let home = self.home(Fault::PagesBeginBehindOthers, namespace, listing.after).await;
                asked.after = asked.after.filter(|_| home == *namespace);
            }
            _ => {}
        }
        let mut page = match self.inner.page(namespace, &asked).await {
            Err(Error::UnknownRecord { .. }) if self.has(Fault::PagesBeginAnywhere) => {
                asked.after = None;
                self.inner.page(namespace, &asked).await?
            }
            page => page?,
        };
        match self.fault {
            Some(Fault::FiltersAfterTheLimit) => {
                page.records.retain(|record| listing.filter.as_ref().is_none_or(|filter| filter.matches(record)));
            }
            Some(Fault::FiltersByWhatIsNow) => {
                if let Some(filter) = &listing.filter {
                    filter.check()?;
                    let now = self.inner.list(namespace, Query::All).await?;
                    let passes = |record: &Record| now.iter().any(|now| now.id == record.id && filter.matches(now));
                    // The whole of it, for the tests of limits are not those of filters.
                    let rest = Listing::new(listing.query).limit(Listing::MAX_LIMIT);
                    let rest = listing.after.map_or(rest.clone(), |after| rest.after(after));
                    let mut records = self.inner.page(namespace, &rest).await?.records;
                    records.retain(passes);
                    page.next = (records.len() > listing.limit).then(|| records[listing.limit - 1].id);
                    records.truncate(listing.limit);
                    page.records = records;
                }
            }
            Some(Fault::PagesNeverEnd) => page.next = page.next.or(page.records.last().map(|record| record.id)),
            Some(Fault::PagesBeyondTheMost) if asked.limit > Listing::MAX_LIMIT => {
                while let Some(next) = page.next {
                    let more = self.inner.page(namespace, &asked.clone().after(next)).await?;
                    page.records.extend(more.records);
                    page.next = more.next;
                }
            }
            Some(Fault::LeaksPages) => {
                for other in self.inner.namespaces().await?.iter().filter(|other| *other != namespace) {
                    page.records.extend(self.inner.page(other, &asked).await?.records);
                }
            }
            Some(Fault::ViewsHaveWhatExpired) => {
                if let Query::At(moment) = listing.query {
                    let before = self.inner.list(namespace, Query::At(Timestamp(moment.0 - 1))).await?;
                    let expired = before.into_iter().filter(|record| record.expires_at.is_some_and(|at| at <= moment));
                    page.records.extend(expired);
                }
            }
            Some(Fault::ViewsHaveWhatWasBornExpired) if matches!(listing.query, Query::At(_)) => {
                page.records.extend(self.born_expired(namespace).await?);
            }
            Some(Fault::ViewsHaveSuperseded) if matches!(listing.query, Query::At(_)) => {
                let all = self.inner.list(namespace, Query::All).await?;
                let superseded = all.into_iter().filter(|record| matches!(record.state, State::Superseded { .. }));
                page.records.extend(superseded);
            }
            Some(Fault::ForgetsNoViews) if matches!(listing.query, Query::At(_)) => {
                let forgotten = &self.aside.lock().unwrap().forgotten;
                page.records.extend(forgotten.values().map(|(record, _)| record.clone()));
            }
            _ => {}
        }
        page.records = page.records.into_iter().map(|record| self.shown(record)).collect();
        Ok(page)
    }

    async fn count(&self, namespace: &Namespace, now: Timestamp) -> Result<usize> {
        match self.fault {
            Some(Fault::CountsWhatWasBornExpired) => {
                Ok(self.inner.count(namespace, now).await? + self.born_expired(namespace).await?.len())
            }
            Some(Fault::CountsAll) => Ok(self.inner.list(namespace, Query::All).await?.len()),
            Some(Fault::CountsAllNamespaces) => {
                let mut sum = 0;
                for namespace in self.inner.namespaces().await? {
                    sum += self.inner.count(&namespace, now).await?;
                }
                Ok(sum)
            }
            _ => self.inner.count(namespace, now).await,
        }
    }

    async fn change(&self, namespace: &Namespace, id: RecordId, change: &Change, now: Timestamp) -> Result<Record> {
        let namespace = self.home(Fault::LeaksUpdate, namespace, Some(id)).await;
        let before = self.inner.get(&namespace, id, now).await.ok();
        let all = self.inner.list(&namespace, Query::All).await?;
        let said = change.text.as_deref().map(str::trim);
        let over = all.iter().any(|record| said == Some(&*record.text) && record.state != State::Active);
        let mut asked = change.clone();
        match self.fault {
            Some(Fault::ChangesLoseKeys) => asked.key = asked.key.filter(Option::is_none),
            Some(Fault::ChangesLeaveKeys) => asked.key = asked.key.filter(Option::is_some),
            Some(Fault::ChangesLoseMetadata) => asked.metadata = None,
            Some(Fault::ChangesLoseExpiry) => asked.expires_at = None,
            Some(Fault::ChangesAskForNothing) => asked.if_metadata = None,
            _ => {}
        }
        let mut record = match (self.inner.change(&namespace, id, &asked, now).await, self.fault) {
            (Err(Error::Empty { .. }), Some(Fault::UpdatesToNothing))
            | (Err(Error::SameText { .. }), Some(Fault::UpdatesToTextsOfOthers))
            | (Err(Error::KeyTaken { .. }), Some(Fault::ChangesTakeKeys))
            | (Err(Error::NotActive { .. }), Some(Fault::UpdatesTheSuperseded)) => before.clone().unwrap(),
            (result, _) => result?,
        };
        let same = before.is_some_and(|before| before.text == record.text);
        match self.fault {
            Some(Fault::RefusesTextsOfThePast) if over => return Err(Error::SameText { existing: id }),
            Some(Fault::WritesTheSameText) if same => self.revise().await?,
            Some(Fault::UpdatesLoseMetadata) => record.metadata = Metadata::default(),
            Some(Fault::ChangesAreUpdates) if matches!(change.key, Some(Some(_))) => record.updated_at = now,
            Some(Fault::ChangesDropChunks) if same => {
                let mut aside = self.aside.lock().unwrap();
                let links = aside.links.get(&id).cloned().unwrap_or_default();
                aside.pending.extend(links);
            }
            _ => {}
        }
        if !same {
            let mut aside = self.aside.lock().unwrap();
            aside.latest = aside.latest.max(now);
            let links = aside.links.remove(&id).unwrap_or_default();
            if self.has(Fault::UpdatingSparesNothing) {
                aside.pending.extend(links);
            }
        }
        Ok(self.shown(record))
    }

    async fn forget_many(&self, namespace: &Namespace, ids: &[RecordId], now: Timestamp) -> Result<Vec<Record>> {
        let namespace = self.home(Fault::LeaksForget, namespace, ids.first().copied()).await;
        let mut ids = ids.to_vec();
        if self.has(Fault::ForgetsInOrderOfIds) {
            ids.sort_unstable();
        }
        for &id in &ids {
            let Ok(before) = self.inner.get(&namespace, id, now).await else { continue };
            let history = self.inner.history(&namespace, id).await?;
            let mut aside = self.aside.lock().unwrap();
            aside.forgotten.entry(id).or_insert((before, history));
            if self.has(Fault::ForgettingSparesNothing) {
                let links = aside.links.remove(&id).unwrap_or_default();
                aside.pending.extend(links);
            }
        }
        if self.has(Fault::ForgetsUpToTheUnknown) {
            let mut forgotten = Vec::new();
            for id in ids {
                forgotten.extend(self.inner.forget_many(&namespace, &[id], now).await?);
            }
            return Ok(forgotten);
        }
        let mut forgotten = self.inner.forget_many(&namespace, &ids, now).await?;
        self.drop_indexes(&namespace, Fault::IndexesStayWhenForgetting).await?;
        if self.has(Fault::ForgetsTwice) {
            forgotten.iter_mut().for_each(|record| record.state = State::Forgotten { at: now });
        }
        Ok(forgotten.into_iter().map(|record| self.shown(record)).collect())
    }

    async fn forget_key(&self, namespace: &Namespace, key: &str, now: Timestamp) -> Result<Vec<Record>> {
        let mut ids = Vec::new();
        for record in self.inner.list(namespace, Query::All).await? {
            let is_named = record.key.as_deref() == Some(key) || self.has(Fault::ForgetsAllOfTheKeysNamespace);
            if is_named && (record.state == State::Active || !self.has(Fault::ForgetsTheActiveOfAKey)) {
                ids.push(record.id);
            }
        }
        self.forget_many(namespace, &ids, now).await
    }

    async fn delete_namespace(&self, namespace: &Namespace) -> Result<usize> {
        let now = Timestamp::now();
        let active = self.inner.count(namespace, now).await?;
        let before = self.inner.pending_deletions(now).await?;
        let deleted = self.inner.delete_namespace(namespace).await?;
        if self.has(Fault::DeletionKeepsChunks) {
            let mut pending = self.inner.pending_deletions(now).await?;
            pending.retain(|deletion| !before.contains(deletion));
            self.inner.confirm_deleted(&pending, now).await?;
        }
        self.drop_indexes(namespace, Fault::IndexesOutliveTheirNamespace).await?;
        if !self.has(Fault::NamespacesStandAsAdded) && !self.has(Fault::DeletedNamespacesStayListed) {
            self.aside.lock().unwrap().namespaces.retain(|known| known != namespace);
        }
        Ok(if self.has(Fault::DeletionCountsActive) { active } else { deleted })
    }

    async fn history(&self, namespace: &Namespace, id: RecordId) -> Result<Vec<Version>> {
        let namespace = self.home(Fault::LeaksHistory, namespace, Some(id)).await;
        let mut history = self.inner.history(&namespace, id).await?;
        match self.fault {
            Some(Fault::HistoryHasTheLastTextOnly) => drop(history.drain(..history.len() - 1)),
            Some(Fault::HistoryRunsBackwards) => history.reverse(),
            Some(Fault::HistoryNeverEnds) => history.iter_mut().for_each(|version| version.until = None),
            Some(Fault::ForgetsNoHistory) => {
                if let Some((_, before)) = self.aside.lock().unwrap().forgotten.get(&id) {
                    history.clone_from(before);
                }
            }
            _ => {}
        }
        Ok(history)
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        let mut namespaces = self.inner.namespaces().await?;
        match self.fault {
            Some(Fault::NamespacesStandAsAdded) => {
                let added = &self.aside.lock().unwrap().namespaces;
                namespaces.sort_by_key(|namespace| added.iter().position(|added| added == namespace));
            }
            Some(Fault::DeletedNamespacesStayListed) => {
                namespaces.extend(self.aside.lock().unwrap().namespaces.clone());
                namespaces.sort();
                namespaces.dedup();
            }
            Some(Fault::NamespacesOfForgottenAreGone) => {
                let mut kept = Vec::new();
                for namespace in namespaces {
                    if self.inner.count(&namespace, Timestamp::now()).await? > 0 {
                        kept.push(namespace);
                    }
                }
                namespaces = kept;
            }
            _ => {}
        }
        Ok(namespaces)
    }

    async fn changes(&self, namespace: &Namespace, since: Revision, now: Timestamp) -> Result<Changes> {
        let from = if self.has(Fault::ChangesAreAlwaysAll) { Revision(0) } else { since };
        let now = if self.has(Fault::ChangesAreAsOfThen) { Timestamp(0) } else { now };
        let mut changes = self.inner.changes(namespace, from, now).await?;
        match self.fault {
            Some(Fault::ChangesReuseRevisions) if since > Revision(0) => changes.revision = since,
            Some(Fault::ChangesNameRecordsTwice) if since > Revision(0) => {
                changes.records.extend(changes.records.clone())
            }
            Some(Fault::ChangesOmitSuperseded) => {
                changes.records.retain(|record| !matches!(record.state, State::Superseded { .. }));
            }
            Some(Fault::ChangesOmitForgotten) => {
                changes.records.retain(|record| !matches!(record.state, State::Forgotten { .. }));
            }
            Some(Fault::ChangesTellOfNoDeletion) => changes.deleted = false,
            Some(Fault::ChangesTellOfDeletionsAgain) if since > Revision(0) => {
                changes.deleted = self.inner.changes(namespace, Revision(1), now).await?.deleted;
            }
            Some(Fault::LeaksChanges) => {
                for other in self.inner.namespaces().await?.iter().filter(|other| *other != namespace) {
                    changes.records.extend(self.inner.changes(other, from, now).await?.records);
                }
            }
            _ => {}
        }
        changes.records = changes.records.into_iter().map(|record| self.shown(record)).collect();
        Ok(changes)
    }

    async fn link(&self, namespace: &Namespace, links: &[(RecordId, ChunkId)], now: Timestamp) -> Result<()> {
        let namespace = self.home(Fault::LeaksLink, namespace, links.first().map(|(id, _)| *id)).await;
        let pending = self.inner.pending_deletions(now).await?;
        match self.fault {
            Some(Fault::LinksNothing) if !links.is_empty() => {
                self.inner.history(&namespace, links[0].0).await?;
            }
            Some(Fault::LinksUpToTheUnknown) => {
                for link in links {
                    self.inner.link(&namespace, std::slice::from_ref(link), now).await?;
                }
            }
            _ => self.inner.link(&namespace, links, now).await?,
        }
        for &(id, chunk) in links {
            self.aside.lock().unwrap().links.entry(id).or_default().insert(chunk);
            let lost = match self.inner.get(&namespace, id, now).await?.state {
                State::Forgotten { .. } => Fault::LinksOfForgottenAreLost,
                State::Superseded { .. } => Fault::LinksOfSupersededAreLost,
                State::Expired { .. } => Fault::LinksOfExpiredAreLost,
                _ => continue,
            };
            if self.has(lost) {
                self.confirm(&[chunk], now).await?;
            }
        }
        if self.has(Fault::LinksCallOffNothing) {
            self.aside.lock().unwrap().pending.extend(pending.iter().map(|deletion| deletion.chunk));
        }
        Ok(())
    }

    async fn pending_deletions(&self, now: Timestamp) -> Result<Vec<PendingDeletion>> {
        let asked = if self.has(Fault::ExpiryKeepsChunks) { Timestamp(0) } else { now };
        let mut pending: Vec<PendingDeletion> = self.inner.pending_deletions(asked).await?;
        for &chunk in &self.aside.lock().unwrap().pending {
            if pending.iter().all(|deletion| deletion.chunk != chunk) {
                pending.push(PendingDeletion { chunk, number: 0 });
            }
        }
        if matches!(self.fault, Some(Fault::ExpiredSpareChunks | Fault::SupersededSpareChunks)) {
            let (links, latest) = {
                let aside = self.aside.lock().unwrap();
                (aside.links.clone(), aside.latest)
            };
            for (id, links) in links {
                for namespace in self.inner.namespaces().await? {
                    let Ok(record) = self.inner.get(&namespace, id, latest).await else { continue };
                    let spares = match record.state {
                        State::Expired { .. } => self.has(Fault::ExpiredSpareChunks),
                        State::Superseded { .. } => self.has(Fault::SupersededSpareChunks),
                        _ => false,
                    };
                    pending.retain(|deletion| !spares || !links.contains(&deletion.chunk));
                }
            }
        }
        if self.has(Fault::NamesDeletionsTwice) {
            pending.extend_from_within(..);
        }
        Ok(pending)
    }

    async fn are_linked(&self, chunks: &[ChunkId], now: Timestamp) -> Result<Vec<bool>> {
        let mut chunks = chunks.to_vec();
        match self.fault {
            Some(Fault::NothingIsLinked) => return Ok(vec![false; chunks.len()]),
            Some(Fault::LinkedInOrderOfIds) => chunks.sort_unstable(),
            _ => {}
        }
        let asked = if self.has(Fault::ExpiredAreLinked) { Timestamp(0) } else { now };
        self.inner.are_linked(&chunks, asked).await
    }

    async fn confirm_deleted(&self, deletions: &[PendingDeletion], now: Timestamp) -> Result<()> {
        let chunks: Vec<ChunkId> = deletions.iter().map(|deletion| deletion.chunk).collect();
        self.aside.lock().unwrap().pending.retain(|chunk| !chunks.contains(chunk));
        match self.fault {
            Some(Fault::ConfirmsNothing) => Ok(()),
            Some(Fault::ConfirmsLaterDeletions) => self.confirm(&chunks, now).await,
            Some(Fault::ConfirmsAll) => {
                let all = self.inner.pending_deletions(now).await?;
                self.inner.confirm_deleted(&all, now).await
            }
            Some(Fault::ConfirmsNothingOfExpired) => {
                let links = self.aside.lock().unwrap().links.clone();
                for (id, links) in links {
                    for namespace in self.inner.namespaces().await? {
                        let Ok(record) = self.inner.get(&namespace, id, now).await else { continue };
                        if let State::Expired { .. } = record.state {
                            let kept =
                                links.intersection(&chunks.iter().copied().collect()).copied().collect::<Vec<_>>();
                            self.aside.lock().unwrap().pending.extend(kept);
                        }
                    }
                }
                self.inner.confirm_deleted(deletions, now).await
            }
            _ => self.inner.confirm_deleted(deletions, now).await,
        }
    }

    async fn get_many(&self, namespace: &Namespace, ids: &[RecordId], now: Timestamp) -> Result<Vec<Option<Record>>> {
        let mut ids = ids.to_vec();
        if self.has(Fault::ReadsManyInOrderOfIds) {
            ids.sort_unstable();
        }
        let mut found = self.inner.get_many(namespace, &ids, now).await?;
        match self.fault {
            Some(Fault::ReadsManyWithoutTheUnknown) => found.retain(Option::is_some),
            Some(Fault::FailsToReadManyWithUnknown) => {
                if let Some(at) = found.iter().position(Option::is_none) {
                    return Err(Error::UnknownRecord { namespace: namespace.clone(), id: ids[at] });
                }
            }
            Some(Fault::LeaksGetMany) => {
                for other in self.inner.namespaces().await? {
                    let others = self.inner.get_many(&other, &ids, now).await?;
                    found.iter_mut().zip(others).for_each(|(found, other)| *found = found.take().or(other));
                }
            }
            _ => {}
        }
        Ok(found.into_iter().map(|record| record.map(|record| self.shown(record))).collect())
    }

    async fn stats(&self, namespace: &Namespace, now: Timestamp) -> Result<RecordStats> {
        let mut stats = self.inner.stats(namespace, now).await?;
        match self.fault {
            Some(Fault::StatsLeak) => stats.active += self.inner.namespaces().await?.len(),
            Some(Fault::StatsCountExpiredAsActive) => stats.active += std::mem::take(&mut stats.expired),
            Some(Fault::StatsForgetTheForgotten) => stats.forgotten = 0,
            _ => {}
        }
        Ok(stats)
    }

    async fn record_usage(&self, events: &[UsageEvent]) -> Result<()> {
        let mut aside = self.aside.lock().unwrap();
        for event in events {
            let mut event = event.clone();
            if !self.has(Fault::UsageHasNoBounds) {
                event.amounts = event.amounts.bounded();
            }
            if self.has(Fault::CountsEventsTwice) || aside.usage.iter().all(|known| known.id != event.id) {
                aside.usage.push(event);
            }
        }
        Ok(())
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageTotal>> {
        let aside = self.aside.lock().unwrap();
        let mut totals: BTreeMap<Option<Namespace>, UsageTotal> = BTreeMap::new();
        let mut query = query.clone();
        match self.fault {
            Some(Fault::UsageHasNoEnd) => query.until = None,
            Some(Fault::UsageHasNoBeginning) => query.since = None,
            Some(Fault::UsageOfOthersToo) => query.namespace = None,
            _ => {}
        }
        for event in aside.usage.iter().filter(|event| query.covers(event.at)) {
            let is_deleted =
                aside.forgotten_at.contains_key(&event.namespace) && !aside.namespaces.contains(&event.namespace);
            let owner = match self.fault {
                Some(Fault::UsageGoesWithItsNamespace) if is_deleted => continue,
                Some(Fault::UsageKeepsNames) => Some(event.namespace.clone()),
                Some(Fault::UsageHasOneTotal) => None,
                _ => Some(event.namespace.clone()).filter(|_| !is_deleted),
            };
            if query.namespace.is_some() && owner != query.namespace {
                continue;
            }
            let total = totals.entry(owner.clone()).or_insert_with(|| UsageTotal::new(owner, event.at));
            total.count(event.at, event.amounts);
        }
        Ok(totals.into_values().collect())
    }

    async fn save_index(&self, namespace: &Namespace, name: &str, index: &SavedIndex) -> Result<bool> {
        let mut aside = self.aside.lock().unwrap();
        let (forgotten, deleted) = match aside.forgotten_at.get(namespace) {
            Some(at) if *at > index.revision => {
                (aside.namespaces.contains(namespace), !aside.namespaces.contains(namespace))
            }
            Some(_) if self.has(Fault::IndexesAreNeverKeptAgain) => return Ok(false),
            _ => (false, false),
        };
        if forgotten && !self.has(Fault::IndexesOfThePastAreKept)
            || deleted && !self.has(Fault::IndexesOfDeletedAreKept)
        {
            return Ok(false);
        }
        let name = if self.has(Fault::IndexesHaveOneName) { "" } else { name };
        let place = aside.indexes.entry((namespace.clone(), name.to_owned()));
        match place {
            Entry::Occupied(_) if self.has(Fault::TheFirstIndexStays) => {}
            place => drop(place.insert_entry(index.clone())),
        }
        Ok(true)
    }

    async fn saved_index(&self, namespace: &Namespace, name: &str) -> Result<Option<SavedIndex>> {
        let name = if self.has(Fault::IndexesHaveOneName) { "" } else { name };
        let key = (namespace.clone(), name.to_owned());
        let found = self.aside.lock().unwrap().indexes.get(&key).cloned();
        let revision = self.inner.changes(namespace, Revision(0), Timestamp(0)).await?.revision;
        Ok(found.filter(|found| !self.has(Fault::IndexesGoWithAnyChange) || found.revision == revision))
    }
}
