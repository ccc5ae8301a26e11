"""Replays of published serving runs against what their clients measured: ``python -m stowplan.validate.serving``.

Every run goes through the same door as a user's: model, machine and settings make an engine, its requests are replayed,
and time to first token and end-to-end latency are compared by mean and percentile. Runs that an engine's constants were
fitted to are marked ``fit``; the medians are over the others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from stowplan.figures import figures_for
from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.serving.answers import e2e_s, ttft_s
from stowplan.serving.disaggregated import Handover
from stowplan.serving.from_vllm import replay_pair, replay_vllm, vllm_engine
from stowplan.serving.outcome import Replay, State
from stowplan.systems.base import Setup
from stowplan.systems.vllm_memory import memory_of
from stowplan.systems.vllm_settings import VllmSettings
from stowplan.validate.serving_runs import STATISTICS, Case, Part, load_cases, statistics


@dataclass(frozen=True, slots=True)
class Compared:
    """One statistic of one run.

    Attributes:
        run, part: name of the run, and whether it was fitted to.
        measure: ``ttft`` or ``e2e``; statistic: mean, p50, p90 or p99.
        predicted, measured: seconds.
    """

    run: str
    part: Part
    measure: str
    statistic: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative error, positive where the prediction is too slow."""
        return self.predicted / self.measured - 1.0


def setup_of(case: Case) -> Setup:
    """Model, machine and figures of a case."""
    machine = load_machine(case.machine)
    return Setup(machine, load_model(case.model, case.quant), figures_for(machine, "vllm", case.settings["engine"]))


def replay_case(case: Case, setup: Setup | None = None) -> Replay:
    """The case's requests through the engine, or the pair of engines, that its settings make.

    Args:
        case: what was sent to what.
        setup: figures other than the shipped ones.
    """
    setup = setup or setup_of(case)
    settings = VllmSettings.model_validate(dict(case.settings))
    engine = vllm_engine(setup, settings)
    if case.from_scheduler:
        engine = replace(engine, request_s=0.0)
    if case.prefill is None:
        return replay_vllm(case.requests, engine, case.patience_s)
    prompts = vllm_engine(setup, VllmSettings.model_validate(dict(case.prefill)))
    value = setup.figures.value
    copy = Handover(memory_of(setup, settings).token / value("peer"), value("vllm.host.handover"))
    return replay_pair(case.requests, prompts, engine, copy)


def compare(case: Case, setup: Setup | None = None) -> Iterator[Compared]:
    """Every statistic of every run of a case; of requests that were answered, where clients gave others up."""
    done = replay_case(case, setup)
    answered = done.state == State.FINISHED
    for run in case.runs:
        rows = answered[run.rows]
        columns = (("ttft", ttft_s(done), run.ttft_s), ("e2e", e2e_s(done), run.e2e_s))
        for measure, column, measured in columns:
            predicted = statistics(column[run.rows][rows])
            for statistic in STATISTICS:
                yield Compared(run.name, case.part, measure, statistic, predicted[statistic], measured[statistic])


def compare_all(names: Sequence[str] = ()) -> list[Compared]:
    """All cases, or those whose id contains one of the names."""
    cases = [case for case in load_cases() if not names or any(name in case.id for name in names)]
    return [row for case in cases for row in compare(case)]


def median_error(rows: Sequence[Compared], part: Part, measure: str, statistic: str) -> float:
    """Median absolute relative error over the runs of a part; not a number without runs."""
    errors = [abs(row.error) for row in rows if (row.part, row.measure, row.statistic) == (part, measure, statistic)]
    return median(errors) if errors else float("nan")


def report(rows: Sequence[Compared]) -> Iterator[str]:
    """Lines of the table: a run in each, then the medians."""
    yield f"{'run':36} part {'':5}{'mean':>22}{'p50':>22}{'p90':>22}{'p99':>22}"
    runs = list(dict.fromkeys((row.run, row.part) for row in rows))
    found = {(row.run, row.measure, row.statistic): row for row in rows}
    for run, part in runs:
        for measure in ("ttft", "e2e"):
            cells = [found[run, measure, statistic] for statistic in STATISTICS]
            values = "".join(f"{c.predicted:8.4g} {c.measured:7.4g} {c.error:+5.0%}" for c in cells)
            yield f"{run if measure == 'ttft' else '':36} {part:4} {measure:5}{values}"
    for part in ("fit", "test"):
        count = sum(1 for _, each in runs if each == part)
        for measure in ("ttft", "e2e"):
            medians = "".join(f"{median_error(rows, part, measure, statistic):22.1%}" for statistic in STATISTICS)
            yield f"{f'median of {count} {part} runs':36} {part:4} {measure:5}{medians}"


if __name__ == "__main__":
    for line in report(compare_all(sys.argv[1:])):
        print(line)
