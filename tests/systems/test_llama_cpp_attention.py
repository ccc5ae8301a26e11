"""Which attention kernel runs on a GPU, by engine, build, generation and cache, and what it is worth."""

from __future__ import annotations

import pytest
from tests.strategies import machine_of, model_of, setup_of

from stowplan.kernels import AttentionKernel
from stowplan.models.model import Attention, Layer
from stowplan.ops import CacheFormat, Kind, Operator, Step, mixer_operators
from stowplan.plan import Workload
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_attention import (
    Generation,
    attention_kernel,
    generation,
    shared_heads,
    without_window,
)
from stowplan.systems.llama_cpp_auto import layers_only
from stowplan.systems.llama_cpp_commands import make_plan
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

VECTOR, MATRIX = AttentionKernel.VECTOR, AttentionKernel.MATRIX
AMPERE, ADA = Generation.TURING, Generation.ADA


@pytest.mark.parametrize(
    ("gpu", "found"),
    [
        ("rtx-a6000", AMPERE),
        ("a100-80gb-sxm", AMPERE),
        ("t4", AMPERE),
        ("rtx-4090", ADA),
        ("h100-sxm", ADA),
        ("rtx-5090", ADA),
        ("v100-16gb-pcie", Generation.OTHER),
        ("p100-pcie", Generation.OTHER),
        ("rx-7900-xtx", Generation.AMD),
        ("gtx-1650", AMPERE),
    ],
)
def test_generations(gpu: str, found: Generation) -> None:
    assert generation(machine_of(f"{gpu} + epyc-7742 + ddr4-3200x8:512GiB").gpus[0]) is found


def attention(key: str, step: Step) -> tuple[Layer, Operator]:
    """The first layer of a model that is no mixture of windows, and its attention."""
    layer = next(layer for layer in model_of(key, "q4_k_m").layers if getattr(layer.mixer, "window", None) is None)
    operators = mixer_operators(layer, step, CacheFormat())
    return layer, next(op for op in operators if op.kind is Kind.ATTENTION)


def settings_of(engine: str, built: str | None, cache: str) -> LlamaCppSettings:
    return LlamaCppSettings.model_validate({"engine": engine, "built": built, "cache_k": cache, "cache_v": cache})


@pytest.mark.parametrize(
    ("engine", "built", "gpu", "cache", "depth", "kernel"),
    [
        ("llama.cpp", "2025-02-21", AMPERE, "f16", 32256, VECTOR),
        ("llama.cpp", "2025-04-30", AMPERE, "f16", 32256, MATRIX),
        ("llama.cpp", "2025-04-30", AMPERE, "q8_0", 32256, VECTOR),
        ("llama.cpp", "2025-04-30", ADA, "f16", 32256, VECTOR),
        ("llama.cpp", "2025-09-04", ADA, "f16", 32256, MATRIX),
        ("llama.cpp", "2025-09-04", ADA, "f16", 4096, VECTOR),
        ("llama.cpp", None, ADA, "q8_0", 32256, VECTOR),
        ("ik_llama.cpp", "2025-04-30", AMPERE, "f16", 32256, VECTOR),
        ("ik_llama.cpp", "2025-05-04", AMPERE, "q8_0", 32256, MATRIX),
        ("ik_llama.cpp", None, ADA, "f16", 0, MATRIX),
    ],
)
def test_kernels_of_one_query(
    engine: str, built: str | None, gpu: Generation, cache: str, depth: int, kernel: AttentionKernel
) -> None:
    layer, op = attention("qwen3-235b-a22b", Step.decode(1, depth))
    assert attention_kernel(settings_of(engine, built, cache), gpu, layer, op, 1) is kernel


def test_prompts_and_batches_use_matrix_units_and_other_attention_neither() -> None:
    settings = LlamaCppSettings()
    layer, op = attention("qwen3-235b-a22b", Step.prefill(512, 1024))
    assert isinstance(layer.mixer, Attention)
    assert attention_kernel(settings, ADA, layer, op, 1) is MATRIX
    layer, op = attention("qwen3-235b-a22b", Step.decode(4, 1024))
    assert attention_kernel(settings, ADA, layer, op, 4) is MATRIX
    assert attention_kernel(settings, Generation.OTHER, layer, op, 4) is None
    assert attention_kernel(LlamaCppSettings(flash_attention=False), ADA, layer, op, 4) is None
    layer, op = attention("deepseek-v2-lite", Step.decode(1, 1024))
    assert attention_kernel(settings, ADA, layer, op, 1) is None


def decode_ms(engine: str, built: str, cache: str, depth: int) -> float:
    """Milliseconds of a token of qwen3-30b-a3b, all of it on an Ampere GPU."""
    setup = setup_of("rtx-a6000 + epyc-7742 + ddr4-3200x8:512GiB", (), "qwen3-30b-a3b", "q4_k_m")
    settings, workload = settings_of(engine, built, cache), Workload(prompt=0, generate=1, depth=depth)
    run = LlamaCppRun(setup, workload, settings)
    placement = layers_only(run, len(setup.model.layers))
    plan = make_plan(setup.machine, ("qwen3-30b-a3b", "q4_k_m"), workload, settings, placement)
    return 1e3 * LlamaCpp().evaluate(setup, plan).decode_s


