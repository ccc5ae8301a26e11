"""Paths and sweeps: what is said, in which units, in how many variants; and what is wrong is told in a sentence."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import BadQuantity, InputError, StowplanError, UnknownName
from stowplan.whatif.axes import Axis, count_variants, parse_axis, parse_set, variants
from stowplan.whatif.paths import PATHS, find_path, set_path, si_value
from stowplan.whatif.scenario import Scenario

BASE = Scenario(model="llama-3.1-8b", machine="rtx-3060-desktop-32", quant="q4_k_m")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("gpu.memory=16GiB:48GiB:16GiB", ("16GiB", "32GiB", "48GiB")),
        ("gpu.memory=16:48:16GiB", ("16GiB", "32GiB", "48GiB")),
        ("gpu.memory=512MiB:1GiB:256MiB", ("512MiB", "768MiB", "1024MiB")),
        ("memory.bandwidth=0.1TB/s:300GB/s:100GB/s", ("0.1TB/s", "0.2TB/s", "0.3TB/s")),
        ("gpu.memory=8GiB,24GiB,8GiB", ("8GiB", "24GiB")),
        ("context=1024:4096:1024", ("1024", "2048", "3072", "4096")),
        ("gpu.pcie.lanes=4,8,16", ("4", "8", "16")),
        ("quant=q4_k_m,q8_0", ("q4_k_m", "q8_0")),
        ("kv=f16,q8_0/q4_0", ("f16", "q8_0/q4_0")),
        ("engine.kv_offload=on,off", ("on", "off")),
    ],
)
def test_values_of_a_sweep(text: str, values: tuple[str, ...]) -> None:
    assert parse_axis(text).values == values


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 200), st.integers(0, 300), st.integers(1, 90))
def test_a_range_holds_both_ends_and_equal_steps(low: int, wide: int, step: int) -> None:
    found = parse_axis(f"gpu.memory={low / 4}GiB:{(low + wide) / 4}GiB:{step / 4}GiB").values
    numbers = [Fraction(value.removesuffix("GiB")) for value in found]
    assert numbers[0] == Fraction(low, 4)
    assert all(b - a == Fraction(step, 4) for a, b in pairwise(numbers))
    assert Fraction(low + wide, 4) - Fraction(step, 4) < numbers[-1] <= Fraction(low + wide, 4)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("gpu.memroy=1GiB:2GiB:1GiB", UnknownName, "gpu.memory"),
        ("contxt=1", UnknownName, "context"),
        ("gpu.memory=1GiB:2GB/s:1GiB", BadQuantity, "GB/s"),
        ("gpu.memory=1GiB:2GiB", InputError, "from:to:step"),
        ("gpu.memory=2GiB:1GiB:1GiB", InputError, "goes nowhere"),
        ("gpu.memory=1GiB:2GiB:0GiB", InputError, "above zero"),
        ("gpu.memory=16", BadQuantity, "no unit"),
        ("gpu.memory=,", InputError, "no value"),
        ("gpu.memory", InputError, "path=value"),
        ("context=1k", InputError, "whole number"),
        ("context=1:2:0.5", InputError, "whole number"),
        ("context=1GiB:2GiB:1GiB", InputError, "count"),
        ("engine.kv_offload=maybe", InputError, "on or off"),
        ("context=1:16000000:1", InputError, "at most"),
    ],
)
def test_a_wrong_sweep_is_told_in_a_sentence(text: str, error: type[StowplanError], words: str) -> None:
    with pytest.raises(error) as caught:
        parse_axis(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_combinations() -> None:
    axes = [Axis("gpu.memory", ("8GiB", "12GiB")), Axis("context", ("2048", "4096"))]
    crossed = [variant.values for variant in variants(BASE, axes)]
    assert crossed == [("8GiB", "2048"), ("8GiB", "4096"), ("12GiB", "2048"), ("12GiB", "4096")]
    assert [variant.values for variant in variants(BASE, axes, "paired")] == [("8GiB", "2048"), ("12GiB", "4096")]
    with pytest.raises(InputError, match="as many values"):
        count_variants([axes[0], Axis("context", ("1", "2", "3"))], "paired")
    with pytest.raises(InputError, match="twice"):
        count_variants([axes[0], axes[0]], "cartesian")
    with pytest.raises(InputError, match="larger steps"):
        count_variants([Axis(name, tuple(map(str, range(2000)))) for name in ("context", "prompt")], "cartesian")


def test_every_path_changes_the_scenario_and_only_that() -> None:
    examples = {"machine": "t4-16", "model": "llama-2-7b", "quant": "q8_0", "kv": "q8_0", "system": "accelerate"}
    examples |= {"objective": "decode", "engine.load_mode": "mmap", "engine.margin": "1 GiB"}
    for name, path in PATHS.items():
        value = examples.get(name, "off" if path.kind == "switch" else "77")
        changed = set_path(BASE, name, value)
        assert changed != BASE, name
        assert Scenario.parse(changed.text) == changed


def test_a_machine_path_is_recorded_once() -> None:
    twice = set_path(set_path(BASE, "gpu0.memory", "8GiB"), "gpu0.memory", "16GiB")
    assert twice.changes == ("gpu0.memory=16GiB",)
    assert find_path("gpu1.memory").kind == "bytes"
    assert si_value(find_path("gpu.memory"), "2GiB") == 2 * 2**30
    assert si_value(find_path("quant"), "q4_k_m") is None
    assert parse_set("gpu.memory = 8GiB") == ("gpu.memory", "8GiB")


def test_a_request_longer_than_its_context_is_refused() -> None:
    with pytest.raises(InputError, match="at least 640"):
        _ = set_path(BASE, "context", "100").asked
