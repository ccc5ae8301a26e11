"""Framework kernels as PyTorch runs them; a program of its own, so that any Python that has torch can run it.

One JSON line per point, as the CUDA programs print them. It imports nothing of stowplan: the Python that has torch need
not have stowplan. The same code runs on a GPU (times by CUDA events) and on the CPU (monotonic clock and thread time).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

LAYERS = ((4096, 4096), (14336, 4096), (4096, 14336), (1024, 4096), (8192, 8192), (28672, 8192))
"""(outputs, inputs) of projections in 8B and 70B models."""
CPU_LAYERS = ((2048, 2048), (5632, 2048), (2048, 5632))
GPU_ROWS, CPU_ROWS = (1, 8, 32, 128, 512, 2048, 8192), (1, 16, 128, 512)
GPU_ATTENTION = ((32, 8, 128, 512), (32, 8, 128, 4096), (32, 8, 128, 32768), (64, 8, 128, 8192), (32, 32, 128, 4096))
CPU_ATTENTION = ((32, 8, 64, 512), (32, 8, 64, 2048))
"""(query heads, key/value heads, head width, context)."""


@dataclass(frozen=True)
class Case:
    """One point: what it is, what one call moves and computes, and the call."""

    name: str
    parameters: dict[str, Any]
    amounts: dict[str, float]
    call: Callable[[], object]


def main(words: list[str]) -> int:
    """Run every case that fits into memory; returns the exit status."""
    reader = argparse.ArgumentParser()
    reader.add_argument("--device", choices=("cuda", "cpu"), required=True)
    reader.add_argument("--gpu", type=int, default=0)
    reader.add_argument("--budget", type=float, default=0.5, help="seconds for one point")
    reader.add_argument("--quick", action="store_true")
    reader.add_argument("--threads", type=int, default=0)
    given = reader.parse_args(words)
    try:
        import torch
    except ImportError as error:
        print(json.dumps({"error": f"torch is not installed for {sys.executable} ({error})"}))
        return 3
    if given.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"error": f"torch {torch.__version__} finds no CUDA device"}))
        return 3
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device = torch.device(given.device, given.gpu) if given.device == "cuda" else torch.device("cpu")
    with torch.inference_mode():
        for case in cases(torch, device, quick=given.quick):
            seconds = _samples(torch, device, case.call, given.budget)
            place = {"gpu": given.gpu} if given.device == "cuda" else {"threads": torch.get_num_threads()}
            row = {"name": case.name, "parameters": place | case.parameters, "amounts": case.amounts}
            print(json.dumps(row | {"seconds": seconds, "tool": f"torch {torch.__version__}"}), flush=True)
    return 0


def cases(torch: Any, device: Any, *, quick: bool) -> Iterator[Case]:
    """All cases of a device, tensors made when they are reached and freed after."""
    on_gpu = device.type == "cuda"
    prefix = "gpu" if on_gpu else "torch"
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, **({"fp16": torch.float16} if on_gpu else {})}
    layers = LAYERS if on_gpu else CPU_LAYERS
    rows = GPU_ROWS if on_gpu else CPU_ROWS
    for label, dtype in dtypes.items():
        for n, k in layers[: 2 if quick else None]:
            weight = torch.randn(n, k, device=device).to(dtype)
            for m in rows[:: 2 if quick else 1]:
                x = torch.randn(m, k, device=device).to(dtype)
                moved = float((n * k + m * (n + k)) * x.element_size())
                shape = {"dtype": label, "m": m, "n": n, "k": k}
                amounts = {"flops": 2.0 * m * n * k, "bytes": moved}
                yield Case(f"{prefix}.gemm", shape, amounts, partial(torch.nn.functional.linear, x, weight))
    if on_gpu and torch.cuda.get_device_capability(device) >= (8, 9):
        yield from _fp8(torch, device, quick)
    half = torch.bfloat16 if on_gpu else torch.float32
    yield from _attention(torch, device, prefix, half, quick)
    yield from _experts(torch, device, prefix, half, quick)
    yield from _small(torch, device, prefix, half)


def _fp8(torch: Any, device: Any, quick: bool) -> Iterator[Case]:
    one = torch.tensor(1.0, device=device)
    for n, k in LAYERS[: 2 if quick else None]:
        weight = torch.randn(n, k, device=device).to(torch.float8_e4m3fn)
        for m in GPU_ROWS[3:]:
            x = torch.randn(m, k, device=device).to(torch.float8_e4m3fn)
            amounts = {"flops": 2.0 * m * n * k, "bytes": float(n * k + m * k + 2 * m * n)}

            def call(x: Any = x, w: Any = weight) -> object:
                return torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

            yield Case("gpu.gemm", {"dtype": "fp8", "m": m, "n": n, "k": k}, amounts, call)


def _attention(torch: Any, device: Any, prefix: str, dtype: Any, quick: bool) -> Iterator[Case]:
    """A prompt over itself, and one query over a cache, with several query heads for one key/value head."""
    shapes = GPU_ATTENTION if prefix == "gpu" else CPU_ATTENTION
    for heads, kv_heads, width, context in shapes[: 1 if quick else None]:
        keys = torch.randn(1, kv_heads, context, width, device=device).to(dtype)
        values = torch.randn_like(keys)
        stored = 2.0 * keys.numel() * keys.element_size()
        shape = {"heads": heads, "kv_heads": kv_heads, "width": width, "context": context}
        for phase, new in (("decode", 1), ("prefill", context)):
            if new > 8192:
                continue
            query = torch.randn(1, heads, new, width, device=device).to(dtype)
            pairs = context if new == 1 else context * (context + 1) / 2

            def call(q: Any = query, k: Any = keys, v: Any = values, causal: bool = new > 1) -> object:
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

            yield Case(
                f"{prefix}.attention",
                shape | {"phase": phase},
                {"flops": 4.0 * heads * width * pairs, "bytes": stored},
                call,
            )


def _experts(torch: Any, device: Any, prefix: str, dtype: Any, quick: bool) -> Iterator[Case]:
    """Eight experts, two for every token, each a product of the rows that chose it."""
    total, active, hidden, inner = (8, 2, 4096, 14336) if prefix == "gpu" else (8, 2, 512, 1024)
    weights = torch.randn(total, inner, hidden, device=device).to(dtype)
    for tokens in (1, 64, 1024)[: 1 if quick else None]:
        x = torch.randn(tokens, hidden, device=device).to(dtype)
        chosen = torch.stack([torch.randperm(total)[:active] for _ in range(tokens)]).flatten().to(device)
        order = torch.argsort(chosen)
        rows = (order // active).to(device)
        counts = torch.bincount(chosen, minlength=total).tolist()
        used = sum(count > 0 for count in counts)

        def call(x: Any = x, rows: Any = rows, counts: list[int] = counts) -> object:
            parts = torch.split(x.index_select(0, rows), counts)
            return [torch.nn.functional.linear(part, weights[e]) for e, part in enumerate(parts) if len(part)]

        amounts = {
            "flops": 2.0 * tokens * active * hidden * inner,
            "bytes": float(used * hidden * inner * x.element_size()),
        }
        parameters = {"experts": total, "active": active, "tokens": tokens, "n": inner, "k": hidden}
        yield Case(f"{prefix}.moe", parameters, amounts, call)


def _small(torch: Any, device: Any, prefix: str, dtype: Any) -> Iterator[Case]:
    """What stands between the products: norms, an addition, and sampling from the logits."""
    for tokens in (1, 512):
        x = torch.randn(tokens, 4096, device=device).to(dtype)
        scale = torch.ones(4096, device=device, dtype=dtype)
        moved = {"bytes": 2.0 * x.numel() * x.element_size()}

        def norm(x: Any = x, scale: Any = scale) -> object:
            return torch.nn.functional.rms_norm(x, (4096,), scale, 1e-5)

        yield Case(f"{prefix}.norm", {"tokens": tokens, "hidden": 4096}, moved, norm)
        yield Case(f"{prefix}.add", {"tokens": tokens, "hidden": 4096}, moved, partial(torch.add, x, x))
    logits = torch.randn(1, 128256, device=device)

    def pick() -> object:
        best = torch.topk(logits / 0.7, 40)
        return best.indices.gather(1, torch.multinomial(torch.softmax(best.values, -1), 1))

    yield Case(f"{prefix}.sampling", {"vocabulary": 128256}, {"operations": 1.0}, pick)


def _samples(torch: Any, device: Any, call: Callable[[], object], budget_s: float) -> list[float]:
    """Seconds of every sample: two to warm up, then at least five, until the budget is spent."""
    call()
    call()
    seconds: list[float] = []
    began = time.monotonic()
    while len(seconds) < 5 or (time.monotonic() - began < budget_s and len(seconds) < 500):
        seconds.append(_by_events(torch, call) if device.type == "cuda" else _by_clock(call))
    return seconds


def _by_events(torch: Any, call: Callable[[], object]) -> float:
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    call()
    last.record()
    last.synchronize()
    return 1e-3 * float(first.elapsed_time(last))


def _by_clock(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
