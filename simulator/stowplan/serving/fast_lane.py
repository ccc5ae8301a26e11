"""The calm case of continuous batching in one loop over local variables: several times faster, and nothing else.

While requests come first served, nobody is preempted and nobody waits to come back, the steps of `continuous` and
`Core.decode` reduce to the few lines below, and who was admitted when follows from the numbers of the requests. The
lane does what they do; it gives the state back as soon as blocks run short, and at the end.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import ceil, inf, sqrt

from stowplan.serving.core import Core
from stowplan.serving.growth import steps_until, steps_within_blocks
from stowplan.serving.queues import FirstCome


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
    limits = core.limits
    size, reserve, max_running = limits.block_tokens, core.reserve, limits.max_running
    budget, round_up, bits = limits.max_batched_tokens, limits.block_tokens - 1, core.bits
    mask = (1 << bits) - 1
    prompt, output, full, arrival = core.prompt, core.output, core.full, waiting.arrival
    tables = core.tables
    body, logits, prompt_attention = tables.body, tables.logits, tables.prompt_attention
    piece_ends, piece_token, piece_fixed = tables.piece_ends, tables.piece_token, tables.piece_fixed
    several, piece, growth, fixed = len(piece_ends) > 1, 0, piece_token[0], piece_fixed[0]
    started, first, finished, ends, phase = core.started, core.first, core.finished, core.ends, core.phase
    now, steps, batch, context = core.now, core.steps, core.batch, core.context
    free, lowest, head, prefills = core.free, core.lowest_free, waiting.next, 0
    tally, idle = core.tally, 0.0
    while True:
        change = inf
        if batch < max_running:
            change = arrival[head]
            if change <= now:
                change = inf
                after, tokens, attention, left_free = head, 0, 0.0, free
                last = head + max_running - batch
                while after < last and arrival[after] <= now:
                    length = prompt[after]
                    still_free = left_free - (length + round_up) // size
                    if still_free < reserve or (tokens + length > budget and after > head):
                        break
                    tokens += length
                    left_free = still_free
                    attention += prompt_attention[length]
                    after += 1
                if after > head:
                    begin = now
                    now += body[tokens] + logits[after - head] + attention
                    prefills += 1
                    tally[tokens] += 1
                    free = left_free
                    lowest = lowest if lowest < free else free
                    for request in range(head, after):
                        started[request] = begin
                        first[request] = now
                        left = output[request] - 1
                        if left:
                            length = prompt[request]
                            heappush(ends, (steps + left) << bits | request)
                            phase[(steps - length) % size] += 1
                            batch += 1
                            context += length
                        else:
                            finished[request] = now
                            free += (prompt[request] + round_up) // size
                    head = after
                    continue
        if not batch:
            if change == inf:
                break
            idle += change - now
            now = change
            continue
        due = ends[0] >> bits
        run = due - steps
        start = steps % size
        if free < batch * ((run + round_up) // size):
            if free < phase[start]:
                break
            run = steps_within_blocks(phase, steps, free, batch, run)
        if several:
            mean, piece = context / batch, 0
            while mean >= piece_ends[piece]:
                piece += 1
            if mean + run > piece_ends[piece]:
                run = min(run, ceil(piece_ends[piece] - mean))
            growth, fixed = piece_token[piece], piece_fixed[piece]
        step_s = fixed[batch] + growth * context
        if run == 1:
            tally[batch] += 1
            now += step_s
            steps += 1
            context += batch
            free -= phase[start]
        else:
            half = 0.5 * growth * batch
            until = now + run * (step_s + half * (run - 1))
            if change < until:
                # the root of `steps_until`, kept where the times on both sides of it confirm it
                wait, linear = change - now, step_s - half
                square = linear * linear + 4.0 * half * wait
                guess = ceil(2.0 * wait / (linear + sqrt(square))) if square > 0.0 and linear > 0.0 else run
                until = now + guess * (step_s + half * (guess - 1))
                if until < change or guess > run or now + (guess - 1) * (step_s + half * (guess - 2)) >= change:
                    guess = steps_until(change, now, step_s, half, run)
                    until = now + guess * (step_s + half * (guess - 1))
                run = guess
            tally[batch] += run
            now = until
            steps += run
            context += batch * run
            if run >= size:
                free -= run // size * batch
                run %= size
            run += start
            free -= sum(phase[start:run])
            if run > size:
                free -= sum(phase[: run - size])
        if steps == due:
            lowest = lowest if lowest < free else free
            beyond = (due + 1) << bits
            while ends and ends[0] < beyond:
                request = heappop(ends) & mask
                cached = full[request]
                phase[(due - cached) % size] -= 1
                batch -= 1
                context -= cached
                free += (cached + round_up) // size
                finished[request] = now
    core.idle_s += idle
    core.passes += prefills + steps - core.steps
    core.now, core.steps, core.batch, core.context = now, steps, batch, context
    core.free, core.lowest_free, waiting.next = free, min(lowest, free), head
