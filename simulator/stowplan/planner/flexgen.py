"""The best FlexGen policy: one small programme per shape of the block, and bounds that spare most of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from stowplan.errors import DoesNotFit
from stowplan.ops import Step
from stowplan.plan import Plan, Solver, Workload
from stowplan.planner.flexgen_polish import polished
from stowplan.planner.flexgen_programme import Block, Iteration, Lanes, solve
from stowplan.systems.base import DISK, RAM, Evaluation, Setup
from stowplan.systems.flexgen import Flexgen
from stowplan.systems.flexgen_execution import FlexgenRun, Placement
from stowplan.systems.flexgen_memory import FlexgenMemory, Parts
from stowplan.systems.flexgen_policy import GPU, TIERS, FlexgenSettings, edge_groups, homes, layer_groups, settings_of
from stowplan.systems.flexgen_schedule import Slot

GPU_BATCH_SIZES = (1, 4, 16, 32, 48, 64, 96, 128, 256)
NUM_GPU_BATCHES = (1, 2, 3, 4, 8, 12)


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
    ranked = list[RankedPolicy]()
    for _, settings, solver in found:
        proof = solver.model_copy(update={"programmes": len(found), "seconds": time.perf_counter() - started})
        if len(ranked) < keep and (policy := _evaluated(setup, workload, settings, proof, names)) is not None:
            ranked.append(policy)
    if not ranked:
        raise DoesNotFit(
            f"no FlexGen policy fits {setup.model.name} with {workload.capacity} tokens per sequence on "
            f"{setup.machine.name}; compress weights or cache, or add memory or a disk"
        )
    return sorted(ranked, key=lambda policy: -policy.tokens_per_s)


def polish(setup: Setup, workload: Workload, policy: RankedPolicy, **names: Any) -> RankedPolicy:
    """The policy, or a neighbour of it that the simulator finds faster; arguments as those of `plan_flexgen`."""
    start = settings_of(policy.plan)
    found = {start: policy}

    def tokens_per_s(settings: FlexgenSettings) -> float | None:
        if settings not in found:
            moved = _evaluated(setup, workload, settings, policy.solver, names)
            if moved is None:
                return None
            found[settings] = moved
        return found[settings].tokens_per_s

    splits = weight_splits(setup, disk=bool(setup.machine.disks))
    return found[polished(start, splits, tokens_per_s)]


def _evaluated(
    setup: Setup, workload: Workload, settings: FlexgenSettings, solver: Solver, names: Mapping[str, Any]
) -> RankedPolicy | None:
    """The policy as the simulator sees it; None where rounding the cache to sequences pushes it over the edge."""
    system = Flexgen()
    plan = system.plan(setup, workload, settings, **names)
    try:
        evaluation = system.evaluate(setup, plan)
    except DoesNotFit:
        return None
    total = evaluation.prefill_s + max(0, workload.generate - 1) * evaluation.decode_s
    return RankedPolicy(plan, solver, evaluation, plan.workload.batch * workload.generate / total)


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
            cache={tier: _difference(lanes(tier, GPU), base) if attends and tier != GPU else {} for tier in self.tiers},
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
    """Percentages (GPU, host) of every distinct rounding of the matrices, all on the GPU last."""
    groups = {group for layer in setup.model.layers for group in layer_groups(layer)} | set(edge_groups(setup.model))
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
