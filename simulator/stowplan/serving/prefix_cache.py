"""Prefix cache: blocks that finished or running prompts left on the GPU, and in the tiers below it.

A prompt that is admitted keeps its segments from being evicted; when it is done, they may go, the end of the prompt
first. Blocks that may go count as free for everyone else, and leave as soon as somebody takes their room. As vLLM does,
a prompt whose blocks are all there still processes its last block.

When a request finishes, the whole blocks of its answer that a later prompt holds stay in the same way, as the end of
its prompt, and count as used then together with what is there of the same segment. Other answers begin no prompt, and
nobody would find them: their blocks are free at once. Who is preempted or given up leaves nothing of its answer.

What lies in a lower tier is loaded or computed again, whichever is expected to take less time for that prompt alone:
a step computes and copies at the same time, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from stowplan.serving.account import CacheAccount, Traffic
from stowplan.serving.chains import Chains
from stowplan.serving.eviction import EvictionName, make_shelf
from stowplan.serving.tables import StepTables
from stowplan.serving.tiers import Contents, Hierarchy, Tier

_SAMPLES = 1024
"""Notes of what is where that a replay takes, about."""
_ALWAYS = 1 << 62
"""Users of the root, which is in use whoever comes and goes."""


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

    A segment counts who uses it: the running sequences whose prompts end with it, and the segments behind it that are
    in use. So a prompt that comes or goes touches only its own end, up to the first segment that others use as well,
    and what is in use is always there as a whole.

    Args:
        chains: segments of every prompt.
        tables: what computing costs.
        tiers: places below the GPU, nearest first.
        eviction: which segment goes first.
        earlier: requests of the trace before the first of `chains`.
        trace_requests: requests of the whole trace; None for those of `chains`.

    Attributes:
        segments: number of segments; links: names of the links that loads pass.
        loose_blocks: blocks that may go.
        hits: tokens found by place, the GPU first; looked_up: tokens of all prompts that were admitted.
        samples: (moment, free blocks, blocks that may go, blocks in each tier), now and then.
    """

    def __init__(
        self,
        chains: Chains,
        tables: StepTables,
        tiers: Sequence[Tier] = (),
        eviction: EvictionName = "lru",
        *,
        earlier: int = 0,
        trace_requests: int | None = None,
    ) -> None:
        lists = chains.lists
        self._leaf, self._parent, self._ends, self._sizes = lists.leaf, lists.parent, lists.ends, lists.sizes
        self._answer, self._beyond = lists.answer, lists.beyond
        self._own_leaves = False
        self._block = chains.block_tokens
        self._tables = tables
        self.segments = count = len(self._sizes)
        self._missing = list(self._sizes)
        self._users = [0] * count
        self._users[0] = _ALWAYS
        self._costly = eviction == "cost"
        self._worth = [0.0] * count
        self._loose = make_shelf(eviction, self._users, self._worth)
        self._below = Hierarchy(tiers, eviction, self._worth) if tiers else None
        self.links = tuple(dict.fromkeys(name for tier in tiers for name in tier.read))
        self._known = bytearray(count)  # segments that have ever been on the GPU, and may have gone down
        self.loose_blocks = 0
        self.hits = [0] * (1 + len(tiers))
        self.looked_up = 0
        self._earlier = earlier
        self._stride = max(1, (len(chains.leaf) if trace_requests is None else trace_requests) // _SAMPLES)
        self.samples: list[tuple[float, ...]] = []

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
        self.loose_blocks = free
        below = self._below
        if below is None:
            self._loose.trim(over, self._sizes, self._missing, now, [])
        else:
            self._loose.trim(over, self._sizes, self._missing, now, below.coming)
            if len(below.coming) > below.most:
                below.put_away()

    def look_up(self, request: int, length: int, busy: Callable[[int], Sequence[float]] | None = None) -> Found:
        """What is there for a prompt of `length` tokens; `shrink` has been called.

        Args:
            request: number of the request.
            length: tokens to process, those that it generated before it was preempted included.
            busy: seconds that weights occupy each of `links` in a step of so many tokens; None for none.
        """
        users, parent, missing, ends = self._users, self._parent, self._missing, self._ends
        segment = leaf = self._leaf[request]
        broken = 0
        while not users[segment]:
            if missing[segment]:
                broken = segment
            segment = parent[segment]
        pinned = ends[segment]
        blocks = ends[broken] - missing[broken] if broken else ends[leaf]
        most, below = (length - 1) // self._block, self._below
        if below is not None and broken and blocks < most and below.copies(broken):
            return self._with_loads(leaf, broken, blocks, pinned, length, busy)
        return Found(min(blocks, most) * self._block, pinned)

    def _with_loads(
        self,
        leaf: int,
        broken: int,
        blocks: int,
        pinned: int,
        length: int,
        busy: Callable[[int], Sequence[float]] | None,
    ) -> Found:
        """The best of what lower tiers add, from the first segment on that the GPU has not whole."""
        below = self._below
        assert below is not None
        path = [leaf]
        while path[-1] != broken:
            path.append(self._parent[path[-1]])
        most, size = (length - 1) // self._block, self._block
        runs: list[tuple[int, int, int]] = []
        there, end = blocks, self._sizes[broken] - self._missing[broken]
        while path and there < most:
            level, until = below.find(path[-1], end)
            if level < 0:
                break
            until = min(until, end + most - there)
            runs.append((level, path[-1], until - end))
            there += until - end
            end = until
            if end == self._sizes[path[-1]]:
                path.pop()
                end = 0
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
        tokens = length - found.tokens
        tables = self._tables.of(tokens)
        compute = tables.body[tokens] + tables.chunk_attention(tokens, found.tokens)
        if not found.link_s:
            return compute
        occupied = busy(tokens) if busy else (0.0,) * len(found.link_s)
        return found.latency_s + max(compute, *(s + o for s, o in zip(found.link_s, occupied, strict=True)))

    def admit(self, request: int, length: int, room: int, now: float, free: int) -> tuple[int, int] | None:
        """`look_up` and `take` in one walk, for the calm case: there is room anyhow, and nothing to load.

        Args:
            request, length: the prompt.
            room: blocks that it may take.
            now, free: as `take` has them.

        Returns:
            Tokens that need no computing, and blocks that running sequences hold already; None where the prompt has to
            be looked up, and nothing was changed.
        """
        size, below = self._block, self._below
        if (length + size - 1) // size > room:
            return None
        leaf = self._leaf[request]
        users, parent, missing, ends, known = self._users, self._parent, self._missing, self._ends, self._known
        if below is not None:
            segment = leaf
            while not users[segment]:
                if missing[segment] and known[segment] and below.copies(segment):
                    return None
                segment = parent[segment]
        segment, blocks, gone = leaf, ends[leaf], 0
        while not users[segment]:
            users[segment] = 1
            lack = missing[segment]
            if lack:
                gone += lack
                blocks = ends[segment] - lack
                missing[segment] = 0
                known[segment] = 1
            segment = parent[segment]
        users[segment] += 1
        pinned = ends[segment]
        self.loose_blocks -= ends[leaf] - pinned - gone
        most = (length - 1) // size
        tokens = (blocks if blocks < most else most) * size
        self.hits[0] += tokens
        self.looked_up += length
        if not (request + self._earlier) % self._stride:
            self.samples.append((now, free, *self.held))
        return tokens, pinned

    def take(self, request: int, length: int, found: Found, now: float, free: int) -> None:
        """The prompt is admitted: all of its whole blocks are its own or shared from now on.

        Args:
            request, length: the prompt.
            found: what `look_up` said of it.
            now, free: moment and free blocks, which are noted every now and then.
        """
        self.looked_up += length
        if not (request + self._earlier) % self._stride:
            self.samples.append((now, free, *self.held))
        loaded = 0
        if found.loads:
            assert self._below is not None
            for level, segment, blocks in found.loads:
                self._below.read(level, segment, blocks)
                self.hits[1 + level] += blocks * self._block
                loaded += blocks
        self.hits[0] += found.tokens - loaded * self._block
        users, missing, segment = self._users, self._missing, self._leaf[request]
        while not users[segment]:
            users[segment] = 1
            self.loose_blocks -= self._sizes[segment] - missing[segment]
            missing[segment] = 0
            self._known[segment] = 1
            segment = self._parent[segment]
        users[segment] += 1

    def close_account(self) -> CacheAccount:
        """What happened since the last time; counting starts anew."""
        traffic = self._below.close_account() if self._below else []
        closed = CacheAccount(self.hits, self.looked_up, traffic, self.samples)
        self.hits, self.looked_up, self.samples = [0] * len(self.hits), 0, []
        return closed

    def contents(self, now: float) -> Iterator[Contents]:
        """What the future depends on while nobody runs, place by place, the GPU first; see `Hierarchy`."""
        held = ((segment, self._sizes[segment] - self._missing[segment]) for segment in self._loose.order())
        there = [(segment, blocks) for segment, blocks in held if blocks]
        yield now, [segment for segment, _ in there], [((0, blocks),) for _, blocks in there]
        if self._below is not None:
            yield from self._below.contents(now)

    def release(self, request: int, computed: int | None = None) -> int:
        """The sequence gives its blocks back: those of its prompt stay until somebody needs the room.

        `shrink` has been called.

        Args:
            request: number of the request.
            computed: blocks of its prompt that were processed; None for all, where it has finished.

        Returns:
            Blocks that others go on holding.
        """
        users, parent, ends, put = self._users, self._parent, self._ends, self._loose.put
        leaf, more = self._leaf[request], 0
        if computed is None:
            segment, missing = self._answer[request], self._missing
            if self._costly:
                self._appraise(segment)
            beyond = self._beyond[request]
            while not users[segment]:
                if missing[segment] > beyond:
                    more += missing[segment] - beyond
                    missing[segment] = beyond
                    self._known[segment] = 1
                put(segment)
                segment, beyond = parent[segment], 0
        else:
            more = -self._forget(leaf, computed)
            if self._costly:
                self._appraise(leaf)
        segment = leaf
        while users[segment] == 1:
            users[segment] = 0
            put(segment)
            segment = parent[segment]
        users[segment] -= 1
        kept = ends[segment]
        self.loose_blocks += ends[leaf] - kept + more
        return kept

    def _forget(self, segment: int, computed: int) -> int:
        """Nothing is in the blocks behind the first `computed` that nobody else uses; returns how many these are."""
        empty = 0
        while self._users[segment] == 1 and self._ends[segment] > computed:
            self._missing[segment] = min(self._sizes[segment], self._ends[segment] - computed)
            empty += self._missing[segment]
            segment = self._parent[segment]
        return empty

    def detach(self, request: int) -> None:
        """The sequence, which holds nothing, shares nothing from now on: its cache comes back as its own."""
        if not self._own_leaves:
            # other caches over the same prompts keep theirs
            self._leaf, self._answer, self._own_leaves = list(self._leaf), list(self._answer), True
        self._leaf[request] = self._answer[request] = 0

    def _appraise(self, segment: int) -> None:
        """A prompt ends here: all of its blocks save what its last one does, at least."""
        tables, size = self._tables, self._block
        whole = len(tables.body) - 1
        worth = tables.body[whole] / whole * size + tables.chunk_attention(size, self._ends[segment] * size)
        while segment and self._worth[segment] < worth:
            self._worth[segment] = worth
            segment = self._parent[segment]
