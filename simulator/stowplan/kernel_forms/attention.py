"""Attention of a prompt and of single new tokens, by blocks of queries over tiles of the cache.

A block holds some rows of queries of one head (or of all query heads that share a cache head) and walks over the cached
tokens that its rows may see. Blocks run in waves over the units; the longest walk bounds the time from below. Single
tokens make few blocks, so their walk is split and the parts are combined by a second kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from stowplan.kernel_forms.device import VALUE_BYTES, Device
from stowplan.kernel_forms.elementary import FLOATS, Elementary, Value, cached, overlap, waves

UNSEEN = 1e9
"""A window wider than any context stands for none."""
_SPLITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
_WINDOW_TILE = 0.5
"""A window's first tile is half outside of it on average."""


@dataclass(frozen=True, slots=True)
class PrefillForm:
    """Parameters of one cache type's prompt attention on one GPU.

    Attributes:
        latency: seconds of the kernel; sequence: seconds per sequence of the batch.
        block_overhead: seconds to start and finish a block; head_overhead: the same per 128 head dimensions.
        softmax: seconds of one score on one unit, besides the products.
        shares: of the datasheet peak in the products, by head dimension.
        wave: share of the last wave's idle units that is lost; tail: how well the longest block hides behind others.
        stream: share of the datasheet memory bandwidth; sharpness: how well computing and streaming overlap.
        cache_write: bytes moved to store new keys and values, as a multiple of two bytes each.
        windowed: time of a score under a sliding window, in units of one without.
        cached_bytes: below this much the operands are in the cache; cache_time: share of time then.
        rows: rows of queries in a block. grouped: whether a block holds all heads that share a cache head.
    """

    latency: float
    sequence: float
    block_overhead: float
    head_overhead: float
    softmax: float
    shares: tuple[tuple[float, float], ...]
    wave: float
    tail: float
    stream: float
    sharpness: float
    cache_write: float
    windowed: float
    cached_bytes: float
    cache_time: float
    rows: float = 128.0
    grouped: bool = False

    def seconds(
        self,
        device: Device,
        cache_dtype: str,
        batch: Value,
        new: Value,
        past: Value,
        heads: Value,
        kv_heads: Value,
        head_dim: Value,
        window: Value = UNSEEN,
        *,
        on: Elementary = FLOATS,
    ) -> Value:
        """Seconds of causal attention of `new` tokens of each of `batch` sequences after `past` cached ones.

        Args:
            device: the GPU.
            cache_dtype: stored type of the cache.
            batch: sequences. new: tokens of each. past: tokens of each that are cached already.
            heads: query heads. kv_heads: cache heads. head_dim: values per head.
            window: tokens that a row sees at most.
            on: floats or arrays.
        """
        length = past + new
        group = heads / kv_heads if self.grouped else 1.0
        blocks = on.ceil(new * group / self.rows)
        span = self.rows / group
        seen = (_reach(length, window, on) - _reach(past, window, on)) / new
        walked = on.smaller(length, seen + on.smaller(span, new) / 2.0)
        score = 4.0 * self.rows * head_dim / (device.peak("bf16") / device.units * self._share(head_dim, on))
        score = (score + self.softmax * self.rows) * on.pick(window < length, self.windowed, 1.0)
        overhead = self.block_overhead + self.head_overhead * head_dim / 128.0
        count = batch * heads / group * blocks / device.units
        quantised = self.wave * on.ceil(count) + (1.0 - self.wave) * count
        longest = overhead + on.smaller(length, window + span) * score
        computing = overlap((overhead + walked * score) * quantised, longest, self.tail)
        cache = 2.0 * kv_heads * on.smaller(length, window + new) * VALUE_BYTES[cache_dtype]
        moved = batch * head_dim * (4.0 * heads * new + cache)
        streaming = moved + batch * head_dim * new * 4.0 * kv_heads * self.cache_write
        streaming = streaming * cached(moved, self.cached_bytes, self.cache_time) / (device.bandwidth * self.stream)
        return self.latency + self.sequence * batch + overlap(computing, streaming, self.sharpness)

    def _share(self, head_dim: Value, on: Elementary) -> Value:
        """Share of the peak for this head dimension: that of the next fitted one upwards, since kernels pad to it."""
        share: Value = self.shares[-1][1]
        for dimension, fitted in reversed(self.shares[:-1]):
            share = on.pick(head_dim <= dimension, fitted, share)
        return share


