"""What a trace is like: rates, burstiness, lengths, prefix reuse, gaps within conversations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stowplan.traces.trace import Blocks, Floats, Integers, Trace

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
WINDOWS_S = (1.0, 60.0, 3600.0)
_MOST_WINDOWS = 50_000_000


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution: mean, standard deviation, extremes and quantiles (linear between ranks) by their level."""

    mean: float
    sd: float
    least: float
    most: float
    quantiles: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Reuse:
    """How much of the prompts has been seen before, with a cache that never forgets.

    Attributes:
        block_tokens, blocks, distinct: tokens per block; blocks of all prompts; different ones among them.
        seen_share: share of blocks that an earlier request had too, wherever they are.
        hit_tokens_share: share of prompt tokens in the run of seen blocks that a prompt begins with.
    """

    block_tokens: int
    blocks: int
    distinct: int
    seen_share: float
    hit_tokens_share: float


@dataclass(frozen=True, slots=True)
class Sessions:
    """Conversations: their number, requests in them, turns per conversation, seconds between turns (None: no gap)."""

    sessions: int
    requests: int
    turns: Spread
    gap_s: Spread | None


@dataclass(frozen=True, slots=True)
class Statistics:
    """All statistics of a trace.

    Attributes:
        rate: requests/s between the first and the last arrival, None where all arrive at once.
        gap_cv: coefficient of variation of the gaps between arrivals (population); 1 is Poisson. None below 2 gaps.
        fano: variance over mean of the arrivals per whole window, by its seconds; 1 is Poisson. Only windows of which
            the trace holds at least 2.
        dropped: rows left out while reading.
    """

    name: str
    origin: str
    requests: int
    duration_s: float
    rate: float | None
    gap_cv: float | None
    fano: Mapping[str, float]
    prompt_total: int
    output_total: int
    prompt: Spread
    output: Spread
    correlation: float | None
    reuse: Reuse | None
    sessions: Sessions | None
    dropped: Mapping[str, int]

    def document(self) -> dict[str, Any]:
        """The statistics as JSON knows them."""
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            fields[field.name] = _plain(value)
        return {"schema_version": "stowplan.trace-statistics/1", **fields}


def statistics(trace: Trace, windows_s: Sequence[float] = WINDOWS_S) -> Statistics:
    """Statistics of a trace; `windows_s` are the lengths of the windows for the Fano factor."""
    return Statistics(
        name=trace.name,
        origin=trace.origin,
        requests=len(trace),
        duration_s=trace.duration_s,
        rate=None if math.isinf(trace.rate) else trace.rate,
        gap_cv=gap_variation(trace.arrival_s),
        fano={f"{each:g}": found for each in windows_s if (found := fano_factor(trace.arrival_s, each)) is not None},
        prompt_total=int(trace.prompt_tokens.sum()),
        output_total=int(trace.output_tokens.sum()),
        prompt=spread(trace.prompt_tokens),
        output=spread(trace.output_tokens),
        correlation=_correlation(trace),
        reuse=None if trace.prefix is None else prefix_reuse(trace.prefix, trace.prompt_tokens),
        sessions=None if trace.session is None else session_statistics(trace.session, trace.arrival_s),
        dropped=dict(trace.dropped),
    )


def spread(values: Floats | Integers) -> Spread:
    """Distribution of at least one value."""
    found = np.quantile(values, QUANTILES)
    return Spread(
        float(values.mean()),
        float(values.std()),
        float(values.min()),
        float(values.max()),
        {f"{level:g}": float(value) for level, value in zip(QUANTILES, found, strict=True)},
    )


def gap_variation(arrival_s: Floats) -> float | None:
    """Coefficient of variation of the gaps between arrivals; None below 2 gaps or without any time between them."""
    gaps = np.diff(arrival_s)
    mean = float(gaps.mean()) if len(gaps) > 1 else 0.0
    return float(gaps.std()) / mean if mean > 0.0 else None


def fano_factor(arrival_s: Floats, window_s: float) -> float | None:
    """Variance over mean of the arrivals per whole window; None below 2 windows or above 50 million."""
    windows = float(arrival_s[-1]) // window_s
    if not 2 <= windows <= _MOST_WINDOWS:
        return None
    places = (arrival_s // window_s).astype(np.int64)
    counts = np.bincount(places[places < windows], minlength=int(windows))
    return float(counts.var() / counts.mean())


def prefix_reuse(prefix: Blocks, prompt_tokens: Integers) -> Reuse:
    """Reuse of blocks in the order of arrival; a block counts as seen when an *earlier* request had it."""
    hashes, offsets = prefix.hashes, prefix.offsets
    counts = prefix.counts()
    if len(hashes) == 0:
        return Reuse(prefix.block_tokens, 0, 0, 0.0, 0.0)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    owner = np.repeat(np.arange(len(prefix)), counts)
    seen = owner[first][inverse] < owner
    position = np.arange(len(hashes)) - np.repeat(offsets[:-1], counts)
    run = np.where(seen, np.iinfo(np.int64).max, position)
    leading = np.zeros(len(prefix), dtype=np.int64)
    filled = counts > 0
    leading[filled] = np.minimum(np.minimum.reduceat(run, offsets[:-1][filled]), counts[filled])
    hit = np.minimum(leading * prefix.block_tokens, prompt_tokens)
    return Reuse(
        prefix.block_tokens,
        len(hashes),
        len(first),
        float(seen.mean()),
        float(hit.sum() / prompt_tokens.sum()),
    )


def session_statistics(session: Integers, arrival_s: Floats) -> Sessions:
    """Turns and gaps of conversations; requests without one are left out."""
    inside = np.flatnonzero(session >= 0)
    if len(inside) == 0:
        return Sessions(0, 0, Spread(0.0, 0.0, 0.0, 0.0, {}), None)
    order = inside[np.argsort(session[inside], kind="stable")]
    same = session[order][1:] == session[order][:-1]
    gaps = np.diff(arrival_s[order])[same]
    _, turns = np.unique(session[inside], return_counts=True)
    return Sessions(len(turns), len(inside), spread(turns), spread(gaps) if len(gaps) else None)


def _correlation(trace: Trace) -> float | None:
    """Pearson correlation of the logarithms of prompt and output; None where one of them never changes."""
    prompt, output = np.log(trace.prompt_tokens), np.log(trace.output_tokens)
    if float(prompt.std()) < 1e-12 or float(output.std()) < 1e-12:
        return None
    return float(np.corrcoef(prompt, output)[0, 1])


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return dict(value) if isinstance(value, Mapping) else value
