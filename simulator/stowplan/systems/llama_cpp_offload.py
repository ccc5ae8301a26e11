"""Which products of CPU-resident weights the engine computes on the GPU, with which kernels, and what it copies.

Both engines copy weights to the GPU when enough rows wait for them and the GPU has a kernel for the format. The rules
changed over time, so they ask for the day that the engine was built; without one the newest rule of its release holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from stowplan.kernels import Layout
from stowplan.models import load_format
from stowplan.models.model import Layer
from stowplan.ops import Part, distinct_experts, part_of
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

OFFLOAD_MIN_TOKENS = 32
"""GGML_OP_OFFLOAD_MIN_BATCH: from this many tokens on, products of CPU-resident weights are computed on the GPU."""

_SCALED_THRESHOLD = "2025-06-11"  # ik_llama.cpp PR 520, merged a day later: rows per expert count
_USED_EXPERTS = {"llama.cpp": "2025-08-28", "ik_llama.cpp": "2025-10-20"}  # PR 15346; PR 842 (an option since PR 698)
_PINNED_OVERRIDES = {"llama.cpp": "2025-07-31", "ik_llama.cpp": "2026-03-25"}  # PR 14990; PR 1508
_INT8_PRODUCTS = "2024-06-24"  # llama.cpp PR 8075: int8 matrix units by default; before, weights became fp16 first
_IQK_PRODUCTS = "2025-05-15"  # ik_llama.cpp PRs 374, 417 and 418
_IQK_ROWS_PRODUCTS = "2025-06-26"  # ik_llama.cpp PRs 493 and 557
_FUSED = {"llama.cpp": "2025-08-30", "ik_llama.cpp": "2025-10-25"}  # PR 15434; PR 863
_FUSED_BENCH = "2026-07"  # llama-bench.cpp: -fa is off (flash_attn = false) until it knows load modes (PR 20834)
_LIBRARY_PRODUCTS = "2025-06-27"  # ik_llama.cpp PR 559
_LIBRARY_ROWS = {
    "q2_k": 384,
    **dict.fromkeys(("q3_k", "q6_k", "iq2_xs", "iq2_s"), 1536),
    **dict.fromkeys(("iq2_k", "iq3_k", "iq4_k", "iq5_k", "iq6_k"), 1024),
}
"""Rows from which products of formats with blocks of 16 weights go to the library, as 16-bit numbers."""
_EXPERTS_TOGETHER = {"llama.cpp": "2025-08-25", "ik_llama.cpp": "2025-08-26"}  # PR 15525; PR 728
_FUSED_OFFLOAD = "2025-05-12"  # ik_llama.cpp PR 405; before, -fmoe's operator of up and gate was not copied for
_UNPACKED = "2025-06-18"  # ik_llama.cpp PRs 531, 533 and 534
_UNPACKED_ROWS = {"q6_k": 64}  # rows from which weights are written out first, where not _MANY_ROWS
_MANY_ROWS = 32
_NEVER_UNPACKED = ("float", "float8")
_COUNTS_OUTPUT = "2025-12"  # llama.cpp PR 18148: releases from here on are "current"
_TILED_ATTENTION = "2026-03"  # llama.cpp PRs 19012 and 19422, in review until the middle of February
TILE_QUERIES = 64  # GGML_FA_TILE_Q
_FLOAT_CACHES = frozenset(("f32", "f16"))
_FEW_ROWS = 64  # up to so many rows the quantised kernels ran before, too (MMQ_MAX_BATCH_SIZE)

_ROWS_ON_GPU = {  # interleaved rows that the GPU can read, and since when: ik_llama.cpp PRs 461, 462, 492, 494
    "iq2_k": "2025-05-26",
    "iq3_k": "2025-05-26",
    "iq4_k": "2025-05-26",
    "iq5_k": "2025-05-26",
    "iq4_ks": "2025-05-27",
    "iq5_ks": "2025-05-27",
    "iq1_s": "2025-06-05",
    "iq1_m": "2025-06-05",
}
_REPACKED = frozenset(
    """
    q4_0 q5_0 q6_0 q8_0 iq4_nl q2_k q3_k q4_k q5_k q6_k iq4_xs iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s iq2_k iq3_k iq4_k
    iq5_k iq4_ks iq5_ks f16 bf16
    """.split()  # noqa: SIM905
)
"""Formats whose rows ``-rtr`` interleaves at load."""


def plain_format(key: str) -> tuple[str, bool]:
    """A format without its mark of interleaved rows (``iq4_ks_r4``), and whether it had one."""
    stem, mark, rows = key.rpartition("_r")
    return (stem, True) if mark and rows.isdigit() else (key, False)


def copied_from(
    settings: LlamaCppSettings, format_key: str, experts: tuple[int, int] | None, part: Part | None = None
) -> float:
    """Tokens from which products of CPU-resident weights are computed on the GPU; infinite for never.

    Args:
        settings: of the engine.
        format_key: storage format of the weights.
        experts: (total, active) if they are routed.
        part: what part of the layer the weights are.
    """
    if not settings.op_offload:
        return float("inf")
    if settings.engine != "ik_llama.cpp":
        return OFFLOAD_MIN_TOKENS
    plain, rows = plain_format(format_key)
    if (rows or (settings.repacked and plain in _REPACKED)) and not since(settings, _ROWS_ON_GPU.get(plain)):
        return float("inf")
    if part in (Part.EXPERT_GATE, Part.EXPERT_UP) and not since(settings, _FUSED_OFFLOAD):
        return float("inf")
    if experts is None or not since(settings, _SCALED_THRESHOLD):
        return OFFLOAD_MIN_TOKENS
    return OFFLOAD_MIN_TOKENS * experts[0] / experts[1]


def mixers_copied_from(settings: LlamaCppSettings, layers: Iterable[Layer]) -> float:
    """Tokens from which every product of the mixers of layers in host memory is computed on the GPU."""
    matrices = (
        tensor.format
        for layer in layers
        for tensor in layer.tensors
        if part_of(tensor) is Part.MIXER and tensor.columns > 1
    )
    return max((copied_from(settings, each, None) for each in set(matrices)), default=inf)


def cpu_layout(settings: LlamaCppSettings, format_key: str, rows: float) -> Layout:
    """How a product on the CPU meets weights in host memory; mainline's kernels know one way."""
    if settings.engine != "ik_llama.cpp":
        return Layout.PLAIN
    plain, interleaved = plain_format(format_key)
    if interleaved or (settings.repacked and plain in _REPACKED):
        return Layout.ROWS
    enough = rows >= _UNPACKED_ROWS.get(plain, _MANY_ROWS) and load_format(plain).family not in _NEVER_UNPACKED
    return Layout.UNPACKED if enough and since(settings, _UNPACKED) else Layout.PLAIN


