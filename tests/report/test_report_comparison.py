"""The page of a comparison: every system once, pictures to scale, names escaped."""

from __future__ import annotations

import re
from dataclasses import replace

from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import MemoryUse, Workload
from stowplan.planner.comparison import Compared, Comparison, Refused
from stowplan.report.comparison import comparison_page, said_settings


def row(key: str, rate: float, quality: str = "") -> Compared:
    return Compared(
        key=key,
        title=key,
        decode_tokens_per_s=rate,
        ttft_s=1.0,
        cost_s=1.0 + 100 / rate,
        bottleneck="host.dram",
        shares={"host.dram": 1.0},
        memory={"gpu0": MemoryUse(used=2.0**34, capacity=2.0**35)},
        exact=not quality,
        quality=quality,
        settings={"weights.gpu": 0.5, "weights.ram": 0.5, "cache.slices": 4},
    )


FOUND = Comparison(
    workload=Workload(prompt=512),
    objective="request",
    runs=[row("first", 4.0), row("<second>", 2.0, "loses a little")],
    refused=[Refused("third", "third", "lacks a GPU")],
    ideal=row("ideal", 8.0),
    floor_tokens_per_s=9.0,
)


def page(found: Comparison = FOUND) -> str:
    return comparison_page(found, load_machine("rtx-4090-desktop-128"), load_model("llama-3.1-8b"))


def test_everyone_is_on_the_page_and_names_are_escaped() -> None:
    text = page()
    assert "<second>" not in text and "&lt;second&gt;" in text
    assert "lacks a GPU" in text and "loses a little" in text
    assert "2 times as many" in text


def test_bars_are_to_scale() -> None:
    widths = [float(width) for width in re.findall(r"<rect [^>]*?width=\"([\d.]+)\"", page())]
    assert [width / widths[0] for width in widths] == [1.0, 0.5, 0.25]


def test_a_page_without_an_ideal_or_any_run_still_says_so() -> None:
    text = page(replace(FOUND, runs=[], ideal=None))
    assert "No exact system runs this." in text and "lacks a GPU" in text


def test_settings_leave_out_what_follows() -> None:
    assert said_settings(FOUND.runs[0]) == "weights.gpu 0.5, cache.slices 4"
    many = replace(FOUND.runs[0], settings={f"weights.{n}": n for n in range(9)})
    assert said_settings(many, most=2) == "weights.0 0, weights.1 1, ..."
