#!/usr/bin/env python3
"""Compare amem's encoders with sentence-transformers on PyTorch, with the same weights and threads, in one run.

    pip install torch sentence-transformers
    cargo build --release -p amem-benches --example embed
    python3 benches/peers/encoders.py DIR [--threads 2] [--rounds 7]

DIR holds an encoder, all-MiniLM-L6-v2 say. Rounds alternate between the two, so that a busy machine slows both. Printed
are medians, and how many times as fast amem was: by the time that passed, and by the time that processors spent. On a
busy machine PyTorch's threads spin while they wait for each other, and only the second, with one thread and on one core
(`taskset -c 0`), says anything.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

EMBED = Path(__file__).resolve().parents[2] / "target" / "release" / "examples" / "embed"
WORDS = (
    "the a of to in and Alice Bob Maria lives works likes moved report coffee train garden quarterly budget database "
    "remember meeting Friday violin peanuts locker router Denver Oslo Vienna because although never always morning"
).split()


def texts(count, words, seed):
    r = random.Random(seed)
    return [" ".join(r.choice(WORDS) for _ in range(r.randint(*words))) + "." for _ in range(count)]


LISTS = {
    "a question": texts(1, (10, 10), 1),
    "200 sentences": texts(200, (8, 30), 2),
    "32 pages": texts(32, (300, 300), 3),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dir")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--weights", nargs="+", default=["as-stored", "int8", "exact"])
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(list(LISTS.values()), file)
        file.flush()
        start = lambda weights: subprocess.Popen(
            [EMBED, args.dir, file.name, weights], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        ours = {weights: start(weights) for weights in args.weights}
        loaded = {weights: float(process.stdout.readline().split()[1]) for weights, process in ours.items()}

        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(args.threads)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.perf_counter()
        model = SentenceTransformer(args.dir, device="cpu")
        print(f"loading: sentence-transformers {time.perf_counter() - begun:.2f} s, amem {loaded}")

        def spent(pid):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        def theirs(list_):
            begun, before = time.perf_counter(), time.process_time()
            model.encode(list_, batch_size=32)
            return time.perf_counter() - begun, time.process_time() - before

        def of(process, index, repeats):
            tokens, total, before = 0, 0.0, spent(process.pid)
            for _ in range(repeats):
                process.stdin.write(f"{index}\n")
                process.stdin.flush()
                seconds, tokens = process.stdout.readline().split()
                total += float(seconds)
            return (total / repeats, (spent(process.pid) - before) / repeats), int(tokens)

        for index, (name, list_) in enumerate(LISTS.items()):
            times = {name: [] for name in ["sentence-transformers", *ours]}
            repeats = 50 if len(list_) == 1 else 1
            for _ in range(args.rounds + 1):
                runs = [theirs(list_) for _ in range(repeats)]
                times["sentence-transformers"].append([sum(run[kind] for run in runs) / repeats for kind in (0, 1)])
                for weights, process in ours.items():
                    run, tokens = of(process, index, repeats)
                    times[weights].append(run)
            medians = {
                who: [statistics.median(run[kind] for run in runs[1:]) for kind in (0, 1)] for who, runs in times.items()
            }
            print(f"{name}: {len(list_)} texts, {tokens} tokens")
            for who, (passed, worked) in medians.items():
                base = medians["sentence-transformers"]
                print(
                    f"  {who:22} {1e3 * passed:8.2f} ms {len(list_) / passed:8.1f} texts/s {tokens / passed:9.0f} tokens/s"
                    f" {base[0] / passed:5.2f} times as fast; {1e3 * worked:8.2f} ms of processors,"
                    f" {base[1] / max(worked, 1e-9):5.2f} times"
                )
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"peak memory: sentence-transformers {after // 1024} MiB ({before // 1024} before the model)")
        for weights, process in ours.items():
            process.stdin.close()
            print(f"  amem, {weights}: {int(process.stdout.read().split()[1]) // 1024} MiB")


if __name__ == "__main__":
    main()
