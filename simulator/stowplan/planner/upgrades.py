"""What would help: the same request planned again with one thing changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from stowplan.errors import StowplanError
from stowplan.machines import list_keys, load_gpu, load_machine
from stowplan.machines.compose import pcie_link
from stowplan.machines.machine import Disk, Gpu, Machine, Number, SourceKind
from stowplan.models import load_model
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup
from stowplan.planner.result import Planned, Request
from stowplan.systems import load_system
from stowplan.systems.base import RAM
from stowplan.units import format_bytes

_GGUF = ("bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m", "iq3_xxs", "iq2_m", "iq2_xxs", "iq1_m")
_SMALLER: Mapping[str, Sequence[str]] = {"llama.cpp": _GGUF, "vllm": ("bf16", "fp8"), "accelerate": ("f32", "bf16")}
"""Storage mixes that a system reads, each smaller than the one before."""
_COMPRESSED = {"compress_weight": "weights in 4 bits", "compress_cache": "the cache in 4 bits"}
"""FlexGen's own compression, by setting."""
_SMALLER_CACHE = ("f32", "bf16", "f16", "q8_0", "q4_0")
_LATEST_PCIE = 5
_MOST_GPUS = 2
_MOST_OTHER_GPUS = 5
_NOTICEABLE = 1.1
"""A GPU with less than a tenth more memory or bandwidth is no upgrade that anybody looks for."""
_LEAST_CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One change and what the best plan does with it.

    Attributes:
        title: the change in the user's words: "64 GiB more RAM".
        decode_tokens_per_s, ttft_s: of the new best plan.
        cost: its objective in seconds.
        quality: whether the answers of the model change with it.
        price_usd: what the parts cost, None where a price is not known or the change is not a thing to buy.
        planned: the new best plan.
        request: what it was planned for.
    """

    title: str
    decode_tokens_per_s: float
    ttft_s: float
    cost: float
    planned: Planned
    request: Request
    quality: bool = False
    price_usd: float | None = None


@dataclass(frozen=True, slots=True)
class _Candidate:
    title: str
    request: Request
    quality: bool = False
    price_usd: float | None = None


def upgrades(system: str, request: Request, planned: Planned, *, thorough: bool = False) -> list[Upgrade]:
    """Single changes, the most helpful first; a change that the machine cannot have is left out.

    Args:
        system: who runs it.
        request, planned: what was asked and found.
        thorough: also lanes, a second disk, other GPUs, smaller cache formats and a shorter context.
    """
    found: list[Upgrade] = []
    workload = planned.plan.workload
    asked = replace(request, workload=workload, batches=(), write_lp=None, alternatives=False)
    for each in (*_candidates(system, asked, planned), *(_more(system, asked, planned) if thorough else ())):
        request.progress(each.title)
        try:
            better = plan_for(system, each.request)
        except StowplanError:  # the changed machine cannot run it either
            continue
        prediction = better.prediction
        found.append(
            Upgrade(
                title=each.title,
                decode_tokens_per_s=prediction.decode_tokens_per_s,
                ttft_s=prediction.ttft_s,
                cost=better.cost,
                quality=each.quality,
                price_usd=each.price_usd,
                planned=better,
                request=each.request,
            )
        )
    return sorted(found, key=lambda each: (each.cost, each.title))


def _candidates(system: str, request: Request, planned: Planned) -> Iterator[_Candidate]:
    machine = request.setup.machine
    host = planned.prediction.memory_bytes[RAM]
    unified = bool(machine.gpus) and machine.gpus[0].unified
    if host.used > 0.9 * host.capacity:
        capacity = machine.memory.capacity.value
        title = f"{format_bytes(capacity)} more RAM"
        larger = _changed(machine, f"memory.capacity={2 * capacity / 2**30}GiB")
        yield _Candidate(title, _on(system, request, larger), price_usd=_usd(machine.memory.price))
    dram = request.setup.figures.value("host.dram")
    if not unified:
        faster = _changed(machine, f"memory.bandwidth={2 * dram / 1e9}GB/s")
        yield _Candidate("RAM twice as fast (more channels)", _on(system, request, faster))
    if machine.gpus and not unified and len(machine.gpus) < _MOST_GPUS:
        gpu = machine.gpus[0]
        second = replace(machine, gpus=machine.gpus * 2, pcie=machine.pcie * 2)
        yield _Candidate(f"a second {gpu.name}", _on(system, request, second), price_usd=_usd(gpu.price))
    if machine.gpus and not unified and machine.gpus[0].pcie_generation < _LATEST_PCIE:
        generation = machine.gpus[0].pcie_generation + 1
        title = f"PCIe {generation}.0 on GPU and board"
        yield _Candidate(title, _on(system, request, _changed(machine, f"gpu.pcie.generation={generation}")))
    smaller = _smaller_mix(system, request.setup.model.quant)
    if smaller is not None:
        model = load_model(request.model_reference[0], smaller)
        setup = replace(request.setup, model=model)
        changed = replace(request, setup=setup, model_reference=(request.model_reference[0], smaller))
        yield _Candidate(f"{smaller.upper()} instead of {request.setup.model.quant.upper()}", changed, quality=True)
    for setting, title in _COMPRESSED.items():
        if planned.plan.settings.get(setting) is False:
            settings = dict(request.settings) | {setting: True}
            yield _Candidate(title, replace(request, settings=settings), quality=True)


def _smaller_mix(system: str, quant: str) -> str | None:
    """The next smaller mix that the system reads."""
    mixes, present = _SMALLER.get(system, ()), "bf16" if quant == "f16" else quant
    return mixes[mixes.index(present) + 1] if present in mixes[:-1] else None


def _more(system: str, request: Request, planned: Planned) -> Iterator[_Candidate]:
    machine = request.setup.machine
    discrete = bool(machine.gpus) and not machine.gpus[0].unified
    lanes = machine.pcie[0].lanes if discrete else None
    if lanes is not None and lanes < machine.gpus[0].pcie_lanes:
        title = f"{machine.gpus[0].pcie_lanes} PCIe lanes instead of {lanes}"
        yield _Candidate(title, _on(system, request, _changed(machine, f"gpu.pcie.lanes={machine.gpus[0].pcie_lanes}")))
    if machine.disks and any(name.startswith("disk.") for name in planned.prediction.time_shares):
        disk = machine.disks[0]
        striped = replace(machine, disks=(_striped(disk), *machine.disks[1:]))
        yield _Candidate(f"a second {disk.name}, striped", _on(system, request, striped), price_usd=_usd(disk.price))
    if discrete:
        for gpu in _other_gpus(machine.gpus[0]):
            count = len(machine.gpus)
            price = None if gpu.price is None else count * gpu.price.value
            name = gpu.name if count == 1 else f"{count} x {gpu.name}"
            title = f"{name} instead" if "GB" in name else f"{name} ({format_bytes(gpu.memory.value)}) instead"
            yield _Candidate(title, _on(system, request, _with_gpus(machine, gpu)), price_usd=price)
    present = str(planned.plan.settings.get("cache_k", "f16"))
    if present in _SMALLER_CACHE[:-1] and "cache_k" in planned.plan.settings:
        smaller = _SMALLER_CACHE[_SMALLER_CACHE.index(present) + (2 if present == "bf16" else 1)]
        settings = dict(request.settings) | {"cache_k": smaller, "cache_v": smaller}
        title = f"the cache in {smaller.upper()} instead of {present.upper()}"
        yield _Candidate(title, replace(request, settings=settings), quality=True)
    workload = request.workload
    half = workload.capacity // 2
    if half >= max(_LEAST_CONTEXT, workload.depth + workload.prompt + workload.generate):
        shorter = replace(request, workload=workload.model_copy(update={"context": half}))
        yield _Candidate(f"room for {half:,} tokens instead of {workload.capacity:,}", shorter)


def _other_gpus(present: Gpu) -> list[Gpu]:
    """GPUs of the same maker with noticeably more memory or bandwidth, cheapest first, none beaten by a cheaper one."""
    gpus = [load_gpu(key) for key in list_keys("gpu") if key != present.key]
    better = [
        gpu
        for gpu in gpus
        if gpu.vendor == present.vendor
        and not gpu.unified
        and gpu.price is not None
        and (
            gpu.memory.value > _NOTICEABLE * present.memory.value
            or gpu.bandwidth.value > _NOTICEABLE * present.bandwidth.value
        )
    ]
    kept: list[Gpu] = []
    for gpu in sorted(better, key=lambda each: (_usd(each.price) or 0.0, each.key)):
        beaten = any(
            other.memory.value >= gpu.memory.value and other.bandwidth.value >= gpu.bandwidth.value for other in kept
        )
        if not beaten:
            kept.append(gpu)
    return kept[:_MOST_OTHER_GPUS]


def _with_gpus(machine: Machine, gpu: Gpu) -> Machine:
    """The machine with every GPU replaced, each in the slot that is there."""
    generation = min(gpu.pcie_generation, machine.cpu.pcie_generation)
    links = tuple(pcie_link(generation, min(gpu.pcie_lanes, link.lanes or gpu.pcie_lanes)) for link in machine.pcie)
    return replace(machine, gpus=(gpu,) * len(machine.gpus), pcie=links, peer=None)


def _striped(disk: Disk) -> Disk:
    """Two of a disk, read together: twice the rates, the same latency."""

    def doubled(number: Number) -> Number:
        return Number(2 * number.value, SourceKind.ASSUMED, f"two striped, each: {number.source}")

    faults = disk.page_fault_read
    return replace(
        disk,
        capacity=doubled(disk.capacity),
        read=doubled(disk.read),
        write=doubled(disk.write),
        page_fault_read=None if faults is None else doubled(faults),
    )


def _usd(price: Number | None) -> float | None:
    return None if price is None else price.value


def _changed(machine: Machine, override: str) -> Machine:
    return load_machine(machine.spec, [*machine.settings, override])


def _on(system: str, request: Request, machine: Machine) -> Request:
    """The request on another machine, with that machine's figures."""
    engine = request.settings.get("engine")
    variant = str(engine) if engine is not None else None
    return replace(request, setup=make_setup(machine, request.setup.model, load_system(system), variant))
