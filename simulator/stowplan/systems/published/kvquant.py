"""KVQuant: a non-uniform 2- to 4-bit cache with 1 % outliers, for contexts of a million tokens."""

from stowplan.systems.mechanisms.policy import Cache, Policy
from stowplan.systems.published.base import Constant, Published, one_of

SYSTEM = Published(
    key="kvquant",
    title="KVQuant",
    paper="Hooper et al., NeurIPS 2024, arXiv:2401.18079",
    idea="keys are quantised before the rotation and by channel, values by token, to levels fitted offline; 1 % of "
    "the values stay apart as sparse outliers",
    policy=Policy(cache=Cache(bits=0.145), chunk=8192),
    choices=(one_of("cache.bits", 0.145, 0.2075, 0.27),),
    fills=(),
    quality="perplexity rises by less than 0.1 with 3 bits and 1 % outliers; 2 bits cost more",
    constants=(
        Constant(
            "stored bytes per fp16 byte",
            0.145,
            "datasheet",
            "2.32 bits of nuq2 with 1 % outliers; 3.32 and 4.32 with more",
        ),
        Constant(
            "tokens of a chunk", 8192, "assumed", "the paper does not say how prompts of a million tokens are run"
        ),
    ),
)
