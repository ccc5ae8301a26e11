"""The programme of one FlexGen block shape: which rounding of the weights, how much cache where, hidden states where.

The seconds that an iteration needs of each *lane* (a chain of tasks, or one resource) are affine in the placement, and
an iteration lasts as long as its busiest lane. Variables: x[r], one of the distinct roundings r of the weights
(binary); k[p], per cent of the cache on tier p (integer); z[a], tier of the hidden states (binary); T[i], seconds of
iteration i. One function per constraint family; each docstring holds its inequality.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pulp

from stowplan.errors import NotExpressible
from stowplan.plan import Solver
from stowplan.planner.arrays import proven_bound
from stowplan.systems.base import RAM
from stowplan.systems.flexgen_policy import GPU, FlexgenSettings

GAP = 1e-3
_TIME_LIMIT_S = 30.0
_GIB = 2.0**30

Lanes = Mapping[str, float]
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Iteration:
    """One kind of iteration: its lanes as an affine function of the placement.

    Attributes:
        base: seconds by lane with weights, cache and hidden states on the GPU.
        weights: what each rounding of the weights adds; cache, hidden: what each tier adds.
    """

    base: Lanes
    weights: Sequence[Lanes]
    cache: Mapping[str, Lanes]
    hidden: Mapping[str, Lanes]

    @cached_property
    def lanes(self) -> list[str]:
        """Every lane that is used under some placement."""
        tables = [self.base, *self.weights, *self.cache.values(), *self.hidden.values()]
        return sorted({name for table in tables for name in table})

    @cached_property
    def least(self) -> tuple[Matrix, Matrix]:
        """Seconds of each lane by rounding with the cheapest hidden tier (lanes x roundings), and cache's."""
        loading = [[table.get(lane, 0.0) for table in self.weights] for lane in self.lanes]
        always = [[self.base.get(lane, 0.0) + _least(self.hidden, lane)] for lane in self.lanes]
        fixed = np.array(loading) + np.array(always)
        return fixed, np.array([[table.get(lane, 0.0) for table in self.cache.values()] for lane in self.lanes])


@dataclass(frozen=True)
class Block:
    """Data of the programme of one block shape.

    Attributes:
        settings: shape and switches; its percentages are what the programme decides.
        splits: percentages (GPU, host) of the distinct roundings of the weights.
        iterations: how often the whole request runs each, and its lanes.
        memory: bytes by tier: of each rounding, each cache tier, each hidden tier, and fixed ones.
        room: bytes of each tier.
        whole_cache: whether the cache must be on one tier.
    """

    settings: FlexgenSettings
    splits: Sequence[tuple[int, int]]
    iterations: Sequence[tuple[float, Iteration]]
    weight_memory: Sequence[Mapping[str, float]]
    cache_memory: Mapping[str, Mapping[str, float]]
    hidden_memory: Mapping[str, Mapping[str, float]]
    fixed_memory: Mapping[str, float]
    room: Mapping[str, float]
    whole_cache: bool

    def seconds(self, split: int, cache: Mapping[str, float], hidden: str) -> float:
        """Closed form of a placement's time: every iteration as long as its busiest lane."""
        total = 0.0
        for count, each in self.iterations:
            total += count * max(
                each.base.get(lane, 0.0)
                + each.weights[split].get(lane, 0.0)
                + sum(share * each.cache[tier].get(lane, 0.0) for tier, share in cache.items())
                + each.hidden[hidden].get(lane, 0.0)
                for lane in each.lanes
            )
        return total

    def fits(self, split: int, cache: Mapping[str, float], hidden: str) -> bool:
        """Whether no tier holds more than it has room for."""
        return all(
            self.fixed_memory.get(tier, 0.0)
            + self.weight_memory[split].get(tier, 0.0)
            + sum(share * self.cache_memory[home].get(tier, 0.0) for home, share in cache.items())
            + self.hidden_memory[hidden].get(tier, 0.0)
            <= room * (1 + 1e-9)
            for tier, room in self.room.items()
        )

    @cached_property
    def floor(self) -> float:
        """Seconds below which no placement that fits can go; infinite where none fits.

        For each rounding of the weights, each tier has room for some share of the cache at most; every lane on its own
        takes the tiers in the order that suits it.
        """
        tiers = list(self.room)
        weights = np.array([[held.get(tier, 0.0) for tier in tiers] for held in self.weight_memory])
        taken = np.array([self.fixed_memory.get(tier, 0.0) + _least(self.hidden_memory, tier) for tier in tiers])
        room = np.array([self.room[tier] for tier in tiers]) * (1 + 1e-9) - taken - weights
        cache = np.array([max(1.0, self.cache_memory[tier].get(tier, 0.0)) for tier in tiers])
        shares = np.clip(room / cache, 0.0, 1.0)
        seconds = np.zeros(len(self.splits))
        for count, each in self.iterations:
            fixed, costs = each.least
            order = np.argsort(costs, axis=1, kind="stable")
            busy, left = fixed.copy(), np.ones_like(fixed)
            for nth in order.T:
                here = np.minimum(left, shares.T[nth])
                busy += np.take_along_axis(costs, nth[:, None], axis=1) * here
                left -= here
            seconds += count * busy.max(axis=0)
        seconds[(room.min(axis=1) < 0.0) | (shares.sum(axis=1) < 1.0 - 1e-9)] = np.inf
        return float(seconds.min())


def _least(tables: Mapping[str, Mapping[str, float]], name: str) -> float:
    return min(table.get(name, 0.0) for table in tables.values())


