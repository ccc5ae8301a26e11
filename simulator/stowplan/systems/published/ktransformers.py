"""KTransformers: routed experts are computed by the CPU beside a GPU that has everything else."""

from stowplan.systems.mechanisms.policy import Experts, Overheads, Policy
from stowplan.systems.published.base import Constant, Published

_SOCKETS = 1.4

SYSTEM = Published(
    key="ktransformers",
    title="KTransformers",
    paper="Chen et al., SOSP 2025; kvcache-ai/ktransformers v0.2 and v0.2.1",
    idea="attention, shared experts and dense layers on the GPU in captured graphs; the CPU's vector units "
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
        "llama.cpp.cpu.gemm.k": Constant(
            "llama.cpp.cpu.gemm.k",
            31,
            "datasheet",
            "FLOPs per core and clock of k-quants over a prompt: experts run in llamafile 0.8.8's products "
            "(third_party/llamafile of v0.2.1), with which a Ryzen 9 7950X reads prompts of Mixtral 8x7B at 92.8 to "
            "102.4 tokens/s in Q2_K to Q6_K: 29.5 to 32.5 at 5 GHz (mozilla-ai/llamafile pull request 435, table 2)",
        ),
        "llama.cpp.cpu.gemm_tile": Constant(
            "llama.cpp.cpu.gemm_tile",
            1.5,
            "assumed",
            "rows that a product pays for beside its own: with one row it is as fast as llama.cpp's",
        ),
        "llama.cpp.cpu.sockets": Constant(
            "llama.cpp.cpu.sockets",
            _SOCKETS,
            "fitted",
            "151 GB/s on two sockets against 108 on one, weights doubled per node (v0.2 tutorial, 8 experts)",
        ),
        "llama.cpp.cpu.sockets_cores": Constant(
            "llama.cpp.cpu.sockets_cores",
            _SOCKETS,
            "fitted",
            "as for memory, in decode; a prompt of 500 tokens gains 1.53: inputs and outputs of the experts lie on one "
            "node, and threads steal work over both (v0.2 tutorial; operators/llamafile/moe.cpp)",
        ),
    },
)
