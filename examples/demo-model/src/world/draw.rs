//! Drawing a world: who there is, who is whose sister, and what the memories say in which order.

use std::collections::{HashMap, HashSet};

use rand::{
    Rng, SeedableRng,
    seq::{IndexedRandom, SliceRandom},
};
use rand_chacha::ChaCha8Rng;

use super::{
    Attribute, Fact, MAX_MEMORIES, Mention, Relation, Split, Topic, World, WorldOptions, held_out,
    lexicon::{CODAS, FILLER, Gender, ONSETS, VOWELS, Values, fill},
};

/// How often a name or a value is drawn anew before the draw does without.
const TRIES: usize = 256;

pub(super) fn world(seed: u64, options: &WorldOptions) -> World {
    let mut draw = Draw { rng: ChaCha8Rng::seed_from_u64(seed), options, taken: HashSet::new() };
    let wanted = options.memories.min(MAX_MEMORIES);
    let mut stories = draw.stories(wanted);
    let people = stories.iter().map(|story| story.person.name.clone()).collect();
    let mut groups = draw.groups(&mut stories, wanted);
    groups.shuffle(&mut draw.rng);

    let mut memories = Vec::with_capacity(wanted);
    let mut facts = Vec::new();
    for note in groups.into_iter().flatten() {
        facts.extend(note.facts.into_iter().map(|fact| Fact { memory: memories.len(), ..fact }));
        memories.push(note.sentences.join(" "));
    }
    let mut told: HashMap<String, HashMap<Topic, usize>> =
        draw.taken.into_iter().map(|name| (name, HashMap::new())).collect();
    for (index, fact) in facts.iter().enumerate() {
        told.entry(fact.person.clone()).or_default().insert(fact.topic, index);
    }
    World { memories, facts, people, told, seed, split: options.split }
}

#[derive(Clone)]
struct Person {
    name: String,
    gender: Gender,
}

/// A person, and what is still to be told of them.
struct Story {
    person: Person,
    attributes: Vec<Attribute>,
    relations: Vec<(Relation, String)>,
}

/// A memory in the making. Its facts do not know yet where it will stand.
#[derive(Default)]
struct Note {
    sentences: Vec<String>,
    facts: Vec<Fact>,
}

struct Draw<'a> {
    rng: ChaCha8Rng,
    options: &'a WorldOptions,
    taken: HashSet<String>,
}

