"""KTransformers: routed experts are computed by the CPU beside a GPU that has everything else."""

from stowplan.systems.mechanisms.policy import Experts, Overheads, Policy
from stowplan.systems.published.base import Constant, Published

SYSTEM = Published(
    key="ktransformers",
    title="KTransformers",
    paper="Chen et al., SOSP 2025; kvcache-ai/ktransformers v0.2 and v0.3",
    idea="attention, shared experts and dense layers on the GPU in captured graphs; the CPU's vector and matrix units "
    "compute the routed experts where they lie",
    kernels="llama.cpp",
    policy=Policy(
        experts=Experts(gpu=0.0, ram=1.0, miss="cpu"),
        overheads=Overheads(hop=50e-6),
    ),
    fills=("experts",),
    needs=("experts",),
    constants=(
        Constant(
            "seconds per hand-over", 50e-6, "assumed", "one synchronous small copy, as in llama.cpp; two per layer"
        ),
    ),
    figures={
        "llama.cpp.cpu.sockets": Constant(
            "llama.cpp.cpu.sockets",
            1.4,
            "fitted",
            "151 GB/s on two sockets against 108 on one, weights doubled per node (v0.2 tutorial, 8 experts)",
        )
    },
)
