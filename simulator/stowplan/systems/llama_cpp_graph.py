"""llama.cpp's compute graph of one micro-batch, as far as its memory is concerned.

After ``llama-graph.cpp`` and the graphs of Llama, Qwen3-MoE and DeepSeek-V2; numbers between operations are fp32.
Recurrent mixers are simplified: their widest projection and its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stowplan.models.model import Attention, LatentAttention, Layer, Model, Recurrence, Role, Tensor
from stowplan.ops import CacheFormat, output_tensor, part_of
from stowplan.systems.base import RAM
from stowplan.systems.llama_cpp_allocator import Graph, Value
from stowplan.systems.llama_cpp_offload import copied_from, since
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.serial import LayerPlaces

_FP32, _MASK_FP16, _INDEX = 4, 2, 8
_BOTH_INPUTS = "2026-01-18"  # llama.cpp PR 18898: room for embeddings as inputs even where tokens are given
_REPEATS = 2  # of a kind of layers, so that the blocks that one leaves free are there for the next


@dataclass(slots=True)
class GraphBuilder:
    """Builds the graph of one micro-batch.

    Attributes:
        model, settings, cache: what runs and how.
        tokens: of the micro-batch.
        streams: sequences with caches of their own.
        gpus: whether there are any, which products of host-resident weights go to.
    """

    model: Model
    settings: LlamaCppSettings
    cache: CacheFormat
    tokens: int
    streams: int
    gpus: bool
    operations: list[Value] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    _masks: dict[int, Value] = field(default_factory=dict)

    def build(
        self, layers: Sequence[tuple[Layer, LayerPlaces, int]], embedding: str, output: str, full_cells: int
    ) -> Graph:
        """The graph of layers in order.

        Args:
            layers: (layer, places, cells of one stream's cache); repeats may be left out.
            embedding, output: places of the tables outside the layers.
            full_cells: cells of a stream of layers without a window.
        """
        tokens = self._input(_FP32 * self.tokens)
        if self.settings.engine == "llama.cpp" and since(self.settings, _BOTH_INPUTS):
            self._input(self._floats(self.model.hidden))
        position = self._input(_FP32 * self.tokens)
        rows = self._input(_INDEX * self.tokens)
        transposed = not self.settings.flash_attention  # then values are written one by one
        values = max((_value_width(layer) for layer, _, _ in layers), default=1) if transposed else 1
        value_rows = self._input(_INDEX * self.tokens * values)
        width = _MASK_FP16 if self.settings.flash_attention else _FP32
        for cells in sorted({full_cells, *(each for _, _, each in layers)}, reverse=True):
            self._masks[cells] = self._input(width * self.tokens * cells)
        outputs = self._input(_FP32 * self.tokens)
        table = Value(0, place=embedding, resident=True)
        stream = self._add(self._floats(self.model.hidden), table, tokens, place=embedding)
        repeated = [each for each in layers for _ in range(_REPEATS)]
        for index, (layer, places, cells) in enumerate(repeated):
            mixed = self._mixer(layer, places, cells, stream, (position, rows, value_rows))
            if index == len(repeated) - 1:
                mixed = self._add(mixed.size, mixed, outputs)
                stream = self._add(stream.size, stream, outputs)
            stream = self._add(mixed.size, mixed, stream, in_place=True)
            stream = self._add(stream.size, self._feed_forward(layer, places, stream), stream, in_place=True)
        last = self._norm(stream, output)
        self._product(last, output_tensor(self.model), output)
        return Graph(self.inputs, self.operations)

    def _floats(self, width: int) -> int:
        return _FP32 * self.tokens * width

    def _input(self, size: int) -> Value:
        self.inputs.append(Value(size, place=RAM))
        return self.inputs[-1]

    def _add(self, size: int, *sources: Value, place: str | None = None, in_place: bool = False) -> Value:
        self.operations.append(Value(size, sources, place=place, in_place=in_place))
        return self.operations[-1]

    def _executor(self, place: str, format_key: str, experts: tuple[int, int] | None) -> str:
        if place != RAM or not self.gpus or self.tokens < copied_from(self.settings, format_key, experts):
            return place
        return "gpu0"

    def _norm(self, value: Value, place: str) -> Value:
        normed = self._add(value.size, value, in_place=True)
        weight = Value(_FP32 * self.model.hidden, place=place, resident=True, weight=True)
        return self._add(value.size, normed, weight, place=self._executor(place, "f32", None), in_place=True)

    def _product(
        self,
        operand: Value,
        tensor: Tensor,
        place: str,
        *others: Value,
        size: int | None = None,
        experts: tuple[int, int] | None = None,
    ) -> Value:
        weight = Value(tensor.bytes, place=place, resident=True, weight=True)
        where = self._executor(place, tensor.format, experts)
        return self._add(size or self._floats(tensor.rows), weight, operand, *others, place=where)

    def _mixer(
        self, layer: Layer, places: LayerPlaces, cells: int, stream: Value, indices: tuple[Value, Value, Value]
    ) -> Value:
        position, rows, value_rows = indices
        home, mixer = places.mixer, layer.mixer
        found = {tensor.role: tensor for tensor in layer.tensors if tensor.columns > 1}
        normed = self._norm(stream, home)
        if isinstance(mixer, Recurrence):
            projections = [tensor for tensor in layer.tensors if tensor.role is Role.SSM and tensor.columns > 1]
            widest = max(projections, key=lambda tensor: tensor.rows, default=None)
            if widest is None:
                return self._add(stream.size, normed)
            inner = self._product(normed, widest, home)
            return self._add(stream.size, self._add(inner.size, inner), place=inner.place)
        if isinstance(mixer, LatentAttention):
            query, key = self._latent(mixer, found, home, normed, position)
            self._add(0, key, rows, place=places.kv)
            heads, value_dim = mixer.heads, mixer.latent
        else:
            query, key, value = self._projections(mixer, found, home, normed, position)
            self._add(0, key, rows, place=places.kv)
            self._add(0, value, value_rows, place=places.kv)
            heads, value_dim = mixer.heads, mixer.value_dim
        keys = self._cached(mixer.k_elements * self.cache.k, cells, places.kv)
        values = self._cached(mixer.v_elements * self.cache.v, cells, places.kv)
        seen = self._attention(query, (keys, values), cells, heads, value_dim)
        if isinstance(mixer, LatentAttention) and Role.ATTN_KV_B in found:
            size = self._floats(mixer.heads * mixer.value_dim)
            seen = self._product(seen, found[Role.ATTN_KV_B], home, size=size)
            seen = self._add(size, seen)
        return self._product(seen, found[Role.ATTN_OUT], home)

    def _cached(self, token_bytes: float, cells: int, place: str) -> Value:
        return Value(round(token_bytes * cells * self.streams), place=place, resident=True)

    def _projections(
        self, mixer: Attention, found: dict[Role, Tensor], home: str, normed: Value, position: Value
    ) -> tuple[Value, Value, Value]:
        """Queries, keys and values; a rotation reads a view of its operand, so it is never in place."""
        if Role.ATTN_QKV in found:
            together = self._product(normed, found[Role.ATTN_QKV], home)
            query = self._add(self._floats(mixer.heads * mixer.head_dim), together, position)
            return query, self._add(self._floats(mixer.k_elements), together, position), together
        query = self._product(normed, found[Role.ATTN_Q], home)
        query = self._add(query.size, query, position)
        value = self._product(normed, found[Role.ATTN_V], home)
        key = self._product(normed, found[Role.ATTN_K], home)
        return query, self._add(key.size, key, position), value

    def _latent(
        self, mixer: LatentAttention, found: dict[Role, Tensor], home: str, normed: Value, position: Value
    ) -> tuple[Value, Value]:
        """Queries absorbed into the latent space, and the latent with its rotary key."""
        query = normed
        for role in (Role.ATTN_Q_A, Role.ATTN_Q_B, Role.ATTN_Q):
            if role in found:
                query = self._product(query, found[role], home)
        latent = self._product(normed, found[Role.ATTN_KV_A], home)
        rotary_key = self._add(self._floats(mixer.rope_dim), latent, position)
        normed_latent = self._add(self._floats(mixer.latent), latent)
        rotary = self._add(self._floats(mixer.heads * mixer.rope_dim), query, position)
        size = self._floats(mixer.heads * mixer.latent)
        up = found.get(Role.ATTN_KV_B)
        absorbed = self._product(query, up, home, size=size) if up is not None else self._add(size, query)
        whole = self._add(self._floats(mixer.heads * mixer.k_elements), absorbed, rotary)
        return whole, self._add(self._floats(mixer.k_elements), normed_latent, rotary_key)

    def _attention(self, query: Value, cached: tuple[Value, Value], cells: int, heads: int, value_dim: int) -> Value:
        keys, values = cached
        mask, size = self._masks[cells], self._floats(heads * value_dim)
        if self.settings.flash_attention:
            return self._add(size, query, keys, values, mask)
        scores = self._add(self._floats(heads * cells), keys, query)
        scores = self._add(scores.size, scores, mask, in_place=True)
        seen = self._add(size, values, scores)
        return self._add(size, seen, place=None if self.settings.kv_offload else RAM)

    def _feed_forward(self, layer: Layer, places: LayerPlaces, stream: Value) -> Value:
        found = {tensor.role: tensor for tensor in layer.tensors if tensor.columns > 1}
        normed = self._norm(stream, places.mixer)
        results = []
        if layer.experts is not None and Role.ROUTER in found:
            results.append(self._routed(layer, places, found, normed))
        for roles in (
            (Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN),
            (Role.SHARED_GATE, Role.SHARED_UP, Role.SHARED_DOWN),
        ):
            if roles[2] in found:
                gates = [
                    self._product(normed, found[role], _at(places, found[role])) for role in roles[:2] if role in found
                ]
                active = self._add(gates[-1].size, *gates, in_place=len(gates) == 1)
                results.append(self._product(active, found[roles[2]], _at(places, found[roles[2]])))
        total = results[0] if results else self._add(stream.size, normed)
        for other in results[1:]:
            total = self._add(stream.size, total, other, in_place=True)
        return total

    def _routed(self, layer: Layer, places: LayerPlaces, found: dict[Role, Tensor], normed: Value) -> Value:
        assert layer.experts is not None
        active, experts = layer.experts.active, (layer.experts.total, layer.experts.active)
        logits = self._product(normed, found[Role.ROUTER], places.mixer)
        shares = self._add(logits.size, logits, in_place=True)
        chosen = self._add(shares.size, shares)
        weights = self._add(self._floats(active), shares, chosen)

        def of_experts(operand: Value, role: Role) -> Value:
            tensor = found[role]
            size = self._floats(active * tensor.rows)
            return self._product(operand, tensor, _at(places, tensor), chosen, size=size, experts=experts)

        gates = [of_experts(normed, role) for role in (Role.EXPERT_GATE, Role.EXPERT_UP) if role in found]
        inner = self._add(gates[-1].size, *gates, in_place=len(gates) == 1)
        down = of_experts(inner, Role.EXPERT_DOWN)
        weighted = self._add(down.size, down, weights, in_place=True)
        if active == 1:
            return weighted
        first = self._add(self._floats(self.model.hidden), weighted)
        return self._add(first.size, first, weighted, in_place=True)


def _at(places: LayerPlaces, tensor: Tensor) -> str:
    return places.place(part_of(tensor))


def _value_width(layer: Layer) -> int:
    return 1 if isinstance(layer.mixer, Recurrence) else layer.mixer.v_elements
