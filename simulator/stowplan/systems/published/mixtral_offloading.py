"""Mixtral offloading: an LRU cache of experts per layer, and a guess of the next layer's experts one layer ahead."""

from stowplan.systems.mechanisms.policy import Experts, Overheads, Policy
from stowplan.systems.published.base import Constant, Published

SYSTEM = Published(
    key="mixtral-offloading",
    title="Mixtral offloading",
    paper="Eliseev and Mazur, 2023, arXiv:2312.17238",
    idea="experts in 2 to 4 bits wait in host memory; the last used ones of each layer stay on the GPU, and the next "
    "layer's are guessed from this layer's hidden states",
    policy=Policy(
        experts=Experts(gpu=0.0, ram=1.0, policy="lru", accuracy=0.8, lookahead=1),
        overheads=Overheads(layer=4.0e-3, expert=2.5e-3),
    ),
    fills=("experts",),
    needs=("experts",),
    constants=(
        Constant(
            "share of misses guessed", 0.8, "datasheet", "Fig. 2 (right): recall of guesses one layer ahead, near 0.8"
        ),
        Constant(
            "seconds per layer", 4.0e-3, "fitted", "with the next: the A100 row of Table 2, 2.27 tokens/s without cache"
        ),
        Constant(
            "seconds per expert", 2.5e-3, "fitted", "unpacking of HQQ groups by PyTorch operations; see the row above"
        ),
    ),
)
