"""The oracle with a prefix cache: every block by its hash, evicted at once, one after another, least recently used."""

from __future__ import annotations

from collections import OrderedDict

from tests.serving.naive_engine import NaiveEngine, Sequence

from stowplan.serving.limits import Limits
from stowplan.serving.requests import Requests
from stowplan.serving.step_time import StepTime

Key = tuple[int, int]
TURNS = 8
"""Requests of a conversation after a request that may hold its answer."""


def keys_of(requests: Requests, block_tokens: int) -> list[list[Key]]:
    """Whole blocks of every prompt, in an engine's blocks."""
    prefix = requests.prefix
    assert prefix is not None
    units = prefix.block_tokens // block_tokens
    return [
        [(key, part) for key in prefix.of(row).tolist()[: prompt // prefix.block_tokens] for part in range(units)]
        for row, prompt in enumerate(requests.prompt_tokens.tolist())
    ]


def answers_of(requests: Requests, block_tokens: int, runnable: list[int]) -> list[list[Key]]:
    """Whole blocks behind every prompt's that its answer fills, where a later prompt says which they are."""
    chains, answers = keys_of(requests, block_tokens), [list[Key]() for _ in range(len(requests))]
    if requests.session is None:
        return answers
    for row in runnable:
        ends = int(requests.prompt_tokens[row] + requests.output_tokens[row])
        turns = [s for s in runnable if s > row and requests.session[s] == requests.session[row] >= 0]
        for later in turns[:TURNS]:
            if chains[later][: len(chains[row])] == chains[row]:
                if requests.prompt_tokens[later] >= ends:
                    answers[row] = chains[later][len(chains[row]) : (ends - 1) // block_tokens]
                break
    return answers


class NaiveCachingEngine(NaiveEngine):
    """Blocks are told apart by (hash, place); `host` is the capacity of host memory, from which loads are free."""

    def __init__(
        self,
        requests: Requests,
        step_time: StepTime,
        limits: Limits,
        *,
        chunked: bool,
        host: int = 0,
    ) -> None:
        columns = (requests.arrival_s.tolist(), requests.prompt_tokens.tolist(), requests.output_tokens.tolist())
        super().__init__([(*row, 0) for row in zip(*columns, strict=True)], step_time, limits, chunked=chunked)
        runnable = [s.number for s in self.coming]
        self.chains, self.answers = (
            keys_of(requests, limits.block_tokens),
            answers_of(requests, limits.block_tokens, runnable),
        )
        self.loose: OrderedDict[Key, None] = OrderedDict()
        self.shared: dict[Key, tuple[int, int]] = {}
        self.host_blocks = host
        self.below: OrderedDict[Key, None] = OrderedDict()
        owners: dict[Key, set[int]] = {}
        for number in runnable:
            for key in self.chains[number]:
                owners.setdefault(key, set()).add(number)
        self.alike = {key: frozenset(numbers) for key, numbers in owners.items()}
        self.hits = [0, 0]
        self.growing = False
        self.detached: set[int] = set()

    def chain(self, s: Sequence) -> list[Key]:
        return [] if s.number in self.detached else self.chains[s.number]

    def evict(self) -> None:
        while len(self.loose) > len(self.pool):
            key, _ = self.loose.popitem(last=False)
            self.store(key)

    def store(self, key: Key) -> None:
        """To host memory, where all blocks that the same requests share are as fresh as the last one stored."""
        if not self.host_blocks or key in self.below:
            return
        self.below[key] = None
        self.refresh(key)
        if len(self.below) > self.host_blocks:
            oldest = next(iter(self.below))
            for other in [other for other in self.below if self.alike[other] == self.alike[oldest]]:
                del self.below[other]

    def refresh(self, key: Key) -> None:
        same = [other for other in self.below if self.alike[other] == self.alike[key]]
        for other in sorted(same, key=self.place, reverse=True):
            self.below.move_to_end(other)

    def place(self, key: Key) -> int:
        return next(chain.index(key) for chain in self.chains if key in chain)

    def take(self, s: Sequence, count: int) -> None:
        super().take(s, count)
        if not self.growing:
            self.evict()

    def grow(self) -> tuple[bool, float]:
        """Room is made for all that stay before any of them takes it."""
        self.growing = True
        grown = super().grow()
        self.growing = False
        self.evict()
        return grown

    def look(self, s: Sequence) -> tuple[int, int, int]:
        """Blocks on the GPU, those of them that others hold, and blocks in host memory after them."""
        chain = self.chain(s)
        here = next((i for i, key in enumerate(chain) if key not in self.shared and key not in self.loose), len(chain))
        pinned = sum(key in self.shared for key in chain[:here])
        most = (s.prompt + s.made - 1) // self.limits.block_tokens
        loaded = 0
        while here + loaded < min(most, len(chain)) and chain[here + loaded] in self.below:
            loaded += 1
        return min(here, most), pinned, loaded

    def admissible(self, s: Sequence) -> bool:
        blocks = self.needed(s.prompt + s.made) - self.look(s)[1]
        return len(self.running) < self.limits.max_running and len(self.pool) - blocks >= self.reserve

    def admit(self, s: Sequence) -> None:
        here, _, loaded = self.look(s)
        self.waiting.remove(s)
        size, chain = self.limits.block_tokens, self.chain(s)
        s.target, s.cached = s.prompt + s.made, (here + loaded) * size
        self.hits[0] += here * size
        self.hits[1] += loaded * size
        done = set[frozenset[int]]()
        for key in chain[here : here + loaded]:
            if self.alike[key] not in done:
                self.refresh(key)
                done.add(self.alike[key])
        for key in chain:
            if key in self.shared:
                block, holders = self.shared[key]
                self.shared[key] = block, holders + 1
            else:
                self.loose.pop(key, None)
                self.shared[key] = self.pool.pop(), 1
        self.take(s, self.needed(s.target) - len(chain))
        self.running.append(s)
        if s.started is None:
            s.started = self.now

    def give(self, s: Sequence) -> None:
        super().give(s)
        if s.finished is not None:
            self.leave_answer(s)
        chain = self.chain(s)
        computed = s.cached // self.limits.block_tokens
        for place in reversed(range(len(chain))):
            block, holders = self.shared.pop(chain[place])
            if holders > 1:
                self.shared[chain[place]] = block, holders - 1
                continue
            self.pool.append(block)
            if place < computed:
                self.loose[chain[place]] = None
        s.blocks = []

    def leave_answer(self, s: Sequence) -> None:
        """What nobody else has of the answer stays, as fresh as the prompt, whose end it is; its blocks are free.

        What is there already behind it, and is of the same prompts as its end, is as fresh.
        """
        answer = self.answers[s.number]
        if s.number in self.detached or not answer:
            return
        behind = [key for key in self.loose if key not in answer and self.alike[key] == self.alike[answer[-1]]]
        for key in sorted(behind, key=self.place, reverse=True):
            if self.place(key) > self.place(answer[-1]):
                self.loose.move_to_end(key)
        for key in reversed(answer):
            if key not in self.shared:
                self.loose[key] = None
                self.loose.move_to_end(key)

    def new_tokens(self, s: Sequence) -> int:
        here, _, loaded = self.look(s)
        return s.prompt + s.made - (here + loaded) * self.limits.block_tokens

    def detach(self, s: Sequence) -> None:
        self.detached.add(s.number)

    def held(self, s: Sequence) -> int:
        return len(s.blocks) + len(self.chain(s))

    def check(self) -> None:
        held = [block for s in self.running for block in s.blocks] + [block for block, _ in self.shared.values()]
        assert sorted(held + self.pool) == list(range(self.limits.kv_blocks))
        assert len(self.loose) <= len(self.pool)
        assert len(self.below) <= self.host_blocks
