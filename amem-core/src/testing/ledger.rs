//! What every [`Ledger`] promises.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_lite::future::block_on;

use crate::{
    Added, ChunkId, Error, Ledger, Namespace, NewRecord, Outcome, Query, Record, RecordId, Result, Revision, State,
    Timestamp,
};

/// Checks a ledger against the promises of [`Ledger`]. `make` gives a fresh, empty one each time it is called.
///
/// # Panics
/// With the promise that was broken.
pub fn ledger<L: Ledger>(make: impl Fn() -> L) {
    block_on(async {
        an_empty_ledger_has_nothing(&make()).await;
        what_was_added_comes_back_in_order(&make()).await;
        texts_are_added_all_or_none(&make()).await;
        a_duplicate_is_the_record_that_stands(&make()).await;
        a_key_has_one_active_record(&make()).await;
        an_update_keeps_the_old_text_in_the_history(&make()).await;
        an_update_that_cannot_be_changes_nothing(&make()).await;
        a_forgotten_record_has_no_text_left(&make()).await;
        a_record_expires_without_a_call(&make()).await;
        a_view_as_of_a_moment_has_the_texts_of_then(&make()).await;
        changes_are_named_once(&make()).await;
        chunks_of_gone_texts_are_doomed_until_buried(&make()).await;
        a_chunk_that_another_active_record_has_is_spared(&make()).await;
        namespaces_share_nothing(&make()).await;
    });
    many_threads_may_add_at_once(&make());
}

/// A moment in the year 2001, so that nothing here depends on the clock.
const T0: Timestamp = Timestamp(1_000_000_000_000);

fn later(seconds: u64) -> Timestamp {
    T0.after(Duration::from_secs(seconds))
}

fn ours() -> Namespace {
    Namespace::new("ours").unwrap()
}

fn keyed(key: &str, text: &str) -> NewRecord {
    NewRecord { key: Some(key.into()), ..text.into() }
}

async fn add(ledger: &impl Ledger, new: impl Into<NewRecord>, now: Timestamp) -> Added {
    let added = ledger.add(&ours(), &[new.into()], now).await.expect("a ledger takes texts");
    assert_eq!(added.len(), 1, "add answers for each text");
    added.into_iter().next().unwrap()
}

async fn texts(ledger: &impl Ledger, query: Query) -> Vec<String> {
    ledger.list(&ours(), query).await.expect("list works").into_iter().map(|record| record.text).collect()
}

fn is_unknown<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::UnknownRecord { .. }))
}

async fn an_empty_ledger_has_nothing(ledger: &impl Ledger) {
    let (ours, id) = (ours(), RecordId::new());
    assert!(ledger.list(&ours, Query::All).await.unwrap().is_empty(), "an empty ledger lists nothing");
    assert!(ledger.namespaces().await.unwrap().is_empty(), "an empty ledger has no namespaces");
    assert!(ledger.doomed().await.unwrap().is_empty(), "an empty ledger dooms nothing");
    assert!(ledger.changes(&ours, Revision(0), T0).await.unwrap().0.is_empty(), "an empty ledger has no changes");
    assert!(ledger.add(&ours, &[], T0).await.unwrap().is_empty(), "adding nothing is no error");
    ledger.link(&ours, &[]).await.expect("linking nothing is no error");
    ledger.buried(&[chunk(1)]).await.expect("burying what was not doomed is no error");
    assert!(is_unknown(ledger.get(&ours, id, T0).await), "get of an unknown record says so");
    assert!(is_unknown(ledger.update(&ours, id, "text", T0).await), "update of an unknown record says so");
    assert!(is_unknown(ledger.forget(&ours, id, T0).await), "forget of an unknown record says so");
    assert!(is_unknown(ledger.history(&ours, id).await), "history of an unknown record says so");
    assert!(is_unknown(ledger.link(&ours, &[(id, chunk(1))]).await), "link of an unknown record says so");
}

