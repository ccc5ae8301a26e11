"""vLLM's flags that move bytes: read from a command or a file, and written to a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from stowplan.errors import InputError, NotExpressible
from stowplan.exports.base import LONGEST_TEXT
from stowplan.exports.flags import Vocabulary, read_keys, read_words, settings_from, whole_with_suffix
from stowplan.exports.flat_yaml import Value, read_yaml
from stowplan.exports.fused import Moved, greedy, grouped
from stowplan.exports.scripts import script_words
from stowplan.models.model import Model
from stowplan.systems.vllm_settings import VllmSettings

GIB = 2**30
UTILIZATION = 0.92
"""The engine's own share of the GPU's memory."""


class VllmFlags(VllmSettings):
    """`VllmSettings` and the offloading options that it leaves out.

    Attributes:
        cpu_offload_params: segments of parameter names that the budget is spent on; empty for all.
        offload_group_size, offload_num_in_group, offload_prefetch_step: groups of layers, the last ones of which are in
            host memory and copied that many layers ahead; 0 for none.
        offload_params: segments of parameter names in those layers; empty for all.
        kv_offload_gib: GiB of host memory, over all GPUs, that keep blocks of finished requests.
        kv_disk: folder for blocks beyond that; empty for none.
    """

    cpu_offload_params: tuple[str, ...] = ()
    offload_group_size: Annotated[int, Field(ge=0, le=10_000)] = 0
    offload_num_in_group: Annotated[int, Field(ge=1, le=10_000)] = 1
    offload_prefetch_step: Annotated[int, Field(ge=0, le=10_000)] = 1
    offload_params: tuple[str, ...] = ()
    kv_offload_gib: Annotated[float, Field(ge=0, le=2**20)] = 0.0
    kv_disk: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> VllmFlags:
        if self.offload_group_size and self.offload_num_in_group > self.offload_group_size:
            raise ValueError("--offload-num-in-group is at most --offload-group-size")
        if self.offload_group_size and self.offload_prefetch_step < 1:
            raise ValueError("--offload-prefetch-step is at least 1")
        if self.offload_group_size and self.cpu_offload_gib:
            raise ValueError("--cpu-offload-gb and --offload-group-size exclude each other")
        return self

    def stated(self) -> dict[str, Any]:
        """All settings of the system, and of the rest those that are not at their default."""
        plain = set(VllmSettings.model_fields)
        fields = self.model_dump(mode="json")
        defaults = VllmFlags.model_fields
        return {
            name: list(value) if isinstance(value, list | tuple) else value
            for name, value in fields.items()
            if name in plain or getattr(self, name) != defaults[name].default
        }

    def moved(self, model: Model) -> Moved:
        """Parameters in host memory by the engine's rule."""
        if self.offload_group_size:
            return grouped(
                model, self.tensor_parallel, self.offload_group_size, self.offload_num_in_group, self.offload_params
            )
        return greedy(model, self.tensor_parallel, int(self.cpu_offload_gib * GIB), self.cpu_offload_params)


