//! What every [`Ledger`] promises.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_lite::future::block_on;

use crate::{
    Added, Amounts, Change, Changes, ChunkId, Comparison, Error, Field, Filter, Ledger, Listing, MetaValue, Metadata,
    Namespace, NewRecord, Outcome, PendingDeletion, Query, Record, RecordId, RecordStats, Result, Revision, SavedIndex,
    State, Timestamp, UsageEvent, UsageQuery, UsageTotal,
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
        a_forgotten_record_has_nothing_left(&make()).await;
        a_record_expires_without_a_call(&make()).await;
        a_view_as_of_a_moment_has_the_texts_of_then(&make()).await;
        changes_are_named_once(&make()).await;
        chunks_of_gone_texts_are_pending_deletions_until_confirmed(&make()).await;
        a_chunk_that_another_active_record_has_is_spared(&make()).await;
        chunks_of_texts_that_no_longer_count_are_pending_deletions(&make()).await;
        chunks_are_linked_while_active_records_have_them(&make()).await;
        confirming_a_deletion_confirms_no_later_one(&make()).await;
        pages_follow_one_another(&make()).await;
        a_filter_is_asked_before_the_page_is_full(&make()).await;
        records_are_counted(&make()).await;
        metadata_and_moments_are_kept_and_bounded(&make()).await;
        an_older_text_does_not_take_a_newer_ones_place(&make()).await;
        filters_mean_the_same_everywhere(&make()).await;
        many_are_forgotten_all_or_none(&make()).await;
        namespaces_share_nothing(&make()).await;
        a_deleted_namespace_is_gone_and_can_be_filled_again(&make()).await;
        many_are_read_at_once_in_their_order(&make()).await;
        records_are_counted_by_their_states(&make()).await;
        usage_is_counted_once(&make()).await;
        usage_outlives_its_namespace_without_its_name(&make()).await;
        a_saved_index_is_gone_once_something_is_forgotten(&make()).await;
        what_expired_before_it_was_added_takes_no_place(&make()).await;
        what_expired_before_it_was_added_never_counts(&make()).await;
        a_change_is_of_what_it_names(&make()).await;
        a_change_that_cannot_be_changes_nothing(&make()).await;
        what_is_told_again_has_what_was_stated_last(&make()).await;
        a_key_is_forgotten_with_all_that_was_said_under_it(&make()).await;
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
    NewRecord::new(text).key(key)
}

async fn add(ledger: &impl Ledger, new: impl Into<NewRecord>, now: Timestamp) -> Added {
    let added = ledger.add(&ours(), &[new.into()], now).await.expect("a ledger takes texts");
    assert_eq!(added.len(), 1, "add answers for each text");
    added.into_iter().next().unwrap()
}

async fn texts(ledger: &impl Ledger, query: Query) -> Vec<String> {
    ledger.list(&ours(), query).await.expect("list works").into_iter().map(|record| record.text).collect()
}

fn none(revision: Revision) -> Changes {
    Changes { deleted: false, records: Vec::new(), revision }
}

fn is_unknown<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::UnknownRecord { .. }))
}

async fn an_empty_ledger_has_nothing(ledger: &impl Ledger) {
    let (ours, id) = (ours(), RecordId::new());
    assert!(ledger.list(&ours, Query::All).await.unwrap().is_empty(), "an empty ledger lists nothing");
    assert!(ledger.namespaces().await.unwrap().is_empty(), "an empty ledger has no namespaces");
    assert!(ledger.pending_deletions(T0).await.unwrap().is_empty(), "an empty ledger has nothing to delete");
    assert!(ledger.changes(&ours, Revision(0), T0).await.unwrap().records.is_empty(), "an empty ledger has no changes");
    assert!(ledger.add(&ours, &[], T0).await.unwrap().is_empty(), "adding nothing is no error");
    ledger.link(&ours, &[], T0).await.expect("linking nothing is no error");
    confirm(ledger, &[chunk(1)], later(7)).await.expect("confirming what was not pending is no error");
    assert!(is_unknown(ledger.get(&ours, id, T0).await), "get of an unknown record says so");
    assert!(is_unknown(ledger.update(&ours, id, "text", T0).await), "update of an unknown record says so");
    assert!(is_unknown(ledger.forget(&ours, id, T0).await), "forget of an unknown record says so");
    assert!(is_unknown(ledger.history(&ours, id).await), "history of an unknown record says so");
    assert!(is_unknown(ledger.link(&ours, &[(id, chunk(1))], T0).await), "link of an unknown record says so");
}

async fn what_was_added_comes_back_in_order(ledger: &impl Ledger) {
    let long = "long ".repeat(20_000);
    let new = ["zebra", "  apple\n", "mañana 🦀 \"quoted\" \0 zero", &long].map(NewRecord::from);
    let new = [&new[..], &[keyed("home", "Vienna").expires_at(later(1000))]].concat();
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
    let Changes { revision, .. } = ledger.changes(&ours(), Revision(0), T0).await.unwrap();
    let again = add(ledger, " tea ", later(1)).await;
    assert_eq!(again, Added { record: first.record.clone(), outcome: Outcome::Duplicate }, "a text stands once");
    let changed = ledger.changes(&ours(), revision, later(1)).await.unwrap();
    assert_eq!(changed, none(revision), "a duplicate writes nothing");
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
    let Changes { revision, .. } = ledger.changes(&ours(), Revision(0), T0).await.unwrap();
    let empty = ledger.update(&ours(), tea.id, "  ", later(1)).await;
    assert!(matches!(empty, Err(Error::Empty { .. })), "a record must say something");
    let same = ledger.update(&ours(), tea.id, " milk", later(1)).await;
    let refused = matches!(same, Err(Error::SameText { existing }) if existing == milk.id);
    assert!(refused, "two active records must not say the same");
    assert_eq!(ledger.get(&ours(), tea.id, later(1)).await.unwrap(), tea, "a failed update changes nothing");
    let changes = ledger.changes(&ours(), revision, later(1)).await.unwrap();
    assert_eq!(changes, none(revision), "a failed update is no change");
    let own = ledger.update(&ours(), tea.id, "tea", later(1)).await;
    assert_eq!(own.expect("a record may be given the text that it has"), tea, "which changes nothing");
    let changes = ledger.changes(&ours(), revision, later(1)).await.unwrap();
    assert_eq!(changes, none(revision), "the same text is no change");
    add(ledger, keyed("drink", "coffee"), T0).await;
    ledger.update(&ours(), tea.id, "coffee", later(2)).await.expect("a record with a key is no match for one without");
    add(ledger, NewRecord::new("cocoa").expires_at(later(3)), T0).await;
    ledger.forget(&ours(), milk.id, later(2)).await.unwrap();
    for free in ["cocoa", "milk", "tea"] {
        let updated = ledger.update(&ours(), tea.id, free, later(3)).await;
        assert_eq!(updated.expect("a record may be given a text that no active record says").text, free);
    }
}

async fn a_forgotten_record_has_nothing_left(ledger: &impl Ledger) {
    let metadata = [("who", "a secret source")].into_iter().collect();
    let id = add(ledger, keyed("secret key", "secret").metadata(metadata), T0).await.record.id;
    ledger.update(&ours(), id, "dark secret", later(1)).await.unwrap();
    let forgotten = ledger.forget(&ours(), id, later(2)).await.expect("any record can be forgotten");
    assert_eq!(forgotten.state, State::Forgotten { at: later(2) }, "forget says when");
    assert_eq!(forgotten.text, "", "a forgotten record has no text");
    assert!(forgotten.key.is_none() && forgotten.metadata.is_empty(), "nor key nor metadata");
    assert_eq!(ledger.get(&ours(), id, later(3)).await.unwrap(), forgotten, "get gives what forget gave");
    let history = ledger.history(&ours(), id).await.unwrap();
    assert!(history.iter().all(|version| version.text.is_empty()), "its history has no texts");
    assert_eq!(history.last().unwrap().until, Some(later(2)), "its last text stood until then");
    assert_eq!(texts(ledger, Query::All).await, [""], "it is listed among all records, without its text");
    for moment in [T0, later(1), later(2), later(3)] {
        assert!(texts(ledger, Query::At(moment)).await.is_empty(), "it appears in no view as of a moment");
    }
    let Changes { revision, .. } = ledger.changes(&ours(), Revision(0), later(3)).await.unwrap();
    let again = ledger.forget(&ours(), id, later(4)).await.expect("forgetting again is no error");
    assert_eq!(again, forgotten, "forgetting again changes nothing");
    assert_eq!(ledger.changes(&ours(), revision, later(4)).await.unwrap(), none(revision), "and is no change");
    let update = ledger.update(&ours(), id, "text", later(5)).await;
    assert!(matches!(update, Err(Error::NotActive { state: "forgotten", .. })), "its life is over");
    let old = add(ledger, keyed("home", "Vienna"), T0).await.record;
    add(ledger, keyed("home", "Lima"), later(1)).await;
    let state = ledger.forget(&ours(), old.id, later(2)).await.expect("a superseded record can be forgotten").state;
    assert_eq!(state, State::Forgotten { at: later(2) }, "a superseded record can be forgotten");
}

