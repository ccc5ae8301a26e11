"""A sweep as rows of plain values, and as files: CSV, JSON and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stowplan.errors import InputError
from stowplan.plan import write_atomically
from stowplan.whatif.differences import difference
from stowplan.whatif.front import DEFAULT, front
from stowplan.whatif.outcome import FIGURES, Outcome
from stowplan.whatif.sweep import Sweep

ENDINGS = (".csv", ".json", ".parquet")

_BOUNDED = ("decode_tokens_per_s", "ttft_s")


def records(sweep: Sweep, wishes: Sequence[str] = DEFAULT) -> list[dict[str, Any]]:
    """One record per variant in order, every record with the same fields.

    Fields: a text per swept path; figures in SI with 80 % intervals (``_low``, ``_high``); bytes by tier; what limits;
    the ratio of decode to the unchanged scenario with its interval and whether that excludes 1 (``certain``); whether
    the variant is on the Pareto front; the command; why there is no plan (``error``).
    """
    best = set(front([row.outcome for row in sweep.rows], wishes))
    tiers = sorted({tier for row in sweep.rows for tier in (row.outcome.memory or {})})
    found = []
    for k, row in enumerate(sweep.rows):
        values = {axis.path: value for axis, value in zip(sweep.axes, row.values, strict=True)}
        found.append(
            values
            | _figures(row.outcome, tiers)
            | _against(sweep.base.outcome, row.outcome)
            | _end(row.outcome, k in best)
        )
    return found


def _figures(outcome: Outcome, tiers: Sequence[str]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name in FIGURES:
        record[name] = outcome.figure(name)
        if name in _BOUNDED:
            low, high = (outcome.interval or {}).get(name, (None, None))
            record |= {f"{name}_low": low, f"{name}_high": high}
    for tier in tiers:
        record[f"{tier}_bytes"] = (outcome.memory or {}).get(tier, (None, None))[0]
    return record | {"bottleneck": outcome.bottleneck or None, "price_usd": outcome.price_usd}


def _against(base: Outcome, outcome: Outcome) -> dict[str, Any]:
    found = difference(base, outcome, "decode_tokens_per_s")
    return {
        "decode_ratio": None if found is None else found.ratio,
        "decode_ratio_low": None if found is None else found.low,
        "decode_ratio_high": None if found is None else found.high,
        "certain": None if found is None else found.certain,
    }


def _end(outcome: Outcome, best: bool) -> dict[str, Any]:
    return {"front": best, "command": outcome.command, "error": outcome.error}


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV with a header; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def document(sweep: Sweep, wishes: Sequence[str] = DEFAULT) -> dict[str, Any]:
    """The sweep as one JSON document."""
    base = sweep.base
    return {
        "schema_version": "stowplan.sweep/1",
        "scenario": json.loads(base.scenario.text),
        "base": _figures(base.outcome, sorted(base.outcome.memory or {})) | {"error": base.outcome.error},
        "axes": [{"path": axis.path, "values": list(axis.values)} for axis in sweep.axes],
        "front": list(wishes),
        "rows": records(sweep, wishes),
    }


def write_records(path: Path, sweep: Sweep, wishes: Sequence[str] = DEFAULT) -> None:
    """Write a sweep in the format that the file's name says, in one step.

    Raises:
        InputError: Parquet without pyarrow. BadFile: it cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        write_atomically(path, as_csv(records(sweep, wishes)).encode())
    elif suffix == ".json":
        text = json.dumps(document(sweep, wishes), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(path, f"{text}\n".encode())
    else:
        write_atomically(path, _parquet(records(sweep, wishes)))


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("Parquet needs the package pyarrow: pip install 'stowplan[parquet]'") from error
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())