VOCABULARY = Vocabulary(
    engine="vLLM",
    meant={
        "model": "model",
        "tensor-parallel-size": "tensor_parallel",
        "gpu-memory-utilization": "gpu_memory_utilization",
        "cpu-offload-gb": "cpu_offload_gib",
        "cpu-offload-params": "cpu_offload_params",
        "offload-backend": "offload_backend",
        "offload-group-size": "offload_group_size",
        "offload-num-in-group": "offload_num_in_group",
        "offload-prefetch-step": "offload_prefetch_step",
        "offload-params": "offload_params",
        "kv-offloading-size": "kv_offload_gib",
        "kv-transfer-config": "kv_transfer_config",
        "max-num-seqs": "max_num_seqs",
        "max-num-batched-tokens": "max_num_batched_tokens",
        "max-model-len": "max_model_len",
        "kv-cache-dtype": "cache",
        "enable-prefix-caching": "prefix_caching",
        "no-enable-prefix-caching": "no_prefix_caching",
        "block-size": "block_tokens",
        "dtype": "dtype",
        "quantization": "quantization",
        "config": "config",
    },
    switches=frozenset({"enable-prefix-caching", "no-enable-prefix-caching"}),
    many=frozenset({"cpu-offload-params", "offload-params"}),
    quiet=frozenset(
        """
        host port api-key served-model-name chat-template tool-call-parser reasoning-parser seed revision tokenizer
        tokenizer-mode download-dir load-format uvicorn-log-level root-path max-logprobs limit-mm-per-prompt
        generation-config override-generation-config hf-overrides compilation-config speculative-config
        distributed-executor-backend kv-offloading-backend swap-policy scheduling-policy attention-backend
        kv-cache-memory-bytes num-gpu-blocks-override moe-backend async-engine-args data-parallel-size
        max-cudagraph-capture-size mm-encoder-tp-mode optimization-level
        """.split()  # noqa: SIM905
    ),
    quiet_switches=frozenset(
        """
        trust-remote-code enforce-eager disable-log-requests disable-log-stats enable-auto-tool-choice
        enable-chunked-prefill enable-expert-parallel enable-reasoning disable-custom-all-reduce async-scheduling
        no-async-scheduling no-enable-log-requests enable-log-requests enable-sleep-mode language-model-only
        disable-uvicorn-access-log
        """.split()  # noqa: SIM905
    ),
    removed={
        "swap-space": "preempted requests are computed again; drop the flag",
        "use-v2-block-manager": "it is the only one; drop the flag",
        "num-lookahead-slots": "speculative decoding sets it; drop the flag",
    },
    short={"tp": "tensor-parallel-size", "q": "quantization", "O": "optimization-level", "dp": "data-parallel-size"},
)


def stated_flags(settings: dict[str, Any]) -> VllmFlags:
    """The flags that a plan's settings hold."""
    return settings_from(VllmFlags, settings, VOCABULARY)


def config(model: str, flags: VllmFlags) -> dict[str, Value]:
    """Keys of the configuration file."""
    found: dict[str, Value] = {
        "model": model,
        "tensor-parallel-size": flags.tensor_parallel,
        "gpu-memory-utilization": flags.gpu_memory_utilization,
        "max-num-seqs": flags.max_num_seqs,
        "max-num-batched-tokens": flags.max_num_batched_tokens,
        "block-size": flags.block_tokens,
    }
    if flags.max_model_len is not None:
        found["max-model-len"] = flags.max_model_len
    if flags.cache != "bf16":
        found["kv-cache-dtype"] = flags.cache
    if not flags.prefix_caching:
        found["no-enable-prefix-caching"] = True
    if flags.cpu_offload_gib:
        found |= {"offload-backend": "uva", "cpu-offload-gb": flags.cpu_offload_gib}
        if flags.cpu_offload_params:
            found["cpu-offload-params"] = list(flags.cpu_offload_params)
    if flags.offload_group_size:
        found |= {
            "offload-backend": "prefetch",
            "offload-group-size": flags.offload_group_size,
            "offload-num-in-group": flags.offload_num_in_group,
            "offload-prefetch-step": flags.offload_prefetch_step,
        }
        if flags.offload_params:
            found["offload-params"] = list(flags.offload_params)
    if flags.kv_disk:
        found["kv-transfer-config"] = json.dumps(connector(flags))
    elif flags.kv_offload_gib:
        found["kv-offloading-size"] = flags.kv_offload_gib
    return found


def connector(flags: VllmFlags) -> dict[str, Any]:
    """The connector that keeps blocks of the cache in host memory and in files behind it."""
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "TieringOffloadingSpec",
            "cpu_bytes_to_use": round(flags.kv_offload_gib * GIB),
            "eviction_policy": "lru",
            "secondary_tiers": [{"type": "fs", "root_dir": flags.kv_disk}],
        },
    }


