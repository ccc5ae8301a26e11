"""Bytes that llama.cpp allocates, tier by tier: weights, cache, compute buffers, runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from stowplan.models import state_bytes
from stowplan.models.model import Layer, Model, Recurrence
from stowplan.ops import CacheFormat
from stowplan.plan import Workload
from stowplan.systems.base import RAM
from stowplan.systems.llama_cpp_allocator import buffers
from stowplan.systems.llama_cpp_graph import GraphBuilder
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.serial import LayerPlaces

_PIPELINE_COPIES = 4  # GGML_SCHED_MAX_COPIES, of each input where micro-batches overlap on several GPUs
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

    def _stream_cells(self, layer: Layer) -> int:
        """Tokens of cache of one sequence, which is what a mask and scores are as wide as."""
        cells = _padded(self.workload.capacity)
        window = None if isinstance(layer.mixer, Recurrence) else layer.mixer.window
        return cells if window is None else min(cells, _padded(window + self.settings.ubatch))

    def compute_buffers(
        self, layers: Sequence[tuple[Layer, LayerPlaces]], embedding: str, output: str, gpus: int
    ) -> dict[str, float]:
        """Bytes of the compute buffer of every device, in host memory the one of the CPU.

        Args:
            layers: in order; repeats may be left out.
            embedding, output: places of the tables outside the layers.
            gpus: how many the engine sees.
        """
        placed = tuple((layer.index, places) for layer, places in layers)
        return dict(_compute_buffers(self, placed, embedding, output, gpus))

    def allocated(
        self, layers: Sequence[tuple[Layer, LayerPlaces]], embedding: str, output: str, gpus: int
    ) -> dict[str, float]:
        """`compute_buffers`, replayed anew."""
        tokens = min(self.settings.chunk, self.cells)
        builder = GraphBuilder(self.model, self.settings, self.cache, tokens, self.workload.batch, gpus > 0)
        placed = [(layer, places, self._stream_cells(layer)) for layer, places in layers]
        graph = builder.build(placed, embedding, output, _padded(self.workload.capacity))
        devices = [*(f"gpu{i}" for i in range(gpus)), RAM]
        copies = _PIPELINE_COPIES if gpus > 1 and self._pipelined(layers, output) else 1
        return {device: float(size) for device, size in buffers(graph, devices, copies).items()}

    def _pipelined(self, layers: Sequence[tuple[Layer, LayerPlaces]], output: str) -> bool:
        """Whether micro-batches overlap on several GPUs: all layers whole and with their cache on GPUs."""
        whole = all(places.mixer == places.kv != RAM for _, places in layers)
        together = all(place == places.mixer for _, places in layers for _, place in places.ffn)
        return output != RAM and self.settings.kv_offload and whole and together


@lru_cache(maxsize=512)
def _compute_buffers(
    rules: LlamaCppMemory, placed: tuple[tuple[int, LayerPlaces], ...], embedding: str, output: str, gpus: int
) -> dict[str, float]:
    """The same placement is asked for again and again, while a prediction scales one figure after another."""
    layers = [(rules.model.layers[index], places) for index, places in placed]
    return rules.allocated(layers, embedding, output, gpus)
