"""A thousand plan variants of a dense model and of a mixture, by one worker and by two.

Run it on a quiet machine of two cores: ``python tests/bench/bench_sweep.py``. Nothing is kept between the runs.
"""

from __future__ import annotations

import subprocess
import sys
import time

MODELS = (
    ("llama-3.3-70b", "rtx-4090-desktop-128", "gpu.memory=16GiB:65.5GiB:0.5GiB"),
    ("deepseek-v3", "rtx-4090-desktop-512", "gpu.memory=16GiB:65.5GiB:0.5GiB"),
)
BANDWIDTHS = "memory.bandwidth=40GB/s,60GB/s,80GB/s,100GB/s,120GB/s"


def seconds(model: str, machine: str, memory: str, workers: int) -> float:
    """Wall time of 500 variants, start of Python included."""
    words = ["whatif", model, "--quant", "q4_k_m", "--on", machine, "--sweep", memory, "--sweep", BANDWIDTHS]
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "from stowplan.cli import main; main()", *words, "--workers", str(workers), "--yes"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


def main() -> None:
    """Print the wall times and the gain of the second worker."""
    totals = {}
    for workers in (2, 1):
        each = [seconds(*model, workers) for model in MODELS]
        totals[workers] = sum(each)
        parts = ", ".join(f"{model[0]} {wall:.1f} s" for model, wall in zip(MODELS, each, strict=True))
        print(f"{workers} workers: 1,000 variants in {totals[workers]:.1f} s ({parts})")
    print(f"the second worker makes it {totals[1] / totals[2]:.2f} times as fast")


if __name__ == "__main__":
    main()
