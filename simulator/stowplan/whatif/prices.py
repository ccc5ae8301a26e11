"""Shadow prices: what one more GiB, GB/s or TFLOP/s is worth in tokens/s, by the relaxation and solved again.

At the optimum of the relaxed programme a small change of a rate changes nothing but the prices of the patterns, for the
counts that are best stay best (envelope theorem); a change of room is worth its constraint's dual. Whole layers move
in steps, so the plan itself gains by more or less than the relaxation says: both are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

from stowplan.errors import StowplanError
from stowplan.figures import Figures
from stowplan.machines.overrides import apply_overrides
from stowplan.planner.arrays import Relaxed, relaxed
from stowplan.planner.counts import GAP, Column, Placement
from stowplan.planner.dispatch import plan_for
from stowplan.planner.result import Planned, Request
from stowplan.planner.serial_search import SerialSearch, Weights
from stowplan.systems.base import RAM, Setup
from stowplan.systems.llama_cpp import LlamaCppRun
from stowplan.systems.llama_cpp_settings import settings_of

_GIB = 2.0**30
_SLOPE_STEP = 1e-6
_RATE_STEP = 0.05
_TERA, _GIGA = 1e12, 1e9
_AGREE = 0.2


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that there could be more of.

    Attributes:
        key: name for programs; title: for people; unit: of one more ("GiB", "GB/s").
        amount: how much there is, in units.
        tiers: memory tiers that grow together; empty for a rate.
        figures: figures that rise together; empty for a memory.
    """

    key: str
    title: str
    unit: str
    amount: float
    tiers: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ShadowPrice:
    """What one more unit of a resource is worth.

    Attributes:
        resource: which.
        relaxed: tokens/s per unit at the margin, by the relaxed programme; None where no programme of layers found the
            plan.
        step: units that were added to confirm it.
        resolved: tokens/s per unit that the plan gains when it is solved again with the step, None where it cannot be.
        noise: tokens/s per unit that two proofs within the solver's gap may differ by.
        whole_layers: whether the two differ because layers move whole.
    """

    resource: Resource
    relaxed: float | None
    step: float
    resolved: float | None
    noise: float
    whole_layers: bool


def speed(request: Request, planned: Planned, cost: float | None = None) -> float:
    """Tokens/s of the objective: of the whole request, of decode, or of the prompt."""
    workload = planned.plan.workload
    tokens = {
        "request": workload.batch * max(1, workload.generate),
        "decode": workload.batch,
        "ttft": workload.batch * max(1, workload.prompt),
        "throughput": 1,
    }[request.objective]
    seconds = planned.cost if cost is None else cost
    return tokens / seconds if seconds else inf


def resources(setup: Setup) -> Iterator[Resource]:
    """What a machine could have more of."""
    machine, figures = setup.machine, setup.figures
    discrete = [f"gpu{i}" for i, gpu in enumerate(machine.gpus) if not gpu.unified]
    each = " each" if len(discrete) > 1 else ""
    if discrete:
        held = machine.gpus[0].memory.value / _GIB
        yield Resource("gpu.memory", f"GPU memory{each}", "GiB", held, tiers=tuple(discrete))
    yield Resource("memory.capacity", "RAM", "GiB", machine.memory.capacity.value / _GIB, tiers=(RAM,))
    if discrete:
        links = _named(figures, discrete, (".h2d.", ".d2h."))
        copied = figures.value(f"{discrete[0]}.h2d.pinned") / _GIGA
        yield Resource("gpu.pcie", f"PCIe{each}", "GB/s", copied, figures=links)
    yield Resource(
        "memory.bandwidth", "RAM bandwidth", "GB/s", figures.value("host.dram") / _GIGA, figures=("host.dram",)
    )
    if machine.gpus:
        names = [f"gpu{i}" for i in setup.gpus]
        read = figures.value("gpu0.hbm") / _GIGA
        yield Resource("gpu.bandwidth", f"GPU bandwidth{each}", "GB/s", read, figures=_named(figures, names, (".hbm",)))
        peaks = [figures.value(name) for name in figures if name.startswith("gpu0.peak.") and "16" in name]
        if peaks:
            arithmetic = _named(figures, names, (".peak.", ".unit_clock", ".power"))
            yield Resource("gpu.fp16", f"GPU arithmetic{each}", "TFLOP/s", max(peaks) / _TERA, figures=arithmetic)
    yield Resource("cpu.clock", "CPU clock", "GHz", figures.value("host.clock") / _GIGA, figures=("host.clock",))
    if machine.disks:
        rates = tuple(name for name in ("disk.read", "disk.faults") if name in figures)
        yield Resource("disk.read", "SSD", "GB/s", figures.value("disk.read") / _GIGA, figures=rates)


def _named(figures: Figures, devices: Sequence[str], kinds: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in figures if name.split(".")[0] in devices and any(kind in f"{name}" for kind in kinds))


