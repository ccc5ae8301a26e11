"""The page of a sweep: its front, a map over the first two paths, every variant as a line, and the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stowplan.report import words
from stowplan.report.markup import Markup, join, table, tag
from stowplan.report.plots import axis, chart
from stowplan.report.shell import section, whole_page
from stowplan.whatif.axes import Axis
from stowplan.whatif.front import DEFAULT, WISHES, front, wishes
from stowplan.whatif.paths import find_path
from stowplan.whatif.sweep import Row, Sweep

_BLUE, _ORANGE, _GREY = "#0072b2", "#e69f00", "#9aa4b0"
_SCALE = [[0.0, "#f2f6f9"], [0.5, "#bfe0f5"], [1.0, "#56b4e9"]]  # light enough for dark figures on it
_LINES = [[0.0, _GREY], [0.5, "#56b4e9"], [1.0, "#08306b"]]
_MOST_ROWS = 200
_FEW = 12
_GIB = 2.0**30


def sweep_page(sweep: Sweep, names: Sequence[str] = DEFAULT) -> str:
    """One self-contained page."""
    rows = [row for row in sweep.rows if row.outcome.error is None]
    best = front([row.outcome for row in sweep.rows], names)
    base = sweep.base.scenario
    title = f"{base.model} on {base.machine}, {len(sweep.rows):,} variants"
    failed = len(sweep.rows) - len(rows)
    said = f"{words.count(len(rows), 'variant')} planned" + (f"; {failed:,} have no plan" if failed else "") + "."
    parts: list[str] = [tag("h1", title), tag("p", said, class_="soft")]
    if rows:
        chosen = [sweep.rows[k] for k in best]
        parts += [_heading(chosen), *_front(sweep, rows, chosen), *_map(sweep), *_parallel(sweep, rows)]
    parts.append(_numbers(sweep, best, names))
    return whole_page(title, *parts)


def _heading(chosen: Sequence[Row]) -> Markup:
    """The fastest variant of the front, in a sentence."""
    fastest = max(chosen, key=lambda row: row.outcome.figure("decode_tokens_per_s") or 0.0)
    figures = fastest.outcome.figures or {}
    rate, first = figures["decode_tokens_per_s"], figures["ttft_s"]
    where = ", ".join(fastest.values)
    return tag(
        "p",
        f"Fastest: {words.three(rate)} tok/s, first token after {words.seconds(first)}, with {where}.",
        class_="said",
    )


def _label(sweep: Sweep, row: Row) -> str:
    figures = row.outcome.figures or {}
    values = ", ".join(f"{axis.path}={value}" for axis, value in zip(sweep.axes, row.values, strict=True))
    rate, first = words.three(figures["decode_tokens_per_s"]), words.seconds(figures["ttft_s"])
    return f"{values}<br>{rate} tok/s, first token {first}<br>limit: {words.resource(row.outcome.bottleneck, 2)}"


def _front(sweep: Sweep, rows: Sequence[Row], chosen: Sequence[Row]) -> list[Markup]:
    latency, throughput = WISHES["latency"].value, WISHES["throughput"].value
    prompts = any((latency(row.outcome) or 0.0) > 0 for row in rows)
    across = latency if prompts else WISHES["step"].value
    title = "seconds to the first token" if prompts else "ms per token"

    def points(group: Sequence[Row], **marker: Any) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "markers",
            "x": [across(row.outcome) for row in group],
            "y": [throughput(row.outcome) for row in group],
            "text": [_label(sweep, row) for row in group],
            "hovertemplate": "%{text}<extra></extra>",
            "marker": marker,
        }

    ids = {id(row) for row in chosen}
    rest = [row for row in rows if id(row) not in ids]
    traces = [points(rest, size=6, color=_GREY, opacity=0.6), points(chosen, size=10, color=_ORANGE)]
    layout = {
        "xaxis": axis(title, type="log"),
        "yaxis": axis("decode tok/s", rangemode="tozero"),
        "hovermode": "closest",
    }
    sentence = "Every dot is a variant; orange ones are on the front: no other is better in everything that is wanted."
    return [
        section("The front", sentence, chart("front", traces, layout, "Decode against the wait for the first token"))
    ]


def _map(sweep: Sweep) -> list[Markup]:
    """Decode over the first two paths that take several values; the best over the other paths."""
    several = [(n, each) for n, each in enumerate(sweep.axes) if len(each.values) > 1]
    if not several:
        return []
    if len(several) == 1:
        return [_line(sweep, *several[0])]
    (n_y, down), (n_x, across) = sorted(several[:2], key=lambda pair: -len(pair[1].values))[::-1]
    cells: dict[tuple[str, str], float] = {}
    for row in sweep.rows:
        rate = row.outcome.figure("decode_tokens_per_s")
        if rate is not None:
            key = (row.values[n_y], row.values[n_x])
            cells[key] = max(rate, cells.get(key, 0.0))
    z = [[cells.get((y, x)) for x in across.values] for y in down.values]
    shown = len(across.values) <= 16 and len(down.values) <= 24
    trace = {
        "type": "heatmap",
        "x": list(across.values),
        "y": list(down.values),
        "z": z,
        "text": [["" if value is None else words.three(value) for value in line] for line in z],
        "texttemplate": "%{text}" if shown else "",
        "hovertemplate": f"{across.path} %{{x}}<br>{down.path} %{{y}}<br>%{{z:.3g}} tok/s<extra></extra>",
        "colorscale": _SCALE,
        "colorbar": {"title": {"text": "tok/s"}, "thickness": 14},
        "xgap": 1,
        "ygap": 1,
    }
    layout = {"xaxis": axis(across.path, type="category"), "yaxis": axis(down.path, type="category")}
    others = [each.path for n, each in several if n not in (n_x, n_y)]
    sentence = "Decode in tok/s." + (f" Every cell is the best over {', '.join(others)}." if others else "")
    sentence += " An empty cell has no plan."
    return [section(f"{across.path} and {down.path}", sentence, chart("map", [trace], layout, "Decode over two paths"))]


def _line(sweep: Sweep, n: int, each: Axis) -> Markup:
    rows = [row for row in sweep.rows if row.outcome.error is None]
    x = [row.values[n] for row in rows]
    intervals = [(row.outcome.interval or {})["decode_tokens_per_s"] for row in rows]
    rates = [row.outcome.figure("decode_tokens_per_s") or 0.0 for row in rows]
    trace = {
        "type": "scatter",
        "mode": "lines+markers" if find_path(each.path).numeric else "markers",
        "x": x,
        "y": rates,
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [high - rate for (_, high), rate in zip(intervals, rates, strict=True)],
            "arrayminus": [rate - low for (low, _), rate in zip(intervals, rates, strict=True)],
            "color": _GREY,
            "thickness": 1.2,
        },
        "text": [_label(sweep, row) for row in rows],
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": _BLUE, "width": 2},
        "marker": {"color": _BLUE, "size": 9},
    }
    layout = {"xaxis": axis(each.path, type="category"), "yaxis": axis("decode tok/s", rangemode="tozero")}
    sentence = "Decode with its 80 % interval; neighbours share most of their error."
    return section(each.path, sentence, chart("line", [trace], layout, f"Decode over {each.path}"))


def _parallel(sweep: Sweep, rows: Sequence[Row]) -> list[Markup]:
    """Every variant as a line through its values and figures; drag along an axis to keep some."""
    dimensions: list[dict[str, Any]] = []
    for n, each in enumerate(sweep.axes):
        if len(each.values) > 1:
            ticks = {value: k for k, value in enumerate(each.values)}
            shown = [k for k in range(len(each.values)) if len(each.values) <= _FEW or k % (len(each.values) // 8) == 0]
            dimensions.append(
                {
                    "label": each.path,
                    "values": [ticks[row.values[n]] for row in rows],
                    "tickvals": shown,
                    "ticktext": [each.values[k] for k in shown],
                }
            )
    for name in ("memory", "latency", "throughput"):
        wish = WISHES[name]
        dimensions.append({"label": f"{wish.title}, {wish.unit}", "values": [wish.value(row.outcome) for row in rows]})
    rates = dimensions[-1]["values"]
    trace = {
        "type": "parcoords",
        "dimensions": dimensions,
        "line": {"color": rates, "colorscale": _LINES},
        "labelfont": {"size": 13},
    }
    widest = max((len(str(label)) for label in dimensions[0].get("ticktext", [])), default=0)
    layout = {"margin": {"l": max(90, 24 + 7 * widest), "r": 60, "t": 60, "b": 24}}
    sentence = (
        "Every line is a variant. Drag along an axis to keep only what crosses it there; drag an axis to move it."
    )
    return [section("All of them", sentence, chart("lines", [trace], layout, "Every variant as a line"))]


def _numbers(sweep: Sweep, best: Sequence[int], names: Sequence[str]) -> Markup:
    rows = []
    for k in best[:_MOST_ROWS]:
        row = sweep.rows[k]
        figures, interval = row.outcome.figures or {}, row.outcome.interval or {}
        low, high = interval["decode_tokens_per_s"]
        rows.append(
            [
                *row.values,
                words.three(figures["decode_tokens_per_s"]),
                f"{words.three(low)} – {words.three(high)}",
                words.seconds(figures["ttft_s"]),
                words.three(row.outcome.gpu_bytes / _GIB),
                "–" if row.outcome.price_usd is None else f"{row.outcome.price_usd:,.0f}",
                words.resource(row.outcome.bottleneck, 2),
            ]
        )
    header = [*(each.path for each in sweep.axes), "tok/s", "80 %", "first token", "GPU GiB", "USD", "limit"]
    shown = table(header, rows, numbers=range(len(sweep.axes), len(header) - 1))
    wanted = ", ".join(wish.title for wish in wishes(names))
    sentence = f"Variants on the front over {wanted}" + (
        f"; {_MOST_ROWS} of {len(best):,}." if len(best) > _MOST_ROWS else "."
    )
    reasons = sorted({row.outcome.error for row in sweep.rows if row.outcome.error is not None})
    told = [tag("p", f"No plan, for example: {reasons[0]}.", class_="warning")] if reasons else []
    return section("The numbers", sentence, join([shown, *told]))
