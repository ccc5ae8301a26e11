"""The placement programme of layer-synchronous systems: integer counts per class of layers and pattern.

Layers that no cost can tell apart form a class c; a pattern p is one way to place such a layer. n[c,p] counts the
layers of class c that are placed by pattern p. Costs and bytes are sums over layers, so both are linear in n. One
function per constraint family; each docstring holds its inequality.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import pulp

from stowplan.plan import Solver
from stowplan.systems.base import RAM
from stowplan.systems.serial import LayerPlaces

GAP = 1e-3
"""Relative gap at which a solution counts as optimal."""

_TIME_LIMIT_S = 30.0
_GIB = 2.0**30


@dataclass(frozen=True, slots=True)
class Column:
    """One pattern of one class: its cost in seconds and its bytes by tier."""

    places: LayerPlaces
    cost: float
    bytes: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Placement:
    """Data of one programme.

    Attributes:
        classes: layer indices of each class.
        columns: patterns of each class.
        homes: places that a mixer may live in, in the order that layers take them (host memory first).
        room: bytes of each tier that layers may fill.
        constant: seconds that no placement avoids.
        spill_cost: seconds per byte of host memory beyond its room (pages read from disk); None where it may not.
        last: home that the last layer must have, the last of `homes`; None where it is free.
    """

    classes: Sequence[Sequence[int]]
    columns: Sequence[Sequence[Column]]
    homes: Sequence[str]
    room: Mapping[str, float]
    constant: float = 0.0
    spill_cost: float | None = None
    last: str | None = None


@dataclass(frozen=True, slots=True)
class Solved:
    """An optimal placement: places of every layer, seconds, the proof, and what a byte of each tier is worth."""

    layers: list[LayerPlaces]
    cost: float
    solver: Solver


@dataclass(slots=True)
class _Programme:
    """A programme under construction and its variables."""

    data: Placement
    problem: pulp.LpProblem
    counts: list[list[pulp.LpVariable]]
    spill: pulp.LpVariable | None


def build(data: Placement) -> _Programme:
    """The programme as a PuLP problem."""
    problem = pulp.LpProblem("placement", pulp.LpMinimize)
    counts = [
        [problem.add_variable(f"n_{c}_{p}", 0, len(data.classes[c]), "Integer") for p in range(len(columns))]
        for c, columns in enumerate(data.columns)
    ]
    spill = None if data.spill_cost is None else problem.add_variable("spill_gib", 0)
    programme = _Programme(data, problem, counts, spill)
    _objective(programme)
    _every_layer_is_placed(programme)
    _memory_holds(programme)
    _homes_are_consecutive(programme)
    _last_layer_is_home(programme)
    return programme


def _objective(programme: _Programme) -> None:
    """Minimise ``sum over c, p of cost[c,p] n[c,p] + spill_cost spill`` in seconds."""
    data = programme.data
    cost = pulp.LpAffineExpression(
        [
            (variable, column.cost)
            for columns, variables in zip(data.columns, programme.counts, strict=True)
            for column, variable in zip(columns, variables, strict=True)
        ]
    )
    if programme.spill is not None and data.spill_cost is not None:
        cost += data.spill_cost * _GIB * programme.spill
    programme.problem += cost


def _every_layer_is_placed(programme: _Programme) -> None:
    """For every class c: ``sum over p of n[c,p] = |c|``."""
    for c, (members, variables) in enumerate(zip(programme.data.classes, programme.counts, strict=True)):
        programme.problem += pulp.lpSum(variables) == len(members), f"placed_{c}"


def _memory_holds(programme: _Programme) -> None:
    """For every tier t: ``sum over c, p of bytes[c,p,t] n[c,p] - spill[t] <= room[t]``, in GiB."""
    data = programme.data
    for tier, room in data.room.items():
        used = pulp.LpAffineExpression(
            [
                (variable, column.bytes[tier] / _GIB)
                for columns, variables in zip(data.columns, programme.counts, strict=True)
                for column, variable in zip(columns, variables, strict=True)
                if column.bytes.get(tier)
            ]
        )
        if tier == RAM and programme.spill is not None:
            used -= programme.spill
        programme.problem += used <= room / _GIB, f"memory_{tier}"


def _homes_are_consecutive(programme: _Programme) -> None:
    """Layers take the homes in order: for every cut h and class c, with one-of binaries y[h,k] over cut positions k,

    ``sum over p at home <= h of n[c,p] = sum over k of y[h,k] |{i in c : i < k}|`` and ``sum over k of y[h,k] = 1``.

    With one class the counts alone say where the cuts are.
    """
    data = programme.data
    order = homes_in_use(data)
    if len(data.classes) == 1 or len(order) == 1:
        return
    layers = sum(len(members) for members in data.classes)
    for cut in range(len(order) - 1):
        below = set(order[: cut + 1])
        choose = [programme.problem.add_variable(f"y_{cut}_{k}", 0, 1, "Integer") for k in range(layers + 1)]
        programme.problem += pulp.lpSum(choose) == 1, f"one_cut_{cut}"
        for c, (members, columns) in enumerate(zip(data.classes, data.columns, strict=True)):
            mine = [v for column, v in zip(columns, programme.counts[c], strict=True) if column.places.mixer in below]
            before = pulp.LpAffineExpression(
                [(choose[k], float(sum(1 for i in members if i < k))) for k in range(layers + 1)]
            )
            programme.problem += pulp.lpSum(mine) - before == 0, f"cut_{cut}_{c}"


def _last_layer_is_home(programme: _Programme) -> None:
    """For the class c of the last layer and the last home h: ``sum over p at h of n[c,p] >= 1``; homes are in order."""
    data = programme.data
    if data.last is None:
        return
    c = last_class(data)
    there = [
        v for column, v in zip(data.columns[c], programme.counts[c], strict=True) if column.places.mixer == data.last
    ]
    programme.problem += pulp.lpSum(there) >= 1, "last_layer"


def solve(data: Placement, *, solver: str = "highs") -> Solved | None:
    """The cheapest placement, or None when nothing fits.

    Args:
        data: classes, columns, room.
        solver: ``highs`` (in process) or ``cbc``.
    """
    started = time.perf_counter()
    programme = build(data)
    status = programme.problem.solve(_solver(solver))
    if pulp.LpStatus[status] != "Optimal":
        return None
    objective = float(pulp.value(programme.problem.objective) or 0.0)
    bound = proven_bound(programme.problem, objective, solver)
    report = Solver(
        name=solver,
        status="optimal" if objective - bound <= GAP * max(objective, 1e-12) * 1.01 else "feasible",
        objective=objective + data.constant,
        bound=bound + data.constant,
        gap=max(0.0, (objective - bound) / objective) if objective > 0 else 0.0,
        seconds=time.perf_counter() - started,
        variables=programme.problem.numVariables(),
        constraints=programme.problem.numConstraints(),
    )
    counts = [[round(float(v.value() or 0.0)) for v in variables] for variables in programme.counts]
    return Solved(_spread(data, counts), objective + data.constant, report)


def print_programme(data: Placement, path: str) -> None:
    """Write the programme in CPLEX's LP format."""
    build(data).problem.writeLP(path)


