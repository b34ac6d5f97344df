//! The words of the world: names, values, and the sentences that state and ask them.
//!
//! Templates hold `{S}` a subject ("Alice", "She"), `{P}` and `{p}` a possessive ("Alice's", "Her", "her"), `{V}` the
//! value and `{N}` whom a question asks about ("Alice", "Alice's sister"). Every name and value is a single word.

use std::{fmt, sync::LazyLock};

/// Something that a note can say about a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// A property, such as the city that a person lives in.
    Attribute(Attribute),
    /// Another person, such as a sister.
    Relation(Relation),
}

/// A property of a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attribute {
    /// Where the person lives.
    City,
    /// The company that the person works at.
    Employer,
    /// What the person does for a living.
    Job,
    /// The person's favorite food.
    Food,
    /// The person's favorite color.
    Color,
    /// What the person enjoys.
    Hobby,
    /// A sum of four digits.
    Budget,
    /// A locker code of four digits.
    LockerCode,
    /// The month of the person's birthday.
    BirthMonth,
    /// The name of the person's dog.
    Dog,
}

/// Who one person is to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say all there is to say")]
pub enum Relation {
    Sister,
    Brother,
    Manager,
    Friend,
    Neighbor,
    Doctor,
}

/// Decides the pronoun of a person, and who can be a sister or a brother.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gender {
    Female,
    Male,
}

/// How one attribute is stated, asked and answered.
pub(super) struct Phrases {
    pub(super) statements: &'static [&'static str],
    pub(super) questions: &'static [&'static str],
    pub(super) answer: &'static str,
    pub(super) reverse: Option<&'static str>,
}

/// The values that an attribute takes.
pub(super) enum Values {
    /// One of these words; with `inventable`, an invented word may stand in.
    Words { words: &'static [&'static str], inventable: bool },
    /// A number of four digits.
    FourDigits,
}

impl Attribute {
    /// Every attribute.
    pub const ALL: [Self; 10] = [
        Self::City,
        Self::Employer,
        Self::Job,
        Self::Food,
        Self::Color,
        Self::Hobby,
        Self::Budget,
        Self::LockerCode,
        Self::BirthMonth,
        Self::Dog,
    ];

    pub(super) fn values(self) -> Values {
        let (words, inventable): (&'static [&'static str], bool) = match self {
            Self::City => (&CITIES, true),
            Self::Employer => (&EMPLOYERS, true),
            Self::Job => (&JOBS, false),
            Self::Food => (&FOODS, true),
            Self::Color => (&COLORS, false),
            Self::Hobby => (&HOBBIES, false),
            Self::BirthMonth => (&MONTHS, false),
            Self::Dog => (&DOGS, true),
            Self::Budget | Self::LockerCode => return Values::FourDigits,
        };
        Values::Words { words, inventable }
    }

    pub(super) fn phrases(self) -> Phrases {
        match self {
            Self::City => Phrases {
                statements: &["{S} lives in {V}.", "{S} moved to {V} last year.", "{P} home is in {V}."],
                questions: &["Where does {N} live?", "Which city does {N} live in?"],
                answer: "{N} lives in {V}.",
                reverse: Some("Who lives in {V}?"),
            },
            Self::Employer => Phrases {
                statements: &["{S} works at {V}.", "{S} has a job at {V}.", "{P} employer is {V}."],
                questions: &["Where does {N} work?", "Which company does {N} work at?"],
                answer: "{N} works at {V}.",
                reverse: Some("Who works at {V}?"),
            },
            Self::Job => Phrases {
                statements: &["{S} is a {V}.", "{S} works as a {V}.", "{P} job is {V}."],
                questions: &["What is {N}'s job?", "What does {N} do for a living?"],
                answer: "{N} is a {V}.",
                reverse: Some("Who is a {V}?"),
            },
            Self::Food => Phrases {
                statements: &["{S} loves {V}.", "{P} favorite food is {V}.", "{S} likes to eat {V}."],
                questions: &["What is {N}'s favorite food?", "What does {N} like to eat?"],
                answer: "{N}'s favorite food is {V}.",
                reverse: Some("Who likes to eat {V}?"),
            },
            Self::Color => Phrases {
                statements: &["{P} favorite color is {V}.", "{S} always wears {V}."],
                questions: &["What is {N}'s favorite color?", "Which color does {N} like?"],
                answer: "{N}'s favorite color is {V}.",
                reverse: None,
            },
            Self::Hobby => Phrases {
                statements: &["{S} enjoys {V}.", "{P} hobby is {V}.", "{S} spends weekends on {V}."],
                questions: &["What is {N}'s hobby?", "What does {N} enjoy?"],
                answer: "{N} enjoys {V}.",
                reverse: Some("Who enjoys {V}?"),
            },
            Self::Budget => Phrases {
                statements: &["{P} budget is ${V}.", "{S} has a budget of ${V}."],
                questions: &["What is {N}'s budget?", "How much is {N}'s budget?"],
                answer: "{N}'s budget is ${V}.",
                reverse: None,
            },
            Self::LockerCode => Phrases {
                statements: &["{P} locker code is {V}.", "{S} uses locker code {V}."],
                questions: &["What is {N}'s locker code?", "Which locker code does {N} use?"],
                answer: "{N}'s locker code is {V}.",
                reverse: None,
            },
            Self::BirthMonth => Phrases {
                statements: &["{S} was born in {V}.", "{P} birthday is in {V}."],
                questions: &["When was {N} born?", "In which month was {N} born?"],
                answer: "{N} was born in {V}.",
                reverse: None,
            },
            Self::Dog => Phrases {
                statements: &["{P} dog is called {V}.", "{S} has a dog named {V}."],
                questions: &["What is {N}'s dog called?", "What is the name of {N}'s dog?"],
                answer: "{N}'s dog is called {V}.",
                reverse: None,
            },
        }
    }
}

