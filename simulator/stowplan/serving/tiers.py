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
from stowplan.serving.eviction import EvictionName, Ranges, make_shelf


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
        read, written, dropped, evicted: blocks.
        peak: most blocks held at a time.
        busy_s: seconds of writing.
    """

    read: int = 0
    written: int = 0
    dropped: int = 0
    evicted: int = 0
    peak: int = 0
    busy_s: float = 0.0


class _Store:
    """What a tier holds, and its account."""

    __slots__ = ("busy_until", "shelf", "tier", "traffic", "used")

    def __init__(self, tier: Tier, eviction: EvictionName) -> None:
        self.tier, self.shelf = tier, make_shelf(eviction)
        self.used, self.busy_until = 0, 0.0
        self.traffic = Traffic()


def _joined(held: Ranges, start: int, end: int) -> tuple[int, Ranges]:
    """Blocks of ``[start, end)`` that are new beside what is held, and all ranges together."""
    if len(held) == 1 and held[0][0] == end:  # the usual case: a segment leaves the tier above end first
        return end - start, ((start, held[0][1]),)
    new = end - start - sum(max(0, min(end, last) - max(start, first)) for first, last in held)
    apart = [each for each in held if each[1] < start or end < each[0]]
    for first, last in held:
        if not (last < start or end < first):
            start, end = min(start, first), max(end, last)
    return new, tuple(sorted([*apart, (start, end)]))


class Hierarchy:
    """The tiers below the GPU, nearest first.

    Args:
        tiers: what they are.
        eviction: which segment goes first.
        segments: number of segments.

    Attributes:
        copies: by segment, in how many tiers there is something of it.
    """

    def __init__(self, tiers: Sequence[Tier], eviction: EvictionName, segments: int) -> None:
        self.tiers = tuple(tiers)
        self.copies = [0] * segments
        self._stores = [_Store(tier, eviction) for tier in tiers]

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
            if segment in store.shelf:
                for first, last in store.shelf[segment]:
                    if first <= start < last:
                        return level, last
        return -1, start

    def read(self, level: int, segment: int, blocks: int) -> None:
        """Blocks of a segment are read: it was used now."""
        store = self._stores[level]
        ranges = store.shelf.take(segment)
        store.shelf.put(segment, ranges, store.shelf.worth)
        store.traffic.read += blocks

    def put(self, segment: int, start: int, end: int, worth: float, now: float) -> None:
        """Blocks ``[start, end)`` of a segment leave the GPU; what they push out goes down, and at last away."""
        self._put(0, segment, start, end, worth, now)

    def _put(self, level: int, segment: int, start: int, end: int, worth: float, now: float) -> None:
        store = self._stores[level]
        tier, traffic, shelf = store.tier, store.traffic, store.shelf
        new, all_of_it = end - start, end - start
        ranges: Ranges = ((start, end),)
        there = segment in shelf
        if there:
            new, ranges = _joined(shelf[segment], start, end)
            if not new:
                return
            all_of_it = sum(last - first for first, last in ranges)
        if all_of_it > tier.blocks or store.busy_until > now + tier.patience_s:
            traffic.dropped += new
            return
        if there:
            shelf.take(segment)
        else:
            self.copies[segment] += 1
        shelf.put(segment, ranges, worth)
        seconds = new * tier.write_s_per_block
        store.busy_until = (store.busy_until if store.busy_until > now else now) + seconds
        traffic.busy_s += seconds
        traffic.written += new
        store.used += new
        if store.used > traffic.peak:
            traffic.peak = min(store.used, tier.blocks)
        while store.used > tier.blocks:
            going, ranges = shelf.take_first()
            self.copies[going] -= 1
            for first, last in reversed(ranges):
                store.used -= last - first
                traffic.evicted += last - first
                if level + 1 < len(self._stores):
                    self._put(level + 1, going, first, last, shelf.worth, now)
