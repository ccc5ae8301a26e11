"""HeadInfer: the cache lives in host memory and comes to the GPU a few heads at a time."""

from stowplan.systems.mechanisms.policy import Cache, Policy
from stowplan.systems.published.base import Constant, Published, one_of

SYSTEM = Published(
    key="headinfer",
    title="HeadInfer",
    paper="Luo et al., 2025, arXiv:2502.12574",
    idea="all weights on the GPU; the cache in host memory, brought group of heads by group of heads into two buffers "
    "while the other computes; prompts in chunks",
    policy=Policy(cache=Cache(gpu=0.0, ram=1.0), chunk=10_000),
    choices=(one_of("cache.slices", 1, 2, 4, 8),),
    fills=(),
    constants=(
        Constant("tokens of a chunk", 10_000, "datasheet", "section 5.1: 10K-token chunks for 8B models"),
        Constant(
            "layers ahead",
            0,
            "fitted",
            "table of decode latencies: copying adds to the time without a cache in host memory, so copies run beside "
            "the attention of their own layer only",
        ),
    ),
)
