"""Fresh measurements: no fit sees them, no other case shares a source with them, and they are reported apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from tests.validate import examples

from stowplan.validate import fit
from stowplan.validate.cases import Case, load_cases
from stowplan.validate.fitted import constants
from stowplan.validate.rows import Result
from stowplan.validate.validation import summarise

FRESH = load_cases(split="fresh")
UNIT = examples.UNIT
ROW = replace(examples.ROW, model="model", run="llama-bench")


def test_there_are_many_of_many_sources() -> None:
    assert len(FRESH) >= 200
    assert len({case.source for case in FRESH}) >= 25
    assert {case.family for case in FRESH} == {"llama.cpp", "ik_llama.cpp"}
    assert {case.kind for case in FRESH} == {"partial", "full-gpu", "cpu-only"}


def test_the_fit_does_not_see_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Case] = []

    def first_of(family: str | None = None, split: str | None = None) -> list[Case]:
        found = load_cases(family, split)
        seen.extend(found)
        return found[:1]

    monkeypatch.setattr(fit, "load_cases", first_of)
    fit.Problem()
    assert {case.family for case in seen} == set(fit.FAMILIES)
    assert {case.split for case in seen} == {"fit"}


def test_no_constant_rests_on_them() -> None:
    sources = {case.source for case in FRESH} | {case.record for case in FRESH}
    assert [each for each in constants() if any(source in each.where for source in sources)] == []


def test_they_are_of_sources_that_no_other_case_has() -> None:
    others = {case.source for split in ("fit", "test") for case in load_cases(split=split)}
    assert {case.source for case in FRESH} & others == set()


def test_they_are_reported_apart() -> None:
    fresh = replace(ROW, id="b", record="b", part="fresh", predicted=40.0, run="llama-bench -fa 1")
    units = [UNIT, replace(UNIT, name="b", record="b", part="fresh"), replace(UNIT, name="c", record="c", part="fresh")]
    results = [Result(rows=(ROW,)), Result(rows=(fresh,)), Result(refused="too large", does_not_fit=True)]
    found = summarise(units, results)
    told: Mapping[str, float] = {each.name: each.median_abs_error for each in found.held_out}
    assert told == {"llama.cpp partial decode": pytest.approx(0.1)}
    assert [(each.name, each.n, each.median_abs_error) for each in found.fresh] == [
        ("llama.cpp partial decode", 1, 3.0)
    ]
    assert found.fitted == ()
    assert (found.fits.ran, found.fits.refused) == (1, 0)
    assert [each.unit.name for each in found.refused] == ["c"]
    assert [each.errors.n for each in found.targets if each.errors is not None] == [1]
