"""How far predictions are off for GPUs that were not measured: each measured one by a relative's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stowplan.kernel_forms.library import STAND_INS
from stowplan_calibrate.fitting.jobs import Array, Outcome

RELATIVES: Mapping[str, str] = {
    "h100-sxm": "h200-sxm",
    "h200-sxm": "h100-sxm",
    "b200": "h200-sxm",
    "l40s": "h100-sxm",
    "a100-80gb-sxm": "h200-sxm",
}
"""Who stands in for each measured GPU when it is left out: the same generation, otherwise the nearest one."""
LINKED: Mapping[str, str] = {
    "h100-sxm": "h200-sxm",
    "h200-sxm": "h100-sxm",
    "b200": "h200-sxm",
    "a100-80gb-sxm": "h200-sxm",
}
"""The same for sums over GPUs, among those that NVLink joins: nothing measured resembles PCIe."""
_COLLECTIVE = ("ring", "all_reduce")


def left_out(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[tuple[str, str], Array]:
    """Residuals by kernel class and GPU, log(predicted / measured), all samples of types that the relative can serve.

    Args:
        outcomes: fits by GPU. Sums over GPUs take the relative's own kernels with the ring that was fitted here, since
            the two are evaluated together.
    """
    residuals: dict[tuple[str, str], list[Array]] = {}
    for gpu, own in outcomes.items():
        for outcome in own:
            job = outcome.job
            relatives = LINKED if job.kernel_class in _COLLECTIVE else RELATIVES
            if gpu not in relatives:
                continue
            others = {(other.job.kernel_class, other.job.dtype): other for other in outcomes[relatives[gpu]]}
            names = (job.dtype, *STAND_INS.get(job.dtype, ()))
            other = next((others[job.kernel_class, name] for name in names if (job.kernel_class, name) in others), None)
            if other is None:
                continue
            predicted = job.evaluate(other.values, np.arange(len(job.seconds)))
            residuals.setdefault((job.kernel_class, gpu), []).append(np.log(predicted) - np.log(job.seconds))
    return {key: np.concatenate(parts) for key, parts in residuals.items()}


def spread_by_class(residuals: Mapping[tuple[str, str], Array]) -> dict[str, float]:
    """Spread by kernel class: root mean square over the GPUs left out of each one's robust deviation from zero.

    Every GPU counts once, so that the two that are nearly alike and have many samples do not decide alone.
    """
    deviations: dict[str, list[float]] = {}
    for (kernel_class, _), values in residuals.items():
        deviations.setdefault(kernel_class, []).append(float(1.4826 * np.median(np.abs(values))))
    return {name: float(np.sqrt(np.mean(np.square(each)))) for name, each in deviations.items()}
