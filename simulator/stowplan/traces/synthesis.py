"""A synthetic log that looks like BurstGPT, of any size up to tens of millions of requests.

Two streams add up: conversations, about as many every day, and bursts of programmatic requests. For each, every day has
its number of requests; they are dealt to hours by the daily shape times a random Gamma factor, which makes whole hours
busy or idle, balanced so that all days together keep the daily shape; within an hour they arrive with Gamma-distributed
gaps; model and lengths are drawn per request. All parameters are in ``traces/burstgpt-like.toml`` with how each was
fitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.datafiles import read_toml
from stowplan.errors import BadFile, InputError
from stowplan.traces.arrivals import arrivals_in_windows
from stowplan.traces.rows import FAILURES
from stowplan.traces.trace import Floats, Integers, Trace

MOST_REQUESTS = 50_000_000
_HOUR_S = 3600.0
_HOURS = 24
_IDLE = 1e-12
_BALANCING_ROUNDS = 30


@dataclass(frozen=True, slots=True)
class ModelShare:
    """One model's part of a stream.

    Attributes:
        share: part of the stream's requests.
        prompt, output: quantiles of tokens at the file's levels.
        correlation: of the normal scores of prompt and output.
    """

    name: str
    share: float
    prompt: Floats
    output: Floats
    correlation: float


@dataclass(frozen=True, slots=True)
class Stream:
    """One kind of request.

    Attributes:
        log_type: what the log calls it.
        daily: requests of every day.
        length_scale: factor on all lengths of every day.
        hour_weights: relative load of the hours of a day.
        hour_shape: shape of the Gamma factor of every single hour; small is bursty.
        gap_shape: shape of the Gamma gaps within an hour; 1 is Poisson, small is bursty.
        failures: share of requests without a response.
    """

    log_type: str
    daily: Floats
    length_scale: Floats
    hour_weights: Floats
    hour_shape: float
    gap_shape: float
    failures: float
    models: tuple[ModelShare, ...]


@dataclass(frozen=True, slots=True)
class Parameters:
    """All that the generator needs; `scores` are the normal scores of the quantiles' levels."""

    name: str
    scores: Floats
    longest_prompt: float
    longest_output: float
    clock_s: float
    streams: tuple[Stream, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """A synthetic log, failures included, in the order of arrival.

    Attributes:
        arrival_s: float64[n].
        prompt_tokens, output_tokens: int64[n], 0 for a failure.
        model, log_type: int8[n], positions in `models` and `log_types`.
        trace: the requests that did not fail.
    """

    arrival_s: Floats
    prompt_tokens: Integers
    output_tokens: Integers
    model: NDArray[np.int8]
    log_type: NDArray[np.int8]
    models: tuple[str, ...]
    log_types: tuple[str, ...]
    trace: Trace


def load_parameters(path: Path) -> Parameters:
    """Parameters of a generator's file.

    Raises:
        BadFile: missing, damaged, or with a field of the wrong kind or length.
    """
    document = read_toml(path)
    try:
        levels = _numbers(document["levels"])
        streams = tuple(_stream(fields, len(levels)) for fields in document["streams"].values())
        parameters = Parameters(
            name=str(document["name"]),
            scores=np.array([NormalDist().inv_cdf(level) for level in levels]),
            longest_prompt=_number(document["longest_prompt"]),
            longest_output=_number(document["longest_output"]),
            clock_s=_number(document["clock"]),
            streams=streams,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFile(f"{path}: is not a complete generator of traces ({error})") from error
    if len({len(stream.daily) for stream in streams}) != 1:
        raise BadFile(f"{path}: the streams must have the same number of days")
    return parameters


def synthesise(parameters: Parameters, *, seed: int = 0, requests: int | None = None, days: int | None = None) -> Log:
    """A log drawn from the parameters; the same arguments give the same log.

    Args:
        parameters: what to draw from.
        seed: of the draws.
        requests: their number, failures included; None is as many as the fitted file has in these days.
        days: only the first days; None is all.

    Raises:
        InputError: no requests, too many, or no such number of days.
    """
    known = len(parameters.streams[0].daily)
    if days is not None and not 1 <= days <= known:
        raise InputError(f"{days} days; the generator has between 1 and {known}")
    if requests is not None and not 1 <= requests <= MOST_REQUESTS:
        raise InputError(f"{requests} requests; give between 1 and {MOST_REQUESTS:,}")
    daily = np.array([stream.daily[: days or known] for stream in parameters.streams])
    counts = _rounded(daily if requests is None else daily * (requests / daily.sum()))
    random = np.random.default_rng(seed)
    parts = [
        _draw(parameters, number, stream, counts[number], random) for number, stream in enumerate(parameters.streams)
    ]
    arrival, prompt, output, model, kind = (np.concatenate([part[column] for part in parts]) for column in range(5))
    if parameters.clock_s > 0.0:
        arrival = np.floor(arrival / parameters.clock_s) * parameters.clock_s
    order = np.argsort(arrival, kind="stable")
    arrival, prompt, output = arrival[order], prompt[order].astype(np.int64), output[order].astype(np.int64)
    note = f"synthetic: {parameters.name}, seed {seed}, {counts.sum():,} requests over {daily.shape[1]} days"
    good = output > 0
    trace = Trace(
        parameters.name,
        arrival[good] - arrival[np.argmax(good)],
        prompt[good],
        output[good],
        origin=note,
        dropped={FAILURES: int((~good).sum())} if not bool(good.all()) else {},
    )
    return Log(
        arrival,
        prompt,
        output,
        model[order].astype(np.int8),
        kind[order].astype(np.int8),
        _model_names(parameters),
        tuple(stream.log_type for stream in parameters.streams),
        trace,
    )


def _draw(
    parameters: Parameters, number: int, stream: Stream, daily: Integers, random: np.random.Generator
) -> tuple[Floats, Floats, Floats, Integers, Integers]:
    """Arrivals, prompts, outputs, models and kinds of one stream, unsorted between hours."""
    hourly = random.multinomial(daily, _hour_shares(stream, random)[: len(daily)]).ravel()
    starts = np.arange(len(hourly), dtype=np.float64) * _HOUR_S
    arrival = arrivals_in_windows(
        random, starts, np.full_like(starts, _HOUR_S), hourly, np.full_like(starts, stream.gap_shape)
    )
    total = len(arrival)
    scale = np.repeat(stream.length_scale[: len(daily)], daily)
    shares = np.cumsum([each.share for each in stream.models])
    chosen = np.minimum(np.searchsorted(shares, random.random(total), side="right"), len(shares) - 1)
    first, second = random.standard_normal(total), random.standard_normal(total)
    failed = random.random(total) < stream.failures
    prompt, output = np.zeros(total), np.zeros(total)
    names = _model_names(parameters)
    model = np.zeros(total, dtype=np.int64)
    for position, each in enumerate(stream.models):
        mine = np.flatnonzero((chosen == position) & ~failed)
        model[chosen == position] = names.index(each.name)
        mixed = each.correlation * first[mine] + math.sqrt(1.0 - each.correlation**2) * second[mine]
        prompt[mine] = _lengths(first[mine], parameters.scores, each.prompt, scale[mine], parameters.longest_prompt)
        output[mine] = _lengths(mixed, parameters.scores, each.output, scale[mine], parameters.longest_output)
    return arrival, prompt, output, model, np.full(total, number)


def _hour_shares(stream: Stream, random: np.random.Generator) -> Floats:
    """Shares of the hours in every day: single hours are busy or idle, yet all days together have the daily shape."""
    factors = random.standard_gamma(stream.hour_shape, (len(stream.daily), _HOURS))
    load = stream.hour_weights * np.maximum(factors, _IDLE)
    wanted = stream.hour_weights * (stream.daily.sum() / stream.hour_weights.sum())
    for _ in range(_BALANCING_ROUNDS):
        load *= (stream.daily / load.sum(axis=1))[:, np.newaxis]
        load *= wanted / np.maximum(load.sum(axis=0), _IDLE)
        load = np.maximum(load, _IDLE)
    return np.asarray(load / load.sum(axis=1, keepdims=True))


def _lengths(normal: Floats, scores: Floats, quantiles: Floats, scale: Floats, longest: float) -> Floats:
    """Tokens at these normal scores: the logarithm of the quantiles is linear between the known scores."""
    tokens = np.exp(np.interp(normal, scores, np.log(quantiles)))
    return np.asarray(np.clip(np.rint(tokens * scale), 1.0, longest))


def _rounded(expected: Floats) -> Integers:
    """Whole numbers with the same sum as nearly as possible: the largest remainders are rounded up."""
    whole = np.floor(expected).astype(np.int64)
    missing = round(float(expected.sum())) - int(whole.sum())
    order = np.argsort(-(expected - whole).ravel(), kind="stable")
    whole.ravel()[order[:missing]] += 1
    return whole


def _model_names(parameters: Parameters) -> tuple[str, ...]:
    return tuple(dict.fromkeys(model.name for stream in parameters.streams for model in stream.models))


def _stream(fields: Mapping[str, Any], levels: int) -> Stream:
    daily = _numbers(fields["daily_requests"])
    scale = _numbers(fields["daily_length_scale"]) if "daily_length_scale" in fields else np.ones(len(daily))
    hours = _numbers(fields["hour_weights"])
    models = tuple(_model(name, model, levels) for name, model in fields["models"].items())
    if len(scale) != len(daily) or len(hours) != _HOURS or not models:
        raise ValueError("a stream needs as many length scales as days, 24 hour weights and a model")
    if not math.isclose(sum(model.share for model in models), 1.0, abs_tol=1e-6):
        raise ValueError("the shares of a stream's models must add up to 1")
    return Stream(
        str(fields["log_type"]),
        daily,
        scale,
        hours,
        _positive(fields["hour_shape"]),
        _positive(fields["gap_shape"]),
        _number(fields["failure_share"]),
        models,
    )


def _model(name: str, fields: Mapping[str, Any], levels: int) -> ModelShare:
    prompt, output = _numbers(fields["prompt_quantiles"]), _numbers(fields["output_quantiles"])
    for quantiles in (prompt, output):
        if len(quantiles) != levels or bool((quantiles <= 0.0).any()) or bool((np.diff(quantiles) < 0.0).any()):
            raise ValueError(f"quantiles of {name} must be one rising number above 0 per level")
    correlation = _number(fields["correlation"], lowest=-1.0)
    if correlation > 1.0:
        raise ValueError(f"correlation of {name} must lie between -1 and 1")
    return ModelShare(name, _number(fields["share"]), prompt, output, correlation)


def _numbers(entry: Mapping[str, Any]) -> Floats:
    values: Sequence[float] = entry["value"]
    found = np.array(values, dtype=np.float64)
    if found.ndim != 1 or len(found) == 0 or not bool(np.isfinite(found).all()) or bool((found < 0.0).any()):
        raise ValueError("a list of finite numbers that are not negative is needed")
    return found


def _number(entry: Mapping[str, Any], lowest: float = 0.0) -> float:
    value = float(entry["value"])
    if not (math.isfinite(value) and value >= lowest):
        raise ValueError(f"{value:g} is not a finite number of at least {lowest:g}")
    return value


def _positive(entry: Mapping[str, Any]) -> float:
    value = _number(entry)
    if value < 1e-3:
        raise ValueError(f"a shape of {value:g} is too small; at least 0.001")
    return value
