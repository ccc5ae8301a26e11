"""HybriMoE: misses of a layer are divided between CPU and link, a score decides what the cache keeps."""

from stowplan.systems.mechanisms.policy import Experts, Overheads, Policy
from stowplan.systems.published.base import Constant, Published

SYSTEM = Published(
    key="hybrimoe",
    title="HybriMoE",
    paper="Zhong et al., DAC 2025, arXiv:2504.05897",
    idea="on top of KTransformers: the misses of each layer are scheduled on CPU and GPU so that both end together, "
    "idle links prefetch, and the cache keeps experts by their routing scores",
    kernels="llama.cpp",
    policy=Policy(
        experts=Experts(gpu=0.0, ram=1.0, policy="score", miss="both"),
        overheads=Overheads(hop=50e-6),
    ),
    fills=("experts",),
    needs=("experts",),
    constants=(Constant("seconds per hand-over", 50e-6, "assumed", "as for KTransformers, on which it is built"),),
)
