"""transformers and Accelerate: make a small checkpoint, or load one with a device map and generate.

``make KIND FOLDER`` writes a checkpoint of random weights. ``run FOLDER MAP.json`` loads it with the map, in which the
CPU plays the GPU, and once without; prints where every parameter is and both runs' tokens as a line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, Qwen3MoeConfig

_PROMPT, _NEW = [[1, 5, 9, 17, 33]], 12


def config(kind: str) -> Any:
    """A small model of a kind."""
    common = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 256}
    if kind == "opt":
        return OPTConfig(**common, ffn_dim=128, word_embed_proj_dim=64, max_position_embeddings=256)
    if kind == "llama":
        return LlamaConfig(**common, intermediate_size=128, num_key_value_heads=2, tie_word_embeddings=False)
    return Qwen3MoeConfig(
        **common,
        intermediate_size=128,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        tie_word_embeddings=False,
    )


def make(kind: str, folder: str) -> None:
    """A checkpoint in bfloat16."""
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config(kind), dtype=torch.bfloat16).save_pretrained(folder)


def tokens(model: Any) -> Any:
    """What the model says, greedily."""
    prompt = torch.tensor(_PROMPT)
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, max_new_tokens=_NEW, do_sample=False, pad_token_id=0)[0].tolist()


def run(folder: str, device_map: str) -> None:
    """Load, look, generate."""
    stated = json.loads(Path(device_map).read_text())
    played = {name: "cpu" if isinstance(device, int) else device for name, device in stated.items()}
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map=played, offload_folder=str(Path(device_map).parent / "offload")
    )
    where = {name: str(value.device) for name, value in model.named_parameters()}
    print(json.dumps({"where": where, "dispatched": tokens(model), "plain": tokens(plain), "map": model.hf_device_map}))


if __name__ == "__main__":
    {"make": make, "run": run}[sys.argv[1]](*sys.argv[2:])