async fn a_record_expires_without_a_call(ledger: &impl Ledger) {
    let brief = add(ledger, keyed("mood", "tired").expires_at(later(10)), T0).await.record;
    assert_eq!(ledger.get(&ours(), brief.id, later(9)).await.unwrap().state, State::Active, "its time is not over");
    let expired = ledger.get(&ours(), brief.id, later(10)).await.unwrap();
    assert_eq!(expired.state, State::Expired { at: later(10) }, "it expires at its time, not after");
    assert_eq!(expired.text, "tired", "an expired record keeps its text");
    assert_eq!(texts(ledger, Query::At(later(9))).await, ["tired"], "it counts before its time");
    assert!(texts(ledger, Query::At(later(10))).await.is_empty(), "it does not count from its time on");
    let update = ledger.update(&ours(), brief.id, "awake", later(10)).await;
    assert!(matches!(update, Err(Error::NotActive { state: "expired", .. })), "its life is over");
    let Changes { records: changed, .. } = ledger.changes(&ours(), Revision(0), later(10)).await.unwrap();
    assert_eq!(changed[0].state, expired.state, "changes gives records as they are now");
    let again = add(ledger, keyed("mood", "tired"), later(11)).await.outcome;
    assert_eq!(again, Outcome::New, "an expired record is neither a duplicate nor superseded");
    assert_eq!(ledger.get(&ours(), brief.id, later(12)).await.unwrap().state, expired.state, "it stays expired");
    let stillborn = add(ledger, NewRecord::new("past").expires_at(T0), later(1)).await.record.id;
    let state = ledger.get(&ours(), stillborn, later(1)).await.unwrap().state;
    assert_eq!(state, State::Expired { at: T0 }, "a record may have expired before it was added");
    let forgotten = ledger.forget(&ours(), brief.id, later(13)).await.expect("an expired record can be forgotten");
    assert_eq!(forgotten.state, State::Forgotten { at: later(13) }, "an expired record can be forgotten");
}

async fn what_expired_before_it_was_added_never_counts(ledger: &impl Ledger) {
    let added = add(ledger, keyed("mood", "tired").expires_at(T0), later(1)).await;
    assert_eq!(added.outcome, Outcome::New);
    let expired = State::Expired { at: T0 };
    assert_eq!(added.record.state, expired, "add says that it has expired");
    for moment in [Timestamp(T0.0 - 1), T0, later(1), later(9)] {
        assert!(texts(ledger, Query::At(moment)).await.is_empty(), "no view has what expired before it was added");
    }
    for now in [later(1), later(9)] {
        assert_eq!(ledger.count(&ours(), now).await.unwrap(), 0, "nor is it counted");
    }
    let stats = ledger.stats(&ours(), later(1)).await.unwrap();
    assert_eq!((stats.active, stats.expired), (0, 1), "it counts as an expired one");
    let Changes { records: changed, .. } = ledger.changes(&ours(), Revision(0), later(1)).await.unwrap();
    let changed: Vec<_> = changed.iter().map(|record| (record.id, record.state)).collect();
    assert_eq!(changed, [(added.record.id, expired)], "changes names it as an expired one");
    ledger.link(&ours(), &[(added.record.id, chunk(1))], later(1)).await.expect("its chunk can be named");
    assert_eq!(ledger.are_linked(&[chunk(1)], later(1)).await.unwrap(), [false], "no chunk is wanted for it");
    assert_eq!(pending_at(ledger, later(1)).await, [chunk(1)].into(), "and its chunk is to be deleted");
    let lasting = add(ledger, keyed("mood", "tired"), later(2)).await;
    assert_eq!(lasting.outcome, Outcome::New, "it is neither a duplicate nor superseded");
    let told_late = keyed("job", "baker").created_at(Timestamp(T0.0 - 9000)).expires_at(T0);
    add(ledger, told_late, later(3)).await;
    let then = Timestamp(T0.0 - 1);
    assert_eq!(texts(ledger, Query::At(then)).await, ["baker"], "what was said before its time counted until then");
    assert_eq!(texts(ledger, Query::At(later(3))).await, ["tired"], "and does not count now");
}

async fn what_expired_before_it_was_added_takes_no_place(ledger: &impl Ledger) {
    let vienna = add(ledger, keyed("home", "Vienna"), T0).await.record;
    ledger.link(&ours(), &[(vienna.id, chunk(1))], T0).await.unwrap();
    let Changes { revision, .. } = ledger.changes(&ours(), Revision(0), T0).await.unwrap();
    let lima = add(ledger, keyed("home", "Lima").expires_at(later(1)), later(2)).await;
    let expired = State::Expired { at: later(1) };
    assert_eq!((lima.outcome, lima.record.state), (Outcome::New, expired), "add says that it has expired");
    let reason = "what has expired before it was added takes no place";
    assert_eq!(ledger.get(&ours(), vienna.id, later(2)).await.unwrap(), vienna, "{reason}");
    let view = texts(ledger, Query::At(later(2))).await;
    assert_eq!(view, ["Vienna"], "no view has what expired before it was added");
    assert!(pending_at(ledger, later(2)).await.is_empty(), "{reason}");
    let changes = ledger.changes(&ours(), revision, later(2)).await.unwrap().records;
    assert_eq!(changes, [lima.record], "it is the only change");
    let both = [keyed("job", "baker"), keyed("job", "smith").expires_at(later(1)), keyed("job", "cook")];
    let both = ledger.add(&ours(), &both, later(3)).await.unwrap();
    let outcomes: Vec<_> = both.iter().map(|added| added.outcome).collect();
    assert_eq!(outcomes, [Outcome::New, Outcome::New, Outcome::Superseded(both[0].record.id)], "nor within one call");
}

async fn a_change_is_of_what_it_names(ledger: &impl Ledger) {
    let from = |source: &str| Metadata::from_iter([("source", source)]);
    let tea = add(ledger, NewRecord::new("tea").metadata(from("mail")), T0).await.record;
    let id = tea.id;
    ledger.link(&ours(), &[(id, chunk(1))], T0).await.unwrap();
    let Changes { mut revision, .. } = ledger.changes(&ours(), Revision(0), T0).await.unwrap();
    let change = async |change: Change, now| ledger.change(&ours(), id, &change, now).await;
    let same = Change::new().text(" tea ").no_key().metadata(from("mail")).no_expiry();
    for nothing in [Change::new(), same] {
        assert_eq!(change(nothing, later(1)).await.expect("a change may be of nothing"), tea);
        assert_eq!(ledger.changes(&ours(), revision, later(1)).await.unwrap(), none(revision), "which is no change");
    }
    let mut expected = Record { key: Some("drink".to_owned()), ..tea };
    let keyed_now = change(Change::new().key("drink"), later(1)).await.expect("it is active");
    assert_eq!(keyed_now, expected, "a change gives a key, and nothing else");
    expected.metadata = from("chat");
    let changed = change(Change::new().metadata(from("chat")), later(2)).await.expect("it is active");
    assert_eq!(changed, expected, "a change gives metadata, and nothing else");
    expected.expires_at = Some(later(100));
    let changed = change(Change::new().expires_at(later(100)), later(3)).await.expect("it is active");
    assert_eq!(changed, expected, "a change gives an end, and nothing else");
    assert_eq!(ledger.get(&ours(), id, later(4)).await.unwrap(), expected, "get gives what change gave");
    let changes = ledger.changes(&ours(), revision, later(4)).await.unwrap();
    assert_eq!(changes.records, [expected.clone()], "a changed record has changed");
    revision = changes.revision;
    let history = ledger.history(&ours(), id).await.unwrap();
    assert_eq!((history.len(), history[0].until), (1, None), "its text stands as it stood");
    let reason = "the chunks of a text that did not change stay";
    assert_eq!(ledger.are_linked(&[chunk(1)], later(4)).await.unwrap(), [true], "{reason}");
    assert!(pending_at(ledger, later(4)).await.is_empty(), "{reason}");
    change(Change::new().expires_at(later(200)), later(5)).await.unwrap();
    assert_eq!(ledger.are_linked(&[chunk(1)], later(150)).await.unwrap(), [true], "an end can be moved");
    assert!(pending_at(ledger, later(150)).await.is_empty(), "and the end of its chunks with it");
    let lasting = change(Change::new().no_expiry(), later(6)).await.unwrap();
    assert_eq!((lasting.expires_at, lasting.state), (None, State::Active), "an end can be taken away");
    assert!(pending_at(ledger, later(300)).await.is_empty(), "and that of its chunks with it");

    let again = add(ledger, keyed("drink", "tea"), later(7)).await;
    assert_eq!((again.outcome, again.record.id), (Outcome::Duplicate, id), "it is found under its new key");
    let keyless = add(ledger, "tea", later(7)).await;
    assert_eq!(keyless.outcome, Outcome::New, "and not without");
    let all = Change::new().text("green tea").key("hot drink").metadata(from("web")).expires_at(later(400));
    let changed = change(all, later(8)).await.expect("all can change at once");
    assert_eq!((&*changed.text, changed.key.as_deref()), ("green tea", Some("hot drink")), "all of it changes");
    assert_eq!((&changed.metadata, changed.expires_at), (&from("web"), Some(later(400))), "all of it changes");
    assert_eq!((changed.created_at, changed.updated_at), (T0, later(8)), "another text is an update");
    let history = ledger.history(&ours(), id).await.unwrap();
    let history: Vec<_> = history.iter().map(|version| (version.text.as_str(), version.until)).collect();
    assert_eq!(history, [("tea", Some(later(8))), ("green tea", None)], "which the history has");
    assert_eq!(pending_at(ledger, later(8)).await, [chunk(1)].into(), "the chunks of the old text are to be deleted");
    let coffee = add(ledger, keyed("drink", "coffee"), later(9)).await;
    assert_eq!(coffee.outcome, Outcome::New, "the key that it had is free");
    let next = add(ledger, keyed("hot drink", "cocoa"), later(9)).await;
    assert_eq!(next.outcome, Outcome::Superseded(id), "the key that it got is taken");
    let cocoa = ledger.change(&ours(), next.record.id, &Change::new().no_key(), later(10)).await.unwrap();
    assert_eq!(cocoa.key, None, "a change takes a key away");
    assert_eq!(add(ledger, "cocoa", later(11)).await.outcome, Outcome::Duplicate, "a change takes a key away");
    assert!(ledger.changes(&ours(), revision, later(11)).await.unwrap().revision > revision);
    let over = ledger.change(&ours(), cocoa.id, &Change::new().expires_at(later(5)), later(12)).await.unwrap();
    assert_eq!(over.state, State::Expired { at: later(5) }, "a record's time may be said to be over");
}

