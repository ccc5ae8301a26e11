"""FlexGen's block schedule: which unit is computed for which GPU batch, and what is loaded and stored meanwhile.

A *unit* is one entry of FlexGen's layer list: the embedding, the attention half or the MLP half of a layer (or both,
without ``sep_layer``), the output. An *iteration* computes one unit for one GPU batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stowplan.models.model import Layer, Model
from stowplan.systems.flexgen_policy import Group, edge_groups, layer_groups


@dataclass(frozen=True, slots=True)
class Unit:
    """One entry of FlexGen's layer list: its groups of weights, and its layer (None for embedding and output)."""

    groups: tuple[Group, ...]
    layer: Layer | None

    @property
    def attends(self) -> bool:
        """Whether it reads and writes a cache."""
        return any(group.kind == "attention" for group in self.groups)


@dataclass(frozen=True, slots=True)
class Slot:
    """An iteration up to repetition.

    Attributes:
        before, unit, after: index of the previous, the computed and the next unit among the distinct ones.
        first, last: whether the GPU batch is the first or the last of its unit.
    """

    before: int
    unit: int
    after: int
    first: bool
    last: bool


def layer_list(model: Model, sep_layer: bool) -> tuple[list[Unit], list[int]]:
    """Distinct units, and which of them follow each other in a step."""
    distinct: list[Unit] = []
    known: dict[object, int] = {}
    sequence: list[int] = []

    def append(groups: tuple[Group, ...], layer: Layer | None) -> None:
        key = (groups, None if layer is None else (layer.mixer, layer.experts))
        if key not in known:
            known[key] = len(distinct)
            distinct.append(Unit(groups, layer))
        sequence.append(known[key])

    first, last = edge_groups(model)
    append((first,), None)
    for layer in model.layers:
        attention, mlp = layer_groups(layer)
        for groups in ((attention,), (mlp,)) if sep_layer else ((attention, mlp),):
            append(groups, layer)
    append((last,), None)
    return distinct, sequence


def slots_of(sequence: Sequence[int], batches: int) -> Counter[Slot]:
    """Iterations of one step with their multiplicities."""
    found: Counter[Slot] = Counter()
    neighbours = Counter(zip([sequence[-1], *sequence[:-1]], sequence, [*sequence[1:], sequence[0]], strict=True))
    for (before, unit, after), times in neighbours.items():
        for first, last, count in _positions(batches):
            found[Slot(before, unit, after, first, last)] += count * times
    return found


def _positions(batches: int) -> list[tuple[bool, bool, int]]:
    """(first, last, how many) of the GPU batches of a unit."""
    if batches == 1:
        return [(True, True, 1)]
    return [(True, False, 1), (False, True, 1)] + ([(False, False, batches - 2)] if batches > 2 else [])
