"""What a loaded llama.cpp says of its placement: the device of every tensor and of every layer's cache."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ASSIGNED = re.compile(r"load_tensors: layer\s+(\d+) assigned to device (\S+),")
_TENSOR = re.compile(r"create_tensor: loading tensor (\S+)")
_MOVED = re.compile(r"tensor (\S+) \(\d+ MiB \S+\) buffer type overridden to (\S+)")
_CACHE = re.compile(r"llama_kv_cache: layer\s+(\d+): dev = (\S+)")
_BUFFER = re.compile(
    r"(?:load_tensors|llama_kv_cache|sched_reserve):\s+(\S+) (model|KV|compute) buffer size =\s+([0-9.]+) MiB"
)
_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Observed:
    """Devices by tensor and by layer of the cache, and MiB of buffers by (device, kind)."""

    tensors: dict[str, str]
    moved: frozenset[str]
    cache: dict[int, str]
    buffers: dict[tuple[str, str], float]


def observed(log: str, names: set[str]) -> Observed:
    """Placement from a log of verbosity 5; `names` are the tensors of the file (others are tried for in vain)."""
    layers = {int(layer): device for layer, device in _ASSIGNED.findall(log)}
    last = max(layers)
    moved = dict(_MOVED.findall(log))
    tensors = {}
    for name in [*_TENSOR.findall(log), *moved]:
        if name in names:
            block = _BLOCK.match(name)
            home = layers[int(block[1])] if block else layers[last]
            tensors[name] = moved.get(name, "CPU" if name == "token_embd.weight" else home)
    return Observed(
        tensors={name: "CPU" if place.endswith("_Host") else place for name, place in tensors.items()},
        moved=frozenset(moved),
        cache={int(layer): device for layer, device in _CACHE.findall(log)},
        buffers={(device, kind): float(size) for device, kind, size in _BUFFER.findall(log)},
    )
