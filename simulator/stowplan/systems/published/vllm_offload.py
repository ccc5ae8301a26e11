"""vLLM with CPU offload: kernels read host memory over the bus, or layers are prefetched into static buffers."""

from stowplan.systems.mechanisms.policy import Experts, Policy, Weights
from stowplan.systems.published.base import Constant, Published

SYSTEM = Published(
    key="vllm-offload",
    title="vLLM CPU offload",
    paper="vLLM documentation: --cpu-offload-gb (zero-copy), --offload-backend prefetch",
    idea="a part of the weights stays in page-locked host memory; kernels read it over the bus, or the next "
    "layers' weights are copied ahead (prefetch)",
    policy=Policy(
        weights=Weights(gpu=0.0, ram=1.0, prefetch=1),
        experts=Experts(gpu=0.0, ram=1.0, selective=False),
        slack=0.08,
    ),
    choices=(
        (
            {"weights.zero_copy": False, "experts.selective": False},
            {"weights.zero_copy": True, "experts.selective": True},
        ),
    ),
    constants=(
        Constant("GPU memory left free", 0.08, "datasheet", "default of --gpu-memory-utilization, 0.92, in vLLM 0.33"),
        Constant("layers ahead", 1, "datasheet", "default of --offload-prefetch-step"),
    ),
    figures={
        "pytorch.gpu.kernel_gap": Constant(
            "pytorch.gpu.kernel_gap", 3.5e-6, "fitted", "dependent small kernels in captured graphs, as in llama.cpp"
        )
    },
)
