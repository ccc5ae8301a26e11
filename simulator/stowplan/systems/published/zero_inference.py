"""ZeRO-Inference: every layer is streamed from host memory or NVMe for each pass, and large batches pay for it."""

from stowplan.systems.mechanisms.policy import Cache, Experts, Policy, Weights
from stowplan.systems.published.base import CACHE_ON_GPU_OR_HOST, Constant, Published

SYSTEM = Published(
    key="zero-inference",
    title="DeepSpeed ZeRO-Inference",
    paper="Aminabadi et al., SC 2022, arXiv:2207.00032; DeepSpeedExamples inference/huggingface/zero_inference (2023)",
    idea="all weights live in host memory or on NVMe and stream layer by layer, the next one ahead; the cache may live "
    "in host memory too",
    policy=Policy(
        weights=Weights(gpu=0.0, ram=1.0, prefetch=1),
        cache=Cache(pinned=False),
        experts=Experts(gpu=0.0, ram=1.0, selective=False),
    ),
    choices=(CACHE_ON_GPU_OR_HOST,),
    fills=(),
    constants=(
        Constant(
            "layers ahead", 1, "datasheet", "prefetching of the next layer, SC 2022 paper, section on ZeRO-Inference"
        ),
        Constant(
            "cache in pageable memory", 1, "datasheet", "run_model.py of the example: --pin_kv_cache is off by default"
        ),
    ),
)
