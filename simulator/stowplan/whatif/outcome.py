"""What a scenario came to: the figures of its best plan as one flat record that can be stored, sent and compared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stowplan.machines.machine import Machine
from stowplan.plan import Plan, Prediction
from stowplan.planner.predict import Move
from stowplan.planner.result import Planned

FIGURES = ("decode_tokens_per_s", "request_tokens_per_s", "prefill_tokens_per_s", "ttft_s", "tpot_s")
"""Figures of a prediction that are kept."""

_PLACE = re.compile(r"(?<=gpu)\d+|(?<=disk)\d+")
_SAME_PART = frozenset(
    [
        "gpu.pcie.lanes",
        "gpu.pcie.generation",
        "gpu.h2d",
        "gpu.d2h",
        "gpu.h2d_pageable",
        "gpu.d2h_pageable",
        "gpu.launch",
        "gpu.read_bandwidth",
        "peer.bandwidth",
        "reserved",
    ]
)
"""Machine paths that say how a part is used or what it reaches, and leave its price as it is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The best plan of a scenario, or why there is none.

    Attributes:
        error: why there is no plan; every other field is then empty.
        cost_s: seconds of the objective.
        figures: `FIGURES` by name, SI.
        interval: 80 % intervals (low, high) of the figures that have one.
        bottleneck, prefill_bottleneck: what limits a decode step and the prompt.
        shares: share of a decode step by resource.
        memory: bytes used and available by tier.
        price_usd: what the machine costs, None where a part has no price.
        plan: the plan as ``stowplan plan -o`` writes it.
        command: what to run.
        moves: how far each figure's uncertainty moves decode and prefill (see `stowplan.planner.predict.Move`).
        model_sd: spread that the model itself leaves, of decode and prefill.
        hardware: GPUs and CPU that it runs on, by key.
    """

    error: str | None = None
    cost_s: float | None = None
    figures: Mapping[str, float] | None = None
    interval: Mapping[str, tuple[float, float]] | None = None
    bottleneck: str = ""
    prefill_bottleneck: str = ""
    shares: Mapping[str, float] | None = None
    memory: Mapping[str, tuple[float, float]] | None = None
    price_usd: float | None = None
    plan: Mapping[str, Any] | None = None
    command: str | None = None
    moves: tuple[Move, ...] = ()
    model_sd: tuple[float, float] = (0.0, 0.0)
    hardware: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The outcome as one line of JSON, the same for the same outcome."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @staticmethod
    def parse(text: str) -> Outcome:
        """Inverse of `text`."""
        data = json.loads(text)
        for name in ("interval", "memory"):
            if data[name] is not None:
                data[name] = {key: (low, high) for key, (low, high) in data[name].items()}
        moves = tuple(Move(**move) for move in data["moves"])
        spread, hardware = tuple(data["model_sd"]), tuple(data["hardware"])
        return Outcome(**{**data, "moves": moves, "model_sd": spread, "hardware": hardware})

    def figure(self, name: str) -> float | None:
        """One figure; None where there is no plan."""
        return None if self.figures is None else self.figures[name]

    @property
    def gpu_bytes(self) -> float:
        """Bytes used on all GPUs."""
        return sum(used for tier, (used, _) in (self.memory or {}).items() if tier.startswith("gpu"))


def outcome_of(planned: Planned, machine: Machine, model_sd: tuple[float, float]) -> Outcome:
    """The record of a plan on a machine."""
    prediction: Prediction = planned.prediction
    plan: Plan = planned.plan
    return Outcome(
        cost_s=planned.cost,
        figures={name: float(getattr(prediction, name)) for name in FIGURES},
        interval={name: (found.low, found.high) for name, found in prediction.interval.items()},
        bottleneck=prediction.bottleneck,
        prefill_bottleneck=prediction.prefill_bottleneck,
        shares=dict(prediction.time_shares),
        memory={tier: (use.used, use.capacity) for tier, use in prediction.memory_bytes.items()},
        price_usd=price_of(machine),
        plan=plan.model_dump(mode="json"),
        command=prediction.command,
        moves=tuple(planned.moves),
        model_sd=model_sd,
        hardware=(*sorted(gpu.key for gpu in machine.gpus), machine.cpu.key),
    )


def price_of(machine: Machine) -> float | None:
    """US dollars of a machine's GPUs, CPUs, memory and disks; None where one of them has no price.

    A part that was changed (a GPU with more memory than it is sold with) has none, unless one was given.
    """
    paths = {_PLACE.sub("", path) for path, _ in machine.overrides} - _SAME_PART
    changed = {path.partition(".")[0] for path in paths}
    if "gpu.price" in paths:
        changed.discard("gpu")
    discrete = [gpu.price for gpu in machine.gpus if not gpu.unified]
    unified = [gpu.price for gpu in machine.gpus[:1] if gpu.unified]
    parts = [*discrete, *unified, *([machine.cpu.price] * machine.sockets), machine.memory.price]
    parts += [disk.price for disk in machine.disks]
    known = [part.value for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) and not changed else None
