"""llama.cpp's compute graph of one micro-batch, as far as its memory is concerned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stowplan.models.model import Attention, LatentAttention, Layer, Model, Recurrence, Role, Tensor
from stowplan.ops import CacheFormat, output_tensor, part_of
from stowplan.systems.base import RAM
from stowplan.systems.llama_cpp_allocator import Graph, Value
from stowplan.systems.llama_cpp_offload import copied_from, since
from stowplan.systems.llama_cpp_operators import experts_of_layer
from stowplan.systems.llama_cpp_settings import LlamaCppSettings
from stowplan.systems.serial import LayerPlaces
