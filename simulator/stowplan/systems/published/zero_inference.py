"""ZeRO-Inference: every layer is streamed from host memory or NVMe for each pass, and large batches pay for it."""

from stowplan.systems.mechanisms.policy import Cache, Experts, Policy, Weights
from stowplan.systems.published.base import Constant, Published

SYSTEM = Published(
    key="zero-inference",
    title="DeepSpeed ZeRO-Inference",
    paper="Aminabadi et al., SC 2022, arXiv:2207.00032; DeepSpeedExamples inference/huggingface/zero_inference (2023)",
    idea="all weights live in host memory or on NVMe and stream layer by layer; the cache may live in host memory too, "
    "where the CPU attends to it",
    policy=Policy(
        weights=Weights(gpu=0.0, ram=1.0),
        cache=Cache(pinned=False),
        experts=Experts(gpu=0.0, ram=1.0, selective=False),
    ),
    choices=(
        (
            {"cache.gpu": 1.0, "cache.ram": 0.0},
            {"cache.gpu": 0.0, "cache.ram": 1.0, "cache.attend": "cpu"},
        ),
    ),
    fills=(),
    constants=(
        Constant(
            "layers ahead",
            0,
            "datasheet",
            "run_model.py of the example: stage3_prefetch_bucket_size and stage3_max_live_parameters are two squares "
            "of the hidden size, of the twelve or so of a layer; the default bucket of 5e7 weights is smaller still",
        ),
        Constant(
            "cache in pageable memory", 1, "datasheet", "run_model.py of the example: --pin_kv_cache is off by default"
        ),
        Constant(
            "attention on the CPU",
            1,
            "datasheet",
            "model-support.md of the example, step 5: scores are computed on the CPU",
        ),
    ),
    figures={
        "pytorch.cpu_attention_rate": Constant(
            "pytorch.cpu_attention_rate",
            12.3e9,
            "fitted",
            "fp16 bytes of cache per second in PyTorch's batched products of fp32 copies, as FlexGen's "
            "(kernels/flexgen.toml)",
        ),
        "pytorch.cpu_attention_copies": Constant(
            "pytorch.cpu_attention_copies",
            2,
            "datasheet",
            "with fewer key than query heads: keys and values are repeated for every query head, one pass writes them "
            "and one multiplies them (repeat_kv in modeling_llama.py of tjruwase/transformers, kvcache-offload-cpu)",
        ),
    },
)
