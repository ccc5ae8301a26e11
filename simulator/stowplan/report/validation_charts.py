"""Charts of predictions against published measurements: every figure, errors by family, how intervals hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stowplan.report import words
from stowplan.report.markup import Markup, tag
from stowplan.report.plots import axis, chart, line
from stowplan.units import format_bytes
from stowplan.validate.pairs import DIFFERENT
from stowplan.validate.rows import Row
from stowplan.validate.statistics import Errors, grouped, median, quantile, record_weights

PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7a6a58", "#8c8c8c")
"""Okabe and Ito's colours, which colour-blind readers tell apart; systems beyond the last share it."""

_HELD_OUT, _FIT = 7, 4
_SPAN = (0.2, 5.0)
_LEVELS = tuple(range(5, 100, 5))
_NOMINAL = 80
_ROW = 26
_FEW = 5
_MANY_DECADES = 2.5
_SCALES: Mapping[str, float] = {"GiB": 2.0**30}
_PANELS: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("Generated tokens per second", "decode", ("decode",), "tokens/s"),
    ("Prompt tokens per second", "prefill", ("prefill",), "tokens/s"),
    ("Throughput of whole batches", "throughput", ("throughput",), "tokens/s"),
    ("Latencies", "latency", ("ttft", "tpot", "e2e"), "s"),
    ("GPU memory held", "memory", ("memory",), "GiB"),
    ("Speed-ups over a baseline", "ratio", ("speed-up", "largest"), "times"),
)


def colours(rows: Iterable[Row]) -> dict[str, str]:
    """One colour per system, the systems with most figures first."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.system] = counts.get(row.system, 0) + 1
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    return {name: PALETTE[min(index, len(PALETTE) - 1)] for index, name in enumerate(ordered)}


def scatters(rows: Sequence[Row]) -> list[Markup]:
    """Predicted over measured, a panel for each kind of figure that there is."""
    tints = colours(rows)
    panels = []
    for title, name, figures, unit in _PANELS:
        shown = [row for row in rows if row.figure in figures]
        if shown:
            panels.append(tag("div", tag("h3", title), _scatter(name, shown, unit, tints)))
    return panels


def legend(rows: Sequence[Row]) -> Markup:
    """Systems with their colours."""
    tints = colours(rows)
    named = list(tints)[: len(PALETTE) - 1]
    entries = [(name, tints[name]) for name in named]
    if len(tints) > len(named):
        entries.append((f"{len(tints) - len(named)} others", PALETTE[-1]))
    swatches = [tag("span", tag("i", style=f"background:{colour}"), name, class_="swatch") for name, colour in entries]
    return tag("p", *swatches, class_="swatches")


def _scatter(name: str, rows: Sequence[Row], unit: str, tints: Mapping[str, str]) -> Markup:
    scale = _SCALES.get(unit, 1.0)
    smallest = min(min(row.predicted, row.measured) for row in rows) / scale / 1.4
    largest = max(max(row.predicted, row.measured) for row in rows) / scale * 1.4
    ends = [smallest, largest]
    traces = [line(ends, ends)]
    traces += [
        line(ends, [end * factor for end in ends], line={"color": "#7d8791", "width": 1, "dash": "dot"})
        for factor in (0.8, 1.25)
    ]
    for part, size, opacity in (("fit", _FIT, 0.35), ("held-out", _HELD_OUT, 0.85)):
        for system, tint in tints.items():
            mine = [row for row in rows if row.part == part and row.system == system]
            if mine:
                traces.append(_dots(mine, unit, tint, size, opacity))
    span = [math.log10(smallest), math.log10(largest)]
    ticks = 1 if span[1] - span[0] > _MANY_DECADES else "D2"  # every decade, or 1, 2 and 5 of each
    layout = {
        "xaxis": axis(f"measured, {unit}", type="log", range=span, dtick=ticks),
        "yaxis": axis(f"predicted, {unit}", type="log", range=span, dtick=ticks),
        "hovermode": "closest",
    }
    return chart(name, traces, layout, f"{name}: predicted against measured, {len(rows)} figures")


def _dots(rows: Sequence[Row], unit: str, tint: str, size: int, opacity: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [_short(row.measured / _SCALES.get(unit, 1.0)) for row in rows],
        "y": [_short(row.predicted / _SCALES.get(unit, 1.0)) for row in rows],
        "text": [hover(row, unit) for row in rows],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"size": size, "color": tint, "opacity": opacity, "line": {"width": 0}},
    }


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def hover(row: Row, unit: str) -> str:
    """What a dot tells: the case, both values, and where the measurement was published. Markup is escaped."""
    source = row.source if len(row.source) <= 90 else row.source[:87] + "..."
    lines = (
        f"{row.id} ({'held out' if row.part == 'held-out' else row.part})",
        f"{row.family}: {row.model}",
        row.hardware,
        f"predicted {amount(row.predicted, unit)}, measured {amount(row.measured, unit)}: {row.ratio:.2f} times",
        source,
    )
    return "<br>".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for text in lines)


def amount(value: float, unit: str) -> str:
    """A value in its unit."""
    if unit == "GiB":
        return format_bytes(value)
    return words.seconds(value) if unit == "s" else f"{words.three(value)} {unit}"


def unit_of(row: Row) -> str:
    """Unit of a row's figure."""
    if row.figure == "capacity":
        return "that fit"
    return next(unit for _, _, figures, unit in _PANELS if row.figure in figures)


