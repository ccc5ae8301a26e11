"""FlexInfer: what does not fit host memory is read from SSD ahead; a share of each layer stays locked."""

from stowplan.systems.mechanisms.policy import Experts, Policy, Weights
from stowplan.systems.published.base import Constant, Published, one_of

SYSTEM = Published(
    key="flexinfer",
    title="FlexInfer",
    paper="Du et al., 2025, arXiv:2503.03777",
    idea="the CPU computes; the same share of every layer stays in memory, the rest is read from SSD ahead with large "
    "requests instead of page faults",
    kernels="llama.cpp",
    policy=Policy(weights=Weights(gpu=0.0, ram=1.0, prefetch=1), experts=Experts(gpu=0.0, ram=1.0), device="cpu"),
    choices=(one_of("weights.prefetch", 1, 3),),
    disk=True,
    constants=(
        Constant("layers ahead", 3, "assumed", "prefetch window of the paper's ablation, at most three layers"),
    ),
)
