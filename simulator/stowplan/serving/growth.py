"""How far a run of decode steps goes: until its blocks are used up, or until a moment."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt


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
    wait, linear = moment - now, step_s - half_growth
    square = linear * linear + 4.0 * half_growth * wait
    root = linear + sqrt(square) if square > 0.0 else linear
    guess = 2.0 * wait / root if root > 0.0 else 1.0
    step = most if guess >= most else ceil(guess) if guess > 1.0 else 1
    while step > 1 and now + (step - 1) * (step_s + half_growth * (step - 2)) >= moment:
        step -= 1
    while step < most and now + step * (step_s + half_growth * (step - 1)) < moment:
        step += 1
    return step
