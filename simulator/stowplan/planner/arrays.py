"""The placement programme as arrays for HiGHS, in whole layers and relaxed.

The inequalities are those of `stowplan.planner.programme`. A search bounds several programmes before it solves one, and
a modelling layer takes longer to build one than HiGHS to solve it. The relaxed optimum bounds every placement, and its
duals are the shadow prices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

import highspy

from stowplan.planner.counts import GAP, TIME_LIMIT_S, Placement, homes_in_use, last_class
from stowplan.systems.base import RAM

_GIB = 2.0**30
_OPTIONS = {
    "output_flag": False,
    "threads": 1,
    "random_seed": 0,
    "mip_rel_gap": GAP,
    "time_limit": TIME_LIMIT_S,
    "mip_heuristic_run_feasibility_jump": False,  # half of the time, and the same optima (16 programmes, 70B and 671B)
}


@dataclass(frozen=True, slots=True)
class Relaxed:
    """The relaxed optimum.

    Attributes:
        cost: seconds.
        worth: seconds that one more byte of each tier saves.
        counts: fractions of layers of every class and pattern.
        spilled: bytes beyond host memory.
    """

    cost: float
    worth: Mapping[str, float]
    counts: Sequence[Sequence[float]]
    spilled: float


@dataclass(frozen=True, slots=True)
class Optimum:
    """Layers of every class and pattern, their cost in seconds, the proven bound, and the programme's size."""

    counts: Sequence[Sequence[int]]
    cost: float
    bound: float
    variables: int
    constraints: int


@dataclass(slots=True)
class _Rows:
    """Constraints under construction, row after row."""

    starts: list[int] = field(default_factory=lambda: [0])
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)

    def add(self, entries: Iterable[tuple[int, float]], lower: float, upper: float) -> None:
        """One constraint: ``lower <= sum of value times variable <= upper``."""
        for column, value in entries:
            self.columns.append(column)
            self.values.append(value)
        self.starts.append(len(self.columns))
        self.lower.append(lower)
        self.upper.append(upper)


@dataclass(frozen=True, slots=True)
class _Arrays:
    """A programme: costs and upper limits of its variables, and its rows."""

    costs: list[float]
    most: list[float]
    rows: _Rows
    first_memory_row: int


def optimum(data: Placement) -> Optimum | None:
    """The cheapest whole layers within the gap, or None when nothing fits."""
    programme = _arrays(data)
    solver = _solved(programme, integral=True)
    if solver is None:
        return None
    info, values = solver.getInfo(), solver.getSolution().col_value
    cost = float(info.objective_function_value)
    counts = [[round(float(values[k])) for k in mine] for mine in _numbered(data)]
    return Optimum(counts, cost, proven_bound(info, cost), len(programme.costs), len(programme.rows.lower))


def proven_bound(info: Any, cost: float) -> float:
    """The proven bound. HiGHS leaves its dual bound stale when presolve ends the search; its gap is right then too."""
    gap = float(info.mip_gap)
    by_gap = cost - gap * abs(cost) if isfinite(gap) else float(info.mip_dual_bound)
    return min(max(by_gap, float(info.mip_dual_bound)), cost)


def relaxed(data: Placement) -> Relaxed | None:
    """The relaxed optimum, or None when not even fractions of layers fit."""
    programme = _arrays(data)
    solver = _solved(programme, integral=False)
    if solver is None:
        return None
    solution = solver.getSolution()
    first = programme.first_memory_row
    worth = {tier: max(0.0, -float(solution.row_dual[first + k])) / _GIB for k, tier in enumerate(data.room)}
    counts = [[float(solution.col_value[k]) for k in mine] for mine in _numbered(data)]
    spilled = 0.0 if data.spill_cost is None else float(solution.col_value[sum(map(len, counts))]) * _GIB
    return Relaxed(float(solver.getInfo().objective_function_value) + data.constant, worth, counts, spilled)


def lower_bound(data: Placement) -> float | None:
    """Cost that no placement undercuts; None when not even fractions of layers fit."""
    found = relaxed(data)
    return None if found is None else found.cost


