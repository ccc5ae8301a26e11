"""HeadInfer: the cache lives in host memory and comes to the GPU a few heads at a time."""

from stowplan.systems.mechanisms.policy import Cache, Policy
from stowplan.systems.published.base import Constant, Published, one_of

SYSTEM = Published(
    key="headinfer",
    title="HeadInfer",
    paper="Luo et al., 2025, arXiv:2502.12574",
    idea="all weights on the GPU; the cache in host memory, brought group of heads by group of heads into two buffers "
    "while the other computes; prompts in chunks",
    policy=Policy(cache=Cache(gpu=0.0, ram=1.0, slots=4, rounded=True, windowed=False), chunk=10_000),
    choices=(one_of("cache.slices", 1, 2, 4, 8),),
    fills=(),
    constants=(
        Constant(
            "slices on the GPU",
            4,
            "fitted",
            "headinfer/cache.py of the authors' repository: a slice as it came, the same with the new tokens behind it "
            "(torch.cat), the next on its way in, the last on its way out; that all four are held at once is what the "
            "longest contexts of Qwen2 and Gemma 2 say (table of longest contexts)",
        ),
        Constant(
            "host memory in powers of two",
            1,
            "datasheet",
            "headinfer/cache.py: every head's keys and values go to the host with non_blocking=True, into a block of "
            "PyTorch's page-locked allocator, which rounds up to a power of two (ATen/core/CachingHostAllocator.h)",
        ),
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
