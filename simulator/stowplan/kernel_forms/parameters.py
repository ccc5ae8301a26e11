"""Reading fitted parameters: a TOML file per GPU in ``hwprofiles/kernel-forms``, a table per kernel class and type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stowplan.datafiles import read_toml
from stowplan.errors import BadFile
from stowplan.kernel_forms.allreduce import AllReduceForm, RingForm
from stowplan.kernel_forms.attention import DecodeForm, PrefillForm
from stowplan.kernel_forms.gemm import GemmForm
from stowplan.kernel_forms.mla import MlaDecodeForm, MlaPrefillForm
from stowplan.kernel_forms.moe import MoeForm
from stowplan.machines.library import profile_folders

FOLDER = "kernel-forms"
Form = GemmForm | PrefillForm | DecodeForm | MlaPrefillForm | MlaDecodeForm | MoeForm | RingForm | AllReduceForm
FORMS: Mapping[str, type[Form]] = {
    "gemm": GemmForm,
    "prefill": PrefillForm,
    "decode": DecodeForm,
    "mla_prefill": MlaPrefillForm,
    "mla_decode": MlaDecodeForm,
    "moe": MoeForm,
    "ring": RingForm,
    "all_reduce": AllReduceForm,
}
"""Form of each kernel class. A ring comes before the all-reduce that falls back on it."""
_SHARE = "share_"


@dataclass(frozen=True, slots=True)
class FittedForm:
    """One form with what is known of its fit.

    Attributes:
        form: the form with its parameters.
        kernel: the kernels that were measured, as the engine names them.
        spread: robust standard deviation of log(predicted / measured) on samples outside the fit.
        held_out: how many samples those were.
        ranges: lowest and highest value of each variable in the fit.
    """

    form: Form
    kernel: str
    spread: float
    held_out: int
    ranges: Mapping[str, tuple[float, float]]

    def in_range(self, values: Mapping[str, float]) -> bool:
        """Whether every value lies where the fit had samples; variables that the fit does not know do not count."""
        inside = (
            self.ranges[name][0] <= value <= self.ranges[name][1]
            for name, value in values.items()
            if name in self.ranges
        )
        return all(inside)


@dataclass(frozen=True, slots=True)
class FittedGpu:
    """All forms of one GPU.

    Attributes:
        key: the GPU whose kernels were measured.
        where: what was measured, and by whom.
        forms: by class and type, such as ``("gemm", "bf16")``.
    """

    key: str
    where: str
    forms: Mapping[tuple[str, str], FittedForm]

    def has(self, kernel_class: str) -> bool:
        """Whether any type of a class was fitted."""
        return any(name == kernel_class for name, _ in self.forms)

    def completed_by(self, other: FittedGpu) -> FittedGpu:
        """These forms, and `other`'s for the classes that are missing here."""
        missing = {key: fitted for key, fitted in other.forms.items() if not self.has(key[0])}
        return FittedGpu(self.key, self.where, {**self.forms, **missing}) if missing else self

    def spread(self, kernel_class: str) -> float:
        """Mean spread over the types of one class, by their samples."""
        found = [fitted for (name, _), fitted in self.forms.items() if name == kernel_class]
        return sum(one.spread * one.held_out for one in found) / sum(one.held_out for one in found)


def parameter_file(key: str) -> Path | None:
    """File of a GPU's parameters, the user's own first; None where there is none."""
    for folder in profile_folders():
        path = folder / FOLDER / f"{key}.toml"
        if path.is_file():
            return path
    return None


@cache
def read_fitted(path: Path) -> FittedGpu:
    """Forms in a parameter file.

    Raises:
        BadFile: unreadable, or a table or parameter that no form has.
    """
    content = read_toml(path)
    try:
        forms: dict[tuple[str, str], FittedForm] = {}
        for kernel_class in FORMS:
            for dtype, table in content.get(kernel_class, {}).items():
                forms[kernel_class, dtype] = _fitted(kernel_class, dtype, table, forms)
        return FittedGpu(str(content["gpu"]), str(content["where"]), forms)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFile(f"{path}: not a file of kernel parameters ({type(error).__name__}: {error})") from error


def _fitted(
    kernel_class: str, dtype: str, table: Mapping[str, Any], known: Mapping[tuple[str, str], FittedForm]
) -> FittedForm:
    """One table as a form."""
    values: dict[str, Any] = {name: float(number["value"]) for name, number in table["parameters"].items()}
    values.update(table.get("facts", {}))
    if kernel_class == "all_reduce":
        values["ring"] = known["ring", dtype].form
    return FittedForm(
        form=build_form(kernel_class, values),
        kernel=str(table["kernel"]),
        spread=float(table["spread"]),
        held_out=int(table["held_out"]),
        ranges={name: (float(low), float(high)) for name, (low, high) in table["range"].items()},
    )


def build_form(kernel_class: str, values: Mapping[str, Any]) -> Form:
    """A form from parameters and facts by name; ``share_64``, ``share_128`` ... become `PrefillForm.shares`.

    Raises:
        TypeError: a parameter that the form lacks, or one that it misses.
    """
    form = FORMS[kernel_class]
    arguments = {name: _frozen(value) for name, value in values.items()}
    if form is PrefillForm:
        shares = sorted((float(name.removeprefix(_SHARE)), name) for name in arguments if name.startswith(_SHARE))
        arguments["shares"] = tuple((dimension, arguments.pop(name)) for dimension, name in shares)
    return form(**arguments)


def _frozen(value: Any) -> Any:
    """Lists of a TOML file as tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
