"""PyTorch's kernels for the work of `gpu`'s first table, on the same GPU.

    python3 peers.py

Attention by FlashAttention 2 and by cuDNN (scaled_dot_product_attention) where the mask is causal, and by FlexAttention
with a limit for each row where rows are scattered; experts by its grouped products. Everything
in bf16, 32 query heads on 8 KV heads of 128 numbers.
"""

import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 32, 8, 128, 4096


def seconds(run, runs=20, rounds=7):
    """The median of several rounds, each of which waits once."""
    run()
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(runs):
            run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begun) / runs)
    return statistics.median(times)


def heads(batch, count, rows):
    return torch.randn(batch, count, rows, HEAD_DIM, device="cuda", dtype=torch.bfloat16)


def causal(backend, rows):
    q, k, v = heads(1, HEADS, rows), heads(1, KV_HEADS, rows), heads(1, KV_HEADS, rows)

    def run():
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return seconds(run)


def scattered(rows, slots):
    q, k, v = heads(1, HEADS, rows), heads(1, KV_HEADS, slots), heads(1, KV_HEADS, slots)
    limits = torch.tensor([index * slots // rows + 1 for index in range(rows)], device="cuda")

    def visible(batch, head, query, key):
        return key < limits[query]

    mask = create_block_mask(visible, None, None, rows, slots, device="cuda")
    compiled = torch.compile(flex_attention)
    return seconds(lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True))


def decode(backend, contexts, slots):
    q, k, v = heads(contexts, HEADS, 1), heads(contexts, KV_HEADS, slots), heads(contexts, KV_HEADS, slots)

    def run():
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    return seconds(run)


def experts(rows, hidden=2048, intermediate=768, count=128, each=8):
    """A layer of Qwen3-30B-A3B but for its router, where every expert has equally many rows, sorted by expert."""
    weights = [
        torch.randn(count, *shape, device="cuda", dtype=torch.bfloat16).transpose(-2, -1)
        for shape in [(intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
    ]
    x = torch.randn(rows * each, hidden, device="cuda", dtype=torch.bfloat16)
    ends = torch.arange(1, count + 1, device="cuda", dtype=torch.int32) * (rows * each // count)

    def run():
        gate, up = (torch._grouped_mm(x, weight, offs=ends) for weight in weights[:2])
        torch._grouped_mm(F.silu(gate) * up, weights[2], offs=ends)

    return seconds(run)


def elementwise(rows):
    x = torch.randn(rows, HIDDEN, device="cuda")
    y = torch.randn(rows, HIDDEN, device="cuda", dtype=torch.bfloat16)
    weight = torch.ones(HIDDEN, device="cuda")

    @torch.compile
    def add_norm(x, y):
        x = x + y
        return x, F.rms_norm(x, (HIDDEN,), weight, 1e-5).to(torch.bfloat16)

    @torch.compile
    def swiglu(gate, up):
        return F.silu(gate) * up

    yield f"add and norm {rows} rows", "compiled", seconds(lambda: add_norm(x, y), 50)
    yield f"SwiGLU of {rows} rows", "compiled", seconds(lambda: swiglu(y, y), 50)


def lines():
    sdpa = [("FlashAttention 2", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)]
    for name, backend in sdpa:
        yield "attention, prefill of 8192", name, lambda backend=backend: causal(backend, 8192)
    for rows, slots in [(512, 8192), (1200, 8192), (128, 32768)]:
        name = f"attention, {rows} scattered rows of {slots}"
        yield name, "FlexAttention", lambda rows=rows, slots=slots: scattered(rows, slots)
    for contexts, slots in [(1, 32768), (8, 8192), (64, 2048)]:
        for name, backend in sdpa:
            what = f"attention, decode of {contexts} × {slots}"
            yield what, name, lambda c=contexts, s=slots, backend=backend: decode(backend, c, s)
    yield "128 of 128 experts for 2048 rows", "grouped products", lambda: experts(2048)


if __name__ == "__main__":
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__)
    print(f"{'kernel':<40} {'by':<18} {'time, µs':>12}")
    for what, by, measure in lines():
        try:
            print(f"{what:<40} {by:<18} {1e6 * measure():>12.1f}", flush=True)
        except (RuntimeError, AttributeError) as error:
            print(f"{what:<40} {by:<18} {'not there':>12}  {str(error).splitlines()[0][:60]}", flush=True)
    for what, by, time_of in elementwise(2048):
        print(f"{what:<40} {by:<18} {1e6 * time_of:>12.1f}", flush=True)
