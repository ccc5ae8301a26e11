"""What an engine counts while it runs, from one moment at which it is idle to another.

Accounts of moments that follow each other add up to the account of the whole. Sums of seconds are formed per account
and then over accounts in their order, so that it does not matter in which process each of them was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


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

    def add(self, later: Traffic) -> None:
        """Count what went through the tier later on, too."""
        self.read += later.read
        self.written += later.written
        self.dropped += later.dropped
        self.evicted += later.evicted
        self.peak = max(self.peak, later.peak)


@dataclass(slots=True)
class CacheAccount:
    """What a prefix cache did.

    Attributes:
        hits: tokens found by place, the GPU first; looked_up: tokens of all prompts that were admitted.
        traffic: what went through each place below the GPU.
        samples: (moment, free blocks, blocks that may go, blocks in each tier), now and then.
    """

    hits: list[int]
    looked_up: int
    traffic: list[Traffic]
    samples: list[tuple[float, ...]]

    def add(self, later: CacheAccount) -> None:
        """Count what the cache did later on, too."""
        self.hits = [before + after for before, after in zip(self.hits, later.hits, strict=True)]
        self.looked_up += later.looked_up
        for before, after in zip(self.traffic, later.traffic, strict=True):
            before.add(after)
        self.samples += later.samples


@dataclass(slots=True)
class Account:
    """What an engine did.

    Attributes:
        passes: steps of any kind; swaps: preemptions that copied a cache.
        idle_s: seconds in which nothing ran.
        lowest_free: fewest free blocks.
        tally: steps by the tokens that they processed, where there were any.
        cache: what its prefix cache did; None where it has none.
    """

    passes: int
    swaps: int
    idle_s: float
    lowest_free: int
    tally: dict[int, int] = field(default_factory=dict)
    cache: CacheAccount | None = None

    def add(self, later: Account) -> None:
        """Count what the engine did later on, too."""
        self.passes += later.passes
        self.swaps += later.swaps
        self.idle_s += later.idle_s
        self.lowest_free = min(self.lowest_free, later.lowest_free)
        for tokens, steps in later.tally.items():
            self.tally[tokens] = self.tally.get(tokens, 0) + steps
        if self.cache is not None and later.cache is not None:
            self.cache.add(later.cache)


def whole(accounts: Sequence[Account]) -> Account:
    """The account of moments that follow each other; takes them over."""
    first, *later = accounts
    for account in later:
        first.add(account)
    return first