def read_values(text: str | Sequence[str]) -> dict[str, Value]:
    """Settings by name, of a command or a file."""
    if isinstance(text, str):
        if len(text) > LONGEST_TEXT:
            raise InputError("the configuration of vLLM is larger than 4 MiB")
        if text.lstrip().startswith("#!"):
            return read_values(script_words(text))
        return read_keys(read_yaml(text, "the configuration of vLLM"), VOCABULARY)
    words = [word for word in text if word not in ("\\", "\n")]
    while words and "=" in words[0] and words[0].split("=")[0].isupper():
        words.pop(0)
    if words[:2] == ["vllm", "serve"]:
        words = words[2:]
    elif len(words) > 2 and words[1] == "-m":
        words = words[3:]
    else:
        raise NotExpressible(f"'{' '.join(words[:2])[:60]}' does not start vLLM's server; it is vllm serve MODEL ...")
    found, loose = read_words(words, VOCABULARY)
    if "config" in found:
        raise InputError(f"--config {found['config']}: import that file itself")
    if len(loose) > 1:
        raise InputError(f"vllm serve takes one model, not {' and '.join(loose[:3])}")
    if loose:
        found.setdefault("model", loose[0])
    return found


def flags_of(values: dict[str, Value]) -> VllmFlags:
    """Checked flags from values by name.

    Raises:
        InputError, NotExpressible: a value of the wrong kind, flags that contradict each other; names them.
    """
    values.setdefault("gpu_memory_utilization", UTILIZATION)
    for name in ("dtype", "quantization", "config"):
        values.pop(name, None)
    backend = str(values.pop("offload_backend", "auto"))
    if backend not in ("auto", "uva", "prefetch"):
        raise InputError(f"vLLM: --offload-backend {backend[:40]}: must be auto, uva or prefetch")
    if backend == "uva":
        values.pop("offload_group_size", None)
    if backend == "prefetch":
        values.pop("cpu_offload_gib", None)
    if values.pop("no_prefix_caching", False):
        if values.get("prefix_caching"):
            raise InputError("--enable-prefix-caching and --no-enable-prefix-caching contradict each other; keep one")
        values["prefix_caching"] = False
    for name, flag in (("max_model_len", "max-model-len"), ("max_num_batched_tokens", "max-num-batched-tokens")):
        if isinstance(values.get(name), str):
            values[name] = whole_with_suffix(str(values[name]), flag)
    cache = str(values.get("cache", "auto"))
    kinds = {"auto": "bf16", "bfloat16": "bf16", "bf16": "bf16", "fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8"}
    if cache not in kinds:
        raise InputError(f"vLLM: --kv-cache-dtype {cache[:40]}: stowplan knows {', '.join(kinds)}")
    values["cache"] = kinds[cache]
    if "kv_transfer_config" in values:
        values |= _tiers(values.pop("kv_transfer_config"))
    return settings_from(VllmFlags, values, VOCABULARY)


def _tiers(text: Value) -> dict[str, Value]:
    """Sizes of the tiers of a connector.

    Raises:
        InputError: no JSON object.
        NotExpressible: another connector.
    """
    try:
        data = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise InputError(f"vLLM: --kv-transfer-config is not JSON ({error})") from error
    extra = data.get("kv_connector_extra_config", {}) if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(extra, dict):
        raise InputError("vLLM: --kv-transfer-config must be a JSON object")
    if data.get("kv_connector") != "OffloadingConnector":
        named = str(data.get("kv_connector"))[:40]
        raise NotExpressible(f"vLLM: --kv-transfer-config: stowplan knows the OffloadingConnector, not {named}")
    size = extra.get("cpu_bytes_to_use", 0)
    if not isinstance(size, int | float) or size < 0:
        raise InputError(f"vLLM: --kv-transfer-config: cpu_bytes_to_use {str(size)[:40]}: must be bytes")
    tiers = extra.get("secondary_tiers", [])
    first = tiers[0] if isinstance(tiers, list) and tiers else {}
    if not isinstance(first, dict) or first.get("type", "fs") != "fs":
        raise NotExpressible("vLLM: --kv-transfer-config: stowplan knows secondary tiers of the type fs only")
    return {"kv_offload_gib": size / GIB, "kv_disk": str(first.get("root_dir", ""))}
