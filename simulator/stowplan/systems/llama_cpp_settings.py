"""llama.cpp's knobs that a plan sets, with the engine's own defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stowplan.errors import NotExpressible
from stowplan.models import load_format
from stowplan.ops import CacheFormat
from stowplan.plan import Plan

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


class LlamaCppSettings(BaseModel):
    """Settings of a llama.cpp plan.

    Attributes:
        engine: mainline or ik_llama.cpp; they differ in the threshold of streaming and in how ``-ngl`` counts.
        release: which rule ``-ngl`` follows: ``current`` (since December 2025) counts the output layer first.
        ubatch, batch: physical and logical batch in tokens; a prompt is processed `ubatch` tokens at a time.
        threads: threads of the CPU backend; None for one per physical core.
        threads_batch: threads while a pass holds more than one token; None for as many as `threads`.
        cache_k, cache_v: storage formats of the cache.
        flash_attention: fused attention; without it the scores are materialised.
        load_mode: how weights reach host memory: ``mmap`` (pageable), ``none`` (read, pinned for copies) or ``mlock``.
        kv_offload: whether the cache lives with its layer (False: all of it in host memory).
        op_offload: whether prompt batches stream CPU-resident weights to the GPU.
        built: day or month of the build (``2025-06``), for rules that changed; None for the newest of `release`.
        repacked: whether rows of CPU-resident weights are interleaved at load (``-rtr`` of ik_llama.cpp).
        used_experts: whether only the experts that a batch uses are streamed; None for the engine's default.
        mla: how ik_llama.cpp computes latent attention over a prompt: 1 absorbed into the projections as mainline
            does, 0, 2 and 3 with keys and values expanded.
        numa: what the engine was told of several memory nodes: ``distribute`` spreads threads over them, ``isolate``
            keeps them on one, ``numactl`` where that tool allows; each leaves mapped pages to the threads that read
            them. None for nothing.
        numactl: what that tool does to the process: ``interleave`` spreads its pages over all nodes, ``bind`` keeps
            threads and pages on one node; None where it is not used.
        margin: bytes of every GPU's memory that the plan leaves free.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["llama.cpp", "ik_llama.cpp"] = "llama.cpp"
    release: Literal["current", "pre-2025-12"] = "current"
    ubatch: Annotated[int, Field(ge=1, le=2**20)] = 512
    batch: Annotated[int, Field(ge=1, le=2**20)] = 2048
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    threads_batch: Annotated[int, Field(ge=1, le=4096)] | None = None
    cache_k: str = "f16"
    cache_v: str = "f16"
    flash_attention: bool = True
    load_mode: Literal["mmap", "none", "mlock"] = "none"
    kv_offload: bool = True
    op_offload: bool = True
    built: Annotated[str, Field(pattern=r"^20\d\d-(0[1-9]|1[0-2])(-\d\d)?$")] | None = None
    repacked: bool = False
    used_experts: bool | None = None
    mla: Literal[0, 1, 2, 3] = 3
    numa: Literal["distribute", "isolate", "numactl"] | None = None
    numactl: Literal["interleave", "bind"] | None = None
    margin: Annotated[int, Field(ge=0)] = 512 * 2**20

    @property
    def chunk(self) -> int:
        """Tokens of a prompt that one pass processes."""
        return min(self.ubatch, self.batch)

    @property
    def cache(self) -> CacheFormat:
        """Bytes per cached element."""
        return CacheFormat(*(load_format(key).bits_per_weight / 8 for key in (self.cache_k, self.cache_v)))

    @property
    def expands_latents(self) -> bool:
        """Whether latent attention over a prompt works on expanded keys and values."""
        return self.engine == "ik_llama.cpp" and self.mla != 1


def settings_of(plan: Plan) -> LlamaCppSettings:
    """Settings that a plan holds.

    Raises:
        NotExpressible: an unknown setting, a wrong type or an unknown cache format.
    """
    try:
        settings = LlamaCppSettings.model_validate(plan.settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise NotExpressible(f"plan: settings.{field}: {first['msg']}") from error
    for name in (settings.cache_k, settings.cache_v):
        if name not in CACHE_TYPES:
            raise NotExpressible(f"llama.cpp has no cache type '{name}'; it has {', '.join(CACHE_TYPES)}")
    if settings.cache_v not in {"f32", "f16", "bf16"} and not settings.flash_attention:
        raise NotExpressible(f"a {settings.cache_v} value cache needs flash attention; add -fa on")
    return settings
