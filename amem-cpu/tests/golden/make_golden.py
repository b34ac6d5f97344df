#!/usr/bin/env python3
"""Make the golden fixtures in this folder with PyTorch and Hugging Face transformers.

    python make_golden.py            make everything again, in place
    python make_golden.py --check    recompute from the committed files, write nothing
    python make_golden.py CASE ...   make these cases again

What it writes (see README.md):

    cases/<name>/config.json           a tiny model, as transformers saves it
    cases/<name>/model.safetensors     its random weights (or shards and an index)
    cases/<name>/golden.safetensors    tokens i32 [n], logits f32 [n, vocab]
    demo.safetensors                   tokens i32 [n], logits f32 [16, vocab]:
                                       the demo model, last 16 positions only
    chat.json                          tokenisation cases for the demo tokenizer

Weights come from numpy generators seeded by the case's name, so nothing is
downloaded and a second run gives the same weights to the bit. The logits are
computed in float32 on one thread with eager attention, after loading the
directory back from disk: it is the files that are tested, not the objects that
wrote them. Weights stored in f16 or bf16 are upcast to float32 first.

A fixture is only worth having if a mistake would show. So each case is refused
unless (1) nudging the elements of any one weight tensor by up to 10 % moves some logit
by MOVES or more, (2) every config change listed for the case does as well, and
(3) running it in float64, but for the norms and softmax that transformers always does in
float32, moves no logit by more than NOISE.
(Scaling a tensor would not do for (1): Qwen3 normalises a scaled q_proj or k_proj away.)
"""

import argparse
import json
import pathlib
import shutil
import zlib

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
DEMO = HERE.parents[2] / "examples" / "demo-model" / "model"

MOVES = 1e-2  # the least effect on a logit that a deliberate mistake must have
NOISE = 2e-5  # the most that going to float64 may move a logit
AGREES = 1e-4  # how close --check must come to the committed logits, on any CPU

# Sizes are deliberately awkward (48, 72, 101): they leave tails in vector loops.
SMALL = dict(
    vocab_size=101,
    hidden_size=48,
    intermediate_size=72,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    initializer_range=0.2,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)


def rope(theta=10000.0, kind="default", **rest):
    return {"rope_theta": theta, "rope_type": kind, **rest}


def layers(kinds):
    """A config change: which layers have a window (s) and which have none (f)."""
    names = dict(s="sliding_attention", f="full_attention")
    return dict(layer_types=[names[kind] for kind in kinds])


GEMMA = dict(
    hidden_size=40,
    intermediate_size=56,
    head_dim=16,
    tie_word_embeddings=True,
    initializer_range=0.02,
)

MOE = dict(hidden_size=32, intermediate_size=40)

LONGROPE = rope(
    100.0,
    "longrope",
    partial_rotary_factor=0.75,
    original_max_position_embeddings=64,
    short_factor=[1.0, 1.1, 1.3, 1.4, 1.7, 2.0],
    long_factor=[1.0, 1.5, 2.5, 4.0, 7.0, 11.0],
)

