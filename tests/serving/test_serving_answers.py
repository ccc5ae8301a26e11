"""Latencies, objectives, load over time and the file of requests."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from stowplan.errors import BadFile, InputError
from stowplan.serving import answers
from stowplan.serving.answers import (
    Objective,
    load_over_time,
    parse_objective,
    summarise,
    tpot_s,
    ttft_s,
    write_requests_csv,
)
from stowplan.serving.limits import Limits
from stowplan.serving.outcome import Replay
from stowplan.serving.replay import replay
from stowplan.serving.requests import Requests
from stowplan.serving.step_time import DecodePiece, StepTime

STEP_TIME = StepTime(((1, 0.5), (2, 0.5)), ((0, 0.0), (1, 0.0)), (DecodePiece(0.0, 0.0, 0.0),), ())
"""Every step takes half a second."""


def _replayed() -> Replay:
    requests = Requests.of([1.0, 1.25, 9.0, 9.0], [10, 10, 10, 5000], [3, 2, 1, 1])
    return replay(requests, STEP_TIME, Limits(kv_blocks=100))


def test_latencies_by_hand() -> None:
    found = _replayed()
    # prefill of 0 ends at 1.5, of 1 at 2.0; both decode until 2.5, 0 alone until 3.0
    assert found.first_token_s[:3].tolist() == [1.5, 2.0, 9.5]
    assert found.finished_s[:3].tolist() == [3.0, 2.5, 9.5]
    assert ttft_s(found)[:3].tolist() == [0.5, 0.75, 0.5]
    assert tpot_s(found)[:2].tolist() == [0.75, 0.5]
    assert np.isnan(tpot_s(found)[2:]).all()


def test_summary_by_hand() -> None:
    found = summarise(_replayed(), Objective(ttft_s=0.6))
    assert found.counts == {"finished": 3, "too_long": 1, "refused": 0, "timed_out": 0}
    assert found.span_s == 8.5
    assert found.requests_per_s == pytest.approx(3 / 8.5)
    assert found.output_tokens_per_s == pytest.approx(6 / 8.5)
    assert found.attainment == 0.5
    assert found.goodput_per_s == pytest.approx(2 / 8.5)
    assert found.ttft is not None and found.tpot is not None and found.e2e is not None
    assert (found.ttft.count, found.ttft.largest, found.ttft.percentiles[50]) == (3, 0.75, 0.5)
    assert found.tpot.count == 2
    assert found.e2e.mean == pytest.approx((2.0 + 1.25 + 0.5) / 3)


def test_an_empty_replay_has_no_latencies() -> None:
    empty = replay(Requests.of([], [], []), STEP_TIME, Limits(kv_blocks=10))
    found = summarise(empty, Objective(ttft_s=1.0))
    assert found.ttft is None and found.requests_per_s == 0.0 and found.attainment is None
    assert len(load_over_time(empty).time_s) == 0


def test_load_over_time_counts_everybody_once() -> None:
    found = _replayed()
    load = load_over_time(found, samples=35)  # every quarter of a second from 1.0 to 9.5
    at = dict(zip(load.time_s.tolist(), zip(load.waiting.tolist(), load.running.tolist(), strict=True), strict=True))
    assert at[1.0] == (0, 1) and at[1.25] == (1, 1) and at[2.0] == (0, 2) and at[2.5] == (0, 1)
    assert at[5.0] == (0, 0) and at[9.5] == (0, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ttft=1s,tpot=50ms", Objective(1.0, 0.05)),
        (" tpot = 20 ms ", Objective(None, 0.02)),
        ("e2e=1min", Objective(None, None, 60.0)),
    ],
)
def test_objectives_are_read(text: str, expected: Objective) -> None:
    assert parse_objective(text) == expected


@pytest.mark.parametrize("text", ["", "ttft", "ttft=1s,ttft=2s", "latency=1s", "ttft=1", "ttft=1GB", "ttft=-1s", ","])
def test_bad_objectives_get_a_sentence(text: str) -> None:
    with pytest.raises(InputError, match="objective"):
        parse_objective(text)


def test_the_file_has_a_row_per_request(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    write_requests_csv(_replayed(), path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished", "finished", "finished", "too_long"]
    assert float(rows[0]["ttft_s"]) == 0.5 and rows[2]["tpot_s"] == "" and rows[3]["finished_s"] == ""
    assert rows[1]["prompt_tokens"] == "10" and math.isclose(float(rows[1]["e2e_s"]), 1.25)
    assert [entry.name for entry in tmp_path.iterdir()] == ["requests.csv"]


def test_an_interrupted_file_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(answers, "_write_rows", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_requests_csv(_replayed(), path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["requests.csv"]


def test_a_folder_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot be written"):
        write_requests_csv(_replayed(), tmp_path / "absent" / "requests.csv")
