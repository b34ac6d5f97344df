"""The closed world of notes and questions that the demo model is trained on.

Everything is a function of the seed and the arguments. `src/world.rs` is the same world in Rust: the same words,
sentences and shares, though not the same random stream.
"""

import random
import zlib
from dataclasses import dataclass

SYSTEM = "Answer from the notes."
UNKNOWN = "I don't know."

FEMALE_NAMES = """
Alice Maria Emma Olivia Sophia Isabella Mia Charlotte Amelia Harper Evelyn Abigail Emily Ella Grace Chloe Victoria Riley
Aria Lily Zoe Nora Hannah Stella Lucy Anna Ruby Alicia Clara Diana Elena Fiona Gloria Helen Irene Julia Karen Laura
Monica Nina Paula Rachel Sarah Tina Ursula Vera Wendy Yvonne Bianca Carmen Daisy Edith Freya Gina Heidi Ingrid Jane Kate
Lena Marta
""".split()
MALE_NAMES = """
Bob James John Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Mark Donald Steven Paul
Andrew Joshua Kevin Brian George Edward Ronald Timothy Jason Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan Stephen
Larry Justin Scott Brandon Benjamin Samuel Frank Gregory Raymond Patrick Jack Dennis Jerry Tyler Aaron Henry Adam Nathan
Peter Walter Kyle Carl Arthur Roger Oscar
""".split()
CITIES = """
Denver Boston Chicago Seattle Paris London Berlin Madrid Rome Tokyo Dublin Vienna Prague Oslo Lisbon Athens Cairo Lagos
Nairobi Delhi Mumbai Sydney Perth Toronto Montreal Vancouver Dallas Houston Austin Phoenix Miami Atlanta Portland
Detroit Memphis Nashville Tampa Omaha Tulsa Boise Geneva Zurich Munich Hamburg Warsaw Budapest Helsinki Stockholm
Brussels Naples Milan Turin Seville Porto Lyon Leeds Glasgow Cardiff Bristol Lima
""".split()
EMPLOYERS = """
Boeing Google Siemens Toyota Nestle Airbus Intel Nokia Pfizer Shell Sony Honda Bosch Philips Volvo Adidas Nike Samsung
Amazon Netflix Oracle Cisco Adobe Tesla Ford Bayer Lufthansa Ikea Lego Heineken Unilever Danone Michelin Renault Fiat
Canon Nikon Hitachi Fujitsu Panasonic
""".split()
JOBS = """
nurse teacher lawyer pilot chef baker dentist farmer plumber carpenter painter singer dancer writer poet butcher barber
tailor driver sailor soldier judge librarian surgeon scientist chemist physicist geologist journalist photographer
mechanic cashier waiter gardener janitor banker designer programmer translator
""".split()
FOODS = """
pizza sushi pasta curry soup salad tacos ramen steak salmon rice noodles pancakes waffles cheese chocolate honey mangoes
apples bananas cherries grapes peaches plums lemons olives dumplings burgers sandwiches lasagna risotto paella kebabs
falafel hummus shrimp lobster oysters tofu popcorn
""".split()
COLORS = """
red blue green yellow purple orange pink brown black white gray silver gold violet teal maroon
""".split()
HOBBIES = """
chess tennis golf hiking fishing knitting painting cycling swimming running sailing skiing surfing boxing fencing yoga
pottery gardening reading cooking baking dancing singing drawing climbing rowing archery karate judo juggling
""".split()
DOGS = """
Rex Fido Buddy Max Luna Coco Bella Rocky Toby Milo Simba Nala Oreo Pepper Ginger Shadow Smokey Ziggy Biscuit Waffle
Pluto Bandit Duke Bruno
""".split()
MONTHS = """
January February March April May June July August September October November December
""".split()
LEXICON = [FEMALE_NAMES, MALE_NAMES, CITIES, EMPLOYERS, JOBS, FOODS, COLORS, HOBBIES, DOGS, MONTHS]

ONSETS = "b c d f g h j k l m n p r s t v w z br tr kl st gr".split()
VOWELS = "a e i o u ai ee oo".split()
CODAS = "n r l s m t x nd rk".split()

GENDER = {name: "f" for name in FEMALE_NAMES} | {name: "m" for name in MALE_NAMES}
PRONOUNS = {"f": ("She", "Her", "her"), "m": ("He", "His", "his")}


@dataclass(frozen=True)
class Attribute:
    """How one property of a person is stated, asked and answered.

    Templates hold `{S}` a subject ("Alice", "She"), `{P}` a possessive ("Alice's", "Her"), `{V}` the value and `{N}`
    whom a question asks about ("Alice", "Alice's sister").
    """

    values: list | None  # None: a number of four digits
    statements: list
    questions: list
    answer: str
    reverse: str | None = None
    inventable: bool = False


