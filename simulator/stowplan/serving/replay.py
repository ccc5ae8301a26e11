"""Replay of requests through an engine: what happened to each of them, and to the engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import InputError
from stowplan.serving.chains import Chains
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import Record, Replay, Watch, share_begun
from stowplan.serving.policies import Caching, make_engine, policy_of
from stowplan.serving.requests import Requests
from stowplan.serving.scouts import Mission, Scouts
from stowplan.serving.step_time import StepTime
from stowplan.serving.stretches import run_in_stretches
from stowplan.serving.tables import StepTables

LONGEST_REQUEST = 2**24
"""Tokens of prompt and output that one request may have in a replay; the tables of step times end there."""


def replay(
    requests: Requests,
    step_time: StepTime,
    limits: Limits,
    scheduler: str = "continuous",
    caching: Caching | None = None,
    *,
    ahead: bool = False,
    watch: Watch | None = None,
    workers: int = 1,
) -> Replay:
    """Replay requests through one engine; the same arguments give the same result to the last bit.

    Args:
        requests: what arrives, in order.
        step_time: what a step of the engine costs.
        limits: what the engine holds and admits.
        scheduler: one of `stowplan.serving.policies.list_schedulers`.
        caching: prefix cache; None for none. Requests whose blocks are unknown share nothing.
        ahead: whether the engine schedules every step while the one before it runs; see `stowplan.serving.ahead`.
        watch: told when it begins; None for nobody.
        workers: processes that may share a long trace between them, where that is possible; the result is the same.

    Raises:
        UnknownName: no such scheduler.
        InputError: a request that could run is longer than 2^24 tokens, priorities are missing, or the scheduler knows
            no prefix cache, queue limits or time-outs, or does not schedule ahead.
    """
    policy = policy_of(scheduler, limits, caching, ahead=ahead)
    rows, runnable, longest = runnable_rows(requests, limits)
    count = len(runnable)
    divisible = not ahead and policy.can_pause and limits.max_waiting is None and limits.patience_s is None
    with Scouts(workers - 1 if divisible else 0, count, caching) as scouts:
        tables = StepTables(step_time, longest, limits)
        chains = chains_of(runnable, limits, caching)
        scouts.send(Mission(runnable, chains, step_time, longest, limits, scheduler, caching))
        engine = make_engine(policy, runnable, tables, limits, caching, chains, ahead=ahead)
        core = engine.core
        if watch is not None:
            watch(lambda: scouts.share(share_begun(core.started)))
        accounts = run_in_stretches(engine, 0, count, scouts.match(core))
        accounts += scouts.adopt(core)
    record = Record(requests, scheduler)
    record.add(core, rows, caching.tiers if caching is not None else (), accounts)
    return record.result()


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
    return Chains.from_blocks(
        prefix, requests.prompt_tokens, limits.block_tokens, requests.output_tokens, requests.session
    )
