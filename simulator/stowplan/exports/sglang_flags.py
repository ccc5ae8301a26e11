"""SGLang's flags that move bytes: read from a command or a file, and written to a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stowplan.errors import InputError, NotExpressible
from stowplan.exports.base import LONGEST_TEXT
from stowplan.exports.flags import Vocabulary, read_keys, read_words, settings_from
from stowplan.exports.flat_yaml import Value, read_yaml
from stowplan.exports.scripts import script_words

Positive = Annotated[int, Field(ge=1, le=2**31)]


class SglangFlags(BaseModel):
    """Flags that move bytes, by SGLang's own names; those of KTransformers begin with ``kt_``.

    Attributes:
        tp_size: GPUs that a model is split over.
        cpu_offload_gb: GiB of weights per GPU that stay in host memory, whole numbers, from the first layer on.
        offload_group_size, offload_num_in_group, offload_prefetch_step, offload_mode: groups of layers whose last ones
            have their experts in host memory; -1 for none.
        enable_paged_experts, paged_experts_num_resident: so many experts of every layer on the GPU, the others paged.
        mem_fraction_static: share of the GPU's memory for weights and cache; None for the engine's choice.
        context_length, max_running_requests, max_total_tokens, chunked_prefill_size: lengths and batches in tokens.
        kv_cache_dtype: format of the cache.
        enable_hierarchical_cache: host memory and storage behind the cache, of `hicache_size` decimal GB per GPU or
            `hicache_ratio` times the cache on the GPU.
        kt_weight_path, kt_method: where KTransformers' CPU experts are, and their kernel; empty for none.
        kt_num_gpu_experts: experts 0, 1, ... of every layer on the GPU.
        kt_gpu_experts_ratio: share of all experts on GPUs, instead of the number.
        init_expert_location, kt_expert_placement_strategy: which experts those are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tp_size: Positive = 1
    cpu_offload_gb: Annotated[int, Field(ge=0, le=2**20)] = 0
    offload_group_size: Annotated[int, Field(ge=-1, le=10_000)] = -1
    offload_num_in_group: Positive = 1
    offload_prefetch_step: Positive = 1
    offload_mode: Literal["cpu", "meta", "sharded_gpu", "shm_cpu"] = "cpu"
    enable_paged_experts: bool = False
    paged_experts_num_resident: Positive | None = None
    mem_fraction_static: Annotated[float, Field(gt=0, le=1)] | None = None
    context_length: Positive | None = None
    max_running_requests: Positive | None = None
    max_total_tokens: Positive | None = None
    chunked_prefill_size: Annotated[int, Field(ge=-1)] | None = None
    kv_cache_dtype: Literal["auto", "bf16", "bfloat16", "fp8_e5m2", "fp8_e4m3", "fp4_e2m1"] = "auto"
    enable_hierarchical_cache: bool = False
    hicache_size: Annotated[int, Field(ge=0, le=2**20)] = 0
    hicache_ratio: Annotated[float, Field(gt=0)] | None = None
    hicache_write_policy: Literal["write_back", "write_through", "write_through_selective"] | None = None
    hicache_storage_backend: str | None = None
    kt_weight_path: str = ""
    kt_method: str = ""
    kt_cpuinfer: Positive | None = None
    kt_threadpool_count: Positive | None = None
    kt_num_gpu_experts: Annotated[int, Field(ge=0, le=2**16)] | None = None
    kt_gpu_experts_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    kt_expert_placement_strategy: Literal["frequency", "front-loading", "uniform", "random"] | None = None
    init_expert_location: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> SglangFlags:
        if self.offload_group_size > 0:
            if self.cpu_offload_gb:
                raise ValueError("--cpu-offload-gb and --offload-group-size exclude each other")
            if self.offload_num_in_group > self.offload_group_size:
                raise ValueError("--offload-num-in-group is at most --offload-group-size")
        if self.enable_paged_experts != (self.paged_experts_num_resident is not None):
            raise ValueError("--enable-paged-experts and --paged-experts-num-resident come together")
        if self.enable_paged_experts and self.tp_size > 1:
            raise ValueError("--enable-paged-experts runs on one GPU")
        if not self.enable_hierarchical_cache and (self.hicache_size or self.hicache_ratio):
            raise ValueError("--hicache-size and --hicache-ratio need --enable-hierarchical-cache")
        return self

    def stated(self) -> dict[str, Any]:
        """Settings that are not at their default, by name."""
        return self.model_dump(mode="json", exclude_defaults=True)


