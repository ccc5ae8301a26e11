"""The frame of every page: head, style, sections, what a pointer shows, and the script that draws charts."""

from __future__ import annotations

from stowplan.report.markup import Markup, tag
from stowplan.report.plots import CHART_MARK, draw_charts
from stowplan.report.style import SCRIPT, style_sheet

_STYLE = """
.js-plotly-plot .heatmap-label text{fill:#111!important}
.said{font-size:1.08rem;max-width:92ch}
"""


def section(title: str, sentence: str, *content: str) -> Markup:
    """A part of a page with a heading and a quiet sentence."""
    return tag("section", tag("h2", title), tag("p", sentence, class_="note"), *content)


def whole_page(title: str, *sections: str, style: str = _STYLE, before: str = "") -> str:
    """One self-contained page.

    Args:
        title: what the window is called.
        sections: what people read, in order.
        style: rules beyond those of every page.
        before: marks ahead of the sections that are never seen by themselves, such as patterns that shapes refer to.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style_sheet() + style)),
    )
    charts = [draw_charts()] if any(CHART_MARK in each for each in sections) else []
    tip = tag("div", id="tip", hidden="hidden")
    seen = (tag("main", *sections), tip, tag("script", Markup(SCRIPT)), *charts)
    body = tag("body", *([before] if before else []), *seen)
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"
