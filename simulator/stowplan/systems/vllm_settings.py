"""vLLM's knobs that a plan sets, with the engine's own defaults, and what its versions do differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stowplan.errors import NotExpressible
from stowplan.plan import Plan

EngineName = Literal["vllm", "vllm-v0", "distserve"]


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """What a version of the engine does by design.

    Attributes:
        name: for people.
        scheduler: name of the replay's scheduler.
        ahead: whether a step is scheduled while the one before it runs, so that an arrival waits for both.
        watermark: share of the blocks that an admission leaves free.
        prefix_caching: whether the version has a prefix cache.
        graphs: whether steps up to `largest_graph` tokens run as captured graphs of certain sizes, padded to the next.
        largest_graph: tokens of the largest captured graph.
        block_sizes: tokens that a block of the cache may have on a GPU: the kernels of today take multiples of 16 of
            what `--block-size` offers, those of early 2024 up to 32.
    """

    name: str
    scheduler: str
    ahead: bool
    watermark: float
    prefix_caching: bool
    graphs: bool
    largest_graph: int = 512
    block_sizes: tuple[int, ...] = (8, 16, 32)


ENGINES: Mapping[EngineName, EngineTraits] = MappingProxyType(
    {
        "vllm": EngineTraits(
            "vLLM 0.15 and later",
            "chunked",
            ahead=True,
            watermark=0.0,
            prefix_caching=True,
            graphs=True,
            block_sizes=(16, 32, 64, 128, 256),
        ),
        "vllm-v0": EngineTraits(
            "vLLM of early 2024", "continuous", ahead=False, watermark=0.01, prefix_caching=False, graphs=False
        ),
        "distserve": EngineTraits(
            "DistServe", "continuous", ahead=False, watermark=0.01, prefix_caching=False, graphs=False
        ),
    }
)


class VllmSettings(BaseModel):
    """Settings of a vLLM plan.

    Attributes:
        engine: the engine's version, as far as it matters.
        tensor_parallel: GPUs that a model is split over (``--tensor-parallel-size``).
        gpu_memory_utilization: share of each GPU's memory that vLLM takes.
        cpu_offload_gib: GiB of weights of each GPU that stay in host memory (``--cpu-offload-gb``), taken in the order
            of the modules and read by the kernels through the bus at every step.
        max_num_seqs: sequences that run at the same time.
        max_num_batched_tokens: tokens of one step.
        max_model_len: longest sequence in tokens; None for the model's.
        cache: number format of the KV cache.
        prefix_caching: whether blocks of prompts are kept and shared.
        block_tokens: tokens of one block of the cache.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineName = "vllm"
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    cpu_offload_gib: Annotated[float, Field(ge=0.0, le=2**20)] = 0.0
    max_num_seqs: Annotated[int, Field(ge=1, le=2**16)] = 256
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=2**20)] = 8192
    max_model_len: Annotated[int, Field(ge=1, le=2**24)] | None = None
    cache: Literal["bf16", "fp8"] = "bf16"
    prefix_caching: bool = True
    block_tokens: Annotated[int, Field(ge=1, le=1024)] = 16

    @property
    def traits(self) -> EngineTraits:
        """What this version does by design."""
        return ENGINES[self.engine]

    @property
    def cache_bytes(self) -> float:
        """Bytes of a cached element."""
        return 1.0 if self.cache == "fp8" else 2.0

    @property
    def graph_sizes(self) -> tuple[int, ...]:
        """Tokens of the captured graphs in rising order: 1, 2, 4, then every 8 up to 256 and every 16 beyond."""
        if not self.traits.graphs:
            return ()
        largest = min(self.traits.largest_graph, 2 * self.max_num_seqs)
        sizes = [1, 2, 4, *range(8, 257, 8), *range(272, self.traits.largest_graph + 1, 16)]
        return tuple(size for size in sizes if size <= largest)


def settings_of(plan: Plan) -> VllmSettings:
    """Settings that a plan holds.

    Raises:
        NotExpressible: an unknown setting or a wrong type.
    """
    try:
        return VllmSettings.model_validate(plan.settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise NotExpressible(f"plan: settings.{field}: {first['msg']}") from error