async fn what_was_added_comes_back_in_order(ledger: &impl Ledger) {
    let long = "long ".repeat(20_000);
    let new = ["zebra", "  apple\n", "mañana 🦀 \"quoted\" \0 zero", &long].map(NewRecord::from);
    let expires_at = Some(later(1000));
    let new = [&new[..], &[NewRecord { expires_at, ..keyed("home", "Vienna") }]].concat();
    let added = ledger.add(&ours(), &new, T0).await.unwrap();
    let records: Vec<Record> = added.iter().map(|added| added.record.clone()).collect();
    let said: Vec<_> = records.iter().map(|record| record.text.as_str()).collect();
    let expected = ["zebra", "apple", "mañana 🦀 \"quoted\" \0 zero", long.trim(), "Vienna"];
    assert_eq!(said, expected, "texts come back as they were, without the blanks at their ends");
    for (record, new) in records.iter().zip(&new) {
        assert_eq!((&record.key, record.expires_at), (&new.key, new.expires_at), "key and expiry come back");
        assert_eq!((record.created_at, record.updated_at), (T0, T0), "a new record was made and changed now");
        assert_eq!((record.state, &record.namespace), (State::Active, &ours()), "a new record is active");
        assert_eq!(ledger.get(&ours(), record.id, T0).await.unwrap(), *record, "get gives what add gave");
    }
    assert!(added.iter().all(|added| added.outcome == Outcome::New), "new texts are new");
    assert_eq!(records.iter().map(|record| record.id).collect::<BTreeSet<_>>().len(), 5, "ids are unique");
    let listed = ledger.list(&ours(), Query::At(T0)).await.unwrap();
    assert_eq!(listed, records, "records are listed in the order in which they were added");
}

async fn texts_are_added_all_or_none(ledger: &impl Ledger) {
    for empty in ["", " \t\n"] {
        let refused = ledger.add(&ours(), &["sound".into(), empty.into()], T0).await;
        assert!(matches!(refused, Err(Error::Empty { .. })), "a text with nothing in it is refused");
    }
    assert!(texts(ledger, Query::All).await.is_empty(), "texts are added all or none");
}

async fn a_duplicate_is_the_record_that_stands(ledger: &impl Ledger) {
    let first = add(ledger, "tea", T0).await;
    let (_, revision) = ledger.changes(&ours(), Revision(0), T0).await.unwrap();
    let again = add(ledger, " tea ", later(1)).await;
    assert_eq!(again, Added { record: first.record.clone(), outcome: Outcome::Duplicate }, "a text stands once");
    let changed = ledger.changes(&ours(), revision, later(1)).await.unwrap();
    assert_eq!(changed, (vec![], revision), "a duplicate writes nothing");
    assert_eq!(add(ledger, "Tea", later(1)).await.outcome, Outcome::New, "another spelling is another text");
    assert_eq!(add(ledger, keyed("drink", "tea"), later(1)).await.outcome, Outcome::New, "and so is another key");
    let outcome = add(ledger, keyed("drink", "tea"), later(2)).await.outcome;
    assert_eq!(outcome, Outcome::Duplicate, "a text stands once under its key");
    let twice = ledger.add(&ours(), &["milk".into(), "milk".into()], later(2)).await.unwrap();
    assert_eq!(twice[1].outcome, Outcome::Duplicate, "texts are added in order, so the second knows of the first");
    assert_eq!(twice[0].record, twice[1].record, "a duplicate is the record that stands");
    ledger.forget(&ours(), first.record.id, later(3)).await.unwrap();
    assert_eq!(add(ledger, "tea", later(4)).await.outcome, Outcome::New, "a forgotten text is no duplicate");
}

