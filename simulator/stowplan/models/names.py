"""Roles of tensors by their names in GGUF files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from stowplan.models.model import Role

_BLOCK = re.compile(r"blk\.(\d{1,5})\.(.+)\Z")
_SINGLE_EXPERT = re.compile(r"(ffn_(?:gate|up|down))\.\d+\Z")
_ROLES: Mapping[str, Role] = MappingProxyType(
    {
        **{role.value: role for role in Role if role not in {Role.OTHER, Role.ATTN_OTHER, Role.SSM, Role.ATTN_NORM}},
        "attn_k_b": Role.ATTN_KV_B,
        "attn_v_b": Role.ATTN_KV_B,
        "ffn_gate_up_exps": Role.EXPERT_UP,
        "ffn_gate_inp_shexp": Role.FFN_NORM,
        "exp_probs_b": Role.FFN_NORM,
        "ssm_d": Role.ATTN_NORM,
        "token_embd_norm": Role.OTHER,
        "position_embd": Role.POSITION_EMBEDDING,
    }
)
_EXPERT_STEMS: Mapping[str, Role] = MappingProxyType(
    {"ffn_gate": Role.EXPERT_GATE, "ffn_up": Role.EXPERT_UP, "ffn_down": Role.EXPERT_DOWN}
)


def layer_and_role(name: str, *, recurrent: bool = False, vector: bool = False) -> tuple[int | None, Role]:
    """Layer (None outside the blocks) and role of a tensor.

    Args:
        name: as in the file, such as ``blk.3.ffn_up_exps.weight``.
        recurrent: whether its layer has a recurrent mixer, whose matrices are all `Role.SSM`.
        vector: whether it is a vector; recurrent mixers' vectors count as norms.
    """
    block = _BLOCK.match(name)
    layer, rest = (int(block[1]), block[2]) if block else (None, name)
    stem, _, suffix = rest.rpartition(".")
    if suffix not in {"weight", "bias"}:
        stem, suffix = rest, "weight"
    role = _role(stem, recurrent, vector)
    if suffix == "bias" and role not in _EXPERT_STEMS.values():
        role = _bias_role(stem, role)
    return layer, role


def _role(stem: str, recurrent: bool, vector: bool) -> Role:
    single = _SINGLE_EXPERT.match(stem)
    if single:
        return _EXPERT_STEMS[single[1]]
    if stem == "output_norm":
        return Role.OUTPUT_NORM
    if stem.endswith("_norm") or "_norm_" in stem:
        if stem == "token_embd_norm":
            return Role.OTHER
        return Role.FFN_NORM if "ff" in stem else Role.ATTN_NORM
    if stem.startswith(("ssm_", "shortconv")) or (recurrent and stem.startswith("attn_")):
        return Role.ATTN_NORM if vector else Role.SSM
    if stem in _ROLES:
        return _ROLES[stem]
    return Role.ATTN_OTHER if stem.startswith(("attn_", "indexer.")) else Role.OTHER


def _bias_role(stem: str, role: Role) -> Role:
    if role in {Role.OUTPUT_NORM, Role.OTHER, Role.OUTPUT}:
        return role
    return Role.FFN_NORM if "ff" in stem or role is Role.FFN_NORM else Role.ATTN_NORM
