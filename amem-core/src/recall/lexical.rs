//! Recall by words: BM25 over an inverted index in memory (Robertson and Zaragoza, "The Probabilistic Relevance
//! Framework: BM25 and Beyond", 2009).
//!
//! A word weighs more the fewer records of the namespace have it; a record scores more the more often it has the
//! word, with diminishing returns, and the shorter it is. Statistics are per namespace: what one remembers never moves
//! another's scores.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
/// The language whose word endings are cut off, so that "cats" finds "cat".
pub use rust_stemmers::Algorithm as Language;
use rust_stemmers::Stemmer;

use super::saved::{Reader, Writer};
use super::{RecallQuery, Recalled, Recaller, best, tokenise};
use crate::{Namespace, Record, RecordId, Result, State};

/// How soon a repeated word stops to add.
const K1: f32 = 1.2;
/// How much length counts against a record, from 0 to 1.
const B: f32 = 0.75;
/// In a namespace of at least this many records, a word that more than half of them have ("the") adds to scores but
/// finds no record alone, unless no rarer word of the question finds one.
const ENOUGH_TO_KNOW_COMMON_WORDS: usize = 32;
/// Says what a saved index is. Another way to cut texts into terms needs another number.
const MARK: &[u8; 8] = b"amemlex1";

/// Finds records by the words that they share with the question. Starts empty; knows no I/O and never fails.
pub struct Lexical {
    language: Language,
    stemmer: Stemmer,
    spaces: RwLock<HashMap<Namespace, Space>>,
}

impl Default for Lexical {
    fn default() -> Self {
        Self::new(Language::English)
    }
}

impl Lexical {
    /// An empty index of texts in this language. Text in another language is found too, by its exact words.
    pub fn new(language: Language) -> Self {
        Self { language, stemmer: Stemmer::create(language), spaces: RwLock::default() }
    }
}

#[async_trait]
impl Recaller for Lexical {
    async fn index(&self, records: &[Record]) -> Result<()> {
        let cut = |record: &Record| match record.state {
            State::Active => Some(tokenise::terms(&record.text, &self.stemmer)),
            _ => None,
        };
        // Cutting is most of the work: it is done before the lock is taken.
        let cut: Vec<_> = records.iter().map(cut).collect();
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        for (record, terms) in records.iter().zip(cut) {
            match terms {
                Some(terms) => spaces.entry(record.namespace.clone()).or_default().insert(record.id, terms),
                None => remove(&mut spaces, &record.namespace, &[record.id]),
            }
        }
        Ok(())
    }

    async fn remove(&self, namespace: &Namespace, ids: &[RecordId]) -> Result<()> {
        remove(&mut self.spaces.write().unwrap_or_else(PoisonError::into_inner), namespace, ids);
        Ok(())
    }

    fn language(&self) -> Option<Language> {
        Some(self.language)
    }

    async fn clear(&self, namespace: &Namespace) -> Result<()> {
        self.spaces.write().unwrap_or_else(PoisonError::into_inner).remove(namespace);
        Ok(())
    }

    fn index_name(&self) -> Option<String> {
        Some(format!("{} {:?}", MARK.escape_ascii(), self.language))
    }

    async fn save(&self, namespace: &Namespace) -> Result<Option<Vec<u8>>> {
        let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Some(spaces.get(namespace).unwrap_or(&Space::default()).save()))
    }

    async fn restore(&self, namespace: &Namespace, saved: &[u8]) -> Result<bool> {
        let restored = Space::restore(saved);
        let sound = restored.is_some();
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        match restored.filter(|space| !space.slots.is_empty()) {
            Some(space) => drop(spaces.insert(namespace.clone(), space)),
            None => drop(spaces.remove(namespace)),
        }
        Ok(sound)
    }

    async fn recall(&self, namespace: &Namespace, query: &RecallQuery<'_>) -> Result<Vec<Recalled>> {
        let terms: HashSet<String> = tokenise::query_terms(query.text, &self.stemmer).into_iter().collect();
        let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
        let Some(space) = spaces.get(namespace) else { return Ok(Vec::new()) };
        let mut found = space.find(&terms);
        found.retain(|recalled| query.may_find(recalled.id));
        Ok(best(found, query.k))
    }
}

/// Takes records out, and the namespace with its last one.
fn remove(spaces: &mut HashMap<Namespace, Space>, namespace: &Namespace, ids: &[RecordId]) {
    let Some(space) = spaces.get_mut(namespace) else { return };
    ids.iter().for_each(|id| space.remove(id));
    if space.slots.is_empty() {
        spaces.remove(namespace);
    }
}

