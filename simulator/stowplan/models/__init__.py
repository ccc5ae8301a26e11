"""Readers of ``models/`` and of users' own files: architectures, formats, tensors."""

from stowplan.models.build import build_model
from stowplan.models.cache import (
    kv_bytes_per_token,
    model_kv_bytes_per_token,
    positions_kept,
    sequence_bytes,
    state_bytes,
)
from stowplan.models.facts import Facts
from stowplan.models.formats import (
    Format,
    bytes_for,
    fitting_format,
    formats,
    kv_bytes_per_element,
    kv_formats,
    load_format,
)
from stowplan.models.library import identify_file_name, list_models, load_facts, load_model
from stowplan.models.mixes import mixes
from stowplan.models.model import (
    DENSE_FFN_ROLES,
    EXPERT_ROLES,
    SHARED_ROLES,
    Attention,
    Experts,
    LatentAttention,
    Layer,
    Mixer,
    Model,
    Recurrence,
    Role,
    Tensor,
)

__all__ = [
    "DENSE_FFN_ROLES",
    "EXPERT_ROLES",
    "SHARED_ROLES",
    "Attention",
    "Experts",
    "Facts",
    "Format",
    "LatentAttention",
    "Layer",
    "Mixer",
    "Model",
    "Recurrence",
    "Role",
    "Tensor",
    "build_model",
    "bytes_for",
    "fitting_format",
    "formats",
    "identify_file_name",
    "kv_bytes_per_element",
    "kv_bytes_per_token",
    "kv_formats",
    "list_models",
    "load_facts",
    "load_format",
    "load_model",
    "mixes",
    "model_kv_bytes_per_token",
    "positions_kept",
    "sequence_bytes",
    "state_bytes",
]
