"""How the engines run the products of routed experts of many rows on a GPU.

Since August 2025 (see `runs_experts_in_turn`) one kernel computes all experts: ``mul_mat_q`` with ids. It chooses the
width of its tiles by the tokens of the micro-batch (``ncols_max`` in ``mul_mat_q_case``), as if one expert could get
them all, and every expert has tiles of its own. Where a micro-batch holds few rows for each of many experts, tiles are
mostly padding: narrower ones, which llama.cpp's pull request 26977 proposes, gain 28 % at 8 rows an expert and 6 % at
32 on an RTX 3090 (qwen3-30b-a3b Q4_K), and nothing at 64.
"""

from __future__ import annotations

from stowplan.figures import Figures
from stowplan.kernels import RoutedRun
from stowplan.machines.machine import Gpu
from stowplan.models import load_format
from stowplan.ops import EXPERT_PARTS, Operator, Part
from stowplan.systems.llama_cpp_attention import Generation, generation
from stowplan.systems.llama_cpp_offload import OFFLOAD_MIN_TOKENS, runs_experts_in_turn, since
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

_LIBRARY_FORMATS = ("float", "float8")  # no kernel takes them together: the library multiplies expert after expert
_GRANULE = 8  # tiles are 8, 16, 24 and so on rows wide
_WIDEST, _WIDEST_VECTOR, _APPLE = 128, 64, 32  # with int8 matrix units; with dot products; kernel_mul_mm_id of Metal
_NATIVE = {"llama.cpp": "2025-12-24"}  # PR 17906: 4-bit instructions of chips that have them
_INPUT = 6.0  # bytes moved for an input: fp32 read, an 8-bit number written and read
_OUTPUT = {Part.EXPERT_GATE: 10.0, Part.EXPERT_UP: 10.0, Part.EXPERT_DOWN: 16.0}
"""Bytes moved for an output: fp32 written (4); read by the gating, which writes half as many (6), or read and written
by the weighting and read by the sum over experts (12)."""


def routed_run(settings: LlamaCppSettings, gpu: Gpu, op: Operator, tokens: int, figures: Figures) -> RoutedRun | None:
    """How a product of routed experts of a micro-batch runs on a GPU; None for other products and a single token."""
    if op.part not in EXPERT_PARTS or tokens == 1:
        return None
    library = tokens >= OFFLOAD_MIN_TOKENS and load_format(op.format).family in _LIBRARY_FORMATS
    if library or runs_experts_in_turn(settings, tokens):
        return RoutedRun(0.0, 0.0)  # what is beside them is in their rate
    tile = min(_widest(gpu), -(-tokens // _GRANULE) * _GRANULE)
    beside = op.m * op.matrices * (_OUTPUT[op.part] * op.n + _INPUT * op.k)
    native = op.format == "mxfp4" and "fp4" in gpu.peaks and since(settings, _NATIVE.get(settings.engine))
    return RoutedRun(float(tile), beside, figures.value("llama.cpp.gpu.gemm_native_fp4") if native else 1.0)


def _widest(gpu: Gpu) -> int:
    if gpu.vendor == "apple":
        return _APPLE
    return _WIDEST_VECTOR if gpu.vendor == "nvidia" and generation(gpu) is Generation.OTHER else _WIDEST