async fn a_change_that_cannot_be_changes_nothing(ledger: &impl Ledger) {
    let theirs = Namespace::new("theirs").unwrap();
    let metadata = |n: usize| Metadata::from_iter((0..n).map(|n| (n.to_string(), true)));
    let tea = add(ledger, keyed("drink", "tea").metadata(metadata(1)), T0).await.record;
    let bread = add(ledger, keyed("food", "bread"), T0).await.record;
    let keyless = add(ledger, "tea", T0).await.record;
    let gone = add(ledger, NewRecord::new("gone").expires_at(later(1)), T0).await.record;
    let Changes { revision, .. } = ledger.changes(&ours(), Revision(0), T0).await.unwrap();
    let refused =
        async |change: Change| ledger.change(&ours(), tea.id, &change, later(1)).await.expect_err("it cannot be");
    let taken = ledger.change(&ours(), tea.id, &Change::new().key("food"), later(1)).await;
    let is_taken = matches!(taken, Err(Error::KeyTaken { existing }) if existing == bread.id);
    assert!(is_taken, "a key has one active record, so another's is refused");
    assert!(matches!(refused(Change::new().text("x").key("food")).await, Error::KeyTaken { .. }));
    let same = refused(Change::new().no_key()).await;
    assert!(
        matches!(same, Error::SameText { existing } if existing == keyless.id),
        "two records must not say the same"
    );
    let other = ledger.change(&ours(), tea.id, &Change::new().text("x").if_metadata(metadata(2)), later(1)).await;
    let is_other = matches!(other, Err(Error::ChangedMeanwhile { id }) if id == tea.id);
    assert!(is_other, "a change for other metadata is refused");
    assert!(matches!(refused(Change::new().text(" ").key("new")).await, Error::Empty { .. }));
    let long = "k".repeat(NewRecord::MAX_KEY_BYTES + 1);
    for beyond in [Change::new().key(long), Change::new().metadata(metadata(65))] {
        assert!(matches!(refused(beyond).await, Error::BadValue { .. }), "keys and metadata have bounds");
    }
    let key = &Change::new().key("new");
    let over = ledger.change(&ours(), gone.id, key, later(1)).await;
    assert!(matches!(over, Err(Error::NotActive { state: "expired", .. })), "its life is over");
    assert!(is_unknown(ledger.change(&ours(), RecordId::new(), key, later(1)).await));
    assert!(is_unknown(ledger.change(&theirs, tea.id, key, later(1)).await), "change knows its namespace only");
    let changes = ledger.changes(&ours(), revision, later(1)).await.unwrap();
    assert_eq!(changes, none(revision), "what is refused is no change");
    let changed = Change::new().key("food").metadata(metadata(2)).if_metadata(metadata(1));
    ledger.forget(&ours(), bread.id, later(2)).await.unwrap();
    let changed =
        ledger.change(&ours(), tea.id, &changed, later(2)).await.expect("the key of a forgotten record is free");
    assert_eq!((changed.key.as_deref(), changed.metadata), (Some("food"), metadata(2)));
}

async fn what_is_told_again_has_what_was_stated_last(ledger: &impl Ledger) {
    let from = |source: &str| Metadata::from_iter([("source", source)]);
    let tea = || keyed("drink", " tea ");
    let first = add(ledger, tea().metadata(from("mail")).expires_at(later(100)), T0).await.record;
    ledger.link(&ours(), &[(first.id, chunk(1))], T0).await.unwrap();
    let Changes { revision, .. } = ledger.changes(&ours(), Revision(0), T0).await.unwrap();
    let stands = Added { record: first.clone(), outcome: Outcome::Duplicate };
    assert_eq!(add(ledger, tea(), later(1)).await, stands, "what is not stated stays");
    let same = tea().metadata(from("mail")).expires_at(later(100));
    assert_eq!(add(ledger, same, later(1)).await, stands, "and so does what is stated again");
    let no_later = [Timestamp(T0.0 - 1), T0].map(|at| tea().expires_at(later(300)).created_at(at));
    for no_later in no_later {
        assert_eq!(add(ledger, no_later, later(1)).await, stands, "what was said no later changes nothing");
    }
    let over = add(ledger, tea().expires_at(later(1)), later(2)).await;
    let state = State::Expired { at: later(1) };
    assert_eq!((over.outcome, over.record.state), (Outcome::New, state), "what is over is a record of its own");
    let reason = "what is over when it is told again changes nothing";
    assert_eq!(ledger.get(&ours(), first.id, later(2)).await.unwrap(), first, "{reason}");
    ledger.forget(&ours(), over.record.id, later(2)).await.unwrap();
    let Changes { revision: second, .. } = ledger.changes(&ours(), revision, later(2)).await.unwrap();

    let mut expected = Record { expires_at: Some(later(200)), ..first.clone() };
    let longer = add(ledger, tea().expires_at(later(200)), later(3)).await;
    let changed = Added { record: expected.clone(), outcome: Outcome::Changed };
    assert_eq!(
        longer, changed,
        "what is told again has the expiry that was stated last, and is the record that it was"
    );
    assert_eq!(ledger.get(&ours(), first.id, later(3)).await.unwrap(), expected, "get gives what add gave");
    let changes = ledger.changes(&ours(), second, later(3)).await.unwrap().records;
    assert_eq!(changes, [expected.clone()], "others learn of it");
    assert_eq!(ledger.history(&ours(), first.id).await.unwrap().len(), 1, "its text is the same");
    assert_eq!(ledger.are_linked(&[chunk(1)], later(150)).await.unwrap(), [true], "its chunks are linked as long");
    assert!(pending_at(ledger, later(150)).await.is_empty(), "its chunks are kept as long");
    expected.metadata = from("chat");
    let noted = add(ledger, tea().metadata(from("chat")).created_at(later(1)), later(4)).await;
    let changed = Added { record: expected.clone(), outcome: Outcome::Changed };
    assert_eq!(noted, changed, "what is told again has the metadata that were stated last");
    assert_eq!(add(ledger, tea(), later(5)).await.record, expected, "what is not stated stays");

    let twice = [NewRecord::new("milk"), NewRecord::new("milk").expires_at(later(50)), tea().expires_at(later(60))];
    let coffee = keyed("drink", "coffee");
    let added = ledger.add(&ours(), &[&twice[..], &[coffee]].concat(), later(6)).await.unwrap();
    let outcomes: Vec<_> = added.iter().map(|added| added.outcome).collect();
    let superseded = Outcome::Superseded(first.id);
    assert_eq!(outcomes, [Outcome::New, Outcome::Changed, Outcome::Changed, superseded], "texts are told in order");
    let milk = ledger.get(&ours(), added[0].record.id, later(6)).await.unwrap();
    assert_eq!((milk.expires_at, &milk), (Some(later(50)), &added[1].record), "and each knows of those before it");
    assert_eq!(pending_at(ledger, later(6)).await, [chunk(1)].into(), "superseding it deletes its chunks");
}