/// The index of one namespace. Records and terms have small numbers, by which they name each other.
#[derive(Default)]
struct Space {
    /// By number; those in `free_terms` are stale.
    terms: Vec<Term>,
    numbers: HashMap<Arc<str>, u32>,
    free_terms: Vec<u32>,
    slots: HashMap<RecordId, u32>,
    /// By slot; those in `free` are stale.
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// Terms in all records together, repeated ones included.
    length: u64,
}

/// A term and the records that have it, by slot. It goes with its last record: nothing forgotten stays here.
struct Term {
    text: Arc<str>,
    postings: Vec<Posting>,
}

#[derive(Clone, Copy)]
struct Posting {
    slot: u32,
    /// Times that the record has the term.
    count: u32,
}

struct Entry {
    id: RecordId,
    /// The numbers of the different terms, in order.
    terms: Box<[u32]>,
    /// The number of terms, repeated ones included.
    length: u32,
}

impl Space {
    fn insert(&mut self, id: RecordId, terms: Vec<String>) {
        self.remove(&id);
        let length = terms.len() as u32;
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for term in terms {
            *counts.entry(self.number(term)).or_default() += 1;
        }
        let slot = self.free.pop().unwrap_or(self.entries.len() as u32);
        for (term, count) in &counts {
            let postings = &mut self.terms[*term as usize].postings;
            let at = postings.partition_point(|posting| posting.slot < slot);
            postings.insert(at, Posting { slot, count: *count });
        }
        let entry = Entry { id, terms: counts.into_keys().collect(), length };
        match self.entries.get_mut(slot as usize) {
            Some(place) => *place = entry,
            None => self.entries.push(entry),
        }
        self.slots.insert(id, slot);
        self.length += u64::from(length);
    }

    /// The number of a term, which is new if no record has it.
    fn number(&mut self, term: String) -> u32 {
        if let Some(number) = self.numbers.get(term.as_str()) {
            return *number;
        }
        let term = Term { text: term.into(), postings: Vec::new() };
        let number = self.free_terms.pop().unwrap_or(self.terms.len() as u32);
        self.numbers.insert(Arc::clone(&term.text), number);
        match self.terms.get_mut(number as usize) {
            Some(place) => *place = term,
            None => self.terms.push(term),
        }
        number
    }

    fn remove(&mut self, id: &RecordId) {
        let Some(slot) = self.slots.remove(id) else { return };
        let Some(entry) = self.entries.get_mut(slot as usize) else { return };
        self.length -= u64::from(entry.length);
        for number in std::mem::take(&mut entry.terms) {
            let term = &mut self.terms[number as usize];
            if let Ok(at) = term.postings.binary_search_by_key(&slot, |posting| posting.slot) {
                term.postings.remove(at);
            }
            if term.postings.is_empty() {
                self.numbers.remove(&term.text);
                term.text = Arc::default();
                self.free_terms.push(number);
            }
        }
        self.free.push(slot);
    }

    /// The terms, each with the number of records that have it; then the records, each with the terms that it has: their
    /// numbers, told by how many come between one and the one before, and how often it has them.
    fn save(&self) -> Vec<u8> {
        let mut writer = Writer::new(MARK);
        let mut numbers: Vec<u32> = self.numbers.values().copied().collect();
        numbers.sort_unstable();
        let mut places = vec![0_u32; self.terms.len()];
        writer.number(numbers.len() as u64);
        for (place, number) in (0..).zip(&numbers) {
            let term = &self.terms[*number as usize];
            places[*number as usize] = place;
            writer.bytes(term.text.as_bytes());
            writer.number(term.postings.len() as u64);
        }
        let mut slots: Vec<u32> = self.slots.values().copied().collect();
        slots.sort_unstable();
        writer.number(slots.len() as u64);
        // Where each term's postings were read to.
        let mut read = vec![0_usize; self.terms.len()];
        for slot in slots {
            let entry = &self.entries[slot as usize];
            writer.id(entry.id);
            writer.number(entry.length.into());
            writer.number(entry.terms.len() as u64);
            let mut next = 0;
            for number in &entry.terms {
                let (term, read) = (&self.terms[*number as usize], &mut read[*number as usize]);
                writer.number(u64::from(places[*number as usize] - next));
                writer.number(term.postings[*read].count.into());
                *read += 1;
                next = places[*number as usize] + 1;
            }
        }
        writer.done()
    }

