"""What arrives: one row per request, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stowplan.errors import InputError
from stowplan.traces.trace import Blocks, Trace

MOST_TOKENS = 2**31
"""Tokens that one request may have at most; far above any context, and far below what would overflow."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests in order of arrival; columns of equal length.

    Attributes:
        arrival_s: seconds from the start of the trace, never decreasing.
        prompt_tokens, output_tokens: lengths, at least 1.
        predicted_tokens: output lengths as a predictor saw them, for schedulers that sort by length; None for exact.
        priority: smaller is more urgent, for schedulers that sort by it; None for equal.
        client: who asked, for schedulers that are fair to clients; None for one client each.
        prefix: blocks that prompts begin with, for a prefix cache; None where unknown.
        session: conversations, negative for none: of these, later prompts may hold earlier answers, see
            `stowplan.serving.turns`; None where unknown.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    predicted_tokens: NDArray[np.int64] | None = None
    priority: NDArray[np.int64] | None = None
    client: NDArray[np.int64] | None = None
    prefix: Blocks | None = None
    session: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)

    @staticmethod
    def from_trace(trace: Trace) -> Requests:
        """Requests of a trace; conversations count as clients, and a request outside of any as its own client."""
        client = trace.session
        if client is not None:
            client = np.where(client < 0, int(client.max()) + 1 + np.arange(len(trace)), client)
        return Requests(
            trace.arrival_s,
            trace.prompt_tokens,
            trace.output_tokens,
            client=client,
            prefix=trace.prefix,
            session=trace.session,
        )

    def take(self, rows: NDArray[np.int64]) -> Requests:
        """Some of the requests, in rising order of their rows."""

        def part(column: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
            return None if column is None else column[rows]

        return Requests(
            self.arrival_s[rows],
            self.prompt_tokens[rows],
            self.output_tokens[rows],
            part(self.predicted_tokens),
            part(self.priority),
            part(self.client),
            None if self.prefix is None else self.prefix.take(rows),
            part(self.session),
        )

    @staticmethod
    def of(
        arrival_s: ArrayLike,
        prompt_tokens: ArrayLike,
        output_tokens: ArrayLike,
        *,
        predicted_tokens: ArrayLike | None = None,
        priority: ArrayLike | None = None,
        client: ArrayLike | None = None,
        prefix: Blocks | None = None,
        session: ArrayLike | None = None,
    ) -> Requests:
        """Checked requests from anything that numpy takes for a column.

        Raises:
            InputError: columns of unlike length, an arrival that is negative, not finite or earlier than the one
                before it, or a length outside 1 to 2^31; names the first such row, counted from 0.
        """
        arrival = np.asarray(arrival_s, dtype=np.float64)
        if arrival.ndim != 1:
            raise InputError(f"arrival_s: has {arrival.ndim} dimensions; give one arrival per request")
        bad = ~np.isfinite(arrival) | (arrival < 0)
        bad[1:] |= np.diff(arrival) < 0
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"arrival_s: row {row}: {arrival[row]} s is negative, not finite or earlier than the row before; "
                f"sort the requests by arrival"
            )
        count = len(arrival)
        if prefix is not None and len(prefix) != count:
            raise InputError(f"prefix: has blocks of {len(prefix)} prompts; expected those of {count} requests")
        return Requests(
            arrival,
            _counts("prompt_tokens", prompt_tokens, count, lowest=1),
            _counts("output_tokens", output_tokens, count, lowest=1),
            None if predicted_tokens is None else _counts("predicted_tokens", predicted_tokens, count, lowest=0),
            None if priority is None else _counts("priority", priority, count, lowest=-MOST_TOKENS),
            None if client is None else _counts("client", client, count, lowest=-MOST_TOKENS),
            prefix,
            None if session is None else _counts("session", session, count, lowest=-MOST_TOKENS),
        )


def _counts(name: str, column: ArrayLike, length: int, *, lowest: int) -> NDArray[np.int64]:
    given: NDArray[Any] = np.asarray(column)
    if given.shape != (length,):
        raise InputError(f"{name}: has shape {given.shape}; expected one value for each of {length} requests")
    if length == 0:
        return np.zeros(0, dtype=np.int64)
    if given.dtype.kind not in "iuf":
        raise InputError(f"{name}: holds {given.dtype}, not whole numbers")
    bad = ~((given >= lowest) & (given <= MOST_TOKENS))
    if given.dtype.kind == "f":
        bad |= given != np.floor(given)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"{name}: row {row}: {given[row]} is not a whole number from {lowest} to {MOST_TOKENS}")
    return given.astype(np.int64)