async fn a_key_is_forgotten_with_all_that_was_said_under_it(ledger: &impl Ledger) {
    let theirs = Namespace::new("theirs").unwrap();
    let rome = ledger.add(&theirs, &[keyed("home", "Rome")], T0).await.unwrap().remove(0).record;
    let vienna = add(ledger, keyed("home", "Vienna").expires_at(later(100)), T0).await.record;
    let metadata = Metadata::from_iter([("source", "mail")]);
    let lima = add(ledger, keyed("home", "Lima").metadata(metadata).expires_at(later(2)), later(1)).await.record;
    let oslo = add(ledger, keyed("home", "Oslo"), later(3)).await.record;
    let moved = add(ledger, keyed("home.old", "Graz"), later(3)).await.record;
    add(ledger, "home", later(3)).await;
    ledger.link(&ours(), &[(vienna.id, chunk(1)), (oslo.id, chunk(2)), (moved.id, chunk(3))], later(3)).await.unwrap();
    let forgotten = ledger.forget_key(&ours(), "home", later(4)).await.expect("a key can be forgotten");
    let ids: Vec<RecordId> = forgotten.iter().map(|record| record.id).collect();
    assert_eq!(ids, [vienna.id, lima.id, oslo.id], "all records of a key are forgotten, and no others");
    for record in &forgotten {
        assert_eq!(record.state, State::Forgotten { at: later(4) }, "and said to be");
        assert!(
            record.text.is_empty() && record.key.is_none() && record.metadata.is_empty(),
            "nothing of them is left"
        );
        assert_eq!(ledger.get(&ours(), record.id, later(5)).await.unwrap(), *record, "get gives what forget_key gave");
    }
    assert_eq!(texts(ledger, Query::At(later(4))).await, ["Graz", "home"], "and no others");
    assert_eq!(ledger.get(&theirs, rome.id, later(4)).await.unwrap(), rome, "forget_key knows its namespace only");
    assert_eq!(pending_at(ledger, later(4)).await, [chunk(1), chunk(2)].into(), "their chunks are to be deleted");
    let Changes { revision, .. } = ledger.changes(&ours(), Revision(0), later(4)).await.unwrap();
    assert!(ledger.forget_key(&ours(), "home", later(5)).await.expect("a key may have no records").is_empty());
    let nobody = Namespace::new("nobody's").unwrap();
    assert!(ledger.forget_key(&nobody, "home", later(5)).await.expect("there may be none").is_empty());
    let changes = ledger.changes(&ours(), revision, later(5)).await.unwrap();
    assert_eq!(changes, none(revision), "forgetting nothing is no change");
    assert_eq!(add(ledger, keyed("home", "Lima"), later(6)).await.outcome, Outcome::New, "the key can be used again");
    ledger.change(&ours(), moved.id, &Change::new().key("past"), later(7)).await.unwrap();
    assert!(ledger.forget_key(&ours(), "home.old", later(8)).await.unwrap().is_empty(), "a record has its present key");
    let past = ledger.forget_key(&ours(), "past", later(8)).await.unwrap();
    assert_eq!(past.iter().map(|record| record.id).collect::<Vec<_>>(), [moved.id], "a record has its present key");
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
    let Changes { records: all, revision: first, .. } = ledger.changes(&ours(), Revision(0), T0).await.unwrap();
    assert_eq!(all, [a.clone(), b.clone()], "Revision(0) asks for all");
    assert_eq!(ledger.changes(&ours(), first, T0).await.unwrap(), none(first), "nothing changed since");
    let c = add(ledger, keyed("k", "c"), later(1)).await.record;
    ledger.update(&ours(), a.id, "a2", later(1)).await.unwrap();
    let Changes { records: changed, revision: second, .. } = ledger.changes(&ours(), first, later(1)).await.unwrap();
    let ids: BTreeSet<_> = changed.iter().map(|record| record.id).collect();
    assert_eq!(ids, BTreeSet::from([a.id, b.id, c.id]), "what was added, updated or superseded has changed");
    assert_eq!(changed.len(), ids.len(), "changes name records, each of them once");
    assert!(second > first, "every change has a later revision");
    let told = changed.iter().find(|record| record.id == b.id).unwrap().state;
    assert_eq!(told, State::Superseded { by: c.id, at: later(1) }, "records are told as they are now");
    ledger.forget(&ours(), c.id, later(2)).await.unwrap();
    let Changes { records: changed, revision: third, .. } = ledger.changes(&ours(), second, later(2)).await.unwrap();
    assert_eq!(changed.iter().map(|record| record.id).collect::<Vec<_>>(), [c.id], "a forgotten record has changed");
    assert!(third > second, "every change has a later revision");
    let everything = ledger.changes(&ours(), Revision(0), later(2)).await.unwrap().records;
    assert_eq!(everything.len(), 3, "Revision(0) asks for all, whatever became of them");
}

async fn chunks_of_gone_texts_are_pending_deletions_until_confirmed(ledger: &impl Ledger) {
    let [a, b] = [add(ledger, "a", T0).await.record.id, add(ledger, "b", T0).await.record.id];
    let links = [(a, chunk(1)), (a, chunk(2)), (b, chunk(3)), (b, chunk(3))];
    ledger.link(&ours(), &links, T0).await.expect("records are linked to chunks");
    assert!(ledger.pending_deletions(T0).await.unwrap().is_empty(), "chunks of present texts stay");
    ledger.forget(&ours(), a, later(1)).await.unwrap();
    assert_eq!(pending(ledger).await, [chunk(1), chunk(2)].into(), "forgetting a record deletes all its chunks");
    confirm(ledger, &[chunk(1)], later(7)).await.unwrap();
    assert_eq!(pending(ledger).await, [chunk(2)].into(), "a deletion is pending until it is confirmed");
    confirm(ledger, &[chunk(1), chunk(2)], later(7)).await.expect("confirming twice is no error");
    ledger.update(&ours(), b, "b2", later(2)).await.unwrap();
    assert_eq!(pending(ledger).await, [chunk(3)].into(), "an update deletes the chunks of the old text");
    confirm(ledger, &[chunk(3)], later(7)).await.unwrap();
    ledger.link(&ours(), &[(b, chunk(4))], T0).await.unwrap();
    ledger.forget(&ours(), b, later(3)).await.unwrap();
    assert_eq!(pending(ledger).await, [chunk(4)].into(), "links to the old text are not links to the new one");
    confirm(ledger, &[chunk(4)], later(7)).await.unwrap();
    ledger.link(&ours(), &[(a, chunk(5))], T0).await.expect("a record may be forgotten before its chunk is linked");
    assert_eq!(pending(ledger).await, [chunk(5)].into(), "the chunk of a forgotten text is to be deleted at once");
    let c = add(ledger, "a", later(4)).await.record.id;
    ledger.link(&ours(), &[(c, chunk(5))], T0).await.unwrap();
    assert!(pending(ledger).await.is_empty(), "the deletion of a chunk that an active record links is called off");
    let unknown = ledger.link(&ours(), &[(c, chunk(6)), (RecordId::new(), chunk(7))], T0).await;
    assert!(is_unknown(unknown), "link of an unknown record says so");
    ledger.forget(&ours(), c, later(5)).await.unwrap();
    assert_eq!(pending(ledger).await, [chunk(5)].into(), "a failed link links nothing");
}

async fn confirming_a_deletion_confirms_no_later_one(ledger: &impl Ledger) {
    let link = async |text: &str, id: u8| {
        let record = add(ledger, text, T0).await.record.id;
        ledger.link(&ours(), &[(record, chunk(id))], T0).await.unwrap();
        record
    };
    let forget = async |record| drop(ledger.forget(&ours(), record, later(5)).await.unwrap());
    // Its KV is deleted, and then the text is remembered again, its KV put again, and all of that forgotten.
    forget(link("again", 1).await).await;
    let first = ledger.pending_deletions(later(7)).await.unwrap();
    forget(link("again", 1).await).await;
    ledger.confirm_deleted(&first, later(7)).await.unwrap();
    let reason = "confirming a deletion leaves a later one of the same chunk pending";
    assert_eq!(pending(ledger).await, [chunk(1)].into(), "{reason}");
    // The same of a deletion that is pending all the time: whoever computed the chunk may put it after it was deleted.
    let gone = link("late", 2).await;
    forget(gone).await;
    let first = ledger.pending_deletions(later(7)).await.unwrap();
    ledger.link(&ours(), &[(gone, chunk(2))], later(6)).await.unwrap();
    ledger.confirm_deleted(&first, later(7)).await.unwrap();
    assert_eq!(pending(ledger).await, [chunk(2)].into(), "{reason}");
    // And of one for which nothing had to be written.
    let brief = add(ledger, NewRecord::new("brief").expires_at(later(3)), T0).await.record.id;
    ledger.link(&ours(), &[(brief, chunk(3))], T0).await.unwrap();
    let first = ledger.pending_deletions(later(4)).await.unwrap();
    forget(link("brief again", 3).await).await;
    ledger.confirm_deleted(&first, later(4)).await.unwrap();
    assert!(pending(ledger).await.contains(&chunk(3)), "{reason}");
    confirm(ledger, &[chunk(1), chunk(2), chunk(3)], later(7)).await.unwrap();
    assert!(pending(ledger).await.is_empty(), "until that one is confirmed too");
}

async fn a_chunk_that_another_active_record_has_is_spared(ledger: &impl Ledger) {
    let [a, b] = [add(ledger, "x", T0).await.record.id, add(ledger, keyed("k", "x"), T0).await.record.id];
    ledger.link(&ours(), &[(a, chunk(1)), (b, chunk(1))], T0).await.unwrap();
    ledger.forget(&ours(), a, later(1)).await.unwrap();
    assert!(pending(ledger).await.is_empty(), "a chunk that another active record links stays");
    ledger.forget(&ours(), b, later(2)).await.unwrap();
    assert_eq!(pending(ledger).await, [chunk(1)].into(), "until that one is forgotten too");
    confirm(ledger, &[chunk(1)], later(7)).await.unwrap();
    let [a, b] = [add(ledger, "y", T0).await.record.id, add(ledger, keyed("l", "y"), T0).await.record.id];
    ledger.link(&ours(), &[(a, chunk(2)), (b, chunk(2))], T0).await.unwrap();
    ledger.update(&ours(), a, "z", later(3)).await.unwrap();
    assert!(pending(ledger).await.is_empty(), "an update spares a chunk that another active record links");
    ledger.update(&ours(), b, "z", later(4)).await.unwrap();
    assert_eq!(pending(ledger).await, [chunk(2)].into(), "until that one has another text too");
    confirm(ledger, &[chunk(2)], later(7)).await.unwrap();
    // Neither a record whose time is over nor one that another has replaced spares a chunk.
    for (id, over) in [(3, NewRecord::new("w").key("m").expires_at(later(5))), (4, keyed("n", "w"))] {
        let [over, lasting] = [add(ledger, over, T0).await.record.id, add(ledger, "w", T0).await.record.id];
        ledger.link(&ours(), &[(over, chunk(id)), (lasting, chunk(id))], T0).await.unwrap();
        add(ledger, keyed("n", "another text"), later(5)).await;
        ledger.forget(&ours(), lasting, later(6)).await.unwrap();
        let expected = [chunk(id)].into();
        assert_eq!(pending(ledger).await, expected, "a chunk that no other active record links is to be deleted");
        confirm(ledger, &[chunk(id)], later(7)).await.unwrap();
    }
}

