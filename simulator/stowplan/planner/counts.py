"""What the placement programme is made of (classes, patterns, room), and what the counts that solve it mean.

Layers that no cost can tell apart form a class c; a pattern p is one way to place such a layer. n[c,p] counts the
layers of class c that are placed by pattern p. Costs and bytes are sums over layers, so both are linear in n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stowplan.plan import Solver
from stowplan.systems.base import RAM
from stowplan.systems.serial import LayerPlaces

GAP = 1e-3
"""Relative gap at which a solution counts as optimal."""

TIME_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Column:
    """One pattern of one class: its cost in seconds and its bytes by tier."""

    places: LayerPlaces
    cost: float
    bytes: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Placement:
    """Data of one programme.

    Attributes:
        classes: layer indices of each class.
        columns: patterns of each class.
        homes: places that a mixer may live in, in the order that layers take them (host memory first).
        room: bytes of each tier that layers may fill.
        constant: seconds that no placement avoids.
        spill_cost: seconds per byte of host memory beyond its room (pages read from disk); None where it may not.
        last: home that the last layer must have, the last of `homes`; None where it is free.
    """

    classes: Sequence[Sequence[int]]
    columns: Sequence[Sequence[Column]]
    homes: Sequence[str]
    room: Mapping[str, float]
    constant: float = 0.0
    spill_cost: float | None = None
    last: str | None = None


@dataclass(frozen=True, slots=True)
class Solved:
    """An optimal placement: places of every layer, seconds, the proof, and what a byte of each tier is worth."""

    layers: list[LayerPlaces]
    cost: float
    solver: Solver


def homes_in_use(data: Placement) -> list[str]:
    """Homes that some pattern has, in the order that layers take them."""
    used = {column.places.mixer for columns in data.columns for column in columns}
    return [home for home in data.homes if home in used]


def last_class(data: Placement) -> int:
    """The class of the last layer."""
    return max(range(len(data.classes)), key=lambda each: max(data.classes[each]))


def spread(data: Placement, counts: Sequence[Sequence[int]]) -> list[LayerPlaces]:
    """Concrete layers: homes in order along the model; inside a home, the patterns with most in host memory first."""
    layers: list[LayerPlaces | None] = [None] * sum(len(members) for members in data.classes)
    for members, columns, numbers in zip(data.classes, data.columns, counts, strict=True):
        order = sorted(
            (p for p in range(len(columns)) if numbers[p]),
            key=lambda p: (
                data.homes.index(columns[p].places.mixer),
                -columns[p].bytes.get(RAM, 0.0),
                columns[p].places.ffn,
            ),
        )
        sequence = [columns[p].places for p in order for _ in range(numbers[p])]
        for index, places in zip(sorted(members), sequence, strict=True):
            layers[index] = places
    return [places for places in layers if places is not None]


def undominated(columns: Sequence[Column]) -> list[Column]:
    """Columns that no other column with the same home beats in cost and in every tier's bytes."""
    kept: list[Column] = []
    for column in sorted(columns, key=lambda c: (c.cost, sum(c.bytes.values()))):
        beaten = any(
            other.places.mixer == column.places.mixer
            and other.cost <= column.cost
            and all(other.bytes.get(tier, 0.0) <= column.bytes.get(tier, 0.0) for tier in {*other.bytes, *column.bytes})
            for other in kept
        )
        if not beaten:
            kept.append(column)
    return kept
