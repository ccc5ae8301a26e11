"""Bytes on tiers: everything is somewhere once, and filling takes all the room there is and no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.errors import DoesNotFit
from stowplan.figures import figures_for
from stowplan.machines import load_machine
from stowplan.models import load_model, model_kv_bytes_per_token
from stowplan.plan import Workload
from stowplan.systems.base import Setup
from stowplan.systems.mechanisms.policy import Cache, Experts, Policy, Weights
from stowplan.systems.mechanisms.residency import filled, memory, overflow

MACHINE = "rtx-4090 + ryzen-9-7950x + ddr5-5600x2:{ram}GiB + samsung-990-pro"
STREAMED = Policy(weights=Weights(gpu=0.0, ram=1.0), experts=Experts(gpu=0.0, ram=1.0))


def setup_of(ram: int, model: str, quant: str = "bf16", machine: str = MACHINE) -> Setup:
    loaded = load_machine(machine.format(ram=ram))
    return Setup(loaded, load_model(model, quant), figures_for(loaded, "pytorch"))


def weights_in(setup: Setup, policy: Policy, workload: Workload) -> float:
    names = ("weights", "experts", "embedding, output")
    use = memory(setup, "pytorch", policy, workload)
    return sum(each.parts.get(name, 0.0) for each in use.values() for name in names)


@settings(deadline=None, max_examples=15)
@given(
    ram=st.sampled_from([32, 64, 256]),
    model=st.sampled_from(["llama-3.1-8b", "mixtral-8x7b", "deepseek-v2-lite", "llama-3.3-70b"]),
    context=st.sampled_from([100, 20_000]),
)
def test_filling_keeps_every_weight_and_overfills_nothing(ram: int, model: str, context: int) -> None:
    setup, workload = setup_of(ram, model), Workload(prompt=context, generate=16)
    policy = filled(setup, "pytorch", STREAMED, workload, gpu=("weights", "experts"), disk=True)
    use = memory(setup, "pytorch", policy, workload)
    assert overflow(use) is None
    assert weights_in(setup, policy, workload) == pytest.approx(setup.model.weight_bytes)
    if policy.weights.gpu < 1.0 or policy.experts.gpu < 1.0:
        assert use["gpu0"].used == pytest.approx(use["gpu0"].capacity, rel=1e-6)
    if policy.weights.disk or policy.experts.disk:
        assert use["ram"].used == pytest.approx(use["ram"].capacity, rel=1e-6)


def test_more_memory_holds_more() -> None:
    workload = Workload(prompt=512)
    small, large = (
        filled(setup_of(ram, "llama-3.3-70b"), "pytorch", STREAMED, workload, gpu=("weights",), disk=True).weights
        for ram in (64, 128)
    )
    assert small.disk > large.disk and small.gpu == pytest.approx(large.gpu)


def test_what_fits_nowhere_is_refused_with_what_is_missing() -> None:
    setup = setup_of(32, "llama-3.3-70b", machine="rtx-4090 + ryzen-9-7950x + ddr5-5600x2:{ram}GiB")
    with pytest.raises(DoesNotFit, match="host memory lacks") as caught:
        filled(setup, "pytorch", STREAMED, Workload(), gpu=("weights",), disk=True)
    assert 60e9 < caught.value.missing_bytes < 110e9


@pytest.mark.parametrize(
    ("cache", "share"),
    [
        (Cache(), 1.0),
        (Cache(bits=0.25), 0.25),
        (Cache(bits=0.25, residual=2500), 0.25 + 0.75 * 0.25),
        (Cache(kept=0.2), 0.2),
        (Cache(gpu=0.0, ram=1.0), 0.0),
    ],
)
def test_the_cache_takes_what_its_format_and_eviction_leave(cache: Cache, share: float) -> None:
    setup, workload = setup_of(256, "llama-3.1-8b"), Workload(prompt=9000, generate=1000, batch=3)
    use = memory(setup, "pytorch", Policy(cache=cache), workload)
    whole = model_kv_bytes_per_token(setup.model) * 10_000 * 3
    assert use["gpu0"].parts.get("KV cache", 0.0) == pytest.approx(share * whole)


def test_bringing_the_cache_by_heads_needs_smaller_buffers() -> None:
    setup, workload = setup_of(256, "llama-3.1-8b"), Workload(prompt=1_000_000, generate=0)
    offloaded = Policy(cache=Cache(gpu=0.0, ram=1.0), chunk=10_000)
    layer = model_kv_bytes_per_token(setup.model) * 1_000_000 / 32
    by_slices = {
        slices: memory(setup, "pytorch", replace(offloaded, cache=replace(offloaded.cache, slices=slices)), workload)[
            "gpu0"
        ].parts["buffers"]
        for slices in (1, 2, 8)
    }
    assert by_slices == pytest.approx({1: layer, 2: layer, 8: layer / 4})


def test_more_slots_for_slices_take_room_where_products_take_none() -> None:
    setup, workload = setup_of(256, "llama-3.1-8b"), Workload(prompt=1_000_000, generate=0)
    cache = Cache(gpu=0.0, ram=1.0, slices=8)
    two, three, four = (
        memory(setup, "pytorch", Policy(cache=replace(cache, slots=slots), chunk=10_000), workload)["gpu0"]
        for slots in (None, 3, 4)
    )
    piece = model_kv_bytes_per_token(setup.model) * 1_000_000 / 32 / 8
    products = 2 * 10_000 * 2 * 14_336
    assert three.used - two.used == pytest.approx(max(0.0, piece - products), abs=1e6)
    assert four.used - two.used == pytest.approx(2 * piece - products, rel=0.01)
    assert two.parts["buffers"] == four.parts["buffers"]


@pytest.mark.parametrize(("tokens", "rounded"), [(2**20, 2**20), (2**20 + 1, 2**21), (3 * 2**18, 2**20)])
def test_page_locked_blocks_come_in_powers_of_two(tokens: int, rounded: int) -> None:
    setup, workload = setup_of(1024, "llama-3.1-8b"), Workload(prompt=tokens, generate=0)
    cache = Cache(gpu=0.0, ram=1.0, slices=8, rounded=True)
    held = memory(setup, "pytorch", Policy(cache=cache, chunk=10_000), workload)["ram"].parts["KV cache"]
    assert held == model_kv_bytes_per_token(setup.model) * rounded


def test_a_sliding_window_may_be_kept_whole() -> None:
    setup, workload = setup_of(256, "gemma-3-4b"), Workload(prompt=100_000, generate=0)
    dropped, kept = (
        memory(setup, "pytorch", Policy(cache=Cache(windowed=windowed)), workload)["gpu0"].parts["KV cache"]
        for windowed in (True, False)
    )
    assert dropped < 0.3 * kept
    assert kept == pytest.approx(model_kv_bytes_per_token(setup.model) * 100_000)


def test_inputs_instead_of_cache_take_half_in_multi_head_attention() -> None:
    setup, workload = setup_of(256, "llama-2-7b"), Workload(prompt=1000, generate=0)
    keys, inputs = (
        memory(setup, "pytorch", Policy(cache=Cache(recompute=share)), workload)["gpu0"].parts["KV cache"]
        for share in (0.0, 1.0)
    )
    assert inputs == pytest.approx(keys / 2)
