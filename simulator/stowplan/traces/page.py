"""Statistics of a trace as one self-contained page: arrivals over time, lengths and gaps as inline SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from stowplan.traces.stats import Statistics
from stowplan.traces.trace import Floats, Trace

_WIDTH, _HEIGHT = 720, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 12, 36
_WINDOWS = 360
_POINTS = 240
_WORTH_A_PLOT = 1.1
"""The longest gap over the shortest, from which on a plot of gaps tells something."""

_COLOURS = ("#1f6feb", "#d1571b")
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:760px;margin:2em auto;padding:0 1em;color:#1b1f24}"
    "h1{font-size:1.3em}h2{font-size:1em;margin:1.6em 0 .3em}svg{width:100%;height:auto}"
    "table{border-collapse:collapse}td,th{padding:.15em .8em .15em 0;text-align:left}p{color:#57606a}"
)

Curve = tuple[str, Floats, Floats]


def page(trace: Trace, found: Statistics) -> str:
    """The page of a trace and its statistics; the same text for the same trace."""
    width = max(trace.duration_s / _WINDOWS, 1e-9)
    places = np.minimum((trace.arrival_s / width).astype(np.int64), _WINDOWS - 1)
    rates = np.bincount(places, minlength=_WINDOWS).astype(np.float64) / width
    unit, per = ("days", 86400.0) if trace.duration_s > 3 * 86400 else ("hours", 3600.0)
    if trace.duration_s < 3 * 3600:
        unit, per = "seconds", 1.0
    times = np.asarray((np.arange(_WINDOWS, dtype=np.float64) + 0.5) * (width / per))
    parts = [
        f"<h1>{html.escape(found.name)}</h1><p>{html.escape(found.origin)}</p>",
        _facts(found),
        f"<h2>Requests per second, mean of {_duration(width)}</h2>",
        _plot([("requests/s", times, rates)], f"{unit} since the first request", logarithmic=False)
        if trace.duration_s > 0.0
        else "<p>All requests arrive at once.</p>",
        "<h2>Share of requests with at most so many tokens</h2>",
        _plot([_shares("prompt", trace.prompt_tokens), _shares("output", trace.output_tokens)], "tokens"),
    ]
    gaps = np.diff(trace.arrival_s)
    shortest = float(gaps[gaps > 0.0].min()) if bool((gaps > 0.0).any()) else 0.0
    if len(gaps) and float(gaps.max()) > _WORTH_A_PLOT * shortest:
        parts += [
            "<h2>Share of gaps between arrivals of at most so many seconds</h2>",
            _plot([_shares("gap", np.maximum(gaps, shortest))], "seconds; arrivals together count as the shortest gap"),
        ]
    title = html.escape(found.name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"</head><body>{''.join(parts)}</body></html>\n"
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.3g} s"


def _facts(found: Statistics) -> str:
    rows = [
        ("requests", f"{found.requests:,}"),
        ("duration", f"{found.duration_s:,.1f} s"),
        ("rate", "all at once" if found.rate is None else f"{found.rate:.4g} requests/s"),
        ("variation of gaps", "-" if found.gap_cv is None else f"{found.gap_cv:.3g} (1 is Poisson)"),
        ("prompt tokens", f"{found.prompt.mean:,.1f} on average, {found.prompt_total:,} in all"),
        ("output tokens", f"{found.output.mean:,.1f} on average, {found.output_total:,} in all"),
    ]
    if found.reuse is not None:
        share = 100 * found.reuse.hit_tokens_share
        rows.append(("prefix reuse", f"{share:.1f} % of prompt tokens with a cache without end"))
    rows += [("left out", f"{count:,} {reason}") for reason, count in found.dropped.items()]
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


def _shares(name: str, values: Floats | np.ndarray[tuple[int], np.dtype[np.int64]]) -> Curve:
    levels = np.linspace(0.0, 1.0, _POINTS + 1)
    return name, np.quantile(values, levels), levels


def _plot(curves: Sequence[Curve], label: str, *, logarithmic: bool = True) -> str:
    """Curves in a frame; the horizontal axis is logarithmic for distributions."""
    least = min(float(across.min()) for _, across, _ in curves)
    most = max(float(across.max()) for _, across, _ in curves)
    top = max(float(up.max()) for _, _, up in curves) or 1.0
    if logarithmic:
        least, most = float(np.log10(least)), float(np.log10(most))
    span = (most - least) or 1.0

    def right(values: Floats) -> Floats:
        shown = np.log10(values) if logarithmic else values
        return np.asarray(_LEFT + (shown - least) / span * (_WIDTH - _LEFT - _RIGHT))

    floor = _HEIGHT - _BOTTOM
    parts = []
    for value in _ticks(0.0, top):
        height = floor - value / top * (floor - _TOP)
        parts.append(f'<path d="M{_LEFT} {height:.1f}H{_WIDTH - _RIGHT}" stroke="#d0d7de"/>')
        parts.append(_text(_LEFT - 6, height + 4, f"{value:g}", "#57606a", "end"))
    for value in _decades(least, most) if logarithmic else _ticks(least, most):
        at = _LEFT + (value - least) / span * (_WIDTH - _LEFT - _RIGHT)
        parts.append(f'<path d="M{at:.1f} {floor}v4" stroke="#57606a"/>')
        parts.append(_text(at, floor + 16, f"{10.0**value:,.6g}" if logarithmic else f"{value:g}", "#57606a", "middle"))
    for number, (name, across, up) in enumerate(curves):
        heights = floor - up / top * (floor - _TOP)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(right(across), heights, strict=True))
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if len(curves) > 1:
            parts.append(_text(_LEFT + 10, _TOP + 14 + 16 * number, name, colour, "start"))
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 2, label, "#57606a", "middle"))
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'


def _ticks(least: float, most: float) -> list[float]:
    """Round values within a range, three to seven of them."""
    span = max(most - least, 1e-12)
    size = 10.0 ** math.floor(math.log10(span / 3.0))
    step = next(size * each for each in (1, 2, 5, 10) if span / (size * each) <= 6.0)
    first = math.ceil(least / step - 1e-9)
    return [round(step * number, 12) for number in range(first, first + 8) if step * number <= most + 1e-9 * span]


def _decades(least: float, most: float) -> list[float]:
    """Powers of ten within a range of logarithms, by exponent; its ends where it holds fewer than two."""
    found = [float(each) for each in range(math.ceil(least - 1e-9), math.floor(most + 1e-9) + 1)]
    return found if len(found) > 1 else [least, most]


def _text(across: float, down: float, text: str, colour: str, anchor: str) -> str:
    shown = html.escape(text)
    return f'<text x="{across:.1f}" y="{down:.1f}" fill="{colour}" font-size="11" text-anchor="{anchor}">{shown}</text>'