async fn chunks_of_texts_that_no_longer_count_are_pending_deletions(ledger: &impl Ledger) {
    let old = add(ledger, keyed("home", "Vienna"), T0).await.record.id;
    ledger.link(&ours(), &[(old, chunk(1))], T0).await.unwrap();
    add(ledger, keyed("home", "Lima"), later(1)).await;
    assert_eq!(pending_at(ledger, later(1)).await, [chunk(1)].into(), "superseding a record deletes its chunks");
    confirm(ledger, &[chunk(1)], later(1)).await.unwrap();
    ledger.link(&ours(), &[(old, chunk(2))], later(2)).await.expect("a record may be superseded before that");
    let at_once = pending_at(ledger, later(2)).await;
    assert_eq!(at_once, [chunk(2)].into(), "the chunk of a superseded text is to be deleted at once");
    confirm(ledger, &[chunk(2)], later(2)).await.unwrap();

    let brief = add(ledger, NewRecord::new("tired").expires_at(later(10)), T0).await.record.id;
    ledger.link(&ours(), &[(brief, chunk(3))], later(1)).await.unwrap();
    assert!(pending_at(ledger, later(9)).await.is_empty(), "the chunk of a record that counts stays");
    assert_eq!(pending_at(ledger, later(10)).await, [chunk(3)].into(), "a record that expires deletes its chunks");
    let again = pending_at(ledger, later(11)).await;
    assert_eq!(again, [chunk(3)].into(), "the deletion of an expired record's chunk is pending until it is confirmed");
    confirm(ledger, &[chunk(3)], later(11)).await.unwrap();
    assert!(pending_at(ledger, later(12)).await.is_empty(), "and not any longer");
    ledger.link(&ours(), &[(brief, chunk(4))], later(12)).await.expect("a record may expire before that");
    let at_once = pending_at(ledger, later(12)).await;
    assert_eq!(at_once, [chunk(4)].into(), "the chunk of an expired text is to be deleted at once");
    confirm(ledger, &[chunk(4)], later(12)).await.unwrap();

    let brief = add(ledger, NewRecord::new("awake").expires_at(later(20)), later(12)).await.record.id;
    let lasting = add(ledger, keyed("mood", "awake"), later(12)).await.record.id;
    ledger.link(&ours(), &[(brief, chunk(5)), (lasting, chunk(5))], later(12)).await.unwrap();
    assert!(pending_at(ledger, later(20)).await.is_empty(), "an active record spares an expired one's chunk");
    ledger.forget(&ours(), lasting, later(21)).await.unwrap();
    assert_eq!(pending_at(ledger, later(21)).await, [chunk(5)].into(), "for as long as it counts");
    confirm(ledger, &[chunk(5)], later(21)).await.unwrap();

    let [a, b] = [keyed("a", "same"), keyed("b", "same")];
    let [a, b] = [add(ledger, a, later(22)).await.record.id, add(ledger, b, later(22)).await.record.id];
    ledger.link(&ours(), &[(a, chunk(6)), (b, chunk(6))], later(22)).await.unwrap();
    add(ledger, keyed("a", "other"), later(23)).await;
    assert!(pending_at(ledger, later(23)).await.is_empty(), "an active record spares a superseded one's chunk");
}

async fn chunks_are_linked_while_active_records_have_them(ledger: &impl Ledger) {
    let linked = async |ids: &[u8], now| {
        let chunks: Vec<ChunkId> = ids.iter().map(|id| chunk(*id)).collect();
        ledger.are_linked(&chunks, now).await.expect("are_linked works")
    };
    assert_eq!(linked(&[1], T0).await, [false], "nothing links a chunk of which the ledger was not told");
    let lasting = add(ledger, keyed("k", "x"), T0).await.record.id;
    let brief = add(ledger, NewRecord::new("x").expires_at(later(10)), T0).await.record.id;
    ledger.link(&ours(), &[(lasting, chunk(1)), (brief, chunk(1)), (brief, chunk(3))], T0).await.unwrap();
    assert_eq!(linked(&[1, 3], later(1)).await, [true, true], "a chunk is linked as long as an active record has it");
    assert_eq!(linked(&[3, 1, 2], later(1)).await, [true, true, false], "in the order of the ids");
    assert_eq!(linked(&[1, 3], later(10)).await, [true, false], "not by one whose time is over");
    ledger.forget(&ours(), lasting, later(2)).await.unwrap();
    assert_eq!(linked(&[1], later(3)).await, [true], "as long as one of them has it");
    ledger.forget(&ours(), brief, later(3)).await.unwrap();
    assert_eq!(linked(&[1, 3], later(3)).await, [false, false], "not by one that was forgotten");
    let old = add(ledger, keyed("home", "Vienna"), T0).await.record.id;
    ledger.link(&ours(), &[(old, chunk(4))], T0).await.unwrap();
    let new = add(ledger, keyed("home", "Lima"), later(4)).await.record.id;
    assert_eq!(linked(&[4], later(4)).await, [false], "not by one that was superseded");
    ledger.link(&ours(), &[(new, chunk(5))], later(4)).await.unwrap();
    ledger.update(&ours(), new, "Quito", later(5)).await.unwrap();
    assert_eq!(linked(&[5], later(5)).await, [false], "not by one that says something else now");
}

async fn many_are_read_at_once_in_their_order(ledger: &impl Ledger) {
    let added = ledger.add(&ours(), &["a".into(), "b".into(), keyed("k", "c")], T0).await.unwrap();
    let theirs = ledger.add(&Namespace::new("theirs").unwrap(), &["a".into()], T0).await.unwrap();
    let [a, b, c] = [0, 1, 2].map(|at: usize| added[at].record.clone());
    ledger.forget(&ours(), b.id, later(1)).await.unwrap();
    let ids = [c.id, RecordId::new(), a.id, theirs[0].record.id, b.id, c.id];
    let found = ledger.get_many(&ours(), &ids, later(2)).await.expect("unknown records are no error");
    let texts: Vec<_> = found.iter().map(|record| record.as_ref().map(|record| record.text.as_str())).collect();
    let expected = [Some("c"), None, Some("a"), None, Some(""), Some("c")];
    assert_eq!(texts, expected, "get_many answers in the order of the ids, whatever the records' states");
    assert_eq!(found[0].as_ref(), Some(&c), "get_many gives what get gives");
    assert!(ledger.get_many(&ours(), &[], T0).await.expect("asking for nothing is no error").is_empty());
}

async fn records_are_counted_by_their_states(ledger: &impl Ledger) {
    let empty = ledger.stats(&ours(), T0).await.expect("stats work");
    assert_eq!(empty, RecordStats::default(), "an empty ledger counts nothing");
    ledger.add(&Namespace::new("theirs").unwrap(), &["not ours".into()], T0).await.unwrap();
    let gone = add(ledger, "a secret", T0).await.record.id;
    add(ledger, keyed("k", "äb"), T0).await;
    add(ledger, keyed("k", "cde"), T0).await;
    add(ledger, NewRecord::new("f").expires_at(later(5)), T0).await;
    ledger.forget(&ours(), gone, later(1)).await.unwrap();
    let stats = |active, expired| RecordStats { active, superseded: 1, expired, forgotten: 1, text_bytes: 7 };
    assert_eq!(ledger.stats(&ours(), later(4)).await.unwrap(), stats(2, 0), "records are counted by their states");
    assert_eq!(ledger.stats(&ours(), later(5)).await.unwrap(), stats(1, 1), "as they are at the moment");
}

fn used(namespace: &Namespace, seconds: u64, generated_tokens: u64) -> UsageEvent {
    let amounts = Amounts { requests: 1, generated_tokens, prefilled_tokens: 3, ..Amounts::default() };
    UsageEvent::new(namespace.clone(), later(seconds), amounts)
}

fn total(namespace: Option<Namespace>, events: &[&UsageEvent]) -> UsageTotal {
    let mut total = UsageTotal::new(namespace, events[0].at);
    events.iter().for_each(|event| total.count(event.at, event.amounts));
    total
}

