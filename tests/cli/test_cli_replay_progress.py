"""How far a replay is: on a terminal, after a while, and nowhere else; and what an interruption leaves behind."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stowplan.cli import replay_progress
from stowplan.cli.replay_progress import ReplayProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def waited(seconds: float, condition: object) -> bool:
    """Whether something became true within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if callable(condition) and condition():
            return True
        time.sleep(0.01)
    return False


def test_the_time_left_counts_this_replay_and_those_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(replay_progress, "monotonic", lambda: now[0])
    progress, shares = ReplayProgress(io.StringIO()), [0.0]
    progress.stage("2 requests/s", left=None)
    assert progress.line == "2 requests/s"
    progress.watch(lambda: shares[0])
    now[0] += 10.0
    shares[0] = 0.25
    assert progress.line == "2 requests/s, 25% replayed"
    progress.stage("3 requests/s", left=0)
    progress.watch(lambda: shares[0])
    now[0] += 10.0
    assert progress.line == "3 requests/s, 25% replayed, about 30 s left"
    progress.stage("4 requests/s", left=2)
    progress.watch(lambda: shares[0])
    now[0] += 20.0
    # three quarters of 80 s, and twice the mean of 10, 10 and 80 s
    assert progress.line == "4 requests/s, 25% replayed, about 2 min left"
    shares[0] = 0.0
    assert progress.line == "4 requests/s, 0% replayed"
    progress.stage("summing up")
    assert progress.line == "summing up"


def test_a_terminal_shows_a_line_after_a_while_and_loses_it_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_progress, "_EVERY_S", 0.01)
    terminal = Terminal()
    with ReplayProgress(terminal, quiet_s=0.05) as progress:
        progress.stage("planning")
        assert terminal.getvalue() == ""
        assert waited(10.0, lambda: "planning" in terminal.getvalue())
    assert terminal.getvalue().endswith("\r\x1b[K")
    shown = terminal.getvalue()
    time.sleep(0.05)
    assert terminal.getvalue() == shown


def test_a_short_run_and_a_pipe_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_progress, "_EVERY_S", 0.001)
    terminal, pipe = Terminal(), io.StringIO()
    for stream, quiet_s in ((terminal, 60.0), (pipe, 0.0)):
        with ReplayProgress(stream, quiet_s=quiet_s) as progress:
            progress.stage("planning")
            time.sleep(0.03)
        assert stream.getvalue() == ""


LONG = """
import signal
import time
from stowplan.cli import main, replay_progress
from stowplan.serving.service import Service
replay_progress.QUIET_S = 0.0
done = Service.replay
def slow(self, requests, watch=None, workers=1):
    def seen(share):
        watch(share)
        time.sleep(3.0)
    return done(self, requests, seen, workers)
Service.replay = slow
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell started in the background ignores it
main()
"""


def test_an_interrupted_run_on_a_terminal_wipes_its_line_and_leaves_no_file(plan: str, tmp_path: Path) -> None:
    """A real process with a real signal, its stderr a terminal and its stdout a pipe."""
    target = tmp_path / "out"
    target.mkdir()
    words = ["replay", "azure-2023-conversation-first-400", "--plan", plan, "--head", "20"]
    words += ["-o", str(target / "r.csv"), "--html", str(target / "r.html")]
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", LONG, *words], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"0% replayed" not in seen:
        seen += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    while True:
        try:
            seen += (more := os.read(ours, 4096))
        except OSError:  # Linux's word for the end of a terminal
            break
        if not more:
            break
    os.close(ours)
    assert process.returncode == 130
    assert out == b""
    assert seen.endswith(b"\r\x1b[K") and b"Traceback" not in seen
    assert list(target.iterdir()) == []
