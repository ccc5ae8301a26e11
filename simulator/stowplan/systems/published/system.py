"""A declaration as a system: evaluated in the loop of layers, so that it plans and predicts like any engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stowplan.engine.graph import Graph
from stowplan.errors import DoesNotFit, InputError, NotExpressible
from stowplan.figures import Figures, figures_for
from stowplan.machines.machine import Machine, Number, SourceKind
from stowplan.models.model import Layer, Model
from stowplan.ops import EXPERT_PARTS, Part, part_of
from stowplan.plan import Place, Plan, Workload, run_lengths
from stowplan.systems.base import DISK, RAM, Evaluation, Setup
from stowplan.systems.mechanisms.loop import Loop
from stowplan.systems.mechanisms.policy import Cache, Experts, Overheads, Policy, Weights
from stowplan.systems.mechanisms.pricing import GPU
from stowplan.systems.mechanisms.residency import memory, overflow
from stowplan.systems.published.base import Published
from stowplan.units import format_bytes

_SIXTEEN_BITS = ("f16", "bf16")
_SUBJECTS: Mapping[str, type] = {"weights": Weights, "cache": Cache, "experts": Experts, "overheads": Overheads}


class PublishedSystem:
    """A published system.

    Args:
        declared: what it declares; one without an engine of its own.
        with_hardware: whether the machine is taken to have the special device that it needs.
    """

    def __init__(self, declared: Published, *, with_hardware: bool = False) -> None:
        self.declared, self._with_hardware = declared, with_hardware
        self.key, self.title, self.kernels = declared.key, declared.title, declared.kernels

    def setup(self, machine: Machine, model: Model) -> Setup:
        """Model and machine with the figures that it uses, its own among them."""
        return self.own(Setup(machine, model, figures_for(machine, self.kernels)))

    def own(self, setup: Setup) -> Setup:
        """The setup with the system's own figures in place of those they replace."""
        if not self.declared.figures:
            return setup
        chip = setup.machine.gpus[0].process if setup.machine.gpus else None
        numbers = {
            name.partition("@")[0]: Number(each.value, SourceKind(each.kind), each.where)
            for name, each in self.declared.figures.items()
            if name.partition("@")[2] in ("", chip)
        }
        return Setup(setup.machine, setup.model, Figures({**setup.figures, **numbers}))

    def refuse(self, setup: Setup) -> None:
        """Refuse a model or machine that it was not made for.

        Raises:
            NotExpressible: it needs a mixture of experts, or a device that the machine lacks.
        """
        if "experts" in self.declared.needs and not any(layer.experts for layer in setup.model.layers):
            raise NotExpressible(f"it places routed experts, which {setup.model.name} does not have")
        if "16-bit weights" in self.declared.needs and setup.model.quant not in _SIXTEEN_BITS:
            raise NotExpressible(f"it stores 16-bit weights in a form of its own, not {setup.model.quant}")
        if self.declared.hardware is not None and not self._with_hardware:
            raise NotExpressible(f"it needs {self.declared.hardware}, which {setup.machine.name} does not have")

    def loop(self, setup: Setup, plan: Plan) -> Loop:
        """The loop of a plan."""
        self.refuse(setup)
        return Loop(self.own(setup), self.kernels, policy_of(plan), plan.workload)

    def evaluate(self, setup: Setup, plan: Plan) -> Evaluation:
        """Times and memory; see `stowplan.systems.base.System`."""
        loop = self.loop(setup, plan)
        use = memory(loop.setup, self.kernels, loop.policy, plan.workload)
        over = overflow(use)
        if over is not None:
            tier, missing = over
            raise DoesNotFit(f"{tier} lacks {format_bytes(missing)} for this plan of {self.title}", missing)
        decode, prefill = loop.decode(plan.workload.decode_context), loop.prefill()
        warnings = ["uses the first GPU only"] if len(setup.machine.gpus) > 1 and loop.policy.device == "gpu" else []
        if self.declared.quality is not None:
            warnings.append(f"approximate: {self.declared.quality}")
        return Evaluation(decode.seconds, prefill.seconds, decode.shares, prefill.shares, use, tuple(warnings))

    def decode_graph(self, setup: Setup, plan: Plan) -> Graph:
        """Tasks of one decode step."""
        loop = self.loop(setup, plan)
        return loop.whole_graph(loop.decode_step(plan.workload.decode_context))

    def prefill_graph(self, setup: Setup, plan: Plan) -> Graph:
        """Tasks of the first pass over the prompt."""
        loop = self.loop(setup, plan)
        steps = loop.prefill_steps()
        return loop.whole_graph(steps[0][0] if steps else loop.decode_step(plan.workload.decode_context))

    def command(self, setup: Setup, plan: Plan) -> str:  # noqa: ARG002
        """Research code has no command line that a plan could be written for.

        Raises:
            NotExpressible: always.
        """
        raise NotExpressible(f"{self.title} is research code without a command line for plans")

    def plan(self, setup: Setup, workload: Workload, policy: Policy, **names: Any) -> Plan:
        """Plan of a policy; `names` are ``machine``, ``model``, ``set`` and ``quant`` as the user wrote them."""
        home = GPU if policy.device == "gpu" else RAM
        given: dict[str, Any] = {
            "machine": setup.machine.spec,
            "model": setup.model.key,
            "quant": setup.model.quant,
        }
        return Plan(
            system=self.key,
            workload=workload,
            layers=run_lengths(_places(layer, policy) for layer in setup.model.layers),
            embedding=home,
            output=home,
            settings=asdict(policy),
            **(given | names),
        )


def policy_of(plan: Plan) -> Policy:
    """The policy that a plan's settings state.

    Raises:
        NotExpressible: a field that no policy has, or a value out of range.
    """
    given: dict[str, Any] = dict(plan.settings)
    try:
        subjects = {name: kind(**given.pop(name)) for name, kind in _SUBJECTS.items() if name in given}
        return Policy(**subjects, **given)
    except (TypeError, InputError) as error:
        raise NotExpressible(f"plan: settings: {error}") from error


def _places(layer: Layer, policy: Policy) -> dict[str, Place]:
    """Shares of every part of a layer by tier."""
    if policy.device == "cpu":
        weights = {RAM: 1.0 - policy.weights.disk, DISK: policy.weights.disk}
        experts = {RAM: 1.0 - policy.experts.disk, DISK: policy.experts.disk}
        cache = {RAM: 1.0}
    else:
        weights = {GPU: policy.weights.gpu, RAM: policy.weights.ram, DISK: policy.weights.disk}
        experts = {GPU: policy.experts.gpu, RAM: policy.experts.ram, DISK: policy.experts.disk}
        cache = {GPU: policy.cache.gpu, RAM: policy.cache.ram, DISK: policy.cache.disk}
    places: dict[str, Place] = {Part.KV.value: _place(cache)}
    for part in {part_of(tensor) for tensor in layer.tensors}:
        places[part.value] = _place(experts if part in EXPERT_PARTS else weights)
    return dict(sorted(places.items()))


def _place(shares: Mapping[str, float]) -> Place:
    held = {tier: share for tier, share in shares.items() if share > 0.0}
    return next(iter(held)) if len(held) == 1 else held
