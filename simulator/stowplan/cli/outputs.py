"""Files that commands write, and the simulated step that the answer and the trace share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stowplan.engine.run import Run
    from stowplan.plan import Plan
    from stowplan.systems.base import Setup


def simulated_step(setup: Setup, plan: Plan) -> Run:
    """A decode step of a plan in the simulator."""
    from stowplan.engine.simulate import simulate
    from stowplan.systems import load_system

    return simulate(load_system(plan.system).decode_graph(setup, plan))


def write_text(path: str, text: str) -> None:
    """Write a file in one step.

    Raises:
        BadFile: it cannot be written.
    """
    from stowplan.plan import write_atomically

    write_atomically(Path(path), text.encode("utf-8"))


def write_trace(path: str, run: Run, title: str) -> None:
    """Write a simulated step as a trace.

    Raises:
        InputError: it cannot be written.
    """
    from stowplan.engine.timeline import write_timeline

    write_timeline(run, Path(path), title=title)