def test_engines_change_places_with_the_format_of_a_deep_cache() -> None:
    """In spring 2025 mainline shared reads of a plain cache only, the fork a month later of a quantised one, too."""
    runs = (("llama.cpp", "2025-05-01"), ("ik_llama.cpp", "2025-05-05"), ("ik_llama.cpp", "2025-05-01"))
    grown = {
        (engine, built, cache): decode_ms(engine, built, cache, 32768) - decode_ms(engine, built, cache, 0)
        for engine, built in runs
        for cache in ("f16", "q8_0")
    }
    assert grown["llama.cpp", "2025-05-01", "f16"] < 0.5 * grown["llama.cpp", "2025-05-01", "q8_0"]
    assert grown["ik_llama.cpp", "2025-05-05", "q8_0"] < 0.95 * grown["llama.cpp", "2025-05-01", "q8_0"]
    assert grown["llama.cpp", "2025-05-01", "f16"] < 0.5 * grown["ik_llama.cpp", "2025-05-01", "f16"]


@pytest.mark.parametrize(
    ("model", "engine", "built", "kernel", "heads"),
    [
        ("qwen3-14b", "llama.cpp", "2026-01-26", VECTOR, None),  # five query heads
        ("qwen3-14b", "llama.cpp", "2026-01-27", MATRIX, 5),
        ("qwen2.5-7b", "llama.cpp", "2026-02", MATRIX, 7),
        ("qwen3.5-27b", "llama.cpp", "2026-01-26", MATRIX, None),
        ("qwen3.5-27b", "llama.cpp", "2026-01-27", MATRIX, 6),
        ("qwen3-235b-a22b", "llama.cpp", "2026-02", MATRIX, 8),  # sixteen, in two reads
        ("qwen3-14b", "ik_llama.cpp", None, VECTOR, None),
        ("glm-4.5-air", "ik_llama.cpp", "2026-01-27", MATRIX, None),
        ("glm-4.5-air", "ik_llama.cpp", "2026-01-28", MATRIX, 12),
        ("qwen3.5-27b", "ik_llama.cpp", "2026-02-25", MATRIX, None),
        ("qwen3.5-27b", "ik_llama.cpp", "2026-02-26", MATRIX, 6),
    ],
)
def test_numbers_of_query_heads_that_are_no_powers_of_two(
    model: str, engine: str, built: str | None, kernel: AttentionKernel, heads: float | None
) -> None:
    """llama.cpp pull requests 19092 and 19115 pad them; the fork has kernels for some."""
    layer, op = next(
        (layer, op)
        for layer in model_of(model, "q4_k_m").layers
        for op in mixer_operators(layer, Step.decode(1, 32256), CacheFormat())
        if op.kind is Kind.ATTENTION
    )
    settings = settings_of(engine, built, "f16")
    assert attention_kernel(settings, AMPERE, layer, op, 1) is kernel
    assert shared_heads(settings, layer, op) == heads


@pytest.mark.parametrize(
    ("engine", "before", "after"),
    [("llama.cpp", "2025-05-19", "2025-05-20"), ("ik_llama.cpp", "2025-09-03", "2025-09-04")],
)
def test_early_builds_mask_what_is_out_of_the_window(engine: str, before: str, after: str) -> None:
    layer = next(each for each in model_of("gemma-3-27b", "q4_0").layers if getattr(each.mixer, "window", None))
    early = without_window(settings_of(engine, before, "f16"), layer)
    assert without_window(settings_of(engine, after, "f16"), layer) is layer

    def read(each: Layer) -> float:
        operators = mixer_operators(each, Step.decode(1, 32256), CacheFormat())
        return sum(op.kv_read for op in operators)

    assert read(early) > 20 * read(layer)


def test_early_builds_take_amds_kernel_for_one_query_over_a_prompt() -> None:
    layer, op = attention("qwen3-14b", Step.prefill(512, 1024))
    assert attention_kernel(settings_of("llama.cpp", "2025-09-05", "f16"), Generation.AMD, layer, op, 1) is VECTOR
    assert attention_kernel(settings_of("llama.cpp", "2025-09-06", "f16"), Generation.AMD, layer, op, 1) is None
    assert attention_kernel(settings_of("ik_llama.cpp", None, "f16"), Generation.AMD, layer, op, 1) is VECTOR
    layer, op = attention("qwen3-14b", Step.decode(1, 1024))
    assert attention_kernel(settings_of("llama.cpp", "2025-09-05", "f16"), Generation.AMD, layer, op, 1) is None


def prompt_seconds(built: str, *, fused: bool) -> float:
    """Seconds of a prompt on a Radeon."""
    setup = setup_of("rx-7900-xtx + epyc-7742 + ddr4-3200x8:512GiB", (), "llama-2-7b", "q4_0")
    settings = LlamaCppSettings.model_validate({"built": built, "flash_attention": fused})
    workload = Workload(prompt=512, generate=1)
    run = LlamaCppRun(setup, workload, settings)
    placement = layers_only(run, len(setup.model.layers))
    plan = make_plan(setup.machine, ("llama-2-7b", "q4_0"), workload, settings, placement)
    return LlamaCpp().evaluate(setup, plan).prefill_s


def test_fused_attention_slowed_a_prompt_on_radeons_in_early_builds() -> None:
    assert prompt_seconds("2025-08", fused=True) > 1.2 * prompt_seconds("2025-08", fused=False)
    assert prompt_seconds("2025-10", fused=True) < prompt_seconds("2025-10", fused=False)