def homes_in_use(data: Placement) -> list[str]:
    """Homes that some pattern has, in the order that layers take them."""
    used = {column.places.mixer for columns in data.columns for column in columns}
    return [home for home in data.homes if home in used]


def last_class(data: Placement) -> int:
    """The class of the last layer."""
    return max(range(len(data.classes)), key=lambda each: max(data.classes[each]))


def _solver(name: str) -> pulp.LpSolver:
    if name == "cbc":
        with warnings.catch_warnings():  # PuLP 4 will call its CBC by another name
            warnings.simplefilter("ignore", DeprecationWarning)
            return pulp.PULP_CBC_CMD(msg=False, gapRel=GAP, timeLimit=_TIME_LIMIT_S)
    return pulp.HiGHS(msg=False, gapRel=GAP, timeLimit=_TIME_LIMIT_S, threads=1, random_seed=0)


def proven_bound(problem: pulp.LpProblem, objective: float, solver: str) -> float:
    """The proven bound. HiGHS leaves its dual bound stale when presolve ends the search; its gap is right then too."""
    if solver == "cbc":  # CBC reports no bound through PuLP; it stops at the gap
        return objective * (1.0 - GAP)
    info = problem.solverModel.getInfo()
    gap = float(info.mip_gap)
    by_gap = objective - gap * abs(objective) if isfinite(gap) else float(info.mip_dual_bound)
    return min(max(by_gap, float(info.mip_dual_bound)), objective)


def _spread(data: Placement, counts: Sequence[Sequence[int]]) -> list[LayerPlaces]:
    """Concrete layers: homes in order along the model; inside a home, the patterns with most in host memory first."""
    layers: list[LayerPlaces | None] = [None] * sum(len(members) for members in data.classes)
    for members, columns, numbers in zip(data.classes, data.columns, counts, strict=True):
        order = sorted(
            (p for p in range(len(columns)) if numbers[p]),
            key=lambda p: (
                data.homes.index(columns[p].places.mixer),
                -columns[p].bytes.get(RAM, 0.0),
                columns[p].places.ffn,
            ),
        )
        sequence = [columns[p].places for p in order for _ in range(numbers[p])]
        for index, places in zip(sorted(members), sequence, strict=True):
            layers[index] = places
    return [places for places in layers if places is not None]


def undominated(columns: Sequence[Column]) -> list[Column]:
    """Columns that no other column with the same home beats in cost and in every tier's bytes."""
    kept: list[Column] = []
    for column in sorted(columns, key=lambda c: (c.cost, sum(c.bytes.values()))):
        beaten = any(
            other.places.mixer == column.places.mixer
            and other.cost <= column.cost
            and all(other.bytes.get(tier, 0.0) <= column.bytes.get(tier, 0.0) for tier in {*other.bytes, *column.bytes})
            for other in kept
        )
        if not beaten:
            kept.append(column)
    return kept
