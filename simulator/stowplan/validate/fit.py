"""Engine constants fitted to the measurements that are set aside for it, and the errors on those that are not.

``python -m stowplan.validate.fit`` prints fitted values for ``hwprofiles/kernels/``; nothing is written. The
fit is a maximum a posteriori estimate: every constant is multiplied by exp(x), x has the constant's own uncertainty as
its prior, every record weighs the same however many points it has, and large residuals count linearly. Once the
constants are in place, ``python -m stowplan.validate.spread`` tells what they were fitted on and what that leaves open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from stowplan.errors import DoesNotFit
from stowplan.figures import Figures
from stowplan.machines.machine import Number
from stowplan.planner.commands import Understood
from stowplan.systems import load_system
from stowplan.validate.cases import Case, load_cases
from stowplan.validate.run import understood

_POINTS_PER_RECORD = 3
_NOISE = 0.10  # relative scatter of one published measurement: repeats in the records differ by 5 to 15 %
_WIDEST_PRIOR = 0.7
_STEP = 0.02
_MOST_STEPS = 8

Moves = np.ndarray[Any, np.dtype[np.float64]]

SHARED = (
    "gpu.gemm_share",
    "gpu.gemm_quantised_share",
    "gpu.gemm_float_per_unit_clock",
    "gpu.gemm_quantised_per_unit_clock",
    "gpu.gemm_float_energy",
    "gpu.gemm_quantised_energy",
    "gpu.gemm_in_turn",
    "gpu.gemm_iqk",
    "gpu.gemm_tile",
    "gpu.gemv_per_unit_clock",
    "gpu.apple.gemv_per_unit_clock",
    "gpu.attention_share",
    "gpu.attention_unfused",
    "gpu.attention_bytes_per_unit_clock",
    "gpu.attention_passes",
    "gpu.attention_vector_per_unit_clock",
    "gpu.attention_rows_per_unit_clock",
    "gpu.attention_wide_keys",
    "gpu.kernel_gap",
    "gpu.staged_copy.wide-intel",
    "gpu.copy_latency",
    "gpu.expert_gap",
    "pipelining",
    "expert_popularity",
    "cpu.thread_gap",
    "cpu.dram_share",
    "cpu.element_bytes",
    "cpu.stall",
    "cpu.remote",
)
"""Constants that llama.cpp and ik_llama.cpp have in common."""

OWN = (
    "gpu.gemm_routed",
    "gpu.attention_per_unit_clock",
    "cpu.gemm_tile",
    "cpu.gemv.block",
    "cpu.gemv.k",
    "cpu.gemv.iq",
    "cpu.gemm.block",
    "cpu.gemm.k",
    "cpu.gemm.iq",
    "cpu.isa_gemm.wide",
    "cpu.attention",
    "cpu.attention_row",
    "cpu.attention_unfused",
)
"""Constants of kernels that each of the two has written for itself, as far as an engine has them."""

FAMILIES = ("llama.cpp", "ik_llama.cpp")


@dataclass(frozen=True, slots=True)
class Fitted:
    """A constant after the fit: old and new value, and the relative deviation that the data leave it."""

    name: str
    before: float
    after: float
    sd: float


@dataclass(frozen=True, slots=True)
class Spread:
    """How far predictions are off on machines that the fit leaves out.

    Attributes:
        situation: engine, kind of placement and figure.
        figures: how many there are.
        within: 80 % of the logarithms of predicted over measured are within plus and minus this.
    """

    situation: str
    figures: int
    within: float


def chosen(cases: Sequence[Case]) -> list[Case]:
    """At most three points of every record: the first, the middle and the last."""
    records: dict[str, list[Case]] = {}
    for case in cases:
        records.setdefault(case.record, []).append(case)
    picked: list[Case] = []
    for points in records.values():
        indices = sorted({round(i * (len(points) - 1) / (_POINTS_PER_RECORD - 1)) for i in range(_POINTS_PER_RECORD)})
        picked += [points[index] for index in indices]
    return picked


class Problem:
    """Residuals of the fit cases as a function of the constants' logarithmic multipliers."""

    def __init__(self) -> None:
        self._system = load_system("llama.cpp")
        self.meant: list[tuple[Case, Understood, float]] = []
        figures: dict[str, Figures] = {}
        for engine in FAMILIES:
            cases = chosen([case for case in load_cases(engine, "fit") if not case.note.startswith("Odd:")])
            points = Counter(case.record for case in cases)
            for case in cases:
                meant = understood(case)
                try:
                    self._system.evaluate(meant.setup, meant.plan)
                except DoesNotFit:
                    continue
                self.meant.append((case, meant, points[case.record] ** -0.5))
                figures[engine] = meant.setup.figures
        owned = [(engine, name) for engine in FAMILIES for name in OWN if f"llama.cpp.{name}" in figures[engine]]
        self.names = [("", name) for name in SHARED] + owned
        own = [figures[engine or FAMILIES[0]] for engine, _ in self.names]
        self.before = [table.value(f"llama.cpp.{name}") for table, (_, name) in zip(own, self.names, strict=True)]
        self.priors = [
            min(2 * table.sd(f"llama.cpp.{name}"), _WIDEST_PRIOR)
            for table, (_, name) in zip(own, self.names, strict=True)
        ]

    def residuals(self, moves: Moves) -> list[float]:
        """Log ratios in units of the measurement noise, then the moves in units of their priors."""
        found = [value for k in range(len(self.meant)) for value in self._of_case(k, moves)]
        return found + [float(move) / prior for move, prior in zip(moves, self.priors, strict=True)]

    def jacobian(self, moves: Moves) -> Moves:
        """Derivatives of the residuals; only cases that a constant can move are evaluated again for it."""
        cases = range(len(self.meant))
        base = [self._of_case(k, moves) for k in cases]
        starts = np.cumsum([0, *(len(values) for values in base)])
        matrix = np.zeros((int(starts[-1]) + len(self.names), len(self.names)))
        for column, (engine, name) in enumerate(self.names):
            moved = moves.copy()
            moved[column] += _STEP
            for k in cases:
                if _concerns(engine, name, *self.meant[k][:2]):
                    change = np.subtract(self._of_case(k, moved), base[k]) / _STEP
                    matrix[starts[k] : starts[k + 1], column] = change
            matrix[int(starts[-1]) + column, column] = 1.0 / self.priors[column]
        return matrix

    def left_out(
        self, moves: Moves, jacobian: Moves, group_of: Callable[[Case, Understood], str]
    ) -> dict[tuple[str, str], float]:
        """Log of predicted over measured by case and figure, each under the fit without its group, to first order."""
        names: list[tuple[str, str]] = []
        groups: dict[str, list[int]] = {}
        found: list[float] = []
        scales: list[float] = []
        for k, (case, meant, weight) in enumerate(self.meant):
            figures = [name for name, speed in _speeds(case) if speed]
            for figure, value in zip(figures, self._of_case(k, moves), strict=True):
                groups.setdefault(group_of(case, meant), []).append(len(found))
                names.append((case.id, figure))
                found.append(value)
                scales.append(weight / (_NOISE if figure == "decode" else 2 * _NOISE))
        residuals, whole = np.array(found), jacobian.T @ jacobian
        told: dict[tuple[str, str], float] = {}
        for mine in groups.values():
            own = jacobian[mine]
            rest = whole - own.T @ own
            without = residuals[mine] + own @ np.linalg.solve(rest, own.T @ residuals[mine])
            told |= {names[i]: float(value) / scales[i] for i, value in zip(mine, without, strict=True)}
        return told

    def spreads(self, moves: Moves, jacobian: Moves) -> list[Spread]:
        """Residuals of every machine under the fit without it, by situation."""
        cases = {case.id: case for case, _, _ in self.meant}
        sizes: dict[str, list[float]] = {}
        for (name, figure), value in self.left_out(moves, jacobian, lambda _, meant: meant.setup.machine.spec).items():
            case = cases[name]
            sizes.setdefault(f"{case.family} {case.kind} {figure}", []).append(abs(value))
        return [Spread(name, len(each), float(np.quantile(each, 0.8))) for name, each in sorted(sizes.items())]

    def _of_case(self, index: int, moves: Moves) -> list[float]:
        case, meant, weight = self.meant[index]
        known = meant.setup.figures
        moved: dict[str, Number] = {}
        for (engine, name), move in zip(self.names, moves, strict=True):
            if engine in ("", case.family):
                full = f"llama.cpp.{name}"
                moved[full] = replace(known[full], value=known.value(full) * float(np.exp(move)))
        setup = replace(meant.setup, figures=Figures({**known, **moved}))
        evaluation = self._system.evaluate(setup, meant.plan)
        found: list[float] = []
        if case.measured.decode_tokens_per_s:
            ratio = meant.plan.workload.batch / evaluation.decode_s / case.measured.decode_tokens_per_s
            found.append(weight * float(np.log(ratio)) / _NOISE)
        if case.measured.prefill_tokens_per_s and evaluation.prefill_s:
            tokens = meant.plan.workload.prompt * meant.plan.workload.batch
            ratio = tokens / evaluation.prefill_s / case.measured.prefill_tokens_per_s
            found.append(weight * float(np.log(ratio)) / (2 * _NOISE))
        return found


