"""The oracle for engines that schedule ahead: a step is filled with what had come when the step before it began."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.serving.naive_cache import NaiveCachingEngine
from tests.serving.naive_engine import NaiveEngine

from stowplan.serving.limits import Limits
from stowplan.serving.requests import Requests
from stowplan.serving.step_time import StepTime


class NaiveAheadEngine(NaiveEngine):
    """`seen` is the moment at which the next step was filled: at the boundary before `now`, or now if it idled."""

    seen = 0.0

    def step(self) -> None:
        self.arrive()
        if not (self.waiting or self.running or self.swapped):
            if self.coming:
                self.now = self.seen = max(self.now, self.coming[0].arrival)
            return
        self.waiting.sort(key=lambda s: (s.key, s.number))
        began = self.now
        self.chunked_step() if self.chunked else self.prefill_first_step()
        self.seen = began
        self.check()

    def known_until(self) -> float:
        return self.seen


class NaiveAheadCachingEngine(NaiveAheadEngine, NaiveCachingEngine):
    """The same with a prefix cache."""


@dataclass
class Stepper:
    """One of two stages: what it runs, the boundary it is at, and the moment at which its next step was filled."""

    now: float = 0.0
    seen: float = 0.0
    queue: list[tuple[float, int]] = field(default_factory=list)

    def waits_for(self, moment: float) -> None:
        self.now = self.seen = max(self.now, moment)

    def spends(self, seconds: float) -> None:
        self.seen, self.now = self.now, self.now + seconds


def stepped_pair(
    requests: Requests, step_time: StepTime, limits: Limits, s_per_token: float, latency_s: float
) -> tuple[list[float], list[float]]:
    """First and last tokens where one engine takes whole prompts and another decodes, with blocks for everyone.

    Both fill a step while the one before it runs: arrivals, prompts that were handed over, and caches that have been
    copied wait for the step after it.
    """
    arrival, prompt, output = (
        column.tolist() for column in (requests.arrival_s, requests.prompt_tokens, requests.output_tokens)
    )
    first, last = [0.0] * len(arrival), [0.0] * len(arrival)
    prompts, decodes = Stepper(queue=[(moment, i) for i, moment in enumerate(arrival)]), Stepper()
    while prompts.queue:
        ready = [i for moment, i in prompts.queue if moment <= prompts.seen]
        if not ready:
            prompts.waits_for(prompts.queue[0][0])
            continue
        batch: list[int] = []
        for i in ready[: limits.max_running]:
            if batch and sum(prompt[j] for j in [*batch, i]) > limits.max_batched_tokens:
                break
            batch.append(i)
        prompts.queue = [each for each in prompts.queue if each[1] not in batch]
        prompts.spends(step_time.seconds(0, 0, [(prompt[i], 0) for i in batch]))
        for i in batch:
            first[i] = last[i] = prompts.now
            if output[i] > 1:
                decodes.queue.append((prompts.now, i))
    link, running = 0.0, dict[int, int]()
    copying: list[tuple[float, int]] = []
    while decodes.queue or copying or running:
        running |= {i: 1 for moment, i in copying if moment <= decodes.seen}
        copying = [each for each in copying if each[0] > decodes.seen]
        while (
            decodes.queue and decodes.queue[0][0] <= decodes.seen and len(running) + len(copying) < limits.max_running
        ):
            _, i = decodes.queue.pop(0)
            link = max(decodes.now, link) + latency_s + prompt[i] * s_per_token
            copying.append((link, i))
        # an idle engine takes what is copied in no time at once, also where it has just stopped waiting for another
        running |= {i: 1 for moment, i in copying if moment <= decodes.seen}
        copying = [each for each in copying if each[0] > decodes.seen]
        if not running:
            events = [moment for moment, _ in copying]
            if decodes.queue and len(copying) < limits.max_running:
                events.append(decodes.queue[0][0])
            decodes.waits_for(min(events))
            continue
        context = sum(prompt[i] + made - 1 for i, made in running.items())
        decodes.spends(step_time.seconds(len(running), context))
        running = {i: made + 1 for i, made in running.items()}
        for i in [i for i, made in running.items() if made == output[i]]:
            last[i] = decodes.now
            del running[i]
    return first, last
