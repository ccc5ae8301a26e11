"""Energy and money of a replay by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest

from stowplan.errors import InputError
from stowplan.machines import load_machine
from stowplan.machines.library import given
from stowplan.machines.machine import Machine
from stowplan.serving.economics import Costs, check_prices, costs_of
from stowplan.serving.fleet import replay_fleet
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import Replay
from stowplan.serving.replay import replay
from stowplan.serving.requests import Requests
from stowplan.serving.step_time import DecodePiece, StepTime

STEP_TIME = StepTime(((1, 0.5), (2, 0.5)), ((0, 0.0), (1, 0.0)), (DecodePiece(0.0, 0.0, 0.0),), ())
"""Every step takes half a second."""
YEARS_S = 3 * 365.25 * 86400.0


def replayed() -> Replay:
    """Two requests of 2 and 4 tokens, 10 s apart, from 5 s on: 3 s of work in 12 s."""
    return replay(Requests.of([5.0, 15.0], [10, 10], [2, 4]), STEP_TIME, Limits(kv_blocks=100))


@pytest.fixture(scope="module")
def desktop() -> Machine:
    machine = load_machine("rtx-4090-desktop-128")
    gpu = dataclasses.replace(machine.gpus[0], price=given(2000.0), power=given(400.0))
    cpu = dataclasses.replace(machine.cpu, price=given(500.0), power=given(100.0))
    return dataclasses.replace(machine, gpus=(gpu,), cpu=cpu)


def test_energy_and_price_by_hand(desktop: Machine) -> None:
    joules = 500.0 * (3.0 + 0.2 * 9.0)
    found = costs_of(replayed(), desktop)
    assert found.joules_per_token == pytest.approx(joules / 6)
    assert found.kwh == pytest.approx(joules / 3.6e6)
    assert found.usd_per_million == pytest.approx(2500.0 * 12.0 / YEARS_S / 6 * 1e6)
    powered = costs_of(replayed(), desktop, usd_per_kwh=0.3)
    assert powered.usd_per_million == pytest.approx((2500.0 * 12.0 / YEARS_S + 0.3 * joules / 3.6e6) / 6 * 1e6)


def test_rent_by_hand(desktop: Machine) -> None:
    found = costs_of(replayed(), desktop, usd_per_hour=3.0)
    assert found.usd_per_million == pytest.approx(3.0 * 12.0 / 3600.0 / 6 * 1e6)


def test_every_engine_is_a_machine(desktop: Machine) -> None:
    requests = Requests.of([5.0, 15.0], [10, 10], [2, 4])
    fleet = replay_fleet(requests, STEP_TIME, Limits(kv_blocks=100), "chunked", engines=2, router="round-robin")
    found = costs_of(fleet, desktop, usd_per_hour=3.0)
    assert found.kwh == pytest.approx(500.0 * (3.0 + 0.2 * 21.0) / 3.6e6)
    assert found.usd_per_million == pytest.approx(2 * 3.0 * 12.0 / 3600.0 / 6 * 1e6)


def test_what_nobody_knows_is_absent(desktop: Machine) -> None:
    (gpu,) = desktop.gpus
    bare = dataclasses.replace(desktop, gpus=(dataclasses.replace(gpu, price=None, power=None),))
    assert costs_of(replayed(), bare) == Costs(None, None, None)
    rented = costs_of(replayed(), bare, usd_per_hour=1.0)
    assert (rented.joules_per_token, rented.kwh) == (None, None) and rented.usd_per_million is not None
    nothing = replay(Requests.of([], [], []), STEP_TIME, Limits(kv_blocks=1))
    assert costs_of(nothing, desktop) == Costs(None, None, None)


def test_prices_are_checked_before_anything_runs(desktop: Machine) -> None:
    check_prices(desktop, None, 0.3)
    check_prices(desktop, 2.5, None)
    check_prices(load_machine("cpu-laptop-32"), 0.0, None)
    for rent, electricity, told in (
        (-1.0, None, "rent -1"),
        (math.nan, None, "rent nan"),
        (None, math.inf, "electricity inf"),
        (1.0, 0.3, "includes it"),
    ):
        with pytest.raises(InputError, match=told):
            check_prices(desktop, rent, electricity)
    with pytest.raises(InputError, match="price or power is not known"):
        check_prices(load_machine("cpu-laptop-32"), None, 0.3)
