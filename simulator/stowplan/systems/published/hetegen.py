"""HeteGen: each product is divided between CPU and GPU so that computing and copying end together."""

from stowplan.systems.mechanisms.policy import Experts, Policy, Weights
from stowplan.systems.published.base import Constant, Published, one_of

SYSTEM = Published(
    key="hetegen",
    title="HeteGen",
    paper="Zhao et al., MLSys 2024, arXiv:2403.01164",
    idea="of every matrix in host memory the CPU multiplies a share where it lies while the rest is copied to the GPU",
    policy=Policy(
        weights=Weights(gpu=0.0, ram=1.0, prefetch=1),
        experts=Experts(gpu=0.0, ram=1.0, selective=False),
    ),
    choices=(one_of("weights.cpu", *(number / 10 for number in range(11))),),
    constants=(Constant("layers ahead", 1, "assumed", "asynchronous parameter manager, section 4"),),
)
