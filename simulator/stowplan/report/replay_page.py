"""The page of a replay: what users feel, the load over time, what the engine did, and where prompts were found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stowplan.report.markup import Markup, table, tag
from stowplan.report.plots import axis, chart
from stowplan.report.shell import section, whole_page
from stowplan.serving.answers import (
    Answers,
    Distribution,
    Objective,
    e2e_s,
    load_over_time,
    tpot_s,
    ttft_s,
)
from stowplan.serving.from_plan import Engine
from stowplan.serving.outcome import CacheUse, Replay, TierUse
from stowplan.systems.base import Setup
from stowplan.traces.trace import Trace
from stowplan.units import format_bytes, format_seconds

_POINTS = 400
_COLOURS = ("#1f6feb", "#d1571b", "#2da44e", "#8250df", "#bf8700")
_LEGEND = {
    "showlegend": True,
    "legend": {"orientation": "h", "x": 0.0, "y": 1.02, "yanchor": "bottom"},
    "margin": {"l": 56, "r": 18, "t": 36, "b": 48},
}
Column = NDArray[np.float64]


def replay_page(
    trace: Trace, setup: Setup, engine: Engine, replay: Replay, answers: Answers, objective: Objective | None
) -> str:
    """One self-contained page; the same text for the same replay."""
    sections = [
        tag("h1", f"{setup.model.name} {setup.model.quant.upper()} on {setup.machine.name}"),
        tag("p", f"{trace.name}: {len(trace):,} requests, {_rate_words(trace)}. {trace.origin}", class_="note"),
        section("What users feel", _felt(answers, objective), _latency_table(answers), _latency_chart(replay)),
        section(
            "Load over time", "Requests that wait, and requests that were started and are not done.", _load(replay)
        ),
        section("What the engine did", _engine_words(replay, answers, engine), _tally_chart(replay)),
    ]
    caches = [use.cache for use in replay.engines if use.cache is not None]
    if caches:
        sections.append(section("Where prompts were found", _cache_words(answers), *_cache(caches, engine)))
    return whole_page(f"{trace.name} on {setup.machine.name}", *sections, style="")


def _rate_words(trace: Trace) -> str:
    return f"{trace.rate:.3g}/s" if np.isfinite(trace.rate) else "all at once"


def _felt(answers: Answers, objective: Objective | None) -> str:
    serves = (
        f"{answers.requests_per_s:.3g} requests/s, {answers.output_tokens_per_s:,.0f} output tokens/s and "
        f"{answers.prompt_tokens_per_s:,.0f} prompt tokens/s are served."
    )
    ends = ", ".join(f"{count:,} {state.replace('_', ' ')}" for state, count in answers.counts.items() if count)
    if objective is None or answers.attainment is None:
        return f"{serves} Requests: {ends}."
    return f"{serves} {answers.attainment:.1%} of the requests meet the objective. Requests: {ends}."


def _latency_table(answers: Answers) -> Markup:
    rows: list[tuple[str, Distribution | None]] = [
        ("waiting", answers.queue),
        ("time to first token", answers.ttft),
        ("time per output token", answers.tpot),
        ("end to end", answers.e2e),
    ]
    cells = [
        (title, *(format_seconds(v) for v in (found.mean, *found.percentiles.values(), found.largest)))
        for title, found in rows
        if found is not None
    ]
    return table(("", "mean", "p50", "p90", "p95", "p99", "longest"), cells, numbers=range(1, 7))


def _latency_chart(replay: Replay) -> Markup:
    """Share of the requests by latency, one curve for each kind."""
    traces = [
        _curve(name, *_shares(values), colour)
        for name, values, colour in zip(
            ("first token", "per output token", "end to end"),
            (ttft_s(replay), tpot_s(replay), e2e_s(replay)),
            _COLOURS,
            strict=False,
        )
        if np.isfinite(values).any()
    ]
    layout = {
        "xaxis": axis("seconds", type="log"),
        "yaxis": axis("share of requests within", tickformat=".0%"),
        **_LEGEND,
    }
    return chart("latencies", traces, layout, "Share of requests by latency")


def _shares(values: Column) -> tuple[list[float], list[float]]:
    known = values[np.isfinite(values)]
    levels = np.linspace(0.0, 1.0, _POINTS + 1)
    return np.maximum(np.quantile(known, levels), 1e-6).tolist(), levels.tolist()


def _load(replay: Replay) -> Markup:
    load = load_over_time(replay, _POINTS)
    hours = load.time_s[-1] > 3 * 3600 if len(load.time_s) else False
    times = (load.time_s / (3600.0 if hours else 1.0)).tolist()
    traces = [
        _curve("running", times, load.running.tolist(), _COLOURS[0]),
        _curve("waiting", times, load.waiting.tolist(), _COLOURS[1]),
    ]
    layout = {
        "xaxis": axis("hours" if hours else "seconds"),
        "yaxis": axis("requests", rangemode="tozero"),
        **_LEGEND,
    }
    return chart("load", traces, layout, "Requests waiting and running over time")


def _engine_words(replay: Replay, answers: Answers, engine: Engine) -> str:
    machines = f"{answers.engines} machines, busy" if answers.engines > 1 else "Busy"
    return (
        f"{machines} {answers.busy:.0%} of the time with {replay.passes:,} steps of {answers.mean_tokens:,.1f} "
        f"tokens on average. The cache has room for {engine.cache_tokens:,} tokens and was {answers.peak_cache:.0%} "
        f"full at the most; {answers.preempted:,} requests were preempted. {_limits_words(replay, engine)}"
    )


def _limits_words(replay: Replay, engine: Engine) -> str:
    """Which resources bind in the part of a step that depends on its tokens alone."""
    busy = busy_by_resource(replay, engine)
    if not busy:
        return ""
    named = ", ".join(f"{name} {share:.0%}" for name, share in sorted(busy.items(), key=lambda item: -item[1])[:4])
    return f"Shares of the time in steps by the resource that binds: {named}."


def busy_by_resource(replay: Replay, engine: Engine) -> dict[str, float]:
    """Share of the time in steps for which each resource binds; attention and logits count as ``attention``.

    Empty where the step time does not say what binds.
    """
    step_time = engine.step_time
    total = sum(use.busy_s for use in replay.engines)
    if not step_time.busy or total <= 0.0:
        return {}
    longest = max(len(use.tally) for use in replay.engines)
    tally = np.zeros(longest)
    for use in replay.engines:
        tally[: len(use.tally)] += use.tally
    found = {
        name: float(tally @ np.array(step_time.table(knots, longest - 1))) / total for name, knots in step_time.busy
    }
    rest = 1.0 - sum(found.values())
    return {name: share for name, share in (found | {"attention": rest}).items() if share > 0.0005}


def _tally_chart(replay: Replay) -> Markup:
    """Steps by the tokens that they processed, in bins of doubling width."""
    longest = max(len(use.tally) for use in replay.engines)
    tally = np.zeros(longest)
    for use in replay.engines:
        tally[: len(use.tally)] += use.tally
    edges = [1]
    while edges[-1] < longest:
        edges.append(edges[-1] * 2)
    names = [str(low) if high - low == 1 else f"{low}-{high - 1}" for low, high in pairwise(edges)]
    counts = [float(tally[low:high].sum()) for low, high in pairwise(edges)]
    last = max((i for i, count in enumerate(counts) if count), default=0) + 1
    bars = {"type": "bar", "x": names[:last], "y": counts[:last], "marker": {"color": _COLOURS[0]}}
    layout = {"xaxis": axis("tokens in a step", type="category"), "yaxis": axis("steps")}
    return chart("steps", [bars], layout, "Steps by the number of tokens")


def _cache_words(answers: Answers) -> str:
    if answers.hit_rate is None:
        return "No prompt was looked up."
    places = ", ".join(f"{share:.1%} on {name}" for name, share in answers.hits.items())
    return f"{answers.hit_rate:.1%} of the prompts' tokens did not have to be computed: {places}."


def _cache(caches: Sequence[CacheUse], engine: Engine) -> list[Markup]:
    block = engine.token_bytes * engine.limits.block_tokens
    rows: list[tuple[str, ...]] = []
    for index, first in enumerate(caches[0].tiers):
        alike = [cache.tiers[index] for cache in caches]
        rows.append(
            (
                first.name,
                f"{sum(t.hit_tokens for t in alike):,}",
                format_bytes(first.blocks * block),
                *(_traffic_cells(alike) if index else ("",) * 5),
            )
        )
    header = ("place", "tokens found", "capacity", "fullest", "blocks read", "written", "not written", "writing")
    return [table(header, rows, numbers=range(1, 8)), _tiers_over_time(caches[0], engine)]


def _traffic_cells(alike: Sequence[TierUse]) -> Iterator[str]:
    """What went through one place below the GPU on all engines; nothing is written to the GPU's own."""
    yield f"{max(use.peak_blocks for use in alike) / alike[0].blocks:.0%}" if alike[0].blocks else "-"
    for counts in (
        [use.read_blocks for use in alike],
        [use.written_blocks for use in alike],
        [use.dropped_blocks for use in alike],
    ):
        yield f"{sum(counts):,}"
    yield format_seconds(sum(use.write_s for use in alike))


