"""What a trace is: when requests arrive, how long their prompts and outputs are, and which prompts begin alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import InputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_TOKENS = 10**9
"""Tokens of one prompt or output beyond which a number is taken for a mistake."""

LATEST_S = 1e11
"""Seconds (3,000 years) beyond which an arrival is taken for a mistake; doubles still tell microseconds apart there."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Hashes of the blocks that every prompt consists of, as compressed rows.

    Equal hashes mean equal tokens in the block *and before it*, so that a prompt reuses the blocks from its beginning
    up to the first one that is new.

    Attributes:
        offsets: int64[n + 1]; the blocks of request i are ``hashes[offsets[i]:offsets[i + 1]]``.
        hashes: int64[m], in the order of the prompt.
        block_tokens: tokens per block; the last block of a prompt may be shorter.
    """

    offsets: Integers
    hashes: Integers
    block_tokens: int

    def __post_init__(self) -> None:
        for name, kind in (("offsets", np.int64), ("hashes", np.int64)):
            _freeze(self, name, kind)
        offsets = self.offsets
        if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(self.hashes) or bool((np.diff(offsets) < 0).any()):
            raise InputError("the offsets of prefix blocks must rise from 0 to the number of hashes")
        if self.block_tokens < 1:
            raise InputError(f"a prefix block has {self.block_tokens} tokens; it needs at least 1")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, request: int) -> Integers:
        """Hashes of one request's prompt."""
        return self.hashes[self.offsets[request] : self.offsets[request + 1]]

    def counts(self) -> Integers:
        """Blocks per request."""
        return np.diff(self.offsets)

    def take(self, requests: Integers) -> Blocks:
        """Blocks of these requests, in this order."""
        counts = self.counts()[requests]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        positions = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][requests] - offsets[:-1], counts)
        return Blocks(offsets, self.hashes[positions], self.block_tokens)

    def joined(self, count: int) -> Blocks:
        """The same prompts in blocks of so many of these; of their hashes the last one counts.

        Blocks that are left over at the end of a prompt are dropped.
        """
        counts = self.counts() // count
        offsets = np.concatenate(([0], np.cumsum(counts)))
        place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        last = np.repeat(self.offsets[:-1], counts) + (place + 1) * count - 1
        return Blocks(offsets, self.hashes[last], self.block_tokens * count)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests in the order of their arrival. The arrays cannot be written to.

    Attributes:
        name: what people call it.
        arrival_s: float64[n], seconds; not decreasing, the first is 0.
        prompt_tokens, output_tokens: int64[n], at least 1 each.
        session: int64[n], the conversation a request belongs to, -1 for none; None where no request has one.
        prefix: blocks of every prompt, None where unknown.
        origin: where it came from and what was done to it; says so where it is synthetic.
        dropped: rows left out while reading, by reason.

    Raises:
        InputError: no requests, lengths that differ, unsorted or non-finite arrivals, counts below 1.
    """

    name: str
    arrival_s: Floats
    prompt_tokens: Integers
    output_tokens: Integers
    session: Integers | None = None
    prefix: Blocks | None = None
    origin: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _freeze(self, "arrival_s", np.float64)
        for name in ("prompt_tokens", "output_tokens"):
            _freeze(self, name, np.int64)
        if self.session is not None:
            _freeze(self, "session", np.int64)
        object.__setattr__(self, "dropped", MappingProxyType(dict(self.dropped)))
        self._check()

    def _check(self) -> None:
        count = len(self.arrival_s)
        if count == 0:
            raise InputError(f"trace '{self.name}' holds no request{because(self.dropped)}")
        columns = (("prompt_tokens", self.prompt_tokens), ("output_tokens", self.output_tokens))
        sized = [*((name, len(values)) for name, values in columns)]
        sized += [("session", len(self.session))] if self.session is not None else []
        sized += [("prefix", len(self.prefix))] if self.prefix is not None else []
        for name, length in sized:
            if length != count:
                raise InputError(f"trace '{self.name}': {count} arrivals but {length} entries in {name}")
        if not bool(np.isfinite(self.arrival_s).all()) or float(np.abs(self.arrival_s).max()) > LATEST_S:
            raise InputError(f"trace '{self.name}': an arrival is not a finite number below {LATEST_S:.0e} s")
        if self.arrival_s[0] != 0.0 or bool((np.diff(self.arrival_s) < 0.0).any()):
            raise InputError(f"trace '{self.name}': arrivals must start at 0 and never decrease")
        for name, values in columns:
            if int(values.min()) < 1 or int(values.max()) > MOST_TOKENS:
                raise InputError(f"trace '{self.name}': {name} must lie between 1 and {MOST_TOKENS:,}")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def duration_s(self) -> float:
        """Seconds from the first to the last arrival."""
        return float(self.arrival_s[-1])

    @property
    def rate(self) -> float:
        """Mean requests per second between the first and the last arrival; infinite where all arrive at once."""
        return (len(self) - 1) / self.duration_s if self.duration_s > 0.0 else math.inf

    def take(self, requests: Integers, arrival_s: Floats, note: str) -> Trace:
        """The given requests at new arrivals, which are sorted and shifted so that the first is at 0."""
        if len(requests) == 0:
            raise InputError(f"trace '{self.name}': no request is left ({note})")
        order = np.argsort(arrival_s, kind="stable")
        chosen = requests[order]
        times = arrival_s[order]
        return dataclasses.replace(
            self,
            arrival_s=times - times[0],
            prompt_tokens=self.prompt_tokens[chosen],
            output_tokens=self.output_tokens[chosen],
            session=None if self.session is None else self.session[chosen],
            prefix=None if self.prefix is None else self.prefix.take(chosen),
            origin=f"{self.origin}; {note}" if self.origin else note,
        )

    def slice(self, start_s: float, end_s: float) -> Trace:
        """Requests that arrive in ``[start_s, end_s)``; the first of them is then at 0.

        Raises:
            InputError: none arrives then.
        """
        first, last = np.searchsorted(self.arrival_s, (start_s, end_s), side="left")
        note = f"arrivals from {start_s:g} s to {end_s:g} s"
        return self.take(np.arange(first, last), self.arrival_s[first:last], note)

    def head(self, count: int) -> Trace:
        """The first `count` requests.

        Raises:
            InputError: `count` is below 1.
        """
        if count < 1:
            raise InputError(f"trace '{self.name}': the first {count} requests are no trace; ask for at least 1")
        if count >= len(self):
            return self
        return self.take(np.arange(count), self.arrival_s[:count], f"the first {count} requests")

    def scaled_time(self, factor: float) -> Trace:
        """The same requests with every gap `factor` times as long.

        Raises:
            InputError: the factor is not a positive finite number.
        """
        if not (math.isfinite(factor) and factor > 0.0):
            raise InputError(f"time cannot be scaled by {factor:g}; give a factor above 0")
        return dataclasses.replace(
            self, arrival_s=self.arrival_s * factor, origin=_joined(self.origin, f"time scaled by {factor:g}")
        )

    def scaled_rate(self, rate: float) -> Trace:
        """The same requests with gaps scaled so that `rate` of them arrive per second on average.

        Raises:
            InputError: the rate is not positive, or all requests arrive at once.
        """
        if not (math.isfinite(rate) and rate > 0.0):
            raise InputError(f"a rate of {rate:g} requests/s is not possible; give a rate above 0")
        if math.isinf(self.rate):
            raise InputError(f"trace '{self.name}': all requests arrive at once, so that there is no rate to scale")
        return dataclasses.replace(
            self,
            arrival_s=self.arrival_s * (self.rate / rate),
            origin=_joined(self.origin, f"scaled to {rate:g} requests/s"),
        )

    def resampled(self, windows: int, seed: int) -> Trace:
        """As many windows of equal length, drawn with replacement: bursts stay whole, their order is new.

        A window that is drawn again brings conversations and prefixes of its own; else the copies would hit the cache.

        Raises:
            InputError: fewer than 1 window, more than 1,000,000, or all requests arrive at once.
        """
        if not 1 <= windows <= 10**6:
            raise InputError(f"{windows} windows; give between 1 and 1000000")
        if self.duration_s == 0.0:
            raise InputError(f"trace '{self.name}': all requests arrive at once, so that there are no windows")
        edges = np.searchsorted(self.arrival_s, np.linspace(0.0, self.duration_s, windows + 1)[:-1], side="left")
        bounds = np.append(edges, len(self))
        drawn = np.random.default_rng(seed).integers(0, windows, windows)
        counts = np.diff(bounds)[drawn]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        requests = np.arange(offsets[-1]) + np.repeat(bounds[:-1][drawn] - offsets[:-1], counts)
        width = self.duration_s / windows
        shift = np.repeat((np.arange(windows) - drawn) * width, counts)
        if len(requests) == 0:
            raise InputError(f"trace '{self.name}': the {windows} windows drawn with seed {seed} are all empty")
        copies = np.repeat(_earlier_draws(drawn), counts)
        fresh = self._with_copies(requests, copies)
        note = f"{windows} windows resampled with seed {seed}"
        return fresh.take(np.arange(len(requests)), self.arrival_s[requests] + shift, note)

    def _with_copies(self, requests: Integers, copies: Integers) -> Trace:
        """These requests, in no valid order of time yet, with sessions and hashes of their own in every copy."""
        session, prefix = self.session, None
        if session is not None:
            span = int(session.max()) + 1
            session = np.where(session[requests] < 0, -1, session[requests] + copies * span)
        if self.prefix is not None:
            plain = self.prefix.take(requests)
            salt = np.repeat(copies, plain.counts()).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            prefix = Blocks(plain.offsets, (plain.hashes.view(np.uint64) ^ salt).view(np.int64), plain.block_tokens)
        return dataclasses.replace(
            self,
            arrival_s=np.zeros(len(requests)),
            prompt_tokens=self.prompt_tokens[requests],
            output_tokens=self.output_tokens[requests],
            session=session,
            prefix=prefix,
        )


def _earlier_draws(drawn: Integers) -> Integers:
    """For every draw, how often the same window was drawn before."""
    order = np.argsort(drawn, kind="stable")
    ranked = drawn[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    rank = np.arange(len(drawn)) - np.repeat(starts, np.diff(np.append(starts, len(drawn))))
    earlier = np.empty(len(drawn), dtype=np.int64)
    earlier[order] = rank
    return earlier


def _freeze(holder: Blocks | Trace, name: str, kind: type[Any]) -> None:
    """Replace an array by a contiguous read-only view of it; the caller's own array stays writable."""
    array = np.ascontiguousarray(getattr(holder, name), dtype=kind)
    if array.ndim != 1:
        raise InputError(f"{name} of a trace must have one dimension, not {array.ndim}")
    view = array.view()
    view.setflags(write=False)
    object.__setattr__(holder, name, view)


def _joined(origin: str, note: str) -> str:
    return f"{origin}; {note}" if origin else note


def because(dropped: Mapping[str, int]) -> str:
    """In brackets what was left out, by reason; empty where nothing was."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    return f" (left out: {reasons})" if reasons else ""
