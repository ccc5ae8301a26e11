"""What every system shares: the setup that it runs in, classes of identical layers, and what an evaluation returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from stowplan.engine.graph import Graph
from stowplan.figures import Figures
from stowplan.machines.machine import Machine
from stowplan.models.model import Layer, Model
from stowplan.plan import MemoryUse, Plan

RAM, DISK = "ram", "disk"


@dataclass(frozen=True, slots=True)
class Setup:
    """A model on a machine with the figures that a prediction rests on."""

    machine: Machine
    model: Model
    figures: Figures

    @property
    def gpus(self) -> range:
        """Indices of the GPUs."""
        return range(len(self.machine.gpus))


@dataclass(frozen=True, slots=True)
class LayerClass:
    """Layers that no cost can tell apart: same mixer, experts and tensor sizes.

    Attributes:
        layer: one of them, to price.
        indices: which layers they are.
    """

    layer: Layer
    indices: tuple[int, ...]


@lru_cache(maxsize=4)
def classify(model: Model) -> tuple[LayerClass, ...]:
    """Classes of identical layers, in order of their first layer."""
    classes: dict[tuple[object, ...], list[Layer]] = {}
    for layer in model.layers:
        shapes = tuple((t.role, t.rows, t.columns, t.count, t.format, t.bytes) for t in layer.tensors)
        classes.setdefault((layer.mixer, layer.experts, shapes), []).append(layer)
    return tuple(LayerClass(members[0], tuple(m.index for m in members)) for members in classes.values())


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Times and memory of a plan.

    Attributes:
        decode_s: seconds of one decode step at the workload's mean context.
        prefill_s: seconds to process the prompt of the whole batch, first token included.
        decode_shares, prefill_shares: seconds of those by limiting resource.
        memory: use by tier.
        warnings: what the user should know.
    """

    decode_s: float
    prefill_s: float
    decode_shares: Mapping[str, float]
    prefill_shares: Mapping[str, float]
    memory: Mapping[str, MemoryUse]
    warnings: tuple[str, ...] = field(default=())


class System(Protocol):
    """One engine or published system: what it can place, how it runs that, and its own words for it."""

    key: str
    title: str
    kernels: str
    """Name of the engine whose kernel constants it uses."""

    def evaluate(self, setup: Setup, plan: Plan) -> Evaluation:
        """Times and memory of a plan.

        Raises:
            NotExpressible: the plan holds a placement or a setting that the system does not have.
            DoesNotFit: a tier would hold more than its capacity.
        """
        ...

    def decode_graph(self, setup: Setup, plan: Plan) -> Graph:
        """Tasks of one decode step."""
        ...

    def prefill_graph(self, setup: Setup, plan: Plan) -> Graph:
        """Tasks of the first chunk of the prompt."""
        ...

    def command(self, setup: Setup, plan: Plan) -> str:
        """The plan in the engine's own flags, ready to paste."""
        ...
