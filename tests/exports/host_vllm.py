"""vLLM's own parser and offloaders, run on parameters that are numbers of bytes only.

``python host_vllm.py CONFIG.yaml LAYERS.json [CONFIG.yaml LAYERS.json ...]``: each file goes through the parser of
``vllm serve --config``; its offloader chooses among modules made of ``LAYERS.json`` (for each layer, pairs of a
parameter's name and its 16-bit elements). Prints what it read and what it chose, a line of JSON for each file. CUDA's
streams and events are stubs: nothing is copied anywhere.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from vllm import platforms
from vllm.platforms.cpu import CpuPlatform

platforms._current_platform = CpuPlatform()
os.environ["VLLM_WEIGHT_OFFLOADING_DISABLE_UVA"] = "1"  # views of host memory need a driver; the choice is the same

from vllm.config.offload import OffloadConfig, PrefetchOffloadConfig, UVAOffloadConfig  # noqa: E402
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.entrypoints.common.cli_args import make_arg_parser  # noqa: E402
from vllm.model_executor.offloader.base import create_offloader  # noqa: E402
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402


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
    """A module tree; the storage of every parameter is one element, whatever its size."""
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


def run(file: str, layers: str) -> None:
    """Parse, choose, print."""
    parser = FlexibleArgumentParser()
    make_arg_parser(parser.add_subparsers(dest="command").add_parser("serve"))
    parsed = parser.parse_args(["serve", "--config", file])
    args = AsyncEngineArgs.from_cli_args(parsed)
    config = OffloadConfig(
        offload_backend=args.offload_backend,
        uva=UVAOffloadConfig(cpu_offload_gb=args.cpu_offload_gb, cpu_offload_params=args.cpu_offload_params),
        prefetch=PrefetchOffloadConfig(
            offload_group_size=args.offload_group_size,
            offload_num_in_group=args.offload_num_in_group,
            offload_prefetch_step=args.offload_prefetch_step,
            offload_params=args.offload_params,
        ),
    )
    groups = config.prefetch.offload_group_size > 0
    modules = [layer(each, whole=not groups) for each in json.loads(Path(layers).read_text())]
    with mock.patch("torch.cuda.Stream"), mock.patch("torch.cuda.Event"):
        offloader: Any = create_offloader(config)
        offloader.wrap_modules(iter(modules))
    chosen: list[tuple[int, str]] = []
    if groups:
        for each in offloader.module_offloaders:
            index = next(number for number, module in enumerate(modules) if module is each.module)
            chosen += [(index, name) for name in each._param_offloaders]
    else:
        for index, module in enumerate(modules):
            chosen += [(index, name) for name, value in module.named_parameters() if value.moved]
    read = {
        name: getattr(args, name)
        for name in (
            "model",
            "tensor_parallel_size",
            "gpu_memory_utilization",
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_model_len",
            "block_size",
            "kv_cache_dtype",
            "kv_offloading_size",
            "enable_prefix_caching",
        )
    }
    connector = args.kv_transfer_config
    read["connector"] = connector.kv_connector_extra_config if connector is not None else None
    print(json.dumps({"read": read, "offloader": type(offloader).__name__, "chosen": chosen}))


if __name__ == "__main__":
    for config_file, layers_file in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        run(config_file, layers_file)
