"""A thousand plan variants of a dense model and of a mixture, by one worker and by two.

Run it on a quiet machine of two cores: ``python tests/bench/bench_sweep.py``. Nothing is kept between the runs.
"""

from __future__ import annotations

import subprocess
import sys
import time

QUESTION = ("whatif", "llama-3.3-70b", "--quant", "q4_k_m", "--on", "rtx-4090-desktop-512")
SWEEPS = (
    "model=llama-3.3-70b,deepseek-v3",
    "memory.bandwidth=40GB/s,60GB/s,80GB/s,100GB/s,120GB/s",
    "gpu.memory=16GiB:65.5GiB:0.5GiB",
)


def seconds(workers: int) -> float:
    """Wall time of the thousand variants, start of Python included."""
    sweeps = [word for sweep in SWEEPS for word in ("--sweep", sweep)]
    command = [sys.executable, "-c", "from stowplan.cli import main; main()", *QUESTION, *sweeps]
    started = time.perf_counter()
    subprocess.run([*command, "--workers", str(workers), "--yes"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Print the wall times and the gain of the second worker."""
    taken = {workers: seconds(workers) for workers in (2, 1)}
    for workers, wall in taken.items():
        print(f"{workers} worker{'s' if workers > 1 else ' '}  1,000 variants in {wall:.1f} s")
    print(f"the second worker makes it {taken[1] / taken[2]:.2f} times as fast")


if __name__ == "__main__":
    main()
