"""The placement programme against enumeration, against independently built matrices, and its shadow prices."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from stowplan.planner.arrays import lower_bound, shadow_prices
from stowplan.planner.counts import GAP, Column, Placement, undominated
from stowplan.planner.programme import solve
from stowplan.systems.base import RAM
from stowplan.systems.serial import LayerPlaces

GIB = 2.0**30


def random_placement(seed: int, *, layers: int | None = None, spill: bool = False) -> Placement:
    """Three to five layers of two interleaved classes, host memory and one or two GPUs, patterns of random cost."""
    source = random.Random(seed)
    count = layers or source.choice([3, 4, 5])
    homes = [RAM, "gpu0", "gpu1"][: source.choice([2, 3])]
    kinds = [source.choice([0, 1]) for _ in range(count)]
    classes = [tuple(i for i in range(count) if kinds[i] == kind) for kind in (0, 1)]
    classes = [members for members in classes if members]
    columns = []
    for _ in classes:
        mine = []
        for home in homes:
            for split in range(1 if home == RAM else 3):
                size = source.uniform(0.5, 2.0) * GIB
                away = size * split / 3
                held = {RAM: size} if home == RAM else {home: size - away, RAM: away}
                slow = 3.0 if home == RAM else 1.0 + split
                mine.append(Column(LayerPlaces(home, home, ()), slow * source.uniform(0.5, 1.5), held))
        columns.append(mine)
    room = {home: source.uniform(0.2, 0.9) * count * GIB for home in homes}
    last = source.choice([None, homes[-1]])
    return Placement(classes, columns, homes, room, 0.25, source.uniform(0.1, 3.0) / GIB if spill else None, last)


def assignments(data: Placement) -> list[list[Column]]:
    """Every assignment of patterns to layers in which homes never go back."""
    kind = {index: c for c, members in enumerate(data.classes) for index in members}
    found = []
    for chosen in product(*(data.columns[kind[index]] for index in sorted(kind))):
        order = [data.homes.index(column.places.mixer) for column in chosen]
        if order == sorted(order) and data.last in (None, chosen[-1].places.mixer):
            found.append(list(chosen))
    return found


def brute_force(data: Placement) -> float | None:
    best = None
    for chosen in assignments(data):
        used = {tier: sum(column.bytes.get(tier, 0.0) for column in chosen) for tier in data.room}
        excess = {tier: max(0.0, used[tier] - room) for tier, room in data.room.items()}
        allowed = {RAM} if data.spill_cost is not None else set()
        if any(over > 1e-6 for tier, over in excess.items() if tier not in allowed):
            continue
        cost = data.constant + sum(column.cost for column in chosen) + (data.spill_cost or 0.0) * excess.get(RAM, 0.0)
        best = cost if best is None else min(best, cost)
    return best


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("spill", [False, True])
def test_the_optimum_equals_enumeration(seed: int, spill: bool) -> None:
    data = random_placement(seed, spill=spill)
    expected, solved = brute_force(data), solve(data)
    if expected is None:
        assert solved is None
        return
    assert solved is not None
    assert expected * (1 - 1e-9) <= solved.cost <= expected * (1 + GAP) + 1e-9
    assert solved.solver.bound <= expected * (1 + 1e-9)
    relaxed = lower_bound(data)
    assert relaxed is not None
    assert relaxed <= expected * (1 + 1e-9)
    order = [data.homes.index(places.mixer) for places in solved.layers]
    assert order == sorted(order)
    assert data.last in (None, solved.layers[-1].mixer)


def scipy_optimum(data: Placement, *, relaxed: bool = False) -> float | None:
    """The same programme with a variable per layer and pattern and a rank of homes, built as matrices."""
    kind = {index: c for c, members in enumerate(data.classes) for index in members}
    pairs = [(i, column) for i in sorted(kind) for column in data.columns[kind[i]]]
    width, layers = len(pairs) + 1, len(kind)
    cost = np.array([column.cost for _, column in pairs] + [(data.spill_cost or 0.0) * GIB])
    rows, low, high = [], [], []

    def add(row: NDArray[np.float64], least: float, most: float) -> None:
        rows.append(row)
        low.append(least)
        high.append(most)

    for i in range(layers):
        add(np.array([float(j == i) for j, _ in pairs] + [0.0]), 1, 1)
    for tier, room in data.room.items():
        used = [column.bytes.get(tier, 0.0) / GIB for _, column in pairs]
        add(np.array([*used, -float(tier == RAM)]), -np.inf, room / GIB)
    for i in range(layers - 1):
        row = np.zeros(width)
        for k, (j, column) in enumerate(pairs):
            rank = data.homes.index(column.places.mixer)
            row[k] = rank * ((j == i + 1) - (j == i))
        add(row, 0, np.inf)
    if data.last is not None:
        ends = [float(j == layers - 1 and column.places.mixer == data.last) for j, column in pairs]
        add(np.array([*ends, 0.0]), 1, 1)
    upper = np.array([1.0] * len(pairs) + [np.inf if data.spill_cost is not None else 0.0])
    integral = np.array([0 if relaxed else 1] * len(pairs) + [0])
    result = milp(
        cost, integrality=integral, bounds=Bounds(0, upper), constraints=LinearConstraint(np.array(rows), low, high)
    )
    return None if result.x is None else float(result.fun) + data.constant


@pytest.mark.parametrize("seed", range(100, 125))
def test_the_optimum_equals_another_formulation_of_twelve_layers(seed: int) -> None:
    data = random_placement(seed, layers=12, spill=seed % 2 == 0)
    expected, solved = scipy_optimum(data), solve(data)
    if expected is None:
        assert solved is None
        return
    assert solved is not None
    assert expected * (1 - 1e-4) - 1e-9 <= solved.cost <= expected * (1 + GAP) + 1e-9


@pytest.mark.filterwarnings("ignore:PULP_CBC_CMD:DeprecationWarning")
@pytest.mark.parametrize("seed", range(6))
def test_cbc_finds_the_same_optimum(seed: int) -> None:
    data = random_placement(seed)
    ours, theirs = solve(data), solve(data, solver="cbc")
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert theirs.cost == pytest.approx(ours.cost, rel=2 * GAP)


@pytest.mark.parametrize("seed", range(30))
def test_shadow_prices_are_the_slope_of_the_relaxed_optimum(seed: int) -> None:
    data = random_placement(seed, layers=6)
    base = lower_bound(data)
    if base is None:
        assert shadow_prices(data) == {}
        return
    prices, step = shadow_prices(data), 1e-4 * GIB
    for tier, room in data.room.items():
        more = lower_bound(replace(data, room={**data.room, tier: room + step}))
        less = lower_bound(replace(data, room={**data.room, tier: room - step}))
        assert more is not None
        right = (base - more) / step
        left = (less - base) / step if less is not None else float("inf")
        slack = 1e-6 / GIB
        assert right - slack <= prices[tier] <= left + slack, tier


def test_dominated_columns_never_hold_the_optimum() -> None:
    for seed in range(30):
        data = random_placement(seed)
        fewer = replace(data, columns=[undominated(columns) for columns in data.columns])
        assert brute_force(fewer) == brute_force(data)


def test_the_same_programme_gives_the_same_answer() -> None:
    data = random_placement(3, layers=12)
    first, second = solve(data), solve(data)
    assert first is not None
    assert second is not None
    assert (first.layers, first.cost, first.solver.bound) == (second.layers, second.cost, second.solver.bound)
