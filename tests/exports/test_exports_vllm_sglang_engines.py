"""vLLM and SGLang themselves: their parsers take the exported files, their offloaders choose what we say they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.exports.python_engines import talk
from tests.strategies import machine_of, model_of

from stowplan.exports.fused import EXPERTS, parameters
from stowplan.exports.sglang import SglangExporter, moved
from stowplan.exports.sglang_flags import SglangFlags
from stowplan.exports.vllm import VllmExporter
from stowplan.exports.vllm_flags import GIB, VllmFlags, connector
from stowplan.models.model import Model
from stowplan.ops import Part
from stowplan.plan import Plan, Workload, run_lengths
from stowplan.planner.predict import make_setup
from stowplan.systems.base import RAM, Setup
from stowplan.systems.llama_cpp import LlamaCpp

pytestmark = pytest.mark.slow
SPEC = "2x rtx-3090 + epyc-7742 + ddr4-3200x8:512GiB"


def setup_of(key: str) -> Setup:
    return make_setup(machine_of(SPEC), model_of(key, "bf16"), LlamaCpp())


def plan_of(setup: Setup, experts_in_ram: int) -> Plan:
    """Experts (or dense matrices) of the first layers in RAM, everything else on one GPU."""
    layers = []
    for layer in setup.model.layers:
        parts = {part.value for part in Part if part is not Part.KV} & {tensor.role.value for tensor in layer.tensors}
        moving = {part for part in parts if "ffn" in part} if layer.index < experts_in_ram else set()
        layers.append(
            {"attention": "gpu0", "kv": "gpu0", "shared_experts": "gpu0"}
            | {part: RAM if part in moving else "gpu0" for part in parts}
        )
    return Plan(
        system="any",
        machine=setup.machine.spec,
        model=setup.model.key,
        quant="bf16",
        workload=Workload(prompt=100, generate=28, batch=3),
        layers=run_lengths(layers),
        embedding="gpu0",
        output="gpu0",
    )


def elements(model: Model, gpus: int) -> list[list[tuple[str, int]]]:
    """Parameters of every layer with their 16-bit elements."""
    return [[(each.name, each.bytes // 2) for each in parameters(layer, gpus)] for layer in model.layers]


def written(folder: Path, name: str, text: str, model: Model, gpus: int) -> list[str]:
    config, layers = folder / f"{name}.yaml", folder / f"{name}.json"
    config.write_text(text)
    layers.write_text(json.dumps(elements(model, gpus)))
    return [str(config), str(layers)]


def pairs(answer: dict[str, Any]) -> set[tuple[int, str]]:
    return {(index, name) for index, name in answer["chosen"]}


def test_vllm_reads_and_chooses_what_we_say(vllm_python: Path, tmp_path: Path) -> None:
    exporter = VllmExporter()
    cases: list[tuple[Setup, VllmFlags]] = []
    for key, count in (("qwen3-30b-a3b", 11), ("llama-3.1-8b", 7), ("deepseek-v2-lite", 5)):
        setup = setup_of(key)
        nearest = exporter.nearest(setup, plan_of(setup, count))
        cases.append((setup, VllmFlags.model_validate(nearest.settings)))
    setup = setup_of("qwen3-30b-a3b")
    updates: list[dict[str, Any]] = [
        {"offload_group_size": 6, "offload_num_in_group": 2, "offload_prefetch_step": 3},
        {"offload_group_size": 4, "offload_num_in_group": 1, "offload_params": EXPERTS},
        {"cpu_offload_gib": 3.7, "tensor_parallel": 2, "cache": "fp8", "kv_offload_gib": 8.0, "prefix_caching": False},
        {"cpu_offload_gib": 0.3, "cpu_offload_params": ("gate_up_proj", "o_proj")},
        {"cpu_offload_gib": 12.0, "kv_offload_gib": 4.0, "kv_disk": "/nvme/a b", "max_num_seqs": 77},
        {"max_model_len": 12345, "gpu_memory_utilization": 0.5, "block_tokens": 32},
    ]
    cases += [(setup, VllmFlags.model_validate(update)) for update in updates]
    words = []
    for number, (each, flags) in enumerate(cases):
        plan = plan_of(each, 0).model_copy(update={"system": "vllm", "settings": flags.stated()})
        text = exporter.files(each, exporter.nearest(each, plan)).contents["vllm.yaml"]
        words += written(tmp_path, str(number), text, each.model, flags.tensor_parallel)
    answers = talk(vllm_python, "host_vllm.py", words)
    assert len(answers) == len(cases)
    for (each, flags), answer in zip(cases, answers, strict=True):
        assert pairs(answer) == flags.moved(each.model), flags
        read = answer["read"]
        assert read["model"] == each.model.key
        assert read["tensor_parallel_size"] == flags.tensor_parallel
        assert read["gpu_memory_utilization"] == flags.gpu_memory_utilization
        assert (read["max_num_seqs"], read["max_model_len"]) == (flags.max_num_seqs, flags.max_model_len)
        assert read["max_num_batched_tokens"] == flags.max_num_batched_tokens
        assert read["block_size"] == flags.block_tokens
        assert read["kv_cache_dtype"] == ("fp8" if flags.cache == "fp8" else "auto")
        assert read["enable_prefix_caching"] in (None, flags.prefix_caching)
        assert (read["enable_prefix_caching"] is False) == (not flags.prefix_caching)
        if flags.kv_disk:
            assert read["connector"] == connector(flags)["kv_connector_extra_config"]
            assert read["connector"]["cpu_bytes_to_use"] == flags.kv_offload_gib * GIB
        else:
            assert (read["kv_offloading_size"] or 0.0) == flags.kv_offload_gib
    assert {answer["offloader"] for answer in answers} == {"UVAOffloader", "PrefetchOffloader", "NoopOffloader"}


def test_sglang_reads_and_chooses_what_we_say(sglang_python: Path, tmp_path: Path) -> None:
    exporter = SglangExporter()
    cases: list[tuple[Setup, SglangFlags]] = []
    for key, count in (("qwen3-30b-a3b", 11), ("llama-3.1-8b", 7), ("deepseek-v2-lite", 5)):
        setup = setup_of(key)
        nearest = exporter.nearest(setup, plan_of(setup, count))
        cases.append((setup, SglangFlags.model_validate(nearest.settings)))
    setup = setup_of("deepseek-v2-lite")
    updates: list[dict[str, Any]] = [
        {"offload_group_size": 6, "offload_num_in_group": 2, "offload_prefetch_step": 3},
        {"offload_group_size": 3, "offload_mode": "meta"},
        {"cpu_offload_gb": 3, "kv_cache_dtype": "fp8_e5m2", "mem_fraction_static": 0.85},
        {"enable_paged_experts": True, "paged_experts_num_resident": 24},
        {"enable_hierarchical_cache": True, "hicache_size": 30, "hicache_write_policy": "write_back"},
        {"context_length": 4321, "max_running_requests": 5, "max_total_tokens": 9999, "chunked_prefill_size": 2048},
    ]
    cases += [(setup, SglangFlags.model_validate(update)) for update in updates]
    words = []
    for number, (each, flags) in enumerate(cases):
        plan = plan_of(each, 0).model_copy(update={"system": "sglang", "settings": flags.stated()})
        text = exporter.files(each, exporter.nearest(each, plan)).contents["sglang.yaml"]
        words += written(tmp_path, str(number), text, each.model, flags.tp_size)
    answers = talk(sglang_python, "host_sglang.py", words)
    assert len(answers) == len(cases)
    for (each, flags), answer in zip(cases, answers, strict=True):
        assert pairs(answer) == moved(each.model, flags), flags
        assert answer["read"]["model_path"] == each.model.key
        for name, value in flags.stated().items():
            assert answer["read"][name] == value, name
    assert {answer["offloader"] for answer in answers} == {"OffloaderV1", "OffloaderV2", "NoopOffloader"}
