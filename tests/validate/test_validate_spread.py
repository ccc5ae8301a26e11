"""What no fitted record had: the fit without a group is the fit that never saw it, and the printed file can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from stowplan.planner import unseen
from stowplan.validate import spread
from stowplan.validate.cases import Case, load_cases
from stowplan.validate.fit import Moves, Problem
from stowplan.validate.run import understood

_NOISE = 0.1  # of a decode speed, as the fit has it
_DECODE = [
    case
    for case in load_cases("llama.cpp", "fit")
    if case.measured.decode_tokens_per_s and not case.measured.prefill_tokens_per_s
][:12]


class Linear(Problem):
    """A problem whose residuals are linear in three constants, for which a first order is all there is."""

    def __init__(self) -> None:
        random = np.random.default_rng(5)
        meant = understood(_DECODE[0])
        self.meant = [(case, meant, 1.0) for case in _DECODE]
        self.names = [("", name) for name in "abc"]
        self.offsets, self.slopes = random.normal(0, 1, len(_DECODE)), random.normal(0, 1, (len(_DECODE), 3))

    def _of_case(self, index: int, moves: Moves) -> list[float]:
        return [float(self.offsets[index] + self.slopes[index] @ moves)]

    def fitted(self, rows: list[int]) -> Moves:
        """The fit to some rows, with a prior of 1."""
        slopes, offsets = np.vstack([self.slopes[rows], np.eye(3)]), np.append(self.offsets[rows], np.zeros(3))
        return np.asarray(lsq_linear(slopes, -offsets).x)


def test_the_fit_without_a_group_is_the_fit_that_never_saw_it() -> None:
    problem = Linear()
    places = {case.id: i % 4 for i, case in enumerate(_DECODE)}

    def group(case: Case, _: object) -> str:
        return str(places[case.id])

    everything = problem.fitted(list(range(len(_DECODE))))
    jacobian = np.vstack([problem.slopes, np.eye(3)])
    told = problem.left_out(everything, jacobian, group)
    for i, case in enumerate(_DECODE):
        without = problem.fitted([k for k, each in enumerate(_DECODE) if places[each.id] != places[case.id]])
        expected = _NOISE * problem._of_case(i, without)[0]
        assert told[case.id, "decode"] == pytest.approx(expected, abs=1e-6)


def test_groups_of_the_fit() -> None:
    found = spread.fitted_groups()
    assert {"llama", "qwen3moe", "deepseek2"} <= found["architecture"]
    assert {each.split()[0] for each in found["gpu"]} == {"apple", "nvidia"}


def test_the_printed_file_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = spread.fitted_groups()
    new = {
        (part, phase): spread.New(0.1 + i / 100, 7, 2, 20)
        for i, (part, phase) in enumerate((part, phase) for part in unseen.PARTS for phase in unseen.PHASES)
    }
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "printed.toml").write_text(spread.seen_file(fitted, new), encoding="utf-8")
    monkeypatch.setattr(unseen, "data_folder", lambda _: tmp_path)
    read = unseen.seen("printed")
    assert read is not None
    assert dict(read.groups) == fitted
    assert dict(read.spread) == {key: pytest.approx(each.spread) for key, each in new.items()}


def test_fresh_records_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Case] = []

    def some(family: str | None = None, split: str | None = None) -> list[Case]:
        found = load_cases(family, split)
        seen.extend(found)
        return found[:2]

    monkeypatch.setattr(spread, "load_cases", some)
    monkeypatch.setattr(spread, "Problem", Linear)
    monkeypatch.setattr(Linear, "jacobian", lambda self, _: np.vstack([self.slopes, np.eye(3)]), raising=False)
    assert set(spread.new_groups()) == {(part, phase) for part in unseen.PARTS for phase in unseen.PHASES}
    assert {case.split for case in seen} == {"fit", "test"}
