"""What a comparison is made of: one measured figure beside its prediction, whatever system or replay it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Part = Literal["held-out", "fit", "fresh"]
"""Whether constants may have been set on the hardware of a measurement; fresh ones came after everything was set."""

FIGURES = (
    *("decode", "prefill", "throughput", "memory", "ttft", "tpot", "e2e"),
    *("speed-up", "capacity", "largest"),
)
"""Figures that are compared.

Speeds in tokens/s, memory in bytes, times to the first token, per token and to the end in seconds; ratios of speeds;
tokens or sequences that fit; and the largest value that a source gives without saying where it arises.
"""

Z80 = 1.2815515655446004
"""Half the width of an 80 % interval in standard deviations."""


def family_name(system: str, kind: str, figure: str) -> str:
    """Name of the group that rows are counted in."""
    return " ".join(word for word in (system, kind, figure) if word)


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure beside its prediction.

    Attributes:
        id: case, with the point of a sweep: ``cb021/d6656``.
        record: record that it is a point of; a record counts once however many points it has.
        system: engine or published system: ``llama.cpp``, ``vLLM serving``.
        kind: how the weights lie (``partial``, ``full-gpu``, ``cpu-only``, ``disk``), or which statistic of many
            requests it is (``mean``, ``p99``); empty where neither matters.
        figure: one of `FIGURES`.
        part: fit, held-out or fresh.
        hardware: GPUs and processor, the text that decides the part.
        machine: the machine as it would be given to ``--on``, with its overrides.
        model: model and storage mix.
        run: what was run: the engine's command, or a sentence.
        question: what was asked of the machine; rows that answer the same question with another `run` are a pair.
        predicted, measured: in the figure's unit.
        low, high: predicted 80 % interval, None without one.
        shares: share of the predicted time by limiting resource, largest first.
        unseen: parts that no fitted record had: architecture, gpu.
        source: where the measurement was published.
        note: oddities of the run; assumed: facts that the source does not state.
    """

    id: str
    record: str
    system: str
    kind: str
    figure: str
    part: Part
    hardware: str
    machine: str
    model: str
    run: str
    question: str
    predicted: float
    measured: float
    low: float | None = None
    high: float | None = None
    shares: tuple[tuple[str, float], ...] = ()
    unseen: tuple[str, ...] = ()
    source: str = ""
    note: str = ""
    assumed: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """Name of the group that this row is counted in."""
        return family_name(self.system, self.kind, self.figure)

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured

    @property
    def error(self) -> float:
        """Absolute relative error of the prediction."""
        return abs(self.ratio - 1.0)

    @property
    def covered(self) -> bool | None:
        """Whether the measurement lies in the interval; None without one."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.measured <= self.high

    @property
    def spread(self) -> float | None:
        """Standard deviation of log(measured / predicted) that the interval claims; None without an interval."""
        if self.low is None or self.high is None or self.low <= 0:
            return None
        return math.log(self.high / self.low) / (2 * Z80)

    @property
    def deviation(self) -> float | None:
        """Distance of the measurement from the prediction in half widths of the interval: 1 is its edge."""
        spread = self.spread
        return abs(math.log(self.ratio)) / (spread * Z80) if spread else None

    @property
    def smaller_is_better(self) -> bool:
        """Whether a small figure wins a pair: times do, speeds do not."""
        return self.figure in ("ttft", "tpot", "e2e", "memory")


@dataclass(frozen=True, slots=True)
class Result:
    """What comparing one case gave: its rows, or why there are none.

    Attributes:
        rows: one per measured figure.
        refused: why there is no prediction, None where there is one.
        does_not_fit: whether it was refused for want of memory.
        ran: whether the source's run finished; False where it ran out of memory.
    """

    rows: tuple[Row, ...] = ()
    refused: str | None = None
    does_not_fit: bool = False
    ran: bool = True
