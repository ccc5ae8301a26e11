"""H2O: only heavy hitters and recent tokens stay in the cache, so larger batches fit; built on FlexGen."""

from stowplan.systems.mechanisms.policy import Cache, Experts, Overheads, Policy, Weights
from stowplan.systems.published.base import CACHE_ON_GPU_OR_HOST, Constant, Published

SYSTEM = Published(
    key="h2o",
    title="H2O",
    paper="Zhang et al., NeurIPS 2023, arXiv:2306.14048",
    idea="a fifth of the tokens, those that attention has weighed most and the newest, stay in the cache; FlexGen's "
    "block schedule runs the larger batches that then fit",
    kernels="flexgen",
    policy=Policy(
        weights=Weights(gpu=0.0, ram=1.0, prefetch=1),
        cache=Cache(kept=0.2, prefetch=1, pinned=False),
        experts=Experts(gpu=0.0, ram=1.0, selective=False),
        overheads=Overheads(layer=310e-6),
        one_thread=True,
    ),
    choices=(CACHE_ON_GPU_OR_HOST,),
    quality="80 % of the tokens are evicted; the paper reports scores within 1 point at 20 %",
    constants=(
        Constant("share of tokens kept", 0.2, "datasheet", "section 5.3: 20 % heavy hitters and recent tokens"),
        Constant(
            "seconds per layer",
            310e-6,
            "assumed",
            "two of FlexGen's synchronisations of 80 us, and 15 small kernels of 10 us that add up scores, choose and "
            "move what stays",
        ),
    ),
    figures={
        "flexgen.gpu.gemm_share@12n": Constant(
            "flexgen.gpu.gemm_share@12n",
            0.326,
            "datasheet",
            "21.2 of 65 TFLOP/s of a prompt on a T4, in the cost model of FlexGen, whose code runs the products",
        )
    },
)