_SWITCHES = frozenset({"enable-paged-experts", "enable-hierarchical-cache", "enable-hicache"})
_SPELLED = {name.replace("_", "-"): name for name in SglangFlags.model_fields}

VOCABULARY = Vocabulary(
    engine="SGLang",
    meant=_SPELLED
    | {
        "model-path": "model",
        "model": "model",
        "tensor-parallel-size": "tp_size",
        "tp": "tp_size",
        "enable-hicache": "enable_hierarchical_cache",
        "config": "config",
    },
    switches=_SWITCHES,
    quiet=frozenset(
        """
        host port api-key served-model-name chat-template tool-call-parser reasoning-parser random-seed revision
        tokenizer-path tokenizer-mode download-dir load-format log-level log-level-http dtype quantization
        attention-backend prefill-attention-backend decode-attention-backend sampling-backend grammar-backend
        moe-runner-backend moe-a2a-backend fp8-gemm-backend schedule-policy schedule-conservativeness page-size
        cuda-graph-max-bs cuda-graph-bs speculative-algorithm speculative-num-steps speculative-eagle-topk
        speculative-num-draft-tokens speculative-draft-model-path dp-size dp ep-size ep pp-size nnodes node-rank
        dist-init-addr watchdog-timeout stream-interval hicache-io-backend hicache-mem-layout
        hicache-storage-prefetch-policy hicache-storage-backend-extra-config hicache-host-memory-fraction
        hicache-host-memory-mode kt-max-deferred-experts-per-token kt-gpu-prefill-token-threshold kt-numa-nodes
        kt-num-threads max-prefill-tokens num-continuous-decode-steps mamba-ssm-dtype max-mamba-cache-size base-gpu-id
        json-model-override-args lmcache-config-file
        """.split()  # noqa: SIM905
    ),
    quiet_switches=frozenset(
        """
        trust-remote-code disable-radix-cache disable-cuda-graph enable-torch-compile enable-mixed-chunk
        skip-tokenizer-init enable-metrics disable-custom-all-reduce enable-dp-attention enable-p2p-check
        disable-overlap-schedule disable-shared-experts-fusion skip-server-warmup kt-enable-dynamic-expert-update
        enable-lmcache enable-two-batch-overlap disable-chunked-prefix-cache log-requests enable-memory-saver
        enable-cache-report
        """.split()  # noqa: SIM905
    ),
    removed={"enable-ep-moe": "--ep-size sets it; drop the flag"},
)


def stated_flags(settings: dict[str, Any]) -> SglangFlags:
    """The flags that a plan's settings hold."""
    return settings_from(SglangFlags, settings, VOCABULARY)


def config(model: str, flags: SglangFlags) -> dict[str, Value]:
    """Keys of the configuration file."""
    found: dict[str, Value] = {"model-path": model}
    found |= {name.replace("_", "-"): value for name, value in flags.stated().items()}
    return found


def read_values(text: str | Sequence[str]) -> dict[str, Value]:
    """Settings by name, of a command or a file.

    Raises:
        InputError, NotExpressible: an unknown flag or key, another program, too large a file.
    """
    if isinstance(text, str):
        if len(text) > LONGEST_TEXT:
            raise InputError("the configuration of SGLang is larger than 4 MiB")
        if text.lstrip().startswith("#!"):
            return read_values(script_words(text))
        return read_keys(read_yaml(text, "the configuration of SGLang"), VOCABULARY)
    words = [word for word in text if word not in ("\\", "\n")]
    while words and "=" in words[0] and words[0].split("=")[0].isupper():
        words.pop(0)
    if words[:2] == ["sglang", "serve"]:
        words = words[2:]
    elif words[1:3] == ["-m", "sglang.launch_server"]:
        words = words[3:]
    else:
        start = " ".join(words[:3])[:60]
        raise NotExpressible(f"'{start}' does not start SGLang's server; it is python -m sglang.launch_server ...")
    found, loose = read_words(words, VOCABULARY)
    if loose:
        raise InputError(f"SGLang takes flags only, not '{loose[0][:60]}'")
    if "config" in found:
        raise InputError(f"--config {found['config']}: import that file itself")
    return found


def flags_of(values: dict[str, Value]) -> SglangFlags:
    """Checked flags from values by name.

    Raises:
        InputError: a value of the wrong kind, or flags that contradict each other; names them.
    """
    return settings_from(SglangFlags, {k: v for k, v in values.items() if k not in ("model", "config")}, VOCABULARY)
