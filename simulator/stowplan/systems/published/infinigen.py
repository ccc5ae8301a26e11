"""InfiniGen: the next layer's important tokens are guessed from partial weights, and only their cache is fetched."""

from stowplan.systems.mechanisms.policy import Cache, Policy
from stowplan.systems.published.base import Constant, Published

SYSTEM = Published(
    key="infinigen",
    title="InfiniGen",
    paper="Lee et al., OSDI 2024, arXiv:2406.19707",
    idea="the cache in host memory; a rehearsal of the next layer's attention with a fraction of the dimensions picks "
    "the tokens to fetch ahead",
    kernels="flexgen",
    policy=Policy(cache=Cache(gpu=0.0, ram=1.0, prefetch=1, read=0.036, scan=0.1, whole_layers=1, pinned=False)),
    fills=(),
    quality="attention to selected tokens only; the paper reports accuracy near that of the full cache",
    constants=(
        Constant(
            "share of tokens fetched",
            0.036,
            "datasheet",
            "section 5.3, recalled: 73 of 2,048 tokens on average; the artifact's scripts cap it at 400",
        ),
        Constant("first layers without selection", 1, "datasheet", "section 4.3: speculation starts from layer 1"),
        Constant("share of the cache scanned", 0.1, "datasheet", "artifact: --partial-weight-ratio 0.2 of the keys"),
    ),
)
