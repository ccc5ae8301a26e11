"""Bytes of a policy on every tier, and filling the tiers with as much as they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil

from stowplan.errors import DoesNotFit
from stowplan.figures import Figures
from stowplan.machines.machine import Machine
from stowplan.models.model import DENSE_FFN_ROLES, SHARED_ROLES, Layer, Model, Recurrence, Role
from stowplan.ops import CacheFormat
from stowplan.plan import MemoryUse, Workload
from stowplan.systems.base import DISK, RAM, Setup, classify
from stowplan.systems.mechanisms.policy import Policy
from stowplan.systems.mechanisms.pricing import GPU, HALF, dense_bytes, expert_bytes
from stowplan.units import format_bytes

Parts = dict[str, dict[str, float]]
_HALVINGS = 40
_DISK_BUFFERS = 2  # layers on their way from disk through host memory
_TENSORS = 2  # keys and values


def memory(setup: Setup, engine: str, policy: Policy, workload: Workload) -> dict[str, MemoryUse]:
    """High-water mark of every tier that the machine has; may exceed its capacity."""
    machine = setup.machine
    used = _parts(setup.model, setup.figures, engine, policy, workload)
    found: dict[str, MemoryUse] = {}
    for tier, capacity in capacities(machine, policy).items():
        parts = {name: size for name, size in used[tier].items() if size}
        found[tier] = MemoryUse(used=sum(parts.values()), capacity=capacity, parts=parts)
    return found


def capacities(machine: Machine, policy: Policy) -> dict[str, float]:
    """Bytes of every tier that a plan may use."""
    room = {RAM: machine.memory.capacity.value - machine.reserved.value}
    if machine.gpus and policy.device == "gpu":
        room = {GPU: machine.gpus[0].memory.value * (1.0 - policy.slack)} | room
    if machine.disks:
        room[DISK] = machine.disks[0].capacity.value
    return room


def _parts(model: Model, figures: Figures, engine: str, policy: Policy, workload: Workload) -> Parts:
    used: Parts = {GPU: {}, RAM: {}, DISK: {}}
    home = GPU if policy.device == "gpu" else RAM
    used[home]["embedding, output"] = float(sum(tensor.bytes for tensor in model.globals))
    if policy.device == "gpu":
        used[GPU]["runtime"] = figures.get_value(f"{engine}.gpu.runtime") or 0.0
    buffers: list[Parts] = []
    for members in classify(model):
        count = float(len(members.indices))
        for tier, parts in _layer(model, members.layer, policy, workload).items():
            for name, size in parts.items():
                used[tier][name] = used[tier].get(name, 0.0) + size * count
        buffers.append(_buffers(model, members.layer, policy, workload))
    for tier in used:
        used[tier]["buffers"] = max((each.get(tier, {}).get("buffers", 0.0) for each in buffers), default=0.0)
    attending = max((each.get(home, {}).get("attending", 0.0) for each in buffers), default=0.0)
    used[home]["activations"] = _activations(model, policy, workload, attending)
    return used


def _layer(model: Model, layer: Layer, policy: Policy, workload: Workload) -> Parts:
    """What one layer keeps on each tier."""
    weights, own, cache = policy.weights, policy.experts, policy.cache
    dense, routed = dense_bytes(layer) * weights.stored, expert_bytes(layer) * own.stored
    smaller = routed * own.low_stored if own.low else 0.0
    kv, scanned, hot = _cache_bytes(layer, policy, workload, model.hidden)
    return {
        GPU: {
            "weights": dense * weights.gpu,
            "experts": routed * own.gpu + smaller * own.low_gpu,
            "KV cache": kv * cache.gpu,
            "KV selection": scanned + hot,
        },
        RAM: {
            "weights": dense * weights.ram,
            "experts": (routed + smaller) * own.ram,
            "KV cache": _in_blocks(kv * cache.ram, _TENSORS * cache.slices) if cache.rounded else kv * cache.ram,
        },
        DISK: {"weights": dense * weights.disk, "experts": (routed + smaller) * own.disk, "KV cache": kv * cache.disk},
    }


def _in_blocks(size: float, blocks: int) -> float:
    """Bytes in so many equal blocks, each of the next power of two."""
    return float(blocks * (1 << (ceil(size / blocks) - 1).bit_length())) if size else 0.0


def _cache_bytes(layer: Layer, policy: Policy, workload: Workload, hidden: int) -> tuple[float, float, float]:
    """Stored cache of a layer for the whole batch; of that, what selection scans and what stays hot on the GPU."""
    cache = policy.cache
    plain = CacheFormat().sequence_bytes(layer, workload.capacity, full_window=cache.windowed) * workload.batch
    if isinstance(layer.mixer, Recurrence):
        return plain, 0.0, 0.0
    kept = max(1.0, workload.capacity * cache.kept)
    fresh = min(1.0, cache.residual / kept)
    stored = plain * cache.kept * (fresh + (1.0 - fresh) * cache.bits)
    inputs = HALF * hidden * workload.capacity * workload.batch * cache.kept * cache.bits
    held = stored * (1.0 - cache.recompute) + inputs * cache.recompute
    selected = stored * cache.read * cache.locality if cache.read < 1.0 else 0.0
    return held, (stored * cache.scan if cache.read < 1.0 else 0.0) * cache.away, selected * cache.away


def _buffers(model: Model, layer: Layer, policy: Policy, workload: Workload) -> Parts:
    """Room that copies need beside what stays: layers ahead, slices of the cache, experts on demand."""
    weights, own, cache = policy.weights, policy.experts, policy.cache
    if policy.device == "cpu":
        disk = dense_bytes(layer) * weights.disk * weights.stored + _demanded(layer, policy) * bool(own.disk)
        return {RAM: {"buffers": (weights.prefetch + 1) * disk}}
    streamed = 0.0 if weights.zero_copy else dense_bytes(layer) * weights.away * weights.stored
    experts = 0.0
    if layer.experts is not None and own.gpu < 1.0:
        if own.selective:
            experts = _demanded(layer, policy) * (2.0 if own.accuracy else 1.0) * (own.miss != "cpu")
        elif not weights.zero_copy:
            streamed += expert_bytes(layer) * (1.0 - own.gpu) * own.stored
    unpacked = dense_bytes(layer) * weights.away if weights.unpack is not None else 0.0
    slots = 2.0 if cache.prefetch or cache.slices > 1 else 1.0
    kv, _, _ = _cache_bytes(layer, policy, workload, model.hidden)
    piece = kv * cache.away * cache.read / cache.slices / policy.batches if cache.attend == "gpu" else 0.0
    staged = streamed * weights.disk / weights.away * _DISK_BUFFERS if weights.disk and not weights.direct else 0.0
    return {
        GPU: {
            "buffers": (weights.prefetch + 1) * streamed + unpacked + experts + piece * slots,
            "attending": piece * max(0.0, (cache.slots or slots) - slots),
        },
        RAM: {"buffers": staged},
    }


def _demanded(layer: Layer, policy: Policy) -> float:
    """Bytes of the experts that one token asks for."""
    if layer.experts is None:
        return 0.0
    return expert_bytes(layer) / layer.experts.total * layer.experts.active * policy.experts.stored


def _activations(model: Model, policy: Policy, workload: Workload, attending: float) -> float:
    """16-bit inputs, gate and up products of the largest pass, and fp32 logits of one row per sequence.

    What only attention needs (`attending`) and the products are not there at the same time.
    """
    batch = -(-workload.batch // policy.batches)
    tokens = batch * max(1, min(workload.prompt, policy.chunk or workload.prompt))
    widest = max(_width(members.layer) for members in classify(model))
    logits = 4.0 * batch * model.vocabulary
    products, inputs = HALF * tokens * widest, HALF * model.hidden * tokens * policy.batches
    return max(products, attending) + inputs + logits


def _width(layer: Layer) -> float:
    """Elements that one token has between the two halves of its feed-forward block."""
    width = 0.0
    for tensor in layer.tensors:
        if tensor.role in (Role.FFN_GATE, Role.FFN_UP, Role.SHARED_GATE, Role.SHARED_UP):
            width += tensor.rows
        elif tensor.role in (Role.EXPERT_GATE, Role.EXPERT_UP) and layer.experts is not None:
            width += tensor.rows * layer.experts.active
    known = DENSE_FFN_ROLES | SHARED_ROLES
    return width or float(max((t.rows for t in layer.tensors if t.role in known), default=0))


def overflow(use: Mapping[str, MemoryUse]) -> tuple[str, float] | None:
    """The first tier that holds more than it can, and by how much."""
    for tier, each in use.items():
        if each.used > each.capacity * (1.0 + 1e-9):
            return tier, each.used - each.capacity
    return None


def filled(
    setup: Setup, engine: str, policy: Policy, workload: Workload, *, gpu: tuple[str, ...], disk: bool
) -> Policy:
    """The policy with as much in GPU memory, then in host memory, as there is room for.

    Args:
        setup, engine, policy, workload: as for `memory`.
        gpu: what may be held in part, in order: ``weights``, ``experts``. What is not named stays as the policy says.
        disk: whether the rest may be on disk.

    Raises:
        DoesNotFit: what the policy fixes, or the rest, has no room.
    """

    def fits(candidate: Policy, tier: str) -> bool:
        use = memory(setup, engine, candidate, workload)[tier]
        return use.used <= use.capacity

    def largest(make: Callable[[float], Policy], tier: str) -> float:
        if fits(make(1.0), tier):
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(make(middle), tier) else (low, middle)
        return low

    chosen = policy
    for name in gpu:
        chosen = _with_share(chosen, name, 0.0)
    if policy.device == "gpu":
        for name in gpu:
            base = chosen
            chosen = _with_share(base, name, largest(lambda share, b=base, n=name: _with_share(b, n, share), GPU))  # type: ignore[misc]
    if disk and setup.machine.disks:
        for name in reversed(gpu):
            base = chosen
            chosen = _off_host(base, name, largest(lambda share, b=base, n=name: _off_host(b, n, share), RAM))  # type: ignore[misc]
    _check(setup, engine, chosen, workload)
    return chosen


def _with_share(policy: Policy, name: str, share: float) -> Policy:
    """The named subject with a share on the GPU and the rest in host memory."""
    if name == "weights":
        return replace(policy, weights=replace(policy.weights, gpu=share, ram=1.0 - share))
    return replace(policy, experts=replace(policy.experts, gpu=share, ram=1.0 - share))


def _off_host(policy: Policy, name: str, share: float) -> Policy:
    """The named subject with a share of what is away from the GPU in host memory and the rest on disk."""
    if name == "weights":
        return replace(policy, weights=replace(policy.weights, ram=policy.weights.away * share))
    return replace(policy, experts=replace(policy.experts, ram=(1.0 - policy.experts.gpu) * share))


def _check(setup: Setup, engine: str, policy: Policy, workload: Workload) -> None:
    found = overflow(memory(setup, engine, policy, workload))
    if found is None:
        return
    tier, missing = found
    name = {GPU: "GPU memory", RAM: "host memory", DISK: "the disk"}[tier]
    raise DoesNotFit(f"{name} lacks {format_bytes(missing)} for what it keeps there", missing)


def check(setup: Setup, engine: str, policy: Policy, workload: Workload) -> None:
    """Refuse a policy that does not fit.

    Raises:
        DoesNotFit: a tier would hold more than its capacity.
    """
    _check(setup, engine, policy, workload)
