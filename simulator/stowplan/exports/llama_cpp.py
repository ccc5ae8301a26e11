"""llama.cpp and ik_llama.cpp: a command, and a preset file of llama-server; both are read back, scripts too."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stowplan.errors import InputError, NotExpressible
from stowplan.exports.base import LONGEST_TEXT, Files, Names
from stowplan.exports.scripts import script_words
from stowplan.plan import Plan
from stowplan.planner.commands import Hints, understand
from stowplan.planner.dispatch import plan_for
from stowplan.planner.predict import make_setup
from stowplan.planner.result import Request
from stowplan.systems.base import Setup
from stowplan.systems.llama_cpp import LlamaCpp
from stowplan.systems.llama_cpp_commands import command_words
from stowplan.systems.llama_cpp_flags import environment_words, read_flags
from stowplan.systems.llama_cpp_settings import settings_of
from stowplan.systems.llama_cpp_versions import named_profile
from stowplan.systems.llama_cpp_words import IGNORED_SWITCHES, SWITCHES, TRUTH, USUAL

PRESET = "preset.ini"
_SECTION = re.compile(r"\[([^\[\]]*)\]\s*\Z")
_SYSTEM = LlamaCpp()


class LlamaCppExporter:
    """Writer and reader for one span of versions; see `stowplan.systems.llama_cpp_versions`."""

    def __init__(self, profile: str = "llama.cpp") -> None:
        self._profile = named_profile(profile)
        self.key = profile
        self.title = self._profile.engine
        self.target = f"{self._profile.engine}, {self._profile.builds}"

    def nearest(self, setup: Setup, plan: Plan) -> Plan:
        """A llama.cpp plan for this version; plans of other systems are solved again under llama.cpp's constraints.

        Raises:
            NotExpressible: a placement that the version has no flags for.
            DoesNotFit: nothing fits under llama.cpp's constraints.
        """
        version = {"engine": self._profile.engine, "release": self._profile.release}
        own = make_setup(setup.machine, setup.model, _SYSTEM, self._profile.engine)
        if plan.system == _SYSTEM.key:
            found = plan.model_copy(update={"settings": settings_of(plan).model_dump() | version})
        else:
            request = Request(own, (plan.model, plan.quant), plan.workload, settings=version)
            found = plan_for(_SYSTEM.key, request).plan
        settings = settings_of(found)
        stated = {"threads": settings.threads or setup.machine.cores, "margin": 0}  # a margin is for who plans
        workload = found.workload.model_copy(update={"context": found.workload.capacity})
        found = found.model_copy(update={"workload": workload, "settings": settings.model_dump() | stated})
        self._words(own, found)
        return found

    def _words(self, setup: Setup, plan: Plan, buffers: Sequence[str] = ()) -> list[str]:
        layers = _SYSTEM.placement(setup, plan)
        return command_words(
            setup.machine, setup.model, plan, settings_of(plan), layers, profile=self._profile, buffers=buffers
        )

    def files(self, setup: Setup, plan: Plan, buffers: Sequence[str] = ()) -> Files:
        """The command, and for current versions the same as a preset of llama-server.

        Args:
            setup, plan: see `Exporter.files`.
            buffers: buffer names of the GPUs (``Vulkan0``, ``RPC0[host:port]``) where they are not the vendor's own.
        """
        words = self._words(setup, plan, buffers)
        own = words[words.index("llama-server") :]  # numactl may lead
        led = f"Start llama-server behind `{' '.join(words[: -len(own)])}`, as run.sh does; a preset cannot say so."
        outside = [led] if own != words else []
        contents: dict[str, str] = {}
        check: list[str] = []
        says = ""
        if self._profile.fit_off and self._profile.engine == "llama.cpp":
            check = ["llama-fit-params", *(word for word in own[1:] if word not in ("--fit", "off")), "-fitp", "on"]
            says = "a line per device with MiB of weights, cache and compute buffers, without loading the model"
        if self.key == "llama.cpp":
            contents[PRESET] = preset(own, setup.model.key)
        return Files(
            contents=contents,
            main="run.sh",
            command=words,
            check=check,
            check_says=says,
            notes=(
                "With -lv 5 the engine logs a line per layer and per moved tensor.",
                "Every pattern of -ot matches a tensor of this model; the engine would not tell if one did not.",
                *outside,
            ),
        )

    def model_named(self, text: str | Sequence[str]) -> str | None:
        """The file or repository after ``-m`` or ``-hf``."""
        return read_flags(list(text) if not isinstance(text, str) else _words_of(text)).model

    def read(self, text: str | Sequence[str], setup: Setup, names: Names) -> Plan:
        """The plan of a command, a shell script with one command, or a preset file with one model."""
        words = list(text) if not isinstance(text, str) else _words_of(text)
        hints = Hints(
            model=names.model,
            quant=names.quant,
            workload=names.workload,
            release=names.release or self._profile.release,
            ik=self._profile.engine == "ik_llama.cpp",
            built=names.built,
            loaded=setup.model,
            strict=True,
        )
        return understand(words, setup.machine, hints).plan


def _words_of(text: str) -> list[str]:
    if len(text) > LONGEST_TEXT:
        raise InputError("the file is larger than 4 MiB, and a command has a few kilobytes")
    if any(_SECTION.match(line.strip()) for line in text.splitlines()):
        return preset_words(text)
    return script_words(text)


def preset(words: Sequence[str], name: str) -> str:
    """A preset file of llama-server that says what a command says.

    Raises:
        NotExpressible: a value that a preset file has no way to hold.
    """
    lines = ["version = 1", "", f"[{re.sub(r'[^A-Za-z0-9._-]', '-', name)}]"]
    repeated: dict[str, list[str]] = {}
    position = 1
    while position < len(words):
        word = words[position]
        key = USUAL.get(word, word).removeprefix("--")
        if word in SWITCHES:
            value = "true"
            position += 1
        else:
            value = words[position + 1]
            position += 2
        if any(sign in value for sign in "\r\n") or value != value.strip() or value.startswith((";", "#")):
            raise NotExpressible(f"a preset file cannot hold {value[:60]!r} as {key}; use the command")
        repeated.setdefault(key, []).append(value)
    lines += [f"{key} = {','.join(values)}" for key, values in repeated.items()]
    return "\n".join(lines) + "\n"


def preset_words(text: str) -> list[str]:
    """The command that a preset file with one model stands for.

    Raises:
        InputError: no model or several, a line that is no setting, a setting given twice.
    """
    common: dict[str, str] = {}
    models: dict[str, dict[str, str]] = {}
    current = common
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith((";", "#")):
            continue
        section = _SECTION.match(line)
        if section:
            current = common if section[1] == "*" else models.setdefault(section[1], {})
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key:
            raise InputError(f"line {number} of the preset is neither [name] nor key = value: '{line[:60]}'")
        if key == "version" and current is common:
            continue
        if key in current:
            raise InputError(f"line {number} of the preset: {key} is given twice")
        current[key] = value
    if len(models) != 1:
        raise InputError(f"the preset holds {len(models)} models ({', '.join(models) or 'none'}); keep one of them")
    words = ["llama-server"]
    for key, value in (common | next(iter(models.values()))).items():
        words += _setting_words(key, value)
    return words


def _setting_words(key: str, value: str) -> list[str]:
    if key.startswith("LLAMA_ARG_"):
        return environment_words(key, value)
    for flag in (f"--{key}", f"-{key}"):
        if flag in SWITCHES or flag in IGNORED_SWITCHES:
            if value.lower() not in TRUTH:
                raise InputError(f"preset: {key} = {value[:40]}: must be true or false")
            return [flag] if TRUTH[value.lower()] else []
        if flag in USUAL:
            return [flag, value]
    return [f"--{key}", value]
