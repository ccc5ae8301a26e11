"""Choices that somebody could have made: two runs that answer the same question, and which of them is better."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from stowplan.validate.rows import Row

DIFFERENT = 0.10
"""Measurements that differ by no more than this are no choice: repeats of one run differ as much."""

_NO_CHOICE = ("memory", "capacity", "largest")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs of the same model on the same machine that answer the same question in another way.

    Attributes:
        better, worse: by measurement; the same row twice where it is the ratio of both.
        gain: better over worse as measured, at least 1.
        predicted_gain: the same of the predictions; above 1 the winner was predicted.
    """

    better: Row
    worse: Row
    gain: float
    predicted_gain: float

    @property
    def predicted(self) -> bool:
        """Whether the prediction names the same winner."""
        return self.predicted_gain > 1.0

    @property
    def group(self) -> str:
        """What the pair is counted in: the systems that were compared, and the figure."""
        systems = sorted({self.better.system, self.worse.system})
        return f"{' against '.join(systems)} {self.better.figure}"

    @property
    def records(self) -> tuple[str, str]:
        """Both records: pairs of points of the same two records are not independent."""
        first, second = sorted((self.better.record, self.worse.record))
        return first, second


@dataclass(frozen=True, slots=True)
class Winners:
    """How often the winner was predicted.

    Attributes:
        name: the group.
        pairs: pairs of figures that differ by more than `DIFFERENT`; choices: pairs of records that they come from.
        share: share of choices whose winner was predicted, points of the same two records sharing one vote.
        median_gain: median of what the better one was faster by, as a factor.
    """

    name: str
    pairs: int
    choices: int
    share: float
    median_gain: float


def pairs_of(rows: Iterable[Row], different: float = DIFFERENT) -> list[Pair]:
    """Every pair of rows with the same question and figure, another run or system, and measurements that differ.

    A row that is a ratio of two speeds is a pair by itself.
    """
    questions: dict[tuple[str, str], list[Row]] = {}
    found: list[Pair] = []
    for row in rows:
        if row.figure == "speed-up":
            found += _ratio(row, different)
        elif row.figure not in _NO_CHOICE:
            questions.setdefault((row.question, row.figure), []).append(row)
    return found + [pair for group in questions.values() for pair in _pairs(group, different)]


def _ratio(row: Row, different: float) -> Iterator[Pair]:
    """A published ratio of speeds is a pair by itself."""
    if row.measured > 1.0 + different:
        yield Pair(row, row, row.measured, row.predicted)
    elif row.measured < 1.0 / (1.0 + different):
        yield Pair(row, row, 1.0 / row.measured, 1.0 / row.predicted)


def _pairs(rows: Sequence[Row], different: float) -> Iterator[Pair]:
    for first, second in combinations(rows, 2):
        if (first.run, first.system) == (second.run, second.system):
            continue  # the same run again, or another build of the engine
        wins = (first.measured < second.measured) == first.smaller_is_better
        better, worse = (first, second) if wins else (second, first)
        gain = _gain(better.measured, worse.measured, better.smaller_is_better)
        if gain > 1.0 + different:
            yield Pair(better, worse, gain, _gain(better.predicted, worse.predicted, better.smaller_is_better))


def _gain(better: float, worse: float, smaller: bool) -> float:
    return worse / better if smaller else better / worse


def winners(name: str, pairs: Sequence[Pair]) -> Winners:
    """Share of a group of pairs, which is not empty."""
    points = Counter(pair.records for pair in pairs)
    gains = sorted(pair.gain for pair in pairs)
    return Winners(
        name=name,
        pairs=len(pairs),
        choices=len(points),
        share=math.fsum(1.0 / points[pair.records] for pair in pairs if pair.predicted) / len(points),
        median_gain=gains[len(gains) // 2],
    )


def wrong_choices(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs whose winner was not predicted, one for each two records, by how much the better one gains."""
    chosen: dict[tuple[str, tuple[str, str]], Pair] = {}
    for pair in sorted(pairs, key=lambda p: (-p.gain, p.better.id, p.worse.id)):
        if not pair.predicted:
            chosen.setdefault((pair.group, pair.records), pair)
    return list(chosen.values())


def by_group(pairs: Iterable[Pair]) -> list[Winners]:
    """Winners of every group, in alphabetical order."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    return [winners(name, groups[name]) for name in sorted(groups)]
