"""Bytes that FlexGen holds, tier by tier, as sums over weights, cache, hidden states and workspace.

Every part is affine in the placement, so the same functions price a plan and write the planner's memory limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from stowplan.models.model import Attention, LatentAttention
from stowplan.ops import CacheFormat, output_tensor
from stowplan.plan import MemoryUse
from stowplan.systems.base import DISK, RAM
from stowplan.systems.flexgen_execution import FlexgenRun, Placement
from stowplan.systems.flexgen_policy import GPU, HALF, TIERS, homes
from stowplan.systems.flexgen_schedule import Unit

Parts = dict[str, dict[str, float]]
"""Tier to what its use is made of."""

_WORKSPACE = 4.0  # bytes of an fp32 element of the CPU's attention workspace
_SCORE_COPIES = 2.0  # scores and their softmax are alive together


class FlexgenMemory:
    """Allocation rules for one run."""

    def __init__(self, run: FlexgenRun) -> None:
        self.run, self.settings = run, run.settings
        self.model, self.workload = run.setup.model, run.workload

    def weights(self, percent: tuple[int, int]) -> Parts:
        """Stored weights, and on the GPU the loading buffers of two consecutive units and an unpacked unit."""
        parts: Parts = {tier: {} for tier in TIERS}
        sizes = [self._sizes(unit, percent) for unit in self.run.units]
        for index in self.run.sequence:
            for tier, size in sizes[index].items():
                _add(parts[tier], "weights", size)
        loads = [sum(sizes[index].values()) - sizes[index][GPU] for index in self.run.sequence]
        unpacked = 0.0
        if self.settings.compress_weight:
            unpacked = max(HALF * sum(group.elements for group in unit.groups) for unit in self.run.units)
        _add(parts[GPU], "buffers", max(first + second for first, second in pairwise(loads)) + unpacked)
        return parts

    def _sizes(self, unit: Unit, percent: tuple[int, int]) -> dict[str, float]:
        sizes = dict.fromkeys(TIERS, 0.0)
        for group in unit.groups:
            for piece, home in zip(group.pieces, homes(group, *percent), strict=True):
                sizes[home] += piece.size(self.settings.compress_weight)
        return sizes

    def _cache_of_batch(self) -> tuple[float, float]:
        """Uncompressed bytes of one GPU batch's cache over all layers, and of the largest layer."""
        size = self.settings.gpu_batch_size
        layers = [size * CacheFormat().sequence_bytes(layer, self.workload.capacity) for layer in self.model.layers]
        return sum(layers), max(layers)

    def cache(self, shares: Mapping[str, float]) -> Parts:
        """Cache on its tiers, the GPU's double buffer for what comes from elsewhere, or the CPU's workspace."""
        parts: Parts = {tier: {} for tier in TIERS}
        ratio = self.settings.cache_bytes / HALF
        whole, largest = self._cache_of_batch()
        away = sum(share for tier, share in shares.items() if tier != GPU)
        for tier, share in shares.items():
            _add(parts[tier], "cache", share * whole * ratio * self.settings.num_gpu_batches)
        if self.settings.cpu_cache_compute:
            workspaces = 1 if self.settings.sep_layer else 2
            _add(parts[RAM], "buffers", workspaces * largest * _WORKSPACE / HALF)
        else:
            _add(parts[GPU], "buffers", 2 * away * largest * ratio)
        return parts

    def hidden(self, tier: str) -> Parts:
        """Hidden states of the block between two layers; on the GPU at least those of two GPU batches."""
        one = HALF * self.settings.gpu_batch_size * max(1, self.workload.prompt) * self.model.hidden
        parts: Parts = {name: {} for name in TIERS}
        if tier != GPU:
            _add(parts[GPU], "buffers", 2 * one)
        _add(parts[tier], "hidden states", self.settings.num_gpu_batches * one)
        return parts

    def fixed(self) -> Parts:
        """Workspace of the widest operator of a prompt, runtime, copy threads' buffers, the operating system."""
        tokens = self.settings.gpu_batch_size * max(1, self.workload.prompt)
        widest = HALF * tokens * output_tensor(self.model).rows
        for layer in self.model.layers:
            widest = max(widest, *(HALF * tokens * t.rows for t in layer.tensors if t.columns > 1 and t.count == 1))
            if isinstance(layer.mixer, Attention | LatentAttention):
                pairs = tokens * (self.workload.depth + self.workload.prompt)
                widest = max(widest, _SCORE_COPIES * HALF * layer.mixer.heads * pairs)
        working = widest + 4 * HALF * tokens * self.model.hidden
        if self.settings.compress_cache:  # unpacked in decode, when the prompt's workspace is free again
            working = max(working, self._cache_of_batch()[1])
        value = self.run.setup.figures.value
        return {
            GPU: {"buffers": working, "runtime": value("flexgen.gpu.runtime")},
            RAM: {
                "buffers": value("flexgen.host.disk_buffers"),
                "system": self.run.setup.machine.reserved.value,
            },
            DISK: {},
        }

    def capacities(self) -> dict[str, float]:
        """Bytes of each tier; 0 for a disk that the machine lacks."""
        machine = self.run.setup.machine
        disk = machine.disks[0].capacity.value if machine.disks else 0.0
        return {GPU: machine.gpus[0].memory.value, RAM: machine.memory.capacity.value, DISK: disk}

    def use(self, placement: Placement) -> dict[str, MemoryUse]:
        """Use of every tier that the machine has."""
        whole = total(
            [
                self.weights(placement.weights),
                self.cache(placement.cache),
                self.hidden(placement.hidden),
                self.fixed(),
            ]
        )
        uses: dict[str, MemoryUse] = {}
        for tier, capacity in self.capacities().items():
            used = sum(whole[tier].values())
            if capacity or used:
                uses[tier] = MemoryUse(used=used, capacity=capacity, parts=whole[tier])
        return uses


def total(many: list[Parts]) -> Parts:
    """Sum of several uses."""
    whole: Parts = {tier: {} for tier in TIERS}
    for parts in many:
        for tier, by_name in parts.items():
            for name, size in by_name.items():
                _add(whole[tier], name, size)
    return whole


def _add(parts: dict[str, float], name: str, size: float) -> None:
    if size:
        parts[name] = parts.get(name, 0.0) + size
