from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from stowplan.errors import BadFile
from stowplan.planner.batching import batch_requests
from stowplan.planner.batching_costs import Limits, Requests, StaticCost
from stowplan.planner.batching_files import read_batches, read_requests, write_batches
from stowplan.planner.batching_run import run_batches

HEADER = "prompt_tokens,output_tokens\n"


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("\ufeffuser,output_tokens, prompt_tokens\na,3,7\n\nb,0, 9 \n", encoding="utf-8")
    found = read_requests(path)
    assert found.prompt.tolist() == [7, 9]
    assert found.output.tolist() == [3, 0]


def test_json_lines_and_gzip(tmp_path: Path) -> None:
    text = '{"prompt_tokens": 7, "output_tokens": 3, "user": "a"}\n\n{"output_tokens": 1, "prompt_tokens": 2}\n'
    for name in ("lengths.jsonl", "lengths.jsonl.gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        assert read_requests(path).prompt.tolist() == [7, 2]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", "must end in .csv or .jsonl"),
        ("a.csv", b"", "no column prompt_tokens or output_tokens"),
        ("a.csv", b"prompt_tokens,x\n1,2\n", r"line 1: no column output_tokens \(found: prompt_tokens, x\)"),
        ("a.csv", HEADER.encode(), "holds no requests"),
        ("a.csv", HEADER.encode() + b"1,2\n3\n", "line 3: 1 values for 2 columns"),
        ("a.csv", HEADER.encode() + b"0,2\n", "line 2: prompt_tokens is '0'; expected a whole number from 1"),
        ("a.csv", HEADER.encode() + b"1,-2\n", "line 2: output_tokens is '-2'"),
        ("a.csv", HEADER.encode() + b"1,nan\n", "line 2: output_tokens is 'nan'"),
        ("a.csv", HEADER.encode() + b"1,2.5\n", "line 2: output_tokens is '2.5'"),
        ("a.csv", HEADER.encode() + b"9999999999,2\n", "line 2: prompt_tokens is '9999999999'"),
        ("a.csv", HEADER.encode() + b"1" * 5000 + b",2\n", "line 2: prompt_tokens is '1111"),
        ("a.csv", HEADER.encode() + b'"1,2\n', "is not CSV"),
        ("a.csv", b"\xff\xfe\x00junk", "line 1: is not UTF-8"),
        ("a.csv.gz", b"no gzip at all", "cannot be read"),
        ("a.csv.gz", gzip.compress(b"x" * 9999, mtime=0)[:-9], "cannot be read"),
        ("a.jsonl", b"[1, 2]\n", "line 1: expected an object"),
        ("a.jsonl", b"{\n", "line 1: is not JSON"),
        ("a.jsonl", b'{"prompt_tokens": 1}\n', "line 1: output_tokens is 'None'"),
        ("a.jsonl", b'{"prompt_tokens": true, "output_tokens": 1}\n', "line 1: prompt_tokens is 'True'"),
        ("a.jsonl", b'{"prompt_tokens": NaN, "output_tokens": 1}\n', "line 1: prompt_tokens is 'nan'"),
        ("a.jsonl", b"1" * 2**24 + b"1", "line 1: longer than 16 MiB"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadFile, match=sentence) as raised:
        read_requests(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot be read"):
        read_requests(tmp_path / "none.csv")


def written(path: Path) -> list[list[int]]:
    requests = Requests.of([5, 9, 3, 12], [4, 2, 8, 1])
    cost = StaticCost((1.0, 1.2, 1.4, 1.6), pass_s=0.5, micro_batch=8)
    batching = batch_requests(requests, cost, Limits(24, 4))
    batches = [list(batch.requests) for batch in batching.batches]
    write_batches(path, batching, run_batches(batches, requests, cost))
    return batches


def test_batches_come_back_and_tell_when_they_run(tmp_path: Path) -> None:
    path = tmp_path / "batches.jsonl"
    batches = written(path)
    assert read_batches(path) == batches
    head, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert head["requests"] == 4
    assert rows[-1]["end_s"] == pytest.approx(head["makespan_s"])
    assert [row["start_s"] for row in rows[1:]] == [row["end_s"] for row in rows[:-1]]
    assert all(sum(b - a for _, a, b in pieces) <= 8 for row in rows for pieces in row["micro_batches"])
    again = tmp_path / "again.jsonl"
    written(again)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["again.jsonl", "batches.jsonl"]


def test_files_that_are_no_batches_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "batches.jsonl"
    written(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    for broken, sentence in (
        (lines[1:], "is no batches file"),
        (lines[:-1], "missing or in two batches"),
        ([*lines, lines[-1]], "missing or in two batches"),
        ([lines[0], '{"requests": [0.5]}'], "line 2: requests: expected a list"),
        ([], "is no batches file"),
    ):
        path.write_text("\n".join(broken), encoding="utf-8")
        with pytest.raises(BadFile, match=sentence):
            read_batches(path)
