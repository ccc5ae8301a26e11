"""A step time as tables over whole tokens and sequences, which all engines of a replay look up."""

from __future__ import annotations

from math import inf

from stowplan.serving.limits import Limits
from stowplan.serving.step_time import StepTime


class StepTables:
    """Seconds by number of tokens, rows and sequences.

    Args:
        step_time: what a step costs.
        longest: most tokens of one request.
        limits: what an engine may hold.

    Attributes:
        body, logits: seconds by tokens of a step and by rows that emit.
        prompt_attention: attention of whole prompts by tokens.
        chunk_attention: attention of a chunk of (tokens, past).
        piece_ends, piece_sequence, piece_token: decode attention in pieces of the mean context.
        piece_fixed: seconds of a decode step that do not depend on the context, by piece and sequences.
        busy: seconds of the body for which each resource binds, by its name and the tokens of a step.
        few: the same for steps of fewer than `below` tokens, whose attention costs something else; None for all alike.
    """

    __slots__ = (
        "below",
        "body",
        "busy",
        "chunk_attention",
        "few",
        "logits",
        "piece_ends",
        "piece_fixed",
        "piece_sequence",
        "piece_token",
        "prompt_attention",
    )

    def __init__(self, step_time: StepTime, longest: int, limits: Limits) -> None:
        self.below = 0 if step_time.few is None else step_time.few.below
        self.few = StepTables(step_time.of(0), longest, limits) if self.below else None
        step_time = step_time.of(self.below)
        self.body = step_time.body_table(max(longest, limits.max_batched_tokens) + limits.max_running)
        self.logits = step_time.logits_table(2 * limits.max_running)
        self.prompt_attention = step_time.prompt_table(longest)
        self.chunk_attention = step_time.fast_chunk_attention()
        self.piece_ends = [*(piece.start for piece in step_time.decode[1:]), inf]
        self.piece_sequence = [piece.per_sequence for piece in step_time.decode]
        self.piece_token = [piece.per_token for piece in step_time.decode]
        self.piece_fixed = [
            [self.body[b] + self.logits[b] + piece.per_sequence * b for b in range(limits.max_running + 1)]
            for piece in step_time.decode
        ]

        self.busy = {name: step_time.table(knots, len(self.body) - 1) for name, knots in step_time.busy}

    def of(self, tokens: int) -> StepTables:
        """Those for steps of so many tokens."""
        return self if self.few is None or tokens >= self.below else self.few

    def attention(self, tokens: int, past: int) -> float:
        """Seconds of attention of a chunk, with or without a past."""
        return self.chunk_attention(tokens, past) if past else self.prompt_attention[tokens]

    def link_s(self, name: str, tokens: int) -> float:
        """Seconds that weights occupy a link in a step of `tokens` tokens."""
        table = self.busy.get(name)
        return table[tokens] if table is not None else 0.0

    def decode_piece(self, mean: float) -> tuple[float, float, float, float, list[float]]:
        """The piece of decode attention at a mean context: where it begins and ends, and what it costs.

        Returns:
            Mean context from which and below which it holds, seconds per sequence and per cached token, and seconds of
            a decode step by sequences that do not depend on the context.
        """
        piece, ends = 0, self.piece_ends
        while mean >= ends[piece]:
            piece += 1
        begin = ends[piece - 1] if piece else 0.0
        return begin, ends[piece], self.piece_sequence[piece], self.piece_token[piece], self.piece_fixed[piece]

    def decode_attention(self, batch: int, context: int) -> float:
        """Seconds of attention of `batch` decoding sequences with `context` cached tokens between them."""
        if not batch:
            return 0.0
        mean, piece, ends = context / batch, 0, self.piece_ends
        while mean >= ends[piece]:
            piece += 1
        return self.piece_sequence[piece] * batch + self.piece_token[piece] * context