def _reach(tokens: Value, window: Value, on: Elementary) -> Value:
    """Sum over the first `tokens` rows of what each sees: itself and those before it, at most `window`."""
    ramp = on.smaller(tokens, window)
    return ramp * (tokens - ramp / 2.0)


@dataclass(frozen=True, slots=True)
class DecodeForm:
    """Parameters of one cache type's single-token attention on one GPU.

    Attributes:
        latency: seconds of the kernel; sequence: seconds per sequence of the batch.
        block_overhead, head_overhead: seconds to start and finish a block, and the same per 128 head dimensions.
        split_overhead: seconds of the second kernel; split_traffic: bytes of the parts, as a multiple of 8 per value.
        feed: bytes/s that one unit loads, in units of the memory's bandwidth per unit.
        share: of the datasheet peak in the products; tile_overhead: seconds per tile of the cache.
        wave: share of the last wave's idle units that is lost.
        stream: share of the datasheet memory bandwidth; sharpness: how well walking and streaming overlap.
        cached_bytes: below this much the cache stays on the GPU between runs; cache_time: share of time then.
        operands: bytes of queries and outputs, as a multiple of 4 per value.
        regroup: seconds to bring the heads that share a cache head together, where that takes kernels of its own.
        rows: query heads in a block. apart: FlashAttention 2: under a window, or with one query head per cache head,
            every query head walks alone and its walk is not split.
    """

    latency: float
    sequence: float
    block_overhead: float
    head_overhead: float
    split_overhead: float
    split_traffic: float
    feed: float
    share: float
    tile_overhead: float
    wave: float
    stream: float
    sharpness: float
    cached_bytes: float
    cache_time: float
    operands: float
    regroup: float = 0.0
    rows: float = 64.0
    apart: bool = False

    def seconds(
        self,
        device: Device,
        cache_dtype: str,
        batch: Value,
        context: Value,
        heads: Value,
        kv_heads: Value,
        head_dim: Value,
        window: Value = UNSEEN,
        *,
        warm: bool = False,
        on: Elementary = FLOATS,
    ) -> Value:
        """Seconds of attention of one new token in each of `batch` sequences over `context` tokens each.

        Args:
            device: the GPU.
            cache_dtype: stored type of the cache.
            batch: sequences. context: tokens of each, the new one included.
            heads: query heads. kv_heads: cache heads. head_dim: values per head.
            window: tokens that a row sees at most.
            warm: whether a small cache is still in the GPU's cache, as in a benchmark loop.
            on: floats or arrays.
        """
        size = VALUE_BYTES[cache_dtype]
        seen = on.smaller(context, window)
        cut = window < context
        tile = on.pick(head_dim <= 64, 256.0, on.pick(head_dim <= 128, 128.0, 64.0))
        tiles = on.ceil(seen / tile) + on.pick(cut, _WINDOW_TILE, 0.0)
        alone = (heads <= kv_heads) | (window < UNSEEN) if self.apart else window < 0.0
        blocks = on.pick(alone, batch * heads, batch * kv_heads * on.ceil(heads / kv_heads / self.rows))
        loads = tile * head_dim * 2.0 * size / (self.feed * device.bandwidth / device.units)
        products = 4.0 * self.rows * tile * head_dim / (device.peak("bf16") / device.units * self.share)
        step = on.larger(loads, products) + self.tile_overhead
        overhead = self.block_overhead + self.head_overhead * head_dim / 128.0
        fastest: Value = float("inf")
        for split in _SPLITS:
            useless = (tiles < split) | alone
            if split > 1.0 and on.always(useless):
                break
            each = waves(blocks * split / device.units, self.wave, on) * (step * on.ceil(tiles / split) + overhead)
            if split > 1.0:
                each = each + self.split_overhead
                each = each + self.split_traffic * batch * heads * head_dim * split * 8.0 / device.bandwidth
                each = on.pick(useless, float("inf"), each)
            fastest = on.smaller(fastest, each)
        stored = batch * kv_heads * seen * head_dim * 2.0 * size
        kept = cached(stored, self.cached_bytes, self.cache_time) if warm else 1.0
        moved = stored * kept + batch * heads * head_dim * 4.0 * self.operands
        seconds = overlap(fastest, moved / (device.bandwidth * self.stream), self.sharpness)
        if self.regroup:
            together = (kv_heads > 1) & (batch > 1)
            seconds = seconds + on.pick(alone, 0.0, on.pick(together, self.regroup, 0.0))
        return self.latency + self.sequence * batch + seconds
