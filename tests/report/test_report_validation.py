"""The page of a comparison: sound HTML that fetches nothing, strings escaped, the worst explained."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.validate import examples

from stowplan.report.validation import validation_page
from stowplan.validate.rows import Result, Row
from stowplan.validate.targets import load_targets
from stowplan.validate.validation import Validation, summarise

HOSTILE = "<script>alert('x')</script>\"&amp;</title><img src=http://example.org/x>"
VOID = {"meta"}
UNIT = examples.UNIT
ROW = replace(
    examples.ROW,
    id="a/d0",
    run="llama-bench -ngl 10",
    low=9.0,
    high=13.0,
    shares=(("host.dram", 0.8), ("overhead", 0.2)),
    source="https://example.org/thread",
    note="Two sockets.",
    assumed=("cpu: not stated",),
)


class Reader(HTMLParser):
    """Checks that elements nest, and keeps text and references."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attrs if name in {"src", "href", "action", "data"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.text.append(data)


def found_of(rows: list[Row], *more: Result) -> Validation:
    results = [Result(rows=(row,)) for row in rows] + list(more)
    return summarise([replace(UNIT, name=str(n)) for n in range(len(results))], results)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def some_rows() -> list[Row]:
    return [
        ROW,
        replace(ROW, id="b", record="b", run="llama-bench -ngl 20", predicted=9.0, measured=20.0),
        replace(ROW, id="c", record="c", part="fit", predicted=50.0, measured=5.0),
        replace(
            ROW, id="d", record="d", figure="memory", low=None, high=None, shares=(), predicted=2e10, measured=3e10
        ),
        replace(
            ROW, id="e", record="e", system="vLLM serving", kind="p99", figure="ttft", low=None, high=None, shares=()
        ),
        replace(ROW, id="f", record="f", system="kivi", kind="", figure="speed-up", low=None, high=None, shares=()),
        replace(ROW, id="g", record="g", system="h2o", kind="", figure="capacity", low=None, high=None, shares=()),
    ]


def page_of(rows: list[Row], *more: Result) -> str:
    return validation_page(found_of(rows, *more), load_targets())


def test_the_page_is_sound_and_fetches_nothing() -> None:
    page = page_of(some_rows(), Result(refused="does not fit", does_not_fit=True), Result(ran=False))
    reader = read(page)
    assert reader.references == []
    text = "".join(reader.text)
    for wanted in (
        "The worst twenty",
        "Do the intervals hold?",
        "Which of two runs is faster?",
        "does not fit",
        "wrong",
    ):
        assert wanted in text
    assert "host memory" in text
    assert "https://example.org/thread" in text


def test_charts_hold_every_figure_once() -> None:
    page = page_of(some_rows())
    charts = dict(re.findall(r'<script type="application/json" data-chart="(\w+)">(.*?)</script>', page))
    assert {"decode", "memory", "latency", "ratio", "errors", "calibration"} <= set(charts)
    traces, _ = json.loads(charts["decode"])
    dots = [x for trace in traces if trace["mode"] == "markers" for x in trace["x"]]
    assert sorted(dots) == [5.0, 10.0, 20.0]
    hovers = [text for trace in traces for text in trace.get("text", [])]
    assert any("a/d0" in text and "https://example.org/thread" in text for text in hovers)


def test_what_sources_say_is_escaped() -> None:
    rows = [
        replace(row, id=f"{HOSTILE}{n}", model=HOSTILE, machine=HOSTILE, run=HOSTILE, source=HOSTILE, note=HOSTILE)
        for n, row in enumerate(some_rows())
    ]
    page = page_of(rows, Result(refused=HOSTILE))
    assert "<script>alert" not in page
    reader = read(page)
    assert "img" not in reader.tags
    assert reader.references == []


def test_the_worst_come_first() -> None:
    rows = [replace(ROW, id=f"case-{n}", record=f"r{n}", predicted=10.0 * 1.3**n) for n in range(25)]
    page = page_of(rows)
    table = page.split("The worst twenty")[1].split("</section>")[0]
    order = re.findall(r"<b>case-(\d+)</b>", table)
    assert order == [str(n) for n in range(24, 4, -1)]


def test_one_part_alone_has_a_page() -> None:
    assert "Predictions against published" in page_of([replace(ROW, part="fit")])
    assert "Predictions against published" in page_of([])


@pytest.mark.parametrize("coverage", [0.0, 1.0])
def test_intervals_that_miss_the_aim_say_how_much_wider_they_should_be(coverage: float) -> None:
    edge = 1.01 if coverage == 0.0 else 100.0
    rows = [
        replace(ROW, id=f"{n}", record=f"r{n}", predicted=12.0, low=12.0 / edge, high=12.0 * edge) for n in range(6)
    ]
    text = "".join(read(page_of(rows)).text)
    assert re.search(rf"{100 * coverage:.0f} %: [\d.]+x as wide would do", text)


@settings(deadline=None, max_examples=6)
@given(st.lists(st.tuples(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6)), min_size=1, max_size=6))
def test_any_values_draw(values: list[tuple[float, float]]) -> None:
    rows = [
        replace(
            ROW, id=str(n), record=str(n), predicted=predicted, measured=measured, low=predicted / 2, high=predicted * 2
        )
        for n, (predicted, measured) in enumerate(values)
    ]
    read(page_of(rows))
