"""Sums over GPUs: one-shot and two-shot kernels for small messages, rings for large ones.

In one shot every GPU reads all others' data; in two shots each sums its part and reads the sums. Both start fast and
are limited to messages that fit their buffers. A ring (NCCL) moves 2 (n - 1) / n of the bytes over each link; its
low-latency protocols trade bandwidth for a quick start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stowplan.kernel_forms.device import Device
from stowplan.kernel_forms.elementary import FLOATS, Elementary, Value, overlap


@dataclass(frozen=True, slots=True)
class RingForm:
    """Parameters of a collective library's rings.

    Attributes:
        quick_start, quick_hop: seconds, and seconds per further GPU, of the low-latency protocol.
        quick_share: share of the link's bandwidth with it.
        bulk_start, bulk_hop: seconds, and seconds per further GPU, of the protocol for large messages.
        pair, four, eight: share of the link's bandwidth among two, four and eight GPUs.
        mixing: how sharply the protocols pass into each other.
    """

    quick_start: float
    quick_hop: float
    quick_share: float
    bulk_start: float
    bulk_hop: float
    pair: float
    four: float
    eight: float
    mixing: float

    def seconds(
        self, device: Device, size: Value, gpus: Value, turns: Value = 2.0, *, on: Elementary = FLOATS
    ) -> Value:
        """Seconds of a collective over `size` bytes; `turns` is 2 for a sum, 1 for a gather, scatter or exchange."""
        share = on.pick(gpus <= 2, self.pair, on.pick(gpus <= 4, self.four, self.eight))
        moved = turns * (gpus - 1.0) / gpus * size / device.link
        hops = (gpus - 1.0) * turns / 2.0
        quick = self.quick_start + self.quick_hop * hops + moved / (share * self.quick_share)
        bulk = self.bulk_start + self.bulk_hop * hops + moved / share
        return 1.0 / overlap(1.0 / quick, 1.0 / bulk, self.mixing)


@dataclass(frozen=True, slots=True)
class AllReduceForm:
    """Parameters of an engine's own kernels for small sums, and of the ring behind them.

    Attributes:
        start, hop: seconds, and seconds per further GPU, of the one-shot kernel.
        direct_share: share of the link's bandwidth in one shot.
        two_start, two_share, two_eight: the same in two shots, the share among up to four and among eight GPUs.
        copy_share: share of the memory bandwidth of the copy into registered buffers, which a captured graph avoids.
        host, ring_host: seconds that the host takes to start the kernel or the ring; hidden by a captured graph.
        ring: the library's rings, used above the limits.
        one_shot: largest bytes in one shot among more than two and more than four GPUs.
        limits: largest bytes of the engine's own kernels among two, four and eight GPUs; zero where they are not used.
    """

    start: float
    hop: float
    direct_share: float
    two_start: float
    two_share: float
    two_eight: float
    copy_share: float
    host: float
    ring_host: float
    ring: RingForm
    one_shot: tuple[float, float] = (512.0 * 1024, 256.0 * 1024)
    limits: tuple[float, float, float] = (8.0 * 2**20, 8.0 * 2**20, 8.0 * 2**20)

    def seconds(
        self, device: Device, size: Value, gpus: Value, *, eager: Value = False, on: Elementary = FLOATS
    ) -> Value:
        """Seconds to sum `size` bytes over `gpus` GPUs; `eager` where the host starts every kernel itself."""
        hops = gpus - 1.0
        one = self.start + self.hop * hops + hops * size / (self.direct_share * device.link)
        two_share = on.pick(gpus <= 4, self.two_share, self.two_eight)
        two = self.two_start + self.hop * hops + 2.0 * hops / gpus * size / (two_share * device.link)
        threshold = on.pick(gpus <= 2, math.inf, on.pick(gpus <= 4, self.one_shot[0], self.one_shot[1]))
        own = on.pick(size < threshold, one, two)
        limit = on.pick(gpus <= 2, self.limits[0], on.pick(gpus <= 4, self.limits[1], self.limits[2]))
        seconds = on.pick(size < limit, own, self.ring.seconds(device, size, gpus, on=on))
        host = on.pick(size < limit, self.host, self.ring_host)
        slow = overlap(seconds + 2.0 * size / (self.copy_share * device.bandwidth), host, _HOST_SHARPNESS)
        return on.pick(eager, slow, seconds)


_HOST_SHARPNESS = 6.0
"""The host runs ahead of the GPU, so the longer of the two counts."""