ATTRIBUTES = {
    "city": Attribute(
        CITIES,
        ["{S} lives in {V}.", "{S} moved to {V} last year.", "{P} home is in {V}."],
        ["Where does {N} live?", "Which city does {N} live in?"],
        "{N} lives in {V}.",
        "Who lives in {V}?",
        inventable=True,
    ),
    "employer": Attribute(
        EMPLOYERS,
        ["{S} works at {V}.", "{S} has a job at {V}.", "{P} employer is {V}."],
        ["Where does {N} work?", "Which company does {N} work at?"],
        "{N} works at {V}.",
        "Who works at {V}?",
        inventable=True,
    ),
    "job": Attribute(
        JOBS,
        ["{S} is a {V}.", "{S} works as a {V}.", "{P} job is {V}."],
        ["What is {N}'s job?", "What does {N} do for a living?"],
        "{N} is a {V}.",
        "Who is a {V}?",
    ),
    "food": Attribute(
        FOODS,
        ["{S} loves {V}.", "{P} favorite food is {V}.", "{S} likes to eat {V}."],
        ["What is {N}'s favorite food?", "What does {N} like to eat?"],
        "{N}'s favorite food is {V}.",
        "Who likes to eat {V}?",
        inventable=True,
    ),
    "color": Attribute(
        COLORS,
        ["{P} favorite color is {V}.", "{S} always wears {V}."],
        ["What is {N}'s favorite color?", "Which color does {N} like?"],
        "{N}'s favorite color is {V}.",
    ),
    "hobby": Attribute(
        HOBBIES,
        ["{S} enjoys {V}.", "{P} hobby is {V}.", "{S} spends weekends on {V}."],
        ["What is {N}'s hobby?", "What does {N} enjoy?"],
        "{N} enjoys {V}.",
        "Who enjoys {V}?",
    ),
    "budget": Attribute(
        None,
        ["{P} budget is ${V}.", "{S} has a budget of ${V}."],
        ["What is {N}'s budget?", "How much is {N}'s budget?"],
        "{N}'s budget is ${V}.",
    ),
    "locker code": Attribute(
        None,
        ["{P} locker code is {V}.", "{S} uses locker code {V}."],
        ["What is {N}'s locker code?", "Which locker code does {N} use?"],
        "{N}'s locker code is {V}.",
    ),
    "birth month": Attribute(
        MONTHS,
        ["{S} was born in {V}.", "{P} birthday is in {V}."],
        ["When was {N} born?", "In which month was {N} born?"],
        "{N} was born in {V}.",
    ),
    "dog": Attribute(
        DOGS,
        ["{P} dog is called {V}.", "{S} has a dog named {V}."],
        ["What is {N}'s dog called?", "What is the name of {N}'s dog?"],
        "{N}'s dog is called {V}.",
        inventable=True,
    ),
}
RELATIONS = ["sister", "brother", "manager", "friend", "neighbor", "doctor"]
RELATION_GENDER = {"sister": "f", "brother": "m"}
RELATION_STATEMENTS = ["{P} {R} is {V}.", "{V} is {p} {R}.", "{S} has a {R} named {V}."]
RELATION_QUESTIONS = ["Who is {N}'s {R}?", "What is the name of {N}'s {R}?"]
RELATION_ANSWER = "{N}'s {R} is {V}."
FILLER = [
    "It was a sunny day.",
    "The meeting went well.",
    "They talked about the weather.",
    "The train was late again.",
    "Nothing else was said.",
    "This was noted on Monday.",
    "This came up over lunch.",
    "The call was short.",
]

KINDS = ["one-hop", "coreference", "two-hop", "reverse", "unknown"]


@dataclass(frozen=True)
class Options:
    """What a world is drawn from. The last three narrow it for the early lessons."""

    split: str = "training"  # or "evaluation": states held-out pairs often and asks about them only
    invented: float = 0.0  # share of made-up names, cities, employers, foods and dogs
    facts: int = 4  # the most in one memory
    paired: float = 0.4  # chance that a memory is followed by another about the same person
    filler: float = 0.12  # chance of a sentence that says nothing, after each fact
    related: float = 0.7  # share of people who have a relation
    attributes: int | None = None  # how many attributes there are
    relations: int | None = None  # how many relations there are
    shares: tuple = (0.34, 0.22, 0.22, 0.07, 0.15)  # of the kinds of question


@dataclass(frozen=True)
class Fact:
    """A value, the index of the memory that states it, and how: "named", "pronoun" or "coreference"."""

    value: str
    memory: int
    mention: str


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    kind: str


