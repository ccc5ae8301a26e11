"""Timelines load, keep their lanes apart, and are the same bytes each time."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stowplan.engine import Graph, GraphBuilder, Run, Task, simulate, timeline, write_timeline
from stowplan.errors import InputError
from stowplan.work import Work

RATES = {"gpu": 1.0, "link": 10.0}
TASKS = st.lists(
    st.builds(
        lambda gpu, link, delay, stream: Task("t", Work({"gpu": gpu, "link": link}, delay), stream),
        st.floats(0.0, 1e-3),
        st.floats(0.0, 1e-3),
        st.sampled_from([0.0, 1e-6]),
        st.sampled_from([None, "copy", "compute"]),
    ),
    max_size=12,
)


@pytest.fixture
def run() -> Run:
    builder = GraphBuilder(RATES, {"vram": 2.0}, {"vram": 1.0})
    copied = builder.add("copy", Work({"link": 10.0}, 0.5), stream="copy", kind="copy", allocates={"vram": 1.0})
    builder.add("matmul", Work({"gpu": 2.0}), stream="gpu", after=copied, kind="compute", frees={"vram": 1.0})
    builder.add("next", Work({"link": 5.0}), stream="copy", allocates={"vram": 1.0})
    return simulate(builder.build())


def complete_events(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


@settings(deadline=None, max_examples=60)
@given(TASKS)
def test_events_of_a_lane_do_not_overlap(tasks: list[Task]) -> None:
    trace = timeline(simulate(Graph(tasks, RATES)))
    assert json.loads(json.dumps(trace, allow_nan=False)) == trace
    events = complete_events(trace)
    assert len(events) == len(tasks)
    lanes = defaultdict(list)
    for event in events:
        begins, lasts = round(event["ts"] * 1000), round(event["dur"] * 1000)
        assert lasts >= 0
        lanes[event["tid"]].append((begins, begins + lasts))
    for spans in lanes.values():
        spans.sort()
        assert all(one[1] <= other[0] for one, other in pairwise(spans))


def test_events_tell_what_happened(run: Run) -> None:
    trace = timeline(run, title="one step")
    copy, matmul, following = complete_events(trace)
    assert (copy["name"], copy["cat"], copy["ts"], copy["dur"]) == ("copy", "copy", 0.0, 1.5e6)
    assert copy["args"] == {
        "amounts": {"link": 10.0},
        "overhead_us": 5e5,
        "speed": 1.0,
        "limited_by": ["link"],
    }
    assert matmul["tid"] != copy["tid"] == following["tid"]
    assert following["args"]["memory_wait_us"] == 2e6
    labels = [event["args"].get("name") for event in trace["traceEvents"] if event["ph"] == "M"]
    assert [label for label in labels if label] == ["one step", "copy", "gpu"]
    counters = [(event["ts"], event["args"]["bytes"]) for event in trace["traceEvents"] if event["ph"] == "C"]
    assert counters == [(0.0, 2.0), (3.5e6, 2.0)]


def test_files_are_whole_and_the_same_each_time(run: Run, tmp_path: Path) -> None:
    plain, packed, again = tmp_path / "run.json", tmp_path / "run.json.gz", tmp_path / "again.json.gz"
    for path in (plain, packed, again):
        write_timeline(run, path)
    assert json.loads(plain.read_text()) == timeline(run)
    assert packed.read_bytes() == again.read_bytes()
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    write_timeline(run, plain, title="other")
    assert json.loads(plain.read_text())["traceEvents"][0]["args"]["name"] == "other"
    assert sorted(tmp_path.iterdir()) == sorted([plain, packed, again])


def test_a_file_that_cannot_be_written_is_one_sentence(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_timeline(run, tmp_path / "missing" / "run.json")
    folder = tmp_path / "folder.json"
    folder.mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_timeline(run, folder)
    assert list(tmp_path.iterdir()) == [folder]
