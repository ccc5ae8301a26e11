"""What no exact engine can beat on a machine: every byte read once per step, all memories at full rate at once.

An exact engine computes with all weights and the whole cache as the model stores them; what it reads is then fixed, and
only where from is its choice. Arithmetic, overheads, compression, eviction and speculation are left out, so the floor
holds for every placement and schedule.
"""

from __future__ import annotations

import math

from stowplan.errors import NotExpressible
from stowplan.ops import CacheFormat, Kind, Step, step_operators
from stowplan.plan import Workload
from stowplan.systems.base import Setup

_HALVINGS = 100
_LONGEST = 1e12


def decode_floor(setup: Setup, workload: Workload) -> float:
    """Seconds below which no exact engine can run one decode step at the workload's mean context.

    From each memory at most what it holds can come, at the memory's own rate: GPU memories, host memory (computed there
    or sent over the links, which is no faster), and a disk without end. A mixture's active experts may all be found on
    the GPU as far as they have room there, for a cache may be that lucky.

    Raises:
        NotExpressible: the bytes fit no memory of the machine, and there is no disk.
    """
    amount = step_bytes(setup, Step.decode(workload.batch, workload.decode_context))
    sources = _sources(setup)
    high = 1e-9
    while _served(sources, high) < amount:
        high *= 2.0
        if high > _LONGEST:
            raise NotExpressible(
                f"{setup.model.name} does not fit the memory of {setup.machine.name}, which has no disk"
            )
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _served(sources, middle) >= amount else (middle, high)
    return low


def step_bytes(setup: Setup, step: Step) -> float:
    """Bytes of weights and cache that one step reads at least."""
    found = 0.0
    for op in step_operators(setup.model, step, CacheFormat()):
        found += (op.weight_bytes if op.kind is Kind.MATMUL else 0.0) + op.kv_read
    return found


def _sources(setup: Setup) -> list[tuple[float, float]]:
    """(bytes/s, bytes held) of everything that can be read."""
    machine, figures = setup.machine, setup.figures
    host = (figures.value("host.dram"), machine.memory.capacity.value)
    sources: list[tuple[float, float]] = []
    for index, gpu in enumerate(machine.gpus):
        rate = figures.value(f"gpu{index}.hbm")
        if gpu.unified:
            host = (max(host[0], rate), host[1])
        else:
            sources.append((rate, gpu.memory.value))
    disk = figures.get_value("disk.read")
    return [*sources, host, *([(disk, math.inf)] if disk else [])]


def _served(sources: list[tuple[float, float]], seconds: float) -> float:
    return sum(min(rate * seconds, held) for rate, held in sources)
