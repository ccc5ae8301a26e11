"""An engine's kernels on the host's cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from stowplan.figures import Figures
from stowplan.kernels.formats import kernel_names
from stowplan.ops import Kind, Operator
from stowplan.work import Work

_WIDE = 64  # fp32 FLOPs per core and cycle of cores that execute 512-bit vectors whole
_NARROW = 256.0  # bits of the vectors of kernels that leave wider units half empty


class Layout(StrEnum):
    """How a product of many rows on the CPU meets its weights.

    ``plain``: unpacked for every few rows of activations. ``rows``: rows interleaved in the file or at load.
    ``unpacked``: written out once for all rows, as interleaved 8-bit numbers.
    """

    PLAIN = "plain"
    ROWS = "rows"
    UNPACKED = "unpacked"


@dataclass(frozen=True, slots=True)
class CpuKernels:
    """An engine's kernels on the host's cores.

    Attributes:
        operator_gap: seconds of barrier and dispatch per operator, more with more threads.
        gemv: weights per core-second by layout and name of `kernel_names`, one row of activations.
        gemm: FLOPs per core-second by layout and name of `kernel_names`, many rows.
        tile: rows that a product of many rows pays for beside its own, by layout; None where rows do not matter.
        columns: rows of activations that share a pass over the weights: the first pass waits for memory, later ones
            find the weights in the caches; None where products do not come in passes.
        element_bytes: bytes that memory moves for every number that a product of many rows makes: written, changed by
            the operators next to it, and quantised for the next product.
        stream: bytes of weights per core-second that one core keeps in flight.
        stall: core-seconds per byte of weights that instructions wait for memory and nothing hides.
        attention: FLOPs per core-second of fused attention over a prompt; attention_row: of one query; unfused: with
            scores written out; tiled: over many queries of a prompt at once, by builds that do so.
    """

    operator_gap: float
    gemv: Mapping[Layout, Mapping[str, float]]
    gemm: Mapping[Layout, Mapping[str, float]]
    tile: Mapping[Layout, float] | None
    columns: float | None
    element_bytes: float
    stream: float
    stall: float
    attention: float
    attention_row: float
    unfused: float
    tiled: float

    @staticmethod
    def build(
        figures: Figures, engine: str, isa: tuple[str, ...], threads: float, *, stalls: float = 0.0
    ) -> CpuKernels:
        """Kernels of `engine` on cores with the instruction sets `isa`: the constants are per core and clock.

        `stalls` says how much of the waiting for memory that the engine's constant states there is: none on desktops.
        """
        constant = f"{engine}.cpu."
        clock = figures.value("host.clock")
        names = vector_units(isa, figures.get_value("host.lanes") or 0.0)
        row = _first(figures, f"{constant}isa.", names) or 1.0
        many = _first(figures, f"{constant}isa_gemm.", names) or row
        narrow = _first(figures, f"{constant}isa_gemm_narrow.", names) or many

        known = [name for name in figures if name.startswith(constant)]

        def rates(table: str, factor: float, narrow: float) -> dict[Layout, dict[str, float]]:
            found: dict[Layout, dict[str, float]] = {}
            for layout in Layout:
                prefix, widths = (f"{constant}{rate_table(name, layout)}." for name in (table, "width"))
                keys = [name.removeprefix(prefix) for name in known if name.startswith(prefix)]
                own = {key: narrow if figures.get_value(widths + key) == _NARROW else factor for key in keys}
                rated = {key: clock * units * figures.value(prefix + key) for key, units in own.items()}
                found[layout] = found.get(Layout.PLAIN, {}) | rated
            return found

        def optional(name: str) -> float | None:
            return figures.get_value(constant + name)

        attention = figures.value(constant + "attention")
        tile = optional("gemm_tile")
        tiles = {layout: optional(rate_table("gemm_tile", layout)) or tile or 0.0 for layout in Layout}
        return CpuKernels(
            operator_gap=figures.value(constant + "operator_gap") + threads * figures.value(constant + "thread_gap"),
            gemv=rates("gemv", row, row),
            gemm=rates("gemm", many, narrow),
            tile=None if tile is None else tiles,
            columns=optional("gemm_columns"),
            element_bytes=optional("element_bytes") or 0.0,
            stream=clock * (_first(figures, f"{constant}stream_isa.", names) or figures.value(constant + "stream")),
            stall=stalls * (optional("stall") or 0.0) / clock,
            attention=clock * many * attention,
            attention_row=clock * row * (optional("attention_row") or attention),
            unfused=clock * many * (optional("attention_unfused") or attention),
            tiled=clock * many * (optional("attention_tiled") or attention),
        )

    def work(self, op: Operator, layout: Layout = Layout.PLAIN, *, tiled: bool = False) -> Work:
        """Work vector of an operator whose weights and cache are in host memory; `tiled` is about attention."""
        moved = op.weight_bytes + op.kv_read + op.kv_write + op.activation_bytes + op.scratch_bytes
        if op.kind is Kind.MATMUL:
            busy = self._fetching(op, self._product(op, layout))
        else:
            fused = self.attention_row if op.m == 1 else self.tiled if tiled else self.attention
            rate = self.unfused if op.scratch_bytes else fused
            busy = max(op.flops / rate, op.kv_read / self.stream)
        return Work({"host.dram": moved, "host.cores": busy}, self.operator_gap)

    def in_passes(self, op: Operator, layout: Layout, *, tiled: bool = False) -> tuple[Work, ...]:
        """The same in the order of the kernels: the pass that reads the weights, later ones, and what comes after.

        Later passes find the weights in caches. Nothing overlaps, since all threads do the same at the same time.
        """
        if op.kind is not Kind.MATMUL or self.columns is None or op.m <= max(1.0, self.columns):
            return (self.work(op, layout, tiled=tiled),)
        kernel = self._product(op, layout)
        first = kernel * self.columns / op.m
        fetch = Work({"host.dram": op.weight_bytes, "host.cores": self._fetching(op, first)}, self.operator_gap)
        later = Work({"host.cores": kernel - first})
        moved = self.element_bytes * op.m * op.matrices * op.n
        return fetch, later, Work({"host.dram": moved, "host.cores": moved / self.stream})

    def _fetching(self, op: Operator, kernel: float) -> float:
        """Core-seconds of a kernel and of waiting for the weights that it reads."""
        return max(kernel + self.stall * op.weight_bytes, op.weight_bytes / self.stream)

    def _product(self, op: Operator, layout: Layout) -> float:
        names = kernel_names(op.format)
        gemv = next(self.gemv[layout][name] for name in names if name in self.gemv[layout])
        gemm = next(self.gemm[layout][name] for name in names if name in self.gemm[layout])
        if self.tile is None or not op.m:
            return max(op.weights / gemv, op.flops / gemm)
        return min(op.flops / (2.0 * gemv), op.flops * (1.0 + self.tile[layout] / op.m) / gemm)


def rate_table(name: str, layout: Layout) -> str:
    """Name of the constants of a layout; the plain one has no mark."""
    return name if layout is Layout.PLAIN else f"{name}_{layout}"


def one_core_copies(figures: Figures, engine: str, isa: tuple[str, ...]) -> float:
    """Bytes/s that one core copies from page to page; cores differ in it as in their vector units."""
    names = vector_units(isa, figures.get_value("host.lanes") or 0.0)
    per_clock = _first(figures, f"{engine}.gpu.staged_copy.", names)
    return float("inf") if per_clock is None else figures.value("host.clock") * per_clock


def vector_units(isa: tuple[str, ...], lanes: float) -> tuple[str, ...]:
    """Names under which a core's vector units may be rated, the closest first.

    ``wide`` executes 512-bit vectors whole and has dot products of bytes (Ice Lake servers and later, Zen 5), ``vnni``
    has those dot products on 256-bit units (Alder Lake, Zen 4), ``avx512`` the width without them (Skylake). Intel's
    wide ones are ``wide-intel`` first: they have AMX, or no 16-bit floats as all wide ones of others do.
    """
    dot = "vnni" in isa or "avx-vnni" in isa
    names: list[str] = ["amx"] if "amx" in isa else []
    if "avx512" in isa and dot:
        if lanes >= _WIDE and ("amx" in isa or "bf16" not in isa):
            names.append("wide-intel")
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
