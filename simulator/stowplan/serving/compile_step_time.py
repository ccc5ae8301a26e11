"""From a layer-synchronous plan to its `StepTime`: sample the engine's prices and find the pieces they are made of.

The engine prices uniform steps. A step of decodes and chunks is composed from them: all tokens share one pass over
the weights (the body at the sum of the tokens), and every sequence pays for its own attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from stowplan.models.model import Attention, LatentAttention, Layer, Recurrence
from stowplan.ops import Step, cached_tokens, visible_pairs
from stowplan.serving.step_time import ChunkTerm, DecodePiece, FewTokens, Knots, Piece, StepTime
from stowplan.systems.serial import LayerPlaces, Price, SerialRun

_TOLERANCE = 5e-4
_EXACT = 1e-6
_COMPANY = 2
"""Attention is sampled on so many sequences: engines run one alone with another kernel, which `largest_error` tells."""


@dataclass(frozen=True, slots=True)
class Range:
    """Where a step time is sampled.

    Attributes:
        tokens: tokens of one step.
        context: cached tokens of one sequence.
        batch: sequences that emit a token in one step.
    """

    tokens: int = 8192
    context: int = 32768
    batch: int = 256


def compile_step_time(
    run: SerialRun,
    layers: Sequence[LayerPlaces],
    output: str,
    span: Range | None = None,
    *,
    step_overhead_s: float = 0.0,
) -> StepTime:
    """The step time of a plan; its `largest_error` says how far it is from the engine on steps it was not made from.

    Args:
        run: the engine, which has accounted for what does not fit (`SerialRun.overflow`).
        layers, output: places of the layers and of the output matrix.
        span: range to sample; beyond it the step time goes on straight.
        step_overhead_s: seconds that the serving engine's own host work adds to every step.
    """
    span = span or Range()

    def price(step: Step) -> float:
        return run.step_price(layers, output, step).seconds

    def tokens_alone(tokens: int, rows: int = 0) -> float:
        return price(Step(1, ((0, tokens),), rows))

    base = tokens_alone(span.batch)
    body = _knots(lambda tokens: tokens_alone(tokens) + step_overhead_s, 1, span.tokens, 0.0)
    logits = _knots(lambda rows: tokens_alone(span.batch, rows) - base, 1, span.batch, _TOLERANCE * base)
    many = min(_COMPANY, span.batch)

    def decode(many: int) -> tuple[DecodePiece, ...]:
        def attends(context: int) -> float:
            return price(Step(1, ((context, many),), 0)) / many

        without = attends(0)
        return _decode_pieces(_knots(lambda context: attends(context) - without, 1, span.context, _EXACT * without))

    change, first, few = run.attention_changes_at(layers), 2, None
    if first < change <= span.tokens:
        few = FewTokens(
            change, decode(min(_COMPANY, change - 1)), tuple(_chunk_terms(run, layers, span, first, change - 1))
        )
        many = first = change
    compiled = StepTime(
        body=body,
        logits=((0, 0.0), *logits),
        decode=decode(many),
        chunk=tuple(_chunk_terms(run, layers, span, first, span.tokens)),
        few=few,
        busy=_busy(lambda tokens: run.step_price(layers, output, Step(1, ((0, tokens),), 0)), [at for at, _ in body]),
    )
    errors = [
        abs(compiled.seconds(*_as_batch(step)) / (price(step) + step_overhead_s) - 1.0) for step in _held_out(span)
    ]
    return replace(compiled, largest_error=max(errors, default=0.0))


def _knots(value: Callable[[int], float], first: int, last: int, allowance: float) -> Knots:
    """Knots between which straight lines meet `value` within a relative tolerance and an absolute allowance.

    Starts from the powers of two and their predecessors, between which engines switch kernels, and halves every
    interval whose quarter points are off.
    """
    known: dict[int, float] = {}

    def at(count: int) -> float:
        if count not in known:
            known[count] = value(count)
        return known[count]

    powers = [2**k for k in range(last.bit_length())]
    marks = sorted({first, last, *powers, *(power - 1 for power in powers)})
    grid = [mark for mark in marks if first <= mark <= last]
    if len(grid) == 1:
        grid.append(last + 1)
    kept = {grid[0]}
    intervals = list(pairwise(grid))
    while intervals:
        low, high = intervals.pop()
        kept.add(high)
        middle = (low + high) // 2
        for count in {(low + middle) // 2, middle, (middle + high) // 2} - {low, high}:
            straight = at(low) + (at(high) - at(low)) * (count - low) / (high - low)
            if abs(straight - at(count)) > _TOLERANCE * abs(at(count)) + allowance:
                intervals += [(low, middle), (middle, high)]
                break
    return tuple((count, at(count)) for count in sorted(kept))


def _busy(price: Callable[[int], Price], counts: Sequence[int]) -> tuple[tuple[str, Knots], ...]:
    """Seconds for which each resource binds, at these numbers of tokens."""
    shares = [price(count).shares for count in counts]
    names = sorted({name for each in shares for name in each})
    return tuple(
        (name, tuple((count, each.get(name, 0.0)) for count, each in zip(counts, shares, strict=True)))
        for name in names
    )


def _decode_pieces(knots: Knots) -> tuple[DecodePiece, ...]:
    """Lines through neighbouring knots of one sequence's attention, like neighbours joined; the first holds from 0."""
    pieces: list[DecodePiece] = []
    for (left, low), (right, high) in pairwise(knots):
        slope = (high - low) / (right - left)
        if pieces and abs(slope - pieces[-1].per_token) <= _EXACT * abs(slope):
            continue
        if pieces:  # start where the two lines meet, so that the whole stays continuous
            low = pieces[-1].per_sequence + pieces[-1].per_token * left
        pieces.append(DecodePiece(float(left) if pieces else 0.0, low - slope * left, slope))
    return tuple(pieces)