    fn restore(saved: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(MARK, saved)?;
        let mut space = Self::default();
        let terms = reader.count(2)?;
        space.terms.reserve_exact(terms);
        space.numbers.reserve(terms);
        let (mut having, mut all) = (Vec::with_capacity(terms), 0_usize);
        for number in 0..u32::try_from(terms).ok()? {
            let text: Arc<str> = std::str::from_utf8(reader.bytes()?).ok()?.into();
            if space.numbers.insert(Arc::clone(&text), number).is_some() {
                return None;
            }
            space.terms.push(Term { text, postings: Vec::new() });
            having.push(reader.count(2)?);
            all = all.checked_add(*having.last()?)?;
        }
        // A posting takes two bytes of a record that follows. All of them together must have room there: many terms that
        // each claim as many as there could be would allocate far more than was read.
        reader.has_room(all, 2).then_some(())?;
        space.terms.iter_mut().zip(&having).for_each(|(term, having)| term.postings.reserve_exact(*having));
        let records = reader.count(18)?;
        space.entries.reserve_exact(records);
        space.slots.reserve(records);
        for slot in 0..u32::try_from(records).ok()? {
            let (id, length) = (reader.id()?, reader.u32()?);
            let (count, mut next) = (reader.count(2)?, 0_u32);
            let mut terms = Vec::with_capacity(count);
            for _ in 0..count {
                let number = next.checked_add(reader.u32()?)?;
                let count = reader.u32()?;
                space.terms.get_mut(number as usize)?.postings.push(Posting { slot, count });
                terms.push(number);
                next = number + 1;
            }
            space.length += u64::from(length);
            space.entries.push(Entry { id, terms: terms.into(), length });
            if space.slots.insert(id, slot).is_some() {
                return None;
            }
        }
        reader.is_done()?;
        let is_sound = |(term, having): (&Term, &usize)| *having > 0 && term.postings.len() == *having;
        space.terms.iter().zip(&having).all(is_sound).then_some(space)
    }

