"""Latent attention (MLA): one compressed vector per token, shared by all heads.

A prompt expands the latents to keys and values of every head and attends like any other; a single token attends in the
latent space itself, all heads over the same bytes. Dimensions of DeepSeek-V2 and V3 (arXiv 2405.04434, section 2.1.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from stowplan.kernel_forms.device import VALUE_BYTES, Device
from stowplan.kernel_forms.elementary import FLOATS, Elementary, Value, overlap, waves

LATENT = 512.0
ROTARY = 64.0
_KEY, _VALUE = 192.0, 128.0
_EXPANDED = 128.0 + _VALUE
_BLOCK = 128.0
"""Rows of queries that a block holds at least."""


@dataclass(frozen=True, slots=True)
class MlaPrefillForm:
    """Parameters of latent prompt attention on one GPU.

    Attributes:
        latency: seconds of the kernels together; host: seconds that the host takes to start them, hidden by a graph.
        share: of the datasheet peak in attention; expand_share: in expanding latents.
        stream: share of the datasheet memory bandwidth over `passes` passes over the expanded operands.
        passes: how often queries, keys, values and outputs are moved.
        fill: sequences x heads x 128-row blocks at which the units are half used.
        sharpness: how well the work hides the host.
    """

    latency: float
    host: float
    share: float
    expand_share: float
    stream: float
    passes: float
    fill: float
    sharpness: float

    def seconds(
        self,
        device: Device,
        cache_dtype: str,
        batch: Value,
        new: Value,
        past: Value,
        heads: Value,
        *,
        eager: bool = False,
        on: Elementary = FLOATS,
    ) -> Value:
        """Seconds of causal latent attention of `new` tokens of each of `batch` sequences after `past` cached ones."""
        length = past + new
        peak = device.peak("bf16")
        padded = on.ceil(new / _BLOCK) * _BLOCK
        scores = batch * heads * padded * (past + (new + _BLOCK) / 2.0)
        attention = 2.0 * scores * (_KEY + _VALUE) / (peak * self.share)
        expansion = 2.0 * batch * length * LATENT * heads * _EXPANDED / (peak * self.expand_share)
        blocks = batch * heads * padded / _BLOCK
        operands = 2.0 * batch * heads * (new * (_KEY + _VALUE) + length * _EXPANDED) * self.passes
        latents = batch * length * (LATENT + ROTARY) * VALUE_BYTES[cache_dtype] + 2.0 * heads * LATENT * _EXPANDED
        moving = (operands + latents) / (device.bandwidth * self.stream)
        work = self.latency + attention * (1.0 + self.fill / blocks) + expansion + moving
        return overlap(self.host, work, self.sharpness) if eager else work


@dataclass(frozen=True, slots=True)
class MlaDecodeForm:
    """Parameters of latent single-token attention on one GPU.

    Attributes:
        latency: seconds of the kernels together, projections into and out of the latent space included; host: seconds
            that the host takes to start them, hidden by a graph.
        share: of the datasheet peak in the products over the cache; project_share: in the projections.
        feed: bytes/s that one unit loads, in units of the memory's bandwidth per unit.
        step: seconds per cached token of one block, besides.
        stream: share of the datasheet memory bandwidth; passes: how often queries and outputs are moved.
        wave: share of the last wave's idle units that is lost.
        sharpness: how well the work hides the host.
        sequence: seconds per sequence.
        rows: heads in a block; splits: blocks that one sequence's cache is spread over at most.
    """

    latency: float
    host: float
    share: float
    project_share: float
    feed: float
    step: float
    stream: float
    passes: float
    wave: float
    sharpness: float
    sequence: float
    rows: float = 64.0
    splits: float = 64.0

    def seconds(
        self,
        device: Device,
        cache_dtype: str,
        batch: Value,
        context: Value,
        heads: Value,
        *,
        eager: bool = False,
        on: Elementary = FLOATS,
    ) -> Value:
        """Seconds of latent attention of one new token in each of `batch` sequences over `context` tokens each."""
        width = LATENT + ROTARY
        peak = device.peak("bf16")
        blocks = batch * on.ceil(heads / self.rows)
        split = on.larger(1.0, on.smaller(self.splits, device.units / blocks))
        rows = on.smaller(heads, self.rows)
        products = 2.0 * on.larger(rows, 16.0) * (width + LATENT) / (peak / device.units * self.share)
        loads = width * VALUE_BYTES[cache_dtype] / (self.feed * device.bandwidth / device.units)
        each = context * (on.larger(products, loads) + self.step) / split
        walking = waves(blocks * split / device.units, self.wave, on) * each
        stored = batch * context * width * VALUE_BYTES[cache_dtype]
        projected = 2.0 * heads * LATENT * _EXPANDED
        operands = 2.0 * batch * heads * (width + LATENT) * self.passes
        moving = (stored + projected + operands) / (device.bandwidth * self.stream)
        work = self.latency + on.larger(walking, moving) + batch * projected / (peak * self.project_share)
        return (overlap(self.host, work, self.sharpness) if eager else work) + self.sequence * batch
