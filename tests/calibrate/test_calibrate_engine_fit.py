"""Planted constants of an engine come back from noisy benchmark rows; what a log does not say stays as it was."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from stowplan.errors import InputError
from stowplan.figures import Figures
from stowplan.machines.machine import Number, SourceKind
from stowplan_calibrate.engine_fit import Compared, Row, errors, fit_engine, with_formats

NAMES = {"engine.cpu.gemv.k": 4.0, "engine.cpu.gemm.k": 20.0, "engine.cpu.operator_gap": 3e-6, "engine.unused": 1.0}

PLANTED = {"engine.cpu.gemv.q4_k": 2.0, "engine.cpu.gemm.q4_k": 33.0, "engine.cpu.operator_gap": 8e-6}


def figures() -> Figures:
    return Figures({name: Number(value, SourceKind.ASSUMED, "shipped", 0.5) for name, value in NAMES.items()})


def predict_with(points: list[tuple[str, float, float]]) -> object:
    """Time of a point (phase, weights, operators): products at the format's rate and a gap per operator."""

    def predict(numbers: Figures, index: int) -> float:
        phase, weights, operators = points[index]
        table = "gemv" if phase == "decode" else "gemm"
        own = f"engine.cpu.{table}.q4_k"
        rate = numbers.value(own if own in numbers else f"engine.cpu.{table}.k")
        return weights / rate * 1e-9 + operators * numbers.value("engine.cpu.operator_gap")

    return predict


POINTS = [
    (phase, weights, 200.0 * files)
    for files, weights in ((1, 1e8), (2, 4e8), (3, 9e8))
    for phase in ("decode", "prefill")
    for _ in range(3)
]


def rows(noise: float, truth: Figures) -> list[Row]:
    rng, predict = random.Random(11), predict_with(POINTS)
    found = []
    for index, (phase, weights, _) in enumerate(POINTS):
        seconds = predict(truth, index) * math.exp(rng.gauss(0.0, noise))  # type: ignore[operator]
        found.append(Row(f"{phase} {index}", f"{weights:g}.gguf", phase, seconds, frozenset({"q4_k"})))
    return found


def truth() -> Figures:
    begin = with_formats("engine", figures(), [Row("", "", "decode", 1.0, frozenset({"q4_k"}))])
    return Figures({name: replace(begin[name], value=PLANTED.get(name, begin.value(name))) for name in begin})


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_planted_constants_come_back(noise: float) -> None:
    found = fit_engine("engine", figures(), rows(noise, truth()), predict_with(POINTS), "a log")  # type: ignore[arg-type]
    for name, value in PLANTED.items():
        constant = found.constants[name]
        assert constant.sd is not None
        assert abs(math.log(constant.value / value)) <= 0.01 + 3 * constant.sd
        assert constant.sd < 0.1 + 2 * noise
    assert found.constants["engine.cpu.gemv.q4_k"].kind is SourceKind.FITTED
    assert found.constants["engine.cpu.gemv.q4_k"].source == "a log"
    assert "engine.unused" not in found.constants
    assert errors(found.after)[0] < errors(found.before)[0]
    assert len(found.held_out) == len(POINTS)
    assert errors(found.held_out)[0] < 0.01 + 2 * noise
    assert found.constants["engine.model_sd.decode"].value < 0.02 + 2 * noise


def test_one_wild_row_is_set_aside() -> None:
    measured = rows(0.01, truth())
    measured[4] = replace(measured[4], seconds=20 * measured[4].seconds)
    found = fit_engine("engine", figures(), measured, predict_with(POINTS), "a log")  # type: ignore[arg-type]
    assert found.rejected == (measured[4].label,)
    assert found.constants["engine.cpu.gemv.q4_k"].value == pytest.approx(2.0, rel=0.06)


def test_a_log_that_says_nothing_of_a_constant_leaves_it() -> None:
    decode = [i for i, point in enumerate(POINTS) if point[0] == "decode"]
    predict = predict_with([POINTS[i] for i in decode])
    found = fit_engine("engine", figures(), [rows(0.0, truth())[i] for i in decode], predict, "a log")  # type: ignore[arg-type]
    assert not any("gemm" in name for name in found.constants)


def test_rows_of_one_file_are_not_checked_on_themselves() -> None:
    one = [replace(row, file="same.gguf") for row in rows(0.0, truth())]
    assert fit_engine("engine", figures(), one, predict_with(POINTS), "x").held_out == ()  # type: ignore[arg-type]


def test_too_few_rows_and_unmoved_ones_are_said() -> None:
    with pytest.raises(InputError, match="at least 3"):
        fit_engine("engine", figures(), rows(0.0, truth())[:2], predict_with(POINTS), "x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no constant of other"):
        fit_engine("other", figures(), rows(0.0, truth()), predict_with(POINTS), "x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no rows"):
        errors([])


def test_errors_are_quantiles() -> None:
    row = Row("", "", "decode", 1.0, frozenset())
    compared = [Compared(row, 1.0 + i / 100) for i in range(10)]
    assert errors(compared) == pytest.approx((0.045, 0.08, 0.09))
