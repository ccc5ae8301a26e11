"""llama.cpp and ik_llama.cpp: tensors in host memory are computed there in decode and streamed to the GPU in prefill.

Expressible: the mixer of a layer on a GPU or the CPU (the layers on the CPU come first, GPUs hold consecutive runs),
each feed-forward matrix of a layer on its home GPU or the CPU, the cache with its layer or all of it in host memory.

Execution: one operator after another. A matrix product whose weights are in host memory runs on the CPU, unless the
batch reaches the offload threshold: then the weights are copied to the GPU first and nothing overlaps the copy
(measured: time of a micro-batch = a constant for the stream + a term per token). Attention runs where the cache is.
Micro-batches of a prompt overlap on several GPUs when nothing is in host memory.
"""

from __future__ import annotations

from dataclasses import replace

from stowplan.engine.graph import Graph
from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.ops import Part
from stowplan.plan import Plan, expand
from stowplan.systems.base import RAM, Evaluation, Setup
from stowplan.systems.llama_cpp_commands import write_command
from stowplan.systems.llama_cpp_run import LlamaCppRun
from stowplan.systems.llama_cpp_settings import settings_of
from stowplan.systems.serial import LayerPlaces
from stowplan.units import format_bytes

__all__ = ["LlamaCpp", "LlamaCppRun"]


class LlamaCpp:
    """llama.cpp as a system."""

    key = "llama.cpp"
    title = "llama.cpp"
    kernels = "llama.cpp"

    def __init__(self) -> None:
        self._placed: tuple[Plan, int, list[LayerPlaces]] | None = None  # a prediction reads one plan many times

    def placement(self, setup: Setup, plan: Plan) -> list[LayerPlaces]:
        """Places of every layer that a plan states.

        Raises:
            NotExpressible: a part without a place, in several places, or on a device that the machine lacks.
        """
        if self._placed is None or self._placed[0] is not plan or self._placed[1] != len(setup.machine.gpus):
            self._placed = (plan, len(setup.machine.gpus), self._read_placement(setup, plan))
        return self._placed[2]

    def _read_placement(self, setup: Setup, plan: Plan) -> list[LayerPlaces]:
        known = {RAM} | {f"gpu{i}" for i in setup.gpus}
        for name, edge in (("embedding", plan.embedding), ("output", plan.output)):
            if edge not in known:
                raise NotExpressible(f"plan: {name} is on {edge}; llama.cpp has {', '.join(sorted(known))} here")
        places = expand(plan.layers, len(setup.model.layers), where="plan")
        for index, parts in enumerate(places):
            for part, place in parts.items():
                if not isinstance(place, str) or place not in known:
                    raise NotExpressible(
                        f"plan: layer {index}: {part} is on {place}; llama.cpp places a whole part on one of "
                        f"{', '.join(sorted(known))}"
                    )
            missing = {Part.MIXER.value, Part.KV.value} - parts.keys()
            if missing:
                raise NotExpressible(f"plan: layer {index}: {', '.join(sorted(missing))} has no place")
        return [LayerPlaces.from_mapping(parts) for parts in places]

    def run(self, setup: Setup, plan: Plan) -> LlamaCppRun:
        """The engine under the plan's settings."""
        return LlamaCppRun(setup, plan.workload, settings_of(plan))

    def evaluate(self, setup: Setup, plan: Plan) -> Evaluation:
        """Times and memory; see `stowplan.systems.base.System`."""
        run, layers = self.run(setup, plan), self.placement(setup, plan)
        evaluation = run.evaluate(layers, plan.embedding, plan.output)
        for place, use in evaluation.memory.items():
            if place != RAM and use.used > use.capacity:
                missing = use.used - use.capacity
                raise DoesNotFit(
                    f"{place} would hold {format_bytes(use.used)} of {format_bytes(use.capacity)}; move "
                    f"{format_bytes(missing)} elsewhere or let `stowplan plan` do it",
                    missing,
                )
        overlapped = run.overlap(layers, plan.output)
        if overlapped == 1.0:
            return evaluation
        return replace(
            evaluation,
            prefill_s=evaluation.prefill_s * overlapped,
            prefill_shares={name: share * overlapped for name, share in evaluation.prefill_shares.items()},
        )

    def command(self, setup: Setup, plan: Plan) -> str:
        """The llama-server command; see `stowplan.systems.llama_cpp_commands`."""
        layers = self.placement(setup, plan)
        return write_command(setup.machine, setup.model, plan, settings_of(plan), layers)

    def decode_graph(self, setup: Setup, plan: Plan) -> Graph:
        """Tasks of one decode step."""
        run, layers = self.run(setup, plan), self.placement(setup, plan)
        run.overflow(run.memory(layers, plan.embedding, plan.output), layers)
        return run.step_graph(layers, plan.output, run.decode_step)

    def prefill_graph(self, setup: Setup, plan: Plan) -> Graph:
        """Tasks of the first micro-batch of the prompt."""
        run, layers = self.run(setup, plan), self.placement(setup, plan)
        run.overflow(run.memory(layers, plan.embedding, plan.output), layers)
        steps = run.prefill_steps or [run.decode_step]
        return run.step_graph(layers, plan.output, steps[0])
