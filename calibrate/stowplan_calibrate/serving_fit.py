"""What a serving benchmark says of an engine's steps: costs per step, per running sequence, per prompt token."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stowplan.errors import InputError
from stowplan_calibrate.engine_logs import ServingRun

_FEWEST_RUNS = 3
_FLOOR = 1e-9


@dataclass(frozen=True, slots=True)
class StepFit:
    """Parameters of a server's step time.

    Attributes:
        parameters: ``step`` (seconds of one decode step beside its sequences), ``sequence`` (more for every running
            one), ``request`` (seconds of a first token beside its prompt), ``prompt_token`` (more for every token).
        sds: relative standard errors; meanings: for people.
        median_error, worst_error: relative, over TPOT and TTFT of the runs of the fit.
    """

    parameters: Mapping[str, float]
    sds: Mapping[str, float]
    meanings: Mapping[str, str]
    median_error: float
    worst_error: float


_MEANINGS = {
    "step": "a decode step beside its sequences",
    "sequence": "every running sequence, per step",
    "request": "a first token beside its prompt",
    "prompt_token": "every token of the prompt",
}


def fit_steps(runs: Sequence[ServingRun]) -> StepFit:
    """Cost of steps and prompts from runs at several rates or concurrencies, by the median TPOT and TTFT.

    TPOT is ``step + sequence x running``. TTFT is ``request + prompt_token x prompt``; it is fitted where prompts of
    three lengths were run (otherwise all of it is `request`), to the runs that did not queue: those whose 99th
    percentile of the TTFT is at most four times the median.

    Raises:
        InputError: fewer than three runs, runs of several models, or runs that all had the same number of sequences.
    """
    from stowplan_calibrate.fitting.robust import fit  # scipy is slow to import

    if len(runs) < _FEWEST_RUNS:
        raise InputError(
            f"a server is fitted to at least {_FEWEST_RUNS} runs at several rates, but there are {len(runs)}"
        )
    models = sorted({run.model for run in runs})
    if len(models) > 1:
        raise InputError(f"the runs are of {len(models)} models ({', '.join(models)[:120]}); fit one at a time")
    running = [run.running for run in runs]
    if max(running) < 1.5 * min(running):
        raise InputError(
            f"all runs had about {statistics.median(running):.0f} sequences at a time; measure at several request rates"
        )
    tpot = [run.tpot for run in runs]
    start = {"step": min(tpot), "sequence": max(_FLOOR, (max(tpot) - min(tpot)) / max(running))}
    bounds = {"step": (_FLOOR, 10.0), "sequence": (_FLOOR / 1e3, 1.0)}

    def tpot_of(p: Mapping[str, float], x: Sequence[float]) -> list[float]:
        return [p["step"] + p["sequence"] * each for each in x]

    steps = fit(tpot_of, running, tpot, start, bounds)
    values, sds = dict(steps.parameters), _relative(steps.parameters, steps.standard_errors)
    left = [abs(p / t - 1) for p, t in zip(tpot_of(values, running), tpot, strict=True)]
    calm = [run for run in runs if run.ttft_p99 <= 4 * run.ttft]
    lengths = {round(run.prompt) for run in calm}
    if len(lengths) >= 3 and len(calm) >= 3:
        prompts, ttft = [run.prompt for run in calm], [run.ttft for run in calm]
        start = {"request": min(ttft) / 2, "prompt_token": min(ttft) / (2 * max(prompts))}
        bounds = {"request": (_FLOOR, 100.0), "prompt_token": (_FLOOR / 1e3, 1.0)}

        def ttft_of(p: Mapping[str, float], x: Sequence[float]) -> list[float]:
            return [p["request"] + p["prompt_token"] * each for each in x]

        first = fit(ttft_of, prompts, ttft, start, bounds)
        values, sds = {**values, **first.parameters}, sds | _relative(first.parameters, first.standard_errors)
        left += [abs(p / t - 1) for p, t in zip(ttft_of(first.parameters, prompts), ttft, strict=True)]
    elif calm:
        ttft = [run.ttft for run in calm]
        values["request"] = statistics.median(ttft)
        sds["request"] = statistics.pstdev(ttft) / values["request"]
        left += [abs(values["request"] / each - 1) for each in ttft]
    return StepFit(values, sds, {name: _MEANINGS[name] for name in values}, statistics.median(left), max(left))


def _relative(values: Mapping[str, float], errors: Mapping[str, float]) -> dict[str, float]:
    return {name: min(10.0, errors[name] / value) for name, value in values.items()}
