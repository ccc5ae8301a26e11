"""The engine's state that all continuous schedulers share, and the fast-forward over runs of decode steps.

Decoding sequences advance together by one token per step, so nothing is kept per token and little per step:

- a step counter; a sequence finishes when the counter reaches its `finish`, so its cached tokens are
  ``full - (finish - steps)`` at any time, where `full` are its cached tokens at the end;
- the sum of the cached tokens, which with the number of sequences gives the time of a step;
- the number of sequences by phase within their last block, which gives the blocks that any run of steps takes.

Between two steps that can change the batch the time of a run is an arithmetic series. A run ends at the first of: a
sequence finishes; the blocks run out; an arrival that could be admitted; another piece of the step time begins.

Semantics: the scheduler acts between steps. A decode step stores the token that the step before it emitted, and takes
a block for it where the last one is full. While blocks are missing, the sequence admitted last is preempted. What was
preempted by a copy comes back before anything new is admitted, and not in a step that preempts.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from math import ceil, inf, nan, sqrt

from stowplan.serving.limits import Limits
from stowplan.serving.queues import WaitingQueue
from stowplan.serving.step_time import StepTime


class Core:
    """State of one engine.

    Args:
        prompt, output: tokens of every request; all of them can run within the limits.
        waiting: queue over the same requests.
        step_time, limits: what a step costs and what the engine may hold.

    Attributes:
        now: seconds at the current step boundary.
        batch, context: decoding sequences and the cached tokens between them.
        free: free blocks; lowest_free: the fewest there ever were.
        steps: decode steps so far; passes: steps of any kind.
        started, first, finished: seconds by request: first scheduled, first token, last token.
        preemptions: by request, where there were any.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        output: Sequence[int],
        waiting: WaitingQueue,
        step_time: StepTime,
        limits: Limits,
    ) -> None:
        count = len(prompt)
        self.prompt, self.output, self.waiting, self.limits = prompt, output, waiting, limits
        self.full = [p + o - 1 for p, o in zip(prompt, output, strict=True)]
        longest = max(self.full, default=1)
        self.body = step_time.body_table(max(longest, limits.max_batched_tokens) + limits.max_running)
        self.logits = step_time.logits_table(2 * limits.max_running)
        self.prompt_attention = step_time.prompt_table(longest)
        self.chunk_attention = step_time.chunk_attention
        self.piece_ends = [*(piece.start for piece in step_time.decode[1:]), inf]
        self.piece_sequence = [piece.per_sequence for piece in step_time.decode]
        # seconds of a decode step that do not depend on the context, by piece and sequences
        self.piece_fixed = [
            [self.body[b] + self.logits[b] + piece.per_sequence * b for b in range(limits.max_running + 1)]
            for piece in step_time.decode
        ]
        self.piece_token = [piece.per_token for piece in step_time.decode]
        self.reserve = limits.reserve
        self.now = 0.0
        self.batch = self.context = self.steps = self.passes = 0
        self.free = self.lowest_free = limits.kv_blocks
        self.free_swap = limits.swap_blocks
        self.phase = [0] * limits.block_tokens
        self.finish = [-1] * count
        self.bits = max(1, count.bit_length())
        self.ends: list[int] = []
        self.order: list[int] = []
        self.swapped: list[int] = []
        self.made: dict[int, int] = {}
        self.started = array("d", [nan]) * count
        self.first = array("d", [nan]) * count
        self.finished = array("d", [nan]) * count
        self.preemptions: dict[int, int] = {}
        self.swaps = 0

    def length(self, request: int) -> int:
        """Tokens of a request's next prefill: its prompt, and what it had generated before it lost its cache."""
        made = self.made
        return self.prompt[request] + made[request] if request in made else self.prompt[request]

    def reserve_blocks(self, blocks: int) -> None:
        """Take blocks that are free."""
        self.free -= blocks
        self.lowest_free = min(self.lowest_free, self.free)

    def emit_after_prefill(self, request: int, tokens: int) -> None:
        """A prefill of `tokens` tokens has ended now: its sequence emits a token, then finishes or decodes."""
        made = self.made.pop(request, 0) if self.made else 0
        if not made:
            self.first[request] = self.now
        left = self.output[request] - made - 1
        if left:
            self._join(request, tokens, left)
        else:
            self.finished[request] = self.now
            self.free += self.limits.blocks(tokens)

    def _join(self, request: int, cached: int, left: int) -> None:
        """A sequence with `cached` tokens and `left` ones to emit decodes from the next step on."""
        finish = self.steps + left
        self.finish[request] = finish
        heappush(self.ends, finish << self.bits | request)
        self.phase[(finish - self.full[request]) % self.limits.block_tokens] += 1
        self.batch += 1
        self.context += cached
        order = self.order
        order.append(request)
        if len(order) > 2 * self.batch + 1024:
            finish_of = self.finish
            self.order = [other for other in order if finish_of[other] >= 0]

    def _leave(self, request: int) -> int:
        """A decoding sequence leaves the batch and its blocks; returns its cached tokens."""
        finish, full, size = self.finish[request], self.full[request], self.limits.block_tokens
        cached = full - (finish - self.steps)
        self.finish[request] = -1
        self.phase[(finish - full) % size] -= 1
        self.batch -= 1
        self.context -= cached
        self.free += -(-cached // size)
        return cached

    def drop(self, request: int) -> None:
        """A sequence that holds no blocks any more waits for its prompt to be processed again."""
        self.preemptions[request] = self.preemptions.get(request, 0) + 1
        self.waiting.put_back(request)

    def make_room(self) -> float | None:
        """Preempt the sequences admitted last until the next decode step has its blocks.

        Returns:
            Seconds of the copies to host memory; None where nobody had to go.
        """
        phase = self.phase
        index = self.steps % len(phase)
        seconds = None
        while phase[index] > self.free:
            seconds = (seconds or 0.0) + self._preempt_last()
        return seconds

    def _preempt_last(self) -> float:
        order, finish = self.order, self.finish
        while finish[order[-1]] < 0:
            order.pop()
        request = order.pop()
        self.made[request] = self.output[request] - (finish[request] - self.steps)
        blocks = self.limits.blocks(self._leave(request))
        if len(self.ends) > 4 * self.batch + 1024:  # entries of preempted sequences, dropped now and then
            mask, bits = (1 << self.bits) - 1, self.bits
            self.ends = [end for end in self.ends if finish[end & mask] == end >> bits]
            heapify(self.ends)
        if self.limits.preemption == "swap" and blocks <= self.free_swap:
            self.free_swap -= blocks
            self.swapped.append(request)
            self.swaps += 1
            self.preemptions[request] = self.preemptions.get(request, 0) + 1
            return blocks * self.limits.swap_s_per_block
        self.drop(request)
        return 0.0

    def bring_back(self, running: int) -> float | None:
        """Copy swapped sequences back, oldest first, while there is room for them and the token that they store.

        Args:
            running: sequences that run already.

        Returns:
            Seconds of the copies; None where nobody came back.
        """
        seconds, limits = None, self.limits
        while self.swapped and running < limits.max_running:
            request = self.swapped[-1]
            made = self.made[request]
            cached = self.prompt[request] + made - 1
            blocks = limits.blocks(cached)
            # tokens that the others store in this step come first
            due = self.phase[self.steps % limits.block_tokens]
            if self.free - due - limits.blocks(cached + 1) < self.reserve:
                break
            self.swapped.pop()
            del self.made[request]
            self.free_swap += blocks
            self.reserve_blocks(blocks)
            self._join(request, cached, self.output[request] - made)
            running += 1
            seconds = (seconds or 0.0) + blocks * limits.swap_s_per_block
        return seconds

    def decode(self, copies: float | None) -> None:
        """Run decode steps until one of them may change the batch; just one after sequences have come or gone.

        The blocks of the first step are there: see `make_room`.

        Args:
            copies: seconds that the first step copies blocks of sequences that come or go; None if none does.
        """
        ends, finish, bits, steps, batch = self.ends, self.finish, self.bits, self.steps, self.batch
        mask = (1 << bits) - 1
        end = ends[0]
        while finish[end & mask] != end >> bits:
            heappop(ends)
            end = ends[0]
        mean = self.context / batch
        piece, piece_ends = 0, self.piece_ends
        while mean >= piece_ends[piece]:
            piece += 1
        per_token = self.piece_token[piece]
        step_s = self.piece_fixed[piece][batch] + per_token * self.context
        now = self.now
        if copies is None:
            size = self.limits.block_tokens
            run = (end >> bits) - steps
            if self.free < batch * ((run + size - 1) // size):
                run = steps_within_blocks(self.phase, steps, self.free, batch, run)
            if mean + run > piece_ends[piece]:
                run = min(run, ceil(piece_ends[piece] - mean))
            half_growth = 0.5 * per_token * batch
            after = now + run * (step_s + half_growth * (run - 1))
            if batch < self.limits.max_running and not self.swapped:
                arrival = self.waiting.next_change(now)
                if arrival < after:
                    run = steps_until(arrival, now, step_s, half_growth, run)
                    after = now + run * (step_s + half_growth * (run - 1))
        else:
            run, after = 1, now + step_s + copies
        self.now = after
        self.passes += run
        self.store(run)
        if self.steps == end >> bits:
            self.complete()

    def store(self, run: int) -> None:
        """Advance the decoding sequences by `run` steps and take the blocks for their tokens."""
        phase, batch = self.phase, self.batch
        size = len(phase)
        cycles, rest = divmod(run, size)
        start = self.steps % size
        taken = cycles * batch + sum(phase[start : start + rest])
        if start + rest > size:
            taken += sum(phase[: start + rest - size])
        self.steps += run
        self.context += batch * run
        self.reserve_blocks(taken)

    def complete(self) -> None:
        """Let the sequences go whose last token came out now."""
        ends, finish, bits, steps, full = self.ends, self.finish, self.bits, self.steps, self.full
        phase, finished, now = self.phase, self.finished, self.now
        size, mask = len(phase), (1 << bits) - 1
        while ends and ends[0] >> bits <= steps:
            request = heappop(ends) & mask
            if finish[request] != steps:
                continue
            cached = full[request]
            finish[request] = -1
            phase[(steps - cached) % size] -= 1
            self.batch -= 1
            self.context -= cached
            self.free += -(-cached // size)
            finished[request] = now

    def decode_attention(self) -> float:
        """Seconds of the decoding sequences' attention in the next step."""
        batch, context = self.batch, self.context
        if not batch:
            return 0.0
        mean, piece, ends = context / batch, 0, self.piece_ends
        while mean >= ends[piece]:
            piece += 1
        return self.piece_sequence[piece] * batch + self.piece_token[piece] * context


def steps_within_blocks(phase: Sequence[int], steps: int, free: int, batch: int, most: int) -> int:
    """How many of the next `most` decode steps the free blocks suffice for."""
    size = len(phase)
    cycles = min(free // batch, most // size)
    left, step = free - cycles * batch, cycles * size
    while step < most:
        left -= phase[(steps + step) % size]
        if left < 0:
            break
        step += 1
    return step


def steps_until(moment: float, now: float, step_s: float, half_growth: float, most: int) -> int:
    """The first of up to `most` step boundaries at or after `moment`; the last one if none is.

    Step j ends at ``now + j (step_s + half_growth (j - 1))``. The root of the quadratic is a guess; the comparisons
    that decide are those of the times themselves.
    """
    linear = step_s - half_growth
    root = linear + sqrt(max(0.0, linear * linear + 4.0 * half_growth * (moment - now)))
    guess = 2.0 * (moment - now) / root if root > 0.0 else 1.0
    step = min(most, max(1, ceil(guess))) if guess < most else most
    while step > 1 and now + (step - 1) * (step_s + half_growth * (step - 2)) >= moment:
        step -= 1
    while step < most and now + step * (step_s + half_growth * (step - 1)) < moment:
        step += 1
    return step