async fn a_key_has_one_active_record(ledger: &impl Ledger) {
    let old = add(ledger, keyed("home", "Vienna"), T0).await.record;
    let new = add(ledger, keyed("home", "Lima"), later(5)).await;
    assert_eq!(new.outcome, Outcome::Superseded(old.id), "a text under a key supersedes the key's active record");
    let superseded = ledger.get(&ours(), old.id, later(6)).await.unwrap();
    let state = State::Superseded { by: new.record.id, at: later(5) };
    assert_eq!((superseded.state, superseded.text.as_str()), (state, "Vienna"), "it keeps its text, and says by whom");
    assert_eq!(texts(ledger, Query::At(later(6))).await, ["Lima"], "a superseded record does not count");
    assert_eq!(texts(ledger, Query::At(later(4))).await, ["Vienna"], "but it did before");
    assert_eq!(texts(ledger, Query::All).await, ["Vienna", "Lima"], "all records are listed when all are asked for");
    let update = ledger.update(&ours(), old.id, "Oslo", later(6)).await;
    assert!(matches!(update, Err(Error::NotActive { state: "superseded", .. })), "its life is over");
    let back = add(ledger, keyed("home", "Vienna"), later(7)).await;
    assert_eq!(back.outcome, Outcome::Superseded(new.record.id), "a superseded text can come back");
    add(ledger, "no key", later(7)).await;
    let other = add(ledger, "no key either", later(7)).await.outcome;
    assert_eq!(other, Outcome::New, "records without a key do not supersede one another");
}

async fn an_update_keeps_the_old_text_in_the_history(ledger: &impl Ledger) {
    let id = add(ledger, keyed("home", "Vienna"), T0).await.record.id;
    let updated = ledger.update(&ours(), id, " Vienna, 9th district ", later(5)).await.expect("it is active");
    assert_eq!(updated.text, "Vienna, 9th district", "an update gives another text, without blanks at its ends");
    assert_eq!((updated.created_at, updated.updated_at), (T0, later(5)), "an update is a change, not a beginning");
    assert_eq!(ledger.get(&ours(), id, later(6)).await.unwrap(), updated, "get gives what update gave");
    let history = ledger.history(&ours(), id).await.unwrap();
    let history: Vec<_> = history.iter().map(|version| (version.text.as_str(), version.from, version.until)).collect();
    let expected = [("Vienna", T0, Some(later(5))), ("Vienna, 9th district", later(5), None)];
    assert_eq!(history, expected, "the history has all texts, oldest first, and when they stood");
    let same = add(ledger, keyed("home", "Vienna, 9th district"), later(6)).await.outcome;
    assert_eq!(same, Outcome::Duplicate, "duplicates are told by the present text");
}

async fn an_update_that_cannot_be_changes_nothing(ledger: &impl Ledger) {
    let tea = add(ledger, "tea", T0).await.record;
    let milk = add(ledger, "milk", T0).await.record;
    let (_, revision) = ledger.changes(&ours(), Revision(0), T0).await.unwrap();
    let empty = ledger.update(&ours(), tea.id, "  ", later(1)).await;
    assert!(matches!(empty, Err(Error::Empty { .. })), "a record must say something");
    let same = ledger.update(&ours(), tea.id, " milk", later(1)).await;
    let refused = matches!(same, Err(Error::SameText { existing }) if existing == milk.id);
    assert!(refused, "two active records must not say the same");
    assert_eq!(ledger.get(&ours(), tea.id, later(1)).await.unwrap(), tea, "a failed update changes nothing");
    assert_eq!(ledger.changes(&ours(), revision, later(1)).await.unwrap().0, [], "a failed update is no change");
    let own = ledger.update(&ours(), tea.id, "tea", later(1)).await;
    assert_eq!(own.expect("a record may be given the text that it has"), tea, "which changes nothing");
    assert_eq!(ledger.changes(&ours(), revision, later(1)).await.unwrap().0, [], "the same text is no change");
    add(ledger, keyed("drink", "coffee"), T0).await;
    ledger.update(&ours(), tea.id, "coffee", later(2)).await.expect("a record with a key is no match for one without");
}

