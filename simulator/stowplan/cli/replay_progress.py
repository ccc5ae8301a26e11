"""How far a long replay is, on a line of a terminal that is wiped at the end; nothing where stderr is no terminal.

A replay says how far it is when it is asked, and another thread asks it now and then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import TextIO

QUIET_S = 2.0
"""Seconds of a run before anything is shown."""
_EVERY_S = 0.5
_KNOWN = 0.02
"""Share of a replay from which on it says how long the rest takes."""


class ReplayProgress:
    """Shows what is being done and, while requests are replayed, how long the rest will take.

    Args:
        stream: where it is shown; nothing is, where it is no terminal.
        quiet_s: seconds before the first line; None for a few.
    """

    def __init__(self, stream: TextIO | None = None, quiet_s: float | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown, self._quiet_s = self._stream.isatty(), QUIET_S if quiet_s is None else quiet_s
        self._text, self._began = "", monotonic()
        self._share: Callable[[], float] | None = None
        self._replay_began, self._replays, self._left = 0.0, list[float](), 0
        self._ended = Event()
        self._thread = Thread(target=self._tick, daemon=True)

    def __enter__(self) -> ReplayProgress:
        if self._shown:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._shown:
            self._thread.join()

    def stage(self, text: str, left: int | None = 0) -> None:
        """Something else is being done from now on.

        Args:
            text: what.
            left: replays that follow the next one; None where nobody knows.
        """
        if self._share is not None:
            self._replays.append(monotonic() - self._replay_began)
        self._text, self._share, self._left = text, None, -1 if left is None else left

    def watch(self, share: Callable[[], float]) -> None:
        """A replay begins, which says how far it is, 0 to 1."""
        self._replay_began, self._share = monotonic(), share

    @property
    def line(self) -> str:
        """What is being done, how far it is, and how long it will take."""
        ask, words = self._share, [self._text]
        if ask is not None:
            share = ask()
            words.append(f"{share:.0%} replayed")
            left = self._seconds_left(share)
            if left is not None:
                words.append(f"about {_rounded(left)} left")
        return ", ".join(words)

    def _seconds_left(self, share: float) -> float | None:
        """Of this replay and of those that follow, which take as long as those before did on average."""
        if self._left < 0 or share < _KNOWN:
            return None
        whole = (monotonic() - self._replay_began) / share
        each = [*self._replays, whole]
        return whole * (1.0 - share) + self._left * sum(each) / len(each)

    def _tick(self) -> None:
        shown = False
        while not self._ended.wait(_EVERY_S):
            if monotonic() - self._began >= self._quiet_s:
                self._stream.write(f"\r\x1b[K  {self.line[:100]}")
                self._stream.flush()
                shown = True
        if shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def _rounded(seconds: float) -> str:
    if seconds < 60.0:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 5400.0 else f"{seconds / 3600.0:.1f} h"