    /// All records that fit, in no particular order.
    fn find(&self, terms: &HashSet<String>) -> Vec<Recalled> {
        // Rarest first, and in one order always: floats add up differently in another.
        let known = |term: &String| self.numbers.get(term.as_str()).map(|number| &self.terms[*number as usize]);
        let mut terms: Vec<(&str, &Vec<Posting>)> =
            terms.iter().filter_map(known).map(|term| (&*term.text, &term.postings)).collect();
        terms.sort_unstable_by_key(|(term, postings)| (postings.len(), *term));

        let records = self.slots.len();
        let is_common = |postings: &[Posting]| records >= ENOUGH_TO_KNOW_COMMON_WORDS && 2 * postings.len() > records;
        let rare = terms.partition_point(|(_, postings)| !is_common(postings));
        let mean_length = (self.length as f32 / records as f32).max(1.0);
        let mut scores = vec![0.0_f32; self.entries.len()];
        for (nth, (_, postings)) in terms.iter().enumerate() {
            let finds = nth < rare || rare == 0;
            let having = postings.len() as f32;
            let weight = (1.0 + (records as f32 - having + 0.5) / (having + 0.5)).ln();
            for posting in *postings {
                let slot = posting.slot as usize;
                if finds || scores[slot] > 0.0 {
                    let count = posting.count as f32;
                    let length = self.entries[slot].length as f32 / mean_length;
                    scores[slot] += weight * count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * length));
                }
            }
        }
        let found = scores.iter().zip(&self.entries).filter(|(score, _)| **score > 0.0);
        found.map(|(score, entry)| Recalled { id: entry.id, score: *score }).collect()
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::block_on;
    use proptest::prelude::*;

    use super::*;
    use crate::Timestamp;

    fn record(id: u128, text: &str) -> Record {
        Record {
            id: RecordId::from_bytes(id.to_be_bytes()),
            namespace: Namespace::new("home").unwrap(),
            text: text.to_owned(),
            key: None,
            metadata: crate::Metadata::default(),
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
            expires_at: None,
            state: State::Active,
        }
    }

    fn recalled(index: &Lexical, query: &str, k: usize) -> Vec<u128> {
        let found = block_on(index.recall(&Namespace::new("home").unwrap(), &RecallQuery::new(query, k))).unwrap();
        found.iter().map(|found| u128::from_be_bytes(found.id.to_bytes())).collect()
    }

    fn index_of(texts: &[&str]) -> Lexical {
        let index = Lexical::default();
        let records: Vec<Record> = (0..).zip(texts).map(|(id, text)| record(id, text)).collect();
        block_on(index.index(&records)).unwrap();
        index
    }

    #[test]
    fn rare_words_weigh_more_than_common_ones() {
        let index = index_of(&["the red car", "the red bike", "the red boat", "the blue kite"]);
        assert_eq!(recalled(&index, "the red kite", 4)[0], 3);
    }

    #[test]
    fn inflected_words_find_one_another() {
        let index = index_of(&["Mira runs marathons", "Jon collects stamps"]);
        assert_eq!(recalled(&index, "who is running a marathon?", 2), [0]);
    }

    #[test]
    fn another_language_can_be_chosen() {
        let index = Lexical::new(Language::German);
        block_on(index.index(&[record(0, "Die Katzen schlafen")])).unwrap();
        assert_eq!(recalled(&index, "Katze", 1), [0]);
    }

    #[test]
    fn chinese_is_found_without_spaces() {
        let index = index_of(&["我的猫叫雪球", "我住在柏林"]);
        assert_eq!(recalled(&index, "猫", 2), [0]);
        assert_eq!(recalled(&index, "柏林", 2), [1]);
    }

    #[test]
    fn a_word_that_most_records_have_brings_none_by_itself_unless_it_is_all_there_is() {
        let texts: Vec<String> = (0..100).map(|n| format!("the note number{n}")).collect();
        let index = index_of(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(recalled(&index, "the number7", 10), [7]);
        assert_eq!(recalled(&index, "the", 3), [0, 1, 2]);
    }

    #[test]
    fn nothing_of_a_removed_record_stays() {
        let index = index_of(&["a secret word"]);
        block_on(index.remove(&Namespace::new("home").unwrap(), &[record(0, "").id])).unwrap();
        assert!(index.spaces.read().unwrap().is_empty());
    }

    #[test]
    fn terms_that_claim_more_records_than_follow_are_refused() {
        // Two terms, and as many bytes after them as each alone would need for its three postings.
        let saved = |claimed: [u64; 2]| {
            let mut writer = Writer::new(MARK);
            writer.number(2);
            for (text, having) in ["a", "b"].iter().zip(claimed) {
                writer.bytes(text.as_bytes());
                writer.number(having);
            }
            writer.number(1);
            writer.id(record(1, "").id);
            [2, 2, 0, 1, 0, 1].into_iter().for_each(|number| writer.number(number));
            writer.done()
        };
        assert_eq!(Space::restore(&saved([1, 1])).map(|space| space.slots.len()), Some(1));
        for lie in [[11, 11], [2, 1], [1, 2], [0, 1]] {
            assert!(Space::restore(&saved(lie)).is_none(), "{lie:?}");
        }
    }

    proptest! {
        #[test]
        fn a_saved_index_that_was_changed_makes_sense_or_is_refused(at: prop::sample::Index, to: u8) {
            let index = index_of(&["the red car", "the red bike", "a red boat"]);
            let home = Namespace::new("home").unwrap();
            let mut saved = block_on(index.save(&home)).unwrap().unwrap();
            let at = at.index(saved.len());
            saved[at] = to;
            let restored = Lexical::default();
            if block_on(restored.restore(&home, &saved)).unwrap() {
                recalled(&restored, "the red car", 3);
                let ids: Vec<RecordId> = restored.spaces.read().unwrap()[&home].slots.keys().copied().collect();
                block_on(restored.remove(&home, &ids)).unwrap();
            }
            prop_assert!(restored.spaces.read().unwrap().is_empty(), "all of it can be removed, or nothing is known");
        }
    }

    #[cfg(feature = "testing")]
    #[test]
    fn lexical_keeps_the_traits_promises() {
        crate::testing::recaller(|| Box::new(Lexical::default()));
    }

    proptest! {
        /// Adding, replacing and removing in any order ends where a fresh index of what is left would be.
        #[test]
        fn an_index_that_changed_answers_like_a_fresh_one(
            steps in prop::collection::vec((0_u128..8, prop::option::of("[ab]{1,2}( [abc]{1,2}){0,4}")), 0..40),
            query in "[abc]{1,2}( [abc]{1,2}){0,3}",
        ) {
            let (changed, fresh) = (Lexical::default(), Lexical::default());
            let mut left = BTreeMap::new();
            for (id, text) in steps {
                match text {
                    Some(text) => {
                        block_on(changed.index(&[record(id, &text)])).unwrap();
                        left.insert(id, record(id, &text));
                    }
                    None => {
                        let namespace = Namespace::new("home").unwrap();
                        block_on(changed.remove(&namespace, &[record(id, "").id])).unwrap();
                        left.remove(&id);
                    }
                }
            }
            block_on(fresh.index(&left.into_values().collect::<Vec<_>>())).unwrap();
            let namespace = Namespace::new("home").unwrap();
            let answer = |index: &Lexical| block_on(index.recall(&namespace, &RecallQuery::new(&query, 5))).unwrap();
            prop_assert_eq!(answer(&changed), answer(&fresh));
            let restored = Lexical::default();
            let saved = block_on(changed.save(&namespace)).unwrap().unwrap();
            prop_assert!(block_on(restored.restore(&namespace, &saved)).unwrap());
            prop_assert_eq!(answer(&restored), answer(&fresh));
        }
    }
}