def shadow_prices(data: Placement) -> dict[str, float]:
    """Seconds that one more byte of each tier saves; empty when nothing fits."""
    found = relaxed(data)
    return {} if found is None else dict(found.worth)


def _arrays(data: Placement) -> _Arrays:
    costs = [column.cost for columns in data.columns for column in columns]
    most = [float(len(data.classes[c])) for c, columns in enumerate(data.columns) for _ in columns]
    spill = None if data.spill_cost is None else len(costs)
    if data.spill_cost is not None:
        costs.append(data.spill_cost * _GIB)
        most.append(inf)
    rows = _Rows()
    _place_every_layer(data, rows)
    first_memory_row = len(rows.lower)
    _hold_memory(data, rows, spill)
    _keep_homes_in_order(data, rows, costs, most)
    _give_the_last_layer_its_home(data, rows)
    return _Arrays(costs, most, rows, first_memory_row)


def _numbered(data: Placement) -> list[range]:
    """Positions of every class's variables."""
    ends, found = 0, []
    for columns in data.columns:
        found.append(range(ends, ends + len(columns)))
        ends += len(columns)
    return found


def _place_every_layer(data: Placement, rows: _Rows) -> None:
    for members, mine in zip(data.classes, _numbered(data), strict=True):
        rows.add(((position, 1.0) for position in mine), len(members), len(members))


def _hold_memory(data: Placement, rows: _Rows, spill: int | None) -> None:
    every = [column for columns in data.columns for column in columns]
    for tier, room in data.room.items():
        entries = [(k, column.bytes[tier] / _GIB) for k, column in enumerate(every) if column.bytes.get(tier)]
        if tier == RAM and spill is not None:
            entries.append((spill, -1.0))
        rows.add(entries, -inf, room / _GIB)


def _keep_homes_in_order(data: Placement, rows: _Rows, costs: list[float], most: list[float]) -> None:
    order = homes_in_use(data)
    if len(data.classes) == 1 or len(order) == 1:
        return
    layers = sum(len(members) for members in data.classes)
    kind = {index: c for c, members in enumerate(data.classes) for index in members}
    before = [[0.0] * (layers + 1) for _ in data.classes]
    for k in range(layers):
        for c, counts in enumerate(before):
            counts[k + 1] = counts[k] + (1.0 if kind[k] == c else 0.0)
    for cut in range(len(order) - 1):
        below = set(order[: cut + 1])
        first = len(costs)
        costs += [0.0] * (layers + 1)
        most += [1.0] * (layers + 1)
        rows.add(((first + k, 1.0) for k in range(layers + 1)), 1.0, 1.0)
        for columns, mine, counts in zip(data.columns, _numbered(data), before, strict=True):
            here = [(k, 1.0) for k, column in zip(mine, columns, strict=True) if column.places.mixer in below]
            rows.add([*here, *((first + k, -n) for k, n in enumerate(counts) if n)], 0.0, 0.0)


def _give_the_last_layer_its_home(data: Placement, rows: _Rows) -> None:
    if data.last is None:
        return
    c = last_class(data)
    mine = zip(_numbered(data)[c], data.columns[c], strict=True)
    rows.add([(k, 1.0) for k, column in mine if column.places.mixer == data.last], 1.0, inf)


def _solved(programme: _Arrays, *, integral: bool) -> highspy.Highs | None:
    costs, rows = programme.costs, programme.rows
    given = highspy.HighsLp()
    given.num_col_, given.num_row_ = len(costs), len(rows.lower)
    given.col_cost_, given.col_lower_, given.col_upper_ = costs, [0.0] * len(costs), programme.most
    given.row_lower_, given.row_upper_ = rows.lower, rows.upper
    matrix = given.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.start_, matrix.index_, matrix.value_ = rows.starts, rows.columns, rows.values
    if integral:  # all but the spilled bytes, the only variable without an upper limit
        whole, any_ = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
        given.integrality_ = [whole if isfinite(most) else any_ for most in programme.most]
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    for name, value in _OPTIONS.items():
        solver.setOptionValue(name, value)
    solver.passModel(given)
    solver.run()
    optimal = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return solver if optimal else None
