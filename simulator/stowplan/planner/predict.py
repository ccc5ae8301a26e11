"""From a plan to a prediction: times, memory, what limits it, and an interval.

The interval is made of the figures' uncertainties, of what parts that no fitted record had add to them, and of what the
model leaves unexplained elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from stowplan.errors import NotExpressible
from stowplan.figures import Figures, figures_for
from stowplan.kernels import idle_constants
from stowplan.machines.machine import Machine
from stowplan.models.model import Model
from stowplan.plan import Interval, Plan, Prediction, Rest, Solver
from stowplan.planner.unseen import unseen
from stowplan.systems.base import Evaluation, Setup, System

_Z80 = 1.2815515655446004  # 90th percentile of the normal distribution: an 80 % interval is +-1.28 deviations wide
_NEGLIGIBLE = 1e-4
_HOST_SHARE = 0.05  # of a phase's time, from which on host memory makes it less predictable
_MINOR = 2e-3  # a resource that limits less of a step than this cannot move its time


def make_setup(machine: Machine, model: Model, system: System, variant: str | None = None) -> Setup:
    """Model and machine with the figures of the system's kernels, or of a variant's (a fork with its own)."""
    return Setup(machine, model, figures_for(machine, system.kernels, variant))


@dataclass(frozen=True, slots=True)
class Move:
    """How log times move when one figure gets worse by one standard deviation.

    Attributes:
        name, source: the figure and where it was read; or ``unseen.`` with a part that no fitted record had, and its
            group, whose kernels are off by one deviation.
        sd: its relative standard deviation.
        decode, prefill: magnitudes of the moves of the log times.
    """

    name: str
    source: str
    sd: float
    decode: float
    prefill: float


def predict(setup: Setup, plan: Plan, system: System, solver: Solver | None = None) -> Prediction:
    """What a plan will do.

    Raises:
        DoesNotFit, NotExpressible: see `stowplan.systems.base.System.evaluate`.
    """
    return predict_and_move(setup, plan, system, solver)[0]


def predict_and_move(
    setup: Setup, plan: Plan, system: System, solver: Solver | None = None
) -> tuple[Prediction, list[Move]]:
    """What a plan will do, and how far each figure's uncertainty moves it; raises as `predict`."""
    evaluation = system.evaluate(setup, plan)
    figure_moves = list(_moves(setup, plan, system, evaluation))
    new = unseen(setup, system.kernels, evaluation)
    moves = list(figure_moves)
    moves += [Move(f"unseen.{each.part}", each.group, 1.0, each.decode_sd, each.prefill_sd) for each in new]
    spread = {
        phase: math.sqrt(
            sum(getattr(move, phase) ** 2 for move in moves)
            + model_sd(setup.figures, system.kernels, phase, shares) ** 2
        )
        for phase, shares in (("decode", evaluation.decode_shares), ("prefill", evaluation.prefill_shares))
    }
    workload = plan.workload
    decode_s, prefill_s = evaluation.decode_s, evaluation.prefill_s
    prompt = workload.prompt * workload.batch
    figures = {
        "decode_tokens_per_s": (workload.batch / decode_s, spread["decode"]),
        "prefill_tokens_per_s": (prompt / prefill_s if prefill_s else 0.0, spread["prefill"]),
        "ttft_s": (prefill_s, spread["prefill"]),
        "tpot_s": (decode_s, spread["decode"]),
    }
    warnings = list(evaluation.warnings)
    if workload.capacity > setup.model.max_context:
        warnings.append(f"{setup.model.name} is made for {setup.model.max_context:,} tokens, not {workload.capacity:,}")
    command = None
    try:
        command = system.command(setup, plan)
    except NotExpressible as error:
        warnings.append(str(error))
    prediction = Prediction(
        system=system.key,
        machine=setup.machine.name,
        model=setup.model.name,
        quant=setup.model.quant,
        workload=workload,
        decode_tokens_per_s=workload.batch / decode_s,
        per_request_tokens_per_s=1.0 / decode_s,
        prefill_tokens_per_s=figures["prefill_tokens_per_s"][0],
        request_tokens_per_s=_request_rate(evaluation, plan),
        ttft_s=prefill_s,
        tpot_s=decode_s,
        interval={name: _interval(value, sd) for name, (value, sd) in figures.items()},
        bottleneck=_largest(evaluation.decode_shares),
        prefill_bottleneck=_largest(evaluation.prefill_shares) if prefill_s else "",
        time_shares=_normalised(evaluation.decode_shares),
        prefill_shares=_normalised(evaluation.prefill_shares),
        memory_bytes=dict(evaluation.memory),
        rests_on=_rests(setup.figures, figure_moves),
        unseen=new,
        solver=solver,
        command=command,
        warnings=warnings,
    )
    return prediction, moves