@dataclass(frozen=True, slots=True)
class _Programme:
    block: Block
    problem: pulp.LpProblem
    x: list[pulp.LpVariable]
    k: dict[str, pulp.LpVariable]
    z: dict[str, pulp.LpVariable]
    t: list[pulp.LpVariable]


def solve(block: Block) -> tuple[FlexgenSettings, Solver] | None:
    """The best percentages for one block shape and how they were found; None where none fits.

    Raises:
        NotExpressible: the solver stopped at its time limit without any placement.
    """
    started = time.perf_counter()
    problem = pulp.LpProblem("flexgen", pulp.LpMinimize)
    most = 1 if block.whole_cache else 100
    programme = _Programme(
        block,
        problem,
        [problem.add_variable(f"x_{r}", 0, 1, cat="Integer") for r in range(len(block.splits))],
        {tier: problem.add_variable(f"k_{tier}", 0, most, cat="Integer") for tier in block.cache_memory},
        {tier: problem.add_variable(f"z_{tier}", 0, 1, cat="Integer") for tier in block.hidden_memory},
        [problem.add_variable(f"T_{i}", 0) for i in range(len(block.iterations))],
    )
    _least_time(programme)
    _one_of_each(programme)
    _iterations_last_as_long_as_their_lanes(programme)
    _tiers_hold(programme)
    _cpu_attention_has_a_cache(programme)
    problem.solve(pulp.HiGHS(msg=False, gapRel=GAP, timeLimit=_TIME_LIMIT_S, threads=1, random_seed=0))
    status = pulp.LpStatus[problem.status]
    if status == "Infeasible":
        return None
    objective = pulp.value(problem.objective)
    if objective is None:
        raise NotExpressible(f"the solver found no FlexGen policy within {_TIME_LIMIT_S:.0f} s; try fewer block shapes")
    bound = proven_bound(problem.solverModel.getInfo(), objective)
    solver = Solver(
        name="highs",
        status=status,
        objective=objective,
        bound=bound,
        gap=(objective - bound) / objective if objective else 0.0,
        seconds=time.perf_counter() - started,
        variables=problem.numVariables(),
        constraints=problem.numConstraints(),
    )
    return _percentages(programme), solver


def _percentages(programme: _Programme) -> FlexgenSettings:
    block = programme.block
    split = max(range(len(block.splits)), key=lambda r: programme.x[r].value() or 0.0)
    scale = 100 if block.whole_cache else 1
    cache = {tier: round(variable.value() or 0.0) * scale for tier, variable in programme.k.items()}
    hidden = max(programme.z, key=lambda tier: programme.z[tier].value() or 0.0)
    percent = (*block.splits[split], cache[GPU], cache[RAM], 100 * (hidden == GPU), 100 * (hidden == RAM))
    return FlexgenSettings.model_validate(block.settings.model_dump() | {"percent": percent})


def _least_time(programme: _Programme) -> None:
    """Minimise sum over i of count[i] T[i]."""
    timed = zip(programme.block.iterations, programme.t, strict=True)
    programme.problem.setObjective(pulp.lpSum(count * t for (count, _), t in timed))


def _one_of_each(programme: _Programme) -> None:
    """Sum of x[r] = 1, sum of k[p] = 100 (1 where the cache is on one tier), sum of z[a] = 1."""
    programme.problem.addConstraint(pulp.lpSum(programme.x) == 1)
    programme.problem.addConstraint(pulp.lpSum(programme.k.values()) == (1 if programme.block.whole_cache else 100))
    programme.problem.addConstraint(pulp.lpSum(programme.z.values()) == 1)


def _iterations_last_as_long_as_their_lanes(programme: _Programme) -> None:
    """T[i] >= base[i,l] + sum_r x[r] W[i,l,r] + sum_p k[p]/100 C[i,l,p] + sum_a z[a] H[i,l,a] for every lane l."""
    whole = 1.0 if programme.block.whole_cache else 100.0
    for (_, each), t in zip(programme.block.iterations, programme.t, strict=True):
        for lane in each.lanes:
            terms = [(x, table.get(lane, 0.0)) for x, table in zip(programme.x, each.weights, strict=True)]
            terms += [(programme.k[tier], table.get(lane, 0.0) / whole) for tier, table in each.cache.items()]
            terms += [(programme.z[tier], table.get(lane, 0.0)) for tier, table in each.hidden.items()]
            programme.problem.addConstraint(
                t - pulp.LpAffineExpression([(v, c) for v, c in terms if c]) >= each.base.get(lane, 0.0)
            )


def _tiers_hold(programme: _Programme) -> None:
    """Fixed bytes + sum_r x[r] M[r] + sum_p k[p]/100 M[p] + sum_a z[a] M[a] <= room, for every tier."""
    block = programme.block
    whole = 1.0 if block.whole_cache else 100.0
    for tier, room in block.room.items():
        terms = [(x, held.get(tier, 0.0) / _GIB) for x, held in zip(programme.x, block.weight_memory, strict=True)]
        terms += [(k, block.cache_memory[home].get(tier, 0.0) / whole / _GIB) for home, k in programme.k.items()]
        terms += [(z, block.hidden_memory[home].get(tier, 0.0) / _GIB) for home, z in programme.z.items()]
        limit = (room - block.fixed_memory.get(tier, 0.0)) / _GIB
        programme.problem.addConstraint(pulp.LpAffineExpression([(v, c) for v, c in terms if c]) <= limit)


def _cpu_attention_has_a_cache(programme: _Programme) -> None:
    """k[gpu] <= 99 with CPU attention: FlexGen would bring a cache that is all on the GPU to the host for it."""
    if programme.block.settings.cpu_cache_compute:
        programme.problem.addConstraint(programme.k[GPU] <= 99)
