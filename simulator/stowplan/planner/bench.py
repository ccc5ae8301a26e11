"""What plans of like requests share, so that a sweep does not work it out for every variant again.

A layer's price depends on the model, the rates and the engine's settings, not on how much memory there is or how long
the cache is; what the buffers take does not depend on rates. A `Bench` keeps both for the requests that come by. A plan
made on a bench is the plan made without one, to the last bit: nothing is approximated, only looked up.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import groupby
from typing import Generic, TypeVar

from stowplan.models.model import Model
from stowplan.ops import Step
from stowplan.plan import MemoryUse, Plan, Workload
from stowplan.systems.base import RAM, Evaluation, Setup
from stowplan.systems.llama_cpp import LlamaCpp, LlamaCppRun
from stowplan.systems.llama_cpp_settings import LlamaCppSettings, settings_of
from stowplan.systems.serial import LayerPlaces, Price

_PRICELESS = ("ubatch", "batch", "margin", "load_mode")
"""Settings that move no layer's price: how a prompt is cut is in the step, how weights are read is in the rates."""

_MOST_FAMILIES = 512
"""Families of prices that are kept: some 60 for each machine (its interval needs as many), about 40 MiB in all."""

Prices = dict[tuple[int, LayerPlaces, Step], Price]
EdgePrices = dict[tuple[tuple[str, ...], str, Step], Price]
Outside = dict[tuple[str, bool], Mapping[str, float]]


Family = TypeVar("Family")


class _Shelf(Generic[Family]):
    """Entries by key, the least recently used of too many thrown away."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Family] = OrderedDict()

    def find(self, key: Hashable, new: Callable[[], Family]) -> Family:
        """The entry of a key, made where there is none."""
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = new()
            if len(self._kept) > _MOST_FAMILIES:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return found


class Bench:
    """Prices and buffers of the latest requests; for one thread of one process."""

    def __init__(self) -> None:
        self._prices: _Shelf[tuple[Prices, EdgePrices]] = _Shelf()
        self._scaled: _Shelf[_BenchRun] = _Shelf()
        self._outside: _Shelf[Outside] = _Shelf()
        self._memory: tuple[tuple[object, ...], dict[str, MemoryUse]] | None = None
        self._counted: tuple[Sequence[LayerPlaces], Model, Counter[tuple[int, LayerPlaces]]] | None = None

    def run(self, setup: Setup, workload: Workload, settings: LlamaCppSettings) -> LlamaCppRun:
        """llama.cpp on a setup, with what is known of it already."""
        return _BenchRun(self, setup, workload, settings)

    def prices(self, family: Hashable) -> tuple[Prices, EdgePrices]:
        """Prices of layers, and of what is outside them, of a family of runs."""
        return self._prices.find(family, lambda: ({}, {}))

    def scaled(self, run: _BenchRun, name: str, factor: float) -> _BenchRun:
        """A run with one figure multiplied by `factor`; its kernels are built once for all runs of the family."""

        def built() -> _BenchRun:
            figures = run.setup.figures.scaled(name, factor)
            return _BenchRun(self, replace(run.setup, figures=figures), run.workload, run.settings)

        return self._scaled.find((run.family, name, factor), built).for_request_of(run)

    def outside(self, run: LlamaCppRun) -> Outside:
        """Bytes of each tier that are outside layers, by the output's place and whether layers spill."""
        machine = run.setup.machine
        family = (
            run.setup.model,
            run.workload,
            run.settings,
            run.setup.figures.value("llama.cpp.gpu.runtime"),
            machine.reserved.value,
            tuple(gpu.unified for gpu in machine.gpus),
        )
        return self._outside.find(family, dict)

    def memory(self, run: _BenchRun, layers: Sequence[LayerPlaces], edges: tuple[str, str]) -> dict[str, MemoryUse]:
        """Use of every tier; an interval asks for the same placement's once for each figure."""
        asked = (run.setup.model, run.setup.machine, run.workload, run.settings, edges)
        runtime = run.setup.figures.value("llama.cpp.gpu.runtime")
        known = self._memory
        if known is not None and known[0][0] is layers and known[0][1:] == (runtime, *asked):
            return known[1]
        found = run.counted_memory(layers, *edges)
        self._memory = ((layers, runtime, *asked), found)
        return found

    def distinct(self, run: _BenchRun, layers: Sequence[LayerPlaces]) -> Counter[tuple[int, LayerPlaces]]:
        """How many layers of each class are placed each way."""
        known = self._counted
        if known is None or known[0] is not layers or known[1] is not run.setup.model:
            known = self._counted = (layers, run.setup.model, run.count(layers))
        return known[2]