def _moves(setup: Setup, plan: Plan, system: System, base: Evaluation) -> Iterator[Move]:
    idle = idle_constants(setup.figures, system.kernels, setup.machine, setup.model)
    for name in _relevant(setup.figures, system.kernels, base):
        sd = setup.figures.sd(name)
        if sd == 0.0 or name in idle:
            continue
        worse = _scaled(setup, plan, system, name, math.exp(-sd))
        decode = abs(math.log(worse.decode_s / base.decode_s))
        prefill = abs(math.log(worse.prefill_s / base.prefill_s)) if base.prefill_s else 0.0
        if max(decode, prefill) > _NEGLIGIBLE:
            yield Move(name, setup.figures[name].source, sd, decode, prefill)


@runtime_checkable
class _Scaling(Protocol):
    """A system that evaluates a plan with one figure scaled, faster than by building everything anew."""

    def evaluate_scaled(self, setup: Setup, plan: Plan, name: str, factor: float) -> Evaluation:
        """As `stowplan.systems.base.System.evaluate` with one figure multiplied by `factor`."""
        ...


def _scaled(setup: Setup, plan: Plan, system: System, name: str, factor: float) -> Evaluation:
    if isinstance(system, _Scaling):
        return system.evaluate_scaled(setup, plan, name, factor)
    return system.evaluate(Setup(setup.machine, setup.model, setup.figures.scaled(name, factor)), plan)


def _relevant(figures: Figures, engine: str, base: Evaluation) -> Iterator[str]:
    """Figures that can move the times: those of resources that limit a noticeable part of a step."""
    named = {
        name
        for shares in (base.decode_shares, base.prefill_shares)
        for name, seconds in shares.items()
        if seconds > _MINOR * sum(shares.values())
    }
    limiting = named | {name.split(".")[0] for name in named}
    computes = any(name.endswith(".compute") for name in limiting)
    cores = "host.cores" in limiting
    for name in figures:
        if name.startswith(f"{engine}.cpu.") or name == "host.clock":
            needed = cores or (name.endswith(("_gap", ".sockets", ".dram_share")) and "host" in limiting)
        elif name.startswith(f"{engine}.gpu."):
            rate = any(word in name for word in ("share", "unit_clock", "gemm_"))
            needed = computes if rate else "overhead" in limiting
        elif name.startswith(engine):
            needed = ".model_sd." not in name
        elif ".peak." in name or name.endswith(("unit_clock", ".power", ".flop_energy")):
            needed = computes and name.split(".")[0] in limiting
        elif ".h2d." in name or ".d2h." in name:
            needed = ".".join(name.split(".")[:2]) in limiting
        else:
            needed = name in limiting or name in {"host.dram"}
        if needed:
            yield name


def model_sd(figures: Figures, engine: str, phase: str, shares: Mapping[str, float] | None = None) -> float:
    """What the model itself leaves unexplained: the spread of its residuals on measurements; 0 where unknown.

    With the phase's `shares` of time, it is that of the situation where the engine's file tells them apart: ``cpu`` (no
    GPU), ``host`` (host memory beside GPUs), ``gpus`` (several of them, nothing in host memory).
    """
    common = figures.get_value(f"{engine}.model_sd.{phase}") or 0.0
    if shares is None:
        return common
    return figures.get_value(f"{engine}.model_sd.{phase}_{situation(shares)}") or common


def situation(shares: Mapping[str, float]) -> str:
    """Where the time goes, from a phase's `shares` of it: ``cpu``, ``host``, ``gpu`` or ``gpus``; see `model_sd`."""
    total = sum(shares.values())
    gpus = {name.split(".")[0] for name in shares if name.startswith("gpu") and not name.endswith(("h2d", "d2h"))}
    host = sum(amount for name, amount in shares.items() if name.startswith("host.") or name.endswith(".h2d"))
    if not gpus:
        return "cpu"
    if host > _HOST_SHARE * total:
        return "host"
    return "gpus" if len(gpus) > 1 else "gpu"


def _interval(value: float, sd: float) -> Interval:
    return Interval(low=value * math.exp(-_Z80 * sd), high=value * math.exp(_Z80 * sd))


def _largest(shares: Mapping[str, float]) -> str:
    return max(sorted(shares), key=lambda name: shares[name], default="overhead")


def _normalised(shares: Mapping[str, float]) -> dict[str, float]:
    total = sum(shares.values())
    return {name: shares[name] / total for name in sorted(shares, key=lambda n: (-shares[n], n))} if total else {}


def _request_rate(evaluation: Evaluation, plan: Plan) -> float:
    """Generated tokens of the batch per second of its whole request."""
    workload = plan.workload
    seconds = evaluation.prefill_s + workload.generate * evaluation.decode_s
    return workload.batch * workload.generate / seconds if seconds else 0.0


def _rests(figures: Figures, moves: list[Move]) -> list[Rest]:
    ordered = sorted(moves, key=lambda move: (-max(move.decode, move.prefill), move.name))
    return [
        Rest(
            name=move.name,
            value=figures.value(move.name),
            kind=figures[move.name].kind.value,
            source=figures[move.name].source,
            sd=move.sd,
            elasticity=move.decode / move.sd if move.sd else 0.0,
        )
        for move in ordered
    ]
