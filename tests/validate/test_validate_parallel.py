"""Many processes give what one gives, in the same order; an interruption ends the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from stowplan.validate.parallel import run_all
from stowplan.validate.rows import Result

INTERRUPTED = """
import signal, sys, time
from stowplan.validate.parallel import run_all
from {module} import Slow

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell started in the background ignores it
    print("started", flush=True)
    try:
        run_all([Slow() for _ in range(400)], 2)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
"""


@dataclass(frozen=True)
class Echo:
    number: int

    def run(self) -> Result:
        time.sleep(0.002 * (self.number % 3))
        return Result(refused=str(self.number))


@dataclass(frozen=True)
class Slow:
    def run(self) -> Result:
        time.sleep(0.05)
        return Result()


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    told: list[tuple[int, int]] = []
    jobs = [Echo(number) for number in range(25)]
    found = run_all(jobs, workers, lambda done, count: told.append((done, count)))
    assert [result.refused for result in found] == [str(number) for number in range(25)]
    assert told == [(number, 25) for number in range(1, 26)]


def test_no_jobs_give_no_results() -> None:
    assert run_all([], 4) == []


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts are sent in another way there")
@pytest.mark.parametrize("after", [0.3, 1.5], ids=["while workers start", "while they work"])
def test_an_interruption_ends_the_run_and_its_workers(tmp_path: Path, after: float) -> None:
    here = Path(__file__).resolve()
    script = tmp_path / "interrupted.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(here.parent)!r})\n" + INTERRUPTED.format(module=here.stem),
        encoding="utf-8",
    )
    command = [sys.executable, str(script)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(after)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        rest, complaints = process.communicate(timeout=30)
    assert rest == "interrupted\n"
    assert complaints == ""
    assert process.returncode == 130
