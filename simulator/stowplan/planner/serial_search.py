"""Best placement of a layer-synchronous system for given settings: price columns, solve, evaluate the winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

from stowplan.errors import DoesNotFit
from stowplan.models.model import Layer
from stowplan.ops import Step
from stowplan.plan import Workload
from stowplan.planner.arrays import lower_bound
from stowplan.planner.counts import GAP, Column, Placement, Solved, undominated
from stowplan.planner.programme import solve
from stowplan.systems.base import RAM, Evaluation
from stowplan.systems.serial import LayerPlaces, Price, SerialRun, sampled

Objective = Literal["request", "decode", "ttft", "throughput"]
"""What is minimised: seconds of a request (prompt and generation), of a decode step, to the first token, or per token
of the batch's whole request."""

_PREFILL_SAMPLES = 8
_SQUEEZES = 3  # programmes with less room, where the buffers of a placement turn out larger than reserved


@dataclass(frozen=True, slots=True)
class Weights:
    """Seconds of the objective per second of the prompt and per second of one decode step."""

    prefill: float
    decode: float

    @staticmethod
    def of(objective: Objective, workload: Workload) -> Weights:
        """Weights of an objective for a workload."""
        if objective == "decode":
            return Weights(0.0, 1.0)
        if objective == "ttft":
            return Weights(1.0, 0.0) if workload.prompt else Weights(0.0, 1.0)
        request = Weights(1.0 if workload.prompt else 0.0, float(max(1, workload.generate)))
        if objective == "throughput":
            tokens = workload.batch * max(1, workload.generate)
            return Weights(request.prefill / tokens, request.decode / tokens)
        return request

    def cost(self, evaluation: Evaluation) -> float:
        """Objective of an evaluated placement."""
        return self.prefill * evaluation.prefill_s + self.decode * evaluation.decode_s


@dataclass(frozen=True, slots=True)
class Found:
    """A placement with its evaluation and objective, and the programme that it solves."""

    layers: list[LayerPlaces]
    output: str
    evaluation: Evaluation
    cost: float
    solved: Solved
    programme: Placement