def since(settings: LlamaCppSettings, day: str | None) -> bool:
    """Whether the engine was built on a day or after it, as its release says where its own day is unknown."""
    if day is None:
        return False
    if settings.built is None:
        return day < _COUNTS_OUTPUT or settings.release == "current" or settings.engine != "llama.cpp"
    return settings.built >= day[: len(settings.built)]


def fuses_by_default(settings: LlamaCppSettings, *, bench: bool) -> bool:
    """Whether attention is fused where a command does not say so: ``llama-bench`` has a default of its own."""
    return since(settings, _FUSED_BENCH if bench and settings.engine == "llama.cpp" else _FUSED[settings.engine])


def dequantises(settings: LlamaCppSettings, format_key: str, rows: float) -> bool:
    """Whether a product on the GPU first writes its weights out as 16-bit numbers."""
    own = load_format(format_key).family
    if own in ("float", "float8") or rows <= _FEW_ROWS:
        return False
    plain, interleaved = plain_format(format_key)
    if (
        settings.engine == "ik_llama.cpp"
        and rows >= _LIBRARY_ROWS.get(plain, inf)
        and since(settings, _LIBRARY_PRODUCTS)
    ):
        return True
    if own in ("iqk", "trellis"):
        return not since(settings, _IQK_ROWS_PRODUCTS if interleaved else _IQK_PRODUCTS)
    return not since(settings, _INT8_PRODUCTS)


def tiles_attention(settings: LlamaCppSettings, queries: float) -> bool:
    """Whether fused attention on the CPU takes many queries at a time, as small products; no quantised caches."""
    whole = {settings.cache_k, settings.cache_v} <= _FLOAT_CACHES and settings.cache_k == settings.cache_v
    new = settings.engine == "llama.cpp" and since(settings, _TILED_ATTENTION)
    return new and whole and settings.flash_attention and queries >= TILE_QUERIES


def touched_experts(experts: tuple[int, int], tokens: int, popularity: float) -> float:
    """Expected number of distinct experts that `tokens` tokens of a batch choose.

    How often they choose an expert follows a gamma distribution of shape `popularity` over the (total, active) experts,
    so one is left out by n more tokens with probability ``(1 + n x active/total / popularity) ** -popularity``. Never
    more than when every expert is as likely as any other.
    """
    total, active = experts
    share = active / total
    missed: float = (1.0 - share) * (1.0 + (tokens - 1) * share / popularity) ** -popularity
    return min(total * (1.0 - missed), distinct_experts(total, active, tokens))


def runs_experts_in_turn(settings: LlamaCppSettings, tokens: int) -> bool:
    """Whether the products of a prompt's experts are launched one after another."""
    return tokens >= OFFLOAD_MIN_TOKENS and not since(settings, _EXPERTS_TOGETHER[settings.engine])


def pinned(settings: LlamaCppSettings, *, overridden: bool) -> bool:
    """Whether weights in host memory are page-locked, so that GPUs read them directly.

    Args:
        settings: of the engine.
        overridden: whether only some tensors of their layer are kept there. Both engines once put those into plain
            memory; the fork gives up memory mapping for them since (PR 1510).
    """
    if not overridden:
        return settings.load_mode == "none"
    if not since(settings, _PINNED_OVERRIDES[settings.engine]):
        return False
    return settings.engine == "ik_llama.cpp" or settings.load_mode == "none"


def copies_all_experts(settings: LlamaCppSettings) -> bool:
    """Whether a batch copies every expert of a matrix to the GPU, or only those that its tokens chose."""
    if settings.used_experts is not None:
        return not settings.used_experts
    return not since(settings, _USED_EXPERTS[settings.engine])
