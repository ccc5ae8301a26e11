"""Operators of a step as they ran: FLOPs, bytes and seconds by group and device, and the roofs above them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from stowplan.engine.run import Run
from stowplan.kernels import family as kernel_family
from stowplan.ops import CacheFormat, Kind, Operator, Step, embedding_operator, ffn_operators, mixer_operators
from stowplan.ops import output_operator as logits_operator
from stowplan.plan import Plan
from stowplan.report.families import LABEL, Family, family_of_operator, layer_of, operator_of, short_name
from stowplan.systems.accelerate import Accelerate
from stowplan.systems.base import Setup, System
from stowplan.systems.llama_cpp import LlamaCpp


@dataclass(slots=True)
class Group:
    """Operators of one family on one kind of device in one phase, over all layers.

    Attributes:
        device: ``gpu0``, the first of its kind, or ``host``.
        phase: ``decode`` or ``prefill``.
        family, title: what they are.
        members: names of the operators.
        flops, bytes: what they do and what they move in the device's memory.
        seconds: their time, with the copies and reads that they wait for.
        copied: bytes of weights that had to be copied to the device first.
    """

    device: str
    phase: str
    family: Family
    title: str
    members: dict[str, None] = field(default_factory=dict)
    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    copied: float = 0.0

    @property
    def intensity(self) -> float:
        """FLOPs per byte of the device's memory."""
        return self.flops / self.bytes

    @property
    def rate(self) -> float:
        """FLOP/s reached."""
        return self.flops / self.seconds


@dataclass(frozen=True, slots=True)
class Roof:
    """What a device can do at most: bytes/s of its memory and FLOP/s, with words for both."""

    device: str
    title: str
    bandwidth: float
    peak: float
    peak_title: str


def steps(system: System, setup: Setup, plan: Plan) -> tuple[Step, Step | None] | None:
    """The decode step and the first chunk of the prompt; None where tasks are no single operators."""
    if not isinstance(system, LlamaCpp | Accelerate):
        return None
    run = system.run(setup, plan)
    prompts = run.prefill_steps
    return run.decode_step, prompts[0] if prompts else None


def groups_of(setup: Setup, run: Run, step: Step, phase: str) -> list[Group]:
    """Operators of a simulated step, grouped; the group that takes longest comes first."""
    operators = _operators(setup, step)
    devices = _first_of_kind(setup)
    homes: dict[tuple[int | None, str], tuple[str, str]] = {}
    found: dict[tuple[str, str], Group] = {}
    waits: list[tuple[tuple[int | None, str], float, float]] = []
    for index, task in enumerate(run.graph.tasks):
        key = (layer_of(task.name), operator_of(task.name))
        seconds = run.end[index] - run.start[index]
        if key not in operators:
            continue
        if task.kind != "compute":
            link = sum(amount for name, amount in task.work.amounts.items() if name.endswith(".h2d"))
            waits.append((key, seconds, link if task.name.endswith(" weights") else 0.0))
            continue
        op, device = operators[key], devices.get(task.stream or "", task.stream or "")
        memory = "host.dram" if task.stream == "host" else f"{task.stream}.hbm"
        title = _title(op)
        homes[key] = (device, title)
        group = found.setdefault((device, title), Group(device, phase, family_of_operator(op.name), title))
        group.members[short_name(op.name)] = None
        group.flops += op.flops
        group.bytes += task.work.amounts.get(memory, 0.0)
        group.seconds += seconds
    for key, seconds, copied in waits:
        if key in homes:
            group = found[homes[key]]
            group.seconds += seconds
            group.copied += copied
    visible = [group for group in found.values() if group.flops and group.bytes and group.seconds]
    return sorted(visible, key=lambda group: (-group.seconds, group.device, group.title))


def _operators(setup: Setup, step: Step) -> Mapping[tuple[int | None, str], Operator]:
    """Operators by layer and name; the cache's format does not matter to FLOPs."""
    model = setup.model
    found: dict[tuple[int | None, str], Operator] = {}
    for layer in model.layers:
        for op in (*mixer_operators(layer, step, CacheFormat()), *ffn_operators(layer, step.tokens)):
            found[layer.index, op.name] = op
    for op in (embedding_operator(model, step), logits_operator(model, step)):
        found[None, op.name] = op
    return found


def _first_of_kind(setup: Setup) -> dict[str, str]:
    """Every GPU by the first one that is like it: alike devices share a roof."""
    first: dict[str, str] = {}
    return {f"gpu{i}": first.setdefault(gpu.key, f"gpu{i}") for i, gpu in enumerate(setup.machine.gpus)}


def _title(op: Operator) -> str:
    if op.kind is Kind.ATTENTION:
        return "attention over the cache"
    if op.kind is Kind.RECURRENCE:
        return "recurrence"
    if op.name == "ffn_gate_inp":
        return "router"
    family = family_of_operator(op.name)
    if family is Family.ATTENTION:
        return "attention matrices"
    return "output" if family is Family.OUTPUT else LABEL[family]


def roofs_of(setup: Setup, devices: set[str]) -> Iterator[Roof]:
    """Roofs of the devices that something ran on."""
    figures, machine = setup.figures, setup.machine
    quantised = any(kernel_family(t.format) != "float" for t in setup.model.tensors if t.columns > 1)
    for i, gpu in enumerate(machine.gpus):
        name = f"gpu{i}"
        if name in devices:
            order = ("int8", "fp16", "bf16", "fp32") if quantised else ("fp16", "bf16", "fp32")
            best = next(kind for kind in order if figures.get_value(f"{name}.peak.{kind}") or kind == "fp32")
            peak = figures.value(f"{name}.peak.{best}")
            yield Roof(name, gpu.name, figures.value(f"{name}.hbm"), peak, f"{best} peak")
    if "host" in devices:
        peak = machine.cores * machine.cpu.clock.value * machine.cpu.flops_per_cycle.value
        yield Roof("host", machine.cpu.name, figures.value("host.dram"), peak, "fp32 peak")
