"""A routing trace: for every token, in order, the experts of one layer that it was sent to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from stowplan.errors import InputError


@dataclass(frozen=True, slots=True)
class RoutingTrace:
    """Routing of one layer.

    Attributes:
        experts: how many routed experts the layer has.
        tokens: per token the experts that it was sent to, distinct, ascending.
        scores: per token the router's score of every expert, or None where only the choice was recorded.

    Raises:
        InputError: no token, an expert out of range or named twice, or scores of another shape.
    """

    experts: int
    tokens: tuple[tuple[int, ...], ...]
    scores: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.experts < 1 or not self.tokens:
            raise InputError("a routing trace needs at least one expert and one token")
        for number, chosen in enumerate(self.tokens):
            if not chosen or len(set(chosen)) != len(chosen) or not 0 <= min(chosen) <= max(chosen) < self.experts:
                raise InputError(
                    f"routing trace: token {number} names {list(chosen)[:12]}; it must name distinct experts from 0 "
                    f"to {self.experts - 1}"
                )
        if self.scores is not None and (
            len(self.scores) != len(self.tokens) or any(len(row) != self.experts for row in self.scores)
        ):
            raise InputError(f"routing trace: scores must be one row of {self.experts} numbers per token")

    @property
    def active(self) -> float:
        """Mean number of experts of one token."""
        return sum(map(len, self.tokens)) / len(self.tokens)

    def popularity(self) -> list[float]:
        """Share of the tokens that each expert serves, by expert."""
        served = [0] * self.experts
        for chosen in self.tokens:
            for expert in chosen:
                served[expert] += 1
        return [count / len(self.tokens) for count in served]


def popularity_classes(popularity: Sequence[float], classes: int) -> list[tuple[int, float]]:
    """Experts, most popular first, in groups of nearly equal size: (how many, mean share of tokens each serves).

    A planner decides on a class as a whole, so that thousands of experts are a few dozen numbers.

    Raises:
        InputError: fewer than one class.
    """
    if classes < 1:
        raise InputError(f"there must be at least one popularity class, not {classes}")
    ordered = sorted(popularity, reverse=True)
    count = min(classes, len(ordered))
    edges = [round(number * len(ordered) / count) for number in range(count + 1)]
    groups = [ordered[first:last] for first, last in pairwise(edges)]
    return [(len(group), sum(group) / len(group)) for group in groups]
