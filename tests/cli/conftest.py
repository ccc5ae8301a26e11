"""A plan that replays serve, and its engine, which is compiled once for every length and width that is asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from stowplan.cli.app import app
from stowplan.plan import Plan
from stowplan.serving import from_plan
from stowplan.serving.from_plan import Engine, Serving
from stowplan.systems.base import Setup


@pytest.fixture(scope="session")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A plan file, so that a replay need not search for a plan."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    words = ["plan", "llama-3.1-8b", "--quant", "q4_k_m", "--on", "rtx-4090-desktop-128", "-o", str(path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return str(path)


@pytest.fixture(scope="module")
def plan(plan_file: str) -> Iterator[str]:
    """The plan file, while its engine is remembered."""
    engine_of, known = from_plan.engine_of, dict[tuple[str, Serving], Engine]()

    def remembered(setup: Setup, plan: Plan, serving: Serving) -> Engine:
        key = plan.model_dump_json(), serving
        if key not in known:
            known[key] = engine_of(setup, plan, serving)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_plan, "engine_of", remembered)
        yield plan_file
