"""The exact programme for few requests: every feasible batch is a column, and the cheapest columns cover all requests.

x[S] says whether batch S is formed; S ranges over all sets of requests that keep the limits, at most 4095.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pulp

from stowplan.errors import SimulationError
from stowplan.planner.batching_costs import Limits, Requests, StaticCost, batch_time
from stowplan.planner.batching_methods import Batches

LARGEST = 12
"""Requests that are solved exactly."""

_GAP = 1e-9
_SCALE = 1e3  # of the objective: the solver also stops at an absolute gap, which must not depend on the machine's speed
_TIME_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Column:
    """A batch and its seconds."""

    members: tuple[int, ...]
    seconds: float


def feasible_batches(requests: Requests, cost: StaticCost, limits: Limits) -> list[Column]:
    """Every batch that keeps the limits, in the order of its bit pattern."""
    found: list[Column] = []
    for bits in range(1, 1 << len(requests)):
        members = tuple(i for i in range(len(requests)) if bits >> i & 1)
        chosen = np.asarray(members, np.int64)
        if len(members) <= limits.max_batch and requests.reserved[chosen].sum() <= limits.cache_tokens:
            seconds = batch_time(cost, requests.prompt[chosen], requests.output[chosen]).seconds
            found.append(Column(members, seconds))
    return found


def solve_exactly(requests: Requests, cost: StaticCost, limits: Limits) -> tuple[Batches, float]:
    """The cheapest batches and the proven bound in seconds.

    Raises:
        SimulationError: the solver ends without a solution (each request alone is one, so it ran out of time).
    """
    columns = feasible_batches(requests, cost, limits)
    unit = max(column.seconds for column in columns) / _SCALE or 1.0
    problem = pulp.LpProblem("batches", pulp.LpMinimize)
    formed = [problem.add_variable(f"x_{number}", 0, 1, "Integer") for number in range(len(columns))]
    _objective(problem, formed, columns, unit)
    _every_request_is_served_once(problem, formed, columns, len(requests))
    status = problem.solve(pulp.HiGHS(msg=False, gapRel=_GAP, timeLimit=_TIME_LIMIT_S, threads=1, random_seed=0))
    if pulp.LpStatus[status] != "Optimal":
        raise SimulationError(f"batches of {len(requests)} requests: the solver ended with {pulp.LpStatus[status]}")
    batches = [
        list(column.members) for column, x in zip(columns, formed, strict=True) if round(float(x.value() or 0.0))
    ]
    info = (
        problem.solverModel.getInfo()
    )  # its own dual bound may be stale when presolve ends the search; its gap is not
    return batches, float(info.objective_function_value) * (1.0 - float(info.mip_gap)) * unit


def _objective(
    problem: pulp.LpProblem, formed: Sequence[pulp.LpVariable], columns: Sequence[Column], unit: float
) -> None:
    """Minimise ``sum over S of seconds[S] x[S]``, in units of the solver's own scale."""
    problem += pulp.LpAffineExpression([(x, column.seconds / unit) for x, column in zip(formed, columns, strict=True)])


def _every_request_is_served_once(
    problem: pulp.LpProblem, formed: Sequence[pulp.LpVariable], columns: Sequence[Column], requests: int
) -> None:
    """For every request i: ``sum over S that hold i of x[S] = 1``."""
    for request in range(requests):
        mine = [x for x, column in zip(formed, columns, strict=True) if request in column.members]
        problem += pulp.lpSum(mine) == 1, f"served_{request}"
