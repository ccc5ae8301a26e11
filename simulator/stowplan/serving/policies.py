"""What a replay may be asked for: schedulers by name, and the queue and the cache that they work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

from stowplan.errors import InputError, UnknownName
from stowplan.serving.ahead import parts_of
from stowplan.serving.chains import Chains
from stowplan.serving.chunked import Chunked
from stowplan.serving.continuous import Continuous
from stowplan.serving.core import Core
from stowplan.serving.eviction import EvictionName
from stowplan.serving.fair import Fair, FairQueue
from stowplan.serving.limits import Limits
from stowplan.serving.prefix_cache import PrefixCache
from stowplan.serving.queues import FirstCome, Pool, Sorted, WaitingQueue
from stowplan.serving.requests import Requests
from stowplan.serving.scheduler import Scheduler
from stowplan.serving.static import Static
from stowplan.serving.tables import StepTables
from stowplan.serving.tiers import Tier


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
    """A scheduler.

    Attributes:
        make: the scheduler of a core.
        key: what its queue sorts by; empty for arrival.
        plain: whether it is without prefix cache, queue limits and time-outs.
    """

    make: Callable[[Core], Scheduler]
    key: str = ""
    plain: bool = False

    @property
    def can_pause(self) -> bool:
        """Whether it can run a trace piece by piece; see `stowplan.serving.stretches`."""
        return not self.key and not self.plain


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


def make_engine(
    policy: Policy,
    requests: Requests,
    tables: StepTables,
    limits: Limits,
    caching: Caching | None = None,
    chains: Chains | None = None,
    *,
    ahead: bool = False,
    earlier: int = 0,
    trace_requests: int | None = None,
) -> Scheduler:
    """An engine that serves all of the requests by itself.

    Args:
        policy: who decides which requests run; see `policy_of`.
        requests: requests that can run.
        tables, limits: what a step costs and what the engine may hold.
        caching, chains: prefix cache and the segments of the prompts; None for none.
        ahead: whether a step is scheduled while the one before it runs.
        earlier, trace_requests: requests of the trace before these, and of the whole trace where these are a part.

    Raises:
        InputError: priorities are missing.
    """
    cache = None
    if caching is not None and chains is not None:
        cache = PrefixCache(
            chains, tables, caching.tiers, caching.eviction, earlier=earlier, trace_requests=trace_requests
        )
    kind, pool = parts_of(ahead=ahead)
    core = kind(
        requests.prompt_tokens.tolist(),
        requests.output_tokens.tolist(),
        queue_of(requests, limits, policy.key, pool if ahead else None),
        tables,
        limits,
        cache=cache,
        patience_s=limits.patience,
    )
    return policy.make(core)
