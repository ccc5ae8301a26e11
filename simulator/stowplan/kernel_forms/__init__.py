"""Times of a serving engine's GPU kernels by shape: physical forms with parameters fitted to measured grids.

All times are seconds on one GPU; whoever splits a model over GPUs divides heads and matrices first.
"""

from stowplan.kernel_forms.library import KernelForms, forms_for

__all__ = ["KernelForms", "forms_for"]
