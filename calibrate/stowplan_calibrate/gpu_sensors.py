"""Clocks, power and temperature of a GPU while it is measured, asked of the driver's library; nothing without it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from contextlib import suppress

_LIBRARY = "libnvidia-ml.so.1"
_SM, _MEMORY, _DIE = 1, 2, 0
_BUSY = 10


class _Utilisation(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class GpuSensors:
    """Readings of one GPU; every reading that the driver refuses is left out."""

    def __init__(self, index: int, open_library: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> None:
        self._nvml: ctypes.CDLL | None = None
        self._device = ctypes.c_void_p()
        with suppress(OSError, AttributeError):
            nvml = open_library(_LIBRARY)
            if nvml.nvmlInit_v2() == 0:
                known = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(self._device)) == 0
                self._nvml = nvml if known else None

    def __call__(self) -> Mapping[str, float]:
        """``sm clock`` and ``memory clock`` (hertz), ``power`` (watts) and ``temperature`` (degrees Celsius)."""
        readings = {
            "sm clock": self._ask("nvmlDeviceGetClockInfo", 1e6, _SM),
            "memory clock": self._ask("nvmlDeviceGetClockInfo", 1e6, _MEMORY),
            "power": self._ask("nvmlDeviceGetPowerUsage", 1e-3),
            "temperature": self._ask("nvmlDeviceGetTemperature", 1.0, _DIE),
        }
        return {name: value for name, value in readings.items() if value is not None}

    def busy(self) -> str | None:
        """A sentence where another program uses the GPU, else None."""
        if self._nvml is None:
            return None
        found = _Utilisation()
        with suppress(AttributeError):
            refused = self._nvml.nvmlDeviceGetUtilizationRates(self._device, ctypes.byref(found))
            if not refused and found.gpu > _BUSY:
                return f"the GPU is {found.gpu} % busy with other work; stop it, or its figures will be too slow"
        return None

    def _ask(self, function: str, factor: float, *arguments: int) -> float | None:
        if self._nvml is None:
            return None
        answer = ctypes.c_uint(0)
        try:
            call = getattr(self._nvml, function)
        except AttributeError:
            return None
        refused = call(self._device, *(ctypes.c_uint(each) for each in arguments), ctypes.byref(answer))
        return None if refused else factor * answer.value
