"""What the model is taught, in which order: batches of contexts, from which many questions branch off.

A row of a batch is one context followed by questions with their answers. The questions carry positions right after the
context and do not see each other, so that one pass over a context teaches a dozen answers.
"""

import random
from dataclasses import dataclass

import numpy as np

import vocabulary
import world


@dataclass(frozen=True)
class Lesson:
    """One kind of batch."""

    length: int  # tokens of a row
    rows: int
    memories: tuple  # fewest and most of a context
    questions: int  # per context
    facts: int  # the most in one memory
    shares: tuple  # of the kinds of question, in the order of world.KINDS
    attributes: tuple = (2, 10)  # fewest and most that there are
    invented: float = 0.05
    repeats: float = 0.0  # share of rows that are random spans, repeated
    gaps: float = 0.0  # share of contexts whose memories stand apart, as in a longer prompt


LATER = (0.30, 0.17, 0.24, 0.09, 0.20)
LESSONS = {
    # One fact per memory, few attributes, and much repetition: here copying is learned.
    "copy": Lesson(128, 16, (2, 5), 8, 1, (0.55, 0.15, 0.10, 0.15, 0.05), attributes=(1, 3), repeats=0.3),
    "short": Lesson(160, 26, (2, 6), 9, 2, (0.36, 0.16, 0.20, 0.13, 0.15), attributes=(1, 6), repeats=0.12),
    "middle": Lesson(256, 16, (2, 8), 12, 3, (0.30, 0.20, 0.24, 0.08, 0.18), (1, 10), invented=0.08, repeats=0.06),
    # The same with gaps between memories, which teach long distances at short lengths.
    "short apart": Lesson(160, 16, (2, 6), 9, 2, LATER, (1, 10), repeats=0.05, gaps=0.4),
    "middle apart": Lesson(256, 10, (3, 9), 13, 3, LATER, repeats=0.02, gaps=0.4),
    "long apart": Lesson(400, 6, (4, 12), 16, 4, LATER, gaps=0.4),
    "longest apart": Lesson(640, 4, (8, 20), 24, 4, LATER, (3, 10), gaps=0.4),
}

# Steps, and the lessons that they draw from with their shares.
PHASES = [
    (900, {"copy": 1.0}),
    (350, {"short": 1.0}),
    (450, {"middle": 1.0}),
    (550, {"short apart": 0.4, "middle apart": 0.4, "long apart": 0.2}),
    (600, {"short apart": 0.15, "middle apart": 0.35, "long apart": 0.35, "longest apart": 0.15}),
]


def plan(seed, scale=1.0):
    """The name of the lesson of every step. A `scale` below one shortens every phase alike."""
    rng = random.Random(f"plan-{seed}")
    names = []
    for steps, lessons in PHASES:
        names += rng.choices(list(lessons), list(lessons.values()), k=max(1, round(steps * scale)))
    return names


@dataclass
class Batch:
    """Arrays `[rows, length]`, and for each row the tokens to predict, `[rows, reads]`."""

    tokens: np.ndarray
    branch: np.ndarray  # 0: context, 1..: a question with its answer, -1: padding
    position: np.ndarray
    read: np.ndarray  # the row before the predicted token
    target: np.ndarray
    weight: np.ndarray  # 1: a token of an answer, -1: of a text, 0: none

    def arrays(self):
        return self.tokens, self.branch, self.position, self.read, self.target, self.weight


# What predicting a token is worth.
TEXT, ANSWER, NOTHING = range(3)


