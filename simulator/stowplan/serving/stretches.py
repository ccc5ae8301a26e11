"""A long replay in stretches, between moments at which the engine is idle, some of them in other processes.

Nothing runs or waits at such a *pause*, so that all that the future depends on is what lies in the cache. A *scout* is
a process that starts somewhere in the trace with an idle engine and an empty cache. Its cache is wrong at first; what
was used recently decides what a cache holds, so that in time it is what it would have been. When a replay from the
beginning pauses where a scout has paused, in the same state to the last bit, both have the same future: the scout's
rows from there on are the replay's own. Where that never happens, the replay goes on by itself, and only the scout was
in vain. So the result is the same for any number of processes.

Source: the idea is that of time-parallel simulation by state matching, Heidelberger and Stone, Parallel trace-driven
cache simulation by time partitioning, Winter Simulation Conference 1990.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain
from struct import pack

import numpy as np

from stowplan.serving.account import Account
from stowplan.serving.chains import Chains, Integers, Numbers
from stowplan.serving.core import Core
from stowplan.serving.queues import FirstCome
from stowplan.serving.scheduler import Scheduler

_MARKS = 128
"""Rows of a trace before which a replay looks for a pause, at most."""
_APART = 2_000
"""Rows between two of them, at least."""
PRINT_BYTES = 32

Pause = Callable[[int], bool]
"""Called at a pause with the number of marks that lie before it; answers whether the rest is known from elsewhere."""


def marks_of(count: int) -> range:
    """Rows at or after which a replay of so many requests pauses; they depend on nothing else."""
    apart = max(_APART, -(-count // _MARKS))
    return range(apart, count, apart)


def run_in_stretches(scheduler: Scheduler, earlier: int, count: int, pause: Pause | None = None) -> list[Account]:
    """Run an engine over all of its requests, and close its account at every pause.

    Args:
        scheduler: the engine; it has not run yet.
        earlier: requests of the trace before its first one.
        count: requests of the whole trace.
        pause: told of every pause; None for nobody.

    Returns:
        Accounts from pause to pause.
    """
    with _no_collector():
        return _run(scheduler, earlier, count, pause)


@contextmanager
def _no_collector() -> Iterator[None]:
    """A replay makes no cycles, and looking for some in its millions of entries takes a tenth of its time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _run(scheduler: Scheduler, earlier: int, count: int, pause: Pause | None) -> list[Account]:
    core, accounts = scheduler.core, list[Account]()
    waiting = core.waiting
    for number, mark in enumerate(marks_of(count)):
        if mark <= earlier:
            continue
        core.pause_at = mark - earlier
        scheduler.run()
        if not isinstance(waiting, FirstCome) or waiting.next + earlier >= count:
            break
        accounts.append(core.close_account())
        if pause is not None and pause(number):
            return accounts
    else:
        core.pause_at = count
        scheduler.run()
    accounts.append(core.close_account())
    return accounts


def fingerprint(core: Core, earlier: int, segments: Integers) -> bytes:
    """What the future of a paused engine depends on, in 32 bytes.

    Args:
        core: the engine; nothing runs or waits.
        earlier: requests of the trace before its first one.
        segments: int64[m], number in the whole trace of every segment of its cache.
    """
    waiting = core.waiting
    assert isinstance(waiting, FirstCome) and not core.batch
    state = blake2b(digest_size=PRINT_BYTES)
    state.update(pack("<qdqq", waiting.next + earlier, core.now, core.free, core.free_swap))
    if core.cache is not None:
        for ready, order, held in core.cache.contents(core.now):
            state.update(pack("<dq", ready, len(order)))
            state.update(segments[order].tobytes())
            state.update(np.array([len(ranges) for ranges in held], dtype=np.int64).tobytes())
            bounds = chain.from_iterable(chain.from_iterable(held))
            state.update(np.fromiter(bounds, dtype=np.int64).tobytes())
    return state.digest()


def chains_from(chains: Chains, row: int) -> tuple[Chains, Integers]:
    """Segments of the prompts from a row on, with new numbers in the same order, and their old numbers."""
    used = np.zeros(len(chains.parent), dtype=np.bool_)
    used[0] = used[chains.leaf[row:]] = True
    reached: Integers | Numbers = np.flatnonzero(used)
    while len(reached):
        reached = chains.parent[reached]
        reached = reached[~used[reached]]
        used[reached] = True
    segments: Integers = np.flatnonzero(used)
    number = (np.cumsum(used) - 1).astype(np.int32)
    part = Chains(
        leaf=number[chains.leaf[row:]],
        answer=number[chains.answer[row:]],  # on the way to the leaf of a later prompt
        beyond=chains.beyond[row:],
        parent=number[chains.parent[segments]],
        ends=chains.ends[segments],
        sizes=chains.sizes[segments],
        block_tokens=chains.block_tokens,
    )
    return part, segments
