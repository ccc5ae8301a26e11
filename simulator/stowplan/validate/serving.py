"""Replays of published serving runs against what their clients measured: ``python -m stowplan.validate.serving``.

Every run goes through the same door as a user's: model, machine and settings make an engine, its requests are replayed,
and time to first token and end-to-end latency are compared by mean and percentile. Runs that an engine's constants were
fitted to are marked ``fit``; the medians are over the others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
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
        run, group, part: name of the run, what it belongs to, and whether it was fitted to.
        measure: ``ttft`` or ``e2e`` in seconds, or ``gave up`` in requests.
        statistic: mean, p50, p90 or p99 of a latency; ``count``.
        predicted, measured: the two values.
    """

    run: str
    group: str
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
    """Every statistic of both latencies in every run of a case; of requests that were answered, where some were not."""
    yield from _latencies(case, replay_case(case, setup))


def _latencies(case: Case, done: Replay) -> Iterator[Compared]:
    answered = done.state == State.FINISHED
    for run in case.runs:
        columns = (("ttft", ttft_s(done), run.ttft_s), ("e2e", e2e_s(done), run.e2e_s))
        for measure, column, measured in columns:
            predicted = statistics(column[run.rows][answered[run.rows]])
            for name in STATISTICS:
                yield Compared(run.name, case.group, case.part, measure, name, predicted[name], measured[name])


def _given_up(case: Case, done: Replay) -> Iterator[Compared]:
    """Requests that were not answered, in runs where clients gave some up."""
    for run in case.runs:
        if run.failed:
            gone = float((done.state[run.rows] != State.FINISHED).sum())
            yield Compared(run.name, case.group, case.part, "gave up", "count", gone, float(run.failed))


def compare_all(names: Sequence[str] = ()) -> list[Compared]:
    """Latencies and requests given up of all cases, or of those whose id contains one of the names."""
    rows: list[Compared] = []
    for case in load_cases():
        if not names or any(name in case.id for name in names):
            done = replay_case(case)
            rows += [*_latencies(case, done), *_given_up(case, done)]
    return rows


def median_error(rows: Iterable[Compared], measure: str, statistic: str) -> float:
    """Median absolute relative error of one statistic over the runs; not a number without runs."""
    errors = [abs(row.error) for row in rows if (row.measure, row.statistic) == (measure, statistic)]
    return median(errors) if errors else float("nan")


def report(rows: Sequence[Compared]) -> Iterator[str]:
    """Lines of the table: a run in each (predicted, measured, error), then the medians."""
    yield f"{'run':36} part {'':5}{'mean':>22}{'p50':>22}{'p90':>22}{'p99':>22}"
    found = {(row.run, row.measure, row.statistic): row for row in rows}
    for run, part in dict.fromkeys((row.run, row.part) for row in rows):
        for measure in ("ttft", "e2e"):
            cells = [found[run, measure, statistic] for statistic in STATISTICS]
            values = "".join(f"{c.predicted:8.4g} {c.measured:7.4g} {c.error:+5.0%}" for c in cells)
            yield f"{run if measure == 'ttft' else '':36} {part:4} {measure:5}{values}"
        gone = found.get((run, "gave up", "count"))
        if gone is not None:
            yield f"{'':36} {part:4} gave up: {gone.predicted:,.0f} requests, measured {gone.measured:,.0f}"
    yield ""
    groups = [*dict.fromkeys((row.part, row.group) for row in rows), ("fit", "all"), ("test", "all")]
    for part, group in groups:
        chosen = [row for row in rows if row.part == part and group in ("all", row.group)]
        runs = len({row.run for row in chosen})
        for measure in ("ttft", "e2e") if chosen else ():
            medians = "".join(f"{median_error(chosen, measure, statistic):22.1%}" for statistic in STATISTICS)
            yield f"{f'{group}, median of {runs} runs':36} {part:4} {measure:5}{medians}"


if __name__ == "__main__":
    for line in report(compare_all(sys.argv[1:])):
        print(line)
