"""What-if pages: sound HTML that fetches nothing, the numbers of the answer, and sentences that say what is true."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

from stowplan.report.whatif_page import gain_chart, whatif_page
from stowplan.report.whatif_sweep import sweep_page
from stowplan.report.whatif_words import summary, times
from stowplan.whatif.answer import WhatIf, what_if
from stowplan.whatif.axes import Axis
from stowplan.whatif.scenario import Scenario
from stowplan.whatif.sweep import Sweep, run_sweep
from stowplan.whatif.workshop import Workshop

BASE = Scenario(model="llama-3.1-8b", quant="q8_0", machine="rtx-3060-desktop-32")
_HOSTILE = "<script>alert(1)</script>"


@cache
def answer() -> WhatIf:
    return what_if(Workshop(), BASE.with_change("gpu.memory", "6GiB"))


@cache
def swept() -> Sweep:
    axes = [Axis("gpu.memory", ("6GiB", "12GiB")), Axis("context", ("100", "2048", "8192"))]
    return run_sweep(BASE, axes)


class Reader(HTMLParser):
    """Checks that elements nest; keeps text and references."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"script", "style"}:
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert reader.references == []
    return reader


def test_pages_are_sound_and_the_same_for_the_same_answer() -> None:
    for page in (whatif_page(answer()), sweep_page(swept())):
        read(page)
    assert whatif_page(answer()) == whatif_page(answer())
    assert sweep_page(swept()) == sweep_page(swept())


def test_the_answer_page_shows_every_change_and_price() -> None:
    text = "".join(read(whatif_page(answer())).text)
    for change in answer().changes:
        assert change.title in text
        assert f"{change.gain.ratio:.2f}x ({change.gain.low:.2f} – {change.gain.high:.2f})" in text
    for price in answer().prices:
        assert price.resource.title in text
    assert " ".join(summary(answer())) in text


def test_the_sweep_page_draws_front_map_and_lines() -> None:
    page = sweep_page(swept())
    charts = dict(re.findall(r'<script type="application/json" data-chart="([a-z]+)">(.*?)</script>', page))
    assert set(charts) == {"front", "map", "lines"}
    heat = json.loads(charts["map"])[0][0]
    cells = {
        (y, x): z for y, line in zip(heat["y"], heat["z"], strict=True) for x, z in zip(heat["x"], line, strict=True)
    }
    for row in swept().rows:
        memory, context = row.values
        assert cells.get((memory, context), cells.get((context, memory))) == row.outcome.figure("decode_tokens_per_s")
    assert len(json.loads(charts["lines"])[0][0]["dimensions"]) == 5
    assert "2 have no plan" in page
    one = replace(swept(), axes=swept().axes[:1], rows=tuple(replace(r, values=r.values[:1]) for r in swept().rows))
    assert 'data-chart="line"' in sweep_page(one)


def test_sentences_say_what_the_numbers_say() -> None:
    said = summary(answer())
    assert said[0].startswith("Decode is limited by")
    told = " ".join(said)
    for change in answer().changes:
        if not change.quality and change.title in told:
            sure = f"{change.title} gives {times(change.gain.ratio)}" in told or "gives nothing" in told
            assert sure or not change.gain.certain or "give nothing" in told
    assert [times(1.7), times(12.3), times(1.1)] == ["1.7x", "12x", "10 %"]


def test_names_are_escaped() -> None:
    changes = [replace(change, title=_HOSTILE) for change in answer().changes]
    assert _HOSTILE not in gain_chart(changes)
    page = whatif_page(replace(answer(), changes=changes))
    assert "<script>alert" not in page
    read(page)
