"""Writes some of the golden cases as GGUF files, gguf/<name>.gguf, as llama.cpp's converter would write them.

Names of tensors and metadata, and the file itself, are the gguf package's; the order of rows and the factors of Llama 3's
RoPE follow llama.cpp's convert_hf_to_gguf.py. The files have no tokenizer, as the cases have none.

    pip install gguf numpy
    python make_gguf.py
"""

import json
import math
import struct
from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).parent
CASES = {
    "llama31-rope": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2-tied-bf16": gguf.MODEL_ARCH.QWEN2,
    "qwen3-tied-f16": gguf.MODEL_ARCH.QWEN3,
    "qwen3-moe-normalised": gguf.MODEL_ARCH.QWEN3MOE,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "phi3-longrope": gguf.MODEL_ARCH.PHI3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "granite": gguf.MODEL_ARCH.GRANITE,
}
# Those of whose queries and keys llama.cpp's RoPE wants the rows in its own order.
INTERLEAVED = [gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.GRANITE]
PLAIN = {
    "F32": (np.float32, gguf.GGMLQuantizationType.F32),
    "F16": (np.float16, gguf.GGMLQuantizationType.F16),
    "BF16": (np.uint16, gguf.GGMLQuantizationType.BF16),
}


def tensors(file: Path):
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            dtype, kind = PLAIN[entry["dtype"]]
            yield name, np.frombuffer(data[start:end], dtype).reshape(entry["shape"]), kind


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def widened(weights: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    if kind == gguf.GGMLQuantizationType.BF16:
        return (weights.astype(np.uint32) << 16).view(np.float32)
    return weights.astype(np.float32)


def llama3_factors(theta: float, dim: int, scaling: dict) -> np.ndarray:
    factor, low, high = (scaling[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = scaling["original_max_position_embeddings"]
    factors = []
    for frequency in 1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim):
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def write(case: str, arch: gguf.MODEL_ARCH) -> None:
    config = json.loads((HERE / "cases" / case / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    scaling = config.get("rope_scaling") or rope
    kind = scaling.get("rope_type", scaling.get("type"))
    hidden, heads, layers = (config[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim") or hidden // heads
    positions = config["max_position_embeddings"]
    phi, gemma = arch == gguf.MODEL_ARCH.PHI3, arch == gguf.MODEL_ARCH.GEMMA3

    out = HERE / "gguf" / f"{case}.gguf"
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_context_length(positions)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    if config.get("head_dim"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if not gemma:
        writer.add_rope_dimension_count(int(head_dim * config.get("partial_rotary_factor", 1.0)))
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if gemma:
        writer.add_key_value("gemma3.rope.freq_base_swa", config["rope_local_base_freq"], gguf.GGUFValueType.FLOAT32)
        writer.add_key_value(
            "gemma3.attention.sliding_window_pattern", config["sliding_window_pattern"], gguf.GGUFValueType.UINT32
        )
    if "num_local_experts" in config:
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if arch == gguf.MODEL_ARCH.GRANITE:
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    elif kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(theta, head_dim, scaling))
    elif kind == "longrope":
        original = config["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(positions / original) / math.log(original)))
        writer.add_tensor("rope_factors_long.weight", np.array(scaling["long_factor"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(scaling["short_factor"], np.float32))

    # The table of Qwen3's models with experts lacks blocks without any.
    maps = [gguf.get_tensor_name_map(known, layers) for known in (arch, gguf.MODEL_ARCH.QWEN3)]

    def add(name: str, weights: np.ndarray, dtype: gguf.GGMLQuantizationType) -> None:
        name = next(filter(None, (known.get_name(name, (".weight", ".bias")) for known in maps)))
        if dtype == gguf.GGMLQuantizationType.BF16:
            weights = weights.view(np.uint8)
        writer.add_tensor(name, weights, raw_dtype=dtype)

    experts = {}
    for name, weights, dtype in tensors(HERE / "cases" / case / "model.safetensors"):
        if arch in INTERLEAVED and "q_proj" in name:
            weights = permuted(weights, heads)
        if arch in INTERLEAVED and "k_proj" in name:
            weights = permuted(weights, kv_heads)
        if weights.ndim == 1:
            weights, dtype = widened(weights, dtype), gguf.GGMLQuantizationType.F32
        if gemma and name.endswith("norm.weight"):
            weights = weights + np.float32(1)
        if gemma and name.endswith("q_norm.weight"):
            # The file cannot say by what scores are scaled: by the size of a head it is, so the rest goes here.
            weights = weights * np.float32(math.sqrt(head_dim / config["query_pre_attn_scalar"]))
        if ".experts." in name:
            stem, rest = name.split(".experts.")
            index, part = rest.split(".", 1)
            experts.setdefault(f"{stem}.experts.{part}", (dtype, {}))[1][int(index)] = weights
        else:
            add(name, weights, dtype)
    for name, (dtype, parts) in experts.items():
        add(name, np.stack([parts[index] for index in range(len(parts))]), dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    (HERE / "gguf").mkdir(exist_ok=True)
    for case, arch in CASES.items():
        write(case, arch)
