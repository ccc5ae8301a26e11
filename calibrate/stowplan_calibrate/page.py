"""One page of a calibration: the figures, measured points against fitted curves, residuals, and the roofline."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from stowplan.units import format_rate, format_seconds
from stowplan_calibrate.derive import request_line, size_line
from stowplan_calibrate.results import Record, Results

_STYLE = """
:root{--paper:#fff;--ink:#1b1f24;--soft:#5b6470;--line:#d9dee4;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--paper:#14171a;--ink:#e7eaee;--soft:#9aa4b0;--line:#343b43}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1160px;margin:0 auto;padding:28px 24px 64px}
h1{font-size:1.35rem;margin:0;font-weight:650;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:44px 0 4px}
p{margin:4px 0 10px;max-width:92ch}.soft{color:var(--soft)}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:14px 40px;margin:22px 0 12px}
.value{font-size:1.5rem;font-weight:650}.name{font-size:.9rem;color:var(--soft)}
.plot{width:100%;height:420px}.scroll{overflow-x:auto}
.js-plotly-plot text{fill:var(--ink)!important;font-family:inherit!important}
.js-plotly-plot .gridlayer path,.js-plotly-plot .zerolinelayer path{stroke:var(--line)!important}
.js-plotly-plot .hoverlayer text{fill:#fff!important}
table{border-collapse:collapse;width:100%;font-size:.9rem}th{text-align:left;color:var(--soft)}
th,td{padding:4px 14px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}
.number{text-align:right;white-space:nowrap}
"""
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7d8791")
_GREY = "#7d8791"
_STEMS = {"bytes": "B/s", "flops": "FLOP/s", "operations": "/s"}
_HEADLINES = (
    ("host.read", "bytes", "reading host memory"),
    ("host.fma", "flops", "peak of the vector units"),
    ("host.clock", "operations", "clock of the cores"),
    ("disk.read", "bytes", "reading the disk"),
    ("disk.write", "bytes", "writing the disk"),
    ("gpu.read", "bytes", "reading GPU memory"),
    ("pcie.h2d", "bytes", "copies to the GPU"),
    ("gpu.gemm", "flops", "matrix products on the GPU"),
)

Trace = dict[str, Any]


def results_page(results: Results) -> str:
    """The whole page, self-contained; the same for the same results."""
    environment = results.environment
    parts = [
        f"<h1>{escape(str(environment.get('machine', 'A machine')))}</h1>",
        f'<p class="soft">measured {escape(str(environment.get("date", "")))[:19]} by stowplan calibrate; '
        f"{len(results.records)} points, every sample kept</p>",
        _headlines(results),
        *_sections(results),
        _table(results),
        _left_out(results),
    ]
    title = escape(str(environment.get("machine", "calibration")))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main>{_drawing()}</body></html>\n"
    )


def _headlines(results: Results) -> str:
    boxes = []
    for name, amount, title in _HEADLINES:
        best = max(results.named(name), key=lambda record: record.rate(amount), default=None)
        if best is not None:
            per = "Hz" if name == "host.clock" else _STEMS[amount]
            boxes.append(
                f'<div><div class="value">{escape(format_rate(best.rate(amount), per))}</div>'
                f'<div class="name">{escape(title)}: {escape(best.label)}</div></div>'
            )
    return f'<div class="answers">{"".join(boxes)}</div>'


def _sections(results: Results) -> Iterable[str]:
    yield from _threads(results)
    yield from _disk(results, "disk.read", "Reads of the disk")
    yield from _disk(results, "disk.write", "Writes to the disk")
    yield from _copies(results)
    yield from _roofline(results)


def _threads(results: Results) -> Iterable[str]:
    traces = []
    for index, name in enumerate(("host.read", "host.copy", "host.triad")):
        records = sorted(results.named(name), key=lambda record: float(record.parameters["threads"]))
        if records:
            x = [float(record.parameters["threads"]) for record in records]
            traces.append(_points(name.removeprefix("host."), x, records, index, lines=True))
    if traces:
        yield _chart("threads", "Host memory by threads", traces, "threads", "bytes/s", log=False)


def _disk(results: Results, name: str, title: str) -> Iterable[str]:
    records = results.named(name)
    line = request_line(records)
    if not records:
        return
    traces: list[Trace] = []
    residuals: list[Trace] = []
    for index, depth in enumerate(sorted({float(record.parameters["depth"]) for record in records})):
        own = sorted((r for r in records if r.parameters["depth"] == depth), key=lambda r: float(r.parameters["block"]))
        x = [float(record.parameters["block"]) for record in own]
        traces.append(_points(f"depth {depth:.0f}", x, own, index))
        if line is not None:

            def rate(size: float, depth: float = depth, line: Any = line) -> float:
                return float(size / (line.latency / depth + size / line.bandwidth))

            traces.append(_curve(x, rate, index))
            ratios = [rate(size) / record.rate() for size, record in zip(x, own, strict=True)]
            residuals.append(_residual(f"depth {depth:.0f}", x, ratios, index))
    key = name.replace(".", "-")
    yield _chart(key, title, traces, "bytes of a request", "bytes/s", told=_line_told(line))
    if residuals:
        yield _chart(
            f"{key}-left", "", residuals, "bytes of a request", "fitted over measured", log_y=False, small=True
        )


def _copies(results: Results) -> Iterable[str]:
    traces: list[Trace] = []
    residuals: list[Trace] = []
    told = []
    pairs = [(direction, memory) for direction in ("h2d", "d2h") for memory in ("pinned", "pageable")]
    for index, (direction, memory) in enumerate(pairs):
        own = [r for r in results.named(f"pcie.{direction}") if r.parameters.get("memory") == memory]
        if not own:
            continue
        own.sort(key=lambda record: record.amounts["bytes"])
        x, label = [record.amounts["bytes"] for record in own], f"{direction} {memory}"
        traces.append(_points(label, x, own, index))
        line = size_line(own)
        if line is not None:

            def rate(size: float, line: Any = line) -> float:
                return float(size / (line.latency + size / line.bandwidth))

            traces.append(_curve(x, rate, index))
            residuals.append(_residual(label, x, [rate(s) / r.rate() for s, r in zip(x, own, strict=True)], index))
            told.append(f"{label}: {format_seconds(line.latency)} + size / {format_rate(line.bandwidth)}")
    if traces:
        yield _chart("copies", "Copies between host and GPU", traces, "bytes", "bytes/s", told="; ".join(told))
        yield _chart("copies-left", "", residuals, "bytes", "fitted over measured", log_y=False, small=True)


def _roofline(results: Results) -> Iterable[str]:
    """FLOP/s over FLOPs per byte: the roof of memory and vector units, and every kernel that was measured."""
    for key, title, memory, peak, kernels in (
        ("roof-host", "Roofline of the host", "host.read", "host.fma", ("host.gemv", "host.gemm", "host.attention")),
        (
            "roof-gpu",
            "Roofline of the GPU",
            "gpu.read",
            "gpu.gemm",
            ("gpu.gemv", "gpu.gemm", "gpu.attention", "gpu.moe"),
        ),
    ):
        bandwidth = max((record.rate() for record in results.named(memory)), default=0.0)
        flops = max((record.rate("flops") for record in results.named(peak)), default=0.0)
        traces: list[Trace] = []
        for index, name in enumerate(kernels):
            own = [record for record in results.named(name) if {"flops", "bytes"} <= record.amounts.keys()]
            if own:
                x = [record.amounts["flops"] / record.amounts["bytes"] for record in own]
                traces.append(_points(name.split(".")[1], x, own, index, amount="flops"))
        if not traces or not bandwidth or not flops:
            continue
        ridge = flops / bandwidth
        ends = [min(0.1, ridge / 100), ridge, max(1e4, 100 * ridge)]
        roof: Trace = {"type": "scatter", "mode": "lines", "x": ends, "y": [min(flops, bandwidth * e) for e in ends]}
        roof |= {"line": {"color": _GREY, "width": 2}, "name": "roof", "hoverinfo": "skip", "showlegend": False}
        told = f"{format_rate(bandwidth)} and {format_rate(flops, 'FLOP/s')} as measured here"
        yield _chart(key, title, [roof, *traces], "FLOPs per byte", "FLOP/s", told=told)


def _points(
    label: str, x: Sequence[float], records: Sequence[Record], index: int, *, amount: str = "bytes", lines: bool = False
) -> Trace:
    y = [record.rate(amount) for record in records]
    spread = [rate * min(1.0, record.samples.half_width) for rate, record in zip(y, records, strict=True)]
    return {
        "type": "scatter",
        "mode": "lines+markers" if lines else "markers",
        "name": label,
        "x": list(x),
        "y": y,
        "error_y": {"type": "data", "array": spread, "thickness": 1, "width": 2},
        "marker": {"color": _COLOURS[index % len(_COLOURS)], "size": 8},
        "text": [f"{record.label}<br>{len(record.samples.seconds)} samples" for record in records],
        "hovertemplate": "%{text}<br>%{y:.4s}" + _STEMS[amount] + "<extra></extra>",
    }


def _curve(x: Sequence[float], rate: Callable[[float], float], index: int) -> Trace:
    low, high = math.log(min(x)), math.log(max(x))
    between = [math.exp(low + (high - low) * i / 48) for i in range(49)]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": between,
        "y": [rate(each) for each in between],
        "line": {"color": _COLOURS[index % len(_COLOURS)], "width": 1.5},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _residual(label: str, x: Sequence[float], ratios: Sequence[float], index: int) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "x": list(x),
        "y": list(ratios),
        "marker": {"color": _COLOURS[index % len(_COLOURS)], "size": 7},
        "hovertemplate": f"{escape(label)}<br>%{{y:.3f}}<extra></extra>",
    }


def _line_told(line: Any) -> str:
    if line is None:
        return ""
    spread = f"{100 * line.spread:.0f} %"
    return f"{format_seconds(line.latency)} / depth + size / {format_rate(line.bandwidth)}; points scatter by {spread}"


def _chart(
    name: str,
    title: str,
    traces: Sequence[Trace],
    x: str,
    y: str,
    *,
    told: str = "",
    log: bool = True,
    log_y: bool = True,
    small: bool = False,
) -> str:
    def axis(label: str, logarithmic: bool) -> Mapping[str, Any]:
        kind = {"type": "log"} if logarithmic else {"rangemode": "normal"}
        return {"title": {"text": label}, "zeroline": False, "automargin": True, "tickformat": ".3~s", **kind}

    layout = {
        "xaxis": axis(x, log),
        "yaxis": axis(y, log and log_y),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 18, "t": 12, "b": 48},
        "legend": {"orientation": "h", "y": 1.12},
        "dragmode": False,
    }
    data = json.dumps([list(traces), layout], separators=(",", ":"), sort_keys=True, allow_nan=False)
    safe = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    words = f'<p class="soft">{escape(told)}</p>' if told else ""
    height = ' style="height:220px"' if small else ""
    return (
        f'{heading}{words}<div id="{name}" class="plot" role="img" aria-label="{escape(title or y)}"{height}></div>'
        f'<script type="application/json" data-chart="{name}">{safe}</script>'
    )


def _drawing() -> str:
    from plotly.offline import get_plotlyjs

    drawing = (
        "document.querySelectorAll('script[data-chart]').forEach(function(s){var f=JSON.parse(s.textContent);"
        "Plotly.newPlot(s.getAttribute('data-chart'),f[0],f[1],{displayModeBar:false,responsive:true});});"
    )
    return f"<script>{get_plotlyjs()}</script><script>{drawing}</script>"


def _table(results: Results) -> str:
    rows = "".join(
        f"<tr><td>{escape(record.name)}</td><td>{escape(record.label)}</td>"
        f'<td class="number">{escape(format_seconds(record.samples.figure))}</td>'
        f'<td class="number">{escape(_rate(record))}</td>'
        f'<td class="number">{_percent(record.samples.half_width)}</td>'
        f'<td class="number">{_percent(record.samples.noise)}</td>'
        f'<td class="number">{len(record.samples.seconds)}</td>'
        f"<td>{escape(record.tool)[:60]}</td></tr>"
        for record in results.records
    )
    heads = "".join(
        f"<th>{name}</th>" for name in ("measurement", "at", "time", "rate", "+-", "noise", "samples", "taken with")
    )
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<h2>Every point</h2><div class="scroll">{table}</div>'


def _left_out(results: Results) -> str:
    if not results.skipped:
        return ""
    items = "".join(f"<p>{escape(each.name)}: {escape(each.reason)}</p>" for each in results.skipped)
    return f"<h2>Left out</h2>{items}"


def _rate(record: Record) -> str:
    return next((format_rate(record.rate(a), stem) for a, stem in _STEMS.items() if a in record.amounts), "")


def _percent(value: float) -> str:
    return "-" if math.isinf(value) else f"{100 * value:.1f} %"