async fn usage_is_counted_once(ledger: &impl Ledger) {
    let theirs = Namespace::new("their own").unwrap();
    assert!(ledger.usage(&UsageQuery::all()).await.expect("usage works").is_empty(), "nothing was used");
    ledger.record_usage(&[]).await.expect("recording nothing is no error");
    let events = [used(&ours(), 0, 10), used(&theirs, 1, 1), used(&ours(), 2, 20), used(&ours(), 4, 40)];
    ledger.record_usage(&events[..2]).await.expect("usage is recorded");
    // The answer to the first call was lost, say.
    ledger.record_usage(&events[1..]).await.expect("an event may be recorded twice");
    let [a, b, c, d] = &events;
    let (ours_all, theirs_all) = (total(Some(ours()), &[a, c, d]), total(Some(theirs.clone()), &[b]));
    let all = ledger.usage(&UsageQuery::all()).await.unwrap();
    assert_eq!(all, [ours_all, theirs_all.clone()], "an event counts once, for its namespace");
    let of_theirs = ledger.usage(&UsageQuery::all().namespace(theirs)).await.unwrap();
    assert_eq!(of_theirs, [theirs_all], "usage can be asked for of one namespace");
    let window = UsageQuery::all().namespace(ours()).since(later(2)).until(later(4));
    assert_eq!(ledger.usage(&window).await.unwrap(), [total(Some(ours()), &[c])], "and between two moments");
    let mut huge = used(&ours(), 9, u64::MAX);
    huge.amounts.chunks = 7;
    ledger.record_usage(&[huge.clone()]).await.expect("any amounts are taken");
    let found = ledger.usage(&UsageQuery::all().since(later(9))).await.unwrap();
    huge.amounts.generated_tokens = Amounts::MAX;
    assert_eq!(found, [total(Some(ours()), &[&huge])], "no amount is beyond the most that counts");
}

async fn usage_outlives_its_namespace_without_its_name(ledger: &impl Ledger) {
    let theirs = Namespace::new("theirs").unwrap();
    let [a, b] = [used(&ours(), 0, 10), used(&theirs, 1, 1)];
    ledger.record_usage(&[a.clone(), b.clone()]).await.unwrap();
    add(ledger, "a", T0).await;
    ledger.delete_namespace(&ours()).await.unwrap();
    let expected = [total(None, &[&a]), total(Some(theirs), &[&b])];
    let left = ledger.usage(&UsageQuery::all()).await.unwrap();
    assert_eq!(left, expected, "what a deleted namespace used still counts, under no name");
    ledger.record_usage(&[a]).await.unwrap();
    assert_eq!(ledger.usage(&UsageQuery::all()).await.unwrap(), expected, "and still counts once");
    assert!(ledger.usage(&UsageQuery::all().namespace(ours())).await.unwrap().is_empty(), "its name finds nothing");
}

/// A ledger may keep no index at all.
async fn a_saved_index_is_gone_once_something_is_forgotten(ledger: &impl Ledger) {
    let theirs = Namespace::new("theirs").unwrap();
    let [a, b] = [add(ledger, "a", T0).await.record.id, add(ledger, "b", T0).await.record.id];
    ledger.add(&theirs, &["a".into()], T0).await.unwrap();
    let Changes { revision, .. } = ledger.changes(&ours(), Revision(0), T0).await.unwrap();
    let index = |bytes: &[u8]| SavedIndex { revision, bytes: bytes.to_vec() };
    assert!(ledger.saved_index(&ours(), "words").await.expect("there may be none").is_none());
    if !ledger.save_index(&ours(), "words", &index(&[1; 5000])).await.expect("an index can be saved") {
        assert!(ledger.saved_index(&ours(), "words").await.unwrap().is_none(), "what was not kept is not there");
        return;
    }
    ledger.save_index(&ours(), "words", &index(&[2; 9000])).await.expect("an index can be saved again");
    ledger.save_index(&ours(), "meaning", &index(&[])).await.expect("there may be several");
    let Changes { revision: theirs_at, .. } = ledger.changes(&theirs, Revision(0), T0).await.unwrap();
    let their_index = SavedIndex { revision: theirs_at, bytes: vec![3] };
    ledger.save_index(&theirs, "words", &their_index).await.unwrap();
    let saved = async |namespace: &Namespace, name: &str| ledger.saved_index(namespace, name).await.unwrap();
    assert_eq!(saved(&ours(), "words").await, Some(index(&[2; 9000])), "the last index that was saved comes back");
    assert_eq!(saved(&ours(), "meaning").await, Some(index(&[])), "each under its name");
    add(ledger, "c", later(1)).await;
    ledger.update(&ours(), b, "b2", later(1)).await.unwrap();
    assert!(saved(&ours(), "words").await.is_some(), "it stays when records are added and changed");
    ledger.forget(&ours(), a, later(2)).await.unwrap();
    let left = (saved(&ours(), "words").await, saved(&ours(), "meaning").await);
    assert_eq!(left, (None, None), "it is gone once something of the namespace is forgotten");
    assert_eq!(saved(&theirs, "words").await, Some(their_index), "which concerns no other namespace");
    let late = ledger.save_index(&ours(), "words", &index(&[4])).await.unwrap();
    assert!(
        !late && saved(&ours(), "words").await.is_none(),
        "an index from before something was forgotten is refused"
    );
    let Changes { revision, .. } = ledger.changes(&ours(), Revision(0), later(2)).await.unwrap();
    let index = SavedIndex { revision, bytes: vec![5] };
    assert!(ledger.save_index(&ours(), "words", &index).await.unwrap(), "one from after that is kept");
    ledger.delete_namespace(&ours()).await.unwrap();
    assert!(saved(&ours(), "words").await.is_none(), "it goes with its namespace");
    let late = ledger.save_index(&ours(), "words", &index).await.unwrap();
    assert!(!late, "an index from before its namespace was deleted is refused");
}

fn said(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.text.as_str()).collect()
}

async fn pages_follow_one_another(ledger: &impl Ledger) {
    let texts: Vec<NewRecord> = (0..7).map(|n| NewRecord::new(format!("note {n}"))).collect();
    let added = ledger.add(&ours(), &texts, T0).await.unwrap();
    ledger.forget(&ours(), added[1].record.id, later(1)).await.unwrap();
    let mut listing = Listing::new(Query::At(later(2))).limit(2);
    let mut pages = Vec::new();
    loop {
        let page = ledger.page(&ours(), &listing).await.expect("page works");
        pages.push(page.records.iter().map(|record| record.text.clone()).collect::<Vec<_>>());
        match page.next {
            Some(next) => listing = listing.after(next),
            None => break,
        }
        assert!(pages.len() < 9, "pages end");
    }
    let expected = [vec!["note 0", "note 2"], vec!["note 3", "note 4"], vec!["note 5", "note 6"]];
    assert_eq!(pages, expected, "pages hold what counts, in order, and the last one says so");
    let all = ledger.page(&ours(), &Listing::new(Query::All).limit(usize::MAX)).await.unwrap();
    assert_eq!((all.records.len(), all.next), (7, None), "a limit beyond all there is gives one page");
    let behind_forgotten = Listing::new(Query::All).after(added[1].record.id).limit(1);
    let page = ledger.page(&ours(), &behind_forgotten).await.expect("a page may begin behind a forgotten record");
    assert_eq!(said(&page.records), ["note 2"]);
    let unknown = ledger.page(&ours(), &Listing::new(Query::All).after(RecordId::new())).await;
    assert!(is_unknown(unknown), "a page cannot begin behind an unknown record");
    let none = ledger.page(&ours(), &Listing::new(Query::All).limit(0)).await;
    assert!(matches!(none, Err(Error::BadValue { .. })), "a page of nothing is refused");
    let more: Vec<NewRecord> = (0..Listing::MAX_LIMIT).map(|n| NewRecord::new(format!("further note {n}"))).collect();
    ledger.add(&ours(), &more, T0).await.unwrap();
    let page = ledger.page(&ours(), &Listing::new(Query::All).limit(usize::MAX)).await.unwrap();
    assert_eq!(page.records.len(), Listing::MAX_LIMIT, "a page has no more records than any page may have");
    assert_eq!(page.next, page.records.last().map(|record| record.id), "and says that there are more");
    assert_eq!(self::texts(ledger, Query::All).await.len(), Listing::MAX_LIMIT + 7, "list has those of all pages");
}

async fn a_filter_is_asked_before_the_page_is_full(ledger: &impl Ledger) {
    let kind = |n: usize| if n % 10 == 9 { "rare" } else { "common" };
    let noted = |n: usize| {
        NewRecord::new(format!("note {n}"))
            .metadata([("kind", MetaValue::from(kind(n))), ("n", (n as f64).into())].into_iter().collect())
    };
    ledger.add(&ours(), &(0..60).map(noted).collect::<Vec<_>>(), T0).await.unwrap();
    let rare = Listing::new(Query::At(T0)).filter(Filter::eq("kind", "rare")).limit(4);
    let first = ledger.page(&ours(), &rare).await.unwrap();
    assert_eq!(said(&first.records), ["note 9", "note 19", "note 29", "note 39"], "a page is full of what passes");
    let next = first.next.expect("there are more");
    let second = ledger.page(&ours(), &rare.clone().after(next)).await.unwrap();
    assert_eq!((said(&second.records), second.next), (vec!["note 49", "note 59"], None), "and so is the next");
    let nothing = Listing::new(Query::All).filter(Filter::eq("kind", "unheard of"));
    let page = ledger.page(&ours(), &nothing).await.unwrap();
    assert_eq!((page.records.len(), page.next), (0, None), "a filter that nothing passes gives nothing");
    let deep = (0..100).fold(Filter::And(vec![]), |inner, _| Filter::Not(Box::new(inner)));
    let refused = ledger.page(&ours(), &Listing::new(Query::All).filter(deep)).await;
    assert!(matches!(refused, Err(Error::BadValue { what: "filter", .. })), "a filter has bounds");
}

