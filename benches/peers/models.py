"""Writes a model of random weights, once as a Hugging Face directory and once as GGUF files, with the same weights.

Run by compare.py, with the Python that has the packages `gguf` and `numpy`. What a forward pass costs depends on shapes
and number types alone, so random weights measure what trained ones would. The vocabulary is made up, but is as large as
that of the model whose shape is taken, so that loading it takes what it takes in practice.
"""

import json
import random
import struct
import sys
from pathlib import Path

import gguf
import numpy

# As in the config.json that each model is published with.
SHAPES = {
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 24,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
    },
}
ENCODINGS = {
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def config(shape):
    head_dim = shape["hidden_size"] // shape["num_attention_heads"]
    return shape | {
        "head_dim": head_dim,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


def vocabulary(size):
    """Special tokens, the 256 bytes, and merges of two earlier tokens each until there are `size` tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    # Byte-level BPE writes bytes that are no printable characters as those from U+0100 on.
    bytes_as_text = [chr(byte) for byte in printable] + [chr(0x100 + index) for index in range(len(others))]
    tokens, merges = SPECIAL + bytes_as_text, []
    seen, draw = set(tokens), random.Random(1)
    parts = list(bytes_as_text)
    while len(tokens) < size:
        left, right = draw.choice(parts), draw.choice(parts)
        if len(left) + len(right) > 8 or left + right in seen:
            continue
        merged = left + right
        seen.add(merged)
        parts.append(merged)
        tokens.append(merged)
        merges.append((left, right))
    return tokens, merges


def tokenizer(tokens, merges):
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text} | added for number, text in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {text: number for number, text in enumerate(tokens)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def tensors(shape):
    """Name in Hugging Face's files, name in GGUF, and numbers in f32 that bf16 holds exactly."""
    draw = numpy.random.default_rng(1)
    hidden, ffn = shape["hidden_size"], shape["intermediate_size"]
    head = hidden // shape["num_attention_heads"]
    kv = head * shape["num_key_value_heads"]

    def matrix(outputs, inputs):
        # Outputs are about as large as inputs, so that nothing overflows or dies out.
        return to_bf16(draw.standard_normal((outputs, inputs), dtype=numpy.float32) / numpy.sqrt(inputs))

    def norm():
        return to_bf16(1 + 0.1 * draw.standard_normal(hidden, dtype=numpy.float32))

    yield "model.embed_tokens.weight", "token_embd.weight", matrix(shape["vocab_size"], hidden)
    for layer in range(shape["num_hidden_layers"]):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        yield ours + "input_layernorm.weight", theirs + "attn_norm.weight", norm()
        for name, short, outputs in [("q", "attn_q", hidden), ("k", "attn_k", kv), ("v", "attn_v", kv)]:
            yield f"{ours}self_attn.{name}_proj.weight", f"{theirs}{short}.weight", matrix(outputs, hidden)
            if shape["model_type"] == "qwen2":
                bias = to_bf16(0.1 * draw.standard_normal(outputs, dtype=numpy.float32))
                yield f"{ours}self_attn.{name}_proj.bias", f"{theirs}{short}.bias", bias
        yield ours + "self_attn.o_proj.weight", theirs + "attn_output.weight", matrix(hidden, hidden)
        yield ours + "post_attention_layernorm.weight", theirs + "ffn_norm.weight", norm()
        yield ours + "mlp.gate_proj.weight", theirs + "ffn_gate.weight", matrix(ffn, hidden)
        yield ours + "mlp.up_proj.weight", theirs + "ffn_up.weight", matrix(ffn, hidden)
        yield ours + "mlp.down_proj.weight", theirs + "ffn_down.weight", matrix(hidden, ffn)
    yield "model.norm.weight", "output_norm.weight", norm()


def to_bf16(numbers):
    bits = numpy.ascontiguousarray(numbers, dtype=numpy.float32).view(numpy.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (rounded & numpy.uint32(0xFFFF0000)).view(numpy.float32)


def write_safetensors(path, named):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, _, numbers in named:
        size = 2 * numbers.size
        header[name] = {"dtype": "BF16", "shape": list(numbers.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, numbers in named:
            file.write((numbers.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes())


def write_gguf(path, shape, encoding, named, tokens, merges):
    matrix_type, file_type = ENCODINGS[encoding]
    arch = shape["model_type"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(path.stem)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(shape["hidden_size"] // heads)
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if arch == "qwen2" else "smollm")
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL))
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for _, name, numbers in named:
        if numbers.ndim == 1:
            writer.add_tensor(name, numbers)
            continue
        if arch == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            # GGUF's llama rotates neighbouring numbers of a head where Hugging Face's rotates its two halves.
            count = heads if name.endswith("attn_q.weight") else kv_heads
            halves = numbers.reshape(count, 2, -1, numbers.shape[1])
            numbers = numpy.ascontiguousarray(halves.swapaxes(1, 2).reshape(numbers.shape))
        # Files in 4 bits keep an embedding that is the head as well in 8, as llama.cpp's own tool writes them.
        kind = matrix_type
        if encoding == "q4_0" and name == "token_embd.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(name, folder, encodings):
    shape, folder = SHAPES[name], Path(folder)
    directory = folder / name
    directory.mkdir(parents=True, exist_ok=True)
    done = directory / "written"
    wanted = [encoding for encoding in encodings if not (folder / f"{name}-{encoding}.gguf.written").exists()]
    if done.exists() and not wanted:
        return
    tokens, merges = vocabulary(shape["vocab_size"])
    named = list(tensors(shape))
    if not done.exists():
        settings = {"eos_token": "<|im_end|>", "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE}
        files = {
            "config.json": config(shape),
            "tokenizer.json": tokenizer(tokens, merges),
            "tokenizer_config.json": settings,
        }
        for file, contents in files.items():
            (directory / file).write_text(json.dumps(contents))
        write_safetensors(directory / "model.safetensors", named)
        done.touch()
    for encoding in wanted:
        path = folder / f"{name}-{encoding}.gguf"
        write_gguf(path, shape, encoding, named, tokens, merges)
        path.with_name(path.name + ".written").touch()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
