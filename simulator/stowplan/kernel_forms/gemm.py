"""Dense matrix products: tiles of the output over a GPU's units, fed from memory.

The output is cut into tiles; one unit works on one tile at a time and needs, per step along k, the longer of the
multiplications and the loads of the tile's two edges. Tiles run in waves over the units. Few tiles leave units idle, so
libraries split k over several blocks and add the parts afterwards. The library is taken to choose the best tile and
split of its menu. Below all of this lies the time to stream weights and activations from memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from stowplan.kernel_forms.device import VALUE_BYTES, Device
from stowplan.kernel_forms.elementary import FLOATS, Elementary, Value, cached, overlap, waves

Tile = tuple[float, float, float, float]
"""Smallest and largest m that a tile is used for, and its sides along m and n."""
_STEP = 64.0
"""Elements of k that a kernel takes in one step, so k is rounded up to it."""
_SPLITS = (1.0, 2.0, 4.0, 8.0, 16.0)
_CROWD = 4.0
"""Blocks per unit beyond which k is not split any more."""
_PARTIAL = 8.0
"""Bytes to write and read again per partial sum, in fp32."""
_SIXTEEN_BITS = 2.0
"""Bytes of an activation that is not quantised, weight-only types included."""
_ANY = 1e18
LIBRARY_TILES: tuple[Tile, ...] = tuple(
    (1.0, _ANY, m, n)
    for m, n in ((64, 32), (64, 64), (64, 128), (128, 64), (128, 128), (64, 256), (128, 256), (256, 128))
)
"""Output tiles of a general library (cuBLAS, CUTLASS), any of them at any m."""


@dataclass(frozen=True, slots=True)
class GemmForm:
    """Parameters of one type's products on one GPU.

    Attributes:
        latency: seconds of the kernel itself, launch in a stream included.
        share: of the datasheet peak that a tile's inner loop reaches.
        small_tile: how much slower than that a tile of side 64 is.
        feed: bytes/s that one unit loads, in units of the memory's bandwidth per unit.
        tile_overhead: seconds to start and finish a tile.
        split_overhead: seconds to add partial sums; split_traffic: their bytes as a multiple of what they must be.
        wave: share of the last wave's idle units that is lost.
        stream: share of the datasheet memory bandwidth.
        sharpness: how well computing and streaming overlap.
        cached_weights, cached_activations: bytes below which they are in the cache; cache_time: share of time then.
        output: bytes written per output value, as a multiple of what they must be.
        convert_latency, convert_row, convert_traffic: quantising activations first: seconds, seconds per row, and bytes
            moved as a multiple of reading 2 and writing 1 per value. Zero for types that need none.
        host: seconds that the host takes to start the kernels one by one; hidden by a captured graph.
        tiles: the menu. splits: whether k may be split.
    """

    latency: float
    share: float
    small_tile: float
    feed: float
    tile_overhead: float
    split_overhead: float
    split_traffic: float
    wave: float
    stream: float
    sharpness: float
    cached_weights: float
    cached_activations: float
    cache_time: float
    output: float
    convert_latency: float = 0.0
    convert_row: float = 0.0
    convert_traffic: float = 0.0
    host: float = 0.0
    tiles: tuple[Tile, ...] = LIBRARY_TILES
    splits: bool = True

    def seconds(
        self,
        device: Device,
        dtype: str,
        m: Value,
        n: Value,
        k: Value,
        *,
        warm: bool = False,
        eager: bool = False,
        on: Elementary = FLOATS,
    ) -> Value:
        """Seconds of an (m x k) by (k x n) product.

        Args:
            device: the GPU.
            dtype: stored type of the weights, a key of `VALUE_BYTES`.
            m: rows (tokens). n: outputs. k: inputs. Activations come and go in 16 bits.
            warm: whether small weights are still in the cache, as in a benchmark loop; a model's layers find them cold.
            eager: whether the host starts every kernel itself.
            on: floats or arrays.
        """
        size = VALUE_BYTES[dtype]
        operand = size if self.convert_latency else _SIXTEEN_BITS
        per_unit = device.peak(dtype) * self.share / device.units
        fed = self.feed * device.bandwidth / device.units
        memory = device.bandwidth * self.stream
        rows = on.larger(on.ceil(m), 1.0)
        fastest: Value = float("inf")
        for lowest, highest, side_m, side_n in self.tiles:
            blocks = on.ceil(m / side_m) * on.ceil(n / side_n)
            slower = 1.0 + self.small_tile * (32.0 / side_m + 32.0 / side_n)
            step = max(2.0 * side_m * side_n / per_unit * slower, (side_m + side_n) * operand / fed)
            outside = (rows < lowest) | (rows > highest)
            if on.always(outside):
                continue
            for split in _SPLITS if self.splits else _SPLITS[:1]:
                useless = (k < split * _STEP) | (blocks * split > _CROWD * device.units)
                if split > 1.0 and on.always(useless):
                    break
                count = waves(blocks * split / device.units, self.wave, on)
                each = count * (on.ceil(k / (split * _STEP)) * _STEP * step + self.tile_overhead)
                if split > 1.0:
                    each = each + self.split_overhead
                    each = each + self.split_traffic * m * n * _PARTIAL * split / device.bandwidth
                    each = on.pick(useless, float("inf"), each)
                fastest = on.smaller(fastest, on.pick(outside, float("inf"), each))
        weights, activations = size * n * k, operand * m * k + 2.0 * m * n
        cold = cached(weights, self.cached_weights, self.cache_time) if warm else 1.0
        left = cached(activations, self.cached_activations, self.cache_time)
        streaming = (weights * cold + (operand * m * k + 2.0 * m * n * self.output) * left) / memory
        seconds = self.latency + overlap(fastest, streaming, self.sharpness) + self._convert(m, k, memory)
        return overlap(seconds, self.host, _HOST_SHARPNESS) if eager and self.host else seconds

    def _convert(self, m: Value, k: Value, memory: float) -> Value:
        """Seconds to quantise the activations."""
        if not self.convert_latency:
            return 0.0
        moved = 3.0 * m * k
        left = cached(moved, self.cached_activations, self.cache_time)
        return self.convert_latency + self.convert_row * m + self.convert_traffic * moved * left / memory


_HOST_SHARPNESS = 6.0
"""The host runs ahead of the GPU, so the longer of the two counts."""
