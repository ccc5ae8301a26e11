"""kt-kernel itself: which experts it chooses for the GPU, and which ones its loaded layers compute on the CPU.

``choose TENSOR RATIO MOE_LAYERS`` prints its choice by layer. ``make FOLDER`` writes a small checkpoint. ``run JOB``
loads the experts of every layer under that choice and asks each expert for a token of its own, one at a time and all at
once, and all experts for tokens that several of them share. Prints, for each layer, the experts whose answer was not
zero, and how far answers are from those of torch: of each expert alone, and of the sum over the CPU's experts.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["KT_FORCE_SYNC_SUBMIT"] = "1"  # otherwise CUDA's streams start the CPU's work

import numpy as np
import torch

_TOKENS = 24  # more than ten are computed as a prompt
_PROJECTIONS = ("gate", "up", "down")


def chosen(tensor: str, ratio: float, layers: int) -> torch.Tensor:
    """The engine's own choice: True for experts on the GPU."""
    from kt_kernel import generate_gpu_experts_masks

    frequencies = torch.load(tensor)[0]
    return generate_gpu_experts_masks(frequencies, int(ratio * layers * frequencies.shape[1]))


def make(folder: str) -> None:
    """A checkpoint in bfloat16 whose experts are as wide as no block of GGUF files."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    torch.manual_seed(3)
    config = Qwen3MoeConfig(
        hidden_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=256,
        intermediate_size=256,
        num_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=192,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def stored(weights: str, layer: int, experts: int) -> dict[str, torch.Tensor]:
    """A layer's experts as the file has them, in 32 bits: (experts, rows, columns) by projection."""
    if weights.endswith(".gguf"):
        from gguf import GGUFReader

        found = {tensor.name: tensor for tensor in GGUFReader(weights).tensors}
        names = {each: f"blk.{layer}.ffn_{each}_exps.weight" for each in _PROJECTIONS}
        return {each: torch.from_numpy(np.array(found[name].data, dtype=np.float32)) for each, name in names.items()}
    from safetensors import safe_open  # type: ignore[import-not-found, unused-ignore]

    with safe_open(str(Path(weights) / "model.safetensors"), "pt") as file:
        return {
            each: torch.stack(
                [
                    file.get_tensor(f"model.layers.{layer}.mlp.experts.{number}.{each}_proj.weight").float()
                    for number in range(experts)
                ]
            )
            for each in _PROJECTIONS
        }


def unpinned(make_tensor: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Host memory that is not page-locked, which needs a driver."""

    @functools.wraps(make_tensor)
    def made(*sizes: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return make_tensor(*sizes, **options)

    return made


def far(answer: torch.Tensor, truth: torch.Tensor) -> float:
    """Distance of two answers, as a share of the true one."""
    return float((answer.float() - truth).norm() / truth.norm())


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Load and compute."""
    from kt_kernel import KTMoEWrapper

    torch.manual_seed(5)
    experts, width, top = job["experts"], job["hidden"], job["active"]
    mask = chosen(job["tensor"], job["ratio"], job["layers"])
    numbers = torch.arange(experts)
    own = torch.stack([(numbers + step) % experts for step in range(top)], dim=1)
    alone = torch.zeros(experts, top)
    alone[:, 0] = 1.0
    found: dict[str, Any] = {}
    for layer, on_gpu in enumerate(mask):
        kernel: Any = KTMoEWrapper(
            layer_idx=layer,
            num_experts=experts,
            num_experts_per_tok=top,
            hidden_size=width,
            moe_intermediate_size=job["width"],
            gpu_experts_mask=on_gpu,
            cpuinfer_threads=2,
            threadpool_count=job["pools"],
            weight_path=job["weights"],
            chunked_prefill_size=64,
            method=job["method"],
        )
        kernel.load_weights(numbers)
        real = stored(job["weights"], layer, experts)

        def truth(token: torch.Tensor, expert: int, real: dict[str, torch.Tensor] = real) -> torch.Tensor:
            inner = torch.nn.functional.silu(real["gate"][expert] @ token) * (real["up"][expert] @ token)
            return real["down"][expert] @ inner

        tokens = torch.randn(experts, width, dtype=torch.bfloat16)
        decoded = torch.cat(
            [kernel.forward(tokens[n : n + 1], own[n : n + 1], alone[n : n + 1], 0).clone() for n in range(experts)]
        )
        prompt = kernel.forward(tokens, own, alone, 0).clone()
        errors = [far(each[n], truth(tokens[n].float(), n)) for each in (decoded, prompt) for n in range(experts)]
        shared = torch.randn(_TOKENS, width, dtype=torch.bfloat16)
        ids = torch.stack([torch.randperm(experts)[:top] for _ in range(_TOKENS)])
        shares = torch.rand(_TOKENS, top)
        mixed = kernel.forward(shared, ids, shares, 0).clone()
        real_mix = torch.zeros(_TOKENS, width)
        for n in range(_TOKENS):
            for expert, share in zip(ids[n].tolist(), shares[n].tolist(), strict=True):
                if expert not in job["gpu"].get(str(layer), []):
                    real_mix[n] += share * truth(shared[n].float(), expert)
        found[str(layer)] = {
            "decoded": decoded.abs().sum(dim=1).nonzero().flatten().tolist(),
            "prompt": prompt.abs().sum(dim=1).nonzero().flatten().tolist(),
            "error": max((error for n, error in enumerate(errors) if not on_gpu[n % experts]), default=0.0),
            "mixed": far(mixed, real_mix) if bool(real_mix.any()) else float(mixed.abs().max()),
        }
    return found


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2])
    elif sys.argv[1] == "choose":
        by_layer = chosen(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
        print(json.dumps([row.nonzero().flatten().tolist() for row in by_layer]))
    else:
        for name in ("empty", "zeros", "full"):
            setattr(torch, name, unpinned(getattr(torch, name)))
        with contextlib.redirect_stdout(sys.stderr):
            answer = run(json.loads(Path(sys.argv[2]).read_text()))
        print(json.dumps(answer))
