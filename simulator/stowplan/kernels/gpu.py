"""An engine's kernels on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import exp, gcd, inf

from stowplan.figures import Figures
from stowplan.kernels.formats import family, kernel_names
from stowplan.models import load_format
from stowplan.ops import EXPERT_PARTS, Kind, Operator
from stowplan.work import Work

_HALF = 16.0  # bits of the numbers that matrix units take
_VECTOR_HALF, _DOTS = 2.1, 4.5  # fp16 and 8-bit dot products of vector units over fp32: 2 and 4, and rounded figures
_WIDE_BLOCKS = ("iq2_ks", "iq3_ks", "iq4_ks", "iq4_kss", "iq5_ks", "trellis")  # 32 weights and more have one scale


class AttentionKernel(StrEnum):
    """Fused attention on a GPU.

    ``vector``: every query head of every token reads the cache by itself, as it is stored. ``matrix``: query heads of
    one key/value head share a read, a power of two of them or all, on the matrix units, which take 16-bit numbers: a
    quantised cache is first written out as such.
    """

    VECTOR = "vector"
    MATRIX = "matrix"


@dataclass(frozen=True, slots=True)
class RoutedRun:
    """How an engine runs the products of routed experts.

    Attributes:
        tile: rows of a tile of a kernel that computes all experts together; every tile holds rows of one expert only.
            0 where experts run one after another.
        beside: bytes that the kernels next to the product move: gathering, quantising, gating, weighting, adding.
        time: of the product's arithmetic over what the rate of its format says.
    """

    tile: float
    beside: float
    time: float = 1.0


@dataclass(frozen=True, slots=True)
class GpuKernels:
    """An engine's kernels on one GPU.

    Attributes:
        name: resource prefix, ``gpu0``.
        kernel_gap: seconds between the starts of two dependent small kernels.
        kernels: kernels launched per operator kind, norms and element-wise neighbours included.
        gemm: FLOP/s of a large matrix product by name of `kernel_names`.
        gemv: bytes/s of weights that the kernels keep in flight (memory may be slower), by kernel family.
        tile: rows of activations that a product on the matrix units pays for at least.
        vector: how much slower a product on the vector units is; few rows go there and pay for no tile.
        routed: how much longer the products of routed experts take than one product of as many rows: rows are gathered
            and scattered, tiles are padded for every expert, and one expert's matrix is too small for the device.
        in_turn: the same where experts are launched one after another.
        unlimited: rate of quantised products where power does not bind over `gemm`: padding takes units but no power.
        tile_read: bytes/s of weights that tiles of routed experts read.
        attention: FLOP/s of attention; attention_read: bytes/s of cache in flight.
        columns: query heads of one key/value head that a decode kernel serves with one read of the cache, 0 for all;
        passes: most reads that reach the memory, since caches serve the others.
        vector_attention: FLOP/s of attention by `AttentionKernel.VECTOR`; shared_rows: rows of cache (a
            key and a value of one head) per second that `AttentionKernel.MATRIX` serves to `columns` query heads.
        scan: FLOP/s of a recurrence that goes from token to token; infinite where nothing is known of it.
        memory: bytes/s of the GPU's memory.
    """

    name: str
    kernel_gap: float
    kernels: tuple[tuple[Kind, float], ...]
    gemm: Mapping[str, float]
    gemv: Mapping[str, float]
    tile: float
    vector: float
    routed: float
    in_turn: float
    unlimited: float
    tile_read: float
    attention: float
    attention_read: float
    columns: int
    passes: float
    vector_attention: float
    shared_rows: float
    scan: float
    memory: float

    @staticmethod
    def build(figures: Figures, index: int, engine: str, vendor: str) -> GpuKernels:
        """Kernels of `engine` on GPU `index`.

        A rate is ``min(share x peak, per_unit_clock x units x clock, power / energy)``: the device's limit, what the
        kernel keeps in flight per unit and clock, and what the board's power lets it do; unknown terms do not bind.
        What a unit does in a clock differs from vendor to vendor; the constants without one are NVIDIA's.
        """
        name, constant = f"gpu{index}", f"{engine}.gpu."
        own = constant if vendor == "nvidia" else f"{constant}{vendor}."
        unit_clock, power = figures.get_value(f"{name}.unit_clock"), figures.get_value(f"{name}.power")
        energy = figures.get_value(f"{name}.flop_energy")

        def bounded(first: float, per_unit_clock: str, energies: str = "") -> float:
            limit, factor = figures.get_value(own + per_unit_clock), figures.get_value(constant + energies)
            if unit_clock is not None and limit is not None:
                first = min(first, limit * unit_clock)
            if power is None or energy is None or factor is None:
                return first
            return min(first, power / (energy * factor))

        def peak(*wanted: str) -> float:
            for arithmetic in wanted:
                found = figures.get_value(f"{name}.peak.{arithmetic}")
                if found:
                    return found
            return figures.value(f"{name}.peak.fp32")

        half = peak("fp16", "bf16")
        if figures.get_value(constant + "half_accumulation") and vendor == "nvidia":
            # matrix units that accumulate in fp16 run at half the int8 rate; GeForce ones halve that for fp32 sums
            half = max(half, 0.5 * (figures.get_value(f"{name}.peak.int8") or 0.0))
        share, memory = figures.value(constant + "gemm_share"), figures.value(f"{name}.hbm")
        float_gemm = bounded(share * half, "gemm_float_per_unit_clock", "gemm_float_energy")
        quantised_share = figures.get_value(constant + "gemm_quantised_share") or share
        if vendor == "nvidia" and _vector_units_only(figures, name):
            quantised_share = figures.get_value(constant + "gemm_dot_share") or quantised_share
        quantised = bounded(
            quantised_share * peak("int8", "fp16"), "gemm_quantised_per_unit_clock", "gemm_quantised_energy"
        )
        unlimited = bounded(quantised_share * peak("int8", "fp16"), "gemm_quantised_per_unit_clock")
        gemv = bounded(memory, "gemv_per_unit_clock")
        float_gemv = bounded(memory, "gemv_float_per_unit_clock") if vendor != "nvidia" else gemv
        return GpuKernels(
            name=name,
            kernel_gap=figures.value(constant + "kernel_gap"),
            kernels=tuple((kind, figures.value(f"{constant}kernels.{kind.value}")) for kind in Kind),
            gemm={
                "float": float_gemm,
                **dict.fromkeys(("block", "k", "iq"), quantised),
                "iqk": quantised / (figures.get_value(constant + "gemm_iqk") or 1.0),
                **dict.fromkeys(_WIDE_BLOCKS, quantised / (figures.get_value(constant + "gemm_iqk_wide") or 1.0)),
            },
            gemv={"float": float_gemv, **dict.fromkeys(("block", "k", "iq"), gemv)},
            tile=figures.value(constant + "gemm_tile"),
            vector=figures.value(constant + "gemm_vector"),
            routed=figures.get_value(constant + "gemm_routed") or 1.0,
            in_turn=figures.get_value(constant + "gemm_in_turn") or 1.0,
            unlimited=unlimited / quantised,
            tile_read=bounded(memory, "routed_bytes_per_unit_clock"),
            attention=bounded(figures.value(constant + "attention_share") * half, "attention_per_unit_clock"),
            attention_read=bounded(memory, "attention_bytes_per_unit_clock"),
            columns=int(figures.get_value(constant + "attention_columns") or 0),
            passes=figures.get_value(constant + "attention_passes") or 1.0,
            vector_attention=bounded(inf, "attention_vector_per_unit_clock"),
            shared_rows=bounded(inf, "attention_rows_per_unit_clock"),
            scan=bounded(inf, "recurrence_per_unit_clock"),
            memory=memory,
        )

    def work(
        self,
        op: Operator,
        *,
        dequantise: bool = False,
        attention: AttentionKernel | None = None,
        shared: float | None = None,
        routed: RoutedRun | None = None,
        gap: float | None = None,
    ) -> Work:
        """Work vector of an operator whose weights and cache are in this GPU's memory.

        Args:
            op: the operator.
            dequantise: whether a product first writes its weights out as 16-bit numbers and then multiplies those.
            attention: the kernel that attention runs, None for a library's.
            shared: query heads that share a read of the cache in `AttentionKernel.MATRIX`; None for the largest
                divisor of the group that `columns` has.
            routed: how products of routed experts of several rows run; None for a library's.
            gap: seconds between two dependent small kernels, where not `kernel_gap`.
        """
        moved = op.weight_bytes + op.kv_read + op.kv_write + op.activation_bytes + op.scratch_bytes
        overhead = (self.kernel_gap if gap is None else gap) * dict(self.kernels)[op.kind]
        if op.kind is Kind.MATMUL:
            busy = self._product(op, routed, dequantise=dequantise)
        elif op.kind is Kind.LOOKUP:
            busy = 0.0
        else:
            busy = self._attention(op, attention, shared)
            if attention is AttentionKernel.MATRIX:
                moved += _written_out(op)
        return Work({f"{self.name}.hbm": moved, f"{self.name}.compute": busy}, overhead)

    def _attention(self, op: Operator, kernel: AttentionKernel | None, shared: float | None) -> float:
        if op.kind is Kind.RECURRENCE and self.scan < inf:
            return max(op.flops / self.scan, op.kv_read / self.attention_read)
        if kernel is AttentionKernel.VECTOR:
            return op.flops / self.vector_attention
        if op.m == 1 and kernel is AttentionKernel.MATRIX:
            rows = op.scores / (gcd(op.group, self.columns) if shared is None else shared)
            return max(op.flops / self.attention, rows / self.shared_rows)
        passes = min(op.group / gcd(op.group, self.columns), self.passes) if op.m == 1 else 1.0
        return max(op.flops / self.attention, passes * op.kv_read / self.attention_read)

    def _product(self, op: Operator, run: RoutedRun | None, *, dequantise: bool) -> float:
        gemv = self.gemv[family(op.format)]
        if not op.m:
            return op.weight_bytes / gemv
        names = ("float",) if dequantise else kernel_names(op.format)
        gemm = next(self.gemm[name] for name in names if name in self.gemm)
        read = op.weight_bytes / gemv
        slower = 1.0 + self.tile / op.m
        if op.part in EXPERT_PARTS and run is not None and run.tile:
            padded = (_rows_in_tiles(op.m, run.tile) + self.tile) / op.m
            slower = run.time * max(self.routed, padded / self.unlimited)
            read = max(read, op.weight_bytes / self.tile_read)
        elif op.part in EXPERT_PARTS and op.m > 1:
            slower *= self.routed if run is None else self.in_turn
            slower = min(self.vector, slower)
        else:
            slower = min(self.vector, slower)
        busy = op.flops * slower / gemm
        if dequantise:
            busy += (op.weight_bytes + 2.0 * op.weights) / self.memory
        beside = 0.0 if run is None else run.beside / self.memory
        return max(busy, read) + beside


def _rows_in_tiles(rows: float, tile: float) -> float:
    """Rows of the tiles that an expert fills, on average over experts with `rows` rows on average.

    Some experts are chosen far more often than others: their rows are taken as exponentially distributed, so that
    ``1 / (1 - exp(-tile / rows))`` tiles are expected: one for few rows, half a tile more than are full for many.
    """
    return tile / (1.0 - exp(-tile / rows))


def _written_out(op: Operator) -> float:
    """Bytes that a quantised cache makes as 16-bit numbers, written and read once."""
    bits = load_format(op.format).bits_per_weight
    return 2.0 * op.kv_read * _HALF / bits if bits < _HALF else 0.0


def _vector_units_only(figures: Figures, name: str) -> bool:
    """Whether a chip multiplies bytes by dot products of its vector units: it has no units for matrices."""
    int8, half = figures.get_value(f"{name}.peak.int8"), figures.get_value(f"{name}.peak.fp16")
    single = figures.get_value(f"{name}.peak.fp32")
    if not int8 or not half or not single or figures.get_value(f"{name}.peak.fp8"):
        return False
    return half < _VECTOR_HALF * single and int8 < _DOTS * single
