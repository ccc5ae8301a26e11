"""A layer's operators as llama.cpp and its fork run them: unfused attention, expanded latents, chosen experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from stowplan.figures import Figures
from stowplan.kernels import kernels_of_scaled
from stowplan.models.model import LatentAttention, Layer, Model, Role
from stowplan.ops import EXPERT_PARTS, CacheFormat, Kind, Operator, Part, Step, ffn_operators, mixer_operators
from stowplan.systems.llama_cpp_offload import since, touched_experts
from stowplan.systems.llama_cpp_settings import LlamaCppSettings

_WIDE_KEYS = "2025-11-10"  # ik_llama.cpp PR 929: keys of 192 and values of 128 elements got the faster kernel
_EXPANSION = (16.0, 12.0, 8.0)
"""Bytes moved for every element of a head's key (its own part), value and key (the rotated part) of a cached token.

Keys and values are written as fp32 and read (8), written as fp16 (2). The own part of a key is read and written again
beside the rotated one (4), which was first repeated for every head (2 + 2 + 2). Attention reads all once (2).
"""


def experts_of(op: Operator, layer: Layer) -> tuple[int, int] | None:
    """(total, active) experts of a routed product, None of any other operator."""
    if op.part not in EXPERT_PARTS or layer.experts is None:
        return None
    return layer.experts.total, layer.experts.active


@dataclass(frozen=True, slots=True)
class EngineOperators:
    """Operators of a model's layers under the engine's settings.

    Attributes:
        settings: of the engine; cache: bytes per cached element.
        scaled: format whose kernels a mix of stated size runs.
        popularity: how evenly experts are chosen, see `touched_experts`.
        score_bytes: bytes moved for every attention score that is written out.
        latent_unfused: time of decode attention over latents without a fused kernel, over the time with one.
        expanded: time of attention over expanded latents, whose keys are wider than values, over that of equal ones.
    """

    settings: LlamaCppSettings
    cache: CacheFormat
    scaled: str | None
    popularity: float
    score_bytes: float
    latent_unfused: float
    expanded: float

    @staticmethod
    def build(model: Model, settings: LlamaCppSettings, figures: Figures) -> EngineOperators:
        """Operators of a model with the engine's constants."""
        return EngineOperators(
            settings,
            settings.cache,
            kernels_of_scaled(model.quant),
            figures.value("llama.cpp.expert_popularity"),
            figures.value("llama.cpp.gpu.attention_unfused"),
            figures.value("llama.cpp.gpu.attention_latent_unfused"),
            1.0 if since(settings, _WIDE_KEYS) else figures.value("llama.cpp.gpu.attention_wide_keys"),
        )

    def of(self, layer: Layer, step: Step) -> Iterator[Operator]:
        """Operators of one layer in order."""
        for op in mixer_operators(layer, step, self.cache, self.settings.cache_k):
            if isinstance(layer.mixer, LatentAttention):
                op = self._latent(op, layer.mixer, step)
            if op.kind is Kind.ATTENTION and not self.settings.flash_attention:
                # scores are written, scaled, read and written by the softmax, converted and read again
                yield replace(op, scratch_bytes=self.score_bytes * op.scores)
            else:
                yield op
        # the whole chain of routed experts comes before the shared ones, so activations cross to the host once
        for op in sorted(ffn_operators(layer, step.tokens), key=lambda op: op.part is Part.SHARED):
            if self.scaled is not None and op.format.endswith("bpw"):
                op = replace(op, format=self.scaled)
            experts = experts_of(op, layer)
            yield op if experts is None or step.tokens == 1 else self._chosen(op, experts, step.tokens)

    def _latent(self, op: Operator, mixer: LatentAttention, step: Step) -> Operator:
        """Latent attention as the fork computes it: expanded over a prompt, unfused in decode with ``-mla 2``."""
        if step.new > 1:
            return self._expanded(op, mixer, step) if self.settings.expands_latents else op
        if op.kind is Kind.ATTENTION and self.settings.engine == "ik_llama.cpp" and self.settings.mla == 2:
            return replace(op, kv_read=op.kv_read * self.latent_unfused)
        return op

    def touched(self, experts: tuple[int, int], tokens: int) -> float:
        """Distinct experts that a batch is expected to choose."""
        return touched_experts(experts, tokens, self.popularity)

    def _chosen(self, op: Operator, experts: tuple[int, int], tokens: int) -> Operator:
        """A routed product over the experts that a batch really touches."""
        share = self.touched(experts, tokens) / op.matrices
        return replace(
            op,
            matrices=op.matrices * share,
            m=op.m / share,
            weight_bytes=op.weight_bytes * share,
            weights=op.weights * share,
        )

    def _expanded(self, op: Operator, mixer: LatentAttention, step: Step) -> Operator:
        """Latent attention over a prompt with keys and values of every head: fewer FLOPs a pair, but more to move.

        A pair costs ``2 (nope + rope + value)`` FLOPs a head instead of ``2 (2 latent + rope)``; in return the second
        projection runs over all cached tokens instead of the new ones, and what it makes is moved about: see
        `_EXPANSION`.
        """
        if op.kind is Kind.ATTENTION:
            wide, narrow = 2 * mixer.latent + mixer.rope_dim, mixer.nope_dim + mixer.rope_dim + mixer.value_dim
            return replace(op, flops=op.flops * narrow / wide * self.expanded, group=1)
        if op.name != Role.ATTN_KV_B.value:
            return op
        cached = sum((past + step.new) * count for past, count in step.groups)
        seen = cached / step.tokens
        parts = (mixer.nope_dim, mixer.value_dim, mixer.rope_dim)
        element = sum(moved * width for moved, width in zip(_EXPANSION, parts, strict=True))
        return replace(
            op,
            flops=op.flops * seen,
            m=op.m * seen,
            activation_bytes=2.0 * cached * op.k,
            scratch_bytes=float(cached * mixer.heads * element),
        )
