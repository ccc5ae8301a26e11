"""Bytes that llama.cpp allocates, tier by tier: weights, cache, compute buffers, runtime."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stowplan.models import state_bytes
from stowplan.models.model import Layer, Model, Recurrence
from stowplan.ops import EXPERT_PARTS, CacheFormat, Part, output_tensor, part_of
from stowplan.plan import Workload
from stowplan.systems.base import RAM
from stowplan.systems.llama_cpp_offload import OFFLOAD_MIN_TOKENS
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.serial import LayerPlaces

_CELL_PADDING = 256  # llama.cpp rounds the cache up to this many tokens


def _padded(tokens: int) -> int:
    return -(-tokens // _CELL_PADDING) * _CELL_PADDING


@dataclass(frozen=True, slots=True)
class LlamaCppMemory:
    """Allocation rules for one model, workload and settings.

    Checked against the allocator of llama.cpp itself (llama-fit-params on a Qwen3-235B-A22B header with --cpu-moe, 8192
    tokens, micro-batch 512): device 4321 MiB of weights, 1504 of cache, 304 of compute buffer; host buffer 152 MiB.
    """

    model: Model
    workload: Workload
    settings: LlamaCppSettings
    cache: CacheFormat

    @property
    def cells(self) -> int:
        """Tokens of cache over all sequences."""
        return _padded(self.workload.capacity) * self.workload.batch

    def kv_bytes(self, layer: Layer) -> float:
        """Bytes of one layer's cache or state; a sliding window keeps its window and one micro-batch."""
        if isinstance(layer.mixer, Recurrence):
            return float(state_bytes(layer.mixer) * self.workload.batch)
        cells = self.cells
        if layer.mixer.window is not None:
            cells = min(cells, _padded(layer.mixer.window * self.workload.batch + self.settings.ubatch))
        return self.cache.token_bytes(layer) * cells

    def _activations(self, layer: Layer, experts_here: bool) -> float:
        """Bytes of a layer's largest set of live activations for one micro-batch (fp32)."""
        tokens = self.settings.ubatch
        widest = 0.0
        for tensor in layer.tensors:
            part = part_of(tensor)
            if part in EXPERT_PARTS and experts_here and layer.experts is not None:
                widest += 4.0 * tokens * layer.experts.active * tensor.rows
            elif part in (Part.FFN_GATE, Part.FFN_UP):
                widest += 4.0 * tokens * tensor.rows
        mask = 4.0 * tokens * self.cells
        scores = 0.0
        if not self.settings.flash_attention and not isinstance(layer.mixer, Recurrence):
            scores = 4.0 * layer.mixer.heads * tokens * self.cells
        return max(widest, scores) + mask + 3 * 4.0 * tokens * self.model.hidden

    def gpu_buffer(self, layers: Sequence[tuple[Layer, LayerPlaces]], gpu: str, *, output_here: bool) -> float:
        """Compute buffer of one GPU: logits or the widest layer, and the largest weight that is streamed through it.

        Buffers are maxima: `layers` may leave out repeats.
        """
        tokens = self.settings.ubatch
        logits = 4.0 * tokens * (output_tensor(self.model).rows + self.model.hidden) if output_here else 0.0
        mine = [(layer, places) for layer, places in layers if places.mixer == gpu]
        widest = max(
            (self._activations(layer, places.place(Part.EXPERT_DOWN) == gpu) for layer, places in mine), default=0.0
        )
        streams = self.settings.op_offload and tokens >= OFFLOAD_MIN_TOKENS and gpu == "gpu0"
        staging = self._largest_in_ram(layers) if streams else 0.0
        return max(logits, widest) + staging

    def _largest_in_ram(self, layers: Iterable[tuple[Layer, LayerPlaces]]) -> float:
        return max(
            (
                float(tensor.bytes)
                for layer, places in layers
                for tensor in layer.tensors
                if places.place(part_of(tensor)) == RAM
            ),
            default=0.0,
        )

    def host_buffer(self, layers: Sequence[tuple[Layer, LayerPlaces]]) -> float:
        """Compute buffer in host memory."""
        if not layers:
            return 0.0
        return max(self._activations(layer, places.place(Part.EXPERT_DOWN) == RAM) for layer, places in layers)
