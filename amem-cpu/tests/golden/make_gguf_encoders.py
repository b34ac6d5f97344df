"""Writes some of the golden encoders as GGUF files, gguf-encoders/<name>.gguf, as llama.cpp's converter would write them, and
beside each <name>.json: texts, their tokens, and their vectors.

Names of tensors and metadata, the blocks, and the file itself, are the gguf package's; how a vocabulary of word pieces is
written follows llama.cpp's conversion/bert.py. Tokens are those of the case's own tokenizer. Vectors are computed by
transformers in float64 from the weights as the file has them, and are one long.

    pip install gguf==0.19.0          beside what make_encoders.py needs
    python make_gguf_encoders.py
"""

import json
import shutil
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from make_encoders import CASES, ENCODERS, HERE, TEXTS, compute, ids_of

OUT = HERE / "gguf-encoders"
# Each with the type of its matrices.
FILES = {
    "bert": (gguf.MODEL_ARCH.BERT, gguf.GGMLQuantizationType.F32),
    "bert-cls": (gguf.MODEL_ARCH.BERT, gguf.GGMLQuantizationType.F16),
    "nomic-new": (gguf.MODEL_ARCH.NOMIC_BERT, gguf.GGMLQuantizationType.Q8_0),
}
# Texts on which tokenizers differ.
MORE = [
    "naïve CAFÉ résumé",
    "東京は日本の首都です。live",
    "[CLS] alice [SEP] [MASK] [unused] [PAD]",
    "tab\tnew\nline\r\nnul\u0000zero\u200bwidth \ufffd",
    "x" * 101,
    "#live ##live ▁live $5+5=a`b",
    "ΑΛΊΚΗ ß İ",
]


def as_written(name, weights, kind):
    """A tensor's type and bytes in the file, and the numbers that these are."""
    plain = weights.ndim == 1 or "position_embeddings" in name or "token_type" in name
    if plain:
        kind = gguf.GGMLQuantizationType.F32
    elif kind == gguf.GGMLQuantizationType.Q8_0 and weights.shape[1] % 32:
        kind = gguf.GGMLQuantizationType.F16
    data = gguf.quants.quantize(weights, kind)
    return kind, data, gguf.quants.dequantize(data, kind).astype(np.float32)


def vocabulary(writer, folder, count):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    tokens = [f"[PAD{index}]" for index in range(count)]
    types = [gguf.TokenType.UNUSED] * count
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index] = token
        types[index] = gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL
    for index, (token, kind) in enumerate(zip(tokens, types)):
        if kind != gguf.TokenType.CONTROL:
            tokens[index] = token[2:] if token.startswith("##") else "\u2581" + token
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("bert-bge")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(folder / "tokenizer.json", place)
        names = {f"{name.lower()}_token": f"[{name}]" for name in ("CLS", "SEP", "UNK", "PAD", "MASK")}
        (Path(place) / "tokenizer_config.json").write_text(json.dumps(names))
        gguf.SpecialVocab(place, n_vocab=count).add_to_gguf(writer, quiet=True)


def write(name, arch, kind):
    folder, case = ENCODERS / name, CASES[name]
    settings = case["config"]
    layers = settings["num_hidden_layers"]
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")

    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", gguf.MODEL_ARCH_NAMES[arch])
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_layer_norm_eps(settings["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.CLS if case["pooling"] == "cls" else gguf.PoolingType.MEAN)
    if "rope_parameters" in settings:
        writer.add_rope_freq_base(settings["rope_parameters"]["rope_theta"])
    writer.add_token_type_count(settings["type_vocab_size"])
    vocabulary(writer, folder, config["vocab_size"])

    names = gguf.get_tensor_name_map(arch, layers)
    numbers = {}
    for key, weights in tensors.items():
        stored, data, numbers[key] = as_written(key, weights, kind)
        theirs = names.get_name(key.removeprefix(case["prefix"]), (".weight", ".bias"))
        assert theirs, key
        writer.add_tensor(theirs, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    # Vectors are one long, and no file beside it says that a text is cut.
    case = {key: value for key, value in case.items() if key != "max_tokens"} | {"normalize": True}
    with tempfile.TemporaryDirectory() as place:
        place = Path(place) / name
        shutil.copytree(folder, place)
        save_file(numbers, place / "model.safetensors", metadata={"format": "pt"})
        TEXTS.extend(text for text in MORE if text not in TEXTS)
        golden = [
            {"text": text, "tokens": ids, "vector": [float(f"{x:.9g}") for x in vector]}
            for text, ids, vector in zip(TEXTS, ids_of(place, case), compute(place, case, torch.float64))
        ]
    lines = ",\n ".join(json.dumps(one, ensure_ascii=False) for one in golden)
    (OUT / f"{name}.json").write_text(f"[\n {lines}\n]\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    OUT.mkdir(exist_ok=True)
    for name, (arch, kind) in FILES.items():
        write(name, arch, kind)