class SerialSearch:
    """Columns, room and programme of one run (one group of settings).

    `outside` keeps the bytes outside layers, for searches with the same model, workload and settings.
    """

    def __init__(
        self, run: SerialRun, weights: Weights, outside: dict[tuple[str, bool], Mapping[str, float]] | None = None
    ) -> None:
        self.run, self.weights = run, weights
        self._outside = {} if outside is None else outside
        self._capacity: dict[str, float] | None = None
        windows = any(getattr(members.layer.mixer, "window", None) for members in run.classes)
        steps = run.prefill_steps if weights.prefill else []
        self._prefill = sampled(steps, _PREFILL_SAMPLES, earliest=windows) if steps else []
        self._gpus = [f"gpu{i}" for i in run.setup.gpus]

    def best(self, *, solver: str = "highs", below: float = inf) -> Found | None:
        """The best placement under the run's settings; None when none fits, or when all surely cost `below` or more."""
        columns = self.columns()
        whole = [[column for column in each if RAM not in _weight_places(column)] for each in columns]
        # All programmes are made before any placement is evaluated, for that changes the run's page misses.
        programmes = [
            (output, data)
            for output in self.run.outputs
            for choices, spilled in ((whole, False), (columns, True))
            if all(choices) and (data := self.programme(choices, output, spilled=spilled)) is not None
        ]
        bounded = [(bound, k) for k, (_, data) in enumerate(programmes) if (bound := lower_bound(data)) is not None]
        best: Found | None = None
        for bound, k in sorted(bounded):
            if bound >= below or (best is not None and bound >= best.cost * (1.0 - GAP)):
                break
            output, data = programmes[k]
            solved = solve(data, solver=solver)
            placed = None if solved is None else self.evaluated(solved, output)
            for _ in range(_SQUEEZES):
                over = {} if placed is None else self._over_margin(placed)
                if not over:
                    break
                data = replace(data, room={tier: left - over.get(tier, 0.0) for tier, left in data.room.items()})
                solved = solve(data, solver=solver)
                placed = None if solved is None else self.evaluated(solved, output)
            if solved is not None and placed is not None:
                cost = self.weights.cost(placed)
                if best is None or cost < best.cost:
                    best = Found(solved.layers, output, placed, cost, solved, data)
        return best

    def _over_margin(self, placed: Evaluation) -> dict[str, float]:
        """Bytes by which GPUs hold more than capacity less margin: buffers can be larger than in every reference."""
        over = {tier: use.used - use.capacity + self.run.margin for tier, use in placed.memory.items() if tier != RAM}
        return {tier: excess for tier, excess in over.items() if excess > 1.0}

    def evaluated(self, solved: Solved, output: str) -> Evaluation | None:
        """Exact times of a solution; None when a tier overflows after all."""
        try:
            evaluation = self.run.evaluate(solved.layers, self.run.embedding_place, output)
        except DoesNotFit:
            return None
        overfull = any(use.used > use.capacity for tier, use in evaluation.memory.items() if tier != RAM)
        return None if overfull else evaluation

    def programme(self, columns: list[list[Column]], output: str, *, spilled: bool) -> Placement | None:
        """Data of the programme for one place of the output matrix; None when buffers alone do not fit.

        Without `spilled`, no column keeps weights in host memory, so no buffer streams them.
        """
        room = self.room(output, spilled=spilled)
        spill = self.run.spill_seconds_per_byte(self.weights.decode, self.weights.prefill)
        if any(left < 0 for tier, left in room.items() if tier != RAM or spill is None):
            return None
        homes, last = self.run.homes, None
        if self.run.output_follows and output != RAM:
            homes, last = homes[: homes.index(output) + 1], output
        return Placement(
            classes=[members.indices for members in self.run.classes],
            columns=[[column for column in each if column.places.mixer in homes] for each in columns],
            homes=homes,
            room=room,
            constant=self.edge_floor(output),
            spill_cost=spill,
            last=last,
        )

    def columns(self) -> list[list[Column]]:
        """Undominated patterns of every class."""
        return [
            undominated(
                [
                    Column(places, self.layer_cost(members.layer.index, places), self.tier_bytes(members.layer, places))
                    for places in self.run.patterns(members)
                ]
            )
            for members in self.run.classes
        ]

    def layer_cost(self, index: int, places: LayerPlaces) -> float:
        """Objective of one layer."""
        total = self.weights.prefill * sum(n * self.run.price(index, places, step).seconds for step, n in self._prefill)
        if self.weights.decode:
            total += self.weights.decode * self.run.price(index, places, self.run.decode_step).seconds
        return total

    def tier_bytes(self, layer: Layer, places: LayerPlaces) -> dict[str, float]:
        """Bytes of a layer on every tier; on unified memory, the GPU's bytes are the host's too."""
        used = self.run.layer_bytes(layer, places)
        if self.run.unified:
            used[RAM] = sum(used.values())
        return used

    def edge_floor(self, output: str) -> float:
        """Objective that no placement avoids outside the layers: the cheapest arrangement of homes."""
        layers = len(self.run.setup.model.layers)
        if output == RAM:
            return self.edge_cost(self._everywhere(RAM), output)
        firsts = self._gpus[: self._gpus.index(output) + 1] if self.run.output_follows else self._gpus
        lasts = [output] if self.run.output_follows else self._gpus
        homes = [[first] * (layers - 1) + [last] for first in firsts for last in lasts]
        return min(self.edge_cost(self._reference(each, [False] * layers), output) for each in homes)

    def edge_cost(self, layers: Sequence[LayerPlaces], output: str) -> float:
        """Objective of everything outside the layers."""
        run = self.run

        def price(step: Step) -> float:
            return Price.of(run.edges(layers, output, step), run.rates).seconds

        total = self.weights.prefill * sum(n * price(step) for step, n in self._prefill)
        return total + (self.weights.decode * price(run.decode_step) if self.weights.decode else 0.0)

    def room(self, output: str, *, spilled: bool) -> dict[str, float]:
        """Bytes that layers may fill on each tier: capacity less margin, buffers, runtime and what is outside layers.

        Buffers depend on the placement, so each tier takes the largest over placements that make every buffer appear.
        """
        key = (output, spilled)
        if key not in self._outside:
            self._outside[key] = self._outside_layers(output, spilled=spilled)
        if self._capacity is None:
            uses = self.run.memory(self._everywhere(self.run.homes[0]), self.run.embedding_place, output)
            self._capacity = {tier: use.capacity for tier, use in uses.items()}
        return {
            tier: self._capacity.get(tier, 0.0) - (self.run.margin if tier != RAM else 0.0) - outside
            for tier, outside in self._outside[key].items()
        }

    def _outside_layers(self, output: str, *, spilled: bool) -> dict[str, float]:
        """Bytes of each tier that hold no layer: the most over placements that make every buffer appear."""
        run = self.run
        outside: dict[str, float] = {}
        for layers in self._references(spilled=spilled):
            held: dict[str, float] = {}
            for (index, places), count in run.distinct(layers).items():
                for tier, size in self.tier_bytes(run.classes[index].layer, places).items():
                    held[tier] = held.get(tier, 0.0) + count * size
            for tier, use in run.memory(layers, run.embedding_place, output).items():
                rest = use.used - held.get(tier, 0.0)
                outside[tier] = max(outside.get(tier, rest), rest)
        return outside

    def _references(self, *, spilled: bool) -> list[list[LayerPlaces]]:
        """Placements in which every buffer appears: layers that keep all and layers that keep nothing on their GPU."""
        if not self._gpus:
            return [self._everywhere(RAM)]
        count = len(self.run.setup.model.layers)
        share = -(-count // len(self._gpus))
        homes = [self._gpus[index // share] for index in range(count)]
        whole = self._reference(homes, [False] * count)
        if not spilled:
            return [whole]
        others = [home for home in self.run.homes if home not in self._gpus]
        elsewhere = [self._everywhere(home) for home in others]
        half = count // 2  # a GPU that takes over from the host holds what comes from there as well
        behind = [self._gpus[index * len(self._gpus) // (count - half)] for index in range(count - half)]
        elsewhere += [
            self._reference([home] * half + behind, [odd] * count) for home in others for odd in (False, True)
        ]
        turn = {index: k % 2 for members in self.run.classes for k, index in enumerate(members.indices)}
        mixed = [self._reference(homes, [turn[index] == odd for index in range(count)]) for odd in (0, 1)]
        return [whole, self._reference(homes, [True] * count), *mixed, *elsewhere]

    def _everywhere(self, home: str) -> list[LayerPlaces]:
        count = len(self.run.setup.model.layers)
        return self._reference([home] * count, [True] * count)

    def _reference(self, homes: Sequence[str], spilled: Sequence[bool]) -> list[LayerPlaces]:
        """Every layer by the pattern of its home that keeps most, or least, in host memory."""
        chosen: dict[int, LayerPlaces] = {}
        for members in self.run.classes:
            patterns = self.run.patterns(members)
            sizes = [self.run.layer_bytes(members.layer, places).get(RAM, 0.0) for places in patterns]
            for index in members.indices:
                mine = [(size, k) for k, size in enumerate(sizes) if patterns[k].mixer == homes[index]]
                chosen[index] = patterns[(max(mine) if spilled[index] else min(mine))[1]]
        return [chosen[index] for index in range(len(homes))]


def _weight_places(column: Column) -> set[str]:
    return {column.places.mixer, *(place for _, place in column.places.ffn)}
