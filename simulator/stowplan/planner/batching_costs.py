"""What a static batch costs: seconds of its prompts and of its decode steps, from a handful of coefficients.

A batch is a set of requests that start together and whose slots are freed together. Its prompts are processed without
padding, in micro-batches of at most `micro_batch` tokens (a prompt may be cut between two). Every decode step then
serves the requests that still have tokens to make, so step k costs ``h(n_k) + context_s C_k`` with ``n_k`` running
requests and ``C_k`` tokens in their caches. Sorted by output, longest first, the first term of all steps together is
``sum over j of (h(j) - h(j - 1)) g_j``: linear in the outputs once the ranks are known, for any function h.

The second term, like the tokens and the attention of the prompts, is the same however requests are grouped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import DoesNotFit, InputError

Counts = NDArray[np.int64]
Seconds = NDArray[np.float64]

LONGEST = 2**31 - 1
"""Tokens of a prompt or output at most: sums over squares of it still fit 64-bit arithmetic in floating point."""


@dataclass(frozen=True, slots=True)
class StaticCost:
    """Coefficients of a batch's time.

    Attributes:
        step_s: seconds of a decode step with 1, 2 ... running requests, apart from reading their caches.
        context_s: seconds per cached token that a decode step reads.
        pass_s: seconds of a micro-batch of prompt tokens, whatever it holds.
        token_s: seconds per prompt token.
        pair_s: seconds per pair of a prompt's token and one that it attends to (itself included).
        micro_batch: tokens of a micro-batch.

    Raises:
        InputError: a coefficient is negative or not finite, or there is no step or no micro-batch.
    """

    step_s: tuple[float, ...]
    context_s: float = 0.0
    pass_s: float = 0.0
    token_s: float = 0.0
    pair_s: float = 0.0
    micro_batch: int = 512

    def __post_init__(self) -> None:
        named = {"context_s": self.context_s, "pass_s": self.pass_s, "token_s": self.token_s, "pair_s": self.pair_s}
        named |= {f"step_s[{n}]": seconds for n, seconds in enumerate(self.step_s)}
        for name, value in named.items():
            if not math.isfinite(value) or value < 0:
                raise InputError(f"batch cost: {name} is {value}; it must be a finite number that is not negative")
        if not self.step_s or self.micro_batch < 1:
            raise InputError("batch cost: give the seconds of at least one decode step, and a micro-batch of 1 or more")

    @staticmethod
    def of_pieces(
        pieces: Sequence[tuple[float, float]], max_batch: int, *, context_s: float = 0.0, pass_s: float = 0.0,
        token_s: float = 0.0, pair_s: float = 0.0, micro_batch: int = 512,
    ) -> StaticCost:  # fmt: skip
        """A cost whose decode step is the largest of linear pieces ``fixed + per_request n``, in seconds."""
        steps = tuple(max(fixed + each * n for fixed, each in pieces) for n in range(1, max_batch + 1))
        return StaticCost(steps, context_s, pass_s, token_s, pair_s, micro_batch)

    @property
    def rank_s(self) -> Seconds:
        """Seconds that the j-th running request adds to a step: ``h(j) - h(j - 1)`` with ``h(0) = 0``."""
        return np.diff(np.asarray((0.0, *self.step_s)))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch may hold.

    Attributes:
        cache_tokens: tokens of cache; a batch reserves prompt and output of each of its requests.
        max_batch: requests.
    """

    cache_tokens: int
    max_batch: int


@dataclass(frozen=True, slots=True)
class Requests:
    """Lengths of the requests in the order of arrival: prompts of at least 1 token, outputs of 0 or more."""

    prompt: Counts
    output: Counts

    @staticmethod
    def of(prompt: Sequence[int], output: Sequence[int]) -> Requests:
        """Requests of two sequences of equal length.

        Raises:
            InputError: no requests, sequences of unlike length, or a length out of range; names the request.
        """
        prompts, outputs = np.asarray(prompt, np.int64), np.asarray(output, np.int64)
        if len(prompts) != len(outputs) or not len(prompts):
            raise InputError(f"requests: {len(prompts)} prompts and {len(outputs)} outputs; give as many, at least one")
        wrong = (prompts < 1) | (outputs < 0) | (prompts > LONGEST) | (outputs > LONGEST)
        if wrong.any():
            first = int(np.argmax(wrong))
            raise InputError(
                f"request {first}: {prompts[first]} prompt and {outputs[first]} output tokens; a prompt has 1 to "
                f"{LONGEST} tokens and an output 0 to {LONGEST}"
            )
        return Requests(prompts, outputs)

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def reserved(self) -> Counts:
        """Tokens of cache that each request reserves."""
        return self.prompt + self.output

    def check(self, limits: Limits) -> None:
        """Raise `DoesNotFit` when a request alone exceeds the cache, and `InputError` for limits below 1."""
        if limits.max_batch < 1 or limits.cache_tokens < 1:
            raise InputError("limits: a batch must be allowed at least one request and one token of cache")
        longest = int(np.argmax(self.reserved))
        if self.reserved[longest] > limits.cache_tokens:
            raise DoesNotFit(
                f"request {longest} needs a cache of {self.reserved[longest]} tokens and there is room for "
                f"{limits.cache_tokens}; leave it out or plan with a larger cache"
            )


@dataclass(frozen=True, slots=True)
class BatchTime:
    """Seconds of a batch: its prompts, then its decode steps."""

    prefill_s: float
    decode_s: float

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.prefill_s + self.decode_s


def batch_time(cost: StaticCost, prompt: Counts, output: Counts) -> BatchTime:
    """Time of one batch without padding; at most ``len(cost.step_s)`` requests."""
    outputs = np.sort(output)[::-1]
    passes = -(-int(prompt.sum()) // cost.micro_batch)
    decode = float(cost.rank_s[: len(outputs)] @ outputs)
    return BatchTime(cost.pass_s * passes + _prompt_s(cost, prompt), decode + _context_s(cost, prompt, output))


def padded_time(cost: StaticCost, prompt: Counts, output: Counts) -> BatchTime:
    """Time of one batch as a rectangle: every request as long as the longest prompt and the longest output."""
    full = np.ones_like(prompt)
    return batch_time(cost, full * prompt.max(), full * output.max())


def fixed_seconds(cost: StaticCost, requests: Requests) -> float:
    """Seconds that every grouping spends alike: tokens and attention of prompts, reads of the cache."""
    return _prompt_s(cost, requests.prompt) + _context_s(cost, requests.prompt, requests.output)


def _prompt_s(cost: StaticCost, prompt: Counts) -> float:
    tokens = prompt.astype(np.float64)
    return float(cost.token_s * tokens.sum() + cost.pair_s * (tokens * (tokens + 1) / 2).sum())


def _context_s(cost: StaticCost, prompt: Counts, output: Counts) -> float:
    """A request's steps read ``p, p + 1 ... p + g - 1`` cached tokens."""
    p, g = prompt.astype(np.float64), output.astype(np.float64)
    return float(cost.context_s * (p * g + g * (g - 1) / 2).sum())
