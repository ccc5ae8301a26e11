"""Chunked prefill: every step takes a token of each running sequence first, then prompt chunks up to a token budget.

As Sarathi-Serve: decodes are never held up; what the budget leaves goes to the prompt that was begun, then to waiting
requests in order, each of which gets the blocks of its whole prompt when it is admitted. A prompt whose last chunk has
been processed emits a token. A step that preempts admits nothing. A prompt that was begun counts as admitted last, so
it is the first to go when blocks are missing, and starts anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from stowplan.serving.chunked_lane import run_chunked_lane
from stowplan.serving.core import Core
from stowplan.serving.prefix_cache import Found
from stowplan.serving.queues import FirstCome
from stowplan.serving.scheduler import Scheduler

_CALM_ROUNDS = 8
"""Rounds without a preemption after which the fast lane pays for itself."""


@dataclass(slots=True)
class _Begun:
    """A prompt of which `done` of `length` tokens have been processed or found."""

    request: int
    done: int
    length: int


class Chunked(Scheduler):
    """Chunked prefill; see the module's text."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._begun: _Begun | None = None

    def run(self, until: float = inf) -> None:
        """See `Scheduler`."""
        core = self.core
        limits, phase, waiting, core.horizon = core.limits, core.phase, core.waiting, until
        lane = waiting if isinstance(waiting, FirstCome) and until == inf and core.tables.few is None else None
        size, calm = limits.block_tokens, _CALM_ROUNDS
        while core.now < until:
            if lane is not None and calm >= _CALM_ROUNDS and not (lane.back or core.swapped or self._begun):
                unfinished = run_chunked_lane(core, lane)
                self._begun = _Begun(*unfinished) if unfinished else None
            calm += 1
            if core.impatient:
                self._expire()
                core.land()
            if phase[core.steps % size] > core.free:
                calm = 0
                self._drop_begun()
                copies = core.make_room()
                if core.batch:  # room may be kept for sequences that move here
                    core.decode(copies or 0.0)
                continue
            copies = core.bring_back(self._taken) if core.swapped else None
            loads: list[Found] = []
            chunks = self._chunks(loads)
            if chunks:
                self._begun = _mixed_step(core, chunks, loads, copies or 0.0)
            elif core.batch:
                core.decode(copies)
            else:
                event = self.next_event
                if event >= until or core.pauses:
                    return
                core.wait_until(event)

    @property
    def next_time(self) -> float:
        """See `Scheduler`."""
        return self.core.now if self._begun is not None else super().next_time

    @property
    def load(self) -> int:
        """See `Scheduler`."""
        return super().load + (self._begun is not None)

    @property
    def _taken(self) -> int:
        """Places in the batch that are taken."""
        return self.core.batch + len(self.core.arriving) + (self._begun is not None)

    def _drop_begun(self) -> None:
        begun, self._begun = self._begun, None
        if begun is not None:
            self.core.release(begun.request, begun.length, begun.done)
            self.core.drop(begun.request)

    def _expire(self) -> None:
        """Let those go whose clients stopped waiting, the prompt that was begun among them."""
        core, begun = self.core, self._begun
        core.expire()
        if begun is not None and core.waiting.arrival_of(begun.request) + core.patience_s <= core.now:
            core.release(begun.request, begun.length, begun.done)
            core.given_up[begun.request] = core.made.pop(begun.request, 0)
            self._begun = None

    def _chunks(self, loads: list[Found]) -> list[tuple[_Begun, int]]:
        """Prompts and the tokens of each that the next step processes; admits them and notes what they found."""
        core, begun = self.core, self._begun
        limits = core.limits
        budget, room = limits.max_batched_tokens - core.batch, limits.max_running - core.batch - len(core.arriving)
        chosen: list[tuple[_Begun, int]] = []
        if begun is not None:
            tokens = min(budget, begun.length - begun.done)
            chosen.append((begun, tokens))
            budget -= tokens
        if core.swapped:
            return chosen
        waiting, now, size = core.waiting, core.now, limits.block_tokens
        # blocks of the tokens that this step's decodes store come first
        due = core.phase[core.steps % size]
        while budget and len(chosen) < room:
            request = waiting.head(now)
            if request < 0:
                break
            length = core.length(request)
            found = core.look_up(request, length, due)
            blocks = -(-length // size) - found.pinned
            if core.free - due - blocks < core.reserve:
                break
            waiting.pop()
            core.admit(request, length, found, blocks)
            loads.append(found)
            tokens = min(budget, length - found.tokens)
            chosen.append((_Begun(request, found.tokens, length), tokens))
            budget -= tokens
        return chosen


def _mixed_step(core: Core, chunks: list[tuple[_Begun, int]], loads: list[Found], copies: float) -> _Begun | None:
    """One step of all decoding sequences and some chunks; returns the prompt that it leaves unfinished."""
    batch, ended, attention = core.batch, 0, 0.0
    total = batch + sum(tokens for _, tokens in chunks)
    tables = core.tables.of(total)
    for prompt, tokens in chunks:
        attention += tables.attention(tokens, prompt.done)
        prompt.done += tokens
        ended += prompt.done == prompt.length
    attention += tables.decode_attention(batch, core.context)
    core.now += core.with_loads(tables.body[total] + tables.logits[batch + ended] + attention, total, loads) + copies
    core.passes += 1
    core.tally[total] += 1
    if batch:
        core.store(1)
        core.complete()
    for prompt, _ in chunks:
        if prompt.done == prompt.length:
            core.emit_after_prefill(prompt.request, prompt.length)
    last = chunks[-1][0]
    return last if last.done < last.length else None
