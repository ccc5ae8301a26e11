"""An engine that serves a plan: its cache fills the memory that is left, its step time is the plan's own."""

from __future__ import annotations

import pytest

from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.ops import CacheFormat, Step
from stowplan.plan import Plan, Workload
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup
from stowplan.planner.result import Request
from stowplan.serving.from_plan import Serving, engine_of
from stowplan.systems import load_system
from stowplan.systems.base import Setup
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_settings import settings_of

SMALL = Serving(max_running=16, budget=512, context=4096)


def served(machine: str, model: str, quant: str, *overrides: str) -> tuple[Setup, Plan]:
    """The best plan for one request of a model on a machine."""
    setup = make_setup(load_machine(machine, overrides), load_model(model, quant), load_system("llama.cpp"))
    return setup, plan_for("llama.cpp", Request(setup, (model, quant), Workload(prompt=256, generate=64))).plan


def test_the_cache_fills_what_weights_and_buffers_leave() -> None:
    setup, plan = served("rtx-4090-desktop-128", "llama-3.1-8b", "q8_0")
    engine = engine_of(setup, plan, SMALL)
    tokens = engine.cache_tokens
    assert engine.limits.kv_blocks == tokens // 16
    per_token = sum(CacheFormat().token_bytes(layer) for layer in setup.model.layers)
    system = LlamaCpp()
    for context, fits in ((tokens // 256 * 256 - 512, True), (tokens + 8192, False)):
        bigger = plan.model_copy(update={"workload": Workload(prompt=1, generate=1, context=context)})
        use = LlamaCppRun(setup, bigger.workload, settings_of(plan)).memory(
            system.placement(setup, plan), plan.embedding, plan.output
        )["gpu0"]
        # the mask buffer grows with the context, so the cache itself is compared, not the whole
        left = use.capacity - settings_of(plan).margin - (use.used - use.parts["cache"])
        assert (use.parts["cache"] <= left + 0.02 * use.capacity) is fits
    assert tokens * per_token < setup.machine.gpus[0].memory.value


def test_more_memory_holds_more_cache_and_the_same_step_costs_the_same() -> None:
    setup, plan = served("rtx-4090-desktop-128", "llama-3.1-8b", "q8_0")
    larger = make_setup(
        load_machine("rtx-4090-desktop-128", ["gpu.memory=48GiB"]), setup.model, load_system("llama.cpp")
    )
    small, large = engine_of(setup, plan, SMALL), engine_of(larger, plan, SMALL)
    assert large.cache_tokens > 1.5 * small.cache_tokens
    assert large.step_time == small.step_time


@pytest.mark.parametrize("overhead", [0.0, 0.002])
def test_a_step_costs_what_the_plan_says(overhead: float) -> None:
    setup, plan = served("rtx-3090-desktop-64", "llama-3.3-70b", "q4_k_m")
    engine = engine_of(setup, plan, Serving(16, 512, "recompute", 4096, overhead))
    layers = LlamaCpp().placement(setup, plan)
    run = LlamaCppRun(setup, Workload(prompt=0, generate=0, context=1), settings_of(plan))
    assert engine.step_time.largest_error < 0.01
    for batch, context in ((1, 100), (3, 777), (16, 2048)):
        step = Step.decode(batch, context)
        exact = run.step_price(layers, plan.output, step).seconds + overhead
        compiled = engine.step_time.seconds(batch, batch * context, [], batch)
        assert compiled == pytest.approx(exact, rel=0.01)


def test_only_llama_cpp_plans_are_served_and_a_cache_is_needed() -> None:
    setup, plan = served("rtx-4090-desktop-128", "llama-3.1-8b", "q8_0")
    with pytest.raises(NotExpressible, match="runs plans of llama"):
        engine_of(setup, plan.model_copy(update={"system": "flexgen"}), SMALL)
    tight = make_setup(load_machine("rtx-4090-desktop-128", ["gpu.memory=8GiB"]), setup.model, load_system("llama.cpp"))
    with pytest.raises(DoesNotFit):
        engine_of(tight, plan, SMALL)


def test_a_cache_in_ram_counts_as_host_memory_in_full() -> None:
    setup, plan = served("rtx-4090-desktop-128", "llama-3.1-8b", "q8_0")
    places = [each.model_copy(update={"places": {**each.places, "kv": "ram"}}) for each in plan.layers]
    engine = engine_of(setup, plan.model_copy(update={"layers": places}), SMALL)
    assert engine.host is not None
    assert engine.host.used == pytest.approx(engine.host.capacity, rel=1e-4)
    assert engine.cache_tokens * engine.token_bytes > 0.8 * engine.host.capacity


def test_weights_in_ram_leave_less_cache_where_gpu_and_cpu_share_one_memory() -> None:
    setup, plan = served("strix-halo-128", "llama-3.3-70b", "q8_0")
    ram = [
        each.model_copy(update={"places": dict.fromkeys(each.places, "ram") | {"kv": "gpu0"}}) for each in plan.layers
    ]
    engine = engine_of(setup, plan.model_copy(update={"layers": ram, "output": "ram"}), SMALL)
    assert engine.host is not None
    total = setup.model.weight_bytes + engine.cache_tokens * engine.token_bytes + setup.machine.reserved.value
    assert 0.95 * engine.host.capacity < total <= engine.host.used <= engine.host.capacity
