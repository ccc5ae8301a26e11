"""Which prompts begin alike, in the units that a cache keeps: a tree of runs of blocks that the same requests share.

Blocks that exactly the same requests have are looked up, kept and evicted together, so a replay handles such a run as
one *segment*. Equal hashes mean equal prefixes, so the requests that have a block are a subset of those that have the
one before it: a segment ends where their number changes, and segments form a tree. A prompt is a path from the root,
told by its last segment alone.

An answer goes on behind the prompt along the path of a later prompt that holds it, and may end within a segment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import InputError
from stowplan.serving.turns import answer_holders
from stowplan.traces.trace import Blocks

Integers = NDArray[np.int64]
Numbers = NDArray[np.int32]
"""Numbers of blocks, requests or segments; there are fewer than 2^31 of each."""
_DENSE = 4
"""Hashes below this many times their number are used as they are: a table of counts is cheaper than sorting."""


class Lists(NamedTuple):
    """Columns of `Chains`."""

    leaf: list[int]
    answer: list[int]
    beyond: list[int]
    parent: list[int]
    ends: list[int]
    sizes: list[int]


@dataclass(frozen=True, eq=False)
class Chains:
    """The tree of segments; segment 0 is its root, which holds no block.

    Attributes:
        leaf: by request, the last segment of its prompt; 0 where no block of it is whole.
        answer: by request, the last segment that its answer reaches; `leaf` where nobody knows the answer.
        beyond: by request, the blocks at the end of that segment that its answer does not fill.
        parent: by segment, the one before it; that of the root is the root.
        ends: by segment, blocks from the beginning of the prompt to its end.
        sizes: by segment, its blocks.
        block_tokens: tokens of one block.
    """

    leaf: Numbers
    answer: Numbers
    beyond: Numbers
    parent: Numbers
    ends: Numbers
    sizes: Numbers
    block_tokens: int

    @cached_property
    def lists(self) -> Lists:
        """The same as lists, whose entries are read faster; made once for all caches over these prompts."""
        leaf: list[int] = self.leaf.tolist()
        answer, behind = leaf, np.flatnonzero(self.answer != self.leaf)
        if len(behind):
            answer = leaf.copy()
            for request, segment in zip(behind.tolist(), self.answer[behind].tolist(), strict=True):
                answer[request] = segment
        beyond, parent, ends, sizes = (each.tolist() for each in (self.beyond, self.parent, self.ends, self.sizes))
        return Lists(leaf, answer, beyond, parent, ends, sizes)

    def of(self, request: int) -> list[int]:
        """Segments of one prompt, from its beginning."""
        path, segment = list[int](), int(self.leaf[request])
        while segment:
            path.append(segment)
            segment = int(self.parent[segment])
        return path[::-1]

    @staticmethod
    def from_blocks(
        prefix: Blocks,
        prompt_tokens: Integers,
        block_tokens: int,
        output_tokens: Integers | None = None,
        session: Integers | None = None,
    ) -> Chains:
        """Segments of prompts whose blocks are known.

        Args:
            prefix: hashes of the prompts' blocks; where equal ones stand for other prefixes elsewhere, they are told
                apart by the blocks before them, as an engine does that hashes a block together with those.
            prompt_tokens: int64[n], lengths of the prompts; a last block that is not full is never kept.
            block_tokens: tokens of a block of the engine's cache.
            output_tokens: int64[n], lengths of the answers; of each, all tokens but the last one are cached.
            session: int64[n], conversations of requests in order of arrival, negative for none. Answers that later
                prompts hold are known where both are given.

        Raises:
            InputError: the trace's blocks are not a whole number of the engine's.
        """
        units, rest = divmod(prefix.block_tokens, block_tokens)
        if rest:
            raise InputError(
                f"prefix blocks of {prefix.block_tokens} tokens are no whole number of cache blocks of {block_tokens} "
                f"tokens; choose a block size that divides {prefix.block_tokens}"
            )
        counts, hashes = np.minimum(prefix.counts(), prompt_tokens // prefix.block_tokens), prefix.hashes
        kept = np.concatenate(([0], np.cumsum(counts)))
        if kept[-1] < len(hashes):
            hashes = hashes[np.arange(kept[-1]) + np.repeat(prefix.offsets[:-1] - kept[:-1], counts)]
        name = _numbered(hashes)
        if not _is_tree(name, kept[:-1][counts > 0]):
            name = _told_apart(name, counts, kept)
        tree, runs = _tree(name, counts, kept, units, block_tokens)
        if session is None or output_tokens is None:
            return tree
        holder = answer_holders(session, prompt_tokens, output_tokens, name, kept)
        reach = np.minimum((prompt_tokens + output_tokens - 1) // block_tokens, counts[holder] * units)
        known = np.flatnonzero((holder >= 0) & (reach > counts * units))
        last = kept[holder[known]] + (reach[known] - 1) // units
        run = np.searchsorted(runs.first, last, side="right") - 1
        answer, beyond = tree.leaf.copy(), np.zeros(len(counts), dtype=np.int32)
        answer[known], beyond[known] = runs.segment[run], runs.ends[run] - reach[known]
        return replace(tree, answer=answer, beyond=beyond)


@dataclass(frozen=True, slots=True)
class _Runs:
    """Segments where they are among the blocks of all prompts.

    Attributes:
        first, segment, ends: by run, the position of its first block, its segment, and that one's `ends`.
    """

    first: Integers
    segment: Integers
    ends: Integers


def _numbered(hashes: Integers) -> Numbers:
    """Small numbers in place of hashes; some numbers may never come."""
    if len(hashes) and int(hashes.min()) >= 0 and int(hashes.max()) < _DENSE * len(hashes):
        return hashes.astype(np.int32)
    return np.unique(hashes, return_inverse=True)[1].astype(np.int32)


def _is_tree(name: Numbers, opens: Integers) -> bool:
    """Whether the same block comes before a block wherever it is; `opens` are the positions of first blocks."""
    before = np.empty_like(name)
    before[1:] = name[:-1]
    before[opens] = -1
    known = np.empty(int(name.max(initial=0)) + 1, dtype=np.int32)
    known[name] = before
    return bool((known[name] == before).all())


def _told_apart(name: Numbers, counts: Integers, kept: Integers) -> Numbers:
    """Numbers that are equal where the blocks and all that come before them are."""
    apart, prefix = np.empty_like(name), np.zeros(len(counts), dtype=np.int64)
    span, fresh = int(name.max(initial=0)) + 1, 0
    for depth in range(int(counts.max(initial=0))):
        rows = np.flatnonzero(counts > depth)
        at = kept[rows] + depth
        number = np.unique(prefix[rows] * span + name[at], return_inverse=True)[1] + fresh
        fresh = int(number.max()) + 1
        apart[at] = prefix[rows] = number
    return apart


def _tree(name: Numbers, counts: Integers, kept: Integers, units: int, block_tokens: int) -> tuple[Chains, _Runs]:
    """The tree of prompts whose blocks have these numbers."""
    visits = np.bincount(name).astype(np.int32)
    shared = visits[name]
    opens = kept[:-1][counts > 0]
    is_open, starts = np.zeros(len(name), dtype=bool), np.zeros(len(name), dtype=bool)
    is_open[opens] = True
    starts[1:] = shared[1:] != shared[:-1]
    starts |= is_open
    first = np.flatnonzero(starts)
    segment, count = _dense(name[first], len(visits))
    opening = is_open[first]
    runs = np.diff(first, append=len(name))
    before = np.concatenate(([0], segment))[:-1]
    before[opening] = 0
    last = np.append(np.flatnonzero(opening)[1:], len(first))[: len(opens)] - 1
    leaf = np.zeros(len(counts), dtype=np.int32)
    leaf[counts > 0] = segment[last]

    def by_segment(values: Integers) -> Numbers:
        column = np.zeros(count + 1, dtype=np.int32)
        column[segment] = values
        return column

    begun = np.repeat(opens, np.diff(np.append(np.flatnonzero(opening), len(first))))
    ends = (first + runs - begun) * units
    chains = Chains(
        leaf=leaf,
        answer=leaf,
        beyond=np.zeros(len(leaf), dtype=np.int32),
        parent=by_segment(before),
        ends=by_segment(ends),
        sizes=by_segment(runs * units),
        block_tokens=block_tokens,
    )
    return chains, _Runs(first, segment, ends)


def _dense(names: Numbers, span: int) -> tuple[Integers, int]:
    """Numbers from 1 on without gaps in place of names below `span`, in their order, and how many there are."""
    used = np.zeros(span, dtype=bool)
    used[names] = True
    numbers = np.cumsum(used)
    return numbers[names], int(numbers[-1]) if span else 0