class Row:
    """Tokens in the making."""

    def __init__(self):
        self.tokens, self.branch, self.position, self.role = [], [], [], []

    def add(self, tokens, branch, position, role):
        self.tokens += tokens
        self.branch += [branch] * len(tokens)
        self.position += range(position, position + len(tokens))
        self.role += [role] * len(tokens)

    def padded(self, length):
        missing = length - len(self.tokens)
        self.add([vocabulary.PAD] * missing, -1, 0, NOTHING)
        return self

    def add_branches(self, encoder, questions, position, length):
        """Adds questions, each at `position`, while they fit into `length`; returns those that did."""
        for number, question in enumerate(questions):
            asked, answer = encoder.question(question)
            if len(self.tokens) + len(asked) + len(answer) > length:
                return questions[:number]
            # Nothing foretells that a question starts; from then on it is text.
            self.add(asked[:1], number + 1, position, NOTHING)
            self.add(asked[1:], number + 1, position + 1, TEXT)
            self.add(answer, number + 1, position + len(asked), ANSWER)
        return questions


def batch(seed, step, name, encoder):
    """The batch of this step; a function of its arguments."""
    lesson = LESSONS[name]
    rng = random.Random(f"batch-{seed}-{step}")
    reads = int(0.4 * lesson.length)
    rows, picks = [], []
    for _ in range(lesson.rows):
        repeated = rng.random() < lesson.repeats
        row = _repeats(rng, lesson, encoder) if repeated else _questions(rng, lesson, encoder)
        row.padded(lesson.length)
        rows.append(row)
        picks.append(_picks(rng, row, reads))

    def stack(lists, kind=np.int32):
        return np.array(lists, kind)

    return Batch(
        tokens=stack([row.tokens for row in rows]),
        branch=stack([row.branch for row in rows]),
        position=stack([row.position for row in rows]),
        read=stack([[at - 1 if weight else 0 for at, weight in pick] for pick in picks]),
        target=stack([[row.tokens[at] for at, _ in pick] for row, pick in zip(rows, picks)]),
        weight=stack([[weight for _, weight in pick] for pick in picks], np.float32),
    )


def _picks(rng, row, reads):
    """(token to predict, weight): every token of an answer, then some of the text."""
    answers = [at for at in range(1, len(row.tokens)) if row.role[at] == ANSWER][:reads]
    texts = [at for at in range(1, len(row.tokens)) if row.role[at] == TEXT]
    rng.shuffle(texts)
    picks = [(at, 1.0) for at in answers] + [(at, -1.0) for at in texts[: reads - len(answers)]]
    return picks + [(0, 0.0)] * (reads - len(picks))


def _questions(rng, lesson, encoder):
    options = world.Options(
        invented=lesson.invented,
        facts=lesson.facts,
        shares=lesson.shares,
        attributes=rng.randint(*lesson.attributes),
        relations=rng.choice((1, 2, 6)),
        related=rng.choice((0.3, 0.8)),
        paired=rng.choice((0.1, 0.5)),
    )
    while True:
        memories, questions = world.draw(rng.random(), rng.randint(*lesson.memories), lesson.questions, options)
        context = encoder.context(memories)
        if questions and sum(map(len, context)) <= 0.72 * lesson.length:
            break
    widest = 0
    if rng.random() < lesson.gaps:
        widest = 2 * (rng.choice((60, 200, 400)) // (len(context) + 1))
    row, position = Row(), 0
    for piece in context:
        row.add(piece, 0, position, TEXT)
        position += len(piece) + rng.randint(0, widest)
    row.add_branches(encoder, questions, position, lesson.length)
    return row


def _repeats(rng, lesson, encoder):
    """Random spans, each said twice: all but the first token of the second time can be known."""
    digits = [encoder.text(digit)[-1] for digit in "0123456789"]
    row = Row()
    row.add([vocabulary.BOS], 0, 0, NOTHING)
    while len(row.tokens) < lesson.length:
        count = rng.randint(3, lesson.length // 3)
        if rng.random() < 0.3:
            span = [rng.choice(digits) for _ in range(min(count, 12))]
        else:
            span = [rng.randrange(len(vocabulary.SPECIAL), vocabulary.SIZE) for _ in range(count)]
        room = lesson.length - len(row.tokens)
        twice = (span + span)[:room]
        start = len(row.tokens)
        row.add(twice[: len(span) + 1], 0, start, NOTHING)
        row.add(twice[len(span) + 1 :], 0, start + len(span) + 1, ANSWER)
    return row
