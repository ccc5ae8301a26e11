"""PIPO: a pipeline of sub-layer transfers and computation with 4-bit weights on a laptop."""

from stowplan.systems.mechanisms.policy import Cache, Experts, Policy, Weights
from stowplan.systems.published.base import CACHE_ON_GPU_OR_HOST, Constant, Published

SYSTEM = Published(
    key="pipo",
    title="PIPO",
    paper="Liu, Li and Li, 2025, arXiv:2504.03664",
    idea="tensors of a layer move as tasks of their own from disk and host memory while earlier ones compute; "
    "products read 4-bit weights",
    policy=Policy(
        weights=Weights(gpu=0.0, ram=1.0, prefetch=1, pieces=3),
        cache=Cache(prefetch=1),
        experts=Experts(gpu=0.0, ram=1.0, selective=False),
    ),
    choices=(CACHE_ON_GPU_OR_HOST,),
    disk=True,
    constants=(
        Constant(
            "pieces of a layer", 3, "assumed", "attention, and the two halves of the MLP; section 3 names tensors"
        ),
        Constant("layers ahead", 1, "datasheet", "pipeline of section 3"),
    ),
)
