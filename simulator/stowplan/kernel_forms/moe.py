"""Mixtures of experts as grouped products: each touched expert's weights are read once, its rows fill tiles.

Two grouped products (into the inner dimension, gate and up together, and out of it) run as tiles in waves over the
units, overlapped with streaming the touched experts' weights. Around them every routed pair's activations are moved,
also those that belong to other GPUs' experts where a kernel skips them only inside.
"""

from __future__ import annotations

from dataclasses import dataclass

from stowplan.kernel_forms.device import VALUE_BYTES, Device
from stowplan.kernel_forms.elementary import FLOATS, Elementary, Value, cached, overlap, waves
from stowplan.kernel_forms.routing import TILE_ROWS, ExpertLoad

_WIDE = 128.0
_SMALL_TILE, _PLAIN_TILE = (16.0, 32.0), (64.0, 64.0)
"""Triton's tiles where no tuned ones ship: the small one while there are no more tokens than experts on the GPU."""
_ALIGNED = 16.0


@dataclass(frozen=True, slots=True)
class MoeForm:
    """Parameters of one type's experts on one GPU.

    Attributes:
        latency: seconds of all kernels; expert: seconds per expert on the GPU; pair: seconds per token and expert.
        share: of the datasheet peak in a tile's inner loop; small_tile: how much slower a tile of 32 rows is.
        feed: bytes/s that one unit loads, in units of the memory's bandwidth per unit.
        tile_overhead: seconds to start and finish a tile; wave: share of the last wave's idle units that is lost.
        stream: share of the datasheet memory bandwidth; sharpness: how well computing and streaming overlap.
        hidden, inner: passes over all pairs' hidden and inner activations, whichever GPU's experts they go to.
        own_hidden: passes over the hidden activations of the GPU's own pairs; token_hidden: over the tokens'.
        cached_weights: bytes of weights below which they are in the cache; cache_time: share of time then.
        cached_activations, activation_time: the same for activations.
        plain: whether tiles are fixed (see `_PLAIN_TILE`) except for the tuned shapes.
        plain_share, plain_overhead, plain_stream: the figures of the plain tile; `plain_stream` of its streaming.
        unaligned: time of tiles whose inner dimension is no multiple of 16, in units of others.
        throttled: how much slower long runs are; throttled_after: seconds at which half of that has set in.
        tuned: (experts on the GPU, inner dimension on the GPU) with tiles of their own.
    """

    latency: float
    expert: float
    pair: float
    share: float
    small_tile: float
    feed: float
    tile_overhead: float
    wave: float
    stream: float
    sharpness: float
    hidden: float
    inner: float
    own_hidden: float
    token_hidden: float
    cached_weights: float
    cached_activations: float
    cache_time: float
    activation_time: float
    plain: bool = False
    plain_share: float = 1.0
    plain_overhead: float = 0.0
    plain_stream: float = 1.0
    unaligned: float = 1.0
    throttled: float = 0.0
    throttled_after: float = 0.1
    tuned: tuple[tuple[float, float], ...] = ()

    def seconds(
        self,
        device: Device,
        dtype: str,
        tokens: Value,
        hidden: Value,
        inner: Value,
        experts: Value,
        experts_per_token: Value,
        load: ExpertLoad,
        *,
        products: Value = 3.0,
        warm: bool = False,
        on: Elementary = FLOATS,
    ) -> Value:
        """Seconds of one layer's experts on one GPU.

        Args:
            device: the GPU.
            dtype: stored type of the experts' weights.
            tokens: tokens of the step on all GPUs of the group.
            hidden: width of the model. inner: inner width of an expert on this GPU, after tensor parallelism.
            experts: experts on this GPU. experts_per_token: experts that a token picks.
            load: what falls on this GPU.
            products: matrices per expert: 3 with a gate, 2 without.
            warm: whether few touched weights are still in the cache, as in a benchmark loop.
            on: floats or arrays.
        """
        size = VALUE_BYTES[dtype]
        weights = load.touched * products * hidden * inner * size
        kept = cached(weights, self.cached_weights, self.cache_time) if warm else 1.0
        streaming = weights * kept / (device.bandwidth * self.stream)
        shapes = ((inner * (products - 1.0), hidden), (hidden, inner))
        fastest: Value = float("inf")
        for rows, tiles in zip(TILE_ROWS, load.tiles, strict=True):
            each = self._grouped(device, dtype, (float(rows), _WIDE), tiles, shapes, self.share, self.tile_overhead, on)
            fastest = on.smaller(fastest, each)
        if self.plain:
            few = tokens <= experts
            first = self._grouped(device, dtype, _SMALL_TILE, load.tiles[0], shapes, self.share, self.tile_overhead, on)
            rest = self._grouped(
                device, dtype, _PLAIN_TILE, load.tiles[2], shapes, self.plain_share, self.plain_overhead, on
            )
            plain = on.pick(few, first, rest)
            tuned: Value = tokens < 0
            for count, width in self.tuned:
                tuned = tuned | ((experts == count) & (inner == width))
            fastest = on.pick(tuned, fastest, plain)
            streaming = streaming * on.pick(tuned | few, 1.0, 1.0 / self.plain_stream)
        fastest = fastest * on.pick(on.ceil(inner / _ALIGNED) * _ALIGNED > inner, self.unaligned, 1.0)
        passes = tokens * experts_per_token * (hidden * self.hidden + inner * self.inner)
        moved = 2.0 * (passes + load.pairs * hidden * self.own_hidden + tokens * hidden * self.token_hidden)
        moving = moved * cached(moved, self.cached_activations, self.activation_time) / device.bandwidth
        fixed = self.latency + self.expert * experts + self.pair * tokens * experts_per_token
        seconds = overlap(fastest, streaming, self.sharpness) + moving + fixed
        return seconds * (1.0 + self.throttled * seconds / (seconds + self.throttled_after))

    def _grouped(
        self,
        device: Device,
        dtype: str,
        tile: tuple[float, float],
        tiles: Value,
        shapes: tuple[tuple[Value, Value], ...],
        share: float,
        overhead: float,
        on: Elementary,
    ) -> Value:
        """Seconds of both grouped products with tiles of one size."""
        rows, columns = tile
        per_unit = device.peak(dtype) * share / device.units
        fed = self.feed * device.bandwidth / device.units
        slower = 1.0 + self.small_tile * 32.0 / rows
        step = max(2.0 * rows * columns / per_unit * slower, (columns * VALUE_BYTES[dtype] + rows * 2.0) / fed)
        seconds: Value = 0.0
        for width, depth in shapes:
            count = waves(tiles * on.ceil(width / columns) / device.units, self.wave, on)
            seconds = seconds + count * (depth * step + overhead)
        return seconds
