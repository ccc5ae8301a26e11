"""What the forms need to know of a GPU: its datasheet figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stowplan.errors import InputError
from stowplan.machines.machine import Gpu

VALUE_BYTES: Mapping[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4.0 / (128 * 128),
    "int8": 1.0,
    "int4": 0.5 + 2.0 / 128,
    "mxfp4": 0.5 + 1.0 / 32,
    "nvfp4": 0.5 + 1.0 / 16,
}
"""Bytes per stored weight, scales included: fp32 scales per 128 x 128 block of fp8, fp16 per 128 of int4, one byte
per 32 of MXFP4 and per 16 of NVFP4 (OCP Microscaling Formats 1.0; NVIDIA NVFP4)."""

ARITHMETIC: Mapping[str, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "bf16": ("bf16", "fp16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "fp8": ("fp8", "fp16", "bf16", "fp32"),
    "fp8_block": ("fp8", "fp16", "bf16", "fp32"),
    "int8": ("int8", "fp16", "bf16", "fp32"),
    "int4": ("bf16", "fp16", "fp32"),
    "mxfp4": ("bf16", "fp16", "fp32"),
    "nvfp4": ("fp4", "bf16", "fp16", "fp32"),
}
"""Peaks that a type computes at, best first: weight-only 4-bit kernels multiply in bf16."""


@dataclass(frozen=True, slots=True)
class Device:
    """Datasheet figures of one GPU.

    Attributes:
        key: its profile's name.
        units: streaming multiprocessors.
        bandwidth: memory bytes/s.
        peaks: dense FLOP/s by arithmetic.
        link: bytes/s to its peers in each direction, all links together.
    """

    key: str
    units: float
    bandwidth: float
    peaks: Mapping[str, float]
    link: float

    def peak(self, dtype: str) -> float:
        """FLOP/s of products in `dtype`, in the arithmetic that this GPU has for it.

        Raises:
            InputError: an unknown type, or a GPU without any peak for it.
        """
        if dtype not in ARITHMETIC:
            raise InputError(f"no kernels are known for the type '{dtype}'; known: {', '.join(ARITHMETIC)}")
        for name in ARITHMETIC[dtype]:
            if name in self.peaks:
                return self.peaks[name]
        raise InputError(f"{self.key}: its [peaks] hold none of {', '.join(ARITHMETIC[dtype])}, which {dtype} needs")


def device_of(gpu: Gpu, link: float) -> Device:
    """Datasheet figures of `gpu`; `link` is what joins it to its peers, bytes/s in each direction.

    Raises:
        InputError: a GPU whose profile gives no number of units.
    """
    if gpu.units is None:
        raise InputError(f"{gpu.key}: its profile gives no 'units'; kernel times need the number of multiprocessors")
    peaks = {name: number.value for name, number in gpu.peaks.items()}
    return Device(gpu.key, gpu.units.value, gpu.bandwidth.value, peaks, link)
