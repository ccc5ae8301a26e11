"""Environments of real engines as fixtures, and the order in which slow tests ask for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.exports import python_engines

_HERE = Path(__file__).parent
_BUILD_S = {
    "gpus": 30.0,
    "torch_python": 76.0,
    "flexgen_python": 85.0,
    "kt_python": 90.0,
    "deepspeed_python": 96.0,
    "lmcache_python": 109.0,
    "deepspeed_parts": 156.0,
    "vllm_python": 161.0,
    "sglang_python": 195.0,
}
"""Processor seconds from an empty cache folder to a fixture, with all that it needs, as measured."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests of this folder run in the order of what their engine costs, so that a time limit cuts the least."""
    here = [n for n, item in enumerate(items) if item.path.parent == _HERE and item.get_closest_marker("slow")]
    ordered = sorted((items[n] for n in here), key=_cost_s)
    for position, item in zip(here, ordered, strict=True):
        items[position] = item


def _cost_s(item: pytest.Item) -> float:
    return max((_BUILD_S[name] for name in getattr(item, "fixturenames", ()) if name in _BUILD_S), default=0.0)


@pytest.fixture(scope="session")
def torch_python() -> Path:
    return python_engines.torch_python()


@pytest.fixture(scope="session")
def flexgen_python(torch_python: Path) -> Path:
    return python_engines.flexgen_python(torch_python)


@pytest.fixture(scope="session")
def kt_python(torch_python: Path) -> Path:
    return python_engines.kt_python(torch_python)


@pytest.fixture(scope="session")
def lmcache_python(torch_python: Path) -> Path:
    return python_engines.lmcache_python(torch_python)


@pytest.fixture(scope="session")
def deepspeed_python(torch_python: Path) -> Path:
    return python_engines.deepspeed_python(torch_python)


@pytest.fixture(scope="session")
def deepspeed_parts(deepspeed_python: Path) -> tuple[Path, str]:
    return python_engines.deepspeed_parts(deepspeed_python)


@pytest.fixture(scope="session")
def sglang_python(torch_python: Path) -> Path:
    return python_engines.sglang_python(torch_python)


@pytest.fixture(scope="session")
def vllm_python(torch_python: Path) -> Path:
    return python_engines.vllm_python(torch_python)