async fn a_forgotten_record_has_no_text_left(ledger: &impl Ledger) {
    let id = add(ledger, "secret", T0).await.record.id;
    ledger.update(&ours(), id, "dark secret", later(1)).await.unwrap();
    let forgotten = ledger.forget(&ours(), id, later(2)).await.expect("any record can be forgotten");
    assert_eq!(forgotten.state, State::Forgotten { at: later(2) }, "forget says when");
    assert_eq!(forgotten.text, "", "a forgotten record has no text");
    assert_eq!(ledger.get(&ours(), id, later(3)).await.unwrap(), forgotten, "get gives what forget gave");
    let history = ledger.history(&ours(), id).await.unwrap();
    assert!(history.iter().all(|version| version.text.is_empty()), "its history has no texts");
    assert_eq!(history.last().unwrap().until, Some(later(2)), "its last text stood until then");
    assert_eq!(texts(ledger, Query::All).await, [""], "it is listed among all records, without its text");
    for moment in [T0, later(1), later(2), later(3)] {
        assert!(texts(ledger, Query::At(moment)).await.is_empty(), "it appears in no view as of a moment");
    }
    let (_, revision) = ledger.changes(&ours(), Revision(0), later(3)).await.unwrap();
    let again = ledger.forget(&ours(), id, later(4)).await.expect("forgetting again is no error");
    assert_eq!(again, forgotten, "forgetting again changes nothing");
    assert_eq!(ledger.changes(&ours(), revision, later(4)).await.unwrap(), (vec![], revision), "and is no change");
    let update = ledger.update(&ours(), id, "text", later(5)).await;
    assert!(matches!(update, Err(Error::NotActive { state: "forgotten", .. })), "its life is over");
    let old = add(ledger, keyed("home", "Vienna"), T0).await.record;
    add(ledger, keyed("home", "Lima"), later(1)).await;
    let state = ledger.forget(&ours(), old.id, later(2)).await.expect("a superseded record can be forgotten").state;
    assert_eq!(state, State::Forgotten { at: later(2) }, "a superseded record can be forgotten");
}

async fn a_record_expires_without_a_call(ledger: &impl Ledger) {
    let expires_at = Some(later(10));
    let brief = add(ledger, NewRecord { expires_at, ..keyed("mood", "tired") }, T0).await.record;
    assert_eq!(ledger.get(&ours(), brief.id, later(9)).await.unwrap().state, State::Active, "its time is not over");
    let expired = ledger.get(&ours(), brief.id, later(10)).await.unwrap();
    assert_eq!(expired.state, State::Expired { at: later(10) }, "it expires at its time, not after");
    assert_eq!(expired.text, "tired", "an expired record keeps its text");
    assert_eq!(texts(ledger, Query::At(later(9))).await, ["tired"], "it counts before its time");
    assert!(texts(ledger, Query::At(later(10))).await.is_empty(), "it does not count from its time on");
    let update = ledger.update(&ours(), brief.id, "awake", later(10)).await;
    assert!(matches!(update, Err(Error::NotActive { state: "expired", .. })), "its life is over");
    let (changed, _) = ledger.changes(&ours(), Revision(0), later(10)).await.unwrap();
    assert_eq!(changed[0].state, expired.state, "changes gives records as they are now");
    let again = add(ledger, keyed("mood", "tired"), later(11)).await.outcome;
    assert_eq!(again, Outcome::New, "an expired record is neither a duplicate nor superseded");
    assert_eq!(ledger.get(&ours(), brief.id, later(12)).await.unwrap().state, expired.state, "it stays expired");
    let stillborn = NewRecord { expires_at: Some(T0), ..NewRecord::from("past") };
    let stillborn = add(ledger, stillborn, later(1)).await.record.id;
    let state = ledger.get(&ours(), stillborn, later(1)).await.unwrap().state;
    assert_eq!(state, State::Expired { at: T0 }, "a record may have expired before it was added");
    let forgotten = ledger.forget(&ours(), brief.id, later(13)).await.expect("an expired record can be forgotten");
    assert_eq!(forgotten.state, State::Forgotten { at: later(13) }, "an expired record can be forgotten");
}

