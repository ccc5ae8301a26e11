"""Plans that pages are made of, each solved once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from stowplan.machines import load_machine
from stowplan.models import load_model
from stowplan.plan import Workload
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup
from stowplan.planner.result import Planned, Request
from stowplan.systems import load_system
from stowplan.systems.base import Setup

Solved = tuple[Setup, Planned]

ASKED: dict[str, tuple[str, str, str, str, dict[str, int]]] = {
    "mixture": ("llama.cpp", "qwen3-235b-a22b", "q4_k_m", "rtx-4090-desktop-128", {"prompt": 2048, "context": 32768}),
    "dense": ("llama.cpp", "llama-3.3-70b", "q4_k_m", "rtx-3090-desktop-64", {"prompt": 2048}),
    "large-gpu": ("llama.cpp", "llama-3.1-8b", "f16", "a100-80gb-sxm", {}),
    "spilled": ("llama.cpp", "qwen3-235b-a22b", "q3_k_m", "rtx-3090-desktop-64", {}),
    "unified": ("llama.cpp", "llama-3.1-8b", "q4_k_m", "mac-mini-m4-pro-24", {}),
    "laptop": ("llama.cpp", "llama-3.1-8b", "q4_k_m", "cpu-laptop-32", {}),
    "two-gpus": ("llama.cpp", "llama-3.1-8b", "f16", "dual-rtx-3090-desktop-128", {}),
    "accelerate": ("accelerate", "llama-3.1-8b", "f16", "rtx-3060-desktop-32", {"prompt": 256}),
    "flexgen": ("flexgen", "opt-6.7b", "f16", "rtx-3060-desktop-32", {"prompt": 256, "generate": 16, "batch": 4}),
}


def solve(system: str, model: str, quant: str, machine: str, asked: dict[str, int]) -> Solved:
    """The best plan for a request."""
    setup = make_setup(load_machine(machine), load_model(model, quant), load_system(system))
    workload = Workload(**asked)
    if system == "flexgen":
        return setup, plan_for(system, Request(setup, (model, quant), workload, objective="throughput"))
    return setup, plan_for(system, Request(setup, (model, quant), workload))


@cache
def _solved(name: str) -> Solved:
    return solve(*ASKED[name])


@pytest.fixture(scope="session")
def solved() -> Callable[[str], Solved]:
    """Looks up the plan of a name in `ASKED`."""
    return _solved


@pytest.fixture(scope="session", params=ASKED, ids=list(ASKED))
def case(request: pytest.FixtureRequest) -> Solved:
    """Every plan in turn."""
    return _solved(request.param)
