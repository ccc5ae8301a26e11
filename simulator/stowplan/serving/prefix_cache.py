"""Prefix cache: blocks that finished or running prompts left on the GPU, and in the tiers below it.

A prompt that is admitted keeps its segments from being evicted; when it is done, they may go, the end of the prompt
first. Blocks that may go count as free for everyone else, and leave as soon as somebody takes their room. As vLLM does,
a prompt whose blocks are all there still processes its last block.

What lies in a lower tier is loaded or computed again, whichever is expected to take less time for that prompt alone:
a step computes and copies at the same time, layer by layer.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from stowplan.serving.chains import Chains
from stowplan.serving.eviction import EvictionName, make_shelf
from stowplan.serving.tables import StepTables
from stowplan.serving.tiers import Hierarchy, Tier, Traffic

_SAMPLES = 1024


class Found(NamedTuple):
    """What a prompt finds.

    Attributes:
        tokens: tokens that need no computing.
        pinned: blocks of them that running sequences hold already.
        loads: (tier, segment, blocks) to read.
        link_s: seconds that the loads take on every link.
        latency_s: seconds before the first block comes.
    """

    tokens: int
    pinned: int
    loads: tuple[tuple[int, int, int], ...] = ()
    link_s: tuple[float, ...] = ()
    latency_s: float = 0.0


NOTHING = Found(0, 0)


class PrefixCache:
    """Blocks of prompts on the GPU and below it.

    Args:
        chains: segments of every prompt.
        tables: what computing costs.
        tiers: places below the GPU, nearest first.
        eviction: which segment goes first.

    Attributes:
        links: names of the links that loads pass.
        loose_blocks: blocks that may go.
        hits: tokens found by place, the GPU first; looked_up: tokens of all prompts that were admitted.
        samples: (moment, free blocks, blocks that may go, blocks in each tier), now and then.
    """

    def __init__(
        self, chains: Chains, tables: StepTables, tiers: Sequence[Tier] = (), eviction: EvictionName = "lru"
    ) -> None:
        self._offsets, self._segments, self._sizes = chains.offsets, chains.segments, chains.sizes
        self._block = chains.block_tokens
        self._tables = tables
        self._below = Hierarchy(tiers, eviction, len(chains.sizes)) if tiers else None
        # arrays, not lists: what is looked up at random fits into the processor's cache
        self._present = array("i", bytes(4 * len(self._sizes)))
        self._holders = array("i", bytes(4 * len(self._sizes)))
        self._loose = make_shelf(eviction)
        self._costly = eviction == "cost"
        self._worth: dict[int, float] = {}
        self._detached: set[int] = set()
        self.links = tuple(dict.fromkeys(name for tier in tiers for name in tier.read))
        self.loose_blocks = 0
        self.hits = [0] * (1 + len(tiers))
        self.looked_up = 0
        self._taken, self._sample_at, self._stride = 0, 1, 1
        self.samples: list[tuple[float, ...]] = []

    def _sample(self, now: float, free: int) -> None:
        """Note what is where; twice as seldom each time that the notes have become many."""
        if len(self.samples) >= _SAMPLES:
            self.samples = self.samples[1::2]
            self._stride *= 2
        self._sample_at = self._taken + self._stride
        self.samples.append((now, free, *self.held))

    @property
    def traffic(self) -> list[Traffic]:
        """What went through each tier below the GPU."""
        return self._below.traffic if self._below else []

    @property
    def held(self) -> list[int]:
        """Blocks that may go on the GPU, and blocks in each tier below it."""
        return [self.loose_blocks, *(self._below.held if self._below else [])]

    def shrink(self, free: int, now: float) -> None:
        """Let go of what no longer fits into the free blocks; call it before `free` grows and before a look-up."""
        over = self.loose_blocks - free
        if over <= 0:
            return
        loose, present, below, worth = self._loose, self._present, self._below, self._worth
        self.loose_blocks = free
        while over > 0:
            segment = loose.first()
            end = present[segment]
            going = over if over < end else end
            over -= going
            present[segment] = end - going
            if going == end:
                loose.take_first()
            if below is not None:
                below.put(segment, end - going, end, worth[segment] if worth else 0.0, now)

    def look_up(self, request: int, length: int, busy: Callable[[int], Sequence[float]] | None = None) -> Found:
        """What is there for a prompt of `length` tokens; `shrink` has been called.

        Args:
            request: number of the request.
            length: tokens to process, those that it generated before it was preempted included.
            busy: seconds that weights occupy each of `links` in a step of so many tokens; None for none.
        """
        if self._detached and request in self._detached:
            return NOTHING
        blocks, pinned, stopped = self._scan(self._chain(request))
        most, below = (length - 1) // self._block, self._below
        if below is not None and stopped >= 0 and blocks < most and below.find(stopped, self._present[stopped])[0] >= 0:
            return self._with_loads(request, stopped, blocks, pinned, length, busy)
        return Found(min(blocks, most) * self._block, pinned)

    def _chain(self, request: int) -> array[int]:
        return self._segments[self._offsets[request] : self._offsets[request + 1]]

    def _scan(self, chain: array[int]) -> tuple[int, int, int]:
        """Blocks of a prompt on the GPU, those of them that are held, and the first segment that is not whole or -1."""
        blocks = pinned = 0
        present, holders, sizes = self._present, self._holders, self._sizes
        for segment in chain:
            there = present[segment]
            if there:
                blocks += there
                if holders[segment]:
                    pinned += there
            if there < sizes[segment]:
                return blocks, pinned, segment
        return blocks, pinned, -1

    def _with_loads(
        self,
        request: int,
        stopped: int,
        blocks: int,
        pinned: int,
        length: int,
        busy: Callable[[int], Sequence[float]] | None,
    ) -> Found:
        """The best of what lower tiers add, from the first segment on that the GPU has not whole."""
        below, last = self._below, self._offsets[request + 1]
        assert below is not None
        position = self._segments.index(stopped, self._offsets[request], last)
        most, size = (length - 1) // self._block, self._block
        runs: list[tuple[int, int, int]] = []
        there, end = blocks, self._present[self._segments[position]]
        while position < last and there < most:
            segment = self._segments[position]
            level, until = below.find(segment, end)
            if level < 0:
                break
            until = min(until, end + most - there)
            runs.append((level, segment, until - end))
            there += until - end
            end = until
            if end == self._sizes[segment]:
                position, end = position + 1, 0
        best = Found(blocks * size, pinned)
        least, link_s, latency = self._alone(best, length, busy), [0.0] * len(self.links), 0.0
        found = blocks
        for count, (level, _, loaded) in enumerate(runs, 1):
            tier = below.tiers[level]
            for name, seconds in tier.read.items():
                link_s[self.links.index(name)] += seconds * loaded
            latency = max(latency, tier.latency_s)
            found += loaded
            option = Found(found * size, pinned, tuple(runs[:count]), tuple(link_s), latency)
            seconds = self._alone(option, length, busy)
            if seconds <= least:
                best, least = option, seconds
        return best

    def _alone(self, found: Found, length: int, busy: Callable[[int], Sequence[float]] | None) -> float:
        """Seconds of a step that processes only this prompt."""
        tokens, tables = length - found.tokens, self._tables
        compute = tables.body[tokens] + tables.chunk_attention(tokens, found.tokens)
        if not found.link_s:
            return compute
        occupied = busy(tokens) if busy else (0.0,) * len(found.link_s)
        return found.latency_s + max(compute, *(s + o for s, o in zip(found.link_s, occupied, strict=True)))

    def admit(self, request: int, length: int, room: int, now: float, free: int) -> int:
        """`look_up` and `take` in one where nothing has to be loaded, for a caller in a hurry.

        Args:
            request, length: the prompt.
            room: blocks that it may take.
            now, free: as `take` has them.

        Returns:
            ``tokens << 32 | pinned`` of what was found; -1 where there is no room; -2 where the prompt is better looked
            up, since some of it lies in a lower tier or it shares nothing any more.
        """
        if self._detached and request in self._detached:
            return -2
        chain = self._chain(request)
        blocks, pinned, stopped = self._scan(chain)
        if stopped >= 0 and self._below is not None and self._below.copies[stopped]:
            return -2
        if -(-length // self._block) - pinned > room:
            return -1
        most = (length - 1) // self._block
        tokens = (blocks if blocks < most else most) * self._block
        self.hits[0] += tokens
        self._note(length, now, free)
        self._pin(chain)
        return tokens << 32 | pinned

    def _note(self, length: int, now: float, free: int) -> None:
        """A prompt of `length` tokens was admitted."""
        self.looked_up += length
        self._taken += 1
        if self._taken >= self._sample_at:
            self._sample(now, free)

    def _pin(self, chain: array[int]) -> None:
        """One more sequence holds these segments, which are all on the GPU from now on."""
        present, holders, sizes, remove = self._present, self._holders, self._sizes, self._loose.take
        for segment in chain:
            if holders[segment]:
                holders[segment] += 1
                continue
            there = present[segment]
            if there:
                remove(segment)
                self.loose_blocks -= there
            present[segment] = sizes[segment]
            holders[segment] = 1

    def take(self, request: int, length: int, found: Found, now: float, free: int) -> None:
        """The prompt is admitted: all of its whole blocks are its own or shared from now on.

        Args:
            request, length: the prompt.
            found: what `look_up` said of it.
            now, free: moment and free blocks, which are noted every now and then.
        """
        self._note(length, now, free)
        loaded = 0
        if found.loads:
            assert self._below is not None
            for level, segment, blocks in found.loads:
                self._below.read(level, segment, blocks)
                self.hits[1 + level] += blocks * self._block
                loaded += blocks
        self.hits[0] += found.tokens - loaded * self._block
        if not (self._detached and request in self._detached):
            self._pin(self._chain(request))

    def release(self, request: int, computed: int | None = None) -> int:
        """The sequence gives its blocks back: those of its prompt stay until somebody needs the room.

        `shrink` has been called.

        Args:
            request: number of the request.
            computed: blocks of its prompt that were processed; None for all.

        Returns:
            Blocks that others go on holding.
        """
        if self._detached and request in self._detached:
            return 0
        present, holders, sizes, put = self._present, self._holders, self._sizes, self._loose.put
        chain = self._chain(request)
        worth = self._worth_of(chain) if self._costly else 0.0
        kept, loose = 0, 0
        behind = 0 if computed is None else sum(sizes[segment] for segment in chain)
        for segment in reversed(chain):
            if computed is not None:
                behind -= sizes[segment]
            if holders[segment] > 1:
                holders[segment] -= 1
                kept += sizes[segment]
                continue
            holders[segment] = 0
            if computed is not None:
                present[segment] = min(sizes[segment], max(0, computed - behind))
                if not present[segment]:
                    continue
            loose += present[segment]
            put(segment, (), worth)
            if self._costly:
                self._worth[segment] = worth
        self.loose_blocks += loose
        return kept

    def detach(self, request: int) -> None:
        """The sequence shares nothing from now on: its cache was copied away and comes back as its own."""
        self._detached.add(request)

    def _worth_of(self, chain: array[int]) -> float:
        """Seconds of computing per block at the end of a prompt."""
        blocks = sum(self._sizes[segment] for segment in chain)
        tables, size = self._tables, self._block
        whole = len(tables.body) - 1
        return tables.body[whole] / whole * size + tables.chunk_attention(size, blocks * size)
