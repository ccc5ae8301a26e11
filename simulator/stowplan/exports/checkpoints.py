"""Which storage formats the engines of safetensors checkpoints load."""

from __future__ import annotations

from stowplan.errors import NotExpressible
from stowplan.models import load_format
from stowplan.models.model import Model

_TORCH = frozenset({"f32", "f16", "bf16"})


def check_checkpoint(model: Model, engine: str, *, plain: bool = False) -> None:
    """Refuse formats that only GGUF files have.

    Args:
        model: the model as it would be stored.
        engine: for the sentence.
        plain: whether the engine loads 16- and 32-bit weights only.

    Raises:
        NotExpressible: a matrix in such a format; says how to plan again.
    """
    for tensor in model.tensors:
        if tensor.columns == 1 or tensor.format in _TORCH:
            continue
        if plain or tensor.format.endswith("bpw") or load_format(tensor.format).ggml_id is not None:
            mend = "--quant bf16" if plain else "--quant bf16, fp8 or awq"
            raise NotExpressible(
                f"{engine} loads no {tensor.format.upper()} weights, and {model.name} is planned in "
                f"{model.quant.upper()}; plan it again with {mend}"
            )