/// Pages hold what [`Filter::matches`] lets pass, of the records as they are or were.
async fn filters_mean_the_same_everywhere(ledger: &impl Ledger) {
    let noted = |n: u64, key: Option<&str>, metadata: &[(&str, MetaValue)]| {
        let new = NewRecord::new(format!("note {n}")).metadata(metadata.iter().cloned().collect());
        key.map_or(new.clone(), |key| new.key(key))
    };
    let first = add(ledger, noted(1, Some("home"), &[("n", 1.0.into()), ("kind", "mail".into())]), T0).await.record.id;
    add(ledger, noted(2, Some("home.old"), &[("n", 2.0.into()), ("seen", true.into())]), later(1)).await;
    add(ledger, noted(3, None, &[("n", MetaValue::Null), ("kind", "web % _ ' \" mail".into())]), later(2)).await;
    add(ledger, noted(4, None, &[]), later(3)).await;
    add(ledger, noted(5, None, &[("n", "2".into()), ("kind", "Mail".into())]), later(4)).await;
    let gone = add(ledger, noted(6, Some("gone"), &[("n", 2.0.into())]), later(5)).await.record.id;
    ledger.update(&ours(), first, "note 1, again", later(8)).await.unwrap();
    ledger.forget(&ours(), gone, later(9)).await.unwrap();
    let field = |name: &str| Field::Metadata(name.to_owned());
    let compare = |field: Field, comparison, value: MetaValue| Filter::Compare(field, comparison, value);
    let moment = |seconds: u64| MetaValue::from(later(seconds).0 as f64);
    let filters = [
        Filter::And(vec![]),
        Filter::Or(vec![]),
        Filter::eq("n", 2.0),
        Filter::eq("n", "2"),
        Filter::eq("n", MetaValue::Null),
        Filter::eq("seen", true),
        Filter::Not(Box::new(Filter::eq("n", 2.0))),
        compare(field("n"), Comparison::Ne, 2.0.into()),
        compare(field("n"), Comparison::Gte, 1.5.into()),
        compare(field("kind"), Comparison::Lt, "n".into()),
        Filter::In(field("n"), vec![1.0.into(), "2".into()]),
        Filter::Contains(field("kind"), "mail".into()),
        Filter::Contains(field("kind"), "% _ '".into()),
        Filter::Contains(Field::Key, "home".into()),
        compare(Field::Key, Comparison::Eq, "home".into()),
        compare(Field::CreatedAt, Comparison::Gt, moment(1)),
        compare(Field::UpdatedAt, Comparison::Gt, moment(4)),
        Filter::Or(vec![
            Filter::And(vec![Filter::eq("n", 2.0), Filter::Not(Box::new(Filter::eq("seen", true)))]),
            compare(Field::UpdatedAt, Comparison::Lte, moment(0)),
        ]),
    ];
    for query in [Query::At(later(3)), Query::At(later(10)), Query::All] {
        let all = ledger.list(&ours(), query).await.unwrap();
        for filter in &filters {
            let page = ledger.page(&ours(), &Listing::new(query).filter(filter.clone())).await.unwrap();
            let expected: Vec<&str> =
                all.iter().filter(|record| filter.matches(record)).map(|record| record.text.as_str()).collect();
            assert_eq!(said(&page.records), expected, "what passes {filter:?} of {query:?}");
        }
    }
}

async fn records_are_counted(ledger: &impl Ledger) {
    assert_eq!(ledger.count(&ours(), T0).await.unwrap(), 0, "an empty ledger counts nothing");
    let a = add(ledger, "a", T0).await.record.id;
    add(ledger, keyed("k", "b"), T0).await;
    add(ledger, keyed("k", "c"), T0).await;
    add(ledger, NewRecord::new("d").expires_at(later(5)), T0).await;
    assert_eq!(ledger.count(&ours(), T0).await.unwrap(), 3, "what was superseded does not count");
    assert_eq!(ledger.count(&ours(), later(5)).await.unwrap(), 2, "nor what has expired");
    ledger.forget(&ours(), a, T0).await.unwrap();
    assert_eq!(ledger.count(&ours(), T0).await.unwrap(), 2, "nor what was forgotten");
}

async fn metadata_and_moments_are_kept_and_bounded(ledger: &impl Ledger) {
    let metadata: Metadata = [
        ("source", MetaValue::from("mail \"quoted\" 🦀")),
        ("weight", 0.1.into()),
        ("big", 1e300.into()),
        ("whole", 3.0.into()),
        ("seen", true.into()),
        ("gap", MetaValue::Null),
    ]
    .into_iter()
    .collect();
    let then = Timestamp(T0.0 - 5000);
    let added = add(ledger, NewRecord::new("a").metadata(metadata.clone()).created_at(then), T0).await.record;
    assert_eq!(added.metadata, metadata, "metadata comes back");
    assert_eq!((added.created_at, added.updated_at), (then, then), "so does the moment when it was first said");
    let read = ledger.get(&ours(), added.id, T0).await.unwrap();
    assert_eq!(read, added, "get gives what add gave");
    assert_eq!(texts(ledger, Query::At(then)).await, ["a"], "a view as of that moment has it");
    let updated = ledger.update(&ours(), added.id, "b", later(1)).await.unwrap();
    assert_eq!(updated.metadata, metadata, "an update keeps the metadata");
    let early = add(ledger, NewRecord::new("c").created_at(later(100)), later(2)).await.record;
    assert_eq!(early.created_at, later(2), "a moment yet to come counts as now");
    let long_key = NewRecord::new("x").key("k".repeat(NewRecord::MAX_KEY_BYTES + 1));
    let large = NewRecord::new("x").metadata((0..65).map(|n| (n.to_string(), true)).collect());
    // Of two bytes each.
    let long_letters = NewRecord::new("x").key("é".repeat(NewRecord::MAX_KEY_BYTES / 2 + 1));
    for refused in [long_key, long_letters, large] {
        let refused = ledger.add(&ours(), &["sound".into(), refused], T0).await;
        assert!(matches!(refused, Err(Error::BadValue { .. })), "keys and metadata have bounds");
    }
    assert_eq!(ledger.count(&ours(), later(3)).await.unwrap(), 2, "what was refused added nothing");
    let longest = "é".repeat(NewRecord::MAX_KEY_BYTES / 2);
    let added = ledger.add(&ours(), &[keyed(&longest, "one")], later(3)).await.expect("the longest key is taken");
    let key = ledger.get(&ours(), added[0].record.id, later(3)).await.unwrap().key;
    assert_eq!(key.as_deref(), Some(&*longest), "the longest key comes back whole");
    let outcome = add(ledger, keyed(&longest, "two"), later(4)).await.outcome;
    assert_eq!(outcome, Outcome::Superseded(added[0].record.id), "and is one key");
}

async fn an_older_text_does_not_take_a_newer_ones_place(ledger: &impl Ledger) {
    let said = |text: &str, seconds| keyed("home", text).created_at(later(seconds));
    let lima = add(ledger, keyed("home", "Lima"), later(10)).await.record;
    let Changes { revision, .. } = ledger.changes(&ours(), Revision(0), later(10)).await.unwrap();
    let vienna = add(ledger, said("Vienna", 5), later(20)).await;
    assert_eq!(texts(ledger, Query::At(later(20))).await, ["Lima"], "an older text does not take a newer one's place");
    let state = State::Superseded { by: lima.id, at: later(10) };
    let became = (vienna.outcome, vienna.record.state);
    assert_eq!(became, (Outcome::New, state), "it is superseded from the start, by the newer one when that was said");
    assert_eq!(ledger.get(&ours(), vienna.record.id, later(20)).await.unwrap(), vienna.record, "get says so as well");
    let history = ledger.history(&ours(), vienna.record.id).await.unwrap();
    let until: Vec<_> = history.iter().map(|version| (version.from, version.until)).collect();
    assert_eq!(until, [(later(5), Some(later(10)))], "so does its history");
    let changes = ledger.changes(&ours(), revision, later(20)).await.unwrap().records;
    assert_eq!(changes, std::slice::from_ref(&vienna.record), "the newer one has not changed");
    assert_eq!(
        texts(ledger, Query::At(later(9))).await,
        ["Vienna"],
        "before the newer one was said, the older counted"
    );
    assert_eq!(texts(ledger, Query::At(later(10))).await, ["Lima"], "and no longer");
    ledger.link(&ours(), &[(vienna.record.id, chunk(1))], later(20)).await.unwrap();
    assert_eq!(pending_at(ledger, later(20)).await, [chunk(1)].into(), "no chunk of it is kept");

    let oslo = add(ledger, said("Oslo", 15), later(20)).await;
    assert_eq!(oslo.outcome, Outcome::Superseded(lima.id), "a newer text of the past takes an older one's place");
    assert_eq!(texts(ledger, Query::At(later(14))).await, ["Lima"], "which counted until then");
    assert_eq!(texts(ledger, Query::At(later(15))).await, ["Oslo"], "from the moment on when it was said");
    let quito = add(ledger, said("Quito", 15), later(20)).await;
    assert_eq!(
        quito.outcome,
        Outcome::Superseded(oslo.record.id),
        "of one moment, the text counts that is added later"
    );
    ledger.update(&ours(), quito.record.id, "Quito, old town", later(30)).await.unwrap();
    let graz = add(ledger, said("Graz", 25), later(40)).await.record;
    let state = State::Superseded { by: quito.record.id, at: later(25) };
    assert_eq!(graz.state, state, "a text that an update gave is as new as the update");
    assert_eq!(texts(ledger, Query::At(later(26))).await, ["Quito"], "a key had one active record at any moment");

    let bonn = add(ledger, said("Bonn", 24).updated_at(later(29)), later(40)).await.record;
    assert_eq!((bonn.created_at, bonn.updated_at), (later(24), later(29)), "a text may have changed since it was said");
    let state = State::Superseded { by: quito.record.id, at: later(29) };
    assert_eq!(bonn.state, state, "and be older than another all the same");
    let new = said("Riga", 14).updated_at(later(31));
    let riga = add(ledger, new, later(40)).await;
    assert_eq!(riga.outcome, Outcome::Superseded(quito.record.id), "it is as new as its change");
    assert_eq!(ledger.get(&ours(), riga.record.id, later(40)).await.unwrap(), riga.record, "get gives what add gave");
    assert_eq!(texts(ledger, Query::At(later(30))).await, ["Quito, old town"], "and counts from then on");
    assert_eq!(texts(ledger, Query::At(later(31))).await, ["Riga"], "and counts from then on");
    let early = add(ledger, NewRecord::new("early").created_at(later(9)).updated_at(later(8)), later(40)).await.record;
    assert_eq!(early.updated_at, later(9), "no text changed before it was said");
    let late = add(ledger, NewRecord::new("late").created_at(later(9)).updated_at(later(99)), later(40)).await.record;
    assert_eq!((late.created_at, late.updated_at), (later(9), later(40)), "a change yet to come counts as now");
    ledger.forget_many(&ours(), &[early.id, late.id], later(41)).await.unwrap();

    let of_day = |text: &str, seconds| keyed("day", text).created_at(later(seconds));
    let batch = [of_day("Tuesday", 2), of_day("Monday", 1), of_day("Wednesday", 3)];
    let added = ledger.add(&ours(), &batch, later(50)).await.unwrap();
    let ids = [0, 1, 2].map(|at: usize| added[at].record.id);
    let outcomes = [0, 1, 2].map(|at: usize| added[at].outcome);
    let expected = [Outcome::New, Outcome::New, Outcome::Superseded(ids[0])];
    assert_eq!(outcomes, expected, "the texts of one call know of each other's moments");
    let days = ledger.get_many(&ours(), &ids, later(50)).await.unwrap();
    let states: Vec<State> = days.iter().flatten().map(|record| record.state).collect();
    let superseded = |by: usize, seconds| State::Superseded { by: ids[by], at: later(seconds) };
    assert_eq!(states, [superseded(2, 3), superseded(0, 2), State::Active], "and each stands where it belongs");

    let first = add(ledger, keyed("clock", "first"), later(61)).await.record.id;
    let second = add(ledger, keyed("clock", "second"), later(60)).await.outcome;
    assert_eq!(second, Outcome::Superseded(first), "what is said now is the newest, whatever a clock says");
    let third = add(ledger, keyed("clock", "third").created_at(later(99)), later(59)).await.outcome;
    assert!(matches!(third, Outcome::Superseded(_)), "and so is what is said to be yet to come");
}

