"""The oracle: an engine that is simulated step by step, with every block of every sequence written down.

It shares nothing with the replay but the inputs: `StepTime.seconds` and `Limits`' plain numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stowplan.serving.limits import Limits
from stowplan.serving.step_time import StepTime


@dataclass(eq=False)
class Sequence:
    number: int
    arrival: float
    prompt: int
    output: int
    key: int = 0
    made: int = 0
    cached: int = 0
    target: int = 0
    blocks: list[int] = field(default_factory=list)
    started: float | None = None
    first: float | None = None
    finished: float | None = None
    preemptions: int = 0


class NaiveEngine:
    """Runs requests (arrival, prompt, output, key) to the end; a key of 0 for all means first come, first served."""

    def __init__(
        self, requests: list[tuple[float, int, int, int]], step_time: StepTime, limits: Limits, *, chunked: bool
    ) -> None:
        self.all = [Sequence(i, *request) for i, request in enumerate(requests)]
        self.step_time, self.limits, self.chunked = step_time, limits, chunked
        self.reserve = -int(-limits.watermark * limits.kv_blocks // 1)
        usable = (limits.kv_blocks - self.reserve) * limits.block_tokens
        self.rejected = [s for s in self.all if s.prompt + s.output - 1 > usable]
        self.coming = [s for s in self.all if s.prompt + s.output - 1 <= usable]
        self.waiting: list[Sequence] = []
        self.refused: list[Sequence] = []
        self.timed_out: list[Sequence] = []
        self.running: list[Sequence] = []
        self.swapped: list[Sequence] = []
        self.pool = list(range(limits.kv_blocks))
        self.host = limits.swap_blocks
        self.now = 0.0
        self.peak = self.passes = self.swaps = 0

    def run(self) -> None:
        while self.busy:
            self.step()

    @property
    def busy(self) -> bool:
        return bool(self.coming or self.waiting or self.running or self.swapped)

    def step(self) -> None:
        self.arrive()
        if not (self.waiting or self.running or self.swapped):
            self.now = self.coming[0].arrival if self.coming else self.now
            return
        self.waiting.sort(key=lambda s: (s.key, s.number))
        self.chunked_step() if self.chunked else self.prefill_first_step()
        self.check()

    def known_until(self) -> float:
        """The time up to which the scheduler knows of arrivals."""
        return self.now

    def arrive(self) -> None:
        self.lose(self.running, self.now)
        self.lose(self.swapped, self.now)
        while self.coming and self.coming[0].arrival <= self.known_until():
            s = self.coming.pop(0)
            self.lose(self.waiting, s.arrival)
            if self.limits.max_waiting is not None and len(self.waiting) >= self.limits.max_waiting:
                self.refused.append(s)
            else:
                self.waiting.append(s)
        self.lose(self.waiting, self.known_until())

    def lose(self, here: list[Sequence], now: float) -> None:
        """Those whose clients stopped waiting by `now`."""
        if self.limits.patience_s is None:
            return
        for s in [s for s in here if s.arrival + self.limits.patience_s <= now]:
            here.remove(s)
            self.timed_out.append(s)
            if here is self.running:
                self.give(s)
            elif here is self.swapped:
                self.host += self.needed(s.cached)

    def check(self) -> None:
        held = [block for s in self.running for block in s.blocks]
        assert sorted(held + self.pool) == list(range(self.limits.kv_blocks))
        for s in self.running:
            assert self.held(s) >= self.needed(s.cached)

    def needed(self, tokens: int) -> int:
        return (tokens + self.limits.block_tokens - 1) // self.limits.block_tokens

    def take(self, s: Sequence, count: int) -> None:
        for _ in range(count):
            s.blocks.append(self.pool.pop())

    def give(self, s: Sequence) -> None:
        self.pool.extend(s.blocks)
        s.blocks = []

    def held(self, s: Sequence) -> int:
        return len(s.blocks)

    def new_tokens(self, s: Sequence) -> int:
        return s.prompt + s.made

    def detach(self, s: Sequence) -> None:
        pass

    def admissible(self, s: Sequence) -> bool:
        return (
            len(self.running) < self.limits.max_running
            and len(self.pool) - self.needed(s.prompt + s.made) >= self.reserve
        )

    def admit(self, s: Sequence) -> None:
        self.waiting.remove(s)
        s.target, s.cached = s.prompt + s.made, 0
        self.take(s, self.needed(s.target))
        self.running.append(s)
        if s.started is None:
            s.started = self.now

    def emit(self, sequences: list[Sequence]) -> None:
        self.peak = max(self.peak, self.limits.kv_blocks - len(self.pool))
        for s in sequences:
            s.made += 1
            s.first = self.now if s.first is None else s.first
            if s.made == s.output:
                s.finished = self.now
                self.give(s)
                self.running.remove(s)

    def decoding(self) -> list[Sequence]:
        return [s for s in self.running if s.cached == s.target]

    def grow(self) -> tuple[bool, float]:
        """Blocks for the tokens that the decoding sequences store; preempts the last admitted while they lack."""
        seconds, preempted, grown = 0.0, False, set[int]()
        for s in list(self.running):
            if s not in self.running or s.cached != s.target:
                continue
            while self.needed(s.cached + 1) > self.held(s):
                if self.pool:
                    self.take(s, 1)
                    grown.add(s.number)
                    continue
                victim = self.running.pop()
                if victim.number in grown:  # it stores nothing in this step after all
                    self.pool.append(victim.blocks.pop())
                seconds += self.preempt(victim)
                preempted = True
                if victim is s:
                    break
        return preempted, seconds

    def preempt(self, victim: Sequence) -> float:
        victim.preemptions += 1
        count, whole = self.held(victim), victim.cached == victim.target
        self.give(victim)
        if whole and self.limits.preemption == "swap" and count <= self.host:
            self.host -= count
            self.swaps += 1
            self.swapped.insert(0, victim)
            self.detach(victim)
            return count * self.limits.swap_s_per_block
        victim.cached = 0
        self.waiting.append(victim)
        self.waiting.sort(key=lambda s: (s.key, s.number))
        return 0.0

    def swap_in(self) -> float:
        seconds = 0.0
        while self.swapped and len(self.running) < self.limits.max_running:
            s = self.swapped[0]
            if len(self.pool) - self.needed(s.cached + 1) < self.reserve:
                break
            del self.swapped[0]
            count = self.needed(s.cached)
            self.host += count
            self.take(s, self.needed(s.cached + 1))
            self.running.append(s)
            seconds += count * self.limits.swap_s_per_block
        self.running.sort(key=lambda s: s.cached < s.target)  # a prompt that was begun counts as admitted last
        return seconds

    def prefill_first_step(self) -> None:
        batch: list[Sequence] = []
        tokens = 0
        while self.waiting and not self.swapped and self.admissible(self.waiting[0]):
            s = self.waiting[0]
            if batch and tokens + self.new_tokens(s) > self.limits.max_batched_tokens:
                break
            self.admit(s)
            batch.append(s)
            tokens += s.target - s.cached
        self.passes += 1
        if batch:
            self.now += self.step_time.seconds(0, 0, [(s.target - s.cached, s.cached) for s in batch])
            for s in batch:
                s.cached = s.target
            self.emit(batch)
            return
        preempted, extra = self.grow()
        if not preempted:
            extra += self.swap_in()
        self.decode_with([], extra)

    def decode_with(self, chunks: list[tuple[Sequence, int]], extra: float) -> None:
        decoding = self.decoding()
        for s, count in chunks:
            s.cached += count
        done = [s for s, _ in chunks if s.cached == s.target]
        self.now += extra + self.step_time.seconds(
            len(decoding),
            sum(s.cached for s in decoding),
            [(count, s.cached - count) for s, count in chunks],
            len(decoding) + len(done),
        )
        for s in decoding:
            s.cached += 1
            s.target = s.cached
        self.emit(sorted(decoding, key=lambda s: s.number) + done)

    def chunked_step(self) -> None:
        self.passes += 1
        preempted, extra = self.grow()
        if not preempted:
            extra += self.swap_in()
        budget = self.limits.max_batched_tokens - len(self.decoding())
        chunks: list[tuple[Sequence, int]] = []
        for s in self.running:
            if s.cached < s.target:
                chunks.append((s, min(budget, s.target - s.cached)))
                budget -= chunks[-1][1]
        while budget and self.waiting and not preempted and not self.swapped and self.admissible(self.waiting[0]):
            s = self.waiting[0]
            self.admit(s)
            chunks.append((s, min(budget, s.target - s.cached)))
            budget -= chunks[-1][1]
        self.decode_with(chunks, extra)
