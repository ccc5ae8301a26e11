"""Replays of published serving runs as rows: latencies of real engines, by mean and percentile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from stowplan.errors import DoesNotFit, StowplanError
from stowplan.machines import load_machine
from stowplan.validate.case_rows import PARTS, hardware_of
from stowplan.validate.rows import Result, Row
from stowplan.validate.serving import compare
from stowplan.validate.serving_runs import Case, load_cases
from stowplan.validate.sources import Unit

_SYSTEMS: Mapping[str, str] = {"vllm": "vLLM serving", "vllm-v0": "vLLM serving", "distserve": "DistServe serving"}
_FIGURES = ("ttft", "e2e")


def units() -> Sequence[Unit]:
    """Every shipped serving run."""
    return [_unit(case) for case in load_cases()]


def result(name: str) -> Result:
    """Rows of the experiment of this name: every statistic of every stretch of it."""
    case = _by_id()[name]
    unit, requests = _unit(case), len(case.requests)
    settings = ", ".join(f"{key} {value}" for key, value in sorted(case.settings.items()))
    try:
        compared = list(compare(case))
    except StowplanError as error:
        return Result(refused=str(error), does_not_fit=isinstance(error, DoesNotFit))
    return Result(
        rows=tuple(
            Row(
                id=each.run,
                record=each.run,
                system=unit.system,
                kind=each.statistic,
                figure=each.measure,
                part=unit.part,
                hardware=unit.hardware,
                machine=case.machine,
                model=f"{case.model} {case.quant}",
                run=f"replay of {requests:,} requests; {settings}",
                question=f"{each.run} {each.statistic}",
                predicted=each.predicted,
                measured=each.measured,
                source=case.source,
            )
            for each in compared
        )
    )


@cache
def _by_id() -> dict[str, Case]:
    return {case.id: case for case in load_cases()}


def _unit(case: Case) -> Unit:
    return Unit(
        name=case.id,
        record=case.id,
        system=_SYSTEMS[str(case.settings.get("engine", "vllm"))],
        part=PARTS[case.part],
        kinds=tuple(_statistics(case)),
        hardware=hardware_of(load_machine(case.machine)),
        machine=case.machine,
        figures=_FIGURES,
    )


def _statistics(case: Case) -> list[str]:
    return sorted({name for run in case.runs for name in (*run.ttft_s, *run.e2e_s)})
