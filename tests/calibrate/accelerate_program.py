"""Runs small random models under Accelerate device maps without a GPU, and prints seconds.

A program of its own for a Python that has torch and transformers: ``python accelerate_program.py FOLDER < cases.json``.
A case is {"hidden", "layers", "heads", "kv_heads", "ffn", "vocabulary", "disk": [layers], "prompt", "generate",
"repeats"}.
One JSON line per case with every sample. One thread computes and its own time on the core counts, so that other
programs do not; on a quiet machine that is the elapsed time.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for case in json.load(sys.stdin):
        with torch.inference_mode():
            samples = measured(load(folder, case), case)
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        print(json.dumps(case | samples | {"versions": versions}), flush=True)


def load(folder: Path, case: dict[str, Any]) -> Any:
    """The case's model: written once as safetensors, then loaded under its device map."""
    name = "-".join(str(case[key]) for key in ("hidden", "layers", "heads", "kv_heads", "ffn", "vocabulary"))
    place = folder / name
    if not (place / "config.json").is_file():
        config = LlamaConfig(
            hidden_size=case["hidden"],
            num_hidden_layers=case["layers"],
            num_attention_heads=case["heads"],
            num_key_value_heads=case["kv_heads"],
            intermediate_size=case["ffn"],
            vocab_size=case["vocabulary"],
            tie_word_embeddings=False,
            max_position_embeddings=4096,
        )
        LlamaForCausalLM(config).to(torch.float32).save_pretrained(place)
    devices = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    devices |= {f"model.layers.{i}": "disk" if i in case["disk"] else "cpu" for i in range(case["layers"])}
    return AutoModelForCausalLM.from_pretrained(
        place, device_map=devices, offload_folder=str(folder / f"{name}-offload"), dtype=torch.float32
    ).eval()


def measured(model: Any, case: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of a prompt and of one later token, greedy, with the cache that transformers makes."""
    prompts, tokens = [], []
    words = torch.randint(0, case["vocabulary"], (1, case["prompt"]))
    for repeat in range(case["repeats"] + 1):
        began = time.process_time()
        out = model(words, use_cache=True, logits_to_keep=1)
        first = time.process_time() - began
        token, times = out.logits[:, -1:].argmax(-1), []
        for _ in range(case["generate"]):
            began = time.process_time()
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            times.append(time.process_time() - began)
        if repeat:  # the first one warms up
            prompts.append(first)
            tokens += times
    return {"prompt_s": prompts, "token_s": tokens}


if __name__ == "__main__":
    main()