def _speeds(case: Case) -> tuple[tuple[str, float | None], ...]:
    return ("decode", case.measured.decode_tokens_per_s), ("prefill", case.measured.prefill_tokens_per_s)


def _concerns(engine: str, name: str, case: Case, meant: Understood) -> bool:
    """Whether a constant can move the times of a case."""
    machine = meant.setup.machine
    if engine not in ("", case.family):
        return False
    if name.startswith("cpu."):
        return case.kind != "full-gpu"
    if name.startswith("gpu.apple"):
        return any(gpu.vendor == "apple" for gpu in machine.gpus)
    return len(machine.gpus) > 1 if name == "pipelining" else True


def fit() -> tuple[list[Fitted], list[Spread]]:
    """Constants of llama.cpp and ik_llama.cpp, fitted together to their cases of the ``fit`` split, and spreads."""
    problem = Problem()
    start = np.zeros(len(problem.names))
    solution = least_squares(
        problem.residuals, start, problem.jacobian, loss="soft_l1", max_nfev=_MOST_STEPS, verbose=2
    )
    jacobian = np.asarray(problem.jacobian(solution.x), dtype=np.float64)
    covariance = np.linalg.pinv(jacobian.T @ jacobian)
    fitted = [
        Fitted(f"{engine or 'both'}: {name}", before, before * float(np.exp(move)), float(np.sqrt(covariance[i, i])))
        for i, ((engine, name), before, move) in enumerate(zip(problem.names, problem.before, solution.x, strict=True))
    ]
    return fitted, problem.spreads(solution.x, jacobian)


def main() -> None:
    """Print fitted constants, then how far predictions are off on machines left out of the fit."""
    fitted, spreads = fit()
    for each in fitted:
        print(f"{each.name:50} {each.before:12.4g} -> {each.after:12.4g}   sd {each.sd:.2f}")
    for spread in spreads:
        print(f"{spread.situation:44} {spread.figures:4} figures, 80 % within {spread.within:.2f} of the logarithm")


if __name__ == "__main__":
    main()
