"""SGLang's own parser and offloaders, run on parameters that are numbers of bytes only.

``python host_sglang.py CONFIG.yaml LAYERS.json [CONFIG.yaml LAYERS.json ...]``: each file goes through the server's own
merging of files and flags and its parser; its offloader chooses among modules made of ``LAYERS.json`` (for each layer,
pairs of a parameter's name and its 16-bit elements). Prints a line of JSON for each file. CUDA is a stub.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

os.environ.setdefault("SGLANG_RUN_ID", "test")

from sglang.srt.server_args import ServerArgs
from sglang.srt.utils import offloader as offloading
from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger

FIELDS = (
    "model_path",
    "tp_size",
    "cpu_offload_gb",
    "offload_group_size",
    "offload_num_in_group",
    "offload_prefetch_step",
    "offload_mode",
    "enable_paged_experts",
    "paged_experts_num_resident",
    "mem_fraction_static",
    "context_length",
    "max_running_requests",
    "max_total_tokens",
    "chunked_prefill_size",
    "kv_cache_dtype",
    "enable_hierarchical_cache",
    "hicache_size",
    "hicache_ratio",
    "hicache_write_policy",
    "kt_weight_path",
    "kt_method",
    "kt_num_gpu_experts",
)


class Pretended(torch.nn.Parameter):  # type: ignore[misc]
    """A parameter that says it is on a GPU, and remembers that its data were replaced."""

    moved = False

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "data":
            object.__setattr__(self, "moved", True)
        super().__setattr__(name, value)


def layer(parameters: list[tuple[str, int]], *, whole: bool) -> torch.nn.Module:
    """A module tree; parameters are views of one element, whatever their size."""
    root = torch.nn.Module()
    for name, elements in parameters:
        here = root
        *path, last = name.split(".")
        for step in path:
            if not hasattr(here, step):
                here.add_module(step, torch.nn.Module())
            here = getattr(here, step)
        data = torch.zeros(1, dtype=torch.bfloat16).expand(elements if whole else 1)
        here.register_parameter(last, Pretended(data, requires_grad=False))
    return root


def small(size: Any, stride: Any, dtype: torch.dtype, **_: Any) -> torch.Tensor:
    """Host memory of any size that takes none."""
    return torch.zeros(1, dtype=dtype).expand(size)


def parsed(file: str) -> argparse.Namespace:
    """The flags of a file, through the server's own parser."""
    parser = argparse.ArgumentParser(prog="sglang serve")
    ServerArgs.add_cli_args(parser)
    return parser.parse_args(ConfigArgumentMerger(parser).merge_config_with_args(["--config", file]))


def run(file: str, layers: str) -> None:
    """Parse, choose, print."""
    args = parsed(file)
    groups = args.offload_group_size > 0
    modules = [layer(each, whole=not groups) for each in json.loads(Path(layers).read_text())]
    settings = SimpleNamespace(offload=args)
    ranks = SimpleNamespace(dp_rank=0, num_dp_ranks=1, tp_size=1)
    with (
        mock.patch.object(offloading, "get_exec", return_value=settings),
        mock.patch.object(offloading, "get_parallel", return_value=ranks),
        mock.patch.object(offloading, "get_stream"),
        mock.patch.object(offloading, "_ModuleOffloader") as made,
        mock.patch("torch.cuda.memory_allocated", return_value=0),
        mock.patch("torch.empty_strided", small),
        mock.patch("torch.Tensor.copy_", lambda self, _: self),
    ):
        offloader: Any = offloading.create_offloader()
        offloader.wrap_modules(
            iter(modules),
            submodule_accessor=lambda each: each.mlp.experts if hasattr(each.mlp, "experts") else each.mlp,
            whitelist_param_names_creator=lambda each: (
                ["w13_weight", "w2_weight"] if hasattr(each, "w2_weight") else []
            ),
        )
        wrapped = [(call.kwargs["module"], call.kwargs["whitelist_param_names"]) for call in made.call_args_list]
    chosen: list[tuple[int, str]] = []
    if groups:
        for index, module in enumerate(modules):
            experts = getattr(module.mlp, "experts", None)
            names: list[str] = next((names for each, names in wrapped if each is experts), [])
            chosen += [(index, f"mlp.experts.{name}") for name in names]
    else:
        for index, module in enumerate(modules):
            chosen += [(index, name) for name, value in module.named_parameters() if value.moved]
    read = {name: getattr(args, name) for name in FIELDS}
    print(json.dumps({"read": read, "offloader": type(offloader).__name__, "chosen": chosen}))


if __name__ == "__main__":
    for config_file, layers_file in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        run(config_file, layers_file)
