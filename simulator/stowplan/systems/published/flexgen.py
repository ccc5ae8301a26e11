"""FlexGen: percentages of weights, cache and activations per tier, and a block schedule over GPU batches."""

from stowplan.systems.mechanisms.policy import Cache, Experts, Overheads, Policy, Weights
from stowplan.systems.published.base import Constant, Published

SYSTEM = Published(
    key="flexgen",
    title="FlexGen",
    paper="Sheng et al., ICML 2023, arXiv:2303.06865",
    idea="weights, cache and activations in percentages over GPU, host and disk; one pass over the weights serves many "
    "GPU batches; attention on the CPU where the cache lies there",
    kernels="flexgen",
    policy=Policy(
        weights=Weights(gpu=0.0, ram=1.0, prefetch=1),
        cache=Cache(prefetch=1, pinned=False),
        experts=Experts(gpu=0.0, ram=1.0, selective=False),
        overheads=Overheads(layer=160e-6),
        one_thread=True,
    ),
    choices=(
        (
            {"cache.gpu": 1.0, "cache.ram": 0.0},
            {"cache.gpu": 0.0, "cache.ram": 1.0},
            {"cache.gpu": 0.0, "cache.ram": 1.0, "cache.attend": "cpu"},
            {"cache.gpu": 0.0, "cache.ram": 0.0, "cache.mapped": True},
        ),
    ),
    disk=True,
    constants=(
        Constant("layers ahead", 1, "datasheet", "section 3: weights of the next layer load while one computes"),
        Constant("seconds per layer", 160e-6, "assumed", "two device-wide synchronisations of 80 us"),
    ),
    existing="flexgen",
)
