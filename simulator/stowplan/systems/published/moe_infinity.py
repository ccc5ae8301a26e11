"""MoE-Infinity: the activations of a sequence so far say which experts to prefetch and to keep."""

from stowplan.systems.mechanisms.policy import Experts, Overheads, Policy
from stowplan.systems.published.base import Constant, Published, one_of

SYSTEM = Published(
    key="moe-infinity",
    title="MoE-Infinity",
    paper="Xue et al., 2024, arXiv:2401.14361",
    idea="traces of which experts a sequence has used are matched with earlier ones; the match drives prefetching and "
    "what the cache keeps, over SSD, host and GPU",
    policy=Policy(
        experts=Experts(gpu=0.0, ram=1.0, policy="lfu", lookahead=1),
        overheads=Overheads(expert=0.85e-3),
    ),
    choices=(one_of("experts.accuracy", 0.0, 0.5),),
    fills=("experts",),
    disk=True,
    needs=("experts",),
    constants=(
        Constant(
            "share of misses prefetched in time",
            0.5,
            "assumed",
            "the paper reports hit ratios, not this; where the link is busy, nothing is prefetched",
        ),
        Constant(
            "seconds per expert",
            0.85e-3,
            "fitted",
            "dispatch of one expert module in eager mode: DeepSeek-V2-Lite in the table of its README",
        ),
    ),
)
