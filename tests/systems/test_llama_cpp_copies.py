"""What is copied between host memory and GPUs, where a layer in host memory works, and what copies cost."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from tests.strategies import machine_of, setup_of

from stowplan.ops import Part, Step
from stowplan.plan import Workload
from stowplan.systems.base import RAM
from stowplan.systems.llama_cpp import LlamaCppRun
from stowplan.systems.llama_cpp_copies import captures_pieces
from stowplan.systems.llama_cpp_offload import mixers_copied_from, since, tiles_attention
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.serial import ChainTask, LayerPlaces

HOST = "ryzen-9-7950x + ddr5-5200x2:64GiB"
MODEL = ("qwen3-14b", "q4_k_m")
ALL_RAM = LayerPlaces(RAM, RAM, ((Part.FFN_DOWN, RAM), (Part.FFN_GATE, RAM), (Part.FFN_UP, RAM)))


def settings(**given: object) -> LlamaCppSettings:
    return LlamaCppSettings.model_validate(given)


def run_of(spec: str = f"rtx-4090 + {HOST}", model: tuple[str, str] = MODEL, **given: object) -> LlamaCppRun:
    return LlamaCppRun(setup_of(spec, (), *model), Workload(prompt=512, generate=16), settings(**given))


def chain_of(run: LlamaCppRun, step: Step) -> list[ChainTask]:
    return run.layer_chain(run.setup.model.layers[3], ALL_RAM, step)


def where(chain: list[ChainTask], name: str) -> str:
    return next(task.stream for task in chain if task.name == f"blk.3.{name}")


@pytest.mark.parametrize(
    ("gpu", "given", "captured"),
    [
        ("rtx-4090", {}, True),
        ("rtx-4090", {"built": "2026-01-24"}, True),
        ("rtx-4090", {"built": "2026-01-23"}, False),
        ("rtx-3060", {"built": "2026-02"}, True),
        ("rtx-2080-ti", {"built": "2026-07-15"}, False),
        ("rtx-2080-ti", {"built": "2026-07-16"}, True),
        ("v100-16gb-pcie", {"built": "2026-06"}, False),
        ("gtx-1650", {}, True),
        ("p100-pcie", {}, False),
        ("rx-7900-xtx", {}, False),
        ("rtx-4090", {"engine": "ik_llama.cpp"}, False),
        ("rtx-4090", {"release": "pre-2025-12"}, False),
    ],
)
def test_which_builds_capture_what_lies_between_copies(gpu: str, given: dict[str, str], captured: bool) -> None:
    assert captures_pieces(settings(**given), machine_of(f"{gpu} + {HOST}").gpus[0]) is captured


def test_decode_gains_two_cheaper_copies_for_every_layer_with_experts_in_host_memory() -> None:
    model = ("qwen3-30b-a3b", "q4_k_m")
    early, late = (run_of(model=model, built=built) for built in ("2026-01-23", "2026-01-24"))
    layer = early.setup.model.layers[0]
    mixed = LayerPlaces(
        "gpu0", "gpu0", tuple((part, RAM) for part in (Part.EXPERT_DOWN, Part.EXPERT_GATE, Part.EXPERT_UP))
    )
    value = early.setup.figures.value
    gain = value("llama.cpp.gpu.copy_latency") - value("llama.cpp.gpu.copy_latency_captured")

    def overhead(run: LlamaCppRun, step: Step) -> float:
        chain = run.layer_chain(layer, mixed, step)
        return sum(task.work.overhead_s for task in chain if task.kind == "copy")

    assert gain > 0
    decode, prompt = Step.decode(1, 512), Step.prefill(512)
    assert overhead(early, decode) - overhead(late, decode) == pytest.approx(2 * gain)
    assert overhead(early, prompt) == pytest.approx(overhead(late, prompt))


def test_a_layer_in_host_memory_works_on_the_gpu_where_its_products_do() -> None:
    run, step = run_of(load_mode="mmap"), Step.prefill(512, past=1024)
    chain = chain_of(run, step)
    assert {where(chain, name) for name in ("attn_q", "attention", "attn_output", "ffn_down")} == {"gpu0"}
    attention = next(op for op in run.operators.of(run.setup.model.layers[3], step) if op.name == "attention")
    cache = next(task.work for task in chain if task.name == "blk.3.cache").amounts
    assert cache["gpu0.h2d"] == cache["host.copier"] == attention.kv_read
    assert cache["host.dram"] > attention.kv_read
    new = next(task.work for task in chain if task.name == "blk.3.new cache").amounts
    assert new["gpu0.d2h"] == attention.kv_write
    assert not any("residual" in task.name or task.name.endswith(" input") for task in chain)


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ({}, 31),
        ({"kv_offload": False}, 512),
        ({"op_offload": False}, 512),
        ({"engine": "ik_llama.cpp", "repacked": True}, 512),
    ],
)
def test_attention_of_a_layer_in_host_memory_stays_on_the_cpu(given: dict[str, Any], tokens: int) -> None:
    run, step = run_of(**given), Step.prefill(tokens)
    assert run.works_at(RAM, step) == RAM
    assert where(chain_of(run, step), "attention") == "host"
    assert run.works_at("gpu0", step) == "gpu0"


def test_activations_enter_and_leave_layers_in_host_memory_once() -> None:
    run, step = run_of(), Step.prefill(512)
    layers = [ALL_RAM] * len(run.setup.model.layers)
    copies = [task for task in run.edges(layers, RAM, step) if task.name == "residual"]
    assert [next(iter(task.work.amounts)) for task in copies] == ["gpu0.h2d", "gpu0.d2h"]
    assert not [task for task in run.edges(layers, RAM, Step.decode(1, 512)) if task.name == "residual"]


def test_without_gpu_or_with_one_memory_layers_work_where_they_are() -> None:
    for spec in (HOST, "strix-halo-128"):
        run = run_of(spec)
        assert run.works_at(RAM, Step.prefill(512)) == RAM


def test_every_product_of_the_mixers_must_be_copied() -> None:
    layers = setup_of(HOST, (), *MODEL).model.layers
    assert mixers_copied_from(settings(), layers) == 32
    assert mixers_copied_from(settings(engine="ik_llama.cpp", repacked=True), layers) == inf
    assert mixers_copied_from(settings(), ()) == inf


def test_a_release_without_a_day_is_older_than_what_came_after_it() -> None:
    old, new = settings(release="pre-2025-12"), settings()
    assert since(new, "2026-01-24")
    assert not since(old, "2026-01-24")
    assert since(old, "2025-08-28")
    assert since(settings(engine="ik_llama.cpp", release="pre-2025-12"), "2026-03-25")
    assert since(settings(release="pre-2025-12", built="2026-02"), "2026-01-24")
    assert not since(new, None)


@pytest.mark.parametrize(
    ("given", "queries", "tiled"),
    [
        ({}, 64, True),
        ({}, 63, False),
        ({"cache_k": "q8_0", "cache_v": "q8_0"}, 512, False),
        ({"cache_k": "f32"}, 512, False),
        ({"flash_attention": False}, 512, False),
        ({"built": "2026-01"}, 512, False),
        ({"engine": "ik_llama.cpp"}, 512, False),
    ],
)
def test_when_attention_on_the_cpu_is_tiled(given: dict[str, object], queries: int, tiled: bool) -> None:
    assert tiles_attention(settings(**given), queries) is tiled


def test_tiled_attention_shortens_long_prompts_on_the_cpu() -> None:
    step = Step.prefill(512, past=8192)
    seconds = {}
    for built in ("2026-01", "2026-03"):
        run = run_of(HOST, built=built)
        price = next(task.work for task in chain_of(run, step) if task.name == "blk.3.attention")
        seconds[built] = price.amounts["host.cores"]
    assert seconds["2026-01"] > 2 * seconds["2026-03"]


def test_only_cores_of_servers_wait_for_memory() -> None:
    for spec, waits in (
        ("epyc-9355 + ddr5-6400x12:768GiB", True),
        (HOST, False),
        ("apple-m2-max-cpu + lpddr5-6400x8:64GiB", False),
        ("strix-halo-128", False),
    ):
        assert (run_of(spec)._cpu.stall > 0) is waits
