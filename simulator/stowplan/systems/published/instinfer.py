"""InstInfer: the cache lives in computational drives, which attend to it inside."""

from stowplan.systems.mechanisms.policy import Cache, Policy
from stowplan.systems.published.base import Constant, Published

SYSTEM = Published(
    key="instinfer",
    title="InstInfer",
    paper="Pan et al., 2024, arXiv:2409.04992",
    idea="weights on the GPU; the cache on computational drives, where decode attention runs at the flash's internal "
    "bandwidth; only queries and results cross the bus",
    policy=Policy(cache=Cache(gpu=0.0, ram=0.0, attend="storage")),
    fills=(),
    hardware="computational drives that attend to the cache inside",
    figures={
        "storage.attention": Constant(
            "internal bandwidth of a drive", 11.2e9, "datasheet", "table of the evaluation platform: 11.2 GB/s"
        )
    },
)