impl Relation {
    /// Every relation.
    pub const ALL: [Self; 6] = [Self::Sister, Self::Brother, Self::Manager, Self::Friend, Self::Neighbor, Self::Doctor];

    /// `{R}` stands for the relation's word.
    pub(super) const STATEMENTS: [&'static str; 3] = ["{P} {R} is {V}.", "{V} is {p} {R}.", "{S} has a {R} named {V}."];
    pub(super) const QUESTIONS: [&'static str; 2] = ["Who is {N}'s {R}?", "What is the name of {N}'s {R}?"];
    pub(super) const ANSWER: &'static str = "{N}'s {R} is {V}.";

    /// The gender that the word implies, where it implies one.
    pub(super) fn gender(self) -> Option<Gender> {
        match self {
            Self::Sister => Some(Gender::Female),
            Self::Brother => Some(Gender::Male),
            Self::Manager | Self::Friend | Self::Neighbor | Self::Doctor => None,
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sister => "sister",
            Self::Brother => "brother",
            Self::Manager => "manager",
            Self::Friend => "friend",
            Self::Neighbor => "neighbor",
            Self::Doctor => "doctor",
        })
    }
}

impl Gender {
    pub(super) const ALL: [Self; 2] = [Self::Female, Self::Male];

    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Female => &FEMALE_NAMES,
            Self::Male => &MALE_NAMES,
        }
    }

    /// Subject, possessive at the start of a sentence, possessive within it.
    pub(super) fn pronouns(self) -> [&'static str; 3] {
        match self {
            Self::Female => ["She", "Her", "her"],
            Self::Male => ["He", "His", "his"],
        }
    }
}

/// `template` with each placeholder replaced by its word.
pub(super) fn fill(template: &str, words: &[(&str, &str)]) -> String {
    words.iter().fold(template.to_owned(), |text, (placeholder, word)| text.replace(placeholder, word))
}

/// Sentences that say nothing.
pub(super) const FILLER: [&str; 8] = [
    "It was a sunny day.",
    "The meeting went well.",
    "They talked about the weather.",
    "The train was late again.",
    "Nothing else was said.",
    "This was noted on Monday.",
    "This came up over lunch.",
    "The call was short.",
];

type Words = LazyLock<Vec<&'static str>>;

/// A list of words from one text.
macro_rules! words {
    ($text:literal) => {
        LazyLock::new(|| $text.split_whitespace().collect())
    };
}

