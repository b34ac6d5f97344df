//! A closed world of people, the memories that tell of them, and questions whose answers are known.
//!
//! The demo model was trained on worlds like these, so here its answers can be judged by comparing strings. A world is
//! a function of its seed and options alone. The memories state facts; a question names the memories that its answer
//! needs.
//!
//! ```
//! use amem_demo::world::{Kind, World, WorldOptions};
//!
//! let world = World::draw(7, &WorldOptions::default());
//! for question in world.questions(3, &Kind::ALL) {
//!     println!("{} → {} (from memories {:?})", question.text, question.answer, question.evidence);
//! }
//! ```
//!
//! Some memories come in pairs: the second starts with a pronoun ("She works at Lego.") and is about the person whom
//! the first named last. The two always stand next to each other, in that order. Put apart, the second means nothing,
//! or something else; [`Mention::Coreference`] marks its facts and [`Question::evidence`] names both memories.

mod ask;
mod draw;
mod held_out;
mod lexicon;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use held_out::held_out;
pub use lexicon::{Attribute, Relation, Topic};

/// More memories than this are never drawn, whatever the options ask for.
pub const MAX_MEMORIES: usize = 10_000;

/// The answer to a question that the memories cannot answer.
pub const UNKNOWN: &str = "I don't know.";

/// What a world is drawn from. Shares are probabilities; outside 0 to 1 they count as the nearer end.
#[derive(Clone, Debug, PartialEq)]
pub struct WorldOptions {
    /// How many memories to draw, up to [`MAX_MEMORIES`].
    pub memories: usize,
    /// The share of names, cities, employers, foods and dogs that are made-up words, which no model knows by heart.
    pub invented: f64,
    /// Which pairs of name and value the world may state, and which it is asked about.
    pub split: Split,
    /// The most facts in one memory; one to twelve.
    pub facts: usize,
    /// The chance that a memory is followed by a second one about the same person, which may start with a pronoun.
    pub paired: f64,
    /// The chance that a sentence which says nothing follows a fact.
    pub filler: f64,
    /// The share of people who have a relation.
    pub related: f64,
}

/// Which pairs of name and value a world may use; see [`held_out`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Held-out pairs are never stated.
    Training,
    /// Held-out pairs are stated often, and only they are asked about.
    Evaluation,
}

/// What answering a question takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// One fact, from a memory that names its person: "Where does Alice live?"
    OneHop,
    /// One fact, from a memory that says only "she": its person is named in the memory before.
    Coreference,
    /// Two facts, the first of which leads to the second: "Where does Alice's sister live?"
    TwoHop,
    /// One fact, asked from its value: "Who lives in Oslo?"
    Reverse,
    /// A fact that no memory states; the answer is [`UNKNOWN`].
    Unknown,
}

/// A question to a world, and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The question.
    pub text: String,
    /// The one answer that counts as right.
    pub answer: String,
    /// What answering it takes.
    pub kind: Kind,
    /// The memories that the answer needs: ascending indexes into [`World::memories`], none for [`Kind::Unknown`].
    pub evidence: Vec<usize>,
}

/// One thing that a memory states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Whom it is about.
    pub person: String,
    /// What it says about the person.
    pub topic: Topic,
    /// The value, or the related person's name.
    pub value: String,
    /// Index into [`World::memories`].
    pub memory: usize,
    /// How the sentence mentions the person.
    pub mention: Mention,
}

/// How a sentence mentions the person whom it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mention {
    /// By name.
    Named,
    /// By a pronoun, after a name in the same memory.
    Pronoun,
    /// By a pronoun whose name stands in the memory before.
    Coreference,
}

/// A drawn world.
#[derive(Clone, Debug)]
pub struct World {
    /// The memories, in the order in which they stand in a prompt.
    pub memories: Vec<String>,
    /// Everything that the memories state; no person has two facts of one topic.
    pub facts: Vec<Fact>,
    /// The people whom memories are about, though a few may have gone untold.
    people: Vec<String>,
    /// Indexes into `facts`, by person and topic; holds everyone who was named.
    told: HashMap<String, HashMap<Topic, usize>>,
    seed: u64,
    split: Split,
}

impl World {
    /// The world of this seed. Equal seeds and options give equal worlds.
    pub fn draw(seed: u64, options: &WorldOptions) -> Self {
        draw::world(seed, options)
    }

    /// Up to `count` different questions of these kinds, mixed as in training (see [`Kind::share`]).
    ///
    /// A small world can hold fewer questions than asked for: four tries are made for each, and a
    /// thousand in a row that find nothing new are the last. Equal arguments give equal
    /// questions, and asking for fewer gives the first of them.
    pub fn questions(&self, count: usize, kinds: &[Kind]) -> Vec<Question> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(QUESTIONS);
        ask::questions(self, &mut rng, count, kinds)
    }

    /// What the memories say of `person` in this matter, if anything.
    pub fn fact(&self, person: &str, topic: Topic) -> Option<&Fact> {
        self.told.get(person)?.get(&topic).map(|&fact| &self.facts[fact])
    }
}

/// The random stream that questions are drawn from; worlds are drawn from stream zero.
const QUESTIONS: u64 = 1;

impl Default for WorldOptions {
    /// Six memories of the evaluation split, as in the evaluations of the demo model.
    fn default() -> Self {
        Self { memories: 6, invented: 0.0, split: Split::Evaluation, facts: 4, paired: 0.4, filler: 0.12, related: 0.7 }
    }
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::OneHop, Self::Coreference, Self::TwoHop, Self::Reverse, Self::Unknown];

    /// How much of an even mix the kind makes up; the shares add up to one.
    pub fn share(self) -> f64 {
        match self {
            Self::OneHop => 0.34,
            Self::Coreference => 0.22,
            Self::TwoHop => 0.22,
            Self::Reverse => 0.07,
            Self::Unknown => 0.15,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OneHop => "one-hop",
            Self::Coreference => "coreference",
            Self::TwoHop => "two-hop",
            Self::Reverse => "reverse",
            Self::Unknown => "unknown",
        })
    }
}
