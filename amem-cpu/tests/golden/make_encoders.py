#!/usr/bin/env python3
"""Make the golden fixtures of encoders in `encoders/` with PyTorch, Hugging Face transformers and tokenizers.

    python make_encoders.py              make everything again, in place
    python make_encoders.py --check      recompute from the committed files, write nothing
    python make_encoders.py --minilm DIR make `minilm.*` again, from a copy of all-MiniLM-L6-v2, with
                                         sentence-transformers

What it writes (see README.md): for each case a directory as sentence-transformers has it, with a tiny model of random
weights and a tiny tokenizer, and in it `golden.json`: texts, their tokens, and their vectors for no prompt.

Vectors are computed in float64 (rotation and softmax as transformers has them), one text at a time, after loading the
directory back from disk. Pooling and normalising are written out here. A case is refused unless nudging the elements of
any one weight tensor by up to 10 % moves some number of some vector by MOVES or more, and unless float32 gives the same
to within NOISE.
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
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel

HERE = pathlib.Path(__file__).resolve().parent
ENCODERS = HERE / "encoders"

MOVES = 3e-4
NOISE = 5e-6
AGREES = 1e-6

TEXTS = [
    "Where does Alice live?",
    "where does alice live",
    "Alice lives in Rome, and Bob in Oslo.",
    "",
    "cafe",
    "Café!",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3,
    "x",
]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["where", "does", "alice", "live", "##s", "in", "rome", "and", "bob", "oslo", "##ve", "li", "cafe", "!", "?", ",", "."]

# One entry per case:
#   model    model_type
#   config   its settings
#   pooling  mean or cls; spelling: "classic" or "new"
#   normalize, prompts, max_tokens
#   prefix   what stands before the names of the tensors
CASES = {
    # As all-MiniLM-L6-v2: mean pooling, normalised.
    "bert": dict(
        model="bert",
        config=dict(
            hidden_size=36, num_hidden_layers=3, num_attention_heads=3, intermediate_size=56,
            max_position_embeddings=48, type_vocab_size=2, layer_norm_eps=1e-12, hidden_act="gelu",
        ),
        pooling="mean",
        spelling="classic",
        normalize=True,
        max_tokens=24,
        prefix="",
    ),
    # As bge: the first token's state, a prompt for questions; tensors behind "bert.", an eps that shows.
    "bert-cls": dict(
        model="bert",
        config=dict(
            hidden_size=40, num_hidden_layers=2, num_attention_heads=2, intermediate_size=72,
            max_position_embeddings=32, type_vocab_size=2, layer_norm_eps=1e-3, hidden_act="gelu",
        ),
        pooling="cls",
        spelling="new",
        normalize=True,
        prompts={"query": "where does ", "passage": ""},
        prefix="bert.",
    ),
    # As multilingual-e5: positions from the padding token on, one token type, sentencepiece.
    "xlm-roberta": dict(
        model="xlm-roberta",
        config=dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5, hidden_act="gelu", pad_token_id=1,
        ),
        pooling="mean",
        spelling="new",
        normalize=False,
        prompts={"query": "query: ", "passage": "passage: "},
        prefix="roberta.",
    ),
    # As nomic-embed-text: RoPE, a gated block, no biases. The settings and tensors as the Hub has them.
    "nomic": dict(
        model="nomic_bert",
        config=dict(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=64,
            max_position_embeddings=64, type_vocab_size=2, layer_norm_eps=1e-12,
            rope_parameters={"rope_theta": 1000.0, "rope_type": "default"},
        ),
        pooling="mean",
        spelling="classic",
        normalize=False,
        prompts={"query": "search_query: ", "document": "search_document: "},
        prefix="",
        old=True,
    ),
    # The same family as transformers writes it.
    "nomic-new": dict(
        model="nomic_bert",
        config=dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
            max_position_embeddings=64, type_vocab_size=2, layer_norm_eps=1e-5,
            rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
        ),
        pooling="cls",
        spelling="new",
        normalize=True,
        prefix="",
        native=True,
    ),
}


def rng_for(*names):
    return np.random.default_rng(zlib.crc32("/".join(names).encode()))


def word_piece():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *("##" + c for c in LETTERS)]
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def sentence_piece():
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁where", "▁does", "▁alice", "▁live", "s", "▁in", "▁rome", "▁bob"]
    pieces = dict.fromkeys([*pieces, *LETTERS, *LETTERS.upper(), *"?,.!:é"])
    scores = [(piece, -float(index) / 4) for index, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def randomise(model, name):
    """Give every parameter random values, the norms and biases too."""
    for key, p in sorted(model.named_parameters()):
        r = rng_for(name, key)
        if "norm" in key.lower() and key.endswith("weight"):
            value = r.uniform(0.4, 1.6, p.shape)
        elif key.endswith("bias"):
            value = r.normal(0.0, 2.0 if "query" in key else 0.5, p.shape)
        elif "embeddings" in key:
            value = r.normal(0.0, 0.5, p.shape)
        elif any(part in key for part in ("query", "key", "q_proj", "k_proj")):
            # Larger than usual, so that attention tells tokens apart.
            value = r.normal(0.0, 2.5 / np.sqrt(p.shape[-1]), p.shape)
        else:
            value = r.normal(0.0, 1.1 / np.sqrt(p.shape[-1]), p.shape)
        p.data.copy_(torch.from_numpy(value.astype(np.float32)))


def old_nomic(config, tensors):
    """A nomic_bert's settings and tensors in the words that the Hub's models have."""
    c = config
    config = {
        "model_type": "nomic_bert", "activation_function": "swiglu", "n_embd": c["hidden_size"],
        "n_layer": c["num_hidden_layers"], "n_head": c["num_attention_heads"], "n_inner": c["intermediate_size"],
        "n_positions": c["max_position_embeddings"], "vocab_size": c["vocab_size"],
        "type_vocab_size": c["type_vocab_size"], "layer_norm_epsilon": c["layer_norm_eps"], "causal": False,
        "mlp_fc1_bias": False, "mlp_fc2_bias": False, "qkv_proj_bias": False, "parallel_block": False,
        "prenorm": False, "rotary_emb_base": c["rope_parameters"]["rope_theta"], "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "rotary_scaling_factor": None,
        "use_rms_norm": False, "scale_attn_weights": True, "pad_vocab_size_multiple": 64,
    }
    words = [
        ("embeddings.LayerNorm", "emb_ln"), ("layers.", "encoder.layers."), ("self_attn.o_proj", "attn.out_proj"),
        ("mlp.up_proj", "mlp.fc11"), ("mlp.gate_proj", "mlp.fc12"), ("mlp.down_proj", "mlp.fc2"),
        ("post_attention_layernorm", "norm1"), ("post_mlp_layernorm", "norm2"),
    ]
    renamed = {}
    for key, value in tensors.items():
        for new, old in words:
            key = key.replace(new, old)
        renamed[key] = value
    for layer in range(c["num_hidden_layers"]):
        parts = [renamed.pop(f"encoder.layers.{layer}.self_attn.{p}_proj.weight") for p in "qkv"]
        renamed[f"encoder.layers.{layer}.attn.Wqkv.weight"] = np.concatenate(parts)
    return config, renamed


def write(folder, name, case):
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "1_Pooling").mkdir(parents=True)
    dump = lambda file, value: (folder / file).write_text(json.dumps(value, indent=1) + "\n")

    tokenizer = sentence_piece() if case["model"] == "xlm-roberta" else word_piece()
    config = AutoConfig.for_model(case["model"], **case["config"], vocab_size=tokenizer.get_vocab_size() + 3)
    model = AutoModel.from_config(config, attn_implementation="eager")
    randomise(model, name)
    # What these models hold beside the encoder, for a classifier, is not in their files.
    tensors = {key: p.detach().numpy() for key, p in model.named_parameters() if "pooler" not in key}
    settings = {key: value for key, value in config.to_dict().items() if value is not None and key != "transformers_version"}
    if case.get("old"):
        settings, tensors = old_nomic(settings, tensors)
    if case.get("native"):
        model.save_pretrained(folder)
    else:
        save_file({case["prefix"] + key: value for key, value in tensors.items()}, folder / "model.safetensors")
        dump("config.json", dict(sorted(settings.items())))
    # As all-MiniLM-L6-v2 has it: a truncation and a padding that nobody wants.
    if name == "bert":
        tokenizer.enable_truncation(8)
        tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))

    kinds = ["Transformer", "Pooling"] + (["Normalize"] if case["normalize"] else [])
    paths = ["", "1_Pooling", "2_Normalize"]
    dump(
        "modules.json",
        [
            {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
            for i, kind in enumerate(kinds)
        ],
    )
    width = case["config"]["hidden_size"]
    if case["spelling"] == "classic":
        pooling = {"word_embedding_dimension": width}
        pooling |= {f"pooling_mode_{m}": m.startswith(case["pooling"]) for m in ("cls_token", "mean_tokens", "max_tokens")}
    else:
        pooling = {"embedding_dimension": width, "pooling_mode": case["pooling"], "include_prompt": True}
    dump("1_Pooling/config.json", pooling)
    if "max_tokens" in case:
        dump("sentence_bert_config.json", {"max_seq_length": case["max_tokens"], "do_lower_case": False})
    if "prompts" in case:
        dump("config_sentence_transformers.json", {"prompts": case["prompts"], "default_prompt_name": None})

    vectors = compute(folder, case, torch.float64)
    golden = [
        {"text": text, "tokens": ids, "vector": [float(f"{x:.9g}") for x in vector]}
        for text, ids, vector in zip(TEXTS, ids_of(folder, case), vectors)
    ]
    lines = ",\n ".join(json.dumps(one, ensure_ascii=False) for one in golden)
    (folder / "golden.json").write_text(f"[\n {lines}\n]\n")


def most_tokens(case):
    positions = case["config"]["max_position_embeddings"]
    if case["model"] == "xlm-roberta":
        positions -= 2
    return min(case.get("max_tokens", positions), positions)


def ids_of(folder, case):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(most_tokens(case))
    return [tokenizer.encode(text).ids for text in TEXTS]


def load(folder, case, dtype):
    """The model from its files, in the words of transformers."""
    if case.get("native"):
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True)
        return model.eval().to(dtype)
    settings = json.loads((folder / "config.json").read_text())
    tensors = {key.removeprefix(case["prefix"]): v for key, v in load_file(folder / "model.safetensors").items()}
    if case.get("old"):
        settings = {**case["config"], "vocab_size": settings["vocab_size"]}
        words = [
            ("emb_ln", "embeddings.LayerNorm"), ("encoder.layers", "layers"), ("attn.out_proj", "self_attn.o_proj"),
            ("fc11", "up_proj"), ("fc12", "gate_proj"), ("fc2", "down_proj"),
            ("norm1", "post_attention_layernorm"), ("norm2", "post_mlp_layernorm"),
        ]
        new = {}
        for key, value in tensors.items():
            for a, b in words:
                key = key.replace(a, b)
            if "Wqkv" in key:
                for part, rows in zip("qkv", np.split(value, 3)):
                    new[key.replace("attn.Wqkv", f"self_attn.{part}_proj")] = rows
            else:
                new[key] = value
        tensors = new
    else:
        settings.pop("model_type")
    config = AutoConfig.for_model(case["model"], **settings)
    model = AutoModel.from_config(config, attn_implementation="eager").eval().to(torch.float32)
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=False)
    assert not unexpected and all("pooler" in key for key in missing), (missing, unexpected)
    return model.to(dtype)


@torch.no_grad()
def vectors_of(model, case, all_ids):
    vectors = []
    for ids in all_ids:
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
        vector = hidden[0] if case["pooling"] == "cls" else hidden.mean(0)
        vectors.append(vector / np.linalg.norm(vector) if case["normalize"] else vector)
    return np.array(vectors)


def compute(folder, case, dtype):
    return vectors_of(load(folder, case, dtype), case, ids_of(folder, case))


def check(folder, name, case):
    golden = json.loads((folder / "golden.json").read_text())
    expected = np.array([one["vector"] for one in golden])
    off = np.abs(compute(folder, case, torch.float64) - expected).max()
    noise = np.abs(compute(folder, case, torch.float32) - expected).max()
    same = [one["tokens"] for one in golden] == ids_of(folder, case)
    model, ids = load(folder, case, torch.float64), ids_of(folder, case)
    weakest = (float("inf"), "")
    for key, p in model.named_parameters():
        # A bias of keys adds the same to all scores of a query, which no softmax notices.
        if "pooler" in key or key.endswith("key.bias"):
            continue
        kept = p.data.clone()
        p.data *= torch.from_numpy(rng_for(name, "nudge").uniform(0.9, 1.1, p.shape))
        weakest = min(weakest, (np.abs(vectors_of(model, case, ids) - expected).max(), key))
        p.data.copy_(kept)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1000
    print(f"{name:12} {size:4.0f} KB  off {off:.0e}  noise {noise:.0e}  weakest mistake {weakest[0]:.4f} ({weakest[1]})")
    if off > AGREES or noise > NOISE or not same or weakest[0] < MOVES:
        raise SystemExit(f"{name}: not a good fixture")


# Texts that are found by questions, and others of many kinds.
PASSAGES = [
    "Alice moved to Denver in May and works from home.",
    "The locker code of the gym is 4817.",
    "Bob is allergic to peanuts, so never order satay for him.",
    "The quarterly report is due on the first Friday of each quarter.",
    "Our database runs PostgreSQL 15 on a machine in Frankfurt.",
    "Maria's daughter plays the cello in the youth orchestra.",
    "To reset the router, hold the small button for ten seconds.",
    "The cat is called Momo and eats only fish.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "Der Zug nach München fährt um acht Uhr vom Gleis drei.",
    "机器学习是人工智能的一个分支。",
    "Le café est fermé le lundi, mais la boulangerie est ouverte.",
]
QUESTIONS = [
    "Where does Alice live now?",
    "What should I not cook for Bob?",
    "How do I restart the wifi box?",
    "which instrument does the girl play",
    "When must the financial summary be handed in?",
    "What is the name of the pet?",
    "How do plants make food?",
    "Welche Abfahrtszeit hat der Zug?",
]
OTHERS = [
    "",
    "   ",
    "a",
    "HELLO World",
    "hello world",
    "naïve café résumé",
    "naive cafe resume",
    "🙂🚀 emoji and ❤️ text",
    "東京は日本の首都です。",
    "مرحبا بالعالم",
    "fn main() { println!(\"{}\", 1 << 3); }",
    "https://example.com/a/b?c=d#e",
    "tab\tnew\nline\r\nnul\u0000zero\u200bwidth",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x" * 300,
    "[CLS] [SEP] [MASK] user wrote these",
    "It was the best of times, it was the worst of times. " * 60,
    " ".join(str(n) for n in range(250)),
]


def minilm(folder):
    """The vectors of a real model, by sentence-transformers in float32, whole for some texts and in part for others."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    encode = lambda texts: np.array([model.encode([text])[0] for text in texts]).astype(np.float64)
    passages, questions = encode(PASSAGES), encode(QUESTIONS)
    ranks = [[int(i) for i in np.argsort(-(passages @ q), kind="stable")] for q in questions]
    gaps = [np.diff(np.sort(passages @ q)).min() for q in questions]
    print("least gap between cosines of neighbours in a ranking:", min(gaps))
    texts = {"passages": PASSAGES, "questions": QUESTIONS, "others": OTHERS, "rankings": ranks}
    (ENCODERS / "minilm.json").write_text(json.dumps(texts, ensure_ascii=False, indent=0) + "\n")
    vectors = encode(PASSAGES + QUESTIONS + OTHERS).astype(np.float32)
    save_file({"vectors": vectors}, ENCODERS / "minilm.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="recompute only, write nothing")
    parser.add_argument("--minilm", metavar="DIR", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.minilm:
        return minilm(args.minilm)
    for name, case in CASES.items():
        if not args.check:
            write(ENCODERS / name, name, case)
        check(ENCODERS / name, name, case)


if __name__ == "__main__":
    main()