async fn many_are_forgotten_all_or_none(ledger: &impl Ledger) {
    let added = ledger.add(&ours(), &["a".into(), "b".into(), "c".into()], T0).await.unwrap();
    let [a, b, c] = [0, 1, 2].map(|at: usize| added[at].record.id);
    let refused = ledger.forget_many(&ours(), &[a, RecordId::new(), b], later(1)).await;
    assert!(is_unknown(refused), "an unknown record among many is refused");
    assert_eq!(texts(ledger, Query::At(later(1))).await, ["a", "b", "c"], "and then none is forgotten");
    let forgotten = ledger.forget_many(&ours(), &[c, a, c], later(2)).await.expect("many can be forgotten");
    let ids: Vec<RecordId> = forgotten.iter().map(|record| record.id).collect();
    assert_eq!(ids, [c, a, c], "they come back in the order of their ids");
    assert!(forgotten.iter().all(|record| record.state == State::Forgotten { at: later(2) } && record.text.is_empty()));
    assert_eq!(texts(ledger, Query::At(later(2))).await, ["b"]);
    assert!(ledger.forget_many(&ours(), &[], T0).await.expect("forgetting nothing is no error").is_empty());
}

async fn a_deleted_namespace_is_gone_and_can_be_filled_again(ledger: &impl Ledger) {
    let theirs = Namespace::new("theirs").unwrap();
    let added = ledger.add(&ours(), &["a".into(), keyed("k", "b"), keyed("k", "c")], T0).await.unwrap();
    ledger.add(&theirs, &["a".into()], T0).await.unwrap();
    let id = added[0].record.id;
    ledger.link(&ours(), &[(id, chunk(1)), (added[1].record.id, chunk(2))], T0).await.unwrap();
    let before = ledger.changes(&ours(), Revision(0), T0).await.unwrap();
    assert!(!before.deleted, "nothing was deleted");
    let other = ledger.changes(&theirs, Revision(0), T0).await.unwrap().revision;
    assert_eq!(ledger.delete_namespace(&ours()).await.expect("it can be deleted"), 3, "all its records are counted");
    assert!(texts(ledger, Query::All).await.is_empty(), "it has no records");
    assert_eq!(ledger.namespaces().await.unwrap(), std::slice::from_ref(&theirs), "it is not listed");
    assert!(is_unknown(ledger.get(&ours(), id, T0).await) && is_unknown(ledger.history(&ours(), id).await));
    assert_eq!(pending(ledger).await, [chunk(1), chunk(2)].into(), "all its chunks are to be deleted");
    let after = ledger.changes(&ours(), before.revision, T0).await.unwrap();
    assert!(after.deleted && after.records.is_empty(), "whoever knew it learns that it was deleted");
    assert!(after.revision > before.revision, "a deletion is a change");
    assert!(!ledger.changes(&ours(), after.revision, T0).await.unwrap().deleted, "but learns it once");
    assert!(!ledger.changes(&theirs, other, T0).await.unwrap().deleted, "another namespace was not deleted");
    assert!(!ledger.changes(&ours(), Revision(0), T0).await.unwrap().deleted, "who asks for all need not be told");
    let again = add(ledger, keyed("k", "b"), later(1)).await;
    assert_eq!(again.outcome, Outcome::New, "a deleted record is neither a duplicate nor superseded");
    let refilled = ledger.changes(&ours(), before.revision, later(1)).await.unwrap();
    assert!(refilled.deleted && refilled.records == [again.record], "what came after the deletion stands");
    let nobody = Namespace::new("nobody's").unwrap();
    assert_eq!(ledger.delete_namespace(&nobody).await.expect("there may be none"), 0);
}

async fn namespaces_share_nothing(ledger: &impl Ledger) {
    // Not in the order of their names.
    let theirs = Namespace::new("their own").unwrap();
    let other = ledger.add(&theirs, &[keyed("k", "text")], T0).await.unwrap().remove(0);
    let added = add(ledger, keyed("k", "text"), T0).await;
    assert_eq!(added.outcome, Outcome::New, "another namespace's record is neither a duplicate nor superseded");
    let record = added.record;
    let both = [ours(), theirs.clone()];
    assert_eq!(ledger.namespaces().await.unwrap(), both, "namespaces are listed in order of their names");
    let id = record.id;
    assert!(is_unknown(ledger.get(&theirs, id, T0).await), "get knows its namespace only");
    assert!(is_unknown(ledger.update(&theirs, id, "new", T0).await), "update knows its namespace only");
    assert!(is_unknown(ledger.forget(&theirs, id, T0).await), "forget knows its namespace only");
    assert!(is_unknown(ledger.history(&theirs, id).await), "history knows its namespace only");
    assert!(is_unknown(ledger.link(&theirs, &[(id, chunk(1))], T0).await), "link knows its namespace only");
    let theirs_only = [other.record];
    assert_eq!(ledger.list(&theirs, Query::All).await.unwrap(), theirs_only, "list knows its namespace only");
    let Changes { records: changed, .. } = ledger.changes(&theirs, Revision(0), T0).await.unwrap();
    assert_eq!(changed, theirs_only, "changes knows its namespace only");
    assert_eq!(ledger.count(&theirs, T0).await.unwrap(), 1, "count knows its namespace only");
    let behind = ledger.page(&theirs, &Listing::new(Query::All).after(id)).await;
    assert!(is_unknown(behind), "page knows its namespace only");
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

/// Confirms deletions of these chunks: those that are pending, or, of a chunk of which none is, one that never was.
async fn confirm(ledger: &impl Ledger, chunks: &[ChunkId], now: Timestamp) -> Result<()> {
    let pending = ledger.pending_deletions(now).await?;
    let of = |chunk: &ChunkId| pending.iter().find(|deletion| deletion.chunk == *chunk).copied();
    let deletion = |chunk: &ChunkId| of(chunk).unwrap_or(PendingDeletion { chunk: *chunk, number: 1 });
    ledger.confirm_deleted(&chunks.iter().map(deletion).collect::<Vec<_>>(), now).await
}

async fn pending(ledger: &impl Ledger) -> BTreeSet<ChunkId> {
    pending_at(ledger, later(7)).await
}

async fn pending_at(ledger: &impl Ledger, now: Timestamp) -> BTreeSet<ChunkId> {
    let pending = ledger.pending_deletions(now).await.expect("pending deletions are listed");
    let set: BTreeSet<_> = pending.iter().map(|deletion| deletion.chunk).collect();
    assert_eq!(set.len(), pending.len(), "a pending deletion is named once");
    set
}

fn chunk(n: u8) -> ChunkId {
    ChunkId([n; 32])
}