# One entry per case:
#   model     model_type
#   config    what differs from SMALL
#   n         number of tokens
#   dtype     how the weights are stored (default float32)
#   spelling  "new": rope_parameters and dtype, as transformers 5 writes them
#             "classic": rope_theta, rope_scaling and torch_dtype, as transformers 4 did;
#             "classic-type": the same, with rope_scaling.type for rope_scaling.rope_type
#   drop      keys left out of config.json, for readers to derive
#   shards    max_shard_size for save_pretrained
#   mistakes  config changes that must each move the logits
CASES = {
    # Multi-head attention, no GQA, untied head; head_dim is to be derived.
    "llama2": dict(
        model="llama",
        config=dict(num_key_value_heads=4, rope_parameters=rope()),
        n=64,
        spelling="classic",
        drop=["head_dim"],
        mistakes=[dict(rope_parameters=rope(500000.0))],
    ),
    # GQA, tied head, large rope_theta, and an eps large enough to see.
    "llama3": dict(
        model="llama",
        config=dict(
            hidden_size=40,
            intermediate_size=56,
            num_hidden_layers=3,
            rms_norm_eps=1e-3,
            tie_word_embeddings=True,
            rope_parameters=rope(500000.0),
        ),
        n=64,
        spelling="new",
        mistakes=[dict(rope_parameters=rope(10000.0)), dict(rms_norm_eps=1e-6)],
    ),
    # Eight frequencies: 1 in the high band, 2 in the medium band, 5 in the low band.
    "llama31-rope": dict(
        model="llama",
        config=dict(
            head_dim=16,
            tie_word_embeddings=True,
            rope_parameters=rope(
                500.0,
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        ),
        n=96,
        spelling="classic",
        mistakes=[
            dict(rope_parameters=rope(500.0)),
            dict(rope_parameters=dict(factor=4.0)),
            dict(rope_parameters=dict(low_freq_factor=2.0)),
            dict(rope_parameters=dict(high_freq_factor=6.0)),
            dict(rope_parameters=dict(high_freq_factor=3.0)),
            dict(rope_parameters=dict(original_max_position_embeddings=256)),
        ],
    ),
    "llama-linear": dict(
        model="llama",
        config=dict(
            head_dim=16,
            tie_word_embeddings=True,
            rope_parameters=rope(10000.0, "linear", factor=4.0),
        ),
        n=64,
        spelling="classic-type",
        mistakes=[dict(rope_parameters=rope()), dict(rope_parameters=dict(factor=2.0))],
    ),
    # YaRN with every optional setting left to its default.
    "llama-yarn": dict(
        model="llama",
        config=dict(
            head_dim=16,
            tie_word_embeddings=True,
            rope_parameters=rope(
                10000.0, "yarn", factor=4.0, original_max_position_embeddings=32
            ),
        ),
        n=96,
        spelling="new",
        mistakes=[
            dict(rope_parameters=rope()),
            dict(rope_parameters=dict(attention_factor=1.0)),
            dict(rope_parameters=dict(truncate=False)),
            dict(rope_parameters=dict(original_max_position_embeddings=256)),
        ],
    ),
    # YaRN with the optional settings given, on a model with QKV biases.
    "qwen2-yarn": dict(
        model="qwen2",
        config=dict(
            hidden_size=64,
            intermediate_size=40,
            tie_word_embeddings=True,
            rope_parameters=rope(
                1000.0,
                "yarn",
                factor=4.0,
                original_max_position_embeddings=32,
                attention_factor=1.3,
                beta_fast=2.0,
                beta_slow=0.25,
            ),
        ),
        n=96,
        spelling="classic-type",
        mistakes=[
            dict(rope_parameters=rope(1000.0)),
            dict(rope_parameters=dict(attention_factor=None)),
            dict(rope_parameters=dict(beta_fast=None)),
            dict(rope_parameters=dict(beta_slow=None)),
            dict(rope_parameters=dict(truncate=False)),
        ],
    ),
    "mistral-sliding": dict(
        model="mistral",
        config=dict(head_dim=12, sliding_window=16, rope_parameters=rope()),
        n=64,
        spelling="classic",
        mistakes=[dict(sliding_window=w) for w in (None, 15, 17)],
    ),
    "mistral-full": dict(
        model="mistral",
        config=dict(head_dim=16, sliding_window=None, rope_parameters=rope(1000000.0)),
        n=64,
        spelling="new",
        mistakes=[dict(sliding_window=48), dict(rope_parameters=rope())],
    ),
    # Sliding settings are present and switched off, as real Qwen2 configs have them.
    "qwen2": dict(
        model="qwen2",
        config=dict(rms_norm_eps=1e-6, rope_parameters=rope(1000000.0)),
        n=64,
        spelling="classic",
        mistakes=[dict(rope_parameters=rope())],
        extra=dict(sliding_window=16, use_sliding_window=False, max_window_layers=1),
    ),
    "qwen2-tied-bf16": dict(
        model="qwen2",
        config=dict(tie_word_embeddings=True, rope_parameters=rope(1000000.0)),
        n=64,
        dtype="bfloat16",
        spelling="new",
        mistakes=[dict(rope_parameters=rope())],
    ),
    "qwen3": dict(
        model="qwen3",
        config=dict(
            hidden_size=40,
            intermediate_size=56,
            head_dim=32,
            rms_norm_eps=1e-3,
            rope_parameters=rope(1000000.0),
        ),
        n=64,
        spelling="classic",
        mistakes=[dict(rope_parameters=rope()), dict(rms_norm_eps=1e-6)],
    ),
    "qwen3-tied-f16": dict(
        model="qwen3",
        config=dict(
            num_hidden_layers=3,
            head_dim=32,
            tie_word_embeddings=True,
            rope_parameters=rope(1000000.0),
        ),
        n=48,
        dtype="float16",
        spelling="new",
        mistakes=[dict(rope_parameters=rope())],
    ),
    # A window in the layers from max_window_layers on.
    "qwen2-sliding": dict(
        model="qwen2",
        config=dict(
            num_hidden_layers=3,
            use_sliding_window=True,
            sliding_window=16,
            max_window_layers=1,
            rope_parameters=rope(),
        ),
        n=64,
        spelling="classic",
        mistakes=[dict(sliding_window=15), dict(sliding_window=17), layers("fff"), layers("sss")],
    ),
    # Norms around both blocks, all four of them offset by 1; capped scores and logits; a window in every other layer.
    "gemma2": dict(
        model="gemma2",
        config=dict(
            GEMMA,
            num_hidden_layers=3,
            query_pre_attn_scalar=24,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=5.0,
            sliding_window=16,
            rope_parameters=rope(),
        ),
        n=64,
        spelling="classic",
        drop=["tie_word_embeddings"],
        mistakes=[
            dict(query_pre_attn_scalar=16),
            dict(attn_logit_softcapping=None),
            dict(attn_logit_softcapping=2.5),
            dict(final_logit_softcapping=None),
            dict(final_logit_softcapping=6.0),
            dict(hidden_activation="silu"),
            dict(sliding_window=15),
            dict(sliding_window=17),
            layers("fff"),
            layers("fsf"),
            dict(rope_parameters=rope(500.0)),
        ],
    ),
    # Rotation differs between layers with a window and those without, and only the latter's is scaled.
    "gemma3": dict(
        model="gemma3_text",
        config=dict(
            GEMMA,
            num_hidden_layers=4,
            query_pre_attn_scalar=24,
            sliding_window=16,
            sliding_window_pattern=3,
            rope_parameters={
                "full_attention": rope(100000.0, "linear", factor=4.0),
                "sliding_attention": rope(100.0),
            },
        ),
        n=64,
        spelling="classic",
        drop=["tie_word_embeddings"],
        extra=dict(sliding_window_pattern=3),
        mistakes=[
            dict(query_pre_attn_scalar=16),
            dict(hidden_activation="silu"),
            dict(sliding_window=15),
            dict(sliding_window=17),
            layers("ffff"),
            layers("sfss"),
            dict(rope_parameters=dict(full_attention=rope(100.0), sliding_attention=rope(100.0))),
            dict(rope_parameters=dict(full_attention=rope(100000.0), sliding_attention=rope(100.0))),
            dict(
                rope_parameters=dict(
                    full_attention=rope(100000.0, "linear", factor=4.0),
                    sliding_attention=rope(100.0, "linear", factor=4.0),
                )
            ),
        ],
    ),
    "gemma3-bf16": dict(
        model="gemma3_text",
        config=dict(
            GEMMA,
            num_hidden_layers=3,
            query_pre_attn_scalar=16,
            final_logit_softcapping=4.0,
            sliding_window=20,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
            rope_parameters={"full_attention": rope(1e6), "sliding_attention": rope(1e4)},
        ),
        n=48,
        dtype="bfloat16",
        spelling="new",
        mistakes=[dict(sliding_window=21), layers("ssf"), dict(final_logit_softcapping=None)],
    ),
    # Fused tensors and a window.
    "phi3": dict(
        model="phi3",
        config=dict(sliding_window=16, rope_parameters=rope()),
        n=64,
        spelling="classic",
        mistakes=[dict(sliding_window=w) for w in (None, 15, 17)] + [dict(rope_parameters=rope(500.0))],
    ),
    # Three quarters of a head are rotated, and what is not rotated is not stretched. As contexts may be longer than the
    # original ones, the long factors hold.
    "phi3-longrope": dict(
        model="phi3",
        config=dict(
            hidden_size=64,
            intermediate_size=40,
            tie_word_embeddings=True,
            original_max_position_embeddings=64,
            rope_parameters=LONGROPE,
        ),
        n=96,
        spelling="classic-type",
        mistakes=[
            dict(rope_parameters=rope(100.0, partial_rotary_factor=0.75)),
            dict(rope_parameters={**LONGROPE, "long_factor": LONGROPE["short_factor"]}),
            dict(rope_parameters={**LONGROPE, "attention_factor": 1.0}),
        ],
    ),
    # As above, and what is computed, with 16 tokens to spare, fits into the original contexts: the short factors hold.
    "phi3-longrope-short": dict(
        model="phi3",
        config=dict(
            hidden_size=64,
            intermediate_size=40,
            tie_word_embeddings=True,
            original_max_position_embeddings=64,
            rope_parameters=LONGROPE,
        ),
        n=48,
        spelling="new",
        mistakes=[
            dict(rope_parameters=rope(100.0, partial_rotary_factor=0.75)),
            dict(rope_parameters={**LONGROPE, "short_factor": LONGROPE["long_factor"]}),
            dict(rope_parameters={**LONGROPE, "attention_factor": 1.0}),
        ],
    ),
    # Every second layer has no rotation.
    "smollm3": dict(
        model="smollm3",
        config=dict(
            num_hidden_layers=4,
            no_rope_layer_interval=2,
            tie_word_embeddings=True,
            rope_parameters=rope(1000.0),
        ),
        n=64,
        spelling="classic",
        mistakes=[
            dict(no_rope_layers=[1, 1, 1, 1]),
            dict(no_rope_layers=[0, 1, 0, 1]),
            dict(rope_parameters=rope()),
        ],
    ),
    # Norms behind the blocks only, and on all heads of queries and keys together.
    "olmo2": dict(
        model="olmo2",
        config=dict(rope_parameters=rope()),
        n=64,
        spelling="classic",
        mistakes=[dict(rope_parameters=rope(500.0)), dict(rms_norm_eps=1e-2)],
    ),
    "granite": dict(
        model="granite",
        config=dict(
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
            embedding_multiplier=4.0,
            residual_multiplier=0.6,
            attention_multiplier=0.5,
            logits_scaling=2.0,
            rope_parameters=rope(),
        ),
        n=64,
        spelling="classic",
        mistakes=[
            dict(embedding_multiplier=1.0),
            dict(residual_multiplier=1.0),
            dict(attention_multiplier=12**-0.5),
            dict(logits_scaling=1.0),
        ],
    ),
    # Experts: two of five for each row.
    "mixtral": dict(
        model="mixtral",
        config=dict(
            MOE,
            intermediate_size=24,
            num_local_experts=5,
            num_experts_per_tok=2,
            sliding_window=16,
            rope_parameters=rope(),
        ),
        n=64,
        spelling="classic",
        mistakes=[dict(num_experts_per_tok=1), dict(num_experts_per_tok=3), dict(sliding_window=None)],
    ),
    # Experts in the first and the last layer, three of six for each row, weights as the router has them.
    "qwen3-moe": dict(
        model="qwen3_moe",
        config=dict(
            MOE,
            num_hidden_layers=3,
            head_dim=16,
            moe_intermediate_size=16,
            num_experts=6,
            num_experts_per_tok=3,
            norm_topk_prob=False,
            mlp_only_layers=[1],
            rope_parameters=rope(),
        ),
        n=64,
        spelling="classic",
        mistakes=[dict(norm_topk_prob=True), dict(num_experts_per_tok=2)],
    ),
    # Experts in every second layer; the weights of those that are chosen sum up to 1.
    "qwen3-moe-normalised": dict(
        model="qwen3_moe",
        config=dict(
            MOE,
            head_dim=16,
            moe_intermediate_size=16,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            decoder_sparse_step=2,
            tie_word_embeddings=True,
            rope_parameters=rope(),
        ),
        n=48,
        dtype="bfloat16",
        spelling="new",
        mistakes=[dict(norm_topk_prob=False), dict(num_experts_per_tok=1)],
    ),
    "llama-sharded": dict(
        model="llama",
        config=dict(rope_parameters=rope()),
        n=48,
        spelling="new",
        shards="60KB",
        mistakes=[dict(rope_parameters=rope(500000.0))],
    ),
    "llama-bf16": dict(
        model="llama",
        config=dict(num_hidden_layers=3, rope_parameters=rope()),
        n=64,
        dtype="bfloat16",
        spelling="classic",
        mistakes=[dict(rope_parameters=rope(500000.0))],
    ),
}

DEMO_PROMPT = (
    "<|bos|><|system|>Answer from the notes."
    "<|mem|>She lives in Lisbon. Her locker code is 4817."
    "<|mem|>It was a sunny day. The train was late again."
    "<|mem|>He works as a gardener. His favorite food is ramen."
    "<|mem|>Her dog is called Pepper. His budget is $2950."
    "<|user|>What is her locker code?<|assistant|>"
)
DEMO_POSITIONS = 16

CHAT = [
    "",
    " ",
    "   two  spaces\tand a tab\n\nand lines \n",
    "Where does she live?",
    " a leading space and a trailing one ",
    "Her locker code is 4817, not 0042; pi is 3.14159.",
    "it's they're we'll I'd you've don't",
    "na\u00efve caf\u00e9 \u00fcber \u00bfqu\u00e9? \u65e5\u672c\u8a9e \U0001f680 e\u0301",
    "\u0663\u0664\u00bd\u00b2 are digits too, \u00a0and that was a no-break space",
    "<|bos|><|system|>Answer from the notes.<|mem|>She lives in Lisbon.<|user|>"
    "Where does she live?<|assistant|>She lives in Lisbon.<|end|>",
    "<|user|> spaced <|assistant|>  <|end|><|end|>x<|pad|>",
    "<|user |> <|User|> <|unknown|> <|bos|",
    DEMO_PROMPT,
]


def rng_for(name, what):
    return np.random.default_rng(zlib.crc32(f"{name}/{what}".encode()))


def randomise(model, name):
    """Give every parameter random values, the norms and biases too."""
    for key, p in sorted(model.named_parameters()):
        r = rng_for(name, key)
        if "norm" in key:
            # Gemma's norms add 1 to what is stored.
            value = r.uniform(0.4, 1.6, p.shape) - (1.0 if "gemma" in name else 0.0)
        elif key.endswith("bias"):
            value = r.normal(0.0, 0.5, p.shape)
        elif "embed_tokens" in key:
            value = r.normal(0.0, 0.3, p.shape)
        else:
            value = r.normal(0.0, 1.1 / np.sqrt(p.shape[-1]), p.shape)
        p.data.copy_(torch.from_numpy(value.astype(np.float32)))


def load(folder, dtype=torch.float32, config=None):
    return AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation="eager",
        experts_implementation="eager",
        local_files_only=True,
    ).eval()


