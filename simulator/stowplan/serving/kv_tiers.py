"""Places for cached blocks that a machine has below its GPU, from what a user says of them.

A place is written ``NAME=SIZE``, or ``NAME=SIZE@RATE`` and ``NAME=SIZE@RATE+LATENCY`` where the machine's own figures
are not meant: ``host=64GiB``, ``disk=1TB``, ``remote=10TB@25GB/s+1ms``. Blocks from the disk and from a remote store
pass host memory and the GPU's link; what weights occupy of a link is left out by the replay.

Where GPU and CPU share one memory, blocks in host memory lie beside the GPU's share of it: they take what model and
cache of the GPU leave. A copy reads and writes them in that memory, and contends with the weights for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stowplan.errors import DoesNotFit, InputError
from stowplan.plan import MemoryUse
from stowplan.serving.tiers import Tier
from stowplan.systems.base import Setup
from stowplan.units import format_bytes, parse_quantity

_NAMES = ("host", "disk", "remote")


@dataclass(frozen=True, slots=True)
class Place:
    """What a user says of a tier: capacity in bytes, and bytes/s and seconds of latency where they say so."""

    name: str
    size: float
    rate: float | None = None
    latency_s: float | None = None


def parse_place(text: str) -> Place:
    """A place from text; see the module's text.

    Raises:
        InputError: another form, an unknown name, a value that is not a size, rate or duration, or a rate of 0.
    """
    name, equals, rest = text.partition("=")
    name = name.strip()
    if not equals or name not in _NAMES:
        raise InputError(
            f"--kv-tier: '{text[:60]}' is not a place for cached blocks; write host=64GiB, disk=1TB or "
            f"remote=10TB@25GB/s+1ms"
        )
    size, at, speed = rest.partition("@")
    rate, plus, latency = speed.partition("+")
    if name == "remote" and not at:
        raise InputError(f"--kv-tier: '{text[:60]}' lacks the rate of the store; write remote=10TB@25GB/s+1ms")
    where = f"--kv-tier {name}"
    found = Place(
        name,
        parse_quantity(size, "bytes", where=where),
        parse_quantity(rate, "bytes/s", where=where) if at else None,
        parse_quantity(latency, "seconds", where=where) if plus else None,
    )
    if found.rate is not None and found.rate <= 0.0:
        raise InputError(f"{where}: '{text[:60]}' has a rate of 0, so that nothing would ever come; give more")
    return found


def tiers_of(
    setup: Setup, places: Sequence[Place], block_bytes: float, host: MemoryUse | None, gpus: int = 1
) -> tuple[Tier, ...]:
    """Tiers, nearest first.

    Args:
        setup: the machine and its figures.
        places: what the user wants, each name at most once.
        block_bytes: bytes of one block of cache over all layers on one GPU.
        host: use of host memory by weights, buffers and cache, those of a GPU that shares it included; None where
            nobody knows, and only the system's share is kept.
        gpus: GPUs that each keep such a part of every block, and copy it over a link of their own.

    Raises:
        InputError: a place twice or without room for one block, a machine without GPU or disk, a model without cache,
            or a disk that is smaller than what is wanted of it.
        DoesNotFit: host memory has no such room beside weights and cache.
    """
    names = [place.name for place in places]
    if len(set(names)) != len(names):
        raise InputError(f"--kv-tier: '{next(n for n in names if names.count(n) > 1)}' is given twice")
    if not setup.machine.gpus:
        raise InputError(f"{setup.machine.name} has no GPU, so that there is nothing below it to keep blocks in")
    if block_bytes <= 0.0:
        raise InputError(f"--kv-tier: {setup.model.name} keeps no cache of its tokens; leave the places out")
    ordered = sorted(places, key=lambda place: _NAMES.index(place.name))
    return tuple(_tier(setup, place, block_bytes, host, gpus) for place in ordered)


def _tier(setup: Setup, place: Place, block_bytes: float, host: MemoryUse | None, gpus: int) -> Tier:
    figures, machine, whole = setup.figures, setup.machine, block_bytes * gpus
    if place.size < whole:
        raise InputError(
            f"--kv-tier {place.name}: {format_bytes(place.size)} is less than one block of {format_bytes(whole)}; "
            f"give more"
        )
    link, up, down = "gpu0.h2d", figures.value("gpu0.h2d.pinned"), figures.value("gpu0.d2h.pinned")
    landing = up
    if machine.gpus[0].unified:  # what comes from outside is written once and is then where the GPU reads
        link, landing = "gpu0.hbm", figures.value("host.dram")
    if place.name == "host":
        _check_host(setup, place, host)
        read = {link: block_bytes / up if place.rate is None else whole / place.rate}
        write = block_bytes / down if place.rate is None else whole / place.rate
    elif place.name == "disk":
        if not machine.disks:
            raise InputError(f"--kv-tier disk: {machine.name} has no disk; name one with --set or leave it out")
        disk = machine.disks[0]
        if place.size > disk.capacity.value:
            raise InputError(f"--kv-tier disk: {disk.name} holds {format_bytes(disk.capacity.value)}; ask for less")
        read = {"disk.read": whole / (place.rate or figures.value("disk.read")), link: block_bytes / landing}
        write = whole / (place.rate or figures.value("disk.write"))
    else:
        assert place.rate is not None
        read = {"network": whole / place.rate, link: block_bytes / landing}
        write = whole / place.rate
    latency = place.latency_s
    if latency is None:
        latency = figures.value("disk.latency") if place.name == "disk" else 0.0
    return Tier(place.name, int(place.size // whole), read, write, latency)


def _check_host(setup: Setup, place: Place, host: MemoryUse | None) -> None:
    machine = setup.machine
    used = machine.reserved.value if host is None else host.used
    left = (machine.memory.capacity.value if host is None else host.capacity) - used
    if place.size <= left:
        return
    beside = "beside weights and cache in RAM"
    if machine.gpus[0].unified:
        beside = "beside model and cache of the GPU, which shares it"
    raise DoesNotFit(
        f"--kv-tier host: {format_bytes(place.size)} is more than the {format_bytes(max(0.0, left))} of memory that "
        f"{machine.name} has left {beside}; ask for less",
        place.size - left,
    )
