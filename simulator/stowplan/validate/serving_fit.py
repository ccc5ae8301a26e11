"""Fit of an engine's host constants to its ``fit`` runs: ``python -m stowplan.validate.serving_fit ENGINE NAME``.

Names are those of the engine's constants in seconds, one or more, such as ``host.request``.

Kernel times stay as they are. The named constants move together until both latencies come as near to the measured ones
as they can: request by request where they were logged, by mean and median where not. Runs that the clients overloaded
are left out, since there a small error of the rate is a large one of the queue.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, log
from statistics import mean, median

import numpy as np
from scipy.optimize import differential_evolution, minimize

from stowplan.figures import Figures
from stowplan.serving.answers import e2e_s, ttft_s
from stowplan.systems.base import Setup
from stowplan.validate.serving import compare, replay_case, setup_of
from stowplan.validate.serving_runs import Case, load_cases

_RANGE = (log(1e-7), log(5e-2))
"""Logarithms of the least and the largest constant in seconds."""
_STATISTICS = ("mean", "p50")


def fitted(engine: str, names: Sequence[str]) -> tuple[dict[str, float], float]:
    """The constants that fit best, in seconds by name, and the median of the relative errors that remain."""
    cases = [case for case in load_cases() if case.part == "fit" and case.settings["engine"] == engine]
    calm = [case for case in cases if not any(run.failed for run in case.runs)]
    setups = [setup_of(case) for case in calm]

    def errors(values: Mapping[str, float]) -> list[float]:
        return [error for case, setup in zip(calm, setups, strict=True) for error in _errors(case, setup, values)]

    def loss(logs: Sequence[float]) -> float:
        return mean(abs(each) for each in errors(dict(zip(names, map(exp, logs), strict=True))))

    best = differential_evolution(loss, [_RANGE] * len(names), seed=1, popsize=6, maxiter=20, tol=1e-3, polish=False)
    best = minimize(loss, best.x, method="Nelder-Mead", options={"xatol": 0.01, "fatol": 1e-4})
    values = dict(zip(names, (exp(each) for each in best.x), strict=True))
    return values, median(abs(each) for each in errors(values))


def _errors(case: Case, setup: Setup, values: Mapping[str, float]) -> list[float]:
    """Logarithms of predicted over measured latencies under given constants."""
    moved = Setup(setup.machine, setup.model, _with(setup.figures, values))
    if case.runs[0].logged is None:
        return [log(row.predicted / row.measured) for row in compare(case, moved) if row.statistic in _STATISTICS]
    done = replay_case(case, moved)
    predicted = np.column_stack([ttft_s(done), e2e_s(done)])
    return [float(each) for each in np.log(predicted / case.runs[0].logged).ravel()]


def _with(figures: Figures, values: Mapping[str, float]) -> Figures:
    moved = {name: replace(figures[name], value=value) for name, value in values.items()}
    return Figures({**figures, **moved})


if __name__ == "__main__":
    constants, remaining = fitted(sys.argv[1], [f"vllm.{name}" for name in sys.argv[2:]])
    for key, seconds in constants.items():
        print(f"{key:24} {seconds * 1e3:10.4f} ms")
    print(f"median error that remains {remaining:.1%}")
