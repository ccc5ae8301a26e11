"""What goes into and comes out of stowplan: `Workload`, `Plan` and `Prediction`, versioned and serialisable."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stowplan.errors import BadFile, InputError

Place = str | dict[str, float]
"""Where a part lives: one place (``gpu0``, ``ram``, ``disk``) or shares of several that add up to 1."""

LONGEST = 2**24
"""Longest context in tokens that is accepted, 16 times the longest that a model is made for today."""

_LARGEST_PLAN = 16 * 2**20


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Workload(_Record):
    """What is asked of the model.

    Attributes:
        prompt: tokens of the prompt that are processed before the first token.
        generate: tokens generated per request.
        depth: tokens in the cache before the prompt (earlier turns).
        context: cache capacity in tokens per sequence; None for just enough.
        batch: sequences that are processed together.
        decode_depth: tokens in the cache when generation starts; None for `depth` + `prompt` (benchmarks that measure
            the prompt and the generation apart start anew).
    """

    prompt: Annotated[int, Field(ge=0, le=LONGEST)] = 512
    generate: Annotated[int, Field(ge=0, le=LONGEST)] = 128
    depth: Annotated[int, Field(ge=0, le=LONGEST)] = 0
    context: Annotated[int, Field(ge=1, le=LONGEST)] | None = None
    batch: Annotated[int, Field(ge=1, le=2**20)] = 1
    decode_depth: Annotated[int, Field(ge=0, le=LONGEST)] | None = None

    @property
    def capacity(self) -> int:
        """Tokens of cache to reserve per sequence."""
        return self.context or max(1, self.depth + self.prompt + self.generate)

    @property
    def decode_context(self) -> int:
        """Mean number of cached tokens while the request's tokens are generated."""
        start = self.depth + self.prompt if self.decode_depth is None else self.decode_depth
        return start + self.generate // 2


def checked_workload(values: Mapping[str, int | None]) -> Workload:
    """A workload from numbers that a person gave; None leaves a default.

    Raises:
        InputError: a number out of range; names the field, the value and the limit.
    """
    try:
        return Workload.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        told = first["msg"][0].lower() + first["msg"][1:]
        raise InputError(f"{field} {first['input']}: {told}") from error


class PlacedLayers(_Record):
    """A run of consecutive layers whose parts live in the same places."""

    first: int
    last: int
    places: dict[str, Place]


class Plan(_Record):
    """Where every byte lives and how an engine is told so.

    Attributes:
        system: key of the system that runs it.
        machine, set: machine text and overrides, as given to ``--on`` and ``--set``.
        model, quant: model reference and storage mix.
        workload: what the plan was made for.
        layers: where the parts of every layer live, run-length coded.
        embedding, output: where the token embedding and the output matrix live.
        settings: the system's own knobs, as its settings model dumps them.
    """

    schema_version: Literal["stowplan.plan/1"] = "stowplan.plan/1"
    system: str
    machine: str
    set: list[str] = []
    model: str
    quant: str | None = None
    workload: Workload
    layers: list[PlacedLayers]
    embedding: str
    output: str
    settings: dict[str, Any] = {}


class Interval(_Record):
    """An 80 % interval."""

    low: float
    high: float


class MemoryUse(_Record):
    """Bytes on one tier: used at the high-water mark, available in all, and what the use is made of."""

    used: float
    capacity: float
    parts: dict[str, float] = {}


class Solver(_Record):
    """How the optimum was found: status, objective and proven bound in seconds, relative gap, seconds spent."""

    name: str
    status: str
    objective: float
    bound: float
    gap: float
    seconds: float
    variables: int = 0
    constraints: int = 0
    programmes: int = 1


class Rest(_Record):
    """A figure that a prediction rests on, and how strongly: d log(tokens/s) / d log(figure)."""

    name: str
    value: float
    kind: str
    source: str
    sd: float
    elasticity: float


UnseenPart = Literal["architecture", "gpu"]


