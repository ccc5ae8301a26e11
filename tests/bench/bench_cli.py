"""Process times of the command line, start of Python included; run as ``python tests/bench/bench_cli.py``.

Python keeps its compiled modules, as it does where pip installed them; a first run of each command is not counted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

REPEATS = 7
_70B = ("plan", "llama-3.3-70b", "--quant", "q4_k_m", "--on", "rtx-4090-desktop-128")
_V3 = ("plan", "deepseek-v3", "--quant", "q4_k_m", "--on", "rtx-4090-desktop-512")
_COMMAND = ("llama-server", "-m", "Llama-3.3-70B-Q4_K_M.gguf", "-ngl", "40", "-c", "8192")
CASES = {
    "--help": ("--help",),
    "plan --help": ("plan", "--help"),
    "plan llama-3.3-70b": _70B,
    "plan deepseek-v3": _V3,
    "predict": ("predict", "--on", "rtx-4090-desktop-128", "--no-compare", "--", *_COMMAND),
    "predict and compare": ("predict", "--on", "rtx-4090-desktop-128", "--", *_COMMAND),
}


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds(words: tuple[str, ...]) -> float:
    """Wall time of one process."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "from stowplan.cli import main; main()", *words],
        check=True,
        stdout=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    return time.perf_counter() - started


def main() -> None:
    """Print the median of every case."""
    for name, words in CASES.items():
        seconds(words)
        print(f"{name:<24}{statistics.median(seconds(words) for _ in range(REPEATS)):7.3f} s")


if __name__ == "__main__":
    main()
