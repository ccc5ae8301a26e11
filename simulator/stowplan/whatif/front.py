"""The Pareto front: variants that no other beats in everything that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stowplan.errors import UnknownName
from stowplan.whatif.outcome import Outcome

_GIB = 2.0**30


@dataclass(frozen=True, slots=True)
class Wish:
    """Something to have much or little of.

    Attributes:
        title, unit: for people.
        value: of an outcome, in that unit; None where it is not known.
        most: whether more is better.
    """

    title: str
    unit: str
    value: Callable[[Outcome], float | None]
    most: bool


def _figure(name: str, scale: float = 1.0) -> Callable[[Outcome], float | None]:
    def value(outcome: Outcome) -> float | None:
        found = outcome.figure(name)
        return None if found is None else scale * found

    return value


WISHES: Mapping[str, Wish] = {
    "throughput": Wish("decode", "tok/s", _figure("decode_tokens_per_s"), most=True),
    "latency": Wish("first token", "s", _figure("ttft_s"), most=False),
    "step": Wish("each token", "ms", _figure("tpot_s", 1e3), most=False),
    "memory": Wish(
        "GPU memory used", "GiB", lambda each: None if each.memory is None else each.gpu_bytes / _GIB, most=False
    ),
    "cost": Wish("price of the machine", "USD", lambda each: each.price_usd, most=False),
}
"""What a front may be drawn over."""

DEFAULT = ("latency", "throughput", "memory", "cost")


def wishes(names: Sequence[str]) -> list[Wish]:
    """Wishes by name.

    Raises:
        UnknownName: there is none of that name.
    """
    for name in names:
        if name not in WISHES:
            raise UnknownName("wish", name[:40], WISHES)
    return [WISHES[name] for name in names]


def front(outcomes: Sequence[Outcome], names: Sequence[str] = DEFAULT) -> list[int]:
    """Positions of outcomes that no other beats: at least as good in every wish and better in one.

    A wish that some outcome with a plan has no value for (a machine without a price) is left out for all.
    """
    planned = [k for k, outcome in enumerate(outcomes) if outcome.error is None]
    columns: list[list[float]] = []
    for wish in wishes(names):
        values = [wish.value(outcomes[k]) for k in planned]
        known = [(-value if wish.most else value) for value in values if value is not None]
        if len(known) == len(planned):
            columns.append(known)
    points = sorted((tuple(column[n] for column in columns), k) for n, k in enumerate(planned))
    kept: list[tuple[tuple[float, ...], int]] = []
    for point, k in points:  # whoever beats a point sorts before it
        beaten = any(other != point and all(x <= y for x, y in zip(other, point, strict=True)) for other, _ in kept)
        if not beaten:
            kept.append((point, k))
    return sorted(k for _, k in kept)
