"""How fast an engine's kernels run an operator on a device: operators in, work vectors out.

Bytes on memories and links are the real bytes. Time-like resources are in device-seconds (``gpu0.compute``, rate 1)
and core-seconds (``host.cores``, rate = threads), because one device has several peaks (int8, fp16, fp32) and every
kernel its own share of them. All efficiencies are smooth in the operator's size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from stowplan.figures import Figures
from stowplan.models import load_format
from stowplan.ops import Kind, Operator
from stowplan.work import Work

_FAMILIES = {
    "float": ("float", "float8"),
    "block": ("legacy", "integer", "microscaling", "int4"),
    "k": ("k-quant", "scaled"),
    "iq": ("i-quant", "iqk", "trellis", "ternary"),
}


@cache
def family(format_key: str) -> str:
    """Kernel family of a storage format: ``float``, ``block`` (plain small blocks), ``k`` or ``iq`` (codebooks)."""
    own = load_format(format_key).family
    return next(name for name, members in _FAMILIES.items() if own in members)


@dataclass(frozen=True, slots=True)
class GpuKernels:
    """An engine's kernels on one GPU.

    Attributes:
        name: resource prefix, ``gpu0``.
        kernel_gap: seconds between the starts of two dependent small kernels.
        kernels: kernels launched per operator kind, norms and element-wise neighbours included.
        gemm: FLOP/s of a large matrix product by kernel family.
        gemv: bytes/s of weights that the kernels keep in flight (memory may be slower).
        tile: rows of activations that a product on the matrix units pays for at least.
        vector: how much slower a product on the vector units is; few rows go there and pay for no tile.
        attention: FLOP/s of attention; attention_read: bytes/s of cache in flight.
    """

    name: str
    kernel_gap: float
    kernels: tuple[tuple[Kind, float], ...]
    gemm: tuple[tuple[str, float], ...]
    gemv: float
    tile: float
    vector: float
    attention: float
    attention_read: float

    @staticmethod
    def build(figures: Figures, index: int, engine: str, vendor: str) -> GpuKernels:
        """Kernels of `engine` on GPU `index`.

        A rate is ``min(share x peak, per_unit_clock x units x clock, power / energy)``: the device's limit, what the
        kernel keeps in flight per unit and clock, and what the board's power lets it do; unknown terms do not bind.
        """
        name, constant = f"gpu{index}", f"{engine}.gpu."
        unit_clock = figures.get_value(f"{name}.unit_clock") if vendor == "nvidia" else None

        power = figures.get_value(f"{name}.power")

        def bounded(first: float, per_unit_clock: str, energy: str = "") -> float:
            limit, joules = figures.get_value(constant + per_unit_clock), figures.get_value(constant + energy)
            if unit_clock is not None and limit is not None:
                first = min(first, limit * unit_clock)
            return first if power is None or joules is None else min(first, power / joules)

        def peak(*wanted: str) -> float:
            for arithmetic in wanted:
                found = figures.get_value(f"{name}.peak.{arithmetic}")
                if found:
                    return found
            return figures.value(f"{name}.peak.fp32")

        share = figures.value(constant + "gemm_share")
        attention_share = figures.value(constant + "attention_share")
        gemm = {
            "float": bounded(share * peak("fp16", "bf16"), "gemm_float_per_unit_clock", "gemm_float_energy"),
            "quantised": bounded(
                share * peak("int8", "fp16"), "gemm_quantised_per_unit_clock", "gemm_quantised_energy"
            ),
        }
        return GpuKernels(
            name=name,
            kernel_gap=figures.value(constant + "kernel_gap"),
            kernels=tuple((kind, figures.value(f"{constant}kernels.{kind.value}")) for kind in Kind),
            gemm=(("float", gemm["float"]), *((label, gemm["quantised"]) for label in ("block", "k", "iq"))),
            gemv=bounded(figures.value(f"{name}.hbm"), "gemv_per_unit_clock"),
            tile=figures.value(constant + "gemm_tile"),
            vector=figures.value(constant + "gemm_vector"),
            attention=bounded(attention_share * peak("fp16", "bf16"), "attention_per_unit_clock"),
            attention_read=bounded(figures.value(f"{name}.hbm"), "attention_bytes_per_unit_clock"),
        )

    def work(self, op: Operator) -> Work:
        """Work vector of an operator whose weights and cache are in this GPU's memory."""
        moved = op.weight_bytes + op.kv_read + op.kv_write + op.activation_bytes + op.scratch_bytes
        overhead = self.kernel_gap * dict(self.kernels)[op.kind]
        if op.kind is Kind.MATMUL:
            padded = op.flops * min(self.vector, 1.0 + self.tile / op.m) if op.m else 0.0
            busy = max(padded / dict(self.gemm)[family(op.format)], op.weight_bytes / self.gemv)
        elif op.kind is Kind.LOOKUP:
            busy = 0.0
        else:
            busy = max(op.flops / self.attention, op.kv_read / self.attention_read)
        return Work({f"{self.name}.hbm": moved, f"{self.name}.compute": busy}, overhead)


@dataclass(frozen=True, slots=True)
class CpuKernels:
    """An engine's kernels on the host's cores.

    Attributes:
        operator_gap: seconds of barrier and dispatch per operator, more with more threads.
        gemv: weights per core-second by kernel family, one row of activations.
        stream: bytes of weights per core-second that one core keeps in flight.
        gemm: FLOPs per core-second by kernel family, many rows.
        attention: attention FLOPs per core-second.
    """

    operator_gap: float
    gemv: tuple[tuple[str, float], ...]
    stream: float
    gemm: tuple[tuple[str, float], ...]
    attention: float

    @staticmethod
    def build(figures: Figures, engine: str, isa: tuple[str, ...], threads: int) -> CpuKernels:
        """Kernels of `engine` on cores with the instruction sets `isa`: the constants are per core and clock."""
        constant = f"{engine}.cpu."
        clock = figures.value("host.clock")
        width = figures.value(f"{constant}isa.{_widest(isa)}")
        families = ("float", "block", "k", "iq")
        return CpuKernels(
            operator_gap=figures.value(constant + "operator_gap") + threads * figures.value(constant + "thread_gap"),
            gemv=tuple((f, clock * width * figures.value(f"{constant}gemv.{f}")) for f in families),
            stream=clock * figures.value(constant + "stream"),
            gemm=tuple((f, clock * width * figures.value(f"{constant}gemm.{f}")) for f in families),
            attention=clock * width * figures.value(constant + "attention"),
        )

    def work(self, op: Operator) -> Work:
        """Work vector of an operator whose weights and cache are in host memory."""
        moved = op.weight_bytes + op.kv_read + op.kv_write + op.activation_bytes + op.scratch_bytes
        if op.kind is Kind.MATMUL:
            label = family(op.format)
            kernel = max(op.weights / dict(self.gemv)[label], op.flops / dict(self.gemm)[label])
            busy = max(kernel, op.weight_bytes / self.stream)
        else:
            busy = max(op.flops / self.attention, op.kv_read / self.stream)
        return Work({"host.dram": moved, "host.cores": busy}, self.operator_gap)


def _widest(isa: tuple[str, ...]) -> str:
    """The widest instruction set that kernels are written for."""
    return next((name for name in ("amx", "avx512", "avx2", "neon") if name in isa), "avx2")
