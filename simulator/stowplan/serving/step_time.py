"""Time of one engine step as a function of its batch, in the pieces that a replay can sum in closed form.

A step of `b` decoding sequences with `S` cached tokens between them and of prompt chunks (q tokens after p cached ones)
takes ::

    body(b + sum q) + logits(rows) + max_i (a_i b + s_i S) + sum over chunks of attention(q, p)

*body* is everything that depends on the number of tokens alone: weights, experts, copies, launches. *logits* is the
output matrix and the sampling of the sequences that emit a token. The two attention terms are what attention costs
above that of as many tokens without a past: linear in the sequences and in their context for decode (in pieces, where
another resource binds), and for a chunk the largest of a few linear functions of its query-key pairs
``q p + q (q + 1) / 2``, its cached tokens ``p + q`` and its tokens ``q``. A chunk of one token is a decode: it runs the
kernels of one query. A sliding window bounds the pairs and the cached tokens; in decode it is applied to the mean
context, which for unlike contexts costs a little too much.

Engines may run attention elsewhere in steps of few tokens, as llama.cpp does with layers in host memory: such steps
have attention terms of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import InputError
from stowplan.ops import cached_tokens, visible_pairs

Knots = tuple[tuple[int, float], ...]
"""(count, seconds) pairs in rising order: linear between them, and on with the last slope."""


@dataclass(frozen=True, slots=True)
class DecodePiece:
    """Decode attention while the mean context is at least `start`: ``per_sequence * b + per_token * S`` seconds."""

    start: float
    per_sequence: float
    per_token: float


Piece = tuple[float, float, float, float]
"""Seconds per query-key pair, per cached token, per token of the chunk, and per chunk."""


@dataclass(frozen=True, slots=True)
class ChunkTerm:
    """Attention of a prompt chunk in layers that see alike: the largest of the pieces.

    Attributes:
        sight: tokens that a query attends to at most; None for all.
        window: tokens of cache that a query keeps at most; None for all.
        pieces: linear functions of the chunk's pairs, cached tokens and tokens.
    """

    sight: int | None
    window: int | None
    pieces: tuple[Piece, ...]

    def seconds(self, tokens: int, past: int) -> float:
        """Seconds of a chunk of `tokens` tokens after `past` cached ones."""
        pairs, cached = visible_pairs(tokens, past, self.sight), cached_tokens(past, tokens, self.window)
        return max(a * pairs + b * cached + c * tokens + d for a, b, c, d in self.pieces)


@dataclass(frozen=True, slots=True)
class FewTokens:
    """Attention in steps of few tokens.

    Attributes:
        below: tokens of a step from which on the other terms hold.
        decode, chunk: as of `StepTime`.
    """

    below: int
    decode: tuple[DecodePiece, ...]
    chunk: tuple[ChunkTerm, ...]


@dataclass(frozen=True, slots=True)
class StepTime:
    """Compiled time of one step; see the module's text for the formula.

    Attributes:
        body: seconds by number of tokens in the step.
        logits: seconds by number of sequences that emit a token; starts at (0, 0).
        decode: pieces of decode attention, the first one from mean context 0.
        chunk: terms of chunk attention, which add up.
        busy: seconds of the body for which each resource binds, by its name and the number of tokens; those of links
            are what the cache's blocks find taken by weights.
        largest_error: largest relative error on the held-out steps of the compilation; 0 for one that is given.
        few: attention in steps of few tokens; None where it is the same.
    """

    body: Knots
    logits: Knots
    decode: tuple[DecodePiece, ...]
    chunk: tuple[ChunkTerm, ...]
    busy: tuple[tuple[str, Knots], ...] = ()
    largest_error: float = 0.0
    few: FewTokens | None = None

    def __post_init__(self) -> None:
        for name, knots in (("body", self.body), ("logits", self.logits), *self.busy):
            counts = [count for count, _ in knots]
            if len(knots) < 2 or counts != sorted(set(counts)):
                raise InputError(f"step time: {name}: needs two or more knots with rising counts")
        starts = [piece.start for piece in self.decode]
        if not starts or starts[0] != 0.0 or starts != sorted(set(starts)):
            raise InputError("step time: decode: needs pieces that start at 0 and rise")
        if not all(term.pieces for term in self.chunk):
            raise InputError("step time: chunk: needs one or more pieces in every term")

    def of(self, tokens: int) -> StepTime:
        """The step time of steps of about so many tokens, with one kind of attention terms."""
        few = self.few
        if few is None:
            return self
        many = replace(self, few=None)
        return replace(many, decode=few.decode, chunk=few.chunk) if tokens < few.below else many

    def decode_piece(self, batch: int, context: int) -> DecodePiece:
        """The piece that holds for `batch` sequences with `context` cached tokens between them."""
        mean = context / batch
        return next(piece for piece in reversed(self.decode) if piece.start <= mean)

    def chunk_attention(self, tokens: int, past: int = 0) -> float:
        """Seconds of attention of one chunk above that of as many tokens without a past."""
        if tokens == 1:
            piece = self.decode_piece(1, past)
            return piece.per_sequence + piece.per_token * past
        return sum(term.seconds(tokens, past) for term in self.chunk)

    def fast_chunk_attention(self) -> Callable[[int, int], float]:
        """`chunk_attention` for models whose layers are alike and see everything, without its loops over terms."""
        if len(self.chunk) != 1 or self.chunk[0].sight is not None or self.chunk[0].window is not None:
            return self.chunk_attention
        pieces = self.chunk[0].pieces
        if len(pieces) == 2:
            return self._two_pieces(*pieces)

        def seconds(tokens: int, past: int) -> float:
            if tokens == 1:
                return self.chunk_attention(1, past)
            longest, cached = -inf, past + tokens
            pairs = tokens * past + 0.5 * tokens * (tokens + 1)
            for per_pair, per_cached, per_token, fixed in pieces:
                piece = per_pair * pairs + per_cached * cached + per_token * tokens + fixed
                longest = longest if longest > piece else piece  # a call of max would double the time of all this
            return longest

        return seconds

    def _two_pieces(self, one: Piece, other: Piece) -> Callable[[int, int], float]:
        """The same for the usual case, without the loop over pieces."""
        pair, cached, token, fixed = one
        pair_too, cached_too, token_too, fixed_too = other

        def seconds(tokens: int, past: int) -> float:
            if tokens == 1:
                return self.chunk_attention(1, past)
            there = past + tokens
            pairs = tokens * past + 0.5 * tokens * (tokens + 1)
            first = pair * pairs + cached * there + token * tokens + fixed
            second = pair_too * pairs + cached_too * there + token_too * tokens + fixed_too
            return first if first > second else second

        return seconds

    def seconds(
        self, batch: int, context: int, chunks: Sequence[tuple[int, int]] = (), rows: int | None = None
    ) -> float:
        """Seconds of one step.

        Args:
            batch, context: decoding sequences and the cached tokens between them.
            chunks: (tokens, past) of every prompt chunk.
            rows: sequences that emit a token; None for all of them.
        """
        tokens = batch + sum(new for new, _ in chunks)
        total = at(self.body, tokens) + at(self.logits, batch + len(chunks) if rows is None else rows)
        here = self.of(tokens)
        if batch:
            piece = here.decode_piece(batch, context)
            total += piece.per_sequence * batch + piece.per_token * context
        return total + sum(here.chunk_attention(new, past) for new, past in chunks)

    def body_table(self, tokens: int) -> list[float]:
        """Body for 0 to `tokens` tokens; 0 at 0."""
        return self.table(self.body, tokens)

    def logits_table(self, rows: int) -> list[float]:
        """Logits for 0 to `rows` rows."""
        return self.table(self.logits, rows)

    @staticmethod
    def table(knots: Knots, last: int) -> list[float]:
        """Values of a piecewise linear function at 0 to `last`; 0 at 0."""
        x: NDArray[np.float64] = np.array([count for count, _ in knots], dtype=np.float64)
        y: NDArray[np.float64] = np.array([seconds for _, seconds in knots])
        counts = np.arange(last + 1, dtype=np.float64)
        index = np.clip(np.searchsorted(x, counts, side="left"), 1, len(x) - 1)
        values = y[index - 1] + (y[index] - y[index - 1]) * (counts - x[index - 1]) / (x[index] - x[index - 1])
        values[0] = 0.0
        return [float(value) for value in values.tolist()]

    def prompt_table(self, tokens: int) -> list[float]:
        """Attention of whole prompts of 0 to `tokens` tokens."""
        q = np.arange(max(tokens, 1) + 1, dtype=np.float64)
        total = np.zeros(len(q))
        for term in self.chunk:
            seen = np.minimum(q, inf if term.sight is None else float(term.sight))
            pairs = seen * (seen + 1) / 2 + (q - seen) * seen
            total += np.max([a * pairs + b * q + c * q + d for a, b, c, d in term.pieces], axis=0)
        total[:2] = 0.0, self.chunk_attention(1)
        return [float(value) for value in total[: tokens + 1].tolist()]


def at(knots: Knots, count: int) -> float:
    """Value of a piecewise linear function, 0 for a count of 0."""
    if count == 0:
        return 0.0
    index = next((i for i in range(1, len(knots)) if count <= knots[i][0]), len(knots) - 1)
    (left, low), (right, high) = knots[index - 1], knots[index]
    return low + (high - low) * (count - left) / (right - left)
