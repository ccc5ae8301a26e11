"""Hugging Face Accelerate: a device map of whole modules, copied synchronously before every use."""

from stowplan.systems.published.base import Published

SYSTEM = Published(
    key="accelerate",
    title="Hugging Face Accelerate",
    paper="Accelerate documentation, big model inference",
    idea="whole layers on GPU, host or disk; what is not on the GPU is copied there for every pass, and dropped after",
    kernels="accelerate",
    existing="accelerate",
)
