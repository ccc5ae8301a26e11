"""What the engine copies to the GPU and how it multiplies there: rules by engine, build and format."""

from __future__ import annotations

import math
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import machine_of, setup_of

from stowplan.kernels import Layout
from stowplan.ops import Part, distinct_experts
from stowplan.plan import Workload
from stowplan.planner.commands import Hints, understand
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_auto import experts_in_ram, layers_only
from stowplan.systems.llama_cpp_commands import make_plan
from stowplan.systems.llama_cpp_flags import read_flags
from stowplan.systems.llama_cpp_offload import (
    copied_from,
    copies_all_experts,
    cpu_layout,
    dequantises,
    fuses_by_default,
    pinned,
    runs_experts_in_turn,
    touched_experts,
)
from stowplan.systems.llama_cpp_reading import settings_from
from stowplan.systems.llama_cpp_settings import LlamaCppSettings, settings_of
from stowplan.systems.serial import LayerPlaces

EXPERTS = (128, 8)
ONE = "rtx-4090 + epyc-7742 + ddr4-3200x8:512GiB"
TWO = "2x rtx-4090 + epyc-7742 + ddr4-3200x8:512GiB"


def ik(built: str | None = None, **settings: bool) -> LlamaCppSettings:
    return LlamaCppSettings.model_validate({"engine": "ik_llama.cpp", "built": built, **settings})


@pytest.mark.parametrize(
    ("settings", "format_key", "experts", "tokens"),
    [
        (LlamaCppSettings(), "q4_k", EXPERTS, 32),
        (LlamaCppSettings(), "q4_k", None, 32),
        (LlamaCppSettings(op_offload=False), "q4_k", None, inf),
        (ik(), "q4_k", None, 32),
        (ik(), "q4_k", EXPERTS, 512),
        (ik("2025-05"), "q4_k", EXPERTS, 32),
        (ik(), "q4_k_r4", EXPERTS, inf),
        (ik(), "iq4_ks_r4", EXPERTS, 512),
        (ik("2025-04-01"), "iq4_ks_r4", EXPERTS, inf),
        (ik(repacked=True), "q4_k", EXPERTS, inf),
        (ik(repacked=True), "iq4_ks", EXPERTS, 512),
        (ik(repacked=True), "iq3_kt", EXPERTS, 512),
        (ik("2025-05-20", repacked=True), "iq4_ks", None, inf),
    ],
)
def test_from_how_many_tokens_weights_are_copied(
    settings: LlamaCppSettings, format_key: str, experts: tuple[int, int] | None, tokens: float
) -> None:
    assert copied_from(settings, format_key, experts) == tokens


def test_early_builds_copied_only_the_last_product_of_an_expert() -> None:
    for built, gate in (("2025-05-11", inf), ("2025-05-12", 32)):
        assert copied_from(ik(built), "q4_k", EXPERTS, Part.EXPERT_GATE) == gate
        assert copied_from(ik(built), "q4_k", EXPERTS, Part.EXPERT_UP) == gate
        assert copied_from(ik(built), "q4_k", EXPERTS, Part.EXPERT_DOWN) == 32
    assert copied_from(LlamaCppSettings(built="2025-01"), "q4_k", EXPERTS, Part.EXPERT_GATE) == 32


@pytest.mark.parametrize(
    ("settings", "format_key", "rows", "layout"),
    [
        (ik(), "q4_k", 1, Layout.PLAIN),
        (ik(), "q4_k", 31, Layout.PLAIN),
        (ik(), "q4_k", 32, Layout.UNPACKED),
        (ik(), "q6_k", 63, Layout.PLAIN),
        (ik(), "q6_k", 64, Layout.UNPACKED),
        (ik("2025-06-17"), "q4_k", 512, Layout.PLAIN),
        (ik(), "f16", 512, Layout.PLAIN),
        (ik(), "q4_k_r4", 512, Layout.ROWS),
        (ik(repacked=True), "q4_k", 1, Layout.ROWS),
        (ik(repacked=True), "iq3_kt", 512, Layout.UNPACKED),
        (LlamaCppSettings(), "q4_k", 512, Layout.PLAIN),
    ],
)
def test_how_the_cpu_meets_weights(settings: LlamaCppSettings, format_key: str, rows: float, layout: Layout) -> None:
    assert cpu_layout(settings, format_key, rows) is layout


@pytest.mark.parametrize(
    ("settings", "everything"),
    [
        (LlamaCppSettings(), False),
        (LlamaCppSettings(built="2025-07"), True),
        (ik(), False),
        (ik("2025-09-05"), True),
        (ik("2025-09-05", used_experts=True), False),
        (ik(used_experts=False), True),
    ],
)
def test_which_builds_copy_every_expert(settings: LlamaCppSettings, everything: bool) -> None:
    assert copies_all_experts(settings) is everything


