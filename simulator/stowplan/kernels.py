"""How fast an engine's kernels run an operator on a device: operators in, work vectors out.

Bytes on memories and links are the real bytes. Time-like resources are in device-seconds (``gpu0.compute``, rate 1)
and core-seconds (``host.cores``, rate = threads), because one device has several peaks (int8, fp16, fp32) and every
kernel its own share of them. All efficiencies are smooth in the operator's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import gcd

from stowplan.figures import Figures
from stowplan.machines.machine import Machine
from stowplan.models import formats, load_format
from stowplan.models.model import LatentAttention, Model
from stowplan.ops import EXPERT_PARTS, Kind, Operator
from stowplan.work import Work

_FAMILIES = {
    "float": ("float", "float8"),
    "block": ("legacy", "integer", "microscaling", "int4"),
    "k": ("k-quant", "scaled"),
    "iq": ("i-quant", "iqk", "trellis", "ternary"),
}
_WIDE = 64  # fp32 FLOPs per core and cycle of cores that execute 512-bit vectors whole


@cache
def family(format_key: str) -> str:
    """Kernel family of a storage format: ``float``, ``block`` (plain small blocks), ``k`` or ``iq`` (codebooks)."""
    own = load_format(format_key).family
    return next(name for name, members in _FAMILIES.items() if own in members)


@cache
def kernel_names(format_key: str) -> tuple[str, ...]:
    """Names under which a format's kernels may be rated, the closest first: itself, its own family, its wide family.

    Rows that are interleaved for the CPU (``iq4_ks_r4``) hold the same numbers and count as the plain format.
    """
    stem, mark, rows = format_key.rpartition("_r")
    plain = stem if mark and rows.isdigit() else format_key
    return plain, load_format(format_key).family, family(format_key)


def kernels_of_scaled(quant: str) -> str | None:
    """The format whose kernels a mix of stated size (``iq2_k@226GiB``) runs; None for a mix of known formats."""
    base, at, _ = quant.lower().removeprefix("ud-").partition("@")
    if not at:
        return None
    if base in formats():
        return base
    return "iq4_xs" if base.startswith("iq") else "q4_k"


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
        attention: FLOP/s of attention; attention_read: bytes/s of cache in flight.
        columns: query heads of one key/value head that a decode kernel serves with one read of the cache, 0 for all;
        passes: most reads that reach the memory, since caches serve the others.
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
    attention: float
    attention_read: float
    columns: int
    passes: float
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
        quantised = bounded(
            quantised_share * peak("int8", "fp16"), "gemm_quantised_per_unit_clock", "gemm_quantised_energy"
        )
        gemv = bounded(memory, "gemv_per_unit_clock")
        float_gemv = bounded(memory, "gemv_float_per_unit_clock") if vendor != "nvidia" else gemv
        return GpuKernels(
            name=name,
            kernel_gap=figures.value(constant + "kernel_gap"),
            kernels=tuple((kind, figures.value(f"{constant}kernels.{kind.value}")) for kind in Kind),
            gemm={
                "float": float_gemm,
                **dict.fromkeys(("block", "k", "iq"), quantised),
                **dict.fromkeys(("iqk", "trellis"), quantised / (figures.get_value(constant + "gemm_iqk") or 1.0)),
            },
            gemv={"float": float_gemv, **dict.fromkeys(("block", "k", "iq"), gemv)},
            tile=figures.value(constant + "gemm_tile"),
            vector=figures.value(constant + "gemm_vector"),
            routed=figures.get_value(constant + "gemm_routed") or 1.0,
            attention=bounded(figures.value(constant + "attention_share") * half, "attention_per_unit_clock"),
            attention_read=bounded(memory, "attention_bytes_per_unit_clock"),
            columns=int(figures.get_value(constant + "attention_columns") or 0),
            passes=figures.get_value(constant + "attention_passes") or 1.0,
            memory=memory,
        )

    def work(self, op: Operator, *, dequantise: bool = False) -> Work:
        """Work vector of an operator whose weights and cache are in this GPU's memory.

        With `dequantise`, a product first writes its weights out as 16-bit numbers and then multiplies those.
        """
        moved = op.weight_bytes + op.kv_read + op.kv_write + op.activation_bytes + op.scratch_bytes
        overhead = self.kernel_gap * dict(self.kernels)[op.kind]
        if op.kind is Kind.MATMUL:
            busy = self._product(op, dequantise=dequantise)
        elif op.kind is Kind.LOOKUP:
            busy = 0.0
        else:
            passes = min(op.group / gcd(op.group, self.columns), self.passes) if op.m == 1 else 1.0
            busy = max(op.flops / self.attention, passes * op.kv_read / self.attention_read)
        return Work({f"{self.name}.hbm": moved, f"{self.name}.compute": busy}, overhead)

    def _product(self, op: Operator, *, dequantise: bool) -> float:
        gemv = self.gemv[family(op.format)]
        if not op.m:
            return op.weight_bytes / gemv
        names = ("float",) if dequantise else kernel_names(op.format)
        gemm = next(self.gemm[name] for name in names if name in self.gemm)
        padded = 1.0 + self.tile / op.m
        if op.part in EXPERT_PARTS and op.m > 1:
            padded *= self.routed
        busy = op.flops * min(self.vector, padded) / gemm
        if dequantise:
            busy += (op.weight_bytes + 2.0 * op.weights) / self.memory
        return max(busy, op.weight_bytes / gemv)


@dataclass(frozen=True, slots=True)
class CpuKernels:
    """An engine's kernels on the host's cores.

    Attributes:
        operator_gap: seconds of barrier and dispatch per operator, more with more threads.
        gemv: weights per core-second by name of `kernel_names`, one row of activations.
        gemm: FLOPs per core-second by name of `kernel_names`, many rows.
        tile: rows that a product of many rows pays for beside its own; None where rows do not matter.
        stream: bytes of weights per core-second that one core keeps in flight.
        stall: core-seconds per byte of weights that instructions wait for memory and nothing hides.
        attention: FLOPs per core-second of fused attention over a prompt; attention_row: of one query; unfused: with
            scores written out.
    """

    operator_gap: float
    gemv: Mapping[str, float]
    gemm: Mapping[str, float]
    tile: float | None
    stream: float
    stall: float
    attention: float
    attention_row: float
    unfused: float

    @staticmethod
    def build(figures: Figures, engine: str, isa: tuple[str, ...], threads: int, *, stalls: float = 0.0) -> CpuKernels:
        """Kernels of `engine` on cores with the instruction sets `isa`: the constants are per core and clock.

        `stalls` says how much of the waiting for memory that the engine's constant states there is: none on desktops.
        """
        constant = f"{engine}.cpu."
        clock = figures.value("host.clock")
        names = vector_units(isa, figures.get_value("host.lanes") or 0.0)
        row = _first(figures, f"{constant}isa.", names) or 1.0
        many = _first(figures, f"{constant}isa_gemm.", names) or row

        def rates(table: str, factor: float) -> dict[str, float]:
            prefix = f"{constant}{table}."
            names = (name for name in figures if name.startswith(prefix))
            return {name.removeprefix(prefix): clock * factor * figures.value(name) for name in names}

        def optional(name: str) -> float | None:
            return figures.get_value(constant + name)

        attention = figures.value(constant + "attention")
        return CpuKernels(
            operator_gap=figures.value(constant + "operator_gap") + threads * figures.value(constant + "thread_gap"),
            gemv=rates("gemv", row),
            gemm=rates("gemm", many),
            tile=optional("gemm_tile"),
            stream=clock * figures.value(constant + "stream"),
            stall=stalls * (optional("stall") or 0.0) / clock,
            attention=clock * many * attention,
            attention_row=clock * row * (optional("attention_row") or attention),
            unfused=clock * many * (optional("attention_unfused") or attention),
        )

    def work(self, op: Operator) -> Work:
        """Work vector of an operator whose weights and cache are in host memory."""
        moved = op.weight_bytes + op.kv_read + op.kv_write + op.activation_bytes + op.scratch_bytes
        if op.kind is Kind.MATMUL:
            kernel = self._product(op) + self.stall * op.weight_bytes
            busy = max(kernel, op.weight_bytes / self.stream)
        else:
            fused = self.attention_row if op.m == 1 else self.attention
            rate = self.unfused if op.scratch_bytes else fused
            busy = max(op.flops / rate, op.kv_read / self.stream)
        return Work({"host.dram": moved, "host.cores": busy}, self.operator_gap)

    def _product(self, op: Operator) -> float:
        names = kernel_names(op.format)
        gemv = next(self.gemv[name] for name in names if name in self.gemv)
        gemm = next(self.gemm[name] for name in names if name in self.gemm)
        if self.tile is None or not op.m:
            return max(op.weights / gemv, op.flops / gemm)
        return min(op.flops / (2.0 * gemv), op.flops * (1.0 + self.tile / op.m) / gemm)


def vector_units(isa: tuple[str, ...], lanes: float) -> tuple[str, ...]:
    """Names under which a core's vector units may be rated, the closest first.

    ``wide`` executes 512-bit vectors whole and has dot products of bytes (Ice Lake servers and later, Zen 5), ``vnni``
    has those dot products on 256-bit units (Alder Lake, Zen 4), ``avx512`` the width without them (Skylake).
    """
    dot = "vnni" in isa or "avx-vnni" in isa
    names: list[str] = ["amx"] if "amx" in isa else []
    if "avx512" in isa and dot:
        names += ["wide", "avx512"] if lanes >= _WIDE else ["vnni", "avx512"]
    elif "avx512" in isa:
        names.append("avx512")
    elif dot:
        names.append("vnni")
    if "neon" in isa:
        names.append("neon")
    return (*names, "avx2")


def _first(figures: Figures, prefix: str, names: tuple[str, ...]) -> float | None:
    """The value of the first of some figures that there is."""
    return next((figures.value(prefix + name) for name in names if prefix + name in figures), None)


def idle_constants(figures: Figures, engine: str, machine: Machine, model: Model) -> frozenset[str]:
    """Constants of an engine that move nothing for a model on a machine: rates of other formats and other devices."""
    constant = f"{engine}.cpu."
    tensors = [*model.globals, *(tensor for layer in model.layers for tensor in layer.tensors)]
    scaled = kernels_of_scaled(model.quant)
    chosen = [kernel_names(key) for key in {tensor.format for tensor in tensors} | ({scaled} if scaled else set())]
    units = vector_units(machine.cpu.isa, machine.cpu.flops_per_cycle.value)
    wanted = {"gemv": chosen, "gemm": chosen, "isa": [units], "isa_gemm": [units]}
    used = {
        next((f"{constant}{table}.{name}" for name in names if f"{constant}{table}.{name}" in figures), "")
        for table, lists in wanted.items()
        for names in lists
    }
    vendors = {gpu.vendor for gpu in machine.gpus}
    absent = [
        f"{engine}.{name}"
        for names, matters in (
            (("pipelining", "launch_queue"), len(machine.gpus) > 1),
            (("cpu.sockets", "cpu.remote"), machine.sockets > 1),
            (("expert_popularity", "gpu.gemm_routed", "gpu.expert_gap"), any(layer.experts for layer in model.layers)),
            (
                ("gpu.attention_latent_unfused",),
                any(isinstance(layer.mixer, LatentAttention) for layer in model.layers),
            ),
            (("gpu.gemm_iqk",), any(not {"iqk", "trellis"}.isdisjoint(names) for names in chosen)),
        )
        if not matters
        for name in names
    ]
    others = tuple(f"{engine}.gpu.{vendor}." for vendor in ("amd", "apple", "intel") if vendor not in vendors)
    tables = tuple(f"{constant}{table}." for table in wanted)
    unused = (name for name in figures if name.startswith(others) or (name.startswith(tables) and name not in used))
    return frozenset([*absent, *unused])
