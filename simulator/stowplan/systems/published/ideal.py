"""The ideal engine: every exact mechanism of the published systems that composes, with kernels as fast as the machine.

It is no system that anyone has written. Its best plan says what the mechanisms leave possible on a machine; what
today's engines stay below it is left on the table.
"""

from stowplan.systems.mechanisms.policy import Cache, Experts, Policy, Weights
from stowplan.systems.published.base import Alternatives, Constant, Published, one_of

_PLACES: Alternatives = (
    {"cache.gpu": 1.0, "cache.ram": 0.0},
    {"cache.gpu": 0.0, "cache.ram": 1.0, "cache.slices": 2},
    {"cache.gpu": 0.0, "cache.ram": 1.0, "cache.attend": "cpu"},
    {"cache.gpu": 0.0, "cache.ram": 0.0, "cache.slices": 2},
)

SYSTEM = Published(
    key="ideal",
    title="Ideal engine",
    paper="none: the exact mechanisms of the systems here, composed",
    idea="layers ahead, products divided between CPU and GPU, cache and attention wherever they "
    "are fastest, a score cache of experts with a perfect predictor whose misses CPU and link divide",
    kernels="ideal",
    policy=Policy(
        weights=Weights(gpu=0.0, ram=1.0, prefetch=2, direct=True),
        cache=Cache(prefetch=1),
        experts=Experts(gpu=0.0, ram=1.0, policy="score", accuracy=1.0, lookahead=1),
    ),
    choices=(
        _PLACES,
        one_of("weights.cpu", 0.0, 0.6, 0.8, 1.0),
        one_of("experts.miss", "load", "cpu", "both"),
        one_of("chunk", None, 8192),
    ),
    disk=True,
    constants=(Constant("share of misses predicted", 1.0, "assumed", "perfect, to bound what prediction can give"),),
)