@torch.no_grad()
def logits_of(model, tokens):
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    return model(input_ids=ids, use_cache=False).logits[0].cpu().numpy()


def furthest(a, b):
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def changed_config(folder, change):
    """The case's config with one mistake in it. A partial rope_parameters is merged in;
    None removes a key."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    for key, value in change.items():
        if key == "rope_parameters" and not {"rope_type", "full_attention"} & value.keys():
            value = {**config.rope_parameters, **value}
            value = {k: v for k, v in value.items() if v is not None}
        setattr(config, key, value)
    return config


def respell(config, spelling, drop=(), extra=None):
    """Rewrite config.json's dictionary in the spelling of older transformers."""
    config = {k: v for k, v in config.items() if k not in drop}
    config.update(extra or {})
    if spelling != "new":
        config["torch_dtype"] = config.pop("dtype")
        scaling = config.pop("rope_parameters")
        if "sliding_attention" in scaling:
            config["rope_local_base_freq"] = scaling["sliding_attention"]["rope_theta"]
            scaling = scaling["full_attention"]
        if "partial_rotary_factor" in scaling:
            config["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
        if config["model_type"] == "phi3":
            scaling.pop("original_max_position_embeddings", None)
        config["rope_theta"] = scaling.pop("rope_theta")
        if scaling["rope_type"] == "default":
            scaling = None
        elif spelling == "classic-type":
            scaling["type"] = scaling.pop("rope_type")
        config["rope_scaling"] = scaling
        # Per-layer types, too, are younger than these spellings.
        config.pop("layer_types", None)
    return dict(sorted(config.items()))


def write_case(folder, name, case):
    if folder.exists():
        shutil.rmtree(folder)
    config = AutoConfig.for_model(case["model"], **{**SMALL, **case["config"]})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomise(model, name)
    dtype = getattr(torch, case.get("dtype", "float32"))
    model.to(dtype).save_pretrained(folder, max_shard_size=case.get("shards", "1GB"))
    (folder / "generation_config.json").unlink(missing_ok=True)

    tokens = rng_for(name, "tokens").integers(3, config.vocab_size, case["n"]).astype(np.int32)
    before = logits_of(load(folder), tokens)

    path = folder / "config.json"
    written = json.loads(path.read_text())
    written = respell(written, case["spelling"], case.get("drop", ()), case.get("extra"))
    path.write_text(json.dumps(written, indent=2) + "\n")
    logits = logits_of(load(folder), tokens)
    if not np.array_equal(before, logits):
        raise SystemExit(f"{name}: the {case['spelling']} spelling changed the logits")

    save_file({"logits": logits, "tokens": tokens}, folder / "golden.safetensors")


def check_case(folder, name, case):
    """Recompute a case from its files and prove that mistakes would show."""
    golden = load_file(folder / "golden.safetensors")
    tokens, logits = golden["tokens"], golden["logits"]
    model = load(folder)
    off = furthest(logits_of(model, tokens), logits)
    noise = furthest(logits_of(load(folder, torch.float64), tokens), logits)

    weakest = (float("inf"), "")
    for key, p in model.named_parameters():
        kept = p.data.clone()
        p.data *= torch.from_numpy(rng_for(name, "nudge").uniform(0.9, 1.1, p.shape)).float()
        weakest = min(weakest, (furthest(logits_of(model, tokens), logits), key))
        p.data.copy_(kept)
    for change in case["mistakes"]:
        wrong = load(folder, config=changed_config(folder, change))
        weakest = min(weakest, (furthest(logits_of(wrong, tokens), logits), str(change)))

    size = sum(f.stat().st_size for f in folder.iterdir()) / 1000
    print(
        f"{name:16} n {len(tokens):3}  {size:4.0f} KB  logits sd {logits.std():.2f}"
        f"  off {off:.0e}  noise {noise:.0e}  weakest mistake {weakest[0]:.3f} ({weakest[1]})"
    )
    if off > AGREES or noise > NOISE or weakest[0] < MOVES:
        raise SystemExit(f"{name}: not a good fixture")


def demo():
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    tokens = np.array(tokenizer.encode(DEMO_PROMPT).ids, np.int32)
    logits = logits_of(load(DEMO), tokens)[-DEMO_POSITIONS:]
    return {"logits": np.ascontiguousarray(logits), "tokens": tokens}


def chat():
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    cases = []
    for text in CHAT:
        ids = tokenizer.encode(text).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        cases.append({"text": text, "ids": ids, "decoded": decoded})
    lines = ",\n  ".join(json.dumps(c) for c in cases)
    return f"[\n  {lines}\n]\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="recompute only, write nothing")
    parser.add_argument("case", nargs="*", help="the cases to make; all of them, and the demo model's, if none is named")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    cases = HERE / "cases"
    if not args.check and not args.case:
        shutil.rmtree(cases, ignore_errors=True)
    for name in args.case or CASES:
        if not args.check:
            write_case(cases / name, name, CASES[name])
        check_case(cases / name, name, CASES[name])
    if args.case:
        return

    fresh = demo()
    if not args.check:
        save_file(fresh, HERE / "demo.safetensors")
        (HERE / "chat.json").write_text(chat())
    kept = load_file(HERE / "demo.safetensors")
    off = furthest(fresh["logits"], kept["logits"])
    print(f"{'demo':16} n {len(kept['tokens']):3}  off {off:.0e}")
    if off > AGREES or not np.array_equal(fresh["tokens"], kept["tokens"]):
        raise SystemExit("demo: differs from demo.safetensors")
    if (HERE / "chat.json").read_text() != chat():
        raise SystemExit("chat.json differs")


if __name__ == "__main__":
    main()
