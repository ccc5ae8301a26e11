"""Static batching: a batch is formed, runs until its longest member has finished, and only then is the next one formed.

As serving before continuous batching: prompts are padded to the longest of the batch, finished sequences keep their
slots, and the answers of a batch are delivered together. A batch takes waiting requests in order while the padded
prompts fit into one step's tokens and the padded cache, reserved up to the longest answer, into the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf

from stowplan.serving.core import Core
from stowplan.serving.scheduler import Scheduler


class Static(Scheduler):
    """Batch after batch; see the module's text."""

    def run(self, until: float = inf) -> None:
        """See `Scheduler`; a batch that has begun runs to its end."""
        core = self.core
        while core.now < until:
            members = _form(core)
            if members:
                _run_batch(core, members)
                continue
            event = self.next_event
            if event >= until:
                return
            core.wait_until(event)


def _run_batch(core: Core, members: Sequence[int]) -> None:
    prompt, output, tables = core.prompt, core.output, core.tables
    count, longest = len(members), max(prompt[request] for request in members)
    steps = max(output[request] for request in members) - 1
    held = count * core.limits.blocks(longest + steps)
    for request in members:
        core.started[request] = core.now
    core.reserve_blocks(held)
    attention = count * tables.of(count * longest).prompt_attention[longest]
    core.now += tables.body[count * longest] + tables.logits[count] + attention
    for request in members:
        core.first[request] = core.now
    core.passes += 1 + steps
    core.tally[count * longest] += 1
    core.tally[count] += steps
    core.now += _decode_seconds(core, count, longest, steps)
    core.free += held
    for request in members:
        core.finished[request] = core.now


def _form(core: Core) -> Sequence[int]:
    """Members of the next batch, taken from the queue."""
    limits, waiting, now = core.limits, core.waiting, core.now
    available = limits.kv_blocks - limits.reserve
    members: list[int] = []
    longest = answer = 0
    while len(members) < limits.max_running:
        request = waiting.head(now)
        if request < 0:
            break
        padded, until = max(longest, core.prompt[request]), max(answer, core.output[request])
        count = len(members) + 1
        fits = count * padded <= limits.max_batched_tokens and count * limits.blocks(padded + until - 1) <= available
        if members and not fits:
            break
        waiting.pop()
        members.append(request)
        longest, answer = padded, until
    return members


def _decode_seconds(core: Core, batch: int, context: int, steps: int) -> float:
    """Seconds of `steps` decode steps of `batch` sequences that have `context` cached tokens each at first."""
    seconds, done, tables = 0.0, 0, core.tables.of(batch)
    for end, fixed, per_token in zip(tables.piece_ends, tables.piece_fixed, tables.piece_token, strict=True):
        if context + done >= end:
            continue
        run = steps - done if end == inf else min(steps - done, ceil(end - context - done))
        first = fixed[batch] + batch * per_token * (context + done)
        seconds += run * (first + 0.5 * per_token * batch * (run - 1))
        done += run
        if done == steps:
            break
    return seconds