class Unseen(_Record):
    """A part that no fitted record had, and what it adds to the standard deviations of log times.

    Attributes:
        part: the model's architecture, or the generation of the GPUs.
        group: what is new, as ``hwprofiles/seen`` names groups; name: the same for people.
        decode_sd, prefill_sd: within the intervals, beside the spread that every prediction has.
    """

    part: UnseenPart
    group: str
    name: str
    decode_sd: float
    prefill_sd: float


class Prediction(_Record):
    """What will happen.

    Attributes:
        decode_tokens_per_s: tokens of the whole batch per second; per_request_tokens_per_s: of one sequence.
        prefill_tokens_per_s, ttft_s: prompt processing of the whole batch and time to its first token.
        tpot_s: time per output token of one request.
        interval: 80 % intervals of ``decode_tokens_per_s``, ``prefill_tokens_per_s``, ``ttft_s`` and ``tpot_s``.
        bottleneck: the resource with the largest share of a decode step; prefill_bottleneck likewise.
        time_shares: share of a decode step by resource; prefill_shares likewise.
        memory_bytes: use by tier.
        rests_on: figures with their provenance, strongest first.
        unseen: why intervals are wider than for what was measured; empty where every part had a fitted record.
        solver: how the placement was found, None for a given one.
        command: what to run, None where the system has no command line.
        warnings: what the user should know.
    """

    schema_version: Literal["stowplan.prediction/1"] = "stowplan.prediction/1"
    system: str
    machine: str
    model: str
    quant: str
    workload: Workload
    decode_tokens_per_s: float
    per_request_tokens_per_s: float
    prefill_tokens_per_s: float
    request_tokens_per_s: float
    ttft_s: float
    tpot_s: float
    interval: dict[str, Interval]
    bottleneck: str
    prefill_bottleneck: str
    time_shares: dict[str, float]
    prefill_shares: dict[str, float]
    memory_bytes: dict[str, MemoryUse]
    rests_on: list[Rest]
    unseen: list[Unseen] = []
    solver: Solver | None = None
    command: str | None = None
    warnings: list[str] = []


def run_lengths(layers: Iterable[Mapping[str, Place]]) -> list[PlacedLayers]:
    """Consecutive layers with equal places, merged."""
    runs: list[PlacedLayers] = []
    for index, places in enumerate(layers):
        if runs and runs[-1].places == places:
            runs[-1] = PlacedLayers(first=runs[-1].first, last=index, places=dict(places))
        else:
            runs.append(PlacedLayers(first=index, last=index, places=dict(places)))
    return runs


def expand(runs: Iterable[PlacedLayers], layers: int, *, where: str) -> list[dict[str, Place]]:
    """Places of every layer, in order.

    Raises:
        BadFile: a layer is missing, named twice or outside the model.
    """
    found: list[dict[str, Place] | None] = [None] * layers
    for run in runs:
        for index in range(run.first, run.last + 1):
            if not 0 <= index < layers or found[index] is not None:
                raise BadFile(f"{where}: layers: layer {index} is outside the model's {layers} layers or named twice")
            found[index] = dict(run.places)
    complete = [places for places in found if places is not None]
    if len(complete) != layers:
        raise BadFile(f"{where}: layers: layer {found.index(None)} of {layers} has no places")
    return complete


def read_plan(path: Path) -> Plan:
    """A plan from a JSON file.

    Raises:
        BadFile: not readable, larger than 16 MiB, not JSON or not a plan; names the first wrong field.
    """
    try:
        if path.stat().st_size > _LARGEST_PLAN:
            raise BadFile(f"{path}: larger than 16 MiB; a plan is a few kilobytes")
        data = json.loads(path.read_text(encoding="utf-8"))
        return Plan.model_validate(data)
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadFile(f"{path}: {field}: {first['msg']}; write plans with `stowplan plan ... -o plan.json`") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 5,000 digits, nested too deeply
        raise BadFile(f"{path}: is not a JSON plan ({error})") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step: a reader or a crash sees the old file or the new one, never a half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise BadFile(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:  # nothing is left where it was interrupted
        temporary.unlink(missing_ok=True)
