"""Published measurements through the same door as a user's command: predicted, measured, ratio."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from stowplan.errors import DoesNotFit, StowplanError
from stowplan.machines import Machine, load_machine
from stowplan.models import Model, load_model
from stowplan.plan import Interval, Prediction, Workload
from stowplan.planner.commands import Hints, Understood, understand
from stowplan.planner.predict import predict
from stowplan.systems import load_system
from stowplan.validate.cases import Case
from stowplan.validate.rows import Result, Row


@dataclass(frozen=True, slots=True)
class Outcome:
    """One measured figure beside its prediction.

    Attributes:
        case: the case.
        figure: ``decode``, ``prefill`` or ``throughput``, in tokens/s over the whole batch.
        predicted, measured: tokens/s.
        interval: predicted 80 % interval, where there is one.
        bottleneck: resource that limits the predicted phase.
    """

    case: Case
    figure: str
    predicted: float
    measured: float
    interval: Interval | None
    bottleneck: str

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured

    @property
    def error(self) -> float:
        """Absolute relative error of the prediction."""
        return abs(self.ratio - 1.0)

    @property
    def covered(self) -> bool:
        """Whether the measurement lies in the interval."""
        return self.interval is not None and self.interval.low <= self.measured <= self.interval.high


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that could not be predicted, and why; `refused` when stowplan says that it does not fit."""

    case: Case
    reason: str
    refused: bool


def machine_of(case: Case) -> Machine:
    """The machine that a case ran on."""
    return _machine(case.machine, case.overrides)


@lru_cache(maxsize=256)
def _machine(spec: str, overrides: tuple[str, ...]) -> Machine:
    return load_machine(spec, overrides)


@lru_cache(maxsize=16)
def _model(name: str, quant: str) -> Model:
    return load_model(name, quant)


def attempt(case: Case, rows: Callable[[], tuple[Row, ...]]) -> Result:
    """Rows of a case, or the sentence why there are none."""
    ran = not case.out_of_memory
    try:
        return Result(rows=rows(), ran=ran)
    except DoesNotFit as error:
        return Result(refused=str(error), does_not_fit=True, ran=ran)
    except StowplanError as error:
        return Result(refused=str(error), ran=ran)


def understood(case: Case) -> Understood:
    """Setup and plan of a case.

    Raises:
        StowplanError: the command holds something that cannot be understood or placed.
    """
    machine, model = machine_of(case), _model(case.model, case.quant)
    hints = Hints(
        model=case.model,
        quant=case.quant,
        workload=Workload(prompt=case.prompt, generate=case.generate, depth=case.depth, batch=case.batch),
        release="current" if case.engine_version == "current" else "pre-2025-12",
        ik=case.engine_version == "ik",
        built=case.date,
        loaded=model,
    )
    return understand(shlex.split(case.command), machine, hints)


def run_case(case: Case) -> list[Outcome] | Failure:
    """Predicted and measured figures of a case, or why there are none."""
    try:
        meant = understood(case)
        prediction = predict(meant.setup, meant.plan, load_system(meant.system))
    except DoesNotFit as error:
        return Failure(case, str(error), refused=True)
    except StowplanError as error:
        return Failure(case, str(error), refused=False)
    return list(_outcomes(case, prediction))


def _outcomes(case: Case, prediction: Prediction) -> Iterable[Outcome]:
    measured = case.measured
    decode, prefill = measured.decode_tokens_per_s, measured.prefill_tokens_per_s
    if decode is None and measured.decode_seconds and case.generate > 1:
        decode = case.batch * (case.generate - 1) / measured.decode_seconds
    if prefill is None and measured.prefill_seconds:
        prefill = case.batch * case.prompt / measured.prefill_seconds
    if decode:
        interval = prediction.interval["decode_tokens_per_s"]
        yield Outcome(case, "decode", prediction.decode_tokens_per_s, decode, interval, prediction.bottleneck)
    if prefill and prediction.prefill_tokens_per_s:
        interval = prediction.interval["prefill_tokens_per_s"]
        yield Outcome(
            case, "prefill", prediction.prefill_tokens_per_s, prefill, interval, prediction.prefill_bottleneck
        )
    if measured.throughput_tokens_per_s:
        value = measured.throughput_tokens_per_s
        yield Outcome(case, "throughput", prediction.request_tokens_per_s, value, None, prediction.bottleneck)


@dataclass(frozen=True, slots=True)
class Summary:
    """Errors of a group of outcomes: every record counts once, however many points it has.

    Attributes:
        name: the group.
        figures, records: outcomes and the records they come from.
        median_signed: median of ratio - 1.
        median, p90: of the absolute relative error.
        within: share of measurements inside the 80 % interval, None without intervals.
    """

    name: str
    figures: int
    records: int
    median_signed: float
    median: float
    p90: float
    within: float | None


def summarise(name: str, outcomes: Sequence[Outcome]) -> Summary:
    """Weighted quantiles of a non-empty group."""
    points: dict[str, int] = {}
    for outcome in outcomes:
        points[outcome.case.record] = points.get(outcome.case.record, 0) + 1
    weights = [1.0 / points[outcome.case.record] for outcome in outcomes]
    bounded = [(o, w) for o, w in zip(outcomes, weights, strict=True) if o.interval is not None]
    within = sum(w for o, w in bounded if o.covered) / sum(w for _, w in bounded) if bounded else None
    return Summary(
        name=name,
        figures=len(outcomes),
        records=len(points),
        median_signed=_quantile([o.ratio - 1.0 for o in outcomes], weights, 0.5),
        median=_quantile([o.error for o in outcomes], weights, 0.5),
        p90=_quantile([o.error for o in outcomes], weights, 0.9),
        within=within,
    )


def _quantile(values: Sequence[float], weights: Sequence[float], share: float) -> float:
    """Smallest value below which at least `share` of the weight lies."""
    ordered = sorted(zip(values, weights, strict=True))
    wanted, gathered = share * math.fsum(weights), 0.0
    for value, weight in ordered:
        gathered += weight
        if gathered >= wanted * (1 - 1e-12):
            return value
    return ordered[-1][0]
