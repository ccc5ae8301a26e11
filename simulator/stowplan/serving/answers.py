"""What users feel: latencies by percentile, throughput, goodput under an objective, load over time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from stowplan.errors import BadFile, InputError
from stowplan.serving.outcome import Replay, State
from stowplan.units import parse_quantity

_PERCENTILES = (50, 90, 95, 99)
_ROWS_AT_ONCE = 65536
_COLUMNS = (
    "arrival_s,prompt_tokens,output_tokens,state,started_s,first_token_s,finished_s,ttft_s,tpot_s,e2e_s,"
    "preemptions,reused_tokens,made_tokens,engine"
)
_COUNTS = 4
"""Columns at the end that are whole numbers."""
Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Objective:
    """A service-level objective: most seconds to the first token, per output token, and end to end; None for any."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean, percentiles and maximum of a latency in seconds, over the requests that have it."""

    count: int
    mean: float
    percentiles: dict[int, float]
    largest: float


@dataclass(frozen=True, slots=True)
class Answers:
    """Summary of a replay.

    Attributes:
        counts: requests by the state that they ended in.
        span_s: seconds from the first arrival to the last token.
        queue, ttft, tpot, e2e: waiting until first scheduled; time to the first token; time per further token of
            requests with two or more; arrival to last token. None where no request has one.
        requests_per_s, prompt_tokens_per_s, output_tokens_per_s: of finished requests over the span.
        attainment: share of all requests that finished within the objective; None without an objective.
        goodput_per_s: requests within the objective per second of the span; None without an objective.
        preemptions: in all; preempted: requests that were preempted at least once.
        peak_cache: largest share of the cache in use.
        engines: engines that served.
        busy: share of the span in which an engine ran a step, over all of them.
        mean_tokens: tokens that a step processed on average.
        hit_rate: share of the tokens of admitted prompts that a prefix cache had; None without one.
        hits: share of them by place, the GPU first; empty without a cache.
        timed_out_tokens: tokens that were generated for nobody.
    """

    counts: dict[str, int]
    span_s: float
    queue: Distribution | None
    ttft: Distribution | None
    tpot: Distribution | None
    e2e: Distribution | None
    requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    attainment: float | None
    goodput_per_s: float | None
    preemptions: int
    preempted: int
    peak_cache: float
    engines: int
    busy: float
    mean_tokens: float
    hit_rate: float | None
    hits: dict[str, float]
    timed_out_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that wait and that have been scheduled but not finished, at sampled times."""

    time_s: Column
    waiting: NDArray[np.int64]
    running: NDArray[np.int64]


def parse_objective(text: str) -> Objective:
    """An objective from text such as ``ttft=1s,tpot=50ms``; the names are ttft, tpot and e2e.

    Raises:
        InputError: an unknown name, a name given twice, or a value that is not a duration.
    """
    found: dict[str, float] = {}
    for item in text.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if name not in {"ttft", "tpot", "e2e"} or not equals or name in found:
            raise InputError(
                f"objective: '{item.strip()[:60]}' is not one of ttft, tpot and e2e, each at most once, with a "
                f"duration; write it as ttft=1s,tpot=50ms"
            )
        found[name] = parse_quantity(value, "seconds", where=f"objective: {name}")
    return Objective(found.get("ttft"), found.get("tpot"), found.get("e2e"))


def ttft_s(replay: Replay) -> Column:
    """Seconds from arrival to first token by request; not a number where there was none."""
    return replay.first_token_s - replay.requests.arrival_s


def tpot_s(replay: Replay) -> Column:
    """Seconds per token after the first by request; not a number for answers of one token."""
    further = np.where(replay.requests.output_tokens > 1, replay.requests.output_tokens - 1.0, np.nan)
    return np.asarray((replay.finished_s - replay.first_token_s) / further)


def e2e_s(replay: Replay) -> Column:
    """Seconds from arrival to last token by request."""
    return replay.finished_s - replay.requests.arrival_s


def summarise(replay: Replay, objective: Objective | None = None) -> Answers:
    """Answers of a replay, under an objective where one is given."""
    requests, done = replay.requests, replay.state == State.FINISHED
    span = float(np.max(replay.finished_s[done]) - requests.arrival_s[0]) if done.any() else 0.0
    rate = 1.0 / span if span > 0.0 else 0.0
    hits = _hits(replay)
    within = None if objective is None else int(np.count_nonzero(_meets(replay, objective)))
    return Answers(
        counts=replay.counts,
        span_s=span,
        queue=_distribution(replay.started_s - requests.arrival_s),
        ttft=_distribution(ttft_s(replay)),
        tpot=_distribution(tpot_s(replay)),
        e2e=_distribution(e2e_s(replay)),
        requests_per_s=float(np.count_nonzero(done)) * rate,
        prompt_tokens_per_s=float(requests.prompt_tokens[done].sum()) * rate,
        output_tokens_per_s=float(requests.output_tokens[done].sum()) * rate,
        attainment=None if within is None or not len(requests) else within / len(requests),
        goodput_per_s=None if within is None else within * rate,
        preemptions=int(replay.preemptions.sum()),
        preempted=int(np.count_nonzero(replay.preemptions)),
        peak_cache=replay.peak_share,
        engines=len(replay.engines),
        busy=_busy_share(replay, span),
        mean_tokens=_mean_tokens(replay),
        hit_rate=sum(hits.values()) if hits is not None else None,
        hits=hits or {},
        timed_out_tokens=int(replay.made_tokens[replay.state == State.TIMED_OUT].sum()),
    )


def _busy_share(replay: Replay, span: float) -> float:
    return min(1.0, sum(engine.busy_s for engine in replay.engines) / (span * len(replay.engines))) if span > 0 else 0.0


def _mean_tokens(replay: Replay) -> float:
    """Tokens per step: decoding sequences and tokens of prompts."""
    steps = sum(int(engine.tally.sum()) for engine in replay.engines)
    tokens = sum(int((engine.tally * np.arange(len(engine.tally))).sum()) for engine in replay.engines)
    return tokens / steps if steps else 0.0


def _hits(replay: Replay) -> dict[str, float] | None:
    """Share of the looked-up tokens that each place had, over all engines; None where there is no cache."""
    caches = [engine.cache for engine in replay.engines if engine.cache is not None]
    looked_up = sum(cache.looked_up_tokens for cache in caches)
    if not caches or not looked_up:
        return None
    found: dict[str, float] = {}
    for cache in caches:
        for tier in cache.tiers:
            found[tier.name] = found.get(tier.name, 0.0) + tier.hit_tokens / looked_up
    return found


def _meets(replay: Replay, objective: Objective) -> NDArray[np.bool_]:
    """Requests that finished within an objective; an answer of one token has no time per token to miss."""
    good: NDArray[np.bool_] = replay.state == State.FINISHED
    for limit, values in (
        (objective.ttft_s, ttft_s(replay)),
        (objective.tpot_s, np.nan_to_num(tpot_s(replay), nan=0.0)),
        (objective.e2e_s, e2e_s(replay)),
    ):
        if limit is not None:
            good = good & (values <= limit)
    return good


def _distribution(values: Column) -> Distribution | None:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    ranks = np.percentile(known, _PERCENTILES)
    percentiles = {rank: float(value) for rank, value in zip(_PERCENTILES, ranks, strict=True)}
    return Distribution(len(known), float(known.mean()), percentiles, float(known.max()))


def load_over_time(replay: Replay, samples: int = 500) -> Load:
    """Requests waiting and running at evenly spaced times from the first arrival to the last token.

    A preempted request counts as running while it waits to come back.
    """
    done = replay.state == State.FINISHED
    arrival, started, finished = replay.requests.arrival_s[done], replay.started_s[done], replay.finished_s[done]
    if not len(arrival):
        return Load(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    times = np.linspace(arrival[0], finished.max(), samples)
    arrived, begun, ended = (np.searchsorted(np.sort(c), times, side="right") for c in (arrival, started, finished))
    return Load(times, (arrived - begun).astype(np.int64), (begun - ended).astype(np.int64))


def write_requests_csv(replay: Replay, path: Path) -> None:
    """One row per request, in order of arrival; times on the trace's clock with microseconds, empty where never.

    The file appears whole or not at all, also when the writing is interrupted.

    Raises:
        BadFile: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            _write_rows(replay, file)
        temporary.replace(path)
    except OSError as error:
        raise BadFile(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_rows(replay: Replay, file: TextIO) -> None:
    file.write(_COLUMNS + "\n")
    names = [state.name.lower() for state in State]
    requests = replay.requests
    columns: tuple[NDArray[np.generic], ...] = (
        requests.arrival_s,
        requests.prompt_tokens,
        requests.output_tokens,
        replay.state,
        replay.started_s,
        replay.first_token_s,
        replay.finished_s,
        ttft_s(replay),
        tpot_s(replay),
        e2e_s(replay),
        replay.preemptions,
        replay.reused_tokens,
        replay.made_tokens,
        replay.engine,
    )
    for start in range(0, len(requests), _ROWS_AT_ONCE):
        part = [column[start : start + _ROWS_AT_ONCE].tolist() for column in columns]
        file.writelines(_lines(part, names))


def _lines(part: list[list[float]], names: list[str]) -> Iterator[str]:
    for arrival, prompt, output, state, *rest in zip(*part, strict=True):
        times, counts = rest[:-_COUNTS], rest[-_COUNTS:]
        seconds = ",".join(f"{time:.6f}" if isfinite(time) else "" for time in times)
        yield f"{arrival:.6f},{prompt},{output},{names[int(state)]},{seconds},{','.join(map(str, counts))}\n"