@pytest.mark.parametrize(
    ("settings", "whole", "part"),
    [
        (LlamaCppSettings(), True, True),
        (LlamaCppSettings(load_mode="mmap"), False, False),
        (LlamaCppSettings(built="2025-07"), True, True),
        (LlamaCppSettings(built="2025-06"), True, False),
        (ik(), True, True),
        (ik("2026-03-24"), True, False),
    ],
)
def test_which_weights_are_pinned(settings: LlamaCppSettings, whole: bool, part: bool) -> None:
    assert (pinned(settings, overridden=False), pinned(settings, overridden=True)) == (whole, part)


def test_the_fork_pins_overridden_weights_instead_of_mapping_them() -> None:
    settings = LlamaCppSettings(engine="ik_llama.cpp", load_mode="mmap")
    assert pinned(settings, overridden=True)
    assert not pinned(settings, overridden=False)


@pytest.mark.parametrize(
    ("host", "bound"),
    [
        ("xeon-platinum-8480 + ddr5-4800x8:512GiB", "host.copier"),
        ("ryzen-9-7950x + ddr5-5200x2:64GiB", "host.dram"),
        ("epyc-9355 + ddr5-6400x12:768GiB", "gpu0.h2d"),
    ],
)
def test_what_bounds_copies_of_pageable_weights(host: str, bound: str) -> None:
    """One core of a Xeon is slower than the link, a desktop's memory moves three bytes for one."""
    setup = setup_of(f"rtx-4090 + {host}", (), "qwen3-30b-a3b", "q4_k_m")
    workload = Workload(prompt=4096, generate=1)
    seconds = {}
    for mode in ("none", "mmap"):
        settings = LlamaCppSettings.model_validate({"load_mode": mode, "ubatch": 512})
        run = LlamaCppRun(setup, workload, settings)
        plan = make_plan(setup.machine, ("qwen3-30b-a3b", "q4_k_m"), workload, settings, experts_in_ram(run, 48))
        evaluation = LlamaCpp().evaluate(setup, plan)
        seconds[mode] = evaluation.prefill_s
    limiting = {name: share for name, share in evaluation.prefill_shares.items() if name.startswith(("host", "gpu0.h"))}
    assert max(limiting, key=lambda name: limiting[name]) == bound
    assert seconds["mmap"] > 1.1 * seconds["none"] or bound == "gpu0.h2d"


def test_early_builds_turn_weights_into_halves_first() -> None:
    early, now = LlamaCppSettings(built="2024-05"), LlamaCppSettings()
    assert dequantises(early, "q4_k", 512)
    assert not dequantises(early, "q4_k", 16)
    assert not dequantises(early, "f16", 512)
    assert not dequantises(now, "q4_k", 512)
    assert dequantises(ik("2025-04"), "iq3_k", 512)
    assert not dequantises(ik(), "iq3_k_r4", 512)


@pytest.mark.parametrize(
    ("key", "rows"), [("q2_k", 384), ("q6_k", 1536), ("iq2_s", 1536), ("iq4_k", 1024), ("iq4_k_r4", 1024)]
)
def test_the_fork_gives_large_products_of_small_blocks_to_the_library(key: str, rows: int) -> None:
    """ik_llama.cpp pull request 559: formats with a scale for every 16 weights."""
    assert dequantises(ik("2025-06-27"), key, rows)
    assert not dequantises(ik("2025-06-27"), key, rows - 1)
    assert not dequantises(ik("2025-06-26"), key, rows)
    assert not dequantises(LlamaCppSettings(), "q6_k", rows)
    assert not dequantises(ik(), "iq4_ks", 8192)


@pytest.mark.parametrize(
    ("command", "built", "fused"),
    [
        ("llama-server -m a.gguf -ngl 99", "2025-08-29", False),
        ("llama-server -m a.gguf -ngl 99", "2025-08-30", True),
        ("llama-server -m a.gguf -ngl 99 -fa", "2025-08-29", True),
        ("llama-bench -m a.gguf -ngl 99", "2026-06-04", False),
        ("llama-bench -m a.gguf -ngl 99", "2026-07-20", True),
        ("llama-bench -m a.gguf -ngl 99 -fa 1", "2026-06-04", True),
        ("llama-bench -m a.gguf -ngl 99 -fa 0", None, False),
        ("llama-bench -m a.gguf -ngl 99", None, True),
    ],
)
def test_defaults_of_fused_attention_by_program_and_build(command: str, built: str | None, fused: bool) -> None:
    machine = machine_of("rtx-4090 + epyc-7742 + ddr4-3200x8:512GiB")
    hints = Hints(model="qwen3-14b", quant="q4_k_m", built=built)
    assert settings_of(understand(command.split(), machine, hints).plan).flash_attention is fused


def test_the_fork_fuses_attention_by_default_since_october_2025() -> None:
    assert not fuses_by_default(ik("2025-10-24"), bench=False)
    assert fuses_by_default(ik("2025-10-25"), bench=True)


