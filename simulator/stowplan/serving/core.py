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
from math import ceil, inf, nan

from stowplan.serving.account import Account
from stowplan.serving.growth import steps_until, steps_within_blocks
from stowplan.serving.limits import Limits
from stowplan.serving.prefix_cache import NOTHING, Found, PrefixCache
from stowplan.serving.queues import FirstCome, Pool, WaitingQueue
from stowplan.serving.tables import StepTables

_ANY = 2**62
"""Steps of decoding at a time that nobody reaches."""


class Core:
    """State of one engine.

    Args:
        prompt, output: tokens of every request; all of them can run within the limits.
        waiting: queue over the same requests.
        tables, limits: what a step costs and what the engine may hold.
        beside: another core over the same requests, of which each is at one of them at a time; they share what is
            noted about requests.
        cache: prefix cache, if it has one.
        patience_s: seconds from its arrival after which a client stops waiting for a request.

    Attributes:
        now: seconds at the current step boundary.
        horizon, longest_run: decode stops at the first boundary at or after this moment, and after so many steps.
        pause_at: where requests come first served, a run stops before this one if nothing runs or waits by then.
        batch, context: decoding sequences and the cached tokens between them.
        free: free blocks.
        steps: decode steps so far.
        lowest_free, passes, tally, swaps, idle_s: the account; see `Account`. Tally is by the tokens of a step.
        started, first, finished: seconds by request: first scheduled, first token, last token.
        preemptions: by request, where there were any.
        given_up: tokens that had been generated when the client stopped waiting, by request.
        reused: tokens of the prompt that were found in a cache when the request was first admitted.
    """

    def __init__(
        self,
        prompt: list[int],
        output: list[int],
        waiting: WaitingQueue,
        tables: StepTables,
        limits: Limits,
        *,
        beside: Core | None = None,
        cache: PrefixCache | None = None,
        patience_s: float = inf,
    ) -> None:
        count = len(prompt)
        self.prompt, self.output, self.waiting, self.limits = prompt, output, waiting, limits
        self.tables, self.cache, self.patience_s = tables, cache, patience_s
        self.reserve = limits.reserve
        self.now, self.horizon, self.longest_run, self.pause_at = 0.0, inf, _ANY, _ANY
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
        self.impatient = isinstance(waiting, Pool)
        self.deadlines: list[tuple[float, int]] = []
        self.given_up: dict[int, int] = {}
        if beside is None:
            self.full = [p + o - 1 for p, o in zip(prompt, output, strict=True)]
            self.started = array("d", [nan]) * count
            self.first = array("d", [nan]) * count
            self.finished = array("d", [nan]) * count
            self.preemptions: dict[int, int] = {}
            self.reused = array("q", [0]) * count
        else:
            self.full, self.started, self.first = beside.full, beside.started, beside.first
            self.finished, self.preemptions, self.reused = beside.finished, beside.preemptions, beside.reused
        self.arriving: list[tuple[float, int, int]] = []
        self.swaps = 0
        self.idle_s = 0.0
        self.tally = [0] * len(tables.body)

    def close_account(self) -> Account:
        """What was counted since the last time; counting starts anew."""
        tally = {tokens: steps for tokens, steps in enumerate(self.tally) if steps}
        cache = None if self.cache is None else self.cache.close_account()
        closed = Account(self.passes, self.swaps, self.idle_s, self.lowest_free, tally, cache)
        self.passes, self.swaps, self.idle_s, self.lowest_free = 0, 0, 0.0, self.free
        self.tally = [0] * len(self.tally)
        return closed

    @property
    def pauses(self) -> bool:
        """Whether the next request to come, while nothing runs or waits, is `pause_at` or a later one."""
        return isinstance(self.waiting, FirstCome) and self.waiting.next >= self.pause_at

    def wait_until(self, moment: float) -> None:
        """Nothing runs until then."""
        if moment > self.now:
            self.idle_s += moment - self.now
            self.now = moment

    def length(self, request: int) -> int:
        """Tokens of a request's next prefill: its prompt, and what it had generated before it lost its cache."""
        made = self.made
        return self.prompt[request] + made[request] if request in made else self.prompt[request]

    def reserve_blocks(self, blocks: int) -> None:
        """Take blocks that are free."""
        self.free -= blocks
        self.lowest_free = min(self.lowest_free, self.free)

    def release(self, request: int, cached: int, computed: int | None = None) -> None:
        """Give the blocks of `cached` tokens back, of which the prefix cache may go on holding some.

        Args:
            request: whose blocks they are.
            cached: tokens that they hold.
            computed: tokens of its prompt that were processed; None for all, where it has finished.
        """
        blocks, cache = -(-cached // self.limits.block_tokens), self.cache
        if cache is not None:
            cache.shrink(self.free, self.now)
            blocks -= cache.release(request, None if computed is None else computed // self.limits.block_tokens)
        self.free += blocks

    def look_up(self, request: int, length: int, due: int = 0) -> Found:
        """What the prefix cache has of a prompt of `length` tokens when `due` more blocks have been taken."""
        cache = self.cache
        if cache is None:
            return NOTHING
        cache.shrink(self.free - due, self.now)
        return cache.look_up(request, length, self.link_busy if cache.links else None)

    def admit(self, request: int, length: int, found: Found, blocks: int) -> None:
        """A prompt takes its blocks."""
        if self.started[request] != self.started[request]:  # not a number yet: scheduled for the first time
            self.started[request] = self.now
            self.reused[request] = found.tokens
        if self.patience_s < inf:  # once more for who was preempted: its moment may have come while it waited
            heappush(self.deadlines, (self.waiting.arrival_of(request) + self.patience_s, request))
        self.reserve_blocks(blocks)
        if self.cache is not None:
            self.cache.take(request, length, found, self.now, self.free)

    def link_busy(self, tokens: int) -> list[float]:
        """Seconds that weights occupy each link that loads pass, in a step of so many tokens."""
        assert self.cache is not None
        return [self.tables.link_s(name, tokens) for name in self.cache.links]

    def with_loads(self, compute_s: float, tokens: int, found: Sequence[Found]) -> float:
        """Seconds of a step that computes and, layer by layer, copies what prompts found in lower tiers."""
        loads = [each for each in found if each.link_s]
        if not loads:
            return compute_s
        longest, busy = compute_s, self.link_busy(tokens)
        for link, weights in enumerate(busy):
            longest = max(longest, weights + sum(each.link_s[link] for each in loads))
        return longest + max(each.latency_s for each in loads)

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
            self.release(request, tokens)

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

    def expect(self, request: int, cached: int, moment: float) -> None:
        """A sequence whose cache is copied here joins the batch at that moment; its blocks are taken now."""
        if self.cache is not None:
            self.cache.detach(request)
        if self.patience_s < inf:
            heappush(self.deadlines, (self.waiting.arrival_of(request) + self.patience_s, request))
        self.reserve_blocks(self.limits.blocks(cached))
        heappush(self.arriving, (moment, request, cached))

    def land(self) -> None:
        """Let the sequences join whose cache has been copied here."""
        while self.arriving and self.arriving[0][0] <= self.now:
            _, request, cached = heappop(self.arriving)
            self._join(request, cached, self.output[request] - self.made.pop(request, 1))

    def leave_for(self, request: int) -> tuple[int, int]:
        """A decoding sequence goes elsewhere; returns its cached tokens and those that were generated."""
        made = self.output[request] - (self.finish[request] - self.steps)
        return self._leave(request), made

    def _leave(self, request: int) -> int:
        """A decoding sequence leaves the batch and its blocks; returns its cached tokens."""
        finish, full, size = self.finish[request], self.full[request], self.limits.block_tokens
        cached = full - (finish - self.steps)
        self.finish[request] = -1
        self.phase[(finish - full) % size] -= 1
        self.batch -= 1
        self.context -= cached
        self.release(request, cached, self.prompt[request])
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

    def made_of(self, request: int) -> int:
        """Tokens that were generated for a request so far."""
        if self.finish[request] >= 0:
            return self.output[request] - (self.finish[request] - self.steps)
        done = self.finished[request] == self.finished[request]  # a number
        return self.output[request] if done else self.made.get(request, 0)

    def cached_of(self, request: int) -> int:
        """Cached tokens of a decoding sequence."""
        return self.full[request] - (self.finish[request] - self.steps)

    def decoding(self) -> list[int]:
        """Sequences that decode now, in the order in which they are kept."""
        return [request for request in self.order if self.finish[request] >= 0]

    def _preempt_last(self) -> float:
        order, finish = self.order, self.finish
        while finish[order[-1]] < 0:
            order.pop()
        return self.preempt(order.pop())

    def preempt(self, request: int) -> float:
        """Take a decoding sequence out of the batch; returns the seconds of the copy to host memory, 0 for none."""
        finish = self.finish
        self.made[request] = self.output[request] - (finish[request] - self.steps)
        blocks = self.limits.blocks(self._leave(request))
        if len(self.ends) > 4 * self.batch + 1024:  # entries of preempted sequences, dropped now and then
            mask, bits = (1 << self.bits) - 1, self.bits
            self.ends = [end for end in self.ends if finish[end & mask] == end >> bits]
            heapify(self.ends)
        if self.limits.preemption == "swap" and blocks <= self.free_swap:
            if self.cache is not None:
                self.cache.detach(request)
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
        tables = self.tables.of(batch)
        mean = self.context / batch
        piece, piece_ends = 0, tables.piece_ends
        while mean >= piece_ends[piece]:
            piece += 1
        per_token = tables.piece_token[piece]
        step_s = tables.piece_fixed[piece][batch] + per_token * self.context
        now = self.now
        if copies is None:
            size = self.limits.block_tokens
            run = min((end >> bits) - steps, self.longest_run)
            if self.free < batch * ((run + size - 1) // size):
                run = steps_within_blocks(self.phase, steps, self.free, batch, run)
            if mean + run > piece_ends[piece]:
                run = min(run, ceil(piece_ends[piece] - mean))
            half_growth = 0.5 * per_token * batch
            after = now + run * (step_s + half_growth * (run - 1))
            stop = self.horizon
            if batch < self.limits.max_running and not self.swapped:
                stop = min(stop, self.waiting.next_change(now))
            if self.deadlines:
                stop = min(stop, self.deadlines[0][0])
            if self.arriving:
                stop = min(stop, self.arriving[0][0])
            if stop < after:
                run = steps_until(stop, now, step_s, half_growth, run)
                after = now + run * (step_s + half_growth * (run - 1))
        else:
            run, after = 1, now + step_s + copies
        self.now = after
        self.passes += run
        self.tally[batch] += run
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
            self.release(request, cached)
            finished[request] = now

    def expire(self) -> None:
        """Let the sequences go whose clients stopped waiting by now, and take note of who arrived until now."""
        self.waiting.head(self.now)
        while self.deadlines and self.deadlines[0][0] <= self.now:
            request = heappop(self.deadlines)[1]
            if self.finish[request] >= 0:
                self.given_up[request] = self.output[request] - (self.finish[request] - self.steps)
                self._leave(request)
            elif request in self.swapped:
                self.swapped.remove(request)
                made = self.made.pop(request)
                self.given_up[request] = made
                self.free_swap += self.limits.blocks(self.prompt[request] + made - 1)
