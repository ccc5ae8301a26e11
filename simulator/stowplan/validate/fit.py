"""Engine constants fitted to the measurements that are set aside for it, and the errors on those that are not.

``python -m stowplan.validate.fit llama.cpp`` prints fitted values for ``hwprofiles/kernels/``; nothing is written. The
fit is a maximum a posteriori estimate: every constant is multiplied by exp(x), x has the constant's own uncertainty as
its prior, every record weighs the same however many points it has, and large residuals count linearly.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from stowplan.errors import DoesNotFit
from stowplan.figures import Figures
from stowplan.systems import load_system
from stowplan.systems.base import Setup
from stowplan.validate.cases import Case, load_cases
from stowplan.validate.run import understood

_POINTS_PER_RECORD = 3
_NOISE = 0.10  # relative scatter of one published measurement: repeats in the records differ by 5 to 15 %
_WIDEST_PRIOR = 0.7

CONSTANTS: Mapping[str, Sequence[str]] = {
    "llama.cpp": (
        "gpu.gemm_share",
        "gpu.gemm_float_per_unit_clock",
        "gpu.gemm_quantised_per_unit_clock",
        "gpu.gemv_per_unit_clock",
        "gpu.attention_share",
        "gpu.attention_per_unit_clock",
        "gpu.attention_bytes_per_unit_clock",
        "gpu.kernel_gap",
        "gpu.copy_latency",
        "cpu.thread_gap",
        "cpu.stream",
        "cpu.gemv.k",
        "cpu.gemv.iq",
        "cpu.gemv.block",
        "cpu.gemm.k",
        "cpu.gemm.iq",
        "cpu.gemm.block",
        "cpu.attention",
    ),
    "ik_llama.cpp": (
        "gpu.gemm_quantised_per_unit_clock",
        "gpu.attention_share",
        "gpu.attention_per_unit_clock",
        "gpu.attention_bytes_per_unit_clock",
        "gpu.copy_latency",
        "cpu.thread_gap",
        "cpu.stream",
        "cpu.sockets",
        "cpu.gemv.k",
        "cpu.gemv.iq",
        "cpu.gemv.block",
        "cpu.gemm.k",
        "cpu.gemm.iq",
        "cpu.gemm.block",
        "cpu.attention",
    ),
}
"""Constants that each engine's measurements can tell apart."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A constant after the fit: old and new value, and the relative deviation that the data leave it."""

    name: str
    before: float
    after: float
    sd: float


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


class _Problem:
    """Residuals of an engine's fit cases as a function of the constants' logarithmic multipliers."""

    def __init__(self, engine: str) -> None:
        cases = chosen([case for case in load_cases(engine, "fit") if case.kind != "disk"])
        points: dict[str, int] = {}
        for case in cases:
            points[case.record] = points.get(case.record, 0) + 1
        self.names = [f"llama.cpp.{name}" for name in CONSTANTS[engine]]
        self._system = load_system("llama.cpp")
        self._meant = []
        for case in cases:
            meant = understood(case)
            try:
                self._system.evaluate(meant.setup, meant.plan)
            except DoesNotFit:
                continue
            self._meant.append((case, meant, points[case.record] ** -0.5))
        figures = self._meant[0][1].setup.figures
        self.before = [figures.value(name) for name in self.names]
        self.priors = [min(figures.sd(name) * 2, _WIDEST_PRIOR) for name in self.names]

    def residuals(self, moves: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
        """Log ratios in units of the measurement noise, then the moves in units of their priors."""
        found: list[float] = []
        for case, meant, weight in self._meant:
            figures: Figures = meant.setup.figures
            for name, move in zip(self.names, moves, strict=True):
                figures = figures.scaled(name, float(np.exp(move)))
            evaluation = self._system.evaluate(Setup(meant.setup.machine, meant.setup.model, figures), meant.plan)
            if case.measured.decode_tokens_per_s:
                ratio = meant.plan.workload.batch / evaluation.decode_s / case.measured.decode_tokens_per_s
                found.append(weight * float(np.log(ratio)) / _NOISE)
            if case.measured.prefill_tokens_per_s and evaluation.prefill_s:
                tokens = meant.plan.workload.prompt * meant.plan.workload.batch
                ratio = tokens / evaluation.prefill_s / case.measured.prefill_tokens_per_s
                found.append(weight * float(np.log(ratio)) / (2 * _NOISE))
        return found + [float(move) / prior for move, prior in zip(moves, self.priors, strict=True)]


def fit(engine: str) -> list[Fitted]:
    """Constants of an engine fitted to its cases of the ``fit`` split."""
    problem = _Problem(engine)
    start = np.zeros(len(problem.names))
    solution = least_squares(problem.residuals, start, loss="soft_l1", diff_step=0.02, max_nfev=12, verbose=2)
    covariance = np.linalg.pinv(solution.jac.T @ solution.jac)
    return [
        Fitted(name, before, before * float(np.exp(move)), float(np.sqrt(covariance[i, i])))
        for i, (name, before, move) in enumerate(zip(problem.names, problem.before, solution.x, strict=True))
    ]


def main() -> None:
    """Print fitted constants."""
    for each in fit(sys.argv[1]):
        print(f"{each.name:50} {each.before:12.4g} -> {each.after:12.4g}   sd {each.sd:.2f}")


if __name__ == "__main__":
    main()
