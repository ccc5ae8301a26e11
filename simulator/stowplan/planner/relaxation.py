"""The relaxed placement programme: its optimum bounds every placement, its duals are the shadow prices.

The inequalities are those of `stowplan.planner.programme` with fractional counts, handed to HiGHS as arrays: a search
bounds several programmes before it solves one, and a modelling layer takes longer to build one than HiGHS to solve it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

import highspy

from stowplan.planner.programme import Placement, homes_in_use, last_class
from stowplan.systems.base import RAM

_GIB = 2.0**30


@dataclass(frozen=True, slots=True)
class Relaxed:
    """The relaxed optimum: seconds, and seconds that one more byte of each tier saves."""

    cost: float
    worth: Mapping[str, float]


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


def relaxed(data: Placement) -> Relaxed | None:
    """The relaxed optimum, or None when not even fractions of layers fit."""
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
    solver = _solved(costs, most, rows)
    if solver is None:
        return None
    duals = solver.getSolution().row_dual
    worth = {tier: max(0.0, -float(duals[first_memory_row + k])) / _GIB for k, tier in enumerate(data.room)}
    return Relaxed(float(solver.getInfo().objective_function_value) + data.constant, worth)


def lower_bound(data: Placement) -> float | None:
    """Cost that no placement undercuts; None when not even fractions of layers fit."""
    found = relaxed(data)
    return None if found is None else found.cost


def shadow_prices(data: Placement) -> dict[str, float]:
    """Seconds that one more byte of each tier saves; empty when nothing fits."""
    found = relaxed(data)
    return {} if found is None else dict(found.worth)


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


def _solved(costs: list[float], most: list[float], rows: _Rows) -> highspy.Highs | None:
    programme = highspy.HighsLp()
    programme.num_col_, programme.num_row_ = len(costs), len(rows.lower)
    programme.col_cost_, programme.col_lower_, programme.col_upper_ = costs, [0.0] * len(costs), most
    programme.row_lower_, programme.row_upper_ = rows.lower, rows.upper
    matrix = programme.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.start_, matrix.index_, matrix.value_ = rows.starts, rows.columns, rows.values
    solver = highspy.Highs()
    for name, value in (("output_flag", False), ("threads", 1), ("random_seed", 0)):
        solver.setOptionValue(name, value)
    solver.passModel(programme)
    solver.run()
    optimal = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return solver if optimal else None
