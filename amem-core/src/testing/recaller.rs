//! What every [`Recaller`] must do, however it finds what it finds.

use futures_lite::future::block_on;

use crate::{Metadata, Namespace, RecallQuery, Recalled, Recaller, Record, RecordId, State, Timestamp};

/// Checks a recaller, of which `make` gives a new, empty one on each call. The texts are English, and a question
/// repeats the words of the record that it is about.
///
/// ```
/// amem_core::testing::recaller(|| Box::new(amem_core::recall::Lexical::default()));
/// ```
///
/// # Panics
/// When the recaller breaks a promise of the trait; the message says which.
pub fn recaller(make: impl Fn() -> Box<dyn Recaller>) {
    for check in [
        what_is_asked_for_comes_first,
        an_empty_index_finds_nothing,
        at_most_k_come_best_first,
        a_removed_record_is_not_found,
        a_record_that_is_indexed_again_is_replaced,
        a_record_that_is_not_active_is_not_found,
        what_does_not_count_takes_no_place,
        a_cleared_namespace_is_empty,
        namespaces_share_nothing,
        odd_questions_do_no_harm,
    ] {
        check(make().as_ref());
    }
    what_was_saved_is_restored(make().as_ref(), make().as_ref());
}

const TEXTS: [&str; 4] = [
    "The violin teacher comes on Tuesday at five.",
    "Grandmother's recipe for plum cake needs cinnamon.",
    "The garage door opens with the code 7731.",
    "Our train to Lisbon leaves from platform nine.",
];

fn namespace(name: &str) -> Namespace {
    Namespace::new(name).expect("the name is valid")
}

fn record(id: u128, text: &str) -> Record {
    Record {
        id: RecordId::from_bytes(id.to_be_bytes()),
        namespace: namespace("home"),
        text: text.to_owned(),
        key: None,
        metadata: Metadata::default(),
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
        expires_at: None,
        state: State::Active,
    }
}

fn fill(recaller: &dyn Recaller) -> Vec<Record> {
    let records: Vec<Record> = (0..).zip(TEXTS).map(|(id, text)| record(id, text)).collect();
    block_on(recaller.index(&records)).expect("index");
    records
}

fn recall(recaller: &dyn Recaller, query: &str, k: usize) -> Vec<Recalled> {
    block_on(recaller.recall(&namespace("home"), &RecallQuery::new(query, k))).expect("recall")
}

fn finds(recaller: &dyn Recaller, query: &str, id: RecordId) -> bool {
    recall(recaller, query, 100).iter().any(|found| found.id == id)
}

fn what_is_asked_for_comes_first(recaller: &dyn Recaller) {
    for record in fill(recaller) {
        let found = recall(recaller, &record.text, 4);
        assert_eq!(found.first().map(|f| f.id), Some(record.id), "asked for {:?}", record.text);
    }
}

fn an_empty_index_finds_nothing(recaller: &dyn Recaller) {
    assert_eq!(recall(recaller, "plum cake", 10), []);
    block_on(recaller.index(&[])).expect("index nothing");
    block_on(recaller.remove(&namespace("home"), &[record(9, "").id])).expect("remove what is not there");
}

fn at_most_k_come_best_first(recaller: &dyn Recaller) {
    fill(recaller);
    let twins = [record(11, TEXTS[0]), record(10, TEXTS[0])];
    block_on(recaller.index(&twins)).expect("index");
    let all = recall(recaller, TEXTS[0], 100);
    let in_order = |a: &Recalled, b: &Recalled| a.score > b.score || (a.score == b.score && a.id < b.id);
    assert!(all.windows(2).all(|pair| in_order(&pair[0], &pair[1])), "not best first, ties by id: {all:?}");
    assert!(all.iter().all(|found| found.score.is_finite()), "a score is not finite: {all:?}");
    for k in 0..=all.len() {
        assert!(recall(recaller, TEXTS[0], k).len() <= k, "more than {k} records");
    }
    let first: Vec<RecordId> = recall(recaller, TEXTS[0], 3).iter().map(|found| found.id).collect();
    assert_eq!(
        first,
        [record(0, "").id, record(10, "").id, record(11, "").id],
        "equal texts come in order of their ids"
    );
}

fn a_removed_record_is_not_found(recaller: &dyn Recaller) {
    let records = fill(recaller);
    block_on(recaller.remove(&namespace("home"), &[records[1].id, records[1].id])).expect("remove");
    assert!(!finds(recaller, TEXTS[1], records[1].id), "a removed record is found");
    assert!(finds(recaller, TEXTS[2], records[2].id), "a record is lost by the removal of another");
}

fn a_record_that_is_indexed_again_is_replaced(recaller: &dyn Recaller) {
    let records = fill(recaller);
    block_on(recaller.index(&[record(1, "Marmalade the tortoise sleeps under the sofa.")])).expect("index");
    let found = recall(recaller, "Marmalade the tortoise sleeps under the sofa.", 100);
    assert_eq!(found.first().map(|f| f.id), Some(records[1].id), "the new text is not found");
    assert_eq!(found.iter().filter(|f| f.id == records[1].id).count(), 1, "the record is there twice");
}

fn a_record_that_is_not_active_is_not_found(recaller: &dyn Recaller) {
    let records = fill(recaller);
    let at = Timestamp(1);
    let states = [State::Superseded { by: records[1].id, at }, State::Forgotten { at }, State::Expired { at }];
    for (record, state) in records.iter().zip(states) {
        block_on(recaller.index(&[Record { state, ..record.clone() }])).expect("index");
        assert!(!finds(recaller, &record.text, record.id), "a record that is {} is found", state.name());
        let unknown = RecordId::from_bytes([9; 16]);
        block_on(recaller.index(&[Record { id: unknown, state, ..record.clone() }])).expect("index");
        let found = finds(recaller, &record.text, unknown);
        assert!(!found, "a record that is {} and was not indexed before is found", state.name());
    }
}

