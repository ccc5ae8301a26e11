"""Imports point downwards only, and what the command line needs for ``--help`` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stowplan

PACKAGE = Path(stowplan.__file__).resolve().parent
LEVELS: dict[str, int] = {
    name: level
    for level, names in enumerate(
        (
            ("errors",),
            ("units", "datafiles", "children"),
            ("machines", "models", "traces", "routing"),
            ("kernel_forms",),
            ("work",),
            ("ops",),
            ("figures",),
            ("kernels",),
            ("plan",),
            ("engine",),
            ("systems",),
            ("planner", "serving"),
            ("validate", "whatif", "exports"),
            ("report",),
            ("cli",),
            ("__main__",),
        )
    )
    for name in names
}
HEAVY = {"numpy", "scipy", "pulp", "highspy", "plotly", "pydantic", "rich"}
FILES = sorted(PACKAGE.rglob("*.py"))


def unit_of(path: Path) -> str:
    """The layer that a file belongs to: its folder, or its own name at the top."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import of a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_every_module_has_a_layer() -> None:
    unknown = {unit_of(path) for path in FILES} - LEVELS.keys() - {"__init__", "_data"}
    assert not unknown, "name the layer of these here and in the design"


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_imports_point_downwards(path: Path) -> None:
    own = unit_of(path)
    for line, name in imported(path):
        parts = name.split(".")
        if parts[0] != "stowplan" or len(parts) < 2 or parts[1] not in LEVELS:
            continue
        target = parts[1]
        allowed = own in ("__init__", target) or LEVELS[target] < LEVELS[own]
        assert allowed, f"{path.name}:{line}: {own} may not import {target}"


def test_calibration_uses_only_layers_below_systems() -> None:
    folder = PACKAGE.parents[1] / "calibrate" / "stowplan_calibrate"
    if not folder.is_dir():
        pytest.skip("this checkout holds no calibration package")
    for path in sorted(folder.rglob("*.py")):
        for line, name in imported(path):
            parts = name.split(".")
            if parts[0] == "stowplan" and len(parts) > 1:
                below = parts[1] == "__version__" or LEVELS[parts[1]] < LEVELS["systems"]
                assert below, f"{path.name}:{line}: calibration may not import {parts[1]}"


@pytest.mark.parametrize(
    "module", ["stowplan", "stowplan.cli", "stowplan.cli.app", "stowplan.machines", "stowplan.models", "stowplan.work"]
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set({sorted(HEAVY)!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
