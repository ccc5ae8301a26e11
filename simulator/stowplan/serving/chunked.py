"""Chunked prefill: every step takes a token of each running sequence first, then prompt chunks up to a token budget.

As Sarathi-Serve: decodes are never held up; what the budget leaves goes to the prompt that was begun, then to waiting
requests in order, each of which gets the blocks of its whole prompt when it is admitted. A prompt whose last chunk has
been processed emits a token. A step that preempts admits nothing. A prompt that was begun counts as admitted last, so
it is the first to go when blocks are missing, and starts anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from stowplan.serving.core import Core


@dataclass(slots=True)
class _Begun:
    """A prompt of which `done` of `length` tokens have been processed."""

    request: int
    done: int
    length: int


def run_chunked(core: Core) -> None:
    """Run until every request has finished."""
    begun: _Begun | None = None
    limits, phase = core.limits, core.phase
    size = limits.block_tokens
    while True:
        if phase[core.steps % size] > core.free:
            if begun is not None:
                core.free += limits.blocks(begun.length)
                core.drop(begun.request)
                begun = None
            core.decode(core.make_room() or 0.0)
            continue
        copies = core.bring_back(core.batch + (begun is not None)) if core.swapped else None
        chunks = _chunks(core, begun)
        if chunks:
            begun = _mixed_step(core, chunks, copies or 0.0)
        elif core.batch:
            core.decode(copies)
        else:
            arrival = core.waiting.next_arrival()
            if arrival == inf:
                return
            core.now = max(core.now, arrival)


def _chunks(core: Core, begun: _Begun | None) -> list[tuple[_Begun, int]]:
    """Prompts and the tokens of each that the next step processes; admits them."""
    limits = core.limits
    budget, room = limits.max_batched_tokens - core.batch, limits.max_running - core.batch
    chosen: list[tuple[_Begun, int]] = []
    if begun is not None:
        tokens = min(budget, begun.length - begun.done)
        chosen.append((begun, tokens))
        budget -= tokens
    if core.swapped:
        return chosen
    waiting, now, size = core.waiting, core.now, limits.block_tokens
    # blocks of the tokens that this step's decodes store come first
    free = core.free - core.phase[core.steps % size]
    while budget and len(chosen) < room:
        request = waiting.head(now)
        if request < 0:
            break
        length = core.length(request)
        blocks = -(-length // size)
        if free - blocks < core.reserve:
            break
        waiting.pop()
        free -= blocks
        core.reserve_blocks(blocks)
        if core.started[request] != core.started[request]:  # not a number yet: scheduled for the first time
            core.started[request] = now
        tokens = min(budget, length)
        chosen.append((_Begun(request, 0, length), tokens))
        budget -= tokens
    return chosen


def _mixed_step(core: Core, chunks: list[tuple[_Begun, int]], copies: float) -> _Begun | None:
    """One step of all decoding sequences and some chunks; returns the prompt that it leaves unfinished."""
    batch, ended, total, attention = core.batch, 0, core.batch, 0.0
    for prompt, tokens in chunks:
        total += tokens
        attention += core.chunk_attention(tokens, prompt.done) if prompt.done else core.prompt_attention[tokens]
        prompt.done += tokens
        ended += prompt.done == prompt.length
    attention += core.decode_attention()
    core.now += core.body[total] + core.logits[batch + ended] + attention + copies
    core.passes += 1
    if batch:
        core.store(1)
        core.complete()
    for prompt, _ in chunks:
        if prompt.done == prompt.length:
            core.emit_after_prefill(prompt.request, prompt.length)
    last = chunks[-1][0]
    return last if last.done < last.length else None
