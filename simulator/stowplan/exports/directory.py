"""A folder that carries a plan out: what to run, what it does, how to check it and how to undo it.

The folder appears as a whole or not at all, and nothing is written outside of it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from stowplan.errors import BadFile, InputError
from stowplan.exports.base import Exporter, Files
from stowplan.exports.projection import Projection
from stowplan.plan import Plan
from stowplan.systems.base import Setup
from stowplan.units import format_bytes, format_seconds

PLAN, README, RUN, CHECK = "plan.json", "README.md", "run.sh", "check.sh"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}\Z")
_TIERS = {"ram": "RAM", "disk": "disk"}


def write_directory(target: Path, contents: Mapping[str, str]) -> None:
    """Make a folder of files in one step.

    Raises:
        InputError: it exists already, or a file's name would lead out of it.
        BadFile: it cannot be written.
    """
    for name in contents:
        if not _NAME.match(name):
            raise InputError(
                f"'{name[:60]}' is no name for a file of an export; only letters, digits, '.', '_' and '-' are"
            )
    unfinished: Path | None = None
    try:
        if target.is_symlink() or target.exists():
            raise InputError(f"-o {target}: exists already; name a folder that does not")
        if not target.parent.is_dir():
            raise InputError(f"-o {target}: the folder {target.parent} does not exist; make it first")
        unfinished = Path(tempfile.mkdtemp(prefix=".stowplan-", dir=target.parent))
        for name, text in contents.items():
            path = unfinished / name
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755 if name.endswith(".sh") else 0o644)
        unfinished.chmod(0o755)
        os.rename(unfinished, target)
    except OSError as error:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise BadFile(f"-o {target}: cannot be written ({error.strerror or error})") from error


def contents_of(exporter: Exporter, setup: Setup, projection: Projection) -> dict[str, str]:
    """Every file of the folder by name."""
    files = exporter.files(setup, projection.plan)
    found = dict(files.contents)
    if files.command:
        found[RUN] = script(files.command, files.contents)
    if files.check:
        found[CHECK] = script(files.check, files.contents)
    found[PLAN] = json.dumps(projection.plan.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    found[README] = readme(exporter, setup, projection, files)
    return found


def script(words: Sequence[str], contents: Collection[str]) -> str:
    """A script that runs one command; from inside its own folder where the command names a file there."""
    there = any(word in contents for word in words)
    enter = 'cd "$(dirname "$0")" || exit 1\n' if there else ""
    return f'#!/bin/sh\n{enter}exec {shlex.join(words)} "$@"\n'


def readme(exporter: Exporter, setup: Setup, projection: Projection, files: Files) -> str:
    """What the folder does, in Markdown."""
    plan = projection.plan
    parts = [
        f"# {_plain(f'{setup.model.name} {setup.model.quant.upper()} on {setup.machine.name}')}, with {exporter.title}",
        f"Written for {exporter.target}.",
        _run(files),
        _expected(projection),
        _otherwise(exporter.title, projection),
        _check(files),
        f"## Undo\n\n{files.undo}",
        _notes(files),
        f"## Files\n\n{_file_list(files)}",
        "## Read back\n\n" + _fenced(_import(plan, files)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _run(files: Files) -> str:
    if not files.command:
        return ""
    return f"## Run\n\n{_fenced('sh ' + RUN)}\n\nwhich is\n\n{_fenced(shlex.join(files.command))}"


def _expected(projection: Projection) -> str:
    prediction = projection.prediction
    if prediction is None:
        return f"## Expected\n\nstowplan does not predict the speed of {projection.plan.system} for this placement."
    lines = ["## Expected", "", "| | value | 80 % interval |", "|---|---|---|"]
    rate, first = prediction.interval["decode_tokens_per_s"], prediction.interval["ttft_s"]
    lines.append(f"| decode | {prediction.decode_tokens_per_s:.3g} tok/s | {rate.low:.3g} - {rate.high:.3g} |")
    if prediction.ttft_s:
        shown = f"{format_seconds(first.low)} - {format_seconds(first.high)}"
        lines.append(f"| first token | {format_seconds(prediction.ttft_s)} | {shown} |")
    for tier, use in prediction.memory_bytes.items():
        name = _TIERS.get(tier, tier.replace("gpu", "GPU "))
        lines.append(f"| {name} | {format_bytes(use.used)} of {format_bytes(use.capacity)} | |")
    return "\n".join(lines)


def _otherwise(title: str, projection: Projection) -> str:
    if not projection.differences:
        return ""
    lines = [f"## What {title} does otherwise than the plan", "", *(f"- {text}" for text in projection.differences)]
    return "\n".join([*lines, *([f"- {projection.cost}"] if projection.cost else [])])


def _check(files: Files) -> str:
    if not files.check:
        return ""
    return f"## Check\n\n{_fenced('sh ' + CHECK)}\n\nshows {files.check_says}."


def _notes(files: Files) -> str:
    return "## Notes\n\n" + "\n".join(f"- {note}" for note in files.notes) if files.notes else ""


def _file_list(files: Files) -> str:
    names = {**dict.fromkeys(files.contents, "configuration of the engine"), PLAN: "the plan, for `stowplan predict`"}
    if files.command:
        names[RUN] = "runs it"
    if files.check:
        names[CHECK] = "checks it"
    return "\n".join(f"- `{name}`: {text}" for name, text in names.items())


def _import(plan: Plan, files: Files) -> str:
    words = ["stowplan", "import", files.main, "--on", plan.machine, "--model", plan.model]
    words += ["--quant", plan.quant] if plan.quant else []
    for change in plan.set:
        words += ["--set", change]
    return shlex.join(words)


def _fenced(text: str) -> str:
    """A code block that its own content cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _plain(text: str) -> str:
    """A name in a line of Markdown: no line breaks or markup of its own."""
    return re.sub(r"[^\w .,+:/()@-]", " ", text)
