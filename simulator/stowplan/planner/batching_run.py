"""A static-batching run, step by step: when every batch starts, its micro-batches, and when its requests finish.

The oracle of the closed form in `batching_costs`: decode steps are summed one by one, and prompts are cut into
micro-batches and priced piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stowplan.planner.batching_costs import Counts, Requests, Seconds, StaticCost


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `first` to `last` (exclusive) of a request's prompt."""

    request: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One batch of a run.

    Attributes:
        start_s, prefilled_s, end_s: seconds since the start of the run.
        micro_batches: pieces of prompts that each pass holds, in order.
        finish_s: when each of its requests has its last token, in the order of the batch.
    """

    start_s: float
    prefilled_s: float
    end_s: float
    micro_batches: tuple[tuple[Piece, ...], ...]
    finish_s: tuple[float, ...]


def micro_batches(members: Sequence[int], prompt: Counts, tokens: int) -> Iterator[tuple[Piece, ...]]:
    """Prompts of a batch in order, cut every `tokens` tokens."""
    current: list[Piece] = []
    room = tokens
    for request in members:
        first, length = 0, int(prompt[request])
        while first < length:
            last = min(length, first + room)
            current.append(Piece(request, first, last))
            room -= last - first
            first = last
            if room == 0:
                yield tuple(current)
                current, room = [], tokens
    if current:
        yield tuple(current)


def run_batches(batches: Sequence[Sequence[int]], requests: Requests, cost: StaticCost) -> list[BatchRun]:
    """Run batches one after another; `batches` hold request indices."""
    clock, runs = 0.0, list[BatchRun]()
    for members in batches:
        passes = tuple(micro_batches(members, requests.prompt, cost.micro_batch))
        prefilled = clock + sum(_pass_s(pieces, cost) for pieces in passes)
        chosen = np.asarray(members, np.int64)
        output = requests.output[chosen]
        ends = np.concatenate(([0.0], np.cumsum(_steps_s(requests.prompt[chosen], output, cost))))
        end = prefilled + float(ends[-1])
        finish = tuple(prefilled + float(ends[tokens]) for tokens in output)
        runs.append(BatchRun(clock, prefilled, end, passes, finish))
        clock = end
    return runs


def _pass_s(pieces: Sequence[Piece], cost: StaticCost) -> float:
    tokens = sum(piece.last - piece.first for piece in pieces)
    pairs = sum((piece.last * (piece.last + 1) - piece.first * (piece.first + 1)) / 2 for piece in pieces)
    return cost.pass_s + cost.token_s * tokens + cost.pair_s * pairs


def _steps_s(prompt: Counts, output: Counts, cost: StaticCost) -> Seconds:
    """Seconds of every decode step: running requests and cached tokens, counted step by step."""
    steps = int(output.max())
    ended = np.bincount(output, minlength=steps + 1)[:steps]
    ended_prompts = np.bincount(output, weights=prompt, minlength=steps + 1)[:steps]
    running = len(output) - np.cumsum(ended)
    cached = prompt.sum() - np.cumsum(ended_prompts) + running * np.arange(steps)
    seconds: Seconds = np.asarray(cost.step_s)[running - 1] + cost.context_s * cached
    return seconds