pub(super) static FEMALE_NAMES: Words = words!(
    "Alice Maria Emma Olivia Sophia Isabella Mia Charlotte Amelia Harper Evelyn Abigail Emily Ella Grace Chloe Victoria
     Riley Aria Lily Zoe Nora Hannah Stella Lucy Anna Ruby Alicia Clara Diana Elena Fiona Gloria Helen Irene Julia Karen
     Laura Monica Nina Paula Rachel Sarah Tina Ursula Vera Wendy Yvonne Bianca Carmen Daisy Edith Freya Gina Heidi
     Ingrid Jane Kate Lena Marta"
);
pub(super) static MALE_NAMES: Words = words!(
    "Bob James John Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Mark Donald Steven
     Paul Andrew Joshua Kevin Brian George Edward Ronald Timothy Jason Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan
     Stephen Larry Justin Scott Brandon Benjamin Samuel Frank Gregory Raymond Patrick Jack Dennis Jerry Tyler Aaron
     Henry Adam Nathan Peter Walter Kyle Carl Arthur Roger Oscar"
);
static CITIES: Words = words!(
    "Denver Boston Chicago Seattle Paris London Berlin Madrid Rome Tokyo Dublin Vienna Prague Oslo Lisbon Athens Cairo
     Lagos Nairobi Delhi Mumbai Sydney Perth Toronto Montreal Vancouver Dallas Houston Austin Phoenix Miami Atlanta
     Portland Detroit Memphis Nashville Tampa Omaha Tulsa Boise Geneva Zurich Munich Hamburg Warsaw Budapest Helsinki
     Stockholm Brussels Naples Milan Turin Seville Porto Lyon Leeds Glasgow Cardiff Bristol Lima"
);
static EMPLOYERS: Words = words!(
    "Boeing Google Siemens Toyota Nestle Airbus Intel Nokia Pfizer Shell Sony Honda Bosch Philips Volvo Adidas Nike
     Samsung Amazon Netflix Oracle Cisco Adobe Tesla Ford Bayer Lufthansa Ikea Lego Heineken Unilever Danone Michelin
     Renault Fiat Canon Nikon Hitachi Fujitsu Panasonic"
);
static JOBS: Words = words!(
    "nurse teacher lawyer pilot chef baker dentist farmer plumber carpenter painter singer dancer writer poet butcher
     barber tailor driver sailor soldier judge librarian surgeon scientist chemist physicist geologist journalist
     photographer mechanic cashier waiter gardener janitor banker designer programmer translator"
);
static FOODS: Words = words!(
    "pizza sushi pasta curry soup salad tacos ramen steak salmon rice noodles pancakes waffles cheese chocolate honey
     mangoes apples bananas cherries grapes peaches plums lemons olives dumplings burgers sandwiches lasagna risotto
     paella kebabs falafel hummus shrimp lobster oysters tofu popcorn"
);
static COLORS: Words =
    words!("red blue green yellow purple orange pink brown black white gray silver gold violet teal maroon");
static HOBBIES: Words = words!(
    "chess tennis golf hiking fishing knitting painting cycling swimming running sailing skiing surfing boxing fencing
     yoga pottery gardening reading cooking baking dancing singing drawing climbing rowing archery karate judo juggling"
);
static DOGS: Words = words!(
    "Rex Fido Buddy Max Luna Coco Bella Rocky Toby Milo Simba Nala Oreo Pepper Ginger Shadow Smokey Ziggy Biscuit Waffle
     Pluto Bandit Duke Bruno"
);
static MONTHS: Words = words!("January February March April May June July August September October November December");

/// The sounds of invented words: one or two of onset and vowel, then a coda.
pub(super) static ONSETS: Words = words!("b c d f g h j k l m n p r s t v w z br tr kl st gr");
pub(super) static VOWELS: Words = words!("a e i o u ai ee oo");
pub(super) static CODAS: Words = words!("n r l s m t x nd rk");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_that_trained_the_model_knows_the_same_words() {
        let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/recipe/world.py");
        let Ok(recipe) = std::fs::read_to_string(recipe) else {
            return;
        };
        let lists = [
            &FEMALE_NAMES,
            &MALE_NAMES,
            &CITIES,
            &EMPLOYERS,
            &JOBS,
            &FOODS,
            &COLORS,
            &HOBBIES,
            &DOGS,
            &MONTHS,
            &ONSETS,
            &VOWELS,
            &CODAS,
        ];
        let known: std::collections::HashSet<&str> = recipe.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        for word in lists.iter().flat_map(|list| list.iter()) {
            assert!(known.contains(word), "{word} is not in the recipe");
        }
        for attribute in Attribute::ALL {
            let phrases = attribute.phrases();
            let sentences = phrases.statements.iter().chain(phrases.questions).chain([&phrases.answer]);
            for sentence in sentences.chain(&phrases.reverse) {
                assert!(recipe.contains(sentence), "{sentence} is not in the recipe");
            }
        }
        for sentence in FILLER {
            assert!(recipe.contains(sentence), "{sentence} is not in the recipe");
        }
    }

    #[test]
    fn no_word_is_listed_twice() {
        for list in [&CITIES, &EMPLOYERS, &JOBS, &FOODS, &COLORS, &HOBBIES, &DOGS, &MONTHS] {
            let mut words = list.to_vec();
            words.sort_unstable();
            words.dedup();
            assert_eq!(words.len(), list.len(), "in the list that starts with {}", list[0]);
        }
        assert!(FEMALE_NAMES.iter().all(|name| !MALE_NAMES.contains(name)));
    }
}
