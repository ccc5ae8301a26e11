"""MoE-Lightning: experts stream in pages past many small GPU batches while the CPU attends to the cache."""

from stowplan.systems.mechanisms.policy import Cache, Experts, Policy, Weights
from stowplan.systems.published.base import Constant, Published, one_of

SYSTEM = Published(
    key="moe-lightning",
    title="MoE-Lightning",
    paper="Cao et al., ASPLOS 2025, arXiv:2411.11217; caoshiyi/artifacts",
    idea="all experts of the next layer stream in pages between the hidden states of many GPU batches, which share one "
    "pass over the weights; the cache stays in host memory and the CPU attends to it meanwhile",
    policy=Policy(
        weights=Weights(gpu=1.0, prefetch=1),
        cache=Cache(gpu=0.0, ram=1.0, attend="cpu"),
        experts=Experts(gpu=0.0, ram=1.0, selective=False),
    ),
    choices=(one_of("batches", 1, 4, 16),),
    fills=("experts",),
    needs=("experts",),
    constants=(
        Constant("layers ahead", 1, "datasheet", "section 4.1: pages of the next layer's experts, in two buffers"),
    ),
    figures={
        "pytorch.cpu_attention_rate": Constant(
            "pytorch.cpu_attention_rate",
            45e9,
            "datasheet",
            "fp16 bytes of cache per second that its own kernels attend to on 24 threads: 38 to 49 GB/s, 134 MB of 64 "
            "sequences of 512 tokens in 2.98 ms (figure of kernel latencies; plots/ablation/ablation_2.py)",
        ),
        "pytorch.gpu.gemm_tile": Constant(
            "pytorch.gpu.gemm_tile",
            64,
            "datasheet",
            "rows that a tile of the experts' kernel pays for, whatever their number (BLOCK_SIZE_M in "
            "fastmoe/layers/stacked_fused_moe.py)",
        ),
        "pytorch.gpu.gemm_vector": Constant(
            "pytorch.gpu.gemm_vector", 64, "datasheet", "as before: few rows have no kernel without tiles"
        ),
        "pytorch.gpu.gemm_float_energy": Constant(
            "pytorch.gpu.gemm_float_energy",
            0.81,
            "fitted",
            "energy per FLOP of fp16 products in units of the process's, as llama.cpp's: an L4 is bound by its 72 W",
        ),
        "pytorch.gpu.gemm_share@12n": Constant(
            "pytorch.gpu.gemm_share@12n",
            0.38,
            "fitted",
            "share of the fp16 peak of large products on T4 and V100, as FlexGen's; nobody measured energies there",
        ),
        "pytorch.gpu.gemm_routed@12n": Constant(
            "pytorch.gpu.gemm_routed@12n",
            3.1,
            "fitted",
            "Triton 2.2 has only Volta's matrix instructions for chips before Ampere, which run slowly on Turing: the "
            "four padded rows of MTBench on a T4; 1.9 on an RTX 2080 with larger tiles, 24 TFLOP/s against cuBLAS's 46 "
            "(triton-lang/triton issue 189; pull request 5066)",
        ),
    },
)
