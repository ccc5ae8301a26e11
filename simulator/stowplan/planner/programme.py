"""The placement programme of layer-synchronous systems, one function per constraint family with its inequality.

HiGHS takes it as arrays (`stowplan.planner.arrays`); through PuLP it is printed, and solved by CBC.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import pulp

from stowplan.plan import Solver
from stowplan.planner import arrays
from stowplan.planner.arrays import Optimum
from stowplan.planner.counts import GAP, TIME_LIMIT_S, Placement, Solved, homes_in_use, last_class, spread
from stowplan.systems.base import RAM

_GIB = 2.0**30


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
    found = arrays.optimum(data) if solver == "highs" else _by_cbc(data)
    if found is None:
        return None
    report = Solver(
        name=solver,
        status="optimal" if found.cost - found.bound <= GAP * max(found.cost, 1e-12) * 1.01 else "feasible",
        objective=found.cost + data.constant,
        bound=found.bound + data.constant,
        gap=max(0.0, (found.cost - found.bound) / found.cost) if found.cost > 0 else 0.0,
        seconds=time.perf_counter() - started,
        variables=found.variables,
        constraints=found.constraints,
    )
    return Solved(spread(data, found.counts), found.cost + data.constant, report)


def _by_cbc(data: Placement) -> Optimum | None:
    """CBC's optimum; it reports no bound through PuLP, but stops at the gap."""
    programme = build(data)
    with warnings.catch_warnings():  # PuLP 4 will call its CBC by another name
        warnings.simplefilter("ignore", DeprecationWarning)
        cbc = pulp.PULP_CBC_CMD(msg=False, gapRel=GAP, timeLimit=TIME_LIMIT_S)
    if pulp.LpStatus[programme.problem.solve(cbc)] != "Optimal":
        return None
    cost = float(pulp.value(programme.problem.objective) or 0.0)
    counts = [[round(float(v.value() or 0.0)) for v in variables] for variables in programme.counts]
    variables, constraints = programme.problem.numVariables(), programme.problem.numConstraints()
    return Optimum(counts, cost, cost * (1.0 - GAP), variables, constraints)


def print_programme(data: Placement, path: str) -> None:
    """Write the programme in CPLEX's LP format."""
    build(data).problem.writeLP(path)
