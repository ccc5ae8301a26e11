"""Files of a sweep: one record per variant, the same numbers in CSV, JSON and Parquet."""

from __future__ import annotations

import csv
import io
import json
from functools import cache
from pathlib import Path

import pytest

from stowplan.whatif.axes import Axis
from stowplan.whatif.records import as_csv, document, records, write_records
from stowplan.whatif.scenario import Scenario
from stowplan.whatif.sweep import Sweep, run_sweep


@cache
def found() -> Sweep:
    base = Scenario(model="llama-3.1-8b", quant="q4_k_m", machine="rtx-3060-desktop-32")
    return run_sweep(base, [Axis("gpu.memory", ("6GiB", "12GiB")), Axis("context", ("100", "4096"))])


def test_one_record_per_variant_with_the_same_fields() -> None:
    rows = records(found())
    assert len(rows) == 4
    assert len({tuple(row) for row in rows}) == 1
    assert [row["gpu.memory"] for row in rows] == ["6GiB", "6GiB", "12GiB", "12GiB"]
    assert [row["error"] is None for row in rows] == [False, True, False, True]
    planned = rows[3]
    assert planned["decode_tokens_per_s_low"] < planned["decode_tokens_per_s"] < planned["decode_tokens_per_s_high"]
    assert planned["command"].startswith("llama-server")
    assert planned["front"] is True
    assert rows[1]["decode_ratio"] <= 1.0
    assert rows[0]["front"] is False and rows[0]["decode_ratio"] is None


def test_csv_and_json_hold_the_same(tmp_path: Path) -> None:
    write_records(tmp_path / "a.csv", found())
    write_records(tmp_path / "a.json", found())
    rows = records(found())
    read = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert read == list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [float(row["decode_tokens_per_s"]) for row in read if row["decode_tokens_per_s"]] == [
        row["decode_tokens_per_s"] for row in rows if row["error"] is None
    ]
    told = json.loads((tmp_path / "a.json").read_text())
    assert told == json.loads(json.dumps(document(found())))
    assert told["rows"] == json.loads(json.dumps(rows))
    assert told["schema_version"] == "stowplan.sweep/1"


def test_parquet_holds_the_same(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    import pyarrow.parquet

    write_records(tmp_path / "a.parquet", found())
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist() == records(found())
