//! Asking a world: questions, their answers, and the memories that the answers rest on.

use std::collections::HashSet;

use rand::{
    Rng,
    seq::{IndexedRandom, SliceRandom},
};

use super::{
    Attribute, Fact, Kind, Mention, Question, Relation, Split, Topic, UNKNOWN, World,
    draw::pick,
    held_out,
    lexicon::{Gender, fill},
};

pub(super) fn questions(world: &World, rng: &mut impl Rng, count: usize, kinds: &[Kind]) -> Vec<Question> {
    let mut questions: Vec<Question> = Vec::new();
    let mut asked = HashSet::new();
    let (mut tries, mut misses) = (0, 0);
    while questions.len() < count && tries < count.saturating_mul(4) && misses < MISSES {
        let Ok(&kind) = kinds.choose_weighted(rng, |kind| kind.share()) else { break };
        let new = question(world, rng, kind).filter(|question| asked.insert(question.text.clone()));
        tries += 1;
        misses = if new.is_some() { 0 } else { misses + 1 };
        questions.extend(new);
    }
    questions
}

/// So many tries in a row that find nothing new, and the world has no more to ask.
const MISSES: usize = 1000;

fn question(world: &World, rng: &mut impl Rng, kind: Kind) -> Option<Question> {
    match kind {
        Kind::OneHop | Kind::Coreference => direct(world, rng, kind),
        Kind::TwoHop => two_hop(world, rng),
        Kind::Reverse => reverse(world, rng),
        Kind::Unknown => unknown(world, rng),
    }
}

/// "Where does Alice live?"
fn direct(world: &World, rng: &mut impl Rng, kind: Kind) -> Option<Question> {
    let wanted = |fact: &&Fact| (fact.mention == Mention::Coreference) == (kind == Kind::Coreference);
    let facts: Vec<&Fact> = world.facts.iter().filter(wanted).filter(|fact| askable(world, fact)).collect();
    let fact = facts.choose(rng)?;
    Some(Question {
        text: ask(rng, &fact.person, fact.topic),
        answer: answer(&fact.person, fact.topic, &fact.value),
        kind,
        evidence: evidence(&[fact]),
    })
}

/// "Where does Alice's sister live?", answered with the sister's name: "Alice's sister Maria lives in Oslo."
fn two_hop(world: &World, rng: &mut impl Rng) -> Option<Question> {
    let mut bridges = Vec::new();
    for first in &world.facts {
        let Topic::Relation(relation) = first.topic else {
            continue;
        };
        let about = Attribute::ALL.into_iter().filter_map(|what| world.fact(&first.value, Topic::Attribute(what)));
        bridges.extend(about.filter(|second| askable(world, second)).map(|second| (first, relation, second)));
    }
    let &(first, relation, second) = bridges.choose(rng)?;
    let whom = format!("{}'s {relation}", first.person);
    Some(Question {
        text: ask(rng, &whom, second.topic),
        answer: answer(&format!("{whom} {}", second.person), second.topic, &second.value),
        kind: Kind::TwoHop,
        evidence: evidence(&[first, second]),
    })
}

/// "Who lives in Oslo?", where only one person does.
fn reverse(world: &World, rng: &mut impl Rng) -> Option<Question> {
    let mut candidates: Vec<(&Fact, &str)> = world
        .facts
        .iter()
        .filter(|fact| askable(world, fact))
        .filter_map(|fact| match fact.topic {
            Topic::Attribute(attribute) => Some((fact, attribute.phrases().reverse?)),
            Topic::Relation(_) => None,
        })
        .collect();
    candidates.shuffle(rng);
    let alone = |fact: &Fact| {
        world.facts.iter().filter(|other| other.topic == fact.topic && other.value == fact.value).count() == 1
    };
    let (fact, template) = candidates.into_iter().find(|(fact, _)| alone(fact))?;
    Some(Question {
        text: fill(template, &[("{V}", &fact.value)]),
        answer: answer(&fact.person, fact.topic, &fact.value),
        kind: Kind::Reverse,
        evidence: evidence(&[fact]),
    })
}

/// A question that no memory answers: an untold attribute, a stranger, or an untold attribute of a relation.
fn unknown(world: &World, rng: &mut impl Rng) -> Option<Question> {
    let topics = Attribute::ALL.map(Topic::Attribute).into_iter().chain(Relation::ALL.map(Topic::Relation));
    let part: f64 = rng.random();
    let text = if part < 0.55 {
        let person = world.people.choose(rng)?;
        let untold: Vec<Topic> = topics.filter(|&topic| world.fact(person, topic).is_none()).collect();
        let topic = *untold.choose(rng)?;
        ask(rng, person, topic)
    } else if part < 0.75 {
        let gender = pick(rng, &Gender::ALL);
        let stranger = pick(rng, gender.names());
        let topics: Vec<Topic> = topics.collect();
        if world.told.contains_key(stranger) {
            return None;
        }
        let topic = pick(rng, &topics);
        ask(rng, stranger, topic)
    } else {
        let person = world.people.choose(rng)?;
        let related = |relation: &Relation| world.fact(person, Topic::Relation(*relation)).is_some();
        let told: Vec<Relation> = Relation::ALL.into_iter().filter(related).collect();
        let likely = rng.random::<f64>() < 0.6 && !told.is_empty();
        let relation = pick(rng, if likely { &told } else { &Relation::ALL });
        let bridge = world.fact(person, Topic::Relation(relation));
        let told_of_bridge = |topic: Topic| bridge.is_some_and(|bridge| world.fact(&bridge.value, topic).is_some());
        let untold: Vec<Topic> =
            Attribute::ALL.map(Topic::Attribute).into_iter().filter(|&topic| !told_of_bridge(topic)).collect();
        let topic = *untold.choose(rng)?;
        ask(rng, &format!("{person}'s {relation}"), topic)
    };
    Some(Question { text, answer: UNKNOWN.to_owned(), kind: Kind::Unknown, evidence: Vec::new() })
}

/// An evaluation asks about held-out pairs only.
fn askable(world: &World, fact: &Fact) -> bool {
    world.split == Split::Training || held_out(&fact.person, &fact.value)
}

fn ask(rng: &mut impl Rng, whom: &str, topic: Topic) -> String {
    match topic {
        Topic::Attribute(attribute) => fill(pick(rng, attribute.phrases().questions), &[("{N}", whom)]),
        Topic::Relation(relation) => {
            fill(pick(rng, &Relation::QUESTIONS), &[("{N}", whom), ("{R}", &relation.to_string())])
        }
    }
}

fn answer(whom: &str, topic: Topic, value: &str) -> String {
    match topic {
        Topic::Attribute(attribute) => fill(attribute.phrases().answer, &[("{N}", whom), ("{V}", value)]),
        Topic::Relation(relation) => {
            fill(Relation::ANSWER, &[("{N}", whom), ("{R}", &relation.to_string()), ("{V}", value)])
        }
    }
}

/// The memories that these facts need: their own, and the one before where only that one has the name.
fn evidence(facts: &[&Fact]) -> Vec<usize> {
    let mut memories: Vec<usize> = facts
        .iter()
        .flat_map(|fact| {
            let named_before = usize::from(fact.mention == Mention::Coreference);
            fact.memory.saturating_sub(named_before)..=fact.memory
        })
        .collect();
    memories.sort_unstable();
    memories.dedup();
    memories
}
