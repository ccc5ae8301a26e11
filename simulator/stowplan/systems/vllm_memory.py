"""What vLLM keeps on each GPU and in host memory, and how many tokens of cache are left.

At start vLLM runs one step of the largest size and measures its peak. Of the share of the GPU's memory that it may
take, weights, that peak and what the runtime holds come off; all the rest becomes blocks of cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stowplan.errors import DoesNotFit, NotExpressible
from stowplan.models.model import EXPERT_ROLES, Attention, LatentAttention, Layer, Model, Recurrence, Role, Tensor
from stowplan.ops import CacheFormat, Part, part_of
from stowplan.plan import MemoryUse, Place
from stowplan.systems.base import RAM, Setup
from stowplan.systems.vllm_settings import VllmSettings
from stowplan.units import format_bytes

GIB = 2.0**30
_KEY_SIDE = frozenset({Role.ATTN_K, Role.ATTN_V})
_WHOLE = frozenset({Role.ATTN_Q_A, Role.ATTN_KV_A, Role.ATTN_OTHER, Role.ROUTER, Role.POSITION_EMBEDDING})
_WIDE = frozenset({Role.FFN_GATE, Role.FFN_UP, Role.EXPERT_GATE, Role.EXPERT_UP, Role.SHARED_GATE, Role.SHARED_UP})
_MODULE_ORDER = (
    Part.MIXER,
    Part.FFN_GATE,
    Part.FFN_UP,
    Part.EXPERT_GATE,
    Part.EXPERT_UP,
    Part.EXPERT_DOWN,
    Part.FFN_DOWN,
    Part.SHARED,
)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights of a layer on one GPU of the group, by part, and which parts stay in host memory."""

    layer: Layer
    sizes: tuple[tuple[Part, float], ...]
    offloaded: frozenset[Part]

    @property
    def in_host(self) -> float:
        """Bytes in host memory, of this GPU alone."""
        return sum(size for part, size in self.sizes if part in self.offloaded)

    @property
    def on_gpu(self) -> float:
        """Bytes on this GPU."""
        return sum(size for part, size in self.sizes if part not in self.offloaded)


def rank_bytes(tensor: Tensor, mixer: object, gpus: int) -> float:
    """Bytes of a tensor on one of `gpus` GPUs."""
    if tensor.columns == 1 or tensor.role in _WHOLE:
        return float(tensor.bytes)
    if tensor.role in _KEY_SIDE and isinstance(mixer, Attention) and mixer.kv_heads < gpus:
        return tensor.bytes / mixer.kv_heads
    return tensor.bytes / gpus


def layer_weights(model: Model, settings: VllmSettings) -> Iterator[LayerWeights]:
    """Weights of every layer, the first ones in host memory until the offloaded bytes are reached."""
    left = settings.cpu_offload_gib * GIB
    for layer in model.layers:
        sizes: dict[Part, float] = {}
        for tensor in layer.tensors:
            part = part_of(tensor)
            sizes[part] = sizes.get(part, 0.0) + rank_bytes(tensor, layer.mixer, settings.tensor_parallel)
        moved: set[Part] = set()
        for part in (part for part in _MODULE_ORDER if part in sizes):
            if left > 0.0:  # the last one may go beyond what was asked for
                moved.add(part)
                left -= sizes[part]
        yield LayerWeights(layer, tuple(sizes.items()), frozenset(moved))


def layer_places(weights: LayerWeights, gpus: int) -> dict[str, Place]:
    """Part name to place, as a plan stores it."""
    shared: Place = "gpu0" if gpus == 1 else {f"gpu{i}": 1.0 / gpus for i in range(gpus)}
    places = {part.value: (RAM if part in weights.offloaded else shared) for part, _ in weights.sizes}
    return {**places, Part.KV.value: shared}


