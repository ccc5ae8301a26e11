"""How fast an engine's kernels run an operator on a device: operators in, work vectors out.

Bytes on memories and links are the real bytes. Time-like resources are in device-seconds (``gpu0.compute``, rate 1)
and core-seconds (``host.cores``, rate = threads), because one device has several peaks (int8, fp16, fp32) and every
kernel its own share of them. All efficiencies are smooth in the operator's size.
"""

from stowplan.kernels.cpu import CpuKernels, Layout, one_core_copies, vector_units
from stowplan.kernels.formats import family, kernel_names, kernels_of_scaled
from stowplan.kernels.gpu import AttentionKernel, GpuKernels, RoutedRun
from stowplan.kernels.idle import idle_constants

__all__ = [
    "AttentionKernel",
    "CpuKernels",
    "GpuKernels",
    "Layout",
    "RoutedRun",
    "family",
    "idle_constants",
    "kernel_names",
    "kernels_of_scaled",
    "one_core_copies",
    "vector_units",
]
