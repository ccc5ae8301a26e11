"""Which prompts begin alike, in the units that a cache keeps: runs of blocks that the same requests share.

Blocks that exactly the same requests have are looked up, kept and evicted together, so a replay handles such a run as
one *segment*. Equal hashes mean equal prefixes, so the requests that have a block are a subset of those that have the
one before it, and a segment ends where their number changes.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import InputError
from stowplan.traces.trace import Blocks

Integers = NDArray[np.int64]
_DENSE = 4
"""Hashes below this many times their number are used as they are: a table of counts is cheaper than sorting."""


@dataclass(frozen=True, slots=True)
class Chains:
    """Segments of every prompt.

    Attributes:
        offsets: the segments of request i are ``segments[offsets[i]:offsets[i + 1]]``, in the order of the prompt.
        segments: numbers of segments.
        sizes: blocks of every segment.
        block_tokens: tokens of one block.
    """

    offsets: array[int]
    segments: array[int]
    sizes: array[int]
    block_tokens: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, request: int) -> array[int]:
        """Segments of one prompt."""
        return self.segments[self.offsets[request] : self.offsets[request + 1]]

    @staticmethod
    def from_blocks(prefix: Blocks, prompt_tokens: Integers, block_tokens: int) -> Chains:
        """Segments of prompts whose blocks are known.

        Args:
            prefix: hashes of the prompts' blocks.
            prompt_tokens: int64[n], lengths of the prompts; a last block that is not full is never kept.
            block_tokens: tokens of a block of the engine's cache.

        Raises:
            InputError: the trace's blocks are not a whole number of the engine's.
        """
        units, rest = divmod(prefix.block_tokens, block_tokens)
        if rest:
            raise InputError(
                f"prefix blocks of {prefix.block_tokens} tokens are no whole number of cache blocks of {block_tokens} "
                f"tokens; choose a block size that divides {prefix.block_tokens}"
            )
        counts = np.minimum(prefix.counts(), prompt_tokens // prefix.block_tokens)
        kept = np.concatenate(([0], np.cumsum(counts)))
        positions = np.arange(kept[-1]) + np.repeat(prefix.offsets[:-1] - kept[:-1], counts)
        hashes = prefix.hashes[positions]
        offsets, segments, sizes = _segments(hashes, kept)
        return Chains(_packed(offsets), _packed(segments, "i"), _packed(sizes * units, "i"), block_tokens)


def _segments(hashes: Integers, kept: Integers) -> tuple[Integers, Integers, Integers]:
    """Offsets by request, segments, and blocks by segment."""
    name, visits = _numbered(hashes)
    starts = np.ones(len(hashes), dtype=bool)
    shared = visits[name]
    starts[1:] = shared[1:] != shared[:-1]
    opens = kept[:-1][kept[:-1] < len(hashes)]
    starts[opens] = True
    first = np.flatnonzero(starts)
    runs = np.diff(np.append(first, len(hashes)))
    names = name[first]
    size = np.zeros(len(visits), dtype=np.int64)
    size[names] = runs
    # hashes that mean other prefixes elsewhere belong to no tree; blocks alone are right for any of them
    if bool((size[names] != runs).any()) or int(size.sum()) != int(np.count_nonzero(visits)):
        size[:] = 1
        first, names = np.arange(len(hashes)), name
    dense = np.full(len(visits), -1, dtype=np.int64)
    used = np.flatnonzero(size)
    dense[used] = np.arange(len(used))
    return np.searchsorted(first, kept, side="left"), dense[names], size[used]


def _numbered(hashes: Integers) -> tuple[Integers, Integers]:
    """Small numbers in place of hashes, and how often each number comes; some numbers may never come."""
    if len(hashes) and int(hashes.min()) >= 0 and int(hashes.max()) < _DENSE * len(hashes):
        return hashes, np.bincount(hashes)
    _, name, visits = np.unique(hashes, return_inverse=True, return_counts=True)
    return name, visits


def _packed(values: Integers, code: str = "q") -> array[int]:
    packed = array(code)
    packed.frombytes(np.ascontiguousarray(values, dtype=code).tobytes())
    return packed
