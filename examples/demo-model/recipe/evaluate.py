"""How often the model answers exactly right, on fresh worlds whose asked pairs were never in training.

Usage: python recipe/evaluate.py [model directory]
"""

import random
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer

import export
import lessons
import model
import vocabulary
import world

# Fewest and most memories of a world, how many worlds, and how many tokens a row of context and questions has.
GROUPS = [(1, 3, 60, 448), (4, 6, 60, 512), (7, 10, 60, 640), (14, 18, 30, 896), (22, 26, 30, 1152)]
QUESTIONS = 10


def evaluate(directory, seed=0):
    """Prints a table of exact matches, a row as soon as it is known."""
    shape = replace(model.Shape(), factors="float32")
    parameters = export.read_parameters(directory, shape)
    encoder = vocabulary.Encoder(Tokenizer.from_file(str(directory / "tokenizer.json")))
    forward = jax.jit(model.forward, static_argnames="shape")

    print(f"| notes (mean tokens) | {' | '.join(world.KINDS)} |\n| --- |{' --- |' * len(world.KINDS)}")
    for fewest, most, worlds, length in GROUPS:
        right, tokens = defaultdict(list), []
        for number in range(worlds):
            rng = random.Random(f"evaluation-{seed}-{fewest}-{number}")
            count = rng.randint(fewest, most)
            memories, questions = world.draw(rng.random(), count, QUESTIONS, world.Options(split="evaluation"))
            context = [token for piece in encoder.context(memories) for token in piece]
            tokens.append(len(context))
            row = lessons.Row()
            row.add(context, 0, 0, lessons.TEXT)
            questions = row.add_branches(encoder, questions, len(context), length)
            row.padded(length)
            for question, matched in zip(questions, _matches(forward, parameters, shape, row)):
                right[question.kind].append(matched)
        cells = [f"{100 * np.mean(right[k]):.1f} ({len(right[k])})" if right[k] else "–" for k in world.KINDS]
        print(f"| {fewest}–{most} ({np.mean(tokens):.0f}) | {' | '.join(cells)} |", flush=True)


def _matches(forward, parameters, shape, row):
    """For each question, whether every token of its answer is the likeliest one after those before it.

    That is the same as decoding greedily and comparing.
    """
    arrays = [np.array([values], np.int32) for values in (row.tokens, row.branch, row.position)]
    likeliest = np.array(forward(parameters, shape, *arrays, np.arange(len(row.tokens))[None]).argmax(-1))[0]
    right = {}
    for at, role in enumerate(row.role):
        if role == lessons.ANSWER:
            branch = row.branch[at]
            right[branch] = right.get(branch, True) and bool(likeliest[at - 1] == row.tokens[at])
    return [right[branch] for branch in sorted(right)]


if __name__ == "__main__":
    evaluate(Path(sys.argv[1] if len(sys.argv) > 1 else "model"))
