"""HOBBIT: missed experts that matter little are fetched in fewer bits."""

from stowplan.systems.mechanisms.policy import Experts, Policy
from stowplan.systems.published.base import Constant, Published, one_of

SYSTEM = Published(
    key="hobbit",
    title="HOBBIT",
    paper="Tang et al., 2024, arXiv:2411.01433",
    idea="of the experts that a token misses, the less important are served by a copy in fewer bits; the next layers' "
    "are predicted; a cache holds experts of either precision",
    kernels="llama.cpp",
    policy=Policy(experts=Experts(gpu=0.0, ram=1.0, policy="lru", lookahead=1, low=0.31, low_stored=0.28)),
    choices=(
        one_of("experts.accuracy", 0.0, 0.6),
        one_of("experts.low_gpu", 0.0, 0.25, 0.5, 0.75, 1.0),
    ),
    fills=("experts",),
    disk=True,
    needs=("experts",),
    quality="the paper reports a loss of accuracy of at most 1 %",
    constants=(
        Constant(
            "share of misses in fewer bits",
            0.31,
            "datasheet",
            "of Mixtral's experts 67 % are served in full and 30 % in fewer bits; the 3 % that are left out count as "
            "neither (section 3, thresholds of 0.6 and 0.9)",
        ),
        Constant("bytes of the smaller copy", 0.28, "datasheet", "4-bit groups against fp16"),
        Constant("share of misses predicted in time", 0.6, "assumed", "adaptive prefetching, section 4"),
    ),
)
