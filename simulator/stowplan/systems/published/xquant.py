"""XQuant: quantised inputs of each layer are kept instead of keys and values, which are rebuilt from them."""

from stowplan.systems.mechanisms.policy import Cache, Policy
from stowplan.systems.published.base import Constant, Published

SYSTEM = Published(
    key="xquant",
    title="XQuant",
    paper="Tomar et al., 2025, arXiv:2508.10395",
    idea="instead of keys and values the layer's input is kept in few bits; a decode step rebuilds both",
    policy=Policy(cache=Cache(recompute=1.0)),
    fills=(),
    quality="quantised inputs; the paper reports perplexity within 0.1 of fp16 at large savings",
    constants=(Constant("share of the cache rebuilt", 1.0, "datasheet", "abstract"),),
)
