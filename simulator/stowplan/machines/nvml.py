"""NVIDIA GPUs of this computer, asked of the driver's own library; no GPU where that library is absent."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

_LIBRARY = "libnvidia-ml.so.1"
_MOST_GPUS = 64
_NAME_LENGTH = 96
_SM_CLOCK, _MEMORY_CLOCK = 1, 2


@dataclass(frozen=True, slots=True)
class NvmlGpu:
    """What the driver says of one GPU, 0 where it does not.

    Attributes:
        memory: bytes.
        pcie_generation, pcie_lanes: the best link that it can have where it sits.
        bus_bits: width of the memory bus.
        memory_clock, clock: highest clocks in hertz; data moves twice in a memory clock.
        cores: vector lanes.
    """

    name: str
    memory: float
    pcie_generation: int
    pcie_lanes: int
    bus_bits: int = 0
    memory_clock: float = 0.0
    clock: float = 0.0
    cores: int = 0


class _MemoryInfo(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def read_nvml(open_library: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> tuple[NvmlGpu, ...]:
    """GPUs in the driver's order; empty without the library, without a GPU, or where the driver refuses."""
    try:
        nvml = open_library(_LIBRARY)
        started = nvml.nvmlInit_v2() == 0
    except (OSError, AttributeError):
        return ()
    if not started:
        return ()
    try:
        count = ctypes.c_uint(0)
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return ()
        found = (_read_gpu(nvml, index) for index in range(min(count.value, _MOST_GPUS)))
        return tuple(gpu for gpu in found if gpu is not None)
    finally:
        nvml.nvmlShutdown()


def _read_gpu(nvml: ctypes.CDLL, index: int) -> NvmlGpu | None:
    handle = ctypes.c_void_p()
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
        return None
    name = ctypes.create_string_buffer(_NAME_LENGTH)
    if nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(_NAME_LENGTH)) != 0:
        return None
    memory = _MemoryInfo()
    if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
        memory.total = 0
    return NvmlGpu(
        name=name.value.decode("utf-8", errors="replace"),
        memory=float(memory.total),
        pcie_generation=_number(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle),
        pcie_lanes=_number(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle),
        bus_bits=_number(nvml, "nvmlDeviceGetMemoryBusWidth", handle),
        memory_clock=1e6 * _number(nvml, "nvmlDeviceGetMaxClockInfo", handle, _MEMORY_CLOCK),
        clock=1e6 * _number(nvml, "nvmlDeviceGetMaxClockInfo", handle, _SM_CLOCK),
        cores=_number(nvml, "nvmlDeviceGetNumGpuCores", handle),
    )


def _number(nvml: ctypes.CDLL, function: str, handle: ctypes.c_void_p, *arguments: int) -> int:
    """What one query answers; 0 where the driver is too old for it or the device does not say."""
    answer = ctypes.c_uint(0)
    try:
        call = getattr(nvml, function)
    except AttributeError:
        return 0
    refused = call(handle, *(ctypes.c_uint(each) for each in arguments), ctypes.byref(answer))
    return 0 if refused else int(answer.value)