def held_out(name, value):
    """Whether the pair is kept out of training: a tenth of all pairs is."""
    return zlib.crc32(f"{name}|{value}".encode()) % 10 == 0


def draw(seed, memories, questions, options=Options()):
    """A world of this many memories, and up to this many different questions about it."""
    rng = random.Random(seed)
    world = World(rng, memories, options)
    asked = {}
    for _ in range(questions * 4):
        if len(asked) == questions:
            break
        (kind,) = rng.choices(KINDS, options.shares)
        question = world.question(kind)
        if question and question.text not in asked:
            asked[question.text] = question
    return world.memories, list(asked.values())


class World:
    """People, what is true of them, and the memories that say so."""

    def __init__(self, rng, memories, options=Options()):
        self.rng = rng
        self.options = options
        self.names = set()
        self.people = []  # (name, gender) of those whom memories are about
        self.memories = []
        self.facts = {}  # (name, attribute or relation) -> Fact
        self._tell(memories)

    def _tell(self, wanted):
        rng = self.rng
        attributes, relations = list(ATTRIBUTES), RELATIONS
        if self.options.attributes:
            attributes = rng.sample(attributes, self.options.attributes)
        if self.options.relations:
            relations = rng.sample(relations, self.options.relations)
        count = max(1, round(wanted * rng.uniform(0.5, 0.9)))
        self.people = [self._person() for _ in range(count)]
        related = self._relate(relations)
        untold = {name: rng.sample(attributes, len(attributes)) for name, _ in self.people}

        groups, order, written = [], self.people[:], 0
        rng.shuffle(order)
        for turn in range(4 * wanted + 8):
            if written >= wanted:
                break
            person = order[turn % len(order)]
            group = self._group(person, untold[person[0]], related.get(person[0], []), wanted - written)
            if group:
                groups.append(group)
                written += len(group)
        rng.shuffle(groups)
        for text, stated in (note for group in groups for note in group):
            for name, topic, value, mention in stated:
                self.facts[name, topic] = Fact(value, len(self.memories), mention)
            self.memories.append(text)

    def _person(self, gender=None):
        rng, invented = self.rng, self.options.invented
        while True:
            if invented and rng.random() < invented:
                name = self._invented_word().capitalize()
                chosen = gender or rng.choice("fm")
                if GENDER.get(name, chosen) != chosen or name in ("Her", "His"):
                    continue
            else:
                name = rng.choice(FEMALE_NAMES if (gender or rng.choice("fm")) == "f" else MALE_NAMES)
                chosen = GENDER[name]
            if name not in self.names:
                self.names.add(name)
                return name, chosen

    def _relate(self, relations):
        """None to two relations for each person; most lead to somebody whom other memories are about."""
        rng, related = self.rng, {}
        for person in self.people:
            name = person[0]
            if rng.random() >= self.options.related:
                continue
            relation = rng.choice(relations)
            gender = RELATION_GENDER.get(relation)
            known = [other for other in self.people if other != person and gender in (None, other[1])]
            other = rng.choice(known) if known and rng.random() < 0.8 else self._person(gender)
            if not self._allowed(name, other[0]):
                continue
            related[name] = [(relation, other[0])]
            if rng.random() < 0.3:
                second = rng.choice([rest for rest in RELATIONS if rest != relation])
                other = self._person(RELATION_GENDER.get(second))
                if self._allowed(name, other[0]):
                    related[name].append((second, other[0]))
        return related

    def _group(self, person, attributes, relations, room):
        """One memory about a person, or two where there is room: a list of (text, facts)."""
        rng, (name, gender) = self.rng, person
        sizes = [rng.randint(1, self.options.facts)]
        if room > 1 and rng.random() < self.options.paired:
            sizes.append(rng.randint(1, max(1, self.options.facts - 1)))
        group, ambiguous = [], True  # a pronoun is ambiguous before anyone was named, and after a second person was
        for second, size in enumerate(sizes):
            sentences, stated = [], []
            for at in range(size):
                # The last fact before a second memory is no relation, so that "she" there can mean one person only.
                may_relate = relations and not (len(sizes) == 2 and not second and at == size - 1)
                is_relation = bool(relations) and rng.random() < 0.5 and bool(may_relate)
                if not is_relation and not attributes:
                    if not may_relate:
                        continue
                    is_relation = True
                opens = not second and not stated
                pronoun = not opens and not ambiguous and (second or rng.random() < 0.75)
                owner = f"{name}'s"
                subject, possessive, inner = PRONOUNS[gender] if pronoun else (name, owner, owner)
                named_here = any(mention == "named" for *_, mention in stated)
                mention = "named" if not pronoun else "coreference" if second and not named_here else "pronoun"
                if is_relation:
                    topic, value = relations.pop()
                    template = rng.choice(RELATION_STATEMENTS).replace("{R}", topic)
                else:
                    topic = attributes.pop()
                    value = self._value(name, ATTRIBUTES[topic], topic == "food")
                    template = rng.choice(ATTRIBUTES[topic].statements)
                ambiguous = is_relation
                sentences.append(template.format(S=subject, P=possessive, p=inner, V=value))
                stated.append((name, topic, value, mention))
                if rng.random() < self.options.filler:
                    sentences.append(rng.choice(FILLER))
            if sentences:
                group.append((" ".join(sentences), stated))
        return group

    def _value(self, name, attribute, lower):
        rng = self.rng
        while True:
            if attribute.values is None:
                value = str(rng.randrange(1000, 10000))
            elif rng.random() < self.options.invented and attribute.inventable:
                word = self._invented_word()
                value = word if lower else word.capitalize()
            else:
                value = rng.choice(attribute.values)
            held = held_out(name, value)
            if self.options.split == "training" and held:
                continue
            if self.options.split == "evaluation" and not held and rng.random() < 0.93:
                continue
            return value

    def _invented_word(self):
        rng = self.rng
        syllables = rng.choice((1, 2, 2))
        return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables)) + rng.choice(CODAS)

    def _allowed(self, name, other):
        return self.options.split == "evaluation" or not held_out(name, other)

    def _askable(self, key):
        return self.options.split == "training" or held_out(key[0], self.facts[key].value)

    def question(self, kind):
        """A question of this kind, or None where the draw finds none."""
        ask = {"two-hop": self._two_hop, "reverse": self._reverse, "unknown": self._unknown}
        found = ask[kind]() if kind in ask else self._direct(kind)
        return found and Question(*found, kind)

    def _direct(self, kind):
        wanted = kind == "coreference"
        keys = [k for k, fact in self.facts.items() if (fact.mention == "coreference") == wanted and self._askable(k)]
        if not keys:
            return None
        name, topic = self.rng.choice(keys)
        return self._ask(name, topic), answer(name, topic, self.facts[name, topic].value)

    def _two_hop(self):
        """The answer names the bridge: "Alice's sister Maria lives in Oslo."."""
        bridges = [
            (name, relation, fact.value, attribute)
            for (name, relation), fact in self.facts.items()
            if relation in RELATIONS
            for attribute in ATTRIBUTES
            if (fact.value, attribute) in self.facts and self._askable((fact.value, attribute))
        ]
        if not bridges:
            return None
        name, relation, other, attribute = self.rng.choice(bridges)
        whom = f"{name}'s {relation}"
        value = self.facts[other, attribute].value
        return self._ask(whom, attribute), answer(f"{whom} {other}", attribute, value)

    def _reverse(self):
        keys = [k for k in self.facts if k[1] in ATTRIBUTES and ATTRIBUTES[k[1]].reverse and self._askable(k)]
        self.rng.shuffle(keys)
        for name, topic in keys:
            value = self.facts[name, topic].value
            if sum(k[1] == topic and fact.value == value for k, fact in self.facts.items()) == 1:
                return ATTRIBUTES[topic].reverse.format(V=value), answer(name, topic, value)
        return None

    def _unknown(self):
        """An untold topic, a stranger, or an untold attribute of a relation."""
        rng, topics = self.rng, [*ATTRIBUTES, *RELATIONS]
        part = rng.random()
        if part < 0.55:
            whom = rng.choice(self.people)[0]
            untold = [topic for topic in topics if (whom, topic) not in self.facts]
        elif part < 0.75:
            whom = rng.choice(FEMALE_NAMES + MALE_NAMES)
            untold = topics if whom not in self.names else []
        else:
            name = rng.choice(self.people)[0]
            told = [topic for owner, topic in self.facts if owner == name and topic in RELATIONS]
            relation = rng.choice(told or RELATIONS) if rng.random() < 0.6 else rng.choice(RELATIONS)
            bridge = self.facts.get((name, relation))
            untold = [topic for topic in ATTRIBUTES if not bridge or (bridge.value, topic) not in self.facts]
            whom = f"{name}'s {relation}"
        if not untold:
            return None
        return self._ask(whom, rng.choice(untold)), UNKNOWN

    def _ask(self, whom, topic):
        if topic in RELATIONS:
            return self.rng.choice(RELATION_QUESTIONS).format(N=whom, R=topic)
        return self.rng.choice(ATTRIBUTES[topic].questions).format(N=whom)


def answer(whom, topic, value):
    if topic in RELATIONS:
        return RELATION_ANSWER.format(N=whom, R=topic, V=value)
    return ATTRIBUTES[topic].answer.format(N=whom, V=value)
