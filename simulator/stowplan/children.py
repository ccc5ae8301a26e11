"""Processes that a command starts beside itself: Ctrl-C reaches them all, and only the first one answers it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that start meanwhile ignore Ctrl-C from their first moment, also while they import."""
    if threading.current_thread() is not threading.main_thread():  # only that one may change what signals do
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ignore_interrupts() -> None:
    """What such a process calls first, where another thread may have started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