impl Draw<'_> {
    /// The people whom the memories are about, with their relations and attributes in the order of telling.
    fn stories(&mut self, memories: usize) -> Vec<Story> {
        let share = self.rng.random_range(0.5..0.9);
        let count = ((memories as f64 * share).round() as usize).max(1);
        let people: Vec<Person> = (0..count).filter_map(|_| self.person(None)).collect();
        let relations: Vec<_> = (0..people.len()).map(|index| self.relations(&people, index)).collect();
        people
            .into_iter()
            .zip(relations)
            .map(|(person, relations)| {
                let mut attributes = Attribute::ALL.to_vec();
                attributes.shuffle(&mut self.rng);
                Story { person, attributes, relations }
            })
            .collect()
    }

    /// A person whose name is new to this world. Made-up names step in when the listed ones run out.
    fn person(&mut self, gender: Option<Gender>) -> Option<Person> {
        for tries in 0..2 * TRIES {
            let gender = gender.unwrap_or_else(|| pick(&mut self.rng, &Gender::ALL));
            let name = if tries >= TRIES || self.chance(self.options.invented) {
                capitalized(&self.invented_word())
            } else {
                pick(&mut self.rng, gender.names()).to_owned()
            };
            let misread = Gender::ALL.iter().any(|&other| {
                other.pronouns().contains(&name.as_str()) || other != gender && other.names().contains(&name.as_str())
            });
            if !misread && self.taken.insert(name.clone()) {
                return Some(Person { name, gender });
            }
        }
        None
    }

    /// None to two relations of the person at `index`; most lead to somebody whom other memories are about.
    fn relations(&mut self, people: &[Person], index: usize) -> Vec<(Relation, String)> {
        let mut relations = Vec::new();
        if !self.chance(self.options.related) {
            return relations;
        }
        let person = &people[index].name;
        let relation = pick(&mut self.rng, &Relation::ALL);
        let others: Vec<&Person> = people
            .iter()
            .enumerate()
            .filter(|&(at, other)| at != index && relation.gender().is_none_or(|gender| gender == other.gender))
            .map(|(_, other)| other)
            .collect();
        let known = others.choose(&mut self.rng).map(|other| other.name.clone());
        let other = match known {
            Some(name) if self.chance(0.8) => Some(name),
            _ => self.person(relation.gender()).map(|person| person.name),
        };
        let Some(other) = other.filter(|name| self.allowed(person, name)) else {
            return relations;
        };
        relations.push((relation, other));
        if self.chance(0.3) {
            let rest: Vec<Relation> = Relation::ALL.into_iter().filter(|&other| other != relation).collect();
            let second = pick(&mut self.rng, &rest);
            if let Some(other) = self.person(second.gender())
                && self.allowed(person, &other.name)
            {
                relations.push((second, other.name));
            }
        }
        relations
    }

    /// Memories, singly or in pairs, each group about one person. The people take turns until `wanted` memories are
    /// written or there is nothing left to tell.
    fn groups(&mut self, stories: &mut [Story], wanted: usize) -> Vec<Vec<Note>> {
        stories.shuffle(&mut self.rng);
        let mut groups = Vec::new();
        let mut written = 0;
        for turn in 0..4 * wanted + 8 {
            if written >= wanted || stories.is_empty() {
                break;
            }
            let story = turn % stories.len();
            let group = self.group(&mut stories[story], wanted - written);
            written += group.len();
            if !group.is_empty() {
                groups.push(group);
            }
        }
        groups
    }

    /// One memory about a person, or two where there is `room` for two.
    fn group(&mut self, story: &mut Story, room: usize) -> Vec<Note> {
        let most = self.options.facts.clamp(1, 12);
        let mut sizes = vec![self.rng.random_range(1..=most)];
        if room > 1 && self.chance(self.options.paired) {
            sizes.push(self.rng.random_range(1..=most.saturating_sub(1).max(1)));
        }
        let paired = sizes.len() == 2;
        // A pronoun would be ambiguous before anyone was named, and right after a second person was.
        let mut ambiguous = true;
        let mut notes = Vec::new();
        for (second, size) in sizes.into_iter().enumerate().map(|(at, size)| (at == 1, size)) {
            let mut note = Note::default();
            for at in 0..size {
                let leads_over = paired && !second && at + 1 == size;
                let Some((topic, value)) = self.next_fact(story, leads_over) else {
                    continue;
                };
                let opens = !second && note.facts.is_empty();
                let pronoun = !opens && !ambiguous && (second || self.chance(0.75));
                let named_here = note.facts.iter().any(|fact| fact.mention == Mention::Named);
                let mention = match (pronoun, second && !named_here) {
                    (false, _) => Mention::Named,
                    (true, true) => Mention::Coreference,
                    (true, false) => Mention::Pronoun,
                };
                ambiguous = matches!(topic, Topic::Relation(_));
                note.sentences.push(self.sentence(&story.person, topic, &value, pronoun));
                note.facts.push(Fact { person: story.person.name.clone(), topic, value, memory: 0, mention });
                if self.chance(self.options.filler) {
                    note.sentences.push(pick(&mut self.rng, &FILLER).to_owned());
                }
            }
            if !note.facts.is_empty() {
                notes.push(note);
            }
        }
        notes
    }

    /// The next thing to tell. A memory that leads over to a second one does not end with a relation, so that the
    /// pronoun there can mean one person only.
    fn next_fact(&mut self, story: &mut Story, leads_over: bool) -> Option<(Topic, String)> {
        let related = !leads_over && !story.relations.is_empty();
        if related && (story.attributes.is_empty() || self.chance(0.5)) {
            let (relation, other) = story.relations.pop()?;
            return Some((Topic::Relation(relation), other));
        }
        let attribute = story.attributes.pop()?;
        let value = self.value(&story.person.name, attribute)?;
        Some((Topic::Attribute(attribute), value))
    }

    fn value(&mut self, person: &str, attribute: Attribute) -> Option<String> {
        for _ in 0..TRIES {
            let value = match attribute.values() {
                Values::FourDigits => self.rng.random_range(1000..10_000).to_string(),
                Values::Words { inventable: true, .. } if self.chance(self.options.invented) => {
                    let word = self.invented_word();
                    if attribute == Attribute::Food { word } else { capitalized(&word) }
                }
                Values::Words { words, .. } => pick(&mut self.rng, words).to_owned(),
            };
            let keep = match self.options.split {
                Split::Training => !held_out(person, &value),
                Split::Evaluation => held_out(person, &value) || self.chance(0.07),
            };
            if keep {
                return Some(value);
            }
        }
        None
    }

    fn sentence(&mut self, person: &Person, topic: Topic, value: &str, pronoun: bool) -> String {
        let owner = format!("{}'s", person.name);
        let [subject, possessive, inner] =
            if pronoun { person.gender.pronouns() } else { [person.name.as_str(), &owner, &owner] };
        let words = [("{S}", subject), ("{P}", possessive), ("{p}", inner), ("{V}", value)];
        match topic {
            Topic::Attribute(attribute) => fill(pick(&mut self.rng, attribute.phrases().statements), &words),
            Topic::Relation(relation) => {
                let template = pick(&mut self.rng, &Relation::STATEMENTS);
                fill(&template.replace("{R}", &relation.to_string()), &words)
            }
        }
    }

    fn invented_word(&mut self) -> String {
        let syllables = pick(&mut self.rng, &[1, 2, 2]);
        let mut word = String::new();
        for _ in 0..syllables {
            word += pick(&mut self.rng, &ONSETS);
            word += pick(&mut self.rng, &VOWELS);
        }
        word + pick(&mut self.rng, &CODAS)
    }

    /// Whether the split lets a relation between these two be stated.
    fn allowed(&self, person: &str, other: &str) -> bool {
        self.options.split == Split::Evaluation || !held_out(person, other)
    }

    fn chance(&mut self, share: f64) -> bool {
        self.rng.random::<f64>() < share
    }
}

/// One of `items`, which are never none.
pub(super) fn pick<T: Copy>(rng: &mut impl Rng, items: &[T]) -> T {
    items[rng.random_range(0..items.len())]
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}
