"""What an engine may hold and take on at a time."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import Literal

from stowplan.errors import InputError

Preemption = Literal["recompute", "swap"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Admission limits and the paged cache.

    Attributes:
        kv_blocks: blocks of KV cache.
        block_tokens: tokens of one block.
        max_running: sequences that run at the same time.
        max_batched_tokens: tokens of one step. With chunked prefill it is the budget that decodes and chunks share;
            otherwise a step takes whole prompts up to it, or a single longer one.
        watermark: share of the blocks that an admission leaves free, so that running sequences can grow.
        preemption: what happens to a sequence that has no room to grow: its cache is dropped and computed again, or
            copied to host memory and back.
        swap_blocks: blocks of host memory for swapped sequences; when they are full, the cache is dropped instead.
        swap_s_per_block: seconds to copy one block one way; copies add to the step.
        max_waiting: requests that may wait at a time; what arrives beyond them is refused. None for any number.
        patience_s: seconds from its arrival after which a client stops waiting for a request, which is then dropped at
            the next step boundary wherever it is. None for ever.

    Raises:
        InputError: a limit out of its range.
    """

    kv_blocks: int
    block_tokens: int = 16
    max_running: int = 256
    max_batched_tokens: int = 8192
    watermark: float = 0.01
    preemption: Preemption = "recompute"
    swap_blocks: int = 0
    swap_s_per_block: float = 0.0
    max_waiting: int | None = None
    patience_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("kv_blocks", "block_tokens", "max_running", "max_batched_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"limits: {name}: {getattr(self, name)} is less than 1")
        if self.max_batched_tokens < self.max_running:
            raise InputError(
                f"limits: max_batched_tokens: {self.max_batched_tokens} is less than max_running = {self.max_running}; "
                f"a step must hold one token of every running sequence"
            )
        if not 0.0 <= self.watermark < 1.0:
            raise InputError(f"limits: watermark: {self.watermark} is not a share from 0 to less than 1")
        if self.swap_blocks < 0 or not (isfinite(self.swap_s_per_block) and self.swap_s_per_block >= 0.0):
            raise InputError("limits: swap_blocks and swap_s_per_block must be finite and not negative")
        if self.max_waiting is not None and self.max_waiting < 1:
            raise InputError(f"limits: max_waiting: {self.max_waiting} is less than 1; nothing would ever run")
        if self.patience_s is not None and not (isfinite(self.patience_s) and self.patience_s > 0.0):
            raise InputError(f"limits: patience_s: {self.patience_s} is not a time above 0")
        if self.preemption not in {"recompute", "swap"}:
            raise InputError(f"limits: preemption: '{self.preemption}' is neither recompute nor swap")

    @property
    def patience(self) -> float:
        """Seconds that a client waits; infinity for ever."""
        return inf if self.patience_s is None else self.patience_s

    @property
    def reserve(self) -> int:
        """Blocks that an admission leaves free."""
        return ceil(self.watermark * self.kv_blocks)

    def blocks(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)

    @property
    def longest(self) -> int:
        """Tokens that one sequence may have in the cache; a longer request can never run."""
        return (self.kv_blocks - self.reserve) * self.block_tokens
