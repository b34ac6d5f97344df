#!/usr/bin/env python3
"""Times amem next to llama.cpp and candle: same weights, same number of threads, same lengths, in one run.

    python3 benches/peers/compare.py            # builds what is missing, measures, prints the tables
    python3 benches/peers/compare.py --quick    # one repetition
    python3 benches/peers/compare.py --help

Needs Python 3.11.4, Rust, a C++ compiler, and access to the package registries of Python and Rust. Everything that it
makes is in target/peers (or `--scratch`), which takes about 6 GB:

- llama.cpp as it comes with the source package of llama-cpp-python, built for this machine (GGML_NATIVE). Its flash
  attention is tried on and off with each model, and what is faster is used;
- candle, by the small program in the folder candle, built for this machine;
- amem, by amem.rs. It chooses its instructions when it runs, so it is built as always;
- models of random weights, written by models.py.

The engines take turns: a repetition runs each of them once, and begins with another one than the repetition before.
A process warms up with a prompt of 32 tokens, computes each prompt in an empty context once, and then decodes from an
empty context. Loading is the time of a process that loads the model and computes one token, from its start to its end,
with the file in the system's cache. Peak memory is that of the process that computes the prompts, the pages of mapped
files that it touched included.

Run it on a machine that does nothing else: engines whose threads wait for each other by spinning lose most when another
process takes a core. What others took of the machine meanwhile is printed with the results. On a quiet machine with two
cores of Zen 5 all of it takes about ten minutes. candle runs with bf16 weights only, unless `--candle-types` says
otherwise: its prefill with weights of few bits takes longer than all the rest.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
ENGINES = ["llama.cpp", "candle", "amem"]
MODELS = ["qwen2.5-0.5b", "smollm2-135m"]
TYPES = ["bf16", "q8_0", "q4_0"]
PROMPTS = [512, 2048]
GENERATED = 64
WARM_UP = 32
# Tokens of memories in front of a first token, as far as a model's context holds them and a question.
BLENDS = [512, 4000, 31000]
QUESTION = 256
# The largest multiple of its usual time that a run may take before it counts as hanging.
TIMEOUT = 600
# The format that amem makes of bf16 weights for each type, if it makes them itself.
WEIGHTS = {"bf16": "as-stored", "q8_0": "int8", "q4_0": "int4"}
# Bits that a number of a matrix takes in each type, scales included.
BITS = {"bf16": 16, "q8_0": 8.5, "q4_0": 4.5}
# The instructions whose peak bounds products with matrices of a type.
PEAKS = {"bf16": "bf16", "q8_0": "int8", "q4_0": "int8"}
INSTRUCTIONS = ["avx2", "fma", "avx_vnni", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "asimddp", "i8mm"]


def main():
    options = parse()
    options.scratch.mkdir(parents=True, exist_ok=True)
    engines = build(options)
    if options.build_only:
        return
    results = {"machine": machine(options), "versions": versions(options), "peaks": peaks(engines, options)}
    cases = [Case(model, kind, options) for model in options.models for kind in options.types]
    if "llama.cpp" in options.engines:
        for model in options.models:
            choose_attention([case for case in cases if case.model == model], engines, options)
    for repetition in range(options.repetitions):
        for case in cases:
            turn = repetition % len(options.engines)
            for engine in options.engines[turn:] + options.engines[:turn]:
                case.measure(engine, engines, options)
    if "amem" in options.engines:
        for case in cases:
            if case.kind in options.memory:
                case.measure_memory(engines, options)
    results["cases"] = [case.result() for case in cases]
    text = report(results, options)
    print(text)
    (options.scratch / "result.md").write_text(text)
    (options.scratch / "result.json").write_text(json.dumps(results, indent=1))
    if options.write:
        write_between(options.write, text)


def parse():
    def names(known):
        def split(text):
            chosen = text.split(",")
            for name in chosen:
                if name not in known:
                    raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(known)}")
            return chosen

        return split

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--scratch", type=Path, default=REPOSITORY / "target" / "peers", help="where everything is put")
    parser.add_argument("--engines", type=names(ENGINES), default=ENGINES, help="of " + ",".join(ENGINES))
    parser.add_argument("--models", type=names(MODELS), default=MODELS, help="of " + ",".join(MODELS))
    parser.add_argument("--types", type=names(TYPES), default=TYPES, help="of " + ",".join(TYPES))
    parser.add_argument("--candle-types", type=names(TYPES), default=["bf16"], help="those with which candle runs")
    parser.add_argument("--arithmetic", choices=["fast", "exact"], default="fast", help="amem's")
    made = "have amem make int8 and int4 weights of bf16 ones, instead of reading llama.cpp's files"
    parser.add_argument("--made", action="store_true", help=made)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("--nice", type=int, default=0, help="priority of what is measured; below 0 needs privileges")
    parser.add_argument("--build-only", action="store_true", help="build what is missing, measure nothing")
    only_amem = "weights with which amem is measured in what only amem does; none"
    parser.add_argument("--memory", type=names([*TYPES, "none"]), default=["bf16"], help=only_amem)
    parser.add_argument("--ingest", type=int, default=0, help="memories that amem computes there, 10,000 say")
    parser.add_argument("--write", type=Path, help="put the tables between the marks in this file")
    options = parser.parse_args()
    options.scratch = options.scratch.resolve()
    if options.quick:
        options.repetitions = 1
    return options


# Building


def build(options):
    """Builds what is missing, and returns the programs."""
    scratch = options.scratch
    python = scratch / "venv" / "bin" / "python"
    if not python.exists():
        shell([sys.executable, "-m", "venv", scratch / "venv"])
    if not (scratch / "venv" / "installed").exists():
        shell([python, "-m", "pip", "install", "--quiet", "cmake", "gguf", "ninja", "numpy", "scikit-build-core"])
        (scratch / "venv" / "installed").touch()
    programs = {}
    if "llama.cpp" in options.engines:
        programs["llama.cpp"] = build_llama(scratch, python)
    if "candle" in options.engines:
        programs["candle"] = build_candle(scratch)
    programs |= build_amem()
    for model in options.models:
        shell([python, HERE / "models.py", model, scratch / "models", *options.types])
    return programs


def build_llama(scratch, python):
    program = scratch / "llama-build" / "bin" / "llama-bench"
    if program.exists():
        return program
    source = scratch / "src"
    source.mkdir(exist_ok=True)
    if not any(source.glob("*.tar.gz")):
        package = "llama-cpp-python"
        without_wheels = ["--no-binary", package, "--no-deps", "--no-build-isolation"]
        shell([python, "-m", "pip", "download", "--quiet", *without_wheels, "--dest", source, package])
    archive = next(source.glob("*.tar.gz"))
    with tarfile.open(archive) as package:
        package.extractall(source, filter="data")
    llama = next(source.glob("*/vendor/llama.cpp"))
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "BUILD_SHARED_LIBS": "OFF",
        "GGML_NATIVE": "ON",
        "GGML_CUDA": "OFF",
        "LLAMA_BUILD_EXAMPLES": "OFF",
        "LLAMA_BUILD_SERVER": "OFF",
        "LLAMA_BUILD_TESTS": "OFF",
    }
    defined = [f"-D{name}={value}" for name, value in settings.items()]
    tools = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    shell(["cmake", "-S", llama, "-B", scratch / "llama-build", "-G", "Ninja", *defined], tools)
    shell(["ninja", "-C", scratch / "llama-build", "-j", str(os.cpu_count()), "llama-bench"], tools)
    return program


def build_candle(scratch):
    target = scratch / "candle-target"
    native = {"RUSTFLAGS": "-C target-cpu=native", "CARGO_TARGET_DIR": str(target)}
    shell(["cargo", "build", "--release", "--locked", "--manifest-path", HERE / "candle" / "Cargo.toml"], native)
    return target / "release" / "candle-peer"


def build_amem():
    targets = ["--example", "peer", "--bench", "peak"]
    command = ["cargo", "build", "--release", "--locked", "-p", "amem-benches", *targets, "--message-format", "json"]
    lines = shell(command, output=subprocess.PIPE, folder=REPOSITORY).stdout.splitlines()
    built = [json.loads(line) for line in lines if line.startswith("{")]
    paths = {item["target"]["name"]: item["executable"] for item in built if item.get("executable")}
    return {"amem": paths["peer"], "peak": paths["peak"]}


def shell(command, variables={}, output=None, folder=None):
    """Runs a step of the build at low priority."""
    command = ["nice", "-n", "10", *map(str, command)]
    environment = os.environ | variables
    done = subprocess.run(command, env=environment, stdout=output, cwd=folder, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return done


# Measuring


class Case:
    """A model in a type of weights, and what was measured with it."""

    def __init__(self, model, kind, options):
        self.model, self.kind = model, kind
        self.gguf = options.scratch / "models" / f"{model}-{kind}.gguf"
        self.directory = options.scratch / "models" / model
        self.config = json.loads((self.directory / "config.json").read_text())
        self.attention, self.attention_ratio = "on", None
        self.samples = {engine: [] for engine in options.engines}
        self.memory = None

    def command(self, engine, engines, options, prompts, generated):
        """The command for one engine."""
        if engine == "llama.cpp":
            lengths = ",".join(map(str, prompts))
            sizes = ["-p", lengths or "0", "-n", generated, "-r", 1, "--no-warmup"]
            how = ["-t", options.threads, "-fa", self.attention, "-o", "json"]
            return [engines[engine], "-m", self.gguf, *how, *sizes]
        sizes = ["--prompt", ",".join(map(str, prompts)), "--generate", generated] if prompts else []
        if engine == "candle":
            return [engines[engine], self.directory if self.kind == "bf16" else self.gguf, *sizes]
        model, weights = self.directory, WEIGHTS[self.kind]
        if self.kind != "bf16" and not options.made:
            model, weights = self.gguf, "as-stored"
        how = ["--weights", weights, "--arithmetic", options.arithmetic, "--threads", options.threads]
        return [engines[engine], model, *how, *sizes]

    def measure(self, engine, engines, options):
        if engine == "candle" and self.kind not in options.candle_types:
            return
        if engine == "llama.cpp":
            load = run(self.command(engine, engines, options, [1], 0), options)
            done = run(self.command(engine, engines, options, [WARM_UP, *PROMPTS], GENERATED), options)
            times = llama_times(json.loads(done["output"]))
        else:
            load = run(self.command(engine, engines, options, [], 0), options)
            done = run(self.command(engine, engines, options, PROMPTS, GENERATED), options)
            times = json.loads(done["output"])
        sample = {f"prefill {length}": length / times["prefill"][str(length)] for length in PROMPTS}
        sample |= {"decode": 1 / times["decode"], "load": load["seconds"], "memory": done["bytes"]}
        sample["others"] = done["others"]
        self.samples[engine].append(sample)
        rates = ", ".join(f"{name} {number:.4g}" for name, number in sample.items())
        print(f"{self.model} {self.kind} {engine}: {rates}", file=sys.stderr)

    def measure_memory(self, engines, options):
        command = self.command("amem", engines, options, [], 0)
        lengths = [length for length in BLENDS if length + QUESTION <= self.config["max_position_embeddings"]]
        command += ["--together", 8, "--blend", ",".join(map(str, lengths)), "--packed", 20]
        command += ["--ingest", options.ingest] if options.ingest else []
        output = run(command, options)["output"]
        self.memory = json.loads(output)

    def result(self):
        medians = {
            engine: {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
            for engine, samples in self.samples.items()
            if samples
        }
        return {
            "model": self.model,
            "type": self.kind,
            "config": self.config,
            "flash_attention": {"faster": self.attention, "ratio": self.attention_ratio},
            "samples": self.samples,
            "medians": medians,
            "memory": self.memory,
        }


def choose_attention(cases, engines, options):
    """Whether llama.cpp is faster with flash attention or without, by the longest prompt of a model's first case: keys
    and values are of one type, whatever the weights are."""
    seconds = {}
    for attention in ["on", "off"]:
        cases[0].attention = attention
        command = cases[0].command("llama.cpp", engines, options, [WARM_UP, PROMPTS[-1]], 0)
        seconds[attention] = llama_times(json.loads(run(command, options)["output"]))["prefill"][str(PROMPTS[-1])]
    for case in cases:
        case.attention = min(seconds, key=seconds.get)
        case.attention_ratio = max(seconds.values()) / min(seconds.values())


def llama_times(tests):
    prompts = {str(test["n_prompt"]): test["avg_ns"] / 1e9 for test in tests if test["n_prompt"]}
    decoded = [test["avg_ns"] / 1e9 / test["n_gen"] for test in tests if test["n_gen"]]
    return {"prefill": prompts, "decode": decoded[0] if decoded else None}


def run(command, options):
    """Runs a program, and returns what it printed, its seconds, and the most bytes that it had in RAM."""
    command = [str(part) for part in command]
    if options.nice:
        command = ["nice", "-n", str(options.nice), *command]
    environment = os.environ | {"RAYON_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        begun, busy = time.monotonic(), busy_seconds()
        child = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{errors.read()[-4000:]}")
        output.seek(0)
        # The kernel counts in KiB on Linux, in bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        others = max(0, busy_seconds() - busy - usage.ru_utime - usage.ru_stime) / (seconds * os.cpu_count())
        return {"output": output.read(), "seconds": seconds, "bytes": usage.ru_maxrss * unit, "others": others}


def busy_seconds():
    """Seconds for which cores were busy since the machine started, all cores together; 0 where nobody counts them."""
    counts = Path("/proc/stat")
    if not counts.exists():
        return 0
    user, nice, system, _idle, _iowait, *interrupted = map(int, counts.read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(interrupted)) / os.sysconf("SC_CLK_TCK")


def peaks(engines, options):
    return json.loads(run([engines["peak"], "--json", "--threads", options.threads], options)["output"])


def machine(options):
    model, flags = platform.processor(), []
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        found = {name.strip(): value.strip() for name, _, value in lines}
        model = found.get("model name", model)
        flags = (found.get("flags") or found.get("Features") or "").split()
    instructions = [name for name in INSTRUCTIONS if name in flags]
    return {"cpu": model, "cores": os.cpu_count(), "threads": options.threads, "instructions": instructions}


def versions(options):
    archive = next((options.scratch / "src").glob("*.tar.gz"), None)
    lock = (HERE / "candle" / "Cargo.lock").read_text().split('name = "candle-core"\nversion = "')
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    return {
        "llama.cpp": archive.name.removesuffix(".tar.gz") if archive else None,
        "candle": lock[1].split('"')[0],
        "amem": commit.stdout.strip(),
    }


# Reporting


def report(results, options):
    machine, versions, peaks = results["machine"], results["versions"], results["peaks"]
    samples = [sample for case in results["cases"] for samples in case["samples"].values() for sample in samples]
    others = statistics.mean(sample["others"] for sample in samples)
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instructions'])}).",
        f"Threads: {machine['threads']}. Repetitions, of which these are the medians: {options.repetitions}.",
        f"{versions['llama.cpp']}, candle {versions['candle']}, amem {versions['amem']}.",
        "A ratio above 1 says that amem is better.",
        f"Other processes took {100 * others:.0f} % of the cores meanwhile, on the mean.",
        "",
        "| model, weights | what | llama.cpp | candle | amem | to llama.cpp | to candle |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in results["cases"]:
        for name, unit, scale, less_is_better in MEASURED:
            medians = {engine: case["medians"].get(engine, {}).get(name) for engine in ENGINES}
            shown = [number(medians[engine], scale) for engine in ENGINES]
            ours = medians["amem"]
            ratios = [ratio(ours, medians[engine], less_is_better) for engine in ENGINES[:2]]
            lines.append(f"| {case['model']}, {case['type']} | {name}, {unit} | {' | '.join(shown + ratios)} |")
    lines += ["", "What was reached of the machine's measured peaks:", ""]
    known = ", ".join(f"{name} {peaks['operations'][name] / 1e9:.0f} GFLOP/s" for name in peaks["operations"])
    lines += [
        f"{known};",
        f"reading {peaks['read']['one'] / 1e9:.1f} GB/s with one thread, {peaks['read']['all'] / 1e9:.1f} with all.",
        "",
        "| model, weights | what | bound | llama.cpp | candle | amem |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for case in results["cases"]:
        for name in [f"prefill {length}" for length in PROMPTS] + ["decode"]:
            most = bound(case, name, peaks)
            medians = [case["medians"].get(engine, {}).get(name) for engine in ENGINES]
            shares = [f"{100 * median / most:.0f} %" if median and most else "–" for median in medians]
            lines.append(f"| {case['model']}, {case['type']} | {name} | {number(most)} tok/s | {' | '.join(shares)} |")
    lines.append("")
    for case in results["cases"]:
        attention = case["flash_attention"]
        if attention["ratio"] and case["type"] == options.types[0]:
            gain = f"{attention['ratio']:.2f} times as fast at {PROMPTS[-1]} tokens"
            other = "off" if attention["faster"] == "on" else "on"
            faster = attention["faster"]
            lines.append(f"- {case['model']}: llama.cpp with flash attention {faster} is {gain} as with it {other}")
    lines += memory_report(results)
    return "\n".join(lines) + "\n"


def write_between(path, text):
    before, begin, rest = path.read_text().partition("<!-- begin: compare.py -->\n")
    _, end, after = rest.partition("<!-- end: compare.py -->")
    if not begin or not end:
        sys.exit(f"{path} has no marks of compare.py")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


MEASURED = [(f"prefill {length}", "tok/s", 1, False) for length in PROMPTS] + [
    ("decode", "tok/s", 1, False),
    ("load", "s", 1, True),
    ("memory", "MB", 1e-6, True),
]


def memory_report(results):
    cases = [case for case in results["cases"] if case["memory"]]
    if not cases:
        return []
    lines = ["", "amem alone:", "", "| model, weights | what | time or rate | against | ratio |"]
    lines.append("| --- | --- | ---: | --- | ---: |")
    for case in cases:
        memory, name = case["memory"], f"{case['model']}, {case['type']}"
        together, packed = memory["together"], memory["packed"]
        for blend in memory["blend"]:
            lines.append(
                f"| {name} | first token, {blend['tokens']:,} tokens, 10 % repaired, "
                f"{100 * blend['share']:.1f} % computed with the question | {blend['blend']:.3f} s "
                f"| cold prefill ({blend['cold']:.3f} s) | {blend['cold'] / blend['blend']:.1f} |"
            )
        count = together["contexts"]
        lines.append(
            f"| {name} | {count} contexts decoded together | {count / together['all']:.1f} tok/s "
            f"| one ({1 / together['one']:.1f} tok/s) | {count * together['one'] / together['all']:.2f} |"
        )
        prompt = packed["prompt"]["tokens"] / packed["prompt"]["seconds"]
        for key, what in [("plain", ""), ("measured", " with sensitivity")]:
            rate = packed["tokens"] / packed[key]
            lines.append(
                f"| {name} | {packed['memories']} memories packed{what} | {rate:.0f} tok/s "
                f"| one prompt of {packed['prompt']['tokens']} tokens ({prompt:.0f} tok/s) | {rate / prompt:.2f} |"
            )
        if ingest := memory.get("ingest"):
            rate = ingest["tokens"] / ingest["seconds"]
            lines.append(
                f"| {name} | {ingest['memories']:,} memories of {ingest['tokens'] // ingest['memories']} tokens, with "
                f"sensitivity, in {ingest['seconds']:.0f} s | {rate:.0f} tok/s | the same ({prompt:.0f} tok/s) "
                f"| {rate / prompt:.2f} |"
            )
    return lines


def bound(case, name, peaks):
    """Tokens a second, were there nothing but the operations at their peak, or the bytes at the rate of reading."""
    config, kind = case["config"], case["type"]
    hidden, layers, ffn = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    kv = config["head_dim"] * config["num_key_value_heads"]
    matrices = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn)
    head = hidden * config["vocab_size"]
    if name == "decode":
        # The head keeps 8 bits where the layers have 4. Keys and values are f16, of half of the tokens on the mean.
        weights = matrices * BITS[kind] + head * max(BITS[kind], 8.5)
        return peaks["read"]["all"] / (weights / 8 + 2 * 2 * kv * layers * GENERATED / 2)
    # A machine without instructions for a type multiplies it as f32.
    peak = peaks["operations"].get(PEAKS[kind]) or peaks["operations"].get("f32")
    if not peak:
        return None
    length = int(name.split()[1])
    # Each token sees half of the others on the mean; the head is computed for the last token alone.
    operations = 2 * length * matrices + 2 * head + 4 * hidden * layers * length * (length + 1) // 2
    return length * peak / operations


def number(value, scale=1):
    return "–" if value is None else f"{value * scale:.3g}" if value * scale < 100 else f"{value * scale:.0f}"


def ratio(ours, theirs, less_is_better):
    if ours is None or theirs is None:
        return "–"
    return f"{theirs / ours if less_is_better else ours / theirs:.2f}"


if __name__ == "__main__":
    main()
