"""Which kernel runs attention on a GPU: a matter of the engine, its age, the GPU's generation and the cache's format.

The rules are those of ``ggml-cuda/fattn.cu`` in both engines; what the kernels do is in `stowplan.kernels`.
"""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum

from stowplan.kernels import AttentionKernel
from stowplan.machines.machine import Gpu
from stowplan.models.model import Attention, Layer
from stowplan.ops import Operator
from stowplan.systems.llama_cpp_offload import since
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

_SHARED_READS = {"llama.cpp": "2025-02-22", "ik_llama.cpp": "2025-05-04"}  # PR 12014; PR 370
_SHARED_READS_ADA = "2025-08-02"  # llama.cpp PR 15035
_MANY_HEADS, _LONG = 4, 8192  # from more query heads and from so many tokens on Ada's matrix units pay off there
_PADDED_READS = "2026-01-27"  # llama.cpp PRs 19092 and 19115: any number of query heads, padded to a power of two
_WHOLE_READS = {(12, 128): "2026-01-28", (6, 128): "2026-01-28", (10, 128): "2026-02-03", (6, 256): "2026-02-26"}
"""Query heads that share a read in ik_llama.cpp, all of them, by their number and width: PRs 1193, 1194, 1221, 1328."""
_COLUMNS = 8  # most query heads of a read
_WINDOWS = {"llama.cpp": "2025-05-20", "ik_llama.cpp": "2025-09-04"}  # PR 13194; PR 754
_TILES_AMD = {"llama.cpp": "2025-09-06"}  # PR 15769; the fork still runs the kernel for one query on AMD's
_FLOATS = frozenset(("f32", "f16", "bf16"))


class Generation(IntEnum):
    """Matrix units of a GPU, as far as kernels differ by them."""

    AMD = -1
    OTHER = 0
    TURING = 1
    ADA = 2


def generation(gpu: Gpu) -> Generation:
    """What a GPU's matrix units take: 8-bit integers since Turing, 8-bit floats since Ada and Hopper.

    Turing's GTX 16 has no such units, but runs the same kernels: its vector units execute their instructions.
    """
    if gpu.vendor == "amd":
        return Generation.AMD
    if gpu.vendor != "nvidia":
        return Generation.OTHER
    if "fp8" in gpu.peaks:
        return Generation.ADA
    int8, half = gpu.peaks.get("int8"), gpu.peaks.get("fp16")
    return Generation.TURING if int8 and half and int8.value > half.value else Generation.OTHER


def attention_kernel(
    settings: LlamaCppSettings, gpu: Generation, layer: Layer, op: Operator, sequences: int
) -> AttentionKernel | None:
    """Kernel of an attention operator on a GPU; None where none of the two runs or nothing is known of it.

    Latent attention is None: its kernels are told apart by other settings, see `EngineOperators`.
    """
    mixer = layer.mixer
    if not settings.flash_attention or not isinstance(mixer, Attention):
        return None
    if gpu is Generation.AMD:
        return AttentionKernel.VECTOR if op.m > 1 and not since(settings, _TILES_AMD.get(settings.engine)) else None
    if gpu is Generation.OTHER:
        return None
    vector = mixer.head_dim <= 256 and mixer.head_dim % 64 == 0 and mixer.head_dim == mixer.value_dim
    if op.m > 1 or sequences > 1 or not vector:
        return AttentionKernel.MATRIX
    padded = settings.engine == "llama.cpp" and op.group > 1 and since(settings, _PADDED_READS)
    shared = padded or (op.group % 2 == 0 and since(settings, _SHARED_READS[settings.engine]))
    if settings.engine == "ik_llama.cpp" or not shared:
        return AttentionKernel.MATRIX if shared else AttentionKernel.VECTOR
    if not {settings.cache_k, settings.cache_v} <= _FLOATS:
        return AttentionKernel.VECTOR
    if gpu is Generation.ADA:
        depth = op.scores / mixer.heads
        late = since(settings, _SHARED_READS_ADA) and op.group > _MANY_HEADS and depth >= _LONG
        return AttentionKernel.MATRIX if late else AttentionKernel.VECTOR
    return AttentionKernel.MATRIX


def shared_heads(settings: LlamaCppSettings, layer: Layer, op: Operator) -> float | None:
    """Query heads that share a read of the cache in `AttentionKernel.MATRIX`; None for the largest power of two."""
    mixer = layer.mixer
    if not isinstance(mixer, Attention):
        return None
    if settings.engine == "ik_llama.cpp":
        whole = _WHOLE_READS.get((op.group, mixer.head_dim))
        return float(op.group) if since(settings, whole) else None
    return op.group / -(-op.group // _COLUMNS) if since(settings, _PADDED_READS) else None


def without_window(settings: LlamaCppSettings, layer: Layer) -> Layer:
    """A layer as early builds compute it on a GPU: all of the cache, and a mask over what is out of the window."""
    mixer = layer.mixer
    if not isinstance(mixer, Attention) or mixer.window is None or since(settings, _WINDOWS[settings.engine]):
        return layer
    return replace(layer, mixer=replace(mixer, window=None))