class Relaxation:
    """The winner's programme with fractional layers, as a function of the machine's figures and rooms.

    Args:
        request: what was asked.
        planned: its plan, with its programme.

    Raises:
        ValueError: the planner keeps no programme.
    """

    def __init__(self, request: Request, planned: Planned) -> None:
        if planned.programme is None:
            raise ValueError("only plans of one placement programme have shadow prices")
        self._request, self._planned = request, planned
        self._data = planned.programme
        self._workload = planned.plan.workload
        self._weights = Weights.of(request.objective, self._workload)
        found = relaxed(self._data)
        if found is None:
            raise ValueError("the programme of a plan has a relaxed optimum")
        self.optimum: Relaxed = found

    def with_figures(self, names: Sequence[str], factor: float) -> Placement:
        """The programme with its patterns priced at figures times `factor`."""
        setup = self._request.setup
        figures = setup.figures
        for name in names:
            figures = figures.scaled(name, factor)
        run = LlamaCppRun(replace(setup, figures=figures), self._workload, settings_of(self._planned.plan))
        search = SerialSearch(run, self._weights)
        columns = [
            [
                Column(column.places, search.layer_cost(members[0], column.places), column.bytes)
                for column in self._data.columns[c]
            ]
            for c, members in enumerate(self._data.classes)
        ]
        return replace(
            self._data,
            columns=columns,
            constant=search.edge_floor(self._planned.plan.output),
            spill_cost=run.spill_seconds_per_byte(self._weights.decode, self._weights.prefill),
        )

    def cost_of_optimum(self, data: Placement) -> float:
        """Seconds of the relaxed optimum's counts at other prices."""
        counted = sum(
            n * column.cost
            for counts, columns in zip(self.optimum.counts, data.columns, strict=True)
            for n, column in zip(counts, columns, strict=True)
        )
        return data.constant + counted + (data.spill_cost or 0.0) * self.optimum.spilled

    def saved_per_unit(self, resource: Resource) -> float:
        """Seconds of the objective that one more unit saves at the margin."""
        if resource.tiers:
            return _GIB * sum(self.optimum.worth.get(tier, 0.0) for tier in resource.tiers)
        faster = self.cost_of_optimum(self.with_figures(resource.figures, 1.0 + _SLOPE_STEP))
        return max(0.0, (self.optimum.cost - faster) / (_SLOPE_STEP * resource.amount))


def shadow_prices(system: str, request: Request, planned: Planned) -> list[ShadowPrice]:
    """Price of every resource of the machine, in the order of `resources`.

    Args:
        system: who runs it.
        request, planned: what was asked and found; without a placement programme only the re-solved price is known.
    """
    relaxation = Relaxation(request, planned) if planned.programme is not None else None
    before = speed(request, planned)
    found = []
    for resource in resources(request.setup):
        request.progress(resource.title)
        step = 1.0 if resource.tiers else _RATE_STEP * resource.amount
        resolved = _resolved(system, request, planned, resource, step)
        noise = 2 * GAP * before / step
        per_unit, differs = None, False
        if relaxation is not None:
            saved = relaxation.saved_per_unit(resource)
            per_unit = before * saved / planned.cost if planned.cost else 0.0
            expected = saved * step / max(planned.cost - saved * step, 1e-12) * before / step
            differs = resolved is not None and abs(resolved - expected) > noise + _AGREE * abs(expected)
        found.append(ShadowPrice(resource, per_unit, step, resolved, noise, differs))
    return found


def _resolved(system: str, request: Request, planned: Planned, resource: Resource, step: float) -> float | None:
    """Tokens/s per unit gained when solved again with `step` more units; where that is slower, the plan is kept."""
    asked = replace(request, workload=planned.plan.workload, batches=(), alternatives=False)
    try:
        again = plan_for(system, asked_with(asked, resource, step))
    except StowplanError:
        return None
    return max(0.0, speed(request, again) - speed(request, planned)) / step


def asked_with(request: Request, resource: Resource, more: float) -> Request:
    """The request with `more` units of a resource."""
    setup = request.setup
    if resource.tiers:
        machine = setup.machine
        held = {f"gpu{i}": gpu.memory.value for i, gpu in enumerate(machine.gpus)}
        held[RAM] = machine.memory.capacity.value
        paths = {tier: "memory.capacity" if tier == RAM else f"{tier}.memory" for tier in resource.tiers}
        changes = [f"{paths[tier]}={held[tier] / _GIB + more:.9f}GiB" for tier in resource.tiers]
        return replace(request, setup=replace(setup, machine=apply_overrides(machine, changes)))
    figures = setup.figures
    for name in resource.figures:
        figures = figures.scaled(name, 1.0 + more / resource.amount)
    return replace(request, setup=replace(setup, figures=figures))
