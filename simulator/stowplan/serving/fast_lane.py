"""The calm case of continuous batching in one loop over local variables: several times faster, and nothing else.

While requests come first served, nobody is preempted and nobody waits to come back, the steps of `continuous` and
`Core.decode` reduce to the few lines below, and who was admitted when follows from the numbers of the requests. The
lane does what they do; it gives the state back as soon as blocks run short, and at the end.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import ceil, inf

from stowplan.serving.core import Core
from stowplan.serving.growth import steps_until, steps_within_blocks
from stowplan.serving.queues import FirstCome

NEVER = 1 << 62
"""A step that nobody reaches."""


def run_fast_lane(core: Core, waiting: FirstCome) -> None:
    """Run until the next decode step lacks blocks or every request has finished.

    Nobody may have been preempted who still waits.
    """
    entered = waiting.next
    drop_stale_ends(core)
    _advance(core, waiting)
    restore_order(core, entered)


def drop_stale_ends(core: Core) -> None:
    """Leave only the ends of sequences that decode now; the others were preempted."""
    if len(core.ends) == core.batch:
        return
    mask, bits, finish = (1 << core.bits) - 1, core.bits, core.finish
    # a sequence that came back with the end that it had before is there twice
    core.ends[:] = {end for end in core.ends if finish[end & mask] == end >> bits}
    heapify(core.ends)


def restore_order(core: Core, entered: int) -> None:
    """Note who decodes now, in order of admission: those from before, then those that were admitted since."""
    finish, mask, bits = core.finish, (1 << core.bits) - 1, core.bits
    before = [request for request in core.order if finish[request] >= 0]
    for request in before:
        finish[request] = -1
    for end in core.ends:
        finish[end & mask] = end >> bits
    since = sorted(request for request in (end & mask for end in core.ends) if request >= entered)
    core.order = [request for request in before if finish[request] >= 0] + since


def _advance(core: Core, waiting: FirstCome) -> None:
    limits, tables = core.limits, core.tables
    size, reserve, max_running = limits.block_tokens, core.reserve, limits.max_running
    budget, round_up, bits = limits.max_batched_tokens, limits.block_tokens - 1, core.bits
    mask = (1 << bits) - 1
    prompt, output, full, arrival = core.prompt, core.output, core.full, waiting.arrival
    body, logits, prompt_attention = tables.body, tables.logits, tables.prompt_attention
    low = high = growth = 0.0
    fixed: list[float] = []
    started, first, finished, ends, phase = core.started, core.first, core.finished, core.ends, core.phase
    now, steps, batch, context = core.now, core.steps, core.batch, core.context
    free, lowest, head, prefills = core.free, core.lowest_free, waiting.next, 0
    tally, idle, pause_at = core.tally, 0.0, core.pause_at
    coming = arrival[head]
    due = ends[0] >> bits if ends else NEVER
    while True:
        change, tokens = coming if batch < max_running else inf, 0
        if change <= now:
            change, opening, attention, left = inf, head, 0.0, free - reserve
            last = head + max_running - batch
            while head < last and coming <= now:
                length = prompt[head]
                need = (length + round_up) // size
                if need > left or (tokens + length > budget and tokens):
                    break
                tokens += length
                left -= need
                attention += prompt_attention[length]
                finish = steps + output[head] - 1
                heappush(ends, finish << bits | head)
                due = finish if finish < due else due
                phase[(steps - length) % size] += 1
                started[head] = now
                head += 1
                coming = arrival[head]
        if tokens:
            free = left + reserve
            now += body[tokens] + logits[head - opening] + attention
            prefills += 1
            tally[tokens] += 1
            batch += head - opening
            context += tokens
            for request in range(opening, head):
                first[request] = now
        elif batch:
            run, start = due - steps, steps % size
            if free < batch * ((run + round_up) // size):
                if free < phase[start]:
                    break
                run = steps_within_blocks(phase, steps, free, batch, run)
            mean = context / batch
            if not low <= mean < high:
                low, high, _, growth, fixed = tables.decode_piece(mean)
            if mean + run > high:
                run = min(run, ceil(high - mean))
            step_s, half = fixed[batch] + growth * context, 0.5 * growth * batch
            until = now + run * (step_s + half * (run - 1))
            if change < until:
                run = steps_until(change, now, step_s, half, run)
                until = now + run * (step_s + half * (run - 1))
            now = until
            tally[batch] += run
            context += batch * run
            cycles, rest = divmod(run, size)
            rest += start
            free -= cycles * batch + sum(phase[start:rest])
            if rest > size:
                free -= sum(phase[: rest - size])
            steps += run
        elif change == inf or head >= pause_at:
            break
        else:
            idle += change - now
            now = change
        if steps == due:
            lowest = free if free < lowest else lowest
            while steps == due:
                request = heappop(ends) & mask
                cached = full[request]
                phase[(steps - cached) % size] -= 1
                batch -= 1
                context -= cached
                free += (cached + round_up) // size
                finished[request] = now
                due = ends[0] >> bits if ends else NEVER
    core.idle_s += idle
    core.passes += prefills + steps - core.steps
    core.now, core.steps, core.batch, core.context = now, steps, batch, context
    core.free, core.lowest_free, waiting.next = free, min(lowest, free), head