def _chunk_terms(
    run: SerialRun, layers: Sequence[LayerPlaces], span: Range, first: int, last: int
) -> Iterator[ChunkTerm]:
    """One term for the layers whose attention is alike and runs in the same place, for chunks of these tokens."""
    alike: dict[tuple[object, str, str], list[int]] = {}
    for index, places in enumerate(layers):
        mixer = run.classes[run.class_of(index)].layer.mixer
        alike.setdefault((mixer, places.mixer, places.kv), []).append(index)
    for members in alike.values():
        index = members[0]
        yield _chunk_term(run, index, layers[index], len(members), span.context, _grid(first, last))


def _grid(first: int, last: int) -> list[int]:
    """Numbers of tokens to sample, each four times the one before; a last one that has room for its neighbours."""
    return [first * 4**k for k in range(16) if not k or first * 4 ** (k + 1) <= 2 * last]


def _chunk_term(
    run: SerialRun, index: int, places: LayerPlaces, count: int, context: int, tokens: Sequence[int]
) -> ChunkTerm:
    layer = run.classes[run.class_of(index)].layer
    sight, window = _windows(layer)

    def attention(tokens: int, past: int) -> float:
        chunk = run.price(index, places, Step(tokens, ((past, 1),), 0)).seconds
        return count * (chunk - run.price(index, places, Step(1, ((0, tokens),), 0)).seconds)

    def features(tokens: int, past: int) -> tuple[float, float, float, float]:
        return visible_pairs(tokens, past, sight), cached_tokens(past, tokens, window), float(tokens), 1.0

    pasts = [0, *(4**k for k in range(1, max(2, (context.bit_length() + 1) // 2)))]
    points = [(q, p) for q in tokens for p in pasts]
    known = np.array([features(q, p) for q, p in points])
    values = np.array([attention(q, p) for q, p in points])
    pieces: list[Piece] = []
    covered = np.zeros(len(points), dtype=bool)
    for position, (q, p) in enumerate(points):
        if covered[position]:
            continue
        around = [(q + i * max(1, q // 8), p + j * max(1, p // 8)) for i in range(3) for j in range(2)]
        local, seen = np.array([features(*point) for point in around]), [attention(*point) for point in around]
        scale = np.abs(local).max(axis=0)
        solution, _, rank, _ = np.linalg.lstsq(local / scale, np.array(seen), rcond=1e-10)
        slack = _EXACT * float(np.abs(seen).max()) + 1e-14 * count
        if rank < 4 or float(np.abs(local / scale @ solution - seen).max()) > slack:
            continue  # a window hides some of the features here, or two pieces meet
        a, b, c, d = (solution / scale).tolist()
        line = known @ np.array([a, b, c, d])
        room = _TOLERANCE * np.abs(values) + 1e-12 * count
        if (line > values + room).any():
            continue  # not below the whole: bent by rounding
        covered |= line >= values - room
        pieces.append((a, b, c, d))
    return ChunkTerm(sight, window, tuple(pieces) or ((0.0, 0.0, 0.0, 0.0),))


def _windows(layer: Layer) -> tuple[int | None, int | None]:
    """Tokens that a query attends to at most, and tokens of cache that it keeps at most."""
    mixer = layer.mixer
    if isinstance(mixer, Recurrence):
        return None, None
    if isinstance(mixer, LatentAttention) and mixer.selected is not None:
        return mixer.selected, mixer.window
    assert isinstance(mixer, (Attention, LatentAttention))
    return mixer.window, mixer.window


def _held_out(span: Range) -> Iterator[Step]:
    """Steps within the range and off the grid of samples."""
    for share in (0.007, 0.031, 0.11, 0.39, 0.83):
        batch = max(1, round(span.batch * share))
        for depth in (0.0007, 0.011, 0.043, 0.19, 0.73):
            yield Step.decode(batch, round(span.context * depth))
    for share in (0.0011, 0.0067, 0.03, 0.13, 0.57, 0.91):
        tokens = max(1, round(span.tokens * share))
        for depth in (0.0, 0.0009, 0.027, 0.29, 0.77):
            yield Step.prefill(tokens, round(span.context * depth))
        if 3 * tokens <= span.tokens:
            yield Step.prefill(tokens, 0, 3)


def _as_batch(step: Step) -> tuple[int, int, list[tuple[int, int]], int]:
    """A uniform step as the arguments of `StepTime.seconds`."""
    ((past, count),) = step.groups
    if step.new == 1:
        return count, count * past, [], step.logits
    return 0, 0, [(step.new, past)] * count, step.logits
