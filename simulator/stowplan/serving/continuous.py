"""Continuous batching, prefill first: whole prompts are processed in steps of their own, ahead of all decoding.

As vLLM without chunked prefill: waiting requests are admitted while there are blocks for their prompt above the
watermark, room in the batch and room in the step's token budget; if any is admitted, the step processes their prompts
and each of them emits a token; otherwise every running sequence emits one. Nothing is admitted while swapped sequences
wait to come back.
"""

from __future__ import annotations

from math import inf

from stowplan.serving.fast_lane import run_fast_lane
from stowplan.serving.prefix_cache import Found
from stowplan.serving.queues import FirstCome
from stowplan.serving.scheduler import Scheduler

_CALM_ROUNDS = 8
"""Rounds without a preemption after which the fast lane pays for itself."""


class Continuous(Scheduler):
    """Prefill first; see the module's text."""

    def run(self, until: float = inf) -> None:
        """See `Scheduler`."""
        core = self.core
        waiting, core.horizon = core.waiting, until
        lane = None
        if isinstance(waiting, FirstCome) and until == inf and core.cache is None and core.tables.few is None:
            lane = waiting
        calm = _CALM_ROUNDS
        while core.now < until:
            if lane is not None and calm >= _CALM_ROUNDS and not lane.back and not core.swapped:
                run_fast_lane(core, lane)
            calm += 1
            if core.impatient:
                core.expire()
                core.land()
            if not core.swapped and self._prefill():
                continue
            if core.batch or core.swapped:
                copies = core.make_room()
                if copies is not None:
                    calm = 0
                elif core.swapped:
                    copies = core.bring_back(core.batch + len(core.arriving))
                if core.batch:
                    core.decode(copies)
                    continue
            event = self.next_event
            if event >= until or core.pauses:
                return
            core.wait_until(event)

    def _computes(self, request: int) -> bool:  # noqa: ARG002
        """Whether a prompt is processed here; one that is not ends the step's prompts."""
        return True

    def _prefill(self) -> list[int]:
        """One step of the prompts that can be admitted; returns their requests."""
        core = self.core
        waiting, limits, now = core.waiting, core.limits, core.now
        request = waiting.head(now)
        if request < 0:
            return []
        size, room = limits.block_tokens, limits.max_running - core.batch - len(core.arriving)
        admitted: list[tuple[int, int]] = []
        loads: list[Found] = []
        tokens = 0
        while request >= 0 and len(admitted) < room and self._computes(request):
            length = core.length(request)
            found = core.look_up(request, length)
            new = length - found.tokens
            blocks = -(-length // size) - found.pinned
            if core.free - blocks < core.reserve or (admitted and tokens + new > limits.max_batched_tokens):
                break
            waiting.pop()
            core.admit(request, length, found, blocks)
            tokens += new
            admitted.append((request, length))
            loads.append(found)
            request = waiting.head(now)
        if not admitted:
            return []
        attention, tables = 0.0, core.tables.of(tokens)
        for (_, length), found in zip(admitted, loads, strict=True):
            attention += tables.attention(length - found.tokens, found.tokens)
        compute = tables.body[tokens] + tables.logits[len(admitted)] + attention
        core.now = now + core.with_loads(compute, tokens, loads)
        core.passes += 1
        core.tally[tokens] += 1
        for request, length in admitted:
            core.emit_after_prefill(request, length)
        return [request for request, _ in admitted]
