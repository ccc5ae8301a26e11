"""Replay of requests through an engine: what happened to each of them, and to the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import InputError, UnknownName
from stowplan.serving.ahead import parts_of
from stowplan.serving.chains import Chains
from stowplan.serving.chunked import Chunked
from stowplan.serving.continuous import Continuous
from stowplan.serving.core import Core
from stowplan.serving.eviction import EvictionName
from stowplan.serving.fair import Fair, FairQueue
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import Record, Replay, Watch
from stowplan.serving.prefix_cache import PrefixCache
from stowplan.serving.queues import FirstCome, Pool, Sorted, WaitingQueue
from stowplan.serving.requests import Requests
from stowplan.serving.scheduler import Scheduler
from stowplan.serving.static import Static
from stowplan.serving.step_time import StepTime
from stowplan.serving.tables import StepTables
from stowplan.serving.tiers import Tier

LONGEST_REQUEST = 2**24
"""Tokens of prompt and output that one request may have in a replay; the tables of step times end there."""


@dataclass(frozen=True, slots=True)
class Caching:
    """A prefix cache.

    Attributes:
        tiers: places below the GPU that keep blocks, nearest first.
        eviction: which blocks go first: ``lru``, or ``cost`` for those that are cheapest to compute again.
    """

    tiers: tuple[Tier, ...] = ()
    eviction: EvictionName = "lru"


@dataclass(frozen=True, slots=True)
class Policy:
    """A scheduler, what its queue sorts by, and whether it is without prefix cache, queue limits and time-outs."""

    make: Callable[[Core], Scheduler]
    key: str = ""
    plain: bool = False


_SCHEDULERS = {
    "static": Policy(Static, plain=True),
    "continuous": Policy(Continuous),
    "chunked": Policy(Chunked),
    "shortest": Policy(Continuous, "length"),
    "shortest-chunked": Policy(Chunked, "length"),
    "priority": Policy(Continuous, "priority"),
    "priority-chunked": Policy(Chunked, "priority"),
    "fair": Policy(Fair, "client", plain=True),
}


def list_schedulers() -> list[str]:
    """Names of the schedulers."""
    return list(_SCHEDULERS)


def replay(
    requests: Requests,
    step_time: StepTime,
    limits: Limits,
    scheduler: str = "continuous",
    caching: Caching | None = None,
    *,
    ahead: bool = False,
    watch: Watch | None = None,
) -> Replay:
    """Replay requests through one engine; the same arguments give the same result to the last bit.

    Args:
        requests: what arrives, in order.
        step_time: what a step of the engine costs.
        limits: what the engine holds and admits.
        scheduler: one of `list_schedulers`.
        caching: prefix cache; None for none. Requests whose blocks are unknown share nothing.
        ahead: whether the engine schedules every step while the one before it runs; see `stowplan.serving.ahead`.
        watch: told when it begins; None for nobody.

    Raises:
        UnknownName: no such scheduler.
        InputError: a request that could run is longer than 2^24 tokens, priorities are missing, or the scheduler knows
            no prefix cache, queue limits or time-outs, or does not schedule ahead.
    """
    policy = policy_of(scheduler, limits, caching, ahead=ahead)
    rows, runnable, longest = runnable_rows(requests, limits)
    tables = StepTables(step_time, longest, limits)
    chains = chains_of(runnable, limits, caching)
    cache = PrefixCache(chains, tables, caching.tiers, caching.eviction) if caching and chains else None
    kind, pool = parts_of(ahead=ahead)
    core = kind(
        runnable.prompt_tokens.tolist(),
        runnable.output_tokens.tolist(),
        queue_of(runnable, limits, policy.key, pool if ahead else None),
        tables,
        limits,
        cache=cache,
        patience_s=limits.patience,
    )
    if watch is not None:
        watch(core.started)
    policy.make(core).run()
    record = Record(requests, scheduler)
    record.add(core, rows, caching.tiers if caching is not None else ())
    return record.result()


def policy_of(scheduler: str, limits: Limits, caching: Caching | None, *, ahead: bool = False) -> Policy:
    """A scheduler by its name, where it can do what is asked.

    Raises:
        UnknownName, InputError: as `replay`.
    """
    if scheduler not in _SCHEDULERS:
        raise UnknownName("scheduler", scheduler[:60], _SCHEDULERS)
    policy = _SCHEDULERS[scheduler]
    if policy.plain and (caching is not None or limits.max_waiting is not None or limits.patience_s is not None):
        raise InputError(f"scheduler: '{scheduler}' knows no prefix cache, queue limit or time-out; try chunked")
    if policy.plain and ahead:
        raise InputError(f"scheduler: '{scheduler}' fills no step ahead of time; try chunked")
    return policy


def runnable_rows(requests: Requests, limits: Limits) -> tuple[NDArray[np.int64], Requests, int]:
    """Rows of the requests that can run, these requests, and most tokens of one of them.

    Raises:
        InputError: one is longer than 2^24 tokens.
    """
    tokens = requests.prompt_tokens + requests.output_tokens - 1
    rows = np.flatnonzero(tokens <= limits.longest)
    longest = int(tokens[rows].max(initial=1))
    if longest > LONGEST_REQUEST:
        raise InputError(f"requests: one has {longest} tokens; a replay takes up to {LONGEST_REQUEST}")
    return rows, requests if len(rows) == len(requests) else requests.take(rows), longest


def chains_of(requests: Requests, limits: Limits, caching: Caching | None) -> Chains | None:
    """Which prompts begin alike, in blocks of the engine's size; None without a cache, or where nobody knows.

    Raises:
        InputError: the engine's blocks are no whole number of the trace's, nor the other way round.
    """
    prefix = requests.prefix
    if caching is None or prefix is None:
        return None
    count, rest = divmod(limits.block_tokens, prefix.block_tokens)
    if count > 1 and not rest:
        prefix = prefix.joined(count)
    return Chains.from_blocks(prefix, requests.prompt_tokens, limits.block_tokens)


def keys_of(requests: Requests, key: str) -> list[int]:
    """What a queue sorts by: predicted length, priority, or nothing.

    Raises:
        InputError: priorities are missing.
    """
    if key == "length":
        predicted = requests.output_tokens if requests.predicted_tokens is None else requests.predicted_tokens
        return [int(tokens) for tokens in predicted.tolist()]
    if key == "priority":
        if requests.priority is None:
            raise InputError("requests: priority: is missing; a scheduler by priority needs one for every request")
        return [int(priority) for priority in requests.priority.tolist()]
    return [0] * len(requests)


def queue_of(requests: Requests, limits: Limits, key: str, pool: type[Pool] | None = None) -> WaitingQueue:
    """The queue that a scheduler takes requests from: the fastest that can do what is asked, or a given kind of pool.

    Raises:
        InputError: priorities are missing.
    """
    arrival = requests.arrival_s.tolist()
    if key == "client":
        clients = np.arange(len(requests)) if requests.client is None else requests.client
        return FairQueue(arrival, clients.tolist())
    if pool is not None or limits.max_waiting is not None or limits.patience_s is not None:
        room = inf if limits.max_waiting is None else limits.max_waiting
        return (pool or Pool)(arrival, keys_of(requests, key), range(len(arrival)), room, limits.patience)
    return Sorted(arrival, keys_of(requests, key)) if key else FirstCome(arrival)
