"""Plans in the words of engines: files and commands that carry a plan out, and plans read back from them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import cast

from stowplan.errors import UnknownName
from stowplan.exports.base import Exporter

_EXPORTERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "llama.cpp": ("stowplan.exports.llama_cpp", "LlamaCppExporter", "llama.cpp"),
        "llama.cpp-2025-12": ("stowplan.exports.llama_cpp", "LlamaCppExporter", "llama.cpp-2025-12"),
        "llama.cpp-2025-09": ("stowplan.exports.llama_cpp", "LlamaCppExporter", "llama.cpp-2025-09"),
        "ik_llama.cpp": ("stowplan.exports.llama_cpp", "LlamaCppExporter", "ik_llama.cpp"),
        "ollama": ("stowplan.exports.ollama", "OllamaExporter"),
        "accelerate": ("stowplan.exports.accelerate", "AccelerateExporter"),
        "vllm": ("stowplan.exports.vllm", "VllmExporter"),
        "sglang": ("stowplan.exports.sglang", "SglangExporter"),
        "deepspeed": ("stowplan.exports.deepspeed", "DeepSpeedExporter"),
        "flexgen": ("stowplan.exports.flexgen", "FlexgenExporter"),
        "lmcache": ("stowplan.exports.lmcache", "LmCacheExporter"),
        "ktransformers": ("stowplan.exports.ktransformers", "KTransformersExporter"),
    }
)


def list_engines() -> list[str]:
    """Keys of the engines that plans can be written for."""
    return list(_EXPORTERS)


def load_exporter(key: str) -> Exporter:
    """Writer and reader of one engine's words.

    Raises:
        UnknownName: no such engine.
    """
    if key not in _EXPORTERS:
        raise UnknownName("engine", key[:60], _EXPORTERS)
    module, name, *variant = _EXPORTERS[key]
    return cast(Exporter, getattr(import_module(module), name)(*variant))
