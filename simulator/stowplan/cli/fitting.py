"""What would fit where something does not: a smaller mix of the same model, a larger shipped machine.

Plain byte arithmetic on totals; no placement is solved.
"""

from __future__ import annotations

from collections.abc import Iterator

from stowplan.errors import StowplanError
from stowplan.machines import list_keys, load_machine
from stowplan.machines.machine import Machine
from stowplan.models import load_model, mixes, sequence_bytes
from stowplan.models.model import Model
from stowplan.plan import Workload
from stowplan.units import format_bytes

_USABLE = 0.95
"""Share of the memory beside the system that weights and cache may take; the rest is for buffers and runtimes."""


def usable_bytes(machine: Machine) -> float:
    """Bytes of host and GPU memory together that weights and cache may take."""
    video = sum(gpu.memory.value for gpu in machine.gpus if not gpu.unified)
    return _USABLE * (machine.memory.capacity.value + video - machine.reserved.value)


def suggestions(
    machine: Machine, model: Model, reference: tuple[str, str | None], workload: Workload, cache: tuple[str, str]
) -> str:
    """The end of a sentence that says what would fit; empty where nothing would.

    Args:
        machine, model, workload: what does not fit together.
        reference: model and mix as the user names them.
        cache: formats of keys and values.
    """
    kept = sequence_bytes(model, workload.capacity, *cache) * workload.batch
    parts = []
    smaller = _largest_mix(reference[0], usable_bytes(machine) - kept, model.weight_bytes)
    if smaller is not None:
        parts.append(f"in {smaller.quant.upper()} ({format_bytes(smaller.weight_bytes)})")
    larger = _smallest_machine(model.weight_bytes + kept)
    if larger is not None and larger != machine.spec:
        parts.append(f"as it is on {larger}")
    return f"; it would fit {' or '.join(parts)}" if parts else ""


def _largest_mix(model: str, room: float, present: int) -> Model | None:
    """The largest named mix of a model below `room` and below the present size."""
    fitting = [each for each in _in_every_mix(model) if each.weight_bytes <= room and each.weight_bytes < present]
    return max(fitting, key=lambda each: (each.weight_bytes, each.quant), default=None)


def _in_every_mix(model: str) -> Iterator[Model]:
    for mix in mixes():
        try:
            yield load_model(model, mix)
        except StowplanError:  # a file states its own formats, and some mixes do not suit some shapes
            continue


def _smallest_machine(needed: float) -> str | None:
    """The shipped machine with least memory that holds so many bytes."""
    sizes = {key: usable_bytes(load_machine(key)) for key in list_keys("machine")}
    return min((key for key, size in sizes.items() if size >= needed), key=lambda key: (sizes[key], key), default=None)