def _tiers_over_time(cache: CacheUse, engine: Engine) -> Markup:
    """Tokens in each place over time, of the first engine."""
    samples = np.array(cache.samples or [(0.0, engine.limits.kv_blocks, *(0 for _ in cache.tiers))])
    size = engine.limits.block_tokens
    hours = samples[-1, 0] > 3 * 3600
    times = (samples[:, 0] / (3600.0 if hours else 1.0)).tolist()
    running = (engine.limits.kv_blocks - samples[:, 1]) * size
    kept = np.minimum(samples[:, 1], samples[:, 2]) * size  # what others took the room of leaves at the next look-up
    columns = [("running", running), ("GPU, kept", kept)]
    columns += [(tier.name, samples[:, 3 + i] * size) for i, tier in enumerate(cache.tiers[1:])]
    traces = [
        _curve(name, times, values.tolist(), colour) for (name, values), colour in zip(columns, _COLOURS, strict=False)
    ]
    layout = {
        "xaxis": axis("hours" if hours else "seconds"),
        "yaxis": axis("tokens of cache", rangemode="tozero"),
        **_LEGEND,
    }
    return chart("tiers", traces, layout, "Cached tokens by place over time")


def _curve(name: str, x: Sequence[float], y: Sequence[float], colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {"color": colour, "width": 1.8},
    }
