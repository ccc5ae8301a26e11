"""Places below the GPU that keep blocks of the cache: host memory, disk, a remote store.

What leaves a tier is written to the one below it, where it is missing there, and what is read from a tier stays in it.
Writes go in the background at the tier's speed; what would have to wait too long for its turn is dropped, as a writer
with a bounded buffer drops it, and so is what would be larger than the tier. A full tier parts with whole segments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from stowplan.errors import InputError
from stowplan.serving.eviction import EvictionName, Shelf, make_shelf

Ranges = tuple[tuple[int, int], ...]
"""Ranges of blocks of a segment, in rising order and apart from each other; nearly always one."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A place for blocks.

    Attributes:
        name: what people call it: host, disk, remote.
        blocks: blocks that it holds.
        read: seconds per block on every link that a block passes on its way to the GPU, by name of the link.
        write_s_per_block: seconds per block written.
        latency_s: seconds before the first block of a read comes.
        patience_s: seconds that a write may wait for its turn.

    Raises:
        InputError: a figure out of its range.
    """

    name: str
    blocks: int
    read: Mapping[str, float]
    write_s_per_block: float
    latency_s: float = 0.0
    patience_s: float = 1.0

    def __post_init__(self) -> None:
        seconds = (*self.read.values(), self.write_s_per_block, self.latency_s, self.patience_s)
        if self.blocks < 0 or not self.read or not all(isfinite(s) and s >= 0.0 for s in seconds):
            raise InputError(f"tier '{self.name}': needs a capacity, a link to read through, and times of 0 or more")


@dataclass(slots=True)
class Traffic:
    """Blocks that went through a tier.

    Attributes:
        write_s_per_block: seconds per block written.
        read, written, dropped, evicted: blocks.
        peak: most blocks held at a time.
    """

    write_s_per_block: float
    read: int = 0
    written: int = 0
    dropped: int = 0
    evicted: int = 0
    peak: int = 0

    @property
    def busy_s(self) -> float:
        """Seconds of writing."""
        return self.written * self.write_s_per_block


class _Store:
    """What a tier holds, and its account.

    Args:
        tier: what it is.
        below: where what leaves it goes; None for nowhere.
        copies: by segment, in how many tiers there is something of it.
        shelf: which segment goes first.
    """

    __slots__ = (
        "_below",
        "_blocks",
        "_busy_until",
        "_copies",
        "_patience_s",
        "_write_s",
        "held",
        "shelf",
        "traffic",
        "used",
    )

    def __init__(self, tier: Tier, below: _Store | None, copies: list[int], shelf: Shelf) -> None:
        self._below, self._blocks, self._patience_s = below, tier.blocks, tier.patience_s
        self._copies, self.shelf, self.traffic = copies, shelf, Traffic(tier.write_s_per_block)
        self.held: dict[int, Ranges] = {}
        self.used, self._busy_until, self._write_s = 0, 0.0, tier.write_s_per_block

    def put(self, segment: int, start: int, end: int, now: float) -> None:
        """See `Hierarchy`."""
        there, new = self.held.get(segment), end - start
        if there is None:
            ranges: Ranges = ((start, end),)
        elif there[0][0] == end and len(there) == 1:  # the usual case: a segment leaves the tier above end first
            ranges = ((start, there[0][1]),)
        else:
            new, ranges = _joined(there, start, end)
            if not new:
                return
        too_large = ranges[-1][1] - ranges[0][0] > self._blocks and _count(ranges) > self._blocks
        if too_large or self._busy_until > now + self._patience_s:
            self.traffic.dropped += new
            return
        if there is None:
            self._copies[segment] += 1
        self.held[segment] = ranges
        self.shelf.put(segment)
        begin = self._busy_until if self._busy_until > now else now
        self._busy_until = begin + new * self._write_s
        traffic = self.traffic
        traffic.written += new
        self.used += new
        if self.used > self._blocks:
            traffic.peak = self._blocks
            self._make_room(now)
        elif self.used > traffic.peak:
            traffic.peak = self.used

    def _make_room(self, now: float) -> None:
        """Part with segments until the others fit."""
        shelf, below = self.shelf, self._below
        while self.used > self._blocks:
            going = shelf.first()
            shelf.drop()
            self._copies[going] -= 1
            for first, last in self.held.pop(going)[::-1]:
                self.used -= last - first
                self.traffic.evicted += last - first
                if below is not None:
                    below.put(going, first, last, now)


def _joined(held: Ranges, start: int, end: int) -> tuple[int, Ranges]:
    """Blocks of ``[start, end)`` that are new beside what is held, and all ranges together."""
    new = end - start - sum(max(0, min(end, last) - max(start, first)) for first, last in held)
    apart = [each for each in held if each[1] < start or end < each[0]]
    for first, last in held:
        if not (last < start or end < first):
            start, end = min(start, first), max(end, last)
    return new, tuple(sorted([*apart, (start, end)]))


def _count(ranges: Ranges) -> int:
    return sum(last - first for first, last in ranges)


class Hierarchy:
    """The tiers below the GPU, nearest first.

    Args:
        tiers: what they are.
        eviction: which segment goes first.
        worth: by segment, seconds that a block of it saves; changed by others.

    Attributes:
        copies: by segment, in how many tiers there is something of it.
    """

    def __init__(self, tiers: Sequence[Tier], eviction: EvictionName, worth: Sequence[float]) -> None:
        self.tiers = tuple(tiers)
        self.copies = [0] * len(worth)
        never = bytes(len(worth))
        stores: list[_Store] = []
        for tier in reversed(self.tiers):
            below = stores[-1] if stores else None
            stores.append(_Store(tier, below, self.copies, make_shelf(eviction, never, worth)))
        self._stores = stores[::-1]

    @property
    def traffic(self) -> list[Traffic]:
        """What went through each tier."""
        return [store.traffic for store in self._stores]

    @property
    def held(self) -> list[int]:
        """Blocks in each tier now."""
        return [store.used for store in self._stores]

    def find(self, segment: int, start: int) -> tuple[int, int]:
        """The nearest tier that has the segment from block `start` on, and the end of what it has; (-1, start) if none.

        Args:
            segment: number of the segment.
            start: blocks of it that are there already.
        """
        for level, store in enumerate(self._stores):
            for first, last in store.held.get(segment, ()):
                if first <= start < last:
                    return level, last
        return -1, start

    def read(self, level: int, segment: int, blocks: int) -> None:
        """Blocks of a segment are read: it was used now."""
        store = self._stores[level]
        store.shelf.put(segment)
        store.traffic.read += blocks

    def put(self, segment: int, start: int, end: int, now: float) -> None:
        """Blocks ``[start, end)`` of a segment leave the GPU; what they push out goes down, and at last away."""
        self._stores[0].put(segment, start, end, now)
