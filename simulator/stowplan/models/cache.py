"""What a layer keeps per token and per sequence: key/value cache and recurrent state."""

from __future__ import annotations

from stowplan.models.formats import kv_bytes_per_element
from stowplan.models.model import Mixer, Model, Recurrence

_STATE_BYTES = 4  # recurrent states are kept in fp32


def kv_bytes_per_token(mixer: Mixer, k_format: str = "f16", v_format: str = "f16") -> float:
    """Bytes that one cached token takes in one layer, 0 for a recurrence.

    A latent cache holds no separate values, so only `k_format` counts there.

    Raises:
        UnknownName: a format that a cache cannot be kept in.
    """
    if isinstance(mixer, Recurrence):
        return 0.0
    k, v = mixer.k_elements, mixer.v_elements
    return k * kv_bytes_per_element(k_format) + (v * kv_bytes_per_element(v_format) if v else 0.0)


def state_bytes(mixer: Mixer) -> int:
    """Bytes of one sequence's recurrent state in one layer, 0 for attention."""
    return mixer.state_elements * _STATE_BYTES if isinstance(mixer, Recurrence) else 0


def positions_kept(mixer: Mixer, context: int) -> int:
    """Tokens of a context that stay cached in one layer: all, the window's, or none."""
    if isinstance(mixer, Recurrence):
        return 0
    return context if mixer.window is None else min(context, mixer.window)


def model_kv_bytes_per_token(model: Model, k_format: str = "f16", v_format: str = "f16") -> float:
    """Bytes that one cached token takes over all layers, windows not counted."""
    return sum(kv_bytes_per_token(layer.mixer, k_format, v_format) for layer in model.layers)


def sequence_bytes(model: Model, context: int, k_format: str = "f16", v_format: str = "f16") -> float:
    """Bytes that one sequence of `context` tokens keeps over all layers: cache within the windows, and states."""
    return sum(
        kv_bytes_per_token(layer.mixer, k_format, v_format) * positions_kept(layer.mixer, context)
        + state_bytes(layer.mixer)
        for layer in model.layers
    )
