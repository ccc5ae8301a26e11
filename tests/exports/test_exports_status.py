"""The table of what engines have shown is made of its data, and every claim in it names tests that exist."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STATUSES = ("parsed", "selected", "observed")
ENGINES: list[dict[str, Any]] = tomllib.loads((HERE / "status.toml").read_text())["engine"]


def table() -> str:
    """The table in Markdown."""
    lines = ["| engine | version | parsed | selected | observed | how |", "|---|---|---|---|---|---|"]
    for engine in ENGINES:
        marks = " | ".join("yes" if engine.get(status) else "-" for status in STATUSES)
        lines.append(f"| {engine['name']} | {engine['version']} | {marks} | {engine['how']} |")
    return "\n".join(lines) + "\n"


def test_the_table_is_made_of_its_data() -> None:
    assert (HERE / "status.md").read_text() == table(), (
        "write it again with: python -m tests.exports.test_exports_status"
    )


def test_every_claim_names_a_test_that_exists() -> None:
    for engine in ENGINES:
        assert set(engine) <= {"name", "version", "how", *STATUSES}
        for status in STATUSES:
            for claim in engine.get(status, ()):
                file, _, name = claim.partition("::")
                tree = ast.parse((HERE / file).read_text())
                assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, claim


if __name__ == "__main__":
    (HERE / "status.md").write_text(table())
