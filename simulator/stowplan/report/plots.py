"""Interactive charts: figures as plain data, drawn by plotly.js, which is embedded once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stowplan.report.markup import Markup, tag

Trace = Mapping[str, Any]
_CONFIG = {"displayModeBar": False, "responsive": True}
CHART_MARK = "data-chart="
"""What a page that has charts contains."""
_GREY = "#7d8791"


def chart(name: str, traces: Sequence[Trace], layout: Mapping[str, Any], label: str) -> Markup:
    """Place of a chart and the data that `draw_charts` draws there; `name` is unique on the page."""
    whole = _base_layout() | dict(layout)
    data = json.dumps([list(map(dict, traces)), whole], separators=(",", ":"), sort_keys=True, allow_nan=False)
    safe = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    unseen = tag("noscript", "This chart needs JavaScript; its numbers are below.")
    place = tag("div", unseen, id=name, class_="plot", role="img", aria_label=label)
    return Markup(f'{place}<script type="application/json" {CHART_MARK}"{name}">{safe}</script>')


def draw_charts() -> Markup:
    """plotly.js and the lines that draw every chart of the page; belongs at its end, so that the answer shows first."""
    from plotly.offline import get_plotlyjs

    drawing = (
        "document.querySelectorAll('script[data-chart]').forEach(function(s){var f=JSON.parse(s.textContent);"
        f"Plotly.newPlot(s.getAttribute('data-chart'),f[0],f[1],{json.dumps(_CONFIG)});}});"
    )
    return Markup(f"<script>{get_plotlyjs()}</script><script>{drawing}</script>")


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title and quiet lines."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 13}},
        "gridwidth": 1,
        "zeroline": False,
        "automargin": True,
    } | more


def line(x: Sequence[float], y: Sequence[float], **more: Any) -> dict[str, Any]:
    """A quiet line that answers to no pointer."""
    shown = {"type": "scatter", "mode": "lines", "x": list(x), "y": list(y), "hoverinfo": "skip"}
    return shown | {"line": {"color": _GREY, "width": 1.5}} | more


def _base_layout() -> dict[str, Any]:
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "margin": {"l": 56, "r": 18, "t": 12, "b": 48},
        "font": {"size": 13},
        "hoverlabel": {"bgcolor": "#1b1f24", "bordercolor": "#555", "font": {"color": "#fff", "size": 13}},
        "dragmode": False,
    }
