"""Facts and a storage mix made into a model; also mixes that are scaled to a given size."""

from __future__ import annotations

import re
from dataclasses import replace

from stowplan.errors import InputError
from stowplan.models.facts import Facts
from stowplan.models.formats import bytes_for
from stowplan.models.mixes import assign_formats, load_mix, normalised_mix_name, sized_mix
from stowplan.models.model import DENSE_FFN_ROLES, EXPERT_ROLES, Experts, Layer, Model, Tensor
from stowplan.models.shapes import global_shapes, layer_mixer, layer_shapes
from stowplan.units import format_bytes, parse_quantity

_BITS = re.compile(r"(\d{1,2}(?:\.\d{1,4})?)\s*bpw\Z", re.IGNORECASE)
_FEWEST_BITS, _MOST_BITS = 0.5, 32.0
_SCALED_BASE = "q4_k_m"


def build_model(facts: Facts, quant: str | None = None) -> Model:
    """Every tensor of a model with its format and exact size.

    Args:
        facts: the architecture.
        quant: a named mix (``q4_k_m``, ``fp8``), a GGUF format, a mix scaled to a size of the weights
            (``q4_k_m@142GiB``) or to bits per weight over all of them (``3.5bpw``); None for the published mix.

    Raises:
        UnknownName: no such mix.
        InputError: a size that no mix could have.
    """
    label = (quant or facts.quant).strip()
    mix_name, target, bits = _parse(label)
    mix = load_mix(mix_name)
    if target is not None:
        mix = sized_mix(mix, routed=facts.experts is not None)
    shapes = global_shapes(facts)
    outside = len(shapes)
    ends = [outside]
    for index in range(facts.layers):
        shapes.extend(layer_shapes(facts, index))
        ends.append(len(shapes))
    tensors = [
        Tensor(*shape, fmt.key, bytes_for(fmt, shape.rows, shape.columns, shape.matrices))
        for shape, fmt in zip(shapes, assign_formats(facts, mix, shapes), strict=True)
    ]
    if bits is not None:
        target = round(bits * sum(t.elements for t in tensors) / 8)
    if target is not None:
        tensors = scale_to(tensors, target, facts.name)
    experts = Experts(facts.experts.total, facts.experts.active) if facts.experts else None
    layers = tuple(
        Layer(
            index,
            layer_mixer(facts, index),
            experts if facts.has_experts(index) else None,
            tuple(tensors[ends[index] : ends[index + 1]]),
        )
        for index in range(facts.layers)
    )
    return Model(
        key=facts.key,
        name=facts.name,
        architecture=facts.architecture,
        quant=mix.key if target is None else label.replace(" ", ""),
        hidden=facts.hidden,
        vocabulary=facts.vocabulary,
        max_context=facts.max_context,
        layers=layers,
        globals=tuple(tensors[:outside]),
        tied=facts.tied,
        origin=facts.origin,
        published_parameters=facts.published,
    )


def scale_to(tensors: list[Tensor], target: int, name: str) -> list[Tensor]:
    """The same tensors with the routed experts (or the feed-forward blocks) packed so that all take `target` bytes.

    This expresses files whose recipe nobody published by what is known of them: their size.

    Raises:
        InputError: it would take fewer than 0.5 or more than 32 bits per weight.
    """
    roles = EXPERT_ROLES if any(t.role in EXPERT_ROLES for t in tensors) else DENSE_FFN_ROLES
    free = [i for i, t in enumerate(tensors) if t.role in roles and t.columns > 1]
    weights = sum(tensors[i].elements for i in free)
    room = target - (sum(t.bytes for t in tensors) - sum(tensors[i].bytes for i in free))
    bits = 8 * room / weights if weights else 0.0
    if not _FEWEST_BITS <= bits <= _MOST_BITS:
        raise InputError(
            f"{name}: {format_bytes(target)} would leave {bits:.2f} bits for each of the {weights / 1e9:.1f} billion "
            f"weights of the feed-forward blocks; give a size that leaves {_FEWEST_BITS} to {_MOST_BITS:.0f}"
        )
    scaled = list(tensors)
    done_weights = done_bytes = 0
    for i in free:  # cumulative rounding: the sum is exact
        done_weights += tensors[i].elements
        upto = room * done_weights // weights
        scaled[i] = replace(tensors[i], format=f"{bits:.4f}bpw", bytes=upto - done_bytes)
        done_bytes = upto
    return scaled


def _parse(label: str) -> tuple[str, int | None, float | None]:
    """Name of the mix, total bytes, bits per weight."""
    matched = _BITS.match(label)
    if matched:
        return _SCALED_BASE, None, float(matched[1])
    name, at, size = label.partition("@")
    if not at:
        if normalised_mix_name(name).startswith("ud_"):
            raise InputError(
                f"the mix '{name[:60]}' is chosen per tensor for each file and follows no published rule; give the "
                f"file itself, or its size, such as '{name[:60]}@142GiB'"
            )
        return name, None, None
    inner = _BITS.match(size.strip())
    base = name or _SCALED_BASE
    if normalised_mix_name(base).startswith("ud_"):
        base = _SCALED_BASE
    if inner:
        return base, None, float(inner[1])
    return base, round(parse_quantity(size, "bytes", where=f"quantization '{label[:60]}'")), None