def test_early_builds_run_experts_in_turn() -> None:
    assert runs_experts_in_turn(ik("2025-06"), 512)
    assert not runs_experts_in_turn(ik("2025-06"), 1)
    assert not runs_experts_in_turn(ik(), 512)


@given(st.integers(2, 512), st.integers(1, 16), st.integers(1, 100_000), st.floats(0.05, 5))
def test_touched_experts_are_bounded_and_grow(total: int, active: int, tokens: int, popularity: float) -> None:
    experts = (total, min(active, total))
    found = touched_experts(experts, tokens, popularity)
    assert touched_experts(experts, 1, popularity) == pytest.approx(experts[1])
    assert experts[1] * (1 - 1e-9) <= found <= distinct_experts(*experts, tokens) * (1 + 1e-9)
    assert touched_experts(experts, tokens + 1, popularity) >= found * (1 - 1e-12)


def test_even_popularity_is_uniform_choice() -> None:
    for tokens in (2, 20, 200):
        uniform = 256 * (1 - math.exp(-8 / 256 * (tokens - 1)) * (1 - 8 / 256))
        assert touched_experts((256, 8), tokens, 1e9) == pytest.approx(
            min(uniform, distinct_experts(256, 8, tokens)), rel=1e-4
        )


@pytest.mark.parametrize(
    ("words", "repacked", "used", "mla"),
    [
        ("llama-bench -m x.gguf -rtr 1 -mla 2 -no-ooae 0", True, True, 2),
        ("llama-bench -m x.gguf -rtr 0 -no-ooae 1", False, False, 3),
        ("llama-server -m x.gguf -rtr -ooae", True, True, 3),
        ("llama-server -m x.gguf -fmoe", False, None, 3),
    ],
)
def test_flags_of_the_fork_are_read(words: str, repacked: bool, used: bool | None, mla: int) -> None:
    settings = settings_from(read_flags(words.split()), 0)
    assert (settings.engine, settings.repacked, settings.used_experts, settings.mla) == (
        "ik_llama.cpp",
        repacked,
        used,
        mla,
    )


def prefill(spec: str, key: str, settings: LlamaCppSettings, *, depth: int = 0, spilled: int = 0) -> float:
    """Seconds of a prompt, by way of the system."""
    setup = setup_of(spec, (), key, "q4_k_m")
    workload = Workload(prompt=4096, generate=1, depth=depth)
    run = LlamaCppRun(setup, workload, settings)
    placement = experts_in_ram(run, spilled) if spilled else layers_only(run, len(setup.model.layers))
    plan = make_plan(setup.machine, (key, "q4_k_m"), workload, settings, placement)
    return LlamaCpp().evaluate(setup, plan).prefill_s


def grown(mla: int, ubatch: int) -> float:
    """Seconds that a prompt takes more after 65,536 tokens than after none."""
    settings = LlamaCppSettings.model_validate(
        {"engine": "ik_llama.cpp", "mla": mla, "ubatch": ubatch, "batch": ubatch}
    )
    empty, deep = (prefill(ONE, "deepseek-v2-lite", settings, depth=depth) for depth in (0, 65536))
    return deep - empty


def test_expanded_latents_are_cheaper_over_a_deep_prompt() -> None:
    assert grown(3, 4096) < 0.7 * grown(1, 4096)
    mainline = [prefill(ONE, "deepseek-v2-lite", LlamaCppSettings(mla=mla), depth=65536) for mla in (1, 3)]
    assert mainline[0] == mainline[1]


def test_every_micro_batch_expands_all_cached_latents() -> None:
    assert grown(3, 512) > grown(3, 4096) + 7 * 65536 * 27 * 16 * 4096 / 1008e9
    assert grown(1, 512) < 1.1 * grown(1, 4096)


def test_micro_batches_overlap_on_several_gpus_only_without_host_memory() -> None:
    settings = LlamaCppSettings()
    one, two = (prefill(spec, "llama-3.1-8b", settings) for spec in (ONE, TWO))
    assert 0.5 * one < two < 0.95 * one
    setup = setup_of(TWO, (), "qwen3-30b-a3b", "q4_k_m")
    run = LlamaCppRun(setup, Workload(prompt=4096, generate=1), settings)
    layers, output = layers_only(run, len(setup.model.layers))
    assert run.overlap(layers, output) < 1.0
    ffn = tuple((part, "ram" if part is Part.EXPERT_UP else place) for part, place in layers[0].ffn)
    assert run.overlap([LayerPlaces(layers[0].mixer, layers[0].kv, ffn), *layers[1:]], output) == 1.0
    short = LlamaCppRun(setup, Workload(prompt=100, generate=1), settings)
    assert short.overlap(layers, output) == 1.0


def test_copying_only_used_experts_is_faster() -> None:
    every, used = (prefill(ONE, "qwen3-30b-a3b", LlamaCppSettings(used_experts=u), spilled=99) for u in (False, True))
    assert used < every