def error_strips(rows: Sequence[Row], name: str = "errors") -> Markup:
    """Every family on a line: its figures by ratio, from the 10th to the 90th percentile, and the median.

    `name` is unique on the page.
    """
    families = grouped(rows)
    names = sorted(families, key=lambda family: (families[family][0].system, family), reverse=True)
    tints = colours(rows)
    traces: list[dict[str, Any]] = [line([1.0, 1.0], [-0.6, len(names) - 0.4], line={"color": "#7d8791", "width": 1})]
    for place, family in enumerate(names):
        members = families[family]
        tint, weights = tints[members[0].system], record_weights(members)
        ratios = [min(max(row.ratio, _SPAN[0]), _SPAN[1]) for row in members]
        ends = [quantile(ratios, weights, share) for share in (0.1, 0.9)]
        traces.append(line(ends, [place, place], line={"color": tint, "width": 9}, opacity=0.3))
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [_short(ratio) for ratio in ratios],
                "y": [place] * len(ratios),
                "text": [hover(row, unit_of(row)) for row in members],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"size": 6, "color": tint, "opacity": 0.55, "symbol": "line-ns-open"},
            }
        )
        middle = median([row.ratio for row in members], weights)
        note = f"{family}: median {middle:.2f} times the measured figure, {words.count(len(members), 'figure')}"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [min(max(_short(middle), _SPAN[0]), _SPAN[1])],
                "y": [place],
                "text": [note],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"size": 11, "color": tint, "symbol": "diamond", "line": {"width": 1, "color": "#fff"}},
            }
        )
    ticks = (0.2, 0.33, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 5)
    layout = {
        "height": 90 + _ROW * len(names),
        "xaxis": axis(
            "predicted over measured (beyond the edges: drawn at the edge)",
            type="log",
            range=[math.log10(end) for end in _SPAN],
            tickvals=ticks,
            ticktext=[f"{tick:g}" for tick in ticks],
        ),
        "yaxis": axis("", tickvals=list(range(len(names))), ticktext=names, range=[-0.7, len(names) - 0.3]),
        "hovermode": "closest",
    }
    return tag("div", chart(name, traces, layout, "Predicted over measured by family"), class_="tall")


def calibration(rows: Sequence[Row]) -> Markup:
    """Share of measurements inside the central interval of every width, against that width."""
    traces = [
        line([0, 100], [0, 100], showlegend=False),
        line([_NOMINAL] * 2, [75, 90], line={"color": "#009e73", "width": 8}, opacity=0.4, showlegend=False),
    ]
    groups = (
        ("decode, held out", "decode", "held-out", PALETTE[0], "solid"),
        ("prefill, held out", "prefill", "held-out", PALETTE[4], "solid"),
        ("decode, fit", "decode", "fit", PALETTE[0], "dot"),
        ("prefill, fit", "prefill", "fit", PALETTE[4], "dot"),
    )
    for label, figure, part, tint, dash in groups:
        mine = [row for row in rows if row.figure == figure and row.part == part and row.spread]
        if mine:
            shares = [_inside(mine, level) for level in _LEVELS]
            said = [
                f"{label}: {share:.0f} % of the measurements in the {level} % interval"
                for share, level in zip(shares, _LEVELS, strict=True)
            ]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": label,
                    "x": list(_LEVELS),
                    "y": [_short(share) for share in shares],
                    "text": said,
                    "hovertemplate": "%{text}<extra></extra>",
                    "line": {"color": tint, "width": 2, "dash": dash},
                    "marker": {"size": 5},
                    "showlegend": True,
                }
            )
    layout = {
        "showlegend": True,
        "legend": {"x": 0.02, "y": 0.98, "bgcolor": "rgba(0,0,0,0)"},
        "xaxis": axis("predicted: width of the interval, %", range=[0, 100], dtick=20),
        "yaxis": axis("measured: share inside, %", range=[0, 100], dtick=20),
    }
    return chart("calibration", traces, layout, "Share of measurements inside intervals of every width")


def _inside(rows: Sequence[Row], level: int) -> float:
    """Percentage of the weight whose measurement lies in the central interval of `level` %."""
    weights = record_weights(rows)
    inside = 0.0
    for row, weight in zip(rows, weights, strict=True):
        spread = row.spread
        # The central interval of a normal distribution that holds |x| has the width erf(|x| / sqrt 2).
        if spread and 100 * math.erf(abs(math.log(row.ratio)) / spread / math.sqrt(2)) <= level:
            inside += weight
    return 100 * inside / math.fsum(weights)


def coverage_words(family: Errors, wanted: tuple[float, float]) -> str:
    """How well the intervals of a family fit, and by what factor they should change."""
    if family.interval_coverage is None or family.interval_spread is None or family.wanted_spread is None:
        return "–"
    share = f"{100 * family.interval_coverage:.0f} %"
    if wanted[0] <= family.interval_coverage <= wanted[1]:
        return share
    if family.records < _FEW:
        return f"{share} (too few to judge)"
    factor = family.wanted_spread / family.interval_spread
    return f"{share}: {factor:.2f}x as wide would do"


def pair_words() -> str:
    """What counts as a pair."""
    return f"whose measurements differ by more than {100 * DIFFERENT:.0f} %"
