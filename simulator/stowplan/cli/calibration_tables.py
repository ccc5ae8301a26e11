"""Calibrations as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stowplan.cli.calibration_document import profile_document
from stowplan.cli.tables import Line, blocks, labelled, paragraph, table
from stowplan.units import format_rate, format_seconds
from stowplan_calibrate.engine_fit import Compared, EngineFit, errors
from stowplan_calibrate.profile_pairs import Difference

if TYPE_CHECKING:
    from stowplan_calibrate.results import Record, Results

_STEMS = {"bytes": "B/s", "flops": "FLOP/s", "operations": "/s"}


def results_lines(results: Results) -> list[Line]:
    """Every point: its rate, how well it is known, how noisy it was."""
    rows = [
        [
            record.name,
            record.label,
            _rate(record),
            _percent(record.samples.half_width),
            _percent(record.samples.noise),
            f"{len(record.samples.seconds)}{' throttled' if record.samples.throttled else ''}",
        ]
        for record in results.records
    ]
    left_out = [line for each in results.skipped for line in labelled("left out", f"{each.name}: {each.reason}")]
    header = ["measurement", "at", "rate", "+-", "noise", "samples"]
    return blocks(table(header, rows, numbers=(2, 3, 4)), left_out)


def profile_lines(document: Mapping[str, Any]) -> list[Line]:
    """Every number of a profile with its source, the measured ones first."""
    rows = [
        [row.path, str(row.value), row.source, _percent(row.sd), row.where] for row in profile_document(document).root
    ]
    kinds = [row[2] for row in rows]
    told = f"{kinds.count('measured')} of {len(kinds)} numbers measured, {kinds.count('fitted')} fitted"
    header = ["number", "value", "known by", "+-", "how"]
    return blocks(paragraph(f"{document['name']}", "answer"), table(header, rows, numbers=(1, 3)), paragraph(told))


def difference_lines(found: Sequence[Difference]) -> list[Line]:
    """Numbers that differ."""
    if not found:
        return blocks(paragraph("Both profiles hold the same numbers."))
    rows = [
        [
            each.path,
            _value(each.first),
            _value(each.second),
            "-" if each.ratio is None else f"{each.ratio:.3g}",
            "" if each.ratio is None else "differ" if each.beyond_noise else "within their spread",
        ]
        for each in found
    ]
    return blocks(table(["number", "first", "second", "ratio", ""], rows, numbers=(1, 2, 3)))


def engine_lines(fit: EngineFit, output: str | None) -> list[Line]:
    """What a fit changed, and what it is worth."""
    rows = [[name, f"{number.value:.4g}", _percent(number.sd)] for name, number in sorted(fit.constants.items())]
    said = [
        *labelled("before", _errors(fit.before)),
        *labelled("after", _errors(fit.after)),
        *(labelled("left out", f"{_errors(fit.held_out)}, by fits without the file", "answer") if fit.held_out else []),
        *(line for label in fit.rejected for line in labelled("set aside", label, "faint")),
    ]
    where = f"written to {output}" if output else "add -o FILE.toml to keep them"
    return blocks(said, table(["constant", "value", "+-"], rows, numbers=(1, 2)), paragraph(where, "faint"))


def serving_lines(found: Mapping[str, Any]) -> list[Line]:
    """Parameters of a server's step time."""
    rows = [
        [name, format_seconds(entry["value"]), _percent(entry["sd"]), entry["meaning"]]
        for name, entry in found["parameters"].items()
    ]
    sizes = f"median {100 * found['median_error']:.1f} %, worst {100 * found['worst_error']:.1f} %"
    error = f"{sizes} over {found['runs']} runs"
    head = paragraph(f"{found['engine']}, {found['model']}", "answer")
    return blocks(head, table(["parameter", "value", "+-", "meaning"], rows, numbers=(1, 2)), labelled("error", error))


def _errors(compared: Sequence[Compared]) -> str:
    median, p90, worst = errors(compared)
    return f"median {100 * median:.1f} %, p90 {100 * p90:.1f} %, worst {100 * worst:.1f} % over {len(compared)} rows"


def _rate(record: Record) -> str:
    for amount, stem in _STEMS.items():
        if amount in record.amounts:
            return format_rate(record.rate(amount), stem)
    return format_seconds(record.samples.figure)


def _value(entry: Mapping[str, Any] | None) -> str:
    return "-" if entry is None else str(entry["value"])


def _percent(value: float | None) -> str:
    return "-" if value is None or value == float("inf") else f"{100 * value:.1f} %"
