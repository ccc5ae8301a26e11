"""How products of routed experts run on a GPU: in which tiles, by build and chip, and what that does to a prompt."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from tests.strategies import machine_of, model_of, setup_of

from stowplan.figures import figures_for
from stowplan.kernels import RoutedRun, kernels_of_scaled
from stowplan.machines.library import load_gpu
from stowplan.ops import Operator, Part, ffn_operators
from stowplan.plan import Workload
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_auto import layers_only
from stowplan.systems.llama_cpp_commands import make_plan
from stowplan.systems.llama_cpp_routed import routed_run
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

MODEL = ("qwen3-30b-a3b", "q4_k_m")
HOST = "epyc-7742 + ddr4-3200x8:512GiB"


def operators(tokens: int) -> dict[Part | None, Operator]:
    layer = next(layer for layer in model_of(*MODEL).layers if layer.experts)
    return {op.part: op for op in ffn_operators(layer, tokens)}


def run_of(tokens: int, gpu: str = "rtx-3090", built: str | None = None, part: Part = Part.EXPERT_UP) -> RoutedRun:
    figures = figures_for(machine_of(f"rtx-3090 + {HOST}"), "llama.cpp")
    found = routed_run(LlamaCppSettings(built=built), load_gpu(gpu), operators(tokens)[part], tokens, figures)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("gpu", "tokens", "tile"),
    [
        ("rtx-3090", 2, 8),
        ("rtx-3090", 20, 24),
        ("rtx-3090", 120, 120),
        ("rtx-3090", 4096, 128),
        ("v100-32gb-sxm2", 512, 64),
        ("rx-7900-xtx", 512, 128),
        ("apple-m2-max", 512, 32),
    ],
)
def test_tiles_are_as_wide_as_the_micro_batch(gpu: str, tokens: int, tile: float) -> None:
    assert run_of(tokens, gpu).tile == tile


def test_builds_before_august_2025_have_no_common_tiles() -> None:
    assert run_of(512, built="2025-08-24") == RoutedRun(0.0, 0.0)
    assert run_of(512, built="2025-08-25").tile == 128
    assert run_of(16, built="2025-08-24").tile == 16


def test_experts_of_plain_floats_still_run_one_after_another() -> None:
    op = replace(operators(512)[Part.EXPERT_UP], format="bf16")
    figures = figures_for(machine_of(f"rtx-3090 + {HOST}"), "llama.cpp")
    assert routed_run(LlamaCppSettings(), load_gpu("rtx-3090"), op, 512, figures) == RoutedRun(0.0, 0.0)


def test_only_routed_products_of_several_tokens_have_tiles() -> None:
    settings, gpu = LlamaCppSettings(), load_gpu("rtx-3090")
    figures = figures_for(machine_of(f"rtx-3090 + {HOST}"), "llama.cpp")
    assert routed_run(settings, gpu, operators(1)[Part.EXPERT_UP], 1, figures) is None
    assert routed_run(settings, gpu, operators(512)[Part.MIXER], 512, figures) is None


@pytest.mark.parametrize(
    ("gpu", "built", "key", "native"),
    [
        ("rtx-5090", "2025-12-24", "mxfp4", True),
        ("rtx-5090", "2025-12-23", "mxfp4", False),
        ("rtx-5090", None, "q4_k", False),
        ("rtx-4090", None, "mxfp4", False),
    ],
)
def test_four_bit_instructions_multiply_four_bit_floats(gpu: str, built: str | None, key: str, native: bool) -> None:
    """llama.cpp pull request 17906."""
    op = replace(operators(512)[Part.EXPERT_UP], format=key)
    figures = figures_for(machine_of(f"rtx-5090 + {HOST}"), "llama.cpp")
    found = routed_run(LlamaCppSettings(built=built), load_gpu(gpu), op, 512, figures)
    assert found is not None
    assert (found.time < 1.0) is native


def test_bytes_beside_products_grow_with_rows_and_not_with_experts() -> None:
    up, down = (run_of(512, part=part).beside for part in (Part.EXPERT_UP, Part.EXPERT_DOWN))
    layer_rows = 512 * 8
    assert up == pytest.approx(layer_rows * (10 * 768 + 6 * 2048))
    assert down == pytest.approx(layer_rows * (16 * 2048 + 6 * 768))
    assert run_of(1024).beside == pytest.approx(2 * up)


def prefill(gpu: str, ubatch: int, built: str) -> float:
    """Tokens per second of a prompt, with all of the model on a GPU."""
    setup = setup_of(f"{gpu} + {HOST}", (), *MODEL)
    settings = LlamaCppSettings.model_validate({"built": built, "ubatch": ubatch})
    workload = Workload(prompt=2048, generate=1)
    run = LlamaCppRun(setup, workload, settings)
    plan = make_plan(setup.machine, MODEL, workload, settings, layers_only(run, len(setup.model.layers)))
    return 2048 / LlamaCpp().evaluate(setup, plan).prefill_s


@pytest.mark.parametrize(
    ("ubatch", "published"),
    [(16, 960.0), (32, 1556.0), (64, 2508.0)],
)
def test_small_micro_batches_are_as_slow_as_published(ubatch: int, published: float) -> None:
    """Qwen3-30B-A3B Q4_0 on an RTX 4090, llama.cpp pull request 15631."""
    assert prefill("rtx-4090", ubatch, "2025-09-01") == pytest.approx(published, rel=0.25)


def test_wider_micro_batches_pay_until_tiles_are_full() -> None:
    speeds = [prefill("rtx-3090", ubatch, "2026-06") for ubatch in (64, 128, 256, 512, 1024, 2048)]
    gains = [later / earlier for earlier, later in pairwise(speeds)]
    assert gains[0] < 1.3  # 64 to 128 tokens: as many tiles, which are twice as wide
    assert gains[1] > 1.4  # 128 to 256: as many tiles for twice the tokens
    assert gains[-1] < gains[1]


def test_a_mix_of_stated_size_runs_the_kernels_of_its_experts() -> None:
    assert kernels_of_scaled("mxfp4_moe@59.02GiB") == "mxfp4"
    assert kernels_of_scaled("q4_k_m@20GiB") == "q4_k"
