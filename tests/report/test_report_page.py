"""The page as a whole: sound HTML, nothing fetched, strings escaped, the prediction's numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from stowplan.plan import Unseen, Workload
from stowplan.planner.predict import predict
from stowplan.planner.result import Planned
from stowplan.report import words
from stowplan.report.page import plan_page, prediction_page
from stowplan.systems import load_system
from stowplan.systems.base import Setup

_VOID = {"meta"}
_HOSTILE = "<script>alert('x')</script>\"&amp;</title><img src=http://example.org/x>"


Solved = tuple[Setup, Planned]
Lookup = Callable[[str], Solved]


@pytest.fixture(scope="module")
def page(case: Solved) -> str:
    return plan_page(*case)


class Reader(HTMLParser):
    """Checks that elements nest, and keeps what a page says and refers to."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.styles: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "action", "data", "srcset", "poster"}:
                self.references.append(value or "")
            if name == "style":
                self.styles.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on"), f"a handler in an attribute: {name}"

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles.append(data)
        elif not self.open or self.open[-1] != "script":
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def test_elements_nest_and_ids_are_unique(page: str) -> None:
    reader = read(page)
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    assert page.startswith("<!DOCTYPE html>")


def test_nothing_is_fetched(page: str) -> None:
    reader = read(page)
    assert reader.references == []
    assert not reader.tags & {"link", "iframe", "object", "embed", "img", "base"}
    assert not any(re.search(r"@import|url\((?!#)", style) for style in reader.styles)


def test_page_is_small_enough(page: str) -> None:
    assert len(page) < 6_000_000
    own = page.split("/**\n* plotly.js", maxsplit=1)[0]
    assert len(own) < 300_000


def test_numbers_are_those_of_the_prediction(case: Solved, page: str) -> None:
    prediction = case[1].prediction
    text = "".join(read(page).text)
    assert f"{words.three(prediction.decode_tokens_per_s)} tok/s" in text
    assert words.seconds(prediction.ttft_s) in text
    assert words.seconds(prediction.tpot_s) in text
    assert words.interval(prediction.interval["decode_tokens_per_s"]) in text
    for figure in prediction.rests_on:
        assert figure.name in text
        assert figure.source in text
    if prediction.command is not None:
        assert prediction.command.rstrip("\n") in text


def test_charts_are_plain_data(page: str) -> None:
    found = re.findall(r'<script type="application/json" data-chart="([a-z]+)">(.*?)</script>', page)
    for _, data in found:
        traces, layout = json.loads(data)
        assert traces
        assert {"xaxis", "yaxis"} <= layout.keys()
    assert bool(found) == ("Plotly.newPlot" in page)


def test_same_input_same_bytes(solved: Lookup) -> None:
    assert plan_page(*solved("laptop")) == plan_page(*solved("laptop"))


def test_names_from_files_are_escaped(solved: Lookup) -> None:
    setup, found = solved("dense")
    machine = setup.machine
    gpus = tuple(replace(gpu, name=_HOSTILE) for gpu in machine.gpus)
    memory = replace(machine.memory, name=_HOSTILE)
    hostile = Setup(
        replace(machine, name=_HOSTILE, gpus=gpus, memory=memory), replace(setup.model, name=_HOSTILE), setup.figures
    )
    figures = [figure.model_copy(update={"name": _HOSTILE, "source": _HOSTILE}) for figure in found.prediction.rests_on]
    changes = {
        "model": _HOSTILE,
        "quant": _HOSTILE,
        "machine": _HOSTILE,
        "command": _HOSTILE,
        "warnings": [_HOSTILE],
        "rests_on": figures,
        "unseen": [Unseen(part="architecture", group=_HOSTILE, name=_HOSTILE, decode_sd=0.1, prefill_sd=0.1)],
    }
    prediction = found.prediction.model_copy(update=changes)
    alternatives = [replace(each, title=_HOSTILE) for each in found.alternatives]
    page = plan_page(hostile, replace(found, prediction=prediction, alternatives=alternatives))
    assert "<script>alert" not in page
    reader = read(page)
    assert reader.open == []
    assert reader.references == []
    assert "img" not in reader.tags
    assert "".join(reader.text).count("<script>alert('x')</script>") >= 8


def test_a_given_plan_has_a_page_without_runners_up(solved: Lookup) -> None:
    setup, found = solved("dense")
    text = "".join(read(prediction_page(setup, found.plan, found.prediction)).text)
    assert "Other placements" not in text
    assert "What this rests on" in text


def test_warnings_are_shown(solved: Lookup) -> None:
    setup, found = solved("laptop")
    prediction = found.prediction.model_copy(update={"warnings": ["mind the gap"], "command": None})
    page = prediction_page(setup, found.plan, prediction)
    assert "mind the gap" in "".join(read(page).text)
    assert 'id="command"' not in page


def test_no_prompt_no_prompt_section(solved: Lookup) -> None:
    setup, found = solved("laptop")
    plan = found.plan.model_copy(update={"workload": Workload(prompt=0, generate=64)})
    text = "".join(read(prediction_page(setup, plan, predict(setup, plan, load_system(plan.system)))).text)
    assert "chunk of the prompt" not in text.split("What each operator")[0]
    assert "first token" not in text.split("Where the bytes lie")[0]
