"""Writer of fitted parameters: TOML files with source, spread, fitted range and confidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stowplan.kernel_forms.library import UNMEASURED
from stowplan.plan import write_atomically
from stowplan_calibrate.fitting.jobs import Array, Outcome
from stowplan_calibrate.fitting.leave_one_out import RELATIVES

_UNSEEN = 1e8


def gpu_text(gpu: str, where: str, seed: int, outcomes: Sequence[Outcome]) -> str:
    """Contents of one GPU's file."""
    lines = [
        "# Written by python -m stowplan_calibrate.fitting.grids; times in seconds, shares of the GPU's own datasheet.",
        "# sd: standard error relative to the value; far above 1 or inf: samples do not determine it; 0: on its bound.",
        f'gpu = "{gpu}"',
        'source = "fitted"',
        f'where = "{where}"',
        f"seed = {seed}",
    ]
    for outcome in sorted(outcomes, key=lambda one: (one.job.kernel_class, one.job.dtype)):
        lines += ["", *_table(outcome)]
    return "\n".join(lines) + "\n"


def _table(outcome: Outcome) -> list[str]:
    """One fit as a table."""
    job, errors = outcome.job, outcome.errors
    name = f"{job.kernel_class}.{job.dtype}"
    quantiles = ", ".join(f'"{level:g}" = {_text(value)}' for level, value in outcome.quantiles().items())
    ranges = ", ".join(f"{key} = [{_text(low)}, {_text(high)}]" for key, (low, high) in ranges_of(job.shape).items())
    lines = [
        f"[{name}]",
        f'kernel = "{job.kernel}"',
        f"fitted_on = {outcome.fitted_on}",
        f"rejected = {len(outcome.fit.rejected)}",
        f"held_out = {len(errors)}",
        f"held_out_error = {{ median = {_text(_quantile(errors, 0.5))}, p90 = {_text(_quantile(errors, 0.9))}, "
        f"worst = {_text(_quantile(errors, 1.0))} }}",
        f"spread = {_text(outcome.spread)}",
        f"residuals = {{ {quantiles} }}",
        f"range = {{ {ranges} }}",
    ]
    if outcome.facts:
        lines += ["", f"[{name}.facts]", *(f"{key} = {_text(value)}" for key, value in outcome.facts.items())]
    lines += ["", f"[{name}.parameters]"]
    for key, value in outcome.fit.parameters.items():
        error = outcome.fit.standard_errors[key]
        lines.append(f"{key} = {{ value = {_text(value)}, sd = {_text(error / value if value else 0.0)} }}")
    for key, value in job.fixed.items():
        lines.append(f'{key} = {{ value = {_text(value)}, source = "assumed" }}')
    return lines


def unmeasured_text(spreads: Mapping[str, float], counts: Mapping[str, int]) -> str:
    """Contents of the file on GPUs outside the fit."""
    pairs = ", ".join(f"{gpu} by {other}" for gpu, other in sorted(RELATIVES.items()))
    lines = [
        "# Written by python -m stowplan_calibrate.fitting.grids.",
        'source = "fitted"',
        f'where = "every measured GPU predicted with the parameters of its nearest relative: {pairs}"',
        "",
        "[spread]",
    ]
    for name, value in sorted(spreads.items()):
        lines.append(f"{name} = {{ value = {value:.3f}, samples = {counts[name]} }}")
    return "\n".join(lines) + "\n"


def write_all(folder: Path, texts: Mapping[str, str]) -> None:
    """Write the files, each in one step.

    Raises:
        BadFile: the folder cannot be made or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for key, text in texts.items():
        write_atomically(folder / f"{key}.toml", text.encode())


def unmeasured_key() -> str:
    """Name of the file on GPUs outside the fit."""
    return UNMEASURED


def ranges_of(shape: Mapping[str, Array]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each variable; the value that stands for no window is left out."""
    seen = {name: values[values < _UNSEEN] if name == "window" else values for name, values in shape.items()}
    return {name: (float(values.min()), float(values.max())) for name, values in seen.items() if len(values)}


def _quantile(values: Array, level: float) -> float:
    """One quantile."""
    return float(np.quantile(values, level))


def _text(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    number = float(value)
    if math.isinf(number):
        return "inf"
    if number == int(number) and abs(number) < 1e15:
        return f"{number:.1f}"
    short = f"{number:.5g}"
    return short if "." in short or "e" not in short else short.replace("e", ".0e")
