"""The oracle for fairness: service per client, added up request by request."""

from __future__ import annotations

from tests.serving.naive_engine import NaiveEngine, Sequence


class NaiveFairEngine(NaiveEngine):
    """The key of a request is its client."""

    def run(self) -> None:
        self.service: dict[int, int] = {}
        self.known: list[Sequence] = []
        self.charged: dict[int, int] = {}
        look_at = 0
        while self.coming or self.waiting or self.running or self.swapped:
            self.enter()
            if self.passes >= look_at:
                self.charge()
                self.switch()
                look_at = self.passes + 50
                self.enter()
            if not (self.waiting or self.running or self.swapped):
                self.charge()
                self.now = self.coming[0].arrival if self.coming else self.now
                continue
            self.waiting.sort(key=self.rank)
            behind = self.swapped and self.waiting and self.rank(self.waiting[0]) > self.rank(self.swapped[0])
            away, self.swapped = self.swapped, [] if not behind else self.swapped
            if self.waiting and not behind and self.fits_now():
                self.prefill_first_step()
                self.swapped = away
            else:
                self.swapped = away
                self.step_without_prompts()
            self.check()

    def fits_now(self) -> bool:
        return self.admissible(self.waiting[0])

    def step_without_prompts(self) -> None:
        waiting, self.waiting = self.waiting, []
        self.prefill_first_step()
        self.waiting += waiting

    def admit(self, s: Sequence) -> None:
        super().admit(s)
        if s.number not in self.charged:
            self.charged[s.number] = 0
            self.service[s.key] += s.prompt

    def enter(self) -> None:
        while self.coming and self.coming[0].arrival <= self.now:
            s = self.coming.pop(0)
            if not any(other.key == s.key for other in self.known):
                least = min((self.service[other.key] for other in self.known), default=0)
                self.service[s.key] = max(self.service.get(s.key, 0), least)
            self.known.append(s)
            self.waiting.append(s)

    def charge(self) -> None:
        for s in list(self.known):
            if s.number in self.charged:
                self.service[s.key] += 2 * (s.made - self.charged[s.number])
                self.charged[s.number] = s.made
            if s.made == s.output:
                self.known.remove(s)

    def rank(self, s: Sequence) -> tuple[int, int]:
        return self.service[s.key], s.number

    def switch(self) -> None:
        room, blocks = self.limits.max_running, self.limits.kv_blocks - self.reserve
        chosen: list[Sequence] = []
        for s in sorted([*self.running, *self.swapped, *self.waiting], key=self.rank):
            running = s in self.running
            blocks -= self.needed(s.cached + 1 if running else s.prompt + s.made)
            if not room or blocks < 0:
                break
            room -= 1
            chosen.append(s)
        if any(s not in self.running for s in chosen):
            for s in sorted([s for s in self.running if s not in chosen], key=self.rank, reverse=True):
                self.running.remove(s)
                self.now += self.preempt(s)
        self.running.sort(key=self.rank)
        self.swapped.sort(key=self.rank)
