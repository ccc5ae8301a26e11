"""Shadow prices equal finite differences of the relaxed optimum, and changes rank as planning them again ranks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest

from stowplan.planner.arrays import relaxed
from stowplan.planner.counts import Placement
from stowplan.planner.dispatch import plan_for
from stowplan.planner.result import Planned, Request
from stowplan.planner.upgrades import upgrades
from stowplan.whatif.answer import WhatIf, as_document, what_if
from stowplan.whatif.prices import Relaxation, asked_with, resources, shadow_prices, speed
from stowplan.whatif.scenario import Scenario
from stowplan.whatif.workshop import Workshop

_GIB = 2.0**30

CASES = {
    "dense": Scenario(model="llama-3.3-70b", quant="q4_k_m", machine="rtx-4090-desktop-128"),
    "mixture": Scenario(
        model="qwen3-30b-a3b", quant="q8_0", machine="rtx-3060-desktop-32", workload=(("prompt", 2048),)
    ),
    "two-gpus": Scenario(
        model="llama-3.3-70b",
        quant="q6_k",
        machine="dual-rtx-3090-desktop-128",
        workload=(("context", 32768),),
        objective="decode",
    ),
    "no-gpu": Scenario(model="llama-3.1-8b", quant="q4_k_m", machine="cpu-laptop-32"),
    "small": Scenario(model="llama-3.1-8b", quant="q8_0", machine="rtx-3060-desktop-32", changes=("gpu.memory=6GiB",)),
}


@cache
def solved(name: str) -> tuple[str, Request, Planned]:
    system, request = Workshop().request(CASES[name])
    return system, request, plan_for(system, request)


def with_room(planned: Planned, tiers: Sequence[str], more: float) -> Placement:
    """The winner's programme with more bytes of room on each tier."""
    assert planned.programme is not None
    room = {tier: size + (more if tier in tiers else 0.0) for tier, size in planned.programme.room.items()}
    return replace(planned.programme, room=room)


@pytest.mark.parametrize("name", CASES)
def test_prices_are_the_slope_of_the_relaxed_optimum(name: str) -> None:
    _, request, planned = solved(name)
    relaxation = Relaxation(request, planned)
    for resource in resources(request.setup):
        saved = relaxation.saved_per_unit(resource)
        if resource.tiers:
            step = 1e-4
            more, less = (relaxed(with_room(planned, resource.tiers, sign * step * _GIB)) for sign in (1, -1))
            assert more is not None and less is not None
            # At a kink of the optimum the dual lies between the slopes to the right and to the left.
            right = (relaxation.optimum.cost - more.cost) / step
            left = (less.cost - relaxation.optimum.cost) / step
        else:
            step = 1e-3
            faster, slower = (relaxed(relaxation.with_figures(resource.figures, 1 + sign * step)) for sign in (1, -1))
            assert faster is not None and slower is not None
            right = (relaxation.optimum.cost - faster.cost) / (step * resource.amount)
            left = (slower.cost - relaxation.optimum.cost) / (step * resource.amount)
        close = 3e-3 * max(abs(right), abs(left)) + 1e-7 * relaxation.optimum.cost / resource.amount
        assert min(right, left) - close <= saved <= max(right, left) + close, resource


@pytest.mark.parametrize("name", ["small", "no-gpu"])
def test_prices_agree_with_the_plan_solved_again(name: str) -> None:
    system, request, planned = solved(name)
    found = {price.resource.key: price for price in shadow_prices(system, request, planned)}
    for price in found.values():
        assert price.relaxed is not None and price.relaxed >= 0
        assert price.resolved is not None
        again = plan_for(system, asked_with(request, price.resource, price.step))
        gained = (speed(request, again) - speed(request, planned)) / price.step
        assert gained >= -price.noise  # more of anything never harms the best plan
        assert price.resolved == pytest.approx(max(0.0, gained), abs=1e-9)
    bandwidth = found["memory.bandwidth"]
    assert (bandwidth.relaxed or 0.0) * bandwidth.resource.amount > 0.2 * speed(request, planned)


@pytest.mark.parametrize("system", ["vllm", "accelerate", "hetegen"])
def test_systems_without_a_programme_of_layers_are_asked_again(system: str) -> None:
    scenario = Scenario(model="opt-13b", machine="rtx-3060-desktop-32", system=system)
    answer = what_if(Workshop(), scenario)
    assert all(price.relaxed is None for price in answer.prices)
    gained = {price.resource.key: price.resolved or 0.0 for price in answer.prices}
    assert gained["gpu.memory"] > 0 and gained["gpu.pcie"] >= 0
    larger = [change for change in answer.changes if "instead" in change.title and change.helps]
    assert larger and answer.changes[0].gain.ratio > 1.05
    assert not any("Q8_0" in change.title for change in answer.changes)  # no mix that the system cannot read


@cache
def answered() -> WhatIf:
    return what_if(Workshop(), CASES["small"])


def test_changes_rank_as_planning_them_again_ranks_them() -> None:
    answer = answered()
    costs = [change.outcome.cost_s or 0.0 for change in answer.changes]
    assert costs == sorted(costs)
    system, request, planned = solved("small")
    afresh = {each.title: each for each in upgrades(system, request, planned, thorough=True)}
    assert [change.title for change in answer.changes] == sorted(afresh, key=lambda t: (afresh[t].cost, t))
    for change in answer.changes:
        assert change.gain.ratio == pytest.approx(planned.cost / afresh[change.title].cost, rel=1e-9)
        assert change.gain.low <= change.gain.ratio <= change.gain.high


def test_what_is_bought_has_a_price_and_what_is_not_has_none() -> None:
    by_title = {change.title: change for change in answered().changes}
    assert by_title["a second GeForce RTX 3060"].price_usd == 280
    assert by_title["RAM twice as fast (more channels)"].price_usd is None
    second = by_title["a second GeForce RTX 3060"]
    before = answered().planned.prediction.decode_tokens_per_s
    gained = (second.outcome.figure("decode_tokens_per_s") or 0.0) - before
    assert second.usd_per_token_per_s == pytest.approx(280 / gained)


def test_the_document_holds_it_all() -> None:
    document = as_document(answered())
    assert document["schema_version"] == "stowplan.whatif/1"
    assert len(document["changes"]) == len(answered().changes)
    assert {price["resource"]["key"] for price in document["shadow_prices"]} >= {"gpu.memory", "gpu.pcie", "disk.read"}
