"""Engine constants fitted to the measurements that are set aside for it, and the errors on those that are not.

``python -m stowplan.validate.fit`` prints fitted values for ``hwprofiles/kernels/``; nothing is written. The
fit is a maximum a posteriori estimate: every constant is multiplied by exp(x), x has the constant's own uncertainty as
its prior, every record weighs the same however many points it has, and large residuals count linearly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from stowplan.errors import DoesNotFit
from stowplan.figures import Figures
from stowplan.planner.commands import Understood
from stowplan.systems import load_system
from stowplan.systems.base import Setup
from stowplan.validate.cases import Case, load_cases
from stowplan.validate.run import understood

_POINTS_PER_RECORD = 3
_NOISE = 0.10  # relative scatter of one published measurement: repeats in the records differ by 5 to 15 %
_WIDEST_PRIOR = 0.7

SHARED = (
    "gpu.gemm_share",
    "gpu.gemm_float_per_unit_clock",
    "gpu.gemm_quantised_per_unit_clock",
    "gpu.gemm_float_energy",
    "gpu.gemm_quantised_energy",
    "gpu.gemv_per_unit_clock",
    "gpu.attention_bytes_per_unit_clock",
    "gpu.kernel_gap",
    "gpu.copy_latency",
    "cpu.thread_gap",
    "cpu.dram_share",
    "cpu.stream",
    "cpu.sockets",
    "cpu.gemv.k",
    "cpu.gemv.iq",
)
"""Constants that llama.cpp and ik_llama.cpp have in common."""

OWN = (
    "gpu.attention_share",
    "gpu.attention_per_unit_clock",
    "cpu.gemm.k",
    "cpu.gemm.iq",
    "cpu.gemm.block",
    "cpu.attention",
)
"""Constants of kernels that each of the two has written for itself."""

FAMILIES = ("llama.cpp", "ik_llama.cpp")


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
    """Residuals of the fit cases as a function of the constants' logarithmic multipliers."""

    def __init__(self) -> None:
        self.names = [("", name) for name in SHARED] + [(engine, name) for engine in FAMILIES for name in OWN]
        self._system = load_system("llama.cpp")
        self._meant: list[tuple[Case, Understood, float]] = []
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
                self._meant.append((case, meant, points[case.record] ** -0.5))
                figures[engine] = meant.setup.figures
        own = [figures[engine or FAMILIES[0]] for engine, _ in self.names]
        self.before = [table.value(f"llama.cpp.{name}") for table, (_, name) in zip(own, self.names, strict=True)]
        self.priors = [
            min(2 * table.sd(f"llama.cpp.{name}"), _WIDEST_PRIOR)
            for table, (_, name) in zip(own, self.names, strict=True)
        ]

    def residuals(self, moves: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
        """Log ratios in units of the measurement noise, then the moves in units of their priors."""
        found: list[float] = []
        for case, meant, weight in self._meant:
            figures = meant.setup.figures
            for (engine, name), move in zip(self.names, moves, strict=True):
                if engine in ("", case.family):
                    figures = figures.scaled(f"llama.cpp.{name}", float(np.exp(move)))
            evaluation = self._system.evaluate(Setup(meant.setup.machine, meant.setup.model, figures), meant.plan)
            if case.measured.decode_tokens_per_s:
                ratio = meant.plan.workload.batch / evaluation.decode_s / case.measured.decode_tokens_per_s
                found.append(weight * float(np.log(ratio)) / _NOISE)
            if case.measured.prefill_tokens_per_s and evaluation.prefill_s:
                tokens = meant.plan.workload.prompt * meant.plan.workload.batch
                ratio = tokens / evaluation.prefill_s / case.measured.prefill_tokens_per_s
                found.append(weight * float(np.log(ratio)) / (2 * _NOISE))
        return found + [float(move) / prior for move, prior in zip(moves, self.priors, strict=True)]


def fit() -> list[Fitted]:
    """Constants of llama.cpp and ik_llama.cpp, fitted together to their cases of the ``fit`` split."""
    problem = _Problem()
    start = np.zeros(len(problem.names))
    solution = least_squares(
        problem.residuals, start, loss="soft_l1", diff_step=np.full(len(start), 0.02), max_nfev=10, verbose=2
    )
    jacobian = np.asarray(solution.jac, dtype=np.float64)
    covariance = np.linalg.pinv(jacobian.T @ jacobian)
    return [
        Fitted(f"{engine or 'both'}: {name}", before, before * float(np.exp(move)), float(np.sqrt(covariance[i, i])))
        for i, ((engine, name), before, move) in enumerate(zip(problem.names, problem.before, solution.x, strict=True))
    ]


def main() -> None:
    """Print fitted constants."""
    for each in fit():
        print(f"{each.name:50} {each.before:12.4g} -> {each.after:12.4g}   sd {each.sd:.2f}")


if __name__ == "__main__":
    main()