async fn a_view_as_of_a_moment_has_the_texts_of_then(ledger: &impl Ledger) {
    let id = add(ledger, "one", T0).await.record.id;
    add(ledger, "other", later(3)).await;
    ledger.update(&ours(), id, "two", later(5)).await.unwrap();
    ledger.update(&ours(), id, "three", later(7)).await.unwrap();
    assert!(texts(ledger, Query::At(Timestamp(T0.0 - 1))).await.is_empty(), "nothing counts before it is added");
    assert_eq!(texts(ledger, Query::At(T0)).await, ["one"], "a record counts from the moment it is added");
    assert_eq!(texts(ledger, Query::At(later(4))).await, ["one", "other"], "as of then, it had its first text");
    assert_eq!(texts(ledger, Query::At(later(5))).await, ["two", "other"], "a new text counts from its moment on");
    assert_eq!(texts(ledger, Query::At(later(9))).await, ["three", "other"], "now it has its last");
    let then = &ledger.list(&ours(), Query::At(later(6))).await.unwrap()[0];
    assert_eq!((then.updated_at, then.state), (later(5), State::Active), "the record is as it was then");
}

async fn changes_are_named_once(ledger: &impl Ledger) {
    let a = add(ledger, "a", T0).await.record;
    let b = add(ledger, keyed("k", "b"), T0).await.record;
    let (all, first) = ledger.changes(&ours(), Revision(0), T0).await.unwrap();
    assert_eq!(all, [a.clone(), b.clone()], "Revision(0) asks for all");
    assert_eq!(ledger.changes(&ours(), first, T0).await.unwrap(), (vec![], first), "nothing changed since");
    let c = add(ledger, keyed("k", "c"), later(1)).await.record;
    ledger.update(&ours(), a.id, "a2", later(1)).await.unwrap();
    let (changed, second) = ledger.changes(&ours(), first, later(1)).await.unwrap();
    let ids: BTreeSet<_> = changed.iter().map(|record| record.id).collect();
    assert_eq!(ids, BTreeSet::from([a.id, b.id, c.id]), "what was added, updated or superseded has changed");
    assert!(second > first, "every change has a later revision");
    let told = changed.iter().find(|record| record.id == b.id).unwrap().state;
    assert_eq!(told, State::Superseded { by: c.id, at: later(1) }, "records are told as they are now");
    ledger.forget(&ours(), c.id, later(2)).await.unwrap();
    let (changed, third) = ledger.changes(&ours(), second, later(2)).await.unwrap();
    assert_eq!(changed.iter().map(|record| record.id).collect::<Vec<_>>(), [c.id], "a forgotten record has changed");
    assert!(third > second, "every change has a later revision");
    let everything = ledger.changes(&ours(), Revision(0), later(2)).await.unwrap().0;
    assert_eq!(everything.len(), 3, "Revision(0) asks for all, whatever became of them");
}

async fn chunks_of_gone_texts_are_doomed_until_buried(ledger: &impl Ledger) {
    let [a, b] = [add(ledger, "a", T0).await.record.id, add(ledger, "b", T0).await.record.id];
    let links = [(a, chunk(1)), (a, chunk(2)), (b, chunk(3)), (b, chunk(3))];
    ledger.link(&ours(), &links).await.expect("records are linked to chunks");
    assert!(ledger.doomed().await.unwrap().is_empty(), "chunks of present texts are not doomed");
    ledger.forget(&ours(), a, later(1)).await.unwrap();
    assert_eq!(doomed(ledger).await, [chunk(1), chunk(2)].into(), "forgetting dooms all chunks of a record");
    ledger.buried(&[chunk(1)]).await.unwrap();
    assert_eq!(doomed(ledger).await, [chunk(2)].into(), "a chunk is doomed until it is buried");
    ledger.buried(&[chunk(1), chunk(2)]).await.expect("burying twice is no error");
    ledger.update(&ours(), b, "b2", later(2)).await.unwrap();
    assert_eq!(doomed(ledger).await, [chunk(3)].into(), "an update dooms the chunks of the old text");
    ledger.buried(&[chunk(3)]).await.unwrap();
    ledger.link(&ours(), &[(b, chunk(4))]).await.unwrap();
    ledger.forget(&ours(), b, later(3)).await.unwrap();
    assert_eq!(doomed(ledger).await, [chunk(4)].into(), "links to the old text are not links to the new one");
    ledger.buried(&[chunk(4)]).await.unwrap();
    ledger.link(&ours(), &[(a, chunk(5))]).await.expect("a record may be forgotten before its chunk is linked");
    assert_eq!(doomed(ledger).await, [chunk(5)].into(), "the chunk of a forgotten text is doomed at once");
    let c = add(ledger, "a", later(4)).await.record.id;
    ledger.link(&ours(), &[(c, chunk(5))]).await.unwrap();
    assert!(doomed(ledger).await.is_empty(), "a doomed chunk that an active record links is doomed no more");
    let unknown = ledger.link(&ours(), &[(c, chunk(6)), (RecordId::new(), chunk(7))]).await;
    assert!(is_unknown(unknown), "link of an unknown record says so");
    ledger.forget(&ours(), c, later(5)).await.unwrap();
    assert_eq!(doomed(ledger).await, [chunk(5)].into(), "a failed link links nothing");
}

