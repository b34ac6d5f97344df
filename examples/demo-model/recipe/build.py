"""Builds the demo model from nothing but a seed: tokenizer, start, training, export, evaluation.

Usage: python recipe/build.py --seed 0 --out model/
"""

import argparse
import time
from pathlib import Path

import evaluate
import export
import model
import start
import train
import vocabulary


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="everything follows from it")
    parser.add_argument("--out", type=Path, required=True, help="the model directory to write")
    parser.add_argument("--scale", type=float, default=1.0, help="below 1 shortens every phase, for a trial")
    arguments = parser.parse_args()

    started = time.monotonic()
    shape = model.Shape()
    tokenizer = vocabulary.train(arguments.seed)
    parameters = start.parameters(shape, arguments.seed)
    print(f"{sum(array.size for array in parameters.values()):,} parameters, {tokenizer.get_vocab_size()} tokens")

    def keep(parameters):
        export.write(arguments.out, parameters, shape, tokenizer)

    train.train(parameters, shape, tokenizer, arguments.seed, keep, arguments.scale)
    print(f"trained in {(time.monotonic() - started) / 60:.0f} minutes; evaluating", flush=True)
    evaluate.evaluate(arguments.out)


if __name__ == "__main__":
    main()
