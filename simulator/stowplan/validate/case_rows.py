"""The shipped cases as rows: every case goes through the same door as a user's command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from stowplan.figures import Figures
from stowplan.machines.machine import Machine
from stowplan.plan import Interval, MemoryUse, Prediction
from stowplan.planner.predict import predict
from stowplan.systems import load_system
from stowplan.systems.base import Setup
from stowplan.validate.cases import Case, Measured, load_cases
from stowplan.validate.rows import Part, Result, Row
from stowplan.validate.run import attempt, machine_of, understood
from stowplan.validate.sources import Unit

PARTS: Mapping[str, Part] = {"fit": "fit", "test": "held-out", "fresh": "fresh"}


def units() -> Sequence[Unit]:
    """Every shipped case, in the order of the files."""
    return [
        Unit(
            name=case.id,
            record=case.record,
            system=case.family,
            part=PARTS[case.split],
            kinds=(case.kind,),
            hardware=hardware_of(machine_of(case)),
            machine=machine_text(case),
            figures=tuple(figure for figure, _ in measured_figures(case)),
        )
        for case in load_cases()
    ]


def result(name: str) -> Result:
    """Rows of the case of this id."""
    case = cases_by_id()[name]

    def rows() -> tuple[Row, ...]:
        meant = understood(case)
        prediction = predict(meant.setup, meant.plan, load_system(meant.system))
        return tuple(rows_of(case, prediction))

    return attempt(case, rows)


@cache
def cases_by_id() -> dict[str, Case]:
    """Every shipped case."""
    return {case.id: case for case in load_cases()}


def hardware_of(machine: Machine) -> str:
    """Names of the GPUs, each once, and of the processor: what decides the part that a record is in."""
    return " + ".join([*sorted({gpu.key for gpu in machine.gpus}), machine.cpu.key])


def machine_text(case: Case) -> str:
    """The machine as a user would give it."""
    return " ".join([case.machine, *(f"--set {text}" for text in case.overrides)])


def measured_figures(case: Case) -> Iterator[tuple[str, float]]:
    """Figures that a case reports: speeds in tokens/s of the whole batch, memory in bytes."""
    measured = case.measured
    decode, prefill = _speeds(case, measured)
    if decode:
        yield "decode", decode
    if prefill:
        yield "prefill", prefill
    if measured.throughput_tokens_per_s:
        yield "throughput", measured.throughput_tokens_per_s
    if measured.gpu_memory_bytes:
        yield "memory", measured.gpu_memory_bytes


def _speeds(case: Case, measured: Measured) -> tuple[float | None, float | None]:
    """Decode and prefill speed, from durations where those were reported."""
    decode, prefill = measured.decode_tokens_per_s, measured.prefill_tokens_per_s
    if decode is None and measured.decode_seconds and case.generate > 1:
        decode = case.batch * (case.generate - 1) / measured.decode_seconds
    if prefill is None and measured.prefill_seconds:
        prefill = case.batch * case.prompt / measured.prefill_seconds
    return decode, prefill


def question_of(case: Case, figure: str) -> str:
    """What a figure answers: the same machine, model and lengths. A batch is part of how a throughput was reached."""
    benchmark = "llama-bench" in shlex.split(case.command)
    start = case.depth if benchmark else case.depth + case.prompt
    asked = {
        "decode": f"decode of {case.batch} from {start}",
        "prefill": f"prefill of {case.batch} x {case.prompt} after {case.depth}",
        "throughput": f"{case.prompt} in, {case.generate} out",
        "memory": f"memory of {case.batch} x ({case.prompt} + {case.generate})",
    }[figure]
    return " | ".join((machine_text(case), case.state, f"{case.model} {case.quant}", asked))


def rows_of(case: Case, prediction: Prediction) -> Iterator[Row]:
    """Every measured figure of a case beside its prediction."""
    for figure, measured in measured_figures(case):
        predicted, interval, shares = _predicted(case, figure, prediction)
        if predicted:
            row = _row(case, figure, measured, predicted)
            low, high = (None, None) if interval is None else (interval.low, interval.high)
            ordered = tuple(sorted(shares.items(), key=lambda pair: (-pair[1], pair[0])))
            unseen = tuple(each.part for each in prediction.unseen)
            yield replace(row, low=low, high=high, shares=ordered, unseen=unseen)


def plain_rows(case: Case, change: Callable[[Setup, str], Figures] | None = None) -> tuple[Row, ...]:
    """Rows without intervals, twenty times as fast.

    Args:
        case: the case.
        change: figures to predict with instead of the setup's own; it gets the setup and the key of the system.

    Raises:
        StowplanError: there is no prediction.
    """
    meant = understood(case)
    setup = meant.setup if change is None else replace(meant.setup, figures=change(meant.setup, meant.system))
    evaluation = load_system(meant.system).evaluate(setup, meant.plan)
    workload = meant.plan.workload
    prompt, step = evaluation.prefill_s, evaluation.decode_s
    used = evaluation.memory.get("gpu0")
    values = {
        "decode": workload.batch / step,
        "prefill": workload.batch * workload.prompt / prompt if prompt else 0.0,
        "throughput": workload.batch * workload.generate / (prompt + workload.generate * step),
        "memory": 0.0 if used is None else _held(used),
    }
    measured = [(figure, value) for figure, value in measured_figures(case) if values[figure]]
    return tuple(_row(case, figure, value, values[figure]) for figure, value in measured)


def _row(case: Case, figure: str, measured: float, predicted: float) -> Row:
    """A row without an interval."""
    return Row(
        id=case.id,
        record=case.record,
        system=case.family,
        kind=case.kind,
        figure=figure,
        part=PARTS[case.split],
        hardware=hardware_of(machine_of(case)),
        machine=machine_text(case),
        model=f"{case.model} {case.quant}",
        run=case.command,
        question=question_of(case, figure),
        predicted=predicted,
        measured=measured,
        source=case.source,
        note=case.note,
        assumed=case.assumed,
    )


def _held(used: MemoryUse) -> float:
    """Bytes that an engine's allocator holds: what engines report leaves the driver's own context out."""
    return used.used - used.parts.get("runtime", 0.0)


def _predicted(case: Case, figure: str, prediction: Prediction) -> tuple[float, Interval | None, Mapping[str, float]]:
    """Value, interval and shares of the time by limiting resource of one figure."""
    if figure == "decode":
        return prediction.decode_tokens_per_s, prediction.interval["decode_tokens_per_s"], prediction.time_shares
    if figure == "prefill":
        return prediction.prefill_tokens_per_s, prediction.interval["prefill_tokens_per_s"], prediction.prefill_shares
    if figure == "throughput":
        return prediction.request_tokens_per_s, request_interval(case, prediction), _request_shares(case, prediction)
    return _held(prediction.memory_bytes["gpu0"]), None, {}


def request_interval(case: Case, prediction: Prediction) -> Interval:
    """Tokens/s over prompt and generation, both phases at the same end of their intervals."""
    first, token = prediction.interval["ttft_s"], prediction.interval["tpot_s"]
    tokens = case.batch * case.generate
    return Interval(
        low=tokens / (first.high + case.generate * token.high), high=tokens / (first.low + case.generate * token.low)
    )


def _request_shares(case: Case, prediction: Prediction) -> Mapping[str, float]:
    """Shares of a whole request by limiting resource."""
    decode = case.generate * prediction.tpot_s
    whole = decode + prediction.ttft_s
    names = {*prediction.time_shares, *prediction.prefill_shares}
    return {
        name: (
            prediction.time_shares.get(name, 0.0) * decode
            + prediction.prefill_shares.get(name, 0.0) * prediction.ttft_s
        )
        / whole
        for name in names
    }