def token_bytes(model: Model, settings: VllmSettings) -> float:
    """Bytes of one cached token on one GPU over all layers.

    Raises:
        NotExpressible: a recurrent layer.
    """
    cache = CacheFormat(settings.cache_bytes, settings.cache_bytes)
    total = 0.0
    for layer in model.layers:
        if isinstance(layer.mixer, Recurrence):
            raise NotExpressible(f"vLLM: the state of {model.name}'s recurrent layers is not modelled")
        whole = cache.token_bytes(layer)
        if isinstance(layer.mixer, LatentAttention):
            total += whole  # every GPU keeps the latent
        else:
            total += whole / min(settings.tensor_parallel, layer.mixer.kv_heads)
    return total


@dataclass(frozen=True, slots=True)
class VllmMemory:
    """Memory of one GPU of the group, and of the host.

    Attributes:
        gpu: weights, activations and runtime of one GPU by name, cache left out; bytes.
        budget: bytes of one GPU that vLLM may take; capacity: bytes of the GPU.
        host: bytes of offloaded weights in host memory, all GPUs together.
        token: bytes of one cached token on one GPU.
    """

    gpu: dict[str, float]
    budget: float
    capacity: float
    host: float
    token: float

    @property
    def room(self) -> float:
        """Bytes that are left for the cache; negative where weights alone do not fit."""
        return self.budget - sum(self.gpu.values())

    def cache_tokens(self, block_tokens: int) -> int:
        """Tokens of cache in whole blocks.

        Raises:
            DoesNotFit: not one block.
        """
        blocks = int(self.room / (self.token * block_tokens))
        if blocks < 1:
            missing = self.token * block_tokens - self.room
            raise DoesNotFit(f"a GPU lacks {format_bytes(missing)} before the first block of cache", missing)
        return blocks * block_tokens

    def uses(self, setup: Setup, gpus: int, cached: float) -> dict[str, MemoryUse]:
        """Use by tier with `cached` tokens in the cache."""
        parts = {**self.gpu, "cache": cached * self.token}
        found = {f"gpu{i}": MemoryUse(used=sum(parts.values()), capacity=self.budget, parts=parts) for i in range(gpus)}
        machine = setup.machine
        ram = {"system": machine.reserved.value, **({"weights": self.host} if self.host else {})}
        found[RAM] = MemoryUse(used=sum(ram.values()), capacity=machine.memory.capacity.value, parts=ram)
        return found


def memory_of(setup: Setup, settings: VllmSettings) -> VllmMemory:
    """Memory under given settings.

    Raises:
        NotExpressible: as `token_bytes`.
    """
    model, value, gpus = setup.model, setup.figures.value, settings.tensor_parallel
    layers = list(layer_weights(model, settings))
    tables = sum(rank_bytes(tensor, None, gpus) for tensor in model.globals)
    capacity = min(gpu.memory.value for gpu in setup.machine.gpus[:gpus])
    return VllmMemory(
        gpu={
            "weights": sum(weights.on_gpu for weights in layers) + tables,
            "activations": activation_bytes(model, settings, value("vllm.memory.sampler_value")),
            "runtime": value("vllm.memory.runtime"),
        },
        budget=settings.gpu_memory_utilization * capacity * (1.0 - value("vllm.memory.driver_share")),
        capacity=capacity,
        host=gpus * sum(weights.in_host for weights in layers),
        token=token_bytes(model, settings),
    )


def activation_bytes(model: Model, settings: VllmSettings, sampler_value: float) -> float:
    """Peak of the measured step: the widest layer of the largest batch, or the sampler over the whole vocabulary."""
    gpus, tokens = settings.tensor_parallel, settings.max_num_batched_tokens
    inner = max(
        sum(
            t.rows / gpus * (layer.experts.active if layer.experts and t.role in EXPERT_ROLES else 1)
            for t in layer.tensors
            if t.role in _WIDE
        )
        for layer in model.layers
    )
    forward = 2.0 * tokens * (4 * model.hidden + 1.5 * inner)  # gate and up, and their product of half the width
    return max(forward, sampler_value * min(settings.max_num_seqs, tokens) * model.vocabulary)
