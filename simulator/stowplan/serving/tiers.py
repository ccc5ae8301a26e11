"""Places below the GPU that keep blocks of the cache: host memory, disk, a remote store.

What leaves a tier is written to the one below it, where it is missing there, and what is read from a tier stays in it.
Writes go in the background at the tier's speed; what would have to wait too long for its turn is dropped, as a writer
with a bounded buffer drops it, and so is what would be larger than the tier. A full tier parts with whole segments.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from stowplan.errors import InputError
from stowplan.serving.account import Traffic
from stowplan.serving.eviction import EvictionName, GreedyDual, Piece, Shelf

Ranges = tuple[tuple[int, int], ...]
"""Ranges of blocks of a segment, in rising order and apart from each other; nearly always one."""
_MOST_COMING = 4096
"""Pieces that wait to be put away, about."""
Contents = tuple[float, list[int], list[Ranges]]
"""When a place has time to write, segments that it holds in the order in which they go, and what it holds of each."""


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


class _Store:
    """What a tier holds, and its account.

    Args:
        tier: what it is.
        copies: by segment, in how many tiers there is something of it.
        shelf: which segment goes first; None for the one whose last use is the longest ago.
    """

    __slots__ = (
        "_blocks",
        "_copies",
        "_patience_s",
        "_shelf",
        "_write_s",
        "busy_until",
        "held",
        "traffic",
        "used",
    )

    def __init__(self, tier: Tier, copies: list[int], shelf: Shelf | None) -> None:
        self._blocks, self._patience_s, self._write_s = tier.blocks, tier.patience_s, tier.write_s_per_block
        self._copies, self._shelf, self.traffic = copies, shelf, Traffic(tier.write_s_per_block)
        self.held: OrderedDict[int, Ranges] = OrderedDict()
        self.used, self.busy_until = 0, 0.0

    def put(self, coming: Iterable[Piece]) -> list[Piece]:
        """See `Hierarchy`; returns what had to go for it, in the order in which it went."""
        held, copies, shelf, traffic, most = self.held, self._copies, self._shelf, self.traffic, self._blocks
        used, busy_until, patience_s, write_s = self.used, self.busy_until, self._patience_s, self._write_s
        gone: list[Piece] = []
        written = evicted = 0
        for segment, start, end, now in coming:
            there = held.get(segment)
            if there is None:
                new = span = end - start
                ranges: Ranges = ((start, end),)
            elif there[0][0] == end and len(there) == 1:  # the usual case: a segment leaves the tier above end first
                new, last = end - start, there[0][1]
                span, ranges = last - start, ((start, last),)
            else:
                new, ranges = _joined(there, start, end)
                if not new:
                    continue
                span = _count(ranges)
            if span > most or busy_until > now + patience_s:
                traffic.dropped += new
                continue
            held[segment] = ranges
            if there is None:
                copies[segment] += 1
            else:
                held.move_to_end(segment)
            if shelf is not None:
                shelf.put(segment)
            busy_until = (busy_until if busy_until > now else now) + new * write_s
            written += new
            used += new
            while used > most:
                going, ranges = held.popitem(last=False) if shelf is None else self._least(shelf)
                copies[going] -= 1
                for first, last in reversed(ranges):
                    used -= last - first
                    evicted += last - first
                    gone.append((going, first, last, now))
        self.used, self.busy_until = used, busy_until
        traffic.written += written
        traffic.evicted += evicted
        traffic.peak = max(traffic.peak, most if evicted else used)
        return gone

    def _least(self, shelf: Shelf) -> tuple[int, Ranges]:
        going = shelf.first()
        shelf.drop()
        return going, self.held.pop(going)

    def read(self, segment: int, blocks: int) -> None:
        """See `Hierarchy`."""
        self.held.move_to_end(segment)
        if self._shelf is not None:
            self._shelf.put(segment)
        self.traffic.read += blocks

    def close_account(self) -> Traffic:
        """See `Hierarchy`."""
        closed, self.traffic = self.traffic, Traffic(self._write_s, peak=self.used)
        return closed


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

    What comes is put away when somebody wants to know where it is: most of it nobody ever asks for again.

    Args:
        tiers: what they are.
        eviction: which segment goes first.
        worth: by segment, seconds that a block of it saves; changed by others.

    Attributes:
        coming: what leaves the GPU, in this order; whoever adds to it calls `put_away` when it is longer than `most`.
    """

    def __init__(self, tiers: Sequence[Tier], eviction: EvictionName, worth: Sequence[float]) -> None:
        self.tiers = tuple(tiers)
        self.coming: list[Piece] = []
        self._copies = [0] * len(worth)
        self.most = _MOST_COMING if eviction == "lru" else 0  # when it comes matters where worth changes
        never = bytes(len(worth))
        shelves = (None if eviction == "lru" else GreedyDual(never, worth) for _ in self.tiers)
        self._stores = [_Store(tier, self._copies, shelf) for tier, shelf in zip(self.tiers, shelves, strict=True)]

    @property
    def traffic(self) -> list[Traffic]:
        """What went through each tier."""
        self.put_away()
        return [store.traffic for store in self._stores]

    def close_account(self) -> list[Traffic]:
        """What went through each tier since the last time; counting starts anew."""
        self.put_away()
        return [store.close_account() for store in self._stores]

    def contents(self, now: float) -> Iterator[Contents]:
        """What the future of each tier depends on, nearest first, where what was used last goes last."""
        self.put_away()
        for store in self._stores:
            yield max(now, store.busy_until), list(store.held), list(store.held.values())

    @property
    def held(self) -> list[int]:
        """Blocks in each tier now."""
        self.put_away()
        return [store.used for store in self._stores]

    def copies(self, segment: int) -> int:
        """In how many tiers there is something of a segment."""
        self.put_away()
        return self._copies[segment]

    def find(self, segment: int, start: int) -> tuple[int, int]:
        """The nearest tier that has the segment from block `start` on, and the end of what it has; (-1, start) if none.

        Args:
            segment: number of the segment.
            start: blocks of it that are there already.
        """
        self.put_away()
        for level, store in enumerate(self._stores):
            for first, last in store.held.get(segment, ()):
                if first <= start < last:
                    return level, last
        return -1, start

    def read(self, level: int, segment: int, blocks: int) -> None:
        """Blocks of a segment are read: it was used now."""
        self.put_away()
        self._stores[level].read(segment, blocks)

    def put_away(self) -> None:
        """Put what has come into the nearest tier; what a tier parts with goes to the next one, and at last away."""
        leaving = self.coming
        if leaving:
            self.coming = []
            for store in self._stores:
                leaving = store.put(leaving)
