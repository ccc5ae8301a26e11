"""Accuracy does not fall unnoticed: errors against those of the last accepted state.

Errors may grow by `SLACK` before a test fails; that they shrink is no failure. After a change that is meant, run
``STOWPLAN_UPDATE_GOLDEN=1 pytest tests/validate/test_validate_golden.py -m ''`` and read the difference.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from stowplan.errors import StowplanError
from stowplan.validate.case_rows import cases_by_id, plain_rows, units
from stowplan.validate.pairs import pairs_of, winners
from stowplan.validate.rows import Row
from stowplan.validate.statistics import errors
from stowplan.validate.validation import Filters, Validation, validate

GOLDEN = Path(__file__).parent / "golden"
PER_GROUP = 5
Summary = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Slack:
    """By how much a figure may get worse: absolutely, or as a share of what it was, whichever is more."""

    absolute: float
    relative: float = 0.0

    def allows(self, before: float, after: float) -> bool:
        return after <= before + max(self.absolute, self.relative * before)


SLACK: Mapping[str, Slack] = {
    "median_abs_error": Slack(0.02, 0.1),
    "p90_abs_error": Slack(0.05, 0.15),
    "interval_miss": Slack(0.08),
    "winners_missed": Slack(0.04),
    "refused": Slack(0.0),
}


def summary_of(rows: Sequence[Row], refused: int, group_of: Callable[[Row], str]) -> Summary:
    """Errors by part and group, and over all groups; every number is better when it is smaller.

    A group of a part that the rows do not have is left out.
    """
    found: Summary = {"all cases": {"refused": float(refused)}}
    for part in ("held-out", "fit"):
        mine = [row for row in rows if row.part == part]
        if not mine:
            continue
        groups: dict[str, list[Row]] = {"everything": mine}
        for row in sorted(mine, key=group_of):
            groups.setdefault(group_of(row), []).append(row)
        for name, group in groups.items():
            each = errors(name, group)
            entry = {
                "n": float(each.n),
                "median_abs_error": round(each.median_abs_error, 4),
                "p90_abs_error": round(each.p90_abs_error, 4),
            }
            if each.interval_coverage is not None:
                entry["interval_miss"] = round(1.0 - each.interval_coverage, 4)
            found[f"{part}: {name}"] = entry
        pairs = pairs_of(mine)
        if pairs:
            found[f"{part}: winners"] = {"winners_missed": round(1.0 - winners(part, pairs).share, 4)}
    return found


def compare(name: str, found: Summary) -> None:
    path = GOLDEN / name
    if os.environ.get("STOWPLAN_UPDATE_GOLDEN"):
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    accepted: Summary = json.loads(path.read_text(encoding="utf-8"))
    assert list(found) == list(accepted), "groups came or went: regenerate and read the difference"
    worse = [
        f"{group}: {figure} {before:g} -> {found[group][figure]:g}"
        for group, figures in accepted.items()
        for figure, before in figures.items()
        if figure in SLACK and not SLACK[figure].allows(before, found[group].get(figure, float("inf")))
    ]
    assert not worse, "\n".join(worse)


def chosen() -> list[str]:
    """Some cases of every family, fitted and held out, one point of a record, picked by a hash of their names."""
    groups: dict[tuple[str, tuple[str, ...], tuple[str, ...], str], dict[str, str]] = {}
    for unit in sorted(units(), key=lambda each: hashlib.sha256(each.name.encode()).hexdigest()):
        if unit.part == "fresh":
            continue
        key = (unit.system, unit.kinds, unit.figures, unit.part)
        groups.setdefault(key, {}).setdefault(unit.record, unit.name)
    return [name for key in sorted(groups) for name in list(groups[key].values())[:PER_GROUP]]


def test_a_sample_of_every_system_is_as_accurate_as_it_was() -> None:
    rows: list[Row] = []
    refused = 0
    for name in chosen():
        case = cases_by_id()[name]
        try:
            rows += plain_rows(case)
        except StowplanError:
            refused += not case.out_of_memory
    compare("sample.json", summary_of(rows, refused, lambda row: row.system))


@cache
def whole() -> Validation:
    return validate(Filters(), workers=min(4, os.cpu_count() or 1))


@pytest.mark.slow
def test_everything_is_as_accurate_as_it_was() -> None:
    """On hardware that no constant was set on: that is what is promised."""
    refused = sum(each.unit.part == "held-out" for each in whole().refused)
    compare("whole.json", summary_of(whole().part("held-out"), refused, lambda row: row.family))


@pytest.mark.slow
def test_there_are_enough_measurements_of_enough_systems() -> None:
    found = whole()
    assert len(found.rows) >= 500
    assert len({row.system for row in found.rows}) >= 20
    assert {row.part for row in found.rows} == {"held-out", "fit", "fresh"}


@pytest.mark.parametrize(
    ("slack", "before", "after", "allowed"),
    [
        (Slack(0.02, 0.1), 0.10, 0.119, True),
        (Slack(0.02, 0.1), 0.10, 0.121, False),
        (Slack(0.02, 0.1), 0.50, 0.549, True),
        (Slack(0.02, 0.1), 0.50, 0.551, False),
        (Slack(0.02, 0.1), 0.50, 0.10, True),
    ],
)
def test_slack_is_what_it_says(slack: Slack, before: float, after: float, allowed: bool) -> None:
    assert slack.allows(before, after) is allowed
