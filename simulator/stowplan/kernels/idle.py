"""Constants of an engine that cannot matter on a machine."""

from __future__ import annotations

from stowplan.figures import Figures
from stowplan.kernels.cpu import Layout, rate_table, vector_units
from stowplan.kernels.formats import kernel_names, kernels_of_scaled
from stowplan.machines.machine import Machine
from stowplan.models.model import LatentAttention, Model, Recurrence


def idle_constants(figures: Figures, engine: str, machine: Machine, model: Model) -> frozenset[str]:
    """Constants of an engine that move nothing for a model on a machine: rates of other formats and other devices."""
    cores, devices = f"{engine}.cpu.", f"{engine}.gpu."
    tensors = [*model.globals, *(tensor for layer in model.layers for tensor in layer.tensors)]
    scaled = kernels_of_scaled(model.quant)
    chosen = [kernel_names(key) for key in {tensor.format for tensor in tensors} | ({scaled} if scaled else set())]
    units = vector_units(machine.cpu.isa, machine.cpu.flops_per_cycle.value)
    products = {f"{cores}{rate_table(table, layout)}.": chosen for table in ("gemv", "gemm") for layout in Layout}
    by_units = (f"{cores}isa.", f"{cores}isa_gemm.", f"{cores}isa_gemm_narrow.", f"{devices}staged_copy.")
    wanted = {**products, **{key: [units] for key in by_units}}
    used = {
        next((table + name for name in names if table + name in figures), "")
        for table, lists in wanted.items()
        for names in lists
    }
    vendors = {gpu.vendor for gpu in machine.gpus}
    absent = [
        f"{engine}.{name}"
        for names, matters in (
            (("pipelining", "launch_queue"), len(machine.gpus) > 1),
            (("cpu.sockets", "cpu.remote", "cpu.strays"), machine.sockets > 1),
            (
                (
                    "expert_popularity",
                    "gpu.gemm_routed",
                    "gpu.gemm_in_turn",
                    "gpu.routed_bytes_per_unit_clock",
                    "gpu.expert_gap",
                ),
                any(layer.experts for layer in model.layers),
            ),
            (
                ("gpu.recurrence_per_unit_clock", "gpu.amd.recurrence_per_unit_clock"),
                any(isinstance(layer.mixer, Recurrence) for layer in model.layers),
            ),
            (("gpu.gemm_native_fp4",), any("fp4" in gpu.peaks for gpu in machine.gpus)),
            (
                ("gpu.kernel_cycles", "gpu.kernel_cycles_overlapped", "gpu.gemm_dot_share"),
                any(gpu.vendor == "nvidia" for gpu in machine.gpus),
            ),
            (
                ("gpu.attention_latent_unfused", "gpu.attention_wide_keys"),
                any(isinstance(layer.mixer, LatentAttention) for layer in model.layers),
            ),
            (("gpu.gemm_iqk", "gpu.gemm_iqk_wide"), any(not {"iqk", "trellis"}.isdisjoint(names) for names in chosen)),
        )
        if not matters
        for name in names
    ]
    others = tuple(f"{devices}{vendor}." for vendor in ("amd", "apple", "intel") if vendor not in vendors)
    tables = tuple(wanted)
    unused = (name for name in figures if name.startswith(others) or (name.startswith(tables) and name not in used))
    return frozenset([*absent, *unused])
