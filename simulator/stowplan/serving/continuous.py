"""Continuous batching, prefill first: whole prompts are processed in steps of their own, ahead of all decoding.

As vLLM without chunked prefill: waiting requests are admitted while there are blocks for their prompt above the
watermark, room in the batch and room in the step's token budget; if any is admitted, the step processes their prompts
and each of them emits a token; otherwise every running sequence emits one. Nothing is admitted while swapped sequences
wait to come back.
"""

from __future__ import annotations

from math import inf

from stowplan.serving.core import Core
from stowplan.serving.fast_lane import run_fast_lane
from stowplan.serving.queues import FirstCome

_CALM_ROUNDS = 8
"""Rounds without a preemption after which the fast lane pays for itself."""


def run_continuous(core: Core) -> None:
    """Run until every request has finished."""
    waiting = core.waiting
    lane = waiting if isinstance(waiting, FirstCome) else None
    calm = _CALM_ROUNDS
    while True:
        if lane is not None and calm >= _CALM_ROUNDS and not lane.back and not core.swapped:
            run_fast_lane(core, lane)
        calm += 1
        if not core.swapped and _prefill(core):
            continue
        if core.batch or core.swapped:
            copies = core.make_room()
            if copies is not None:
                calm = 0
            elif core.swapped:
                copies = core.bring_back(core.batch)
            core.decode(copies)
            continue
        arrival = waiting.next_arrival()
        if arrival == inf:
            return
        core.now = max(core.now, arrival)


def _prefill(core: Core) -> bool:
    """One step of the prompts that can be admitted; False if there are none."""
    waiting, limits, now = core.waiting, core.limits, core.now
    request = waiting.head(now)
    if request < 0:
        return False
    size, reserve, room = limits.block_tokens, core.reserve, limits.max_running - core.batch
    admitted: list[tuple[int, int]] = []
    tokens, attention, free = 0, 0.0, core.free
    while request >= 0 and len(admitted) < room:
        length = core.length(request)
        blocks = -(-length // size)
        if free - blocks < reserve or (admitted and tokens + length > limits.max_batched_tokens):
            break
        waiting.pop()
        free -= blocks
        tokens += length
        attention += core.prompt_attention[length]
        admitted.append((request, length))
        if core.started[request] != core.started[request]:  # not a number yet: scheduled for the first time
            core.started[request] = now
        request = waiting.head(now)
    if not admitted:
        return False
    core.reserve_blocks(core.free - free)
    core.now = now + core.body[tokens] + core.logits[len(admitted)] + attention
    core.passes += 1
    for request, length in admitted:
        core.emit_after_prefill(request, length)
    return True
