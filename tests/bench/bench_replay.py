"""Replay at full size: a synthetic log of 1.4 million requests through three engines, seconds and memory of each.

Run it on a quiet machine with two cores: ``python tests/bench/bench_replay.py``. Two processes share each trace, as the
command line does it; ``--alone`` takes one. The loop at the end says how fast the machine is, so that figures of two
machines can be compared.
"""

from __future__ import annotations

import sys
import time
from multiprocessing import active_children
from pathlib import Path
from threading import Event, Thread

from stowplan.serving.limits import Limits
from stowplan.serving.policies import Caching
from stowplan.serving.replay import replay
from stowplan.serving.requests import Requests
from stowplan.serving.step_time import ChunkTerm, DecodePiece, StepTime
from stowplan.serving.tiers import Tier
from stowplan.traces.conversations import with_conversations
from stowplan.traces.reading import load_trace

STEP_TIME = StepTime(
    body=((1, 0.012), (128, 0.013), (512, 0.03), (8192, 0.45)),
    logits=((0, 0.0), (256, 0.001)),
    decode=(DecodePiece(0.0, 1e-6, 4e-8), DecodePiece(300.0, -5e-6, 6e-8)),
    chunk=(ChunkTerm(None, None, ((2e-10, 1e-9, 0.0, 0.0), (0.0, 4e-8, 0.0, 0.0))),),
    busy=(("gpu0.h2d", ((1, 0.001), (8192, 0.002))),),
)
"""An 8B model on a 24 GB GPU, roughly; what is timed does not depend on it."""
LIMITS = Limits(kv_blocks=20_000, max_running=128, max_batched_tokens=2048)
TIERS = (
    Tier("host", 100_000, {"gpu0.h2d": 8e-5}, 8e-5),
    Tier("disk", 800_000, {"gpu0.h2d": 8e-5, "disk.read": 3e-4}, 3e-4, 1e-4),
)


def held_bytes() -> int:
    """Memory of this process and of those that it has started, now; what they share counts twice."""
    total = 0
    for process in ("self", *(str(child.pid) for child in active_children())):
        try:
            status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
    return total


def main() -> None:
    """Print a line for each engine."""
    workers = 1 if "--alone" in sys.argv[1:] else 2
    ended, peak = Event(), [0]

    def watch() -> None:
        while not ended.wait(0.05):
            peak[0] = max(peak[0], held_bytes())

    watcher = Thread(target=watch)
    watcher.start()
    trace = load_trace("burstgpt-like")
    plain, told = Requests.from_trace(trace), Requests.from_trace(with_conversations(trace))
    cases = (
        ("continuous", plain, "continuous", None),
        ("chunked", plain, "chunked", None),
        ("chunked, prefix cache", told, "chunked", Caching()),
        ("chunked, prefix cache, three tiers", told, "chunked", Caching(TIERS)),
    )
    for name, requests, scheduler, caching in cases:
        began, used = time.perf_counter(), time.process_time()
        replay(requests, STEP_TIME, LIMITS, scheduler, caching, workers=workers)
        wall, cpu = time.perf_counter() - began, time.process_time() - used
        each = wall / len(requests) * 1e6
        print(
            f"{name:38} {len(requests):,} requests {wall:7.2f} s ({each:.1f} us each; {cpu:.2f} s of its first process)"
        )
    ended.set()
    watcher.join()
    print(f"peak memory of all processes {peak[0] / 2**30:.2f} GiB")
    began, total = time.process_time(), 0
    for number in range(10_000_000):
        total += number
    print(f"a loop of ten million additions: {time.process_time() - began:.2f} s of CPU", file=sys.stderr)


if __name__ == "__main__":
    main()
