"""The best FlexGen policy: one small programme per shape of the block, and bounds that spare most of them.

For a fixed block (sequences per GPU batch, GPU batches, where attention is computed) the seconds that an iteration needs
of each *lane* (the chain of launches, or one resource) are affine in the placement, and an iteration is as long as its
busiest lane. Variables: x[r], one of the distinct roundings r of the weights (binary); k[p], per cent of the cache on
tier p (integer); z[a], tier of the hidden states (binary); T[i], seconds of iteration i. One function per constraint
family; each docstring holds its inequality.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pulp

from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.ops import Step
from stowplan.plan import Plan, Solver, Workload
from stowplan.systems.base import DISK, RAM, Evaluation, Setup
from stowplan.systems.flexgen import Flexgen
from stowplan.systems.flexgen_execution import FlexgenRun, Placement, Slot
from stowplan.systems.flexgen_memory import FlexgenMemory, Parts
from stowplan.systems.flexgen_policy import GPU, TIERS, FlexgenSettings, edge_groups, homes, layer_groups

GPU_BATCH_SIZES = (1, 4, 16, 32, 48, 64, 96, 128, 256)
NUM_GPU_BATCHES = (1, 2, 3, 4, 6, 8, 12)
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
        """Seconds of each lane by rounding with the cheapest hidden tier (lanes x roundings), and cache costs by tier."""
        fixed = [
            [
                self.base.get(lane, 0.0) + table.get(lane, 0.0) + _least(self.hidden, lane)
                for table in self.weights
            ]
            for lane in self.lanes
        ]
        return np.array(fixed), np.array(
            [[table.get(lane, 0.0) for table in self.cache.values()] for lane in self.lanes]
        )


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
        taken = np.array(
            [self.fixed_memory.get(tier, 0.0) + _least(self.hidden_memory, tier) for tier in tiers]
        )
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
class RankedPolicy:
    """A policy with the proof that it is the best of its block shape, and what the simulator says of it.

    Attributes:
        plan: with the percentages found.
        solver: objective and bound are seconds of the whole block in the closed form.
        evaluation: simulated times and memory.
        tokens_per_s: generated tokens over simulated prefill and decode time.
    """

    plan: Plan
    solver: Solver
    evaluation: Evaluation
    tokens_per_s: float


def plan_flexgen(
    setup: Setup,
    workload: Workload,
    base: FlexgenSettings | None = None,
    *,
    gpu_batch_sizes: Sequence[int] = GPU_BATCH_SIZES,
    num_gpu_batches: Sequence[int] = NUM_GPU_BATCHES,
    keep: int = 3,
    progress: Callable[[str], None] = lambda _: None,
    **names: Any,
) -> list[RankedPolicy]:
    """The best policies by generated tokens per second over prefill and decode, best first.

    Args:
        setup: model, machine and figures.
        workload: prompt and generated tokens; the batch is chosen here.
        base: switches that are given: compression, overlap, page-locking. CPU attention is chosen here.
        gpu_batch_sizes, num_gpu_batches: block shapes to try.
        keep: policies to return; shapes that cannot be among them are not solved.
        progress: told which shape is being solved.
        names: for the plan: ``machine``, ``model``, ``set``, ``quant`` as the user wrote them.

    Raises:
        DoesNotFit: no shape has a placement that fits.
        NotExpressible: a setting that FlexGen refuses.
    """
    base = base or FlexgenSettings()
    started = time.perf_counter()
    drafts = _Drafts(setup, workload, base)
    shapes = product(gpu_batch_sizes, num_gpu_batches, (False,) if base.compress_cache else (True, False))
    blocks = [block for shape in shapes if (block := drafts.block(*shape)) is not None]
    blocks.sort(key=lambda block: block.floor / block.settings.batch)
    found: list[tuple[float, FlexgenSettings, Solver]] = []
    for block in blocks:
        batch = block.settings.batch
        if len(found) >= keep and block.floor / batch >= found[keep - 1][0]:
            break
        progress(f"{block.settings.gpu_batch_size} x {block.settings.num_gpu_batches}")
        solved = solve(block)
        if solved is not None:
            found.append((solved[1].objective / batch, *solved))
            found.sort(key=lambda entry: entry[0])
    ranked = _evaluated(setup, workload, found, keep, time.perf_counter() - started, names)
    if not ranked:
        raise DoesNotFit(
            f"no FlexGen policy fits {setup.model.name} with {workload.capacity} tokens per sequence on "
            f"{setup.machine.name}; compress weights or cache, or add memory or a disk"
        )
    return ranked


def _evaluated(
    setup: Setup,
    workload: Workload,
    found: Iterable[tuple[float, FlexgenSettings, Solver]],
    keep: int,
    seconds: float,
    names: Mapping[str, Any],
) -> list[RankedPolicy]:
    """The first policies that the simulator accepts, best first; rounding to sequences may push one over the edge."""
    system, ranked, programmes = Flexgen(), list[RankedPolicy](), 0
    entries = list(found)
    programmes = len(entries)
    for _, settings, solver in entries:
        plan = system.plan(setup, workload, settings, **names)
        try:
            evaluation = system.evaluate(setup, plan)
        except DoesNotFit:
            continue
        total = evaluation.prefill_s + max(0, workload.generate - 1) * evaluation.decode_s
        rate = plan.workload.batch * workload.generate / total
        proof = solver.model_copy(update={"programmes": programmes, "seconds": seconds})
        ranked.append(RankedPolicy(plan, proof, evaluation, rate))
        if len(ranked) == keep:
            break
    return sorted(ranked, key=lambda policy: -policy.tokens_per_s)


class _Drafts:
    """Writes the data of block shapes; what does not depend on the shape is computed once."""

    def __init__(self, setup: Setup, workload: Workload, base: FlexgenSettings) -> None:
        self.setup, self.workload, self.base = setup, workload, base
        self.tiers = TIERS if setup.machine.disks else (GPU, RAM)
        self.splits = weight_splits(setup, disk=DISK in self.tiers)
        self._run = FlexgenRun(setup, workload.model_copy(update={"batch": base.batch}), base)
        self._weight_lanes: dict[tuple[int, tuple[int, int]], Lanes] = {}
        self._weight_memory: list[Mapping[str, float]] | None = None
        self._tables: dict[tuple[int, bool, Slot, Step], Iteration] = {}

    def block(self, gpu_batch_size: int, num_gpu_batches: int, cpu_attention: bool) -> Block | None:
        """Data of one shape, None where it cannot fit."""
        shape = {"gpu_batch_size": gpu_batch_size, "num_gpu_batches": num_gpu_batches}
        settings = self.base.model_copy(update={**shape, "cpu_cache_compute": cpu_attention})
        run = self._run.reshaped(settings)
        memory = FlexgenMemory(run)
        room = memory.capacities()
        fixed = _sums(memory.fixed())
        if any(fixed[tier] > room[tier] for tier in self.tiers):
            return None
        cache_memory = {tier: _sums(memory.cache({tier: 1.0})) for tier in self.tiers}
        hidden_memory = {tier: _sums(memory.hidden(tier)) for tier in self.tiers}
        if self._weight_memory is None:
            self._weight_memory = [_sums(memory.weights(split)) for split in self.splits]
        whole = sum(cache_memory[GPU].values()) + sum(self._weight_memory[-1].values()) + sum(fixed.values())
        if whole > sum(room.values()):
            return None
        return Block(
            settings=settings,
            splits=self.splits,
            iterations=self._iterations(run),
            weight_memory=self._weight_memory,
            cache_memory=cache_memory,
            hidden_memory=hidden_memory,
            fixed_memory=fixed,
            room={tier: room[tier] for tier in self.tiers},
            whole_cache=settings.compress_cache,
        )

    def _iterations(self, run: FlexgenRun) -> list[tuple[float, Iteration]]:
        steps: list[tuple[Step, float]] = [
            (run.decode_step(self.workload.decode_context), max(0, self.workload.generate - 1))
        ]
        if self.workload.prompt:
            steps.append((run.prefill_step, 1))
        return [
            (count * times, self._iteration(run, slot, step))
            for step, times in steps
            if times
            for slot, count in run.slots().items()
        ]

    def _iteration(self, run: FlexgenRun, slot: Slot, step: Step) -> Iteration:
        """Lanes of one iteration; the number of GPU batches changes how often it runs, but not its lanes."""
        attends_on_cpu = run.settings.cpu_cache_compute and step.new == 1
        key = (run.settings.gpu_batch_size, attends_on_cpu, slot, step)
        if key not in self._tables:
            self._tables[key] = self._measured(run, slot, step)
        return self._tables[key]

    def _measured(self, run: FlexgenRun, slot: Slot, step: Step) -> Iteration:
        def lanes(cache: str, hidden: str) -> Lanes:
            return run.lanes(run.jobs(slot, step, Placement((100, 0), {cache: 1.0}, hidden, split=True)))

        base = lanes(GPU, GPU)
        attends = any(run.units[index].attends for index in (slot.before, slot.unit, slot.after))
        return Iteration(
            base=base,
            weights=[self._loading(run, slot, split) for split in self.splits],
            cache={
                tier: _difference(lanes(tier, GPU), base) if attends and tier != GPU else {}
                for tier in self.tiers
            },
            hidden={tier: {} if tier == GPU else _difference(lanes(GPU, tier), base) for tier in self.tiers},
        )

    def _loading(self, run: FlexgenRun, slot: Slot, split: tuple[int, int]) -> Lanes:
        if not slot.first:
            return {}
        key = (slot.after if run.settings.overlap else slot.unit, split)
        if key not in self._weight_lanes:
            self._weight_lanes[key] = run.weight_lanes(slot, split)
        return self._weight_lanes[key]


def weight_splits(setup: Setup, *, disk: bool) -> list[tuple[int, int]]:
    """Percentages (GPU, host) of every distinct rounding of the matrices, all on the GPU last; vectors are no decision."""
    groups = {group for layer in setup.model.layers for group in layer_groups(layer)} | set(
        edge_groups(setup.model)
    )
    thresholds: dict[tuple[int, ...], int] = {}
    ordered = sorted(groups, key=lambda group: (group.kind, group.elements))
    for percent in range(101):
        away = (
            sum(piece.matrix and home == RAM for piece, home in zip(group.pieces, places, strict=True))
            for group in ordered
            for places in (homes(group, 100 - percent, percent),)
        )
        thresholds.setdefault(tuple(away), percent)
    cuts = sorted({*thresholds.values(), 100})
    lows = cuts if disk else [0]
    return sorted((100 - high, high - low) for high in cuts for low in lows if low <= high)


def _sums(parts: Parts) -> dict[str, float]:
    return {tier: sum(by_name.values()) for tier, by_name in parts.items()}


def _difference(one: Lanes, other: Lanes) -> dict[str, float]:
    return {name: one.get(name, 0.0) - other.get(name, 0.0) for name in {*one, *other}}


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
    programme = _Programme(
        block,
        problem,
        [pulp.LpVariable(f"x_{r}", cat="Binary") for r in range(len(block.splits))],
        {
            p: pulp.LpVariable(f"k_{p}", 0, 1 if block.whole_cache else 100, cat="Integer")
            for p in block.cache_memory
        },
        {a: pulp.LpVariable(f"z_{a}", cat="Binary") for a in block.hidden_memory},
        [pulp.LpVariable(f"T_{i}", 0) for i in range(len(block.iterations))],
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
        raise NotExpressible(
            f"the solver found no FlexGen policy within {_TIME_LIMIT_S:.0f} s; try fewer block shapes"
        )
    bound = min(float(problem.solverModel.getInfo().mip_dual_bound), objective)
    solver = Solver(
        name="highs",
        status=status,
        objective=objective,
        bound=bound,
        gap=(objective - bound) / objective if objective else 0.0,
        seconds=time.perf_counter() - started,
        variables=len(problem.variables()),
        constraints=len(problem.constraints),
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
    programme.problem.addConstraint(
        pulp.lpSum(programme.k.values()) == (1 if programme.block.whole_cache else 100)
    )
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
        terms = [
            (x, held.get(tier, 0.0) / _GIB) for x, held in zip(programme.x, block.weight_memory, strict=True)
        ]
        terms += [
            (k, block.cache_memory[home].get(tier, 0.0) / whole / _GIB) for home, k in programme.k.items()
        ]
        terms += [(z, block.hidden_memory[home].get(tier, 0.0) / _GIB) for home, z in programme.z.items()]
        limit = (room - block.fixed_memory.get(tier, 0.0)) / _GIB
        programme.problem.addConstraint(pulp.LpAffineExpression([(v, c) for v, c in terms if c]) <= limit)


def _cpu_attention_has_a_cache(programme: _Programme) -> None:
    """k[gpu] <= 99 with CPU attention: FlexGen would bring a cache that is all on the GPU to the host for it."""
    if programme.block.settings.cpu_cache_compute:
        programme.problem.addConstraint(programme.k[GPU] <= 99)