fn what_does_not_count_takes_no_place(recaller: &dyn Recaller) {
    // Equal texts: those with the smaller ids come first, and are the ones that do not count.
    let twins: Vec<Record> = (10..30).map(|id| record(id, TEXTS[0])).collect();
    block_on(recaller.index(&twins)).expect("index");
    let counts = |id: RecordId| id >= twins[17].id;
    let query = RecallQuery::new(TEXTS[0], 2).only(&counts);
    let found = block_on(recaller.recall(&namespace("home"), &query)).expect("recall");
    let found: Vec<RecordId> = found.iter().map(|found| found.id).collect();
    assert_eq!(found, [twins[17].id, twins[18].id], "the best k of those that count");
    let nothing = RecallQuery::new(TEXTS[0], 2).only(&|_| false);
    assert_eq!(block_on(recaller.recall(&namespace("home"), &nothing)).expect("recall"), [], "none of them counts");
}

fn a_cleared_namespace_is_empty(recaller: &dyn Recaller) {
    let records = fill(recaller);
    let theirs = Record { namespace: namespace("work"), ..record(50, TEXTS[0]) };
    block_on(recaller.index(&[theirs])).expect("index");
    block_on(recaller.clear(&namespace("home"))).expect("clear");
    assert_eq!(recall(recaller, TEXTS[0], 10), [], "a cleared namespace has a record left");
    let query = RecallQuery::new(TEXTS[0], 10);
    let others = block_on(recaller.recall(&namespace("work"), &query)).expect("recall");
    assert_eq!(others.len(), 1, "clearing a namespace reaches another one");
    block_on(recaller.clear(&namespace("nobody's"))).expect("clear what is not there");
    block_on(recaller.index(&records)).expect("index");
    assert!(finds(recaller, TEXTS[0], records[0].id), "a cleared namespace can be filled again");
}

fn namespaces_share_nothing(recaller: &dyn Recaller) {
    fill(recaller);
    let before = recall(recaller, TEXTS[1], 10);
    let others: Vec<Record> = (100..140)
        .map(|id| Record { namespace: namespace("work"), ..record(id, "Plum cake with cinnamon, again and again.") })
        .collect();
    block_on(recaller.index(&others)).expect("index");
    assert_eq!(recall(recaller, TEXTS[1], 10), before, "another namespace's records move the scores of this one");
    block_on(recaller.remove(&namespace("work"), &[record(1, "").id])).expect("remove");
    assert_eq!(recall(recaller, TEXTS[1], 10), before, "a removal in another namespace reaches this one");
}

/// A recaller may save nothing at all.
fn what_was_saved_is_restored(recaller: &dyn Recaller, other: &dyn Recaller) {
    let records = fill(recaller);
    block_on(recaller.remove(&namespace("home"), &[records[2].id])).expect("remove");
    assert_eq!(recaller.index_name(), other.index_name(), "equal recallers save under one name");
    let Some(saved) = block_on(recaller.save(&namespace("home"))).expect("save") else {
        assert!(recaller.index_name().is_none(), "whoever saves nothing has no name for it");
        return;
    };
    assert!(recaller.index_name().is_some(), "whoever saves has a name for it");
    let theirs = Record { namespace: namespace("work"), ..record(50, TEXTS[0]) };
    let stale = record(60, TEXTS[3]);
    block_on(other.index(&[theirs.clone(), stale.clone()])).expect("index");
    assert!(block_on(other.restore(&namespace("home"), &saved)).expect("restore"), "what was saved can be restored");
    let text = |id: usize| TEXTS[id];
    for query in (0..TEXTS.len()).map(text) {
        let (before, after) = (recall(recaller, query, 10), recall(other, query, 10));
        assert_eq!(after, before, "what was restored answers like what was saved");
    }
    assert!(!finds(other, TEXTS[3], stale.id), "what was known before is not known after");
    let query = RecallQuery::new(TEXTS[0], 10);
    let others = block_on(other.recall(&namespace("work"), &query)).expect("recall");
    assert_eq!(others.first().map(|found| found.id), Some(theirs.id), "restoring a namespace reaches another one");
    let more = record(70, TEXTS[2]);
    block_on(other.index(std::slice::from_ref(&more))).expect("index");
    block_on(other.remove(&namespace("home"), &[records[0].id])).expect("remove");
    assert!(finds(other, TEXTS[2], more.id), "what was restored can be added to");
    assert!(!finds(other, TEXTS[0], records[0].id), "what was restored can be removed");
    for broken in [&[][..], b"no index at all", &saved[..saved.len() - 1], &[&saved[..], &[0]].concat()] {
        let restored = block_on(other.restore(&namespace("home"), broken)).expect("bytes are no error");
        assert!(!restored, "bytes that make no sense are refused");
        assert_eq!(recall(other, TEXTS[1], 10), [], "and then nothing is known");
    }
}

fn odd_questions_do_no_harm(recaller: &dyn Recaller) {
    fill(recaller);
    let long = "cinnamon ".repeat(10_000);
    for query in ["", "   ", "?!…", "\0\u{feff}\u{202e}", "🎻🎻", long.as_str()] {
        assert!(recall(recaller, query, 2).len() <= 2);
    }
    assert_eq!(recall(recaller, "", 2), [], "an empty question finds something");
    assert!(recall(recaller, "cinnamon", usize::MAX).len() <= TEXTS.len());
}
