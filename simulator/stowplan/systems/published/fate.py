"""Fate: the next layer's gate, fed with this layer's input, names the experts to fetch; first layers are cached."""

from stowplan.systems.mechanisms.policy import Experts, Policy
from stowplan.systems.published.base import Constant, Published

SYSTEM = Published(
    key="fate",
    title="Fate",
    paper="Fang et al., 2025, arXiv:2502.12224",
    idea="experts of the next layer are predicted from this layer's gate input; the first layers, where that fails, "
    "keep all of theirs on the GPU; unpopular ones travel in 2 bits in prefill",
    policy=Policy(experts=Experts(gpu=0.0, ram=1.0, policy="lru", accuracy=0.97, lookahead=1, shallow=2)),
    fills=("experts",),
    needs=("experts",),
    quality="2-bit copies of unpopular experts; the paper reports a small loss of accuracy",
    constants=(
        Constant(
            "share of experts predicted", 0.97, "datasheet", "abstract of v2 and section 4: 97.15 % prefetch accuracy"
        ),
        Constant(
            "first layers cached", 2, "assumed", "the paper favours shallow layers; the number depends on the room"
        ),
    ),
)