async fn a_chunk_that_another_active_record_has_is_spared(ledger: &impl Ledger) {
    let [a, b] = [add(ledger, "x", T0).await.record.id, add(ledger, keyed("k", "x"), T0).await.record.id];
    ledger.link(&ours(), &[(a, chunk(1)), (b, chunk(1))]).await.unwrap();
    ledger.forget(&ours(), a, later(1)).await.unwrap();
    assert!(doomed(ledger).await.is_empty(), "a chunk that another active record links is not doomed");
    ledger.forget(&ours(), b, later(2)).await.unwrap();
    assert_eq!(doomed(ledger).await, [chunk(1)].into(), "until that one is forgotten too");
}

async fn namespaces_share_nothing(ledger: &impl Ledger) {
    let theirs = Namespace::new("theirs").unwrap();
    let record = add(ledger, keyed("k", "text"), T0).await.record;
    let other = ledger.add(&theirs, &[keyed("k", "text")], T0).await.unwrap().remove(0);
    assert_eq!(other.outcome, Outcome::New, "another namespace's record is neither a duplicate nor superseded");
    let both = [ours(), theirs.clone()];
    assert_eq!(ledger.namespaces().await.unwrap(), both, "namespaces are listed in order of their names");
    let id = record.id;
    assert!(is_unknown(ledger.get(&theirs, id, T0).await), "get knows its namespace only");
    assert!(is_unknown(ledger.update(&theirs, id, "new", T0).await), "update knows its namespace only");
    assert!(is_unknown(ledger.forget(&theirs, id, T0).await), "forget knows its namespace only");
    assert!(is_unknown(ledger.history(&theirs, id).await), "history knows its namespace only");
    assert!(is_unknown(ledger.link(&theirs, &[(id, chunk(1))]).await), "link knows its namespace only");
    let theirs_only = [other.record];
    assert_eq!(ledger.list(&theirs, Query::All).await.unwrap(), theirs_only, "list knows its namespace only");
    let (changed, _) = ledger.changes(&theirs, Revision(0), T0).await.unwrap();
    assert_eq!(changed, theirs_only, "changes knows its namespace only");
    ledger.forget(&ours(), id, T0).await.unwrap();
    assert_eq!(ledger.namespaces().await.unwrap(), both, "a forgotten record is still a record");
}

fn many_threads_may_add_at_once(ledger: &impl Ledger) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for round in 0..10 {
                    let texts = [format!("{thread} {round}"), format!("everybody's {round}")];
                    let added = block_on(ledger.add(&ours(), &texts.map(NewRecord::from), T0));
                    added.expect("threads may add at once");
                }
            });
        }
    });
    let listed = block_on(ledger.list(&ours(), Query::At(T0))).unwrap();
    assert_eq!(listed.len(), 50, "no text is lost, and none stands twice");
}

async fn doomed(ledger: &impl Ledger) -> BTreeSet<ChunkId> {
    let doomed = ledger.doomed().await.expect("doomed works");
    let set: BTreeSet<_> = doomed.iter().copied().collect();
    assert_eq!(set.len(), doomed.len(), "a doomed chunk is named once");
    set
}

fn chunk(n: u8) -> ChunkId {
    ChunkId([n; 32])
}
