"""Sessions and prefix blocks for a trace that has none: a synthetic addition, so that prefix caches can be replayed.

Every request either opens a conversation or goes on with one that is still warm. The prompt that opens one begins with
an instruction, one of a few common ones; a later one begins with as much of the prompt before as both are long, and
with the answer to it where both fit. What comes then is its own. Arrivals and lengths stay as they are.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass

import numpy as np

from stowplan.errors import InputError
from stowplan.traces.trace import Blocks, Integers, Trace

_ROUNDS = 16
"""Rounds in which requests that wanted to answer the same one choose again."""


@dataclass(frozen=True, slots=True)
class Habits:
    """How people converse; every figure is assumed.

    Attributes:
        turns: mean requests per conversation.
        gap_s: mean seconds between the turns of a conversation.
        instructions, instruction_tokens: number of common instructions and tokens of each.
        block_tokens: tokens per block of the hashes.
    """

    turns: float = 3.0
    gap_s: float = 120.0
    instructions: int = 8
    instruction_tokens: int = 256
    block_tokens: int = 64


def with_conversations(trace: Trace, habits: Habits | None = None, *, seed: int = 0) -> Trace:
    """The same requests with sessions and prefix blocks.

    Args:
        trace: without prefixes; conversations that it has are kept.
        habits: how conversations go.
        seed: of the draws.

    Raises:
        InputError: the trace has sessions or prefixes of its own, or a habit is out of range.
    """
    chosen = habits or Habits()
    if trace.prefix is not None:
        raise InputError(f"trace '{trace.name}' says itself which prompts begin alike")
    if not (chosen.turns >= 1.0 and math.isfinite(chosen.turns) and 0.0 < chosen.gap_s < math.inf):
        raise InputError("conversations need at least 1 turn on average and a gap above 0 s")
    if chosen.block_tokens < 1 or chosen.instructions < 1 or chosen.instruction_tokens < 0:
        raise InputError("conversations need blocks of at least 1 token and at least 1 instruction")
    random = np.random.default_rng(seed)
    known = trace.session
    session = _sessions(trace, chosen, random) if known is None else _everyone(known)
    prefix = _blocks(trace, session, chosen, random)
    added = (
        f"conversations of {chosen.turns:g} turns and prefixes" if known is None else "prefixes in its conversations"
    )
    note = f"synthetic {added}, seed {seed}"
    return dataclasses.replace(
        trace, session=session, prefix=prefix, origin=f"{trace.origin}; {note}" if trace.origin else note
    )


def _everyone(session: Integers) -> Integers:
    """Conversations by dense numbers; a request outside of any is one of its own."""
    alone = int(session.max()) + 1 + np.arange(len(session))
    return np.asarray(np.unique(np.where(session < 0, alone, session), return_inverse=True)[1].astype(np.int64))


def _sessions(trace: Trace, habits: Habits, random: np.random.Generator) -> Integers:
    """Conversation of every request: each answers a request of about a gap earlier that no other answers."""
    count = len(trace)
    waiting = np.flatnonzero(random.random(count) < 1.0 - 1.0 / habits.turns)
    parent = np.full(count, -1, dtype=np.int64)
    unanswered = np.ones(count, dtype=np.bool_)
    for _ in range(_ROUNDS):
        if len(waiting) == 0:
            break
        free = np.flatnonzero(unanswered)
        wanted = trace.arrival_s[waiting] - random.exponential(habits.gap_s, len(waiting))
        latest = np.minimum(np.searchsorted(trace.arrival_s, wanted, side="right"), waiting)
        place = np.searchsorted(free, latest, side="left") - 1
        possible = np.flatnonzero(place >= 0)
        chosen, first = np.unique(free[place[possible]], return_index=True)
        parent[waiting[possible[first]]] = chosen
        unanswered[chosen] = False
        waiting = waiting[parent[waiting] < 0]
    root = np.where(parent < 0, np.arange(count), parent)
    while True:
        further = root[root]
        if bool((further == root).all()):
            break
        root = further
    return np.asarray(np.unique(root, return_inverse=True)[1].astype(np.int64))


def _blocks(trace: Trace, session: Integers, habits: Habits, random: np.random.Generator) -> Blocks:
    """Hashes of whole blocks: the conversation so far, from its instruction on, then what is new.

    Of all prompts, the next one alone begins with an answer, so an answer's blocks are told apart as that prompt's own.
    """
    size, count = habits.block_tokens, len(trace)
    counts = trace.prompt_tokens // size
    offsets = np.concatenate(([0], np.cumsum(counts)))
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    order = np.lexsort((np.arange(count), session))
    opens = np.concatenate(([True], np.diff(session[order]) != 0))
    previous = np.full(count, -1, dtype=np.int64)
    previous[order[1:]] = np.where(opens[1:], -1, order[:-1])
    turn = np.arange(count) - np.maximum.accumulate(np.where(opens, np.arange(count), 0))
    instruction = random.integers(0, habits.instructions, int(session.max()) + 1)[session]
    # Blocks of a conversation are told apart by the turn that first had them: the same place may be written anew.
    writer = _writers(order, turn, previous, counts, offsets)
    most = habits.instruction_tokens // size
    common = (place < most) & (previous[writer] < 0)
    shared = np.repeat(instruction, counts) * most + place
    return Blocks(offsets, np.where(common, shared, habits.instructions * most + offsets[writer] + place), size)


def _writers(order: Integers, turn: Integers, previous: Integers, counts: Integers, offsets: Integers) -> Integers:
    """Request that first had every block, found turn by turn over all conversations at once.

    Args:
        order: requests by conversation and time.
        turn: number of each of them within its conversation, from 0.
        previous: request before each request in its conversation, -1 for none.
        counts, offsets: blocks of every request.
    """
    writer = np.repeat(np.arange(len(counts)), counts)
    by_turn = order[np.argsort(turn, kind="stable")]
    ends = np.cumsum(np.bincount(turn))
    for first, last in itertools.pairwise(ends):
        requests = by_turn[first:last]
        before = previous[requests]
        kept = np.minimum(counts[requests], counts[before])
        step = np.arange(int(kept.sum())) - np.repeat(np.cumsum(kept) - kept, kept)
        writer[np.repeat(offsets[requests], kept) + step] = writer[np.repeat(offsets[before], kept) + step]
    return writer