class BenchedLlamaCpp(LlamaCpp):
    """llama.cpp whose runs share a bench."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self._bench = bench
        self._latest: tuple[Setup, Plan, _BenchRun] | None = None
        self._next: _BenchRun | None = None

    def run(self, setup: Setup, plan: Plan) -> LlamaCppRun:
        """The engine under the plan's settings."""
        if self._next is not None and self._next.setup is setup:
            return self._next
        return self._bench.run(setup, plan.workload, settings_of(plan))

    def evaluate_scaled(self, setup: Setup, plan: Plan, name: str, factor: float) -> Evaluation:
        """As `evaluate` with one figure multiplied by `factor`."""
        known = self._latest
        if known is None or known[0] is not setup or known[1] is not plan:
            known = self._latest = (setup, plan, _BenchRun(self._bench, setup, plan.workload, settings_of(plan)))
        self._next = self._bench.scaled(known[2], name, factor)
        return self.evaluate(self._next.setup, plan)


class _BenchRun(LlamaCppRun):
    """A run that looks up on its bench before it works anything out."""

    def __init__(self, bench: Bench, setup: Setup, workload: Workload, settings: LlamaCppSettings) -> None:
        super().__init__(setup, workload, settings)
        self._bench = bench
        self.family = self._family()
        self._shared = bench.prices(self.family)
        self._prices, self._edge_prices = self._shared

    def _family(self) -> Hashable:
        """All that prices depend on: model, settings, what the machine is beside its capacities, figures."""
        machine, figures = self.setup.machine, self.setup.figures
        settings = self.settings.model_dump(exclude=set(_PRICELESS))
        return (
            self.setup.model,
            tuple(settings.values()),
            self.threads,
            (machine.cpu.key, machine.cpu.isa, machine.cpu.memory_channels, machine.cores, machine.sockets),
            tuple((gpu.vendor, gpu.unified) for gpu in machine.gpus),
            tuple(self.rates.items()),
            tuple(figures),
            tuple(number.value for number in figures.values()),
        )

    def for_request_of(self, other: _BenchRun) -> _BenchRun:
        """The same kernels and prices for another's machine and request."""
        twin = copy(self)
        twin.setup = replace(other.setup, figures=self.setup.figures)
        twin.workload, twin.settings, twin.rules, twin.rates = other.workload, other.settings, other.rules, self.rates
        return twin

    def distinct(self, layers: Sequence[LayerPlaces]) -> Counter[tuple[int, LayerPlaces]]:
        return self._bench.distinct(self, layers)

    def count(self, layers: Sequence[LayerPlaces]) -> Counter[tuple[int, LayerPlaces]]:
        """How many layers of each class are placed each way, counted."""
        return super().distinct(layers)

    def memory(self, layers: Sequence[LayerPlaces], embedding: str, output: str) -> dict[str, MemoryUse]:
        return self._bench.memory(self, layers, (embedding, output))

    def counted_memory(self, layers: Sequence[LayerPlaces], embedding: str, output: str) -> dict[str, MemoryUse]:
        """Use of every tier, worked out."""
        return super().memory(layers, embedding, output)

    def overflow(self, memory: Mapping[str, MemoryUse], layers: Sequence[LayerPlaces]) -> None:
        spills = memory[RAM].used > memory[RAM].capacity
        self._prices, self._edge_prices = {}, {}  # with pages read from disk all prices are others, of this run only
        super().overflow(memory, layers)
        if not spills:
            self._prices, self._edge_prices = self._shared

    def step_price(self, layers: Sequence[LayerPlaces], output: str, step: Step) -> Price:
        weighted = [
            (self.price(self.classes[k].indices[0], places, step), float(n))
            for (k, places), n in self.distinct(layers).items()
        ]
        return Price.total([*weighted, (self._edge_price(layers, output, step), 1.0)])

    def _edge_price(self, layers: Sequence[LayerPlaces], output: str, step: Step) -> Price:
        """Price outside the layers: it depends on where homes change, and on nothing else of the layers."""
        homes = tuple(home for home, _ in groupby(places.mixer for places in layers))
        known = self._edge_prices.get((homes, output, step))
        if known is None:
            first = [next(same) for _, same in groupby(layers, key=lambda places: places.mixer)]
            known = self._edge_prices[homes, output, step] = Price.of(self.edges(first, output, step), self.rates)
        return known
