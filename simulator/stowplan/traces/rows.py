"""What every reader does with its rows: check them, leave out failures, sort, shift to 0, part ties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from stowplan.errors import BadFile
from stowplan.traces.lines import BadRow
from stowplan.traces.trace import LATEST_S, MOST_TOKENS, Blocks, Floats, Integers, Trace, because

FAILURES = "failed requests (no response tokens)"

_WIDEST_TIE_S = 1.0
"""Ties are parted within at most a second, the coarsest clock among the known traces."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a file becomes a trace.

    Attributes:
        keep_failures: keep requests without response tokens, as requests of one output token.
        skip_bad: leave out and count rows that cannot be read, instead of refusing the file.
        jitter_seed: part requests of equal arrival at random within their clock tick; None keeps them equal.
        seed: for sources that are sampled, and for the arrivals of files that have lengths only.
        rate: requests/s of such arrivals; None lets all requests of a file of lengths arrive at once.
        duration_s: seconds to sample from clients' rates; None is all that they cover.
        block_tokens: tokens per prefix block; None finds it from the lengths.
    """

    keep_failures: bool = False
    skip_bad: bool = False
    jitter_seed: int | None = None
    seed: int = 0
    rate: float | None = None
    duration_s: float | None = None
    block_tokens: int | None = None


@dataclass(slots=True)
class Rows:
    """Rows of a file in the making, in pieces that are joined once.

    Arrivals are in seconds on any clock; `counted` has rows left out, by reason.
    """

    path: Path
    options: ReadOptions
    arrival_s: list[Floats] = field(default_factory=list)
    prompt: list[Floats] = field(default_factory=list)
    output: list[Floats] = field(default_factory=list)
    session: list[Integers] | None = None
    hashes: list[Integers] | None = None
    hash_counts: list[Integers] | None = None
    counted: dict[str, int] = field(default_factory=dict)

    def refuse(self, line: int, bad: BadRow) -> None:
        """Count a bad row, or refuse the file because of it.

        Args:
            line: number of the line, from 1.
            bad: what is wrong.

        Raises:
            BadFile: bad rows are not to be skipped.
        """
        if not self.options.skip_bad:
            raise BadFile(f"{self.path}:{line}: {bad}; mend the row, or skip bad rows with --skip-bad") from bad
        self.counted[bad.reason] = self.counted.get(bad.reason, 0) + 1

    def add(self, arrival_s: Floats, prompt: Floats, output: Floats) -> None:
        """Append rows that have passed their checks."""
        self.arrival_s.append(arrival_s)
        self.prompt.append(prompt)
        self.output.append(output)

    def trace(self, name: str, origin: str) -> Trace:
        """The trace of all rows.

        Raises:
            BadFile: no row is left.
        """
        arrival = _joined(self.arrival_s)
        prompt = _joined(self.prompt).astype(np.int64)
        output = _joined(self.output).astype(np.int64)
        session = None if self.session is None else np.concatenate([np.zeros(0, np.int64), *self.session])
        prefix = self._prefix(prompt)
        kept = np.arange(len(arrival))
        failed = output < 1
        if bool(failed.any()):
            if self.options.keep_failures:
                origin += f"; {int(failed.sum())} failed requests kept with one output token"
                output, prompt = np.maximum(output, 1), np.maximum(prompt, 1)
            else:
                self.counted[FAILURES] = int(failed.sum())
                kept = kept[~failed]
        if len(kept) == 0:
            raise BadFile(f"{self.path}: holds no request{because(self.counted)}; give a file with one at least")
        late = int((np.diff(arrival[kept]) < 0.0).sum())
        if late:
            origin += f"; sorted, {late} row{'s' if late > 1 else ''} came after a later one"
            kept = kept[np.argsort(arrival[kept], kind="stable")]
        times = arrival[kept] - arrival[kept[0]]
        if self.options.jitter_seed is not None:
            times = parted(times, self.options.jitter_seed)
            origin += f"; ties parted with seed {self.options.jitter_seed}"
        return Trace(
            name,
            times,
            prompt[kept],
            output[kept],
            session=None if session is None or not bool((session >= 0).any()) else session[kept],
            prefix=None if prefix is None else prefix.take(kept),
            origin=origin,
            dropped=self.counted,
        )

    def _prefix(self, prompt: Integers) -> Blocks | None:
        if self.hashes is None or self.hash_counts is None or not self.hashes:
            return None
        counts = np.concatenate(self.hash_counts)
        size = self._block_tokens(prompt, counts)
        return Blocks(np.concatenate(([0], np.cumsum(counts))), np.concatenate(self.hashes), size)

    def _block_tokens(self, prompt: Integers, counts: Integers) -> int:
        """Tokens per block: as asked, or the size at which every prompt has its number of blocks."""
        asked = self.options.block_tokens
        sizes: Sequence[int] = (asked,) if asked is not None else (512, 1024, 256, 128, 64, 32, 16, 8)
        known = counts > 0
        for size in sizes:
            if bool(((prompt[known] // size <= counts[known]) & (counts[known] <= -(-prompt[known] // size))).all()):
                return size
        if asked is not None:
            raise BadFile(
                f"{self.path}: the prompts do not have as many hashes as blocks of {asked} tokens; "
                f"give the size that they were hashed with, or none to find it"
            )
        raise BadFile(
            f"{self.path}: the numbers of hashes fit no block size among {', '.join(map(str, sorted(sizes)))} tokens; "
            f"hash every block of a prompt once, the last one may be shorter"
        )


def check_row(arrival_s: float, prompt: float, output: float) -> None:
    """Check the numbers of one row. A request without output is a failure and not bad; its prompt may be empty.

    Raises:
        BadRow: a number is not finite, negative, too large or not whole, or a prompt with a response is empty.
    """
    for what, value in (("arrival", arrival_s), ("prompt tokens", prompt), ("output tokens", output)):
        if not math.isfinite(value):
            raise BadRow(f"{what} is {value:g}, which is not a finite number", "not a finite number")
        if value < 0:
            raise BadRow(f"{what} is {value:g}; it cannot be negative", "negative")
        if value > (LATEST_S if what == "arrival" else MOST_TOKENS):
            raise BadRow(f"{what} is {value:g}, which is too large to be true", "too large")
        if what != "arrival" and value != int(value):
            raise BadRow(f"{what} is {value:g}; tokens are whole numbers", "not a whole number")
    if output >= 1 and prompt < 1:
        raise BadRow("the prompt has no tokens although there is a response", "no prompt tokens")


def all_well(arrival_s: Floats, prompt: Floats, output: Floats) -> bool:
    """Whether `check_row` accepts every row."""
    return bool(
        (
            (arrival_s >= 0.0)
            & (arrival_s <= LATEST_S)
            & (prompt >= 0)
            & (prompt <= MOST_TOKENS)
            & (prompt == np.floor(prompt))
            & (output >= 0)
            & (output <= MOST_TOKENS)
            & (output == np.floor(output))
            & ((prompt >= 1) | (output < 1))
        ).all()
    )


def parted(arrival_s: Floats, seed: int) -> Floats:
    """Sorted arrivals with ties spread at random until the next arrival, at most a second."""
    starts = np.flatnonzero(np.concatenate(([True], np.diff(arrival_s) > 0.0)))
    counts = np.diff(np.append(starts, len(arrival_s)))
    room = np.minimum(np.diff(np.append(arrival_s[starts], np.inf)), _WIDEST_TIE_S)
    drawn = np.random.default_rng(seed).random(len(arrival_s)) * np.repeat(room * (counts > 1), counts)
    spread = np.sort(arrival_s + drawn)
    return np.asarray(spread - spread[0])


def with_arrivals(rows: Rows) -> tuple[Rows, str]:
    """Arrivals for requests that have lengths only: all at once, or Poisson at the asked rate; and a note of that.

    Raises:
        BadFile: the rate is not a positive finite number.
    """
    count, rate = sum(len(piece) for piece in rows.prompt), rows.options.rate
    if rate is None:
        return replace(rows, arrival_s=[np.zeros(count)]), "the file has no arrivals: all requests arrive at once"
    if not (math.isfinite(rate) and rate > 0.0):
        raise BadFile(f"{rows.path}: has no arrivals, and a rate of {rate:g} requests/s gives none; give one above 0")
    gaps = np.random.default_rng(rows.options.seed).exponential(1.0 / rate, count)
    note = f"the file has no arrivals: synthetic Poisson arrivals at {rate:g} requests/s, seed {rows.options.seed}"
    return replace(rows, arrival_s=[np.cumsum(gaps)]), note


def _joined(pieces: Sequence[Floats]) -> Floats:
    return np.concatenate(pieces) if pieces else np.zeros(0)
