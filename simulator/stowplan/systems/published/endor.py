"""Endor: pruned weights travel as non-zeros and a bitmap, and are spread out again on the GPU."""

from stowplan.systems.mechanisms.policy import Policy, Weights
from stowplan.systems.published.base import Constant, Published, one_of

SYSTEM = Published(
    key="endor",
    title="Endor",
    paper="Joo et al., 2024, arXiv:2406.11674",
    idea="half of the weights are pruned; the rest and one bit per position are stored, moved and unpacked on the GPU; "
    "reads from SSD may go straight to the GPU",
    kernels="accelerate",
    policy=Policy(weights=Weights(gpu=0.0, ram=1.0, pinned=False, stored=0.5625, unpack=2.0)),
    choices=(one_of("weights.direct", True, False),),
    fills=("weights",),
    disk=True,
    needs=("16-bit weights",),
    quality="half of the weights are pruned (unstructured); the paper compares speed against the pruned model",
    constants=(
        Constant(
            "stored bytes per byte",
            0.5625,
            "datasheet",
            "50 % sparsity: half of the fp16 values and one bit per position",
        ),
        Constant(
            "unpacking, bytes per SM and clock", 2.0, "assumed", "far above the link; the paper calls it low overhead"
        ),
    ),
)
