"""llama.cpp: layers or tensors in host memory are computed there in decode and streamed per micro-batch in prefill."""

from stowplan.systems.published.base import Published

SYSTEM = Published(
    key="llama.cpp",
    title="llama.cpp",
    paper="ggml-org/llama.cpp",
    idea="tensors in host memory are computed by the CPU in decode, and streamed to the GPU per micro-batch in prefill",
    kernels="llama.cpp",
    existing="llama.cpp",
)
