"""Compiles DeepSpeed's reader of disks: ``python deepspeed_ops.py FOLDER``.

Left alone, DeepSpeed compiles 17 files when it is first used, and each reads torch's headers anew: ten minutes of one
core. A compilation that is killed leaves a lock file behind, on which all later runs wait for ever. Here each of the
two parts that a run needs is one file that includes its sources, unchanged but for a guard in their headers, and sees
only those headers of torch that they use; the third part, communication among processes, is left out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

from deepspeed.ops.op_builder.cpu import AsyncIOBuilder
from deepspeed.ops.op_builder.pin_memory import PinMemoryBuilder

_BUILDERS = (PinMemoryBuilder, AsyncIOBuilder)  # the second one uses symbols of the first
_TORCH = "#pragma once\n#include <torch/types.h>\n#include <torch/csrc/utils/pybind.h>\n"
_SLOW_FLAGS = ("-O3", "-g")
_TWICE = ("c_library_name", "c_block_size", "c_io_queue_depth")  # constants that two sources define each for itself


def _copy_guarded(sources: Path, folder: Path) -> None:
    for part in ("aio", "pin_memory"):
        for file in (sources / part).rglob("*.*"):
            copy = folder / file.relative_to(sources)
            copy.parent.mkdir(parents=True, exist_ok=True)
            guard = "#pragma once\n" if file.suffix == ".h" else ""
            copy.write_text(guard + file.read_text())


def _joined(builder: Any, folder: Path) -> Path:
    lines: list[str] = []
    for number, source in enumerate(builder.sources()):
        lines += [f"#define {name} {name}_{number}" for name in _TWICE]
        lines += [f'#include "{folder / source}"', *(f"#undef {name}" for name in _TWICE)]
    file = folder / f"{builder.name}.cpp"
    file.write_text("\n".join(lines) + "\n")
    return file


def compile_into(folder: Path) -> None:
    """Compile both parts, without optimisation, and load them once."""
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    _copy_guarded(Path(AsyncIOBuilder().deepspeed_src_path("csrc")), folder / "csrc")
    narrow = folder / "narrow" / "torch" / "extension.h"
    narrow.parent.mkdir(parents=True)
    narrow.write_text(_TORCH)
    for builder in _BUILDERS:
        made = builder()
        file = str(_joined(made, folder))
        include = [str(folder / path) for path in ("narrow", *made.include_paths())]
        flags = [flag for flag in made.cxx_args() if flag not in _SLOW_FLAGS]
        builder.sources = lambda _, file=file: [file]
        builder.include_paths = lambda _, include=include: include
        builder.cxx_args = lambda _, flags=flags: list(flags)
    AsyncIOBuilder().load(verbose=False)


if __name__ == "__main__":
    compile_into(Path(sys.argv[1]))
