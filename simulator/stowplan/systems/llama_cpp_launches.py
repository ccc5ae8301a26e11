"""How far apart dependent small kernels start while a token is decoded.

A CUDA graph takes the host's pace out of decoding. In builds since August 2025 mixtures are captured, too, and norms
and additions are fused (llama.cpp pull request 15631, ik_llama.cpp 689): then the chip decides how soon a kernel
follows another, a number of clocks. Since May 2026 chips from Hopper on launch a kernel before the last one has ended
(pull request 22522).
"""

from __future__ import annotations

from stowplan.figures import Figures
from stowplan.machines.machine import Gpu
from stowplan.systems.llama_cpp_offload import since
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

_GRAPHS = {"llama.cpp": "2025-08-29", "ik_llama.cpp": "2025-08-15"}  # PR 15631; PR 689
_OVERLAPPED = {"llama.cpp": "2026-05-21"}  # PR 22522 is in b9254


def graph_gap(settings: LlamaCppSettings, gpu: Gpu, figures: Figures) -> float | None:
    """Seconds between the starts of two dependent small kernels of a captured graph; None where nothing is captured.

    Never more than without a graph.
    """
    if gpu.vendor != "nvidia" or gpu.clock is None or not since(settings, _GRAPHS[settings.engine]):
        return None
    cycles = figures.value("llama.cpp.gpu.kernel_cycles")
    if _launches_early(gpu) and since(settings, _OVERLAPPED.get(settings.engine)):
        cycles *= figures.value("llama.cpp.gpu.kernel_cycles_overlapped")
    return min(cycles / gpu.clock.value, figures.value("llama.cpp.gpu.kernel_gap"))


def _launches_early(gpu: Gpu) -> bool:
    """Whether a chip is Hopper, which pairs 8-bit floats with stacked memory, or later, with 4-bit floats."""
    return "fp4" in gpu.peaks or ("fp8" in gpu.peaks and (gpu.process or "").endswith("-hbm"))
