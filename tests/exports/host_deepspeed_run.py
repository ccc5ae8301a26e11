"""DeepSpeed itself under exported configurations, on a checkpoint of test size; the CPU plays the GPU.

``make KIND FOLDER`` writes the checkpoint, with random weights and a tokenizer. ``run CHECKPOINT OPS PROGRAM...`` runs
exported programs (`load.py`, each beside its configuration) in turn, with the compiled parts from OPS. Prints what the
model says without DeepSpeed, then for every program what it said and where DeepSpeed has each parameter afterwards, or
the error that it raised; a line of JSON each.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers  # type: ignore[import-not-found, unused-ignore]
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)

_WORDS = ("?", "a", "ship", "sails", "when", "its", "cargo", "is", "on", "board", "and", "not", "before")
_VOCABULARY = 1024
_ONE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def config(kind: str) -> Any:
    """A model of test size, of a kind, whose matrices have 0.5 to 8 MiB."""
    common = {
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    if kind == "llama":
        return LlamaConfig(**common, hidden_size=1024, intermediate_size=2048)
    return Qwen3MoeConfig(
        **common,
        hidden_size=512,
        intermediate_size=512,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=512,
    )


def make(kind: str, folder: str) -> None:
    """A checkpoint in bfloat16, and a tokenizer of a few words."""
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config(kind), dtype=torch.bfloat16).save_pretrained(folder)
    words = [*_WORDS, *(f"w{number}" for number in range(len(_WORDS), _VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="?", pad_token="?", model_input_names=names
    ).save_pretrained(folder)


def plain(folder: str) -> str:
    """What the model says without DeepSpeed, to the words of the exported program."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = tokenizer("A ship sails when its cargo is", return_tensors="pt")
    return str(tokenizer.decode(model.generate(**words, max_new_tokens=32)[0]))


def lend(folder: Path) -> None:
    """Let DeepSpeed use what was compiled, and compile nothing."""
    import deepspeed
    from deepspeed.ops.op_builder.builder import OpBuilder
    from deepspeed.ops.op_builder.cpu import AsyncIOBuilder
    from deepspeed.ops.op_builder.pin_memory import PinMemoryBuilder

    for builder in (PinMemoryBuilder(), AsyncIOBuilder()):
        spec = importlib.util.spec_from_file_location(builder.name, folder / builder.name / f"{builder.name}.so")
        assert spec is not None
        assert spec.loader is not None
        OpBuilder._loaded_ops[builder.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        builder.load()  # makes the symbols of the first one known to the second
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # one process has nobody to talk to


def where(parameter: Any, pinned: set[int]) -> dict[str, Any]:
    """What DeepSpeed's own object says of a parameter."""
    kept = parameter.ds_tensor
    location = kept.final_location
    file = Path(parameter.nvme_swapper.get_path(parameter, must_exist=True)) if location is not None else None
    return {
        "elements": parameter.ds_numel,
        "persists": parameter.ds_persist,
        "whole": parameter.ds_status.name == "AVAILABLE" and parameter.data.numel() == parameter.ds_numel,
        "location": str(location.value) if location is not None else None,
        "bytes": kept.numel() * kept.element_size() if kept.status.name == "AVAILABLE" else 0,
        "file": file.stat().st_size if file is not None else 0,
        "pinned": kept.data_ptr() in pinned,
    }


def run(checkpoint: str, program: str) -> dict[str, Any]:
    """Run an exported program and look."""
    from deepspeed.accelerator import get_accelerator

    pinned: set[int] = set()

    def pin(tensor: Any, **_: Any) -> Any:
        pinned.add(tensor.data_ptr())
        return tensor

    get_accelerator().pin_memory = pin  # page-locking needs a driver; what is to be locked is noted
    sys.argv = [program, "--local_rank=0", checkpoint]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            names = runpy.run_path(program, run_name="__main__")
        except AssertionError as error:
            return {"error": str(error)}
    engine = names["engine"]
    param = engine.config["zero_optimization"]["offload_param"]
    folder = Path(param["nvme_path"]) if param["device"] == "nvme" else None
    return {
        "said": said.getvalue().strip().splitlines()[-1],
        "files": sum(file.stat().st_size for file in folder.rglob("*.swp")) if folder else 0,
        "device": param["device"],
        "where": {name: where(value, pinned) for name, value in engine.module.named_parameters()},
    }


if __name__ == "__main__":
    answers: list[dict[str, Any]] = []
    with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed's log goes as well
        if sys.argv[1] == "make":
            make(sys.argv[2], sys.argv[3])
        else:
            os.environ.update(_ONE_PROCESS, DS_ACCELERATOR="cpu")
            _, _, folder, ops, *programs = sys.argv
            answers.append({"said": plain(folder)})
            lend(Path(ops))
            answers += [run(folder, program) for program in programs]
    for answer in answers:
        print(json.dumps(answer))
