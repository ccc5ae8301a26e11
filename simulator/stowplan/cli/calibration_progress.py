"""The progress of a calibration: a bar with the time left on a terminal, one line per measurement elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from stowplan_calibrate.measuring import Entry
    from stowplan_calibrate.results import Record, Skipped
    from stowplan_calibrate.suite import Watcher


class _Bar:
    """A bar that fills by the suite's weights."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task, self._weight = progress, task, 0.0

    def started(self, entry: Entry, left_s: float) -> None:
        """Show what is measured and what is left of the budget."""
        self._progress.update(self._task, advance=self._weight, description=entry.title, left=f"{left_s:.0f} s left")
        self._weight = entry.weight

    def finished(self, record: Record) -> None:
        """Show the point that is done."""
        self._progress.update(self._task, point=record.label[:48])

    def skipped(self, skipped: Skipped) -> None:
        """Show why nothing is measured."""
        self._progress.update(self._task, point=skipped.reason[:48])


class _Lines:
    """One line on stderr for every measurement that starts."""

    def started(self, entry: Entry, left_s: float) -> None:
        """Say what is measured."""
        typer.echo(f"  {entry.title} ({left_s:.0f} s left)", err=True)

    def finished(self, record: Record) -> None:
        """Points are not told one by one."""

    def skipped(self, skipped: Skipped) -> None:
        """Say why nothing is measured."""
        typer.echo(f"    left out: {skipped.reason}", err=True)


@contextmanager
def shown_progress(suite: Sequence[Entry], budget_s: float) -> Iterator[Watcher]:
    """What is told while a suite runs."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("  {task.description:<34}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[left]:>10}"),
        TextColumn("[dim]{task.fields[point]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        total = sum(entry.weight for entry in suite)
        task = progress.add_task("", total=total, left=f"{budget_s:.0f} s left", point="")
        yield _Bar(progress, task)
