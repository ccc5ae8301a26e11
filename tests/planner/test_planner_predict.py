"""Predictions: intervals hold the value and follow the figures' spread; elasticities of plain cases are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tests.strategies import setup_of

from stowplan.figures import Figures
from stowplan.plan import Plan, Prediction, Workload
from stowplan.planner.predict import predict
from stowplan.systems.base import RAM, Setup
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_auto import experts_in_ram, layers_only
from stowplan.systems.llama_cpp_commands import make_plan
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

SYSTEM = LlamaCpp()
SPEC = "rtx-4090 + epyc-7742 + ddr4-3200x8:512GiB"
WORKLOAD = Workload(prompt=1000, generate=100)


def plan_of(setup: Setup, key: str, quant: str, *, on_gpu: bool, moe: bool = False) -> Plan:
    settings = LlamaCppSettings()
    run = LlamaCppRun(setup, WORKLOAD, settings)
    count = len(setup.model.layers)
    placement = experts_in_ram(run, count) if moe else layers_only(run, count if on_gpu else 0)
    return make_plan(setup.machine, (key, quant), WORKLOAD, settings, placement)


def prediction(key: str, quant: str, *, on_gpu: bool, moe: bool = False, sd_factor: float = 1.0) -> Prediction:
    setup = setup_of(SPEC, (), key, quant)
    plan = plan_of(setup, key, quant, on_gpu=on_gpu, moe=moe)
    if sd_factor != 1.0:
        wider = {name: replace(n, sd=setup.figures.sd(name) * sd_factor) for name, n in setup.figures.items()}
        setup = Setup(setup.machine, setup.model, Figures(wider))
    return predict(setup, plan, SYSTEM)


CASES = {
    "gpu": {"key": "llama-3.1-8b", "quant": "q8_0", "on_gpu": True},
    "cpu": {"key": "llama-3.1-8b", "quant": "f16", "on_gpu": False},
    "experts in ram": {"key": "qwen3-30b-a3b", "quant": "q4_k_m", "on_gpu": True, "moe": True},
}


@pytest.mark.parametrize("name", CASES)
def test_intervals_hold_the_value_and_widen_with_the_spread(name: str) -> None:
    narrow, wide = (prediction(**CASES[name], sd_factor=factor) for factor in (1.0, 1.5))  # type: ignore[arg-type]
    for field, interval in narrow.interval.items():
        value = getattr(narrow, field)
        assert 0 < interval.low < value < interval.high
        assert math.log(interval.high / value) == pytest.approx(math.log(value / interval.low), rel=1e-9)
        wider = wide.interval[field]
        assert wider.low < interval.low
        assert wider.high > interval.high
        assert getattr(wide, field) == value
    assert narrow.interval["tpot_s"].low == pytest.approx(1 / narrow.interval["decode_tokens_per_s"].high, rel=1e-9)


def rests(found: Prediction) -> dict[str, float]:
    return {each.name: each.elasticity for each in found.rests_on}


def test_decode_on_one_gpu_follows_its_memory() -> None:
    """Launches keep the elasticity below 1; what is left is the memory's share of the step."""
    found = prediction("llama-3.1-8b", "f16", on_gpu=True)
    assert found.bottleneck.startswith("gpu0")
    assert 0.75 < rests(found)["gpu0.hbm"] <= 1.01
    assert rests(found).get("host.dram", 0.0) < 0.05


def test_decode_in_host_memory_follows_its_bandwidth() -> None:
    found = prediction("llama-3.1-8b", "f16", on_gpu=False)
    assert found.bottleneck == "host.dram"
    assert rests(found)["host.dram"] == pytest.approx(1.0, abs=0.1)
    assert "gpu0.hbm" not in rests(found) or rests(found)["gpu0.hbm"] < 0.1


def test_elasticities_equal_finite_differences() -> None:
    setup = setup_of(SPEC, (), "llama-3.1-8b", "f16")
    plan = plan_of(setup, "llama-3.1-8b", "f16", on_gpu=False)
    base = SYSTEM.evaluate(setup, plan).decode_s
    faster = Setup(setup.machine, setup.model, setup.figures.scaled("host.dram", 1.01))
    slope = -math.log(SYSTEM.evaluate(faster, plan).decode_s / base) / math.log(1.01)
    assert rests(predict(setup, plan, SYSTEM))["host.dram"] == pytest.approx(slope, abs=0.05)


@pytest.mark.parametrize("name", CASES)
def test_rates_times_and_shares_are_consistent(name: str) -> None:
    found = prediction(**CASES[name])  # type: ignore[arg-type]
    assert found.decode_tokens_per_s * found.tpot_s == pytest.approx(WORKLOAD.batch)
    assert found.prefill_tokens_per_s * found.ttft_s == pytest.approx(WORKLOAD.prompt)
    seconds = found.ttft_s + WORKLOAD.generate * found.tpot_s
    assert found.request_tokens_per_s == pytest.approx(WORKLOAD.generate / seconds)
    assert sum(found.time_shares.values()) == pytest.approx(1.0)
    assert sum(found.prefill_shares.values()) == pytest.approx(1.0)
    assert found.bottleneck == next(iter(found.time_shares))
    assert found.memory_bytes[RAM].used == pytest.approx(sum(found.memory_bytes[RAM].parts.values()))
    assert found.rests_on
    assert all(each.sd > 0 and each.source for each in found.rests_on)


def test_rests_are_complete() -> None:
    """No figure outside the list moves the prediction."""
    setup = setup_of(SPEC, (), "qwen3-30b-a3b", "q4_k_m")
    plan = plan_of(setup, "qwen3-30b-a3b", "q4_k_m", on_gpu=True, moe=True)
    named = rests(predict(setup, plan, SYSTEM))
    base = SYSTEM.evaluate(setup, plan)
    for name in setup.figures:
        moved = SYSTEM.evaluate(Setup(setup.machine, setup.model, setup.figures.scaled(name, 0.8)), plan)
        change = max(abs(math.log(moved.decode_s / base.decode_s)), abs(math.log(moved.prefill_s / base.prefill_s)))
        assert change < 1e-3 or name in named, f"{name} moves the prediction by {change:.4f} and is not named"
