"""Models by name or by file: the one door to the readers of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from stowplan.datafiles import data_folder, read_toml
from stowplan.errors import BadFile, UnknownName
from stowplan.models.build import build_model
from stowplan.models.facts import Facts, read_facts
from stowplan.models.model import Model

_QUANT = re.compile(
    r"[-_.:/](?:i1-)?((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|B?F16|F32|FP16|FP8(?:_BLOCK)?"
    r"|AWQ(?:-INT4)?|GPTQ(?:-INT4)?|INT8|W8A8|NF4))\Z",
    re.IGNORECASE,
)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\Z")
_FILE_ENDS = (".gguf", ".safetensors", ".toml", ".json")
# Words after a model's name that do not change its shape.
_HARMLESS = frozenset(
    [
        "instruct",
        "it",
        "pt",
        "chat",
        "base",
        "hf",
        "gguf",
        "thinking",
        "preview",
        "qat",
        "i1",
        "imatrix",
        "bnb",
        "4bit",
        "mlx",
        "abliterated",
        "original",
        "reasoning",
        "text",
        "4k",
        "128k",
    ]
)
_LONGEST_REFERENCE = 4096


def load_model(ref: str, quant: str | None = None) -> Model:
    """Model by key, alias, file name or path.

    Args:
        ref: key or alias of `list_models` in any letter case (``qwen3-235b-a22b``, ``meta-llama/Llama-3.1-8B``), the
            name of a published file (``Qwen3-8B-Q4_K_M.gguf``), or the path of a .gguf, .safetensors, config.json,
            checkpoint folder or architecture file (.toml).
        quant: storage mix, see `build_model`; None for what the reference says, else the published one. A .gguf or
            .safetensors file states its own formats and takes none; its config.json does.

    Raises:
        UnknownName: no such model or mix (carries the nearest names).
        BadFile: a file that cannot be read as what it claims to be.
    """
    path = _existing_path(ref)
    if path is not None:
        return _load_path(path, quant)
    try:
        key, named = identify_file_name(ref)
    except UnknownName:
        if "/" in ref and ref.lower().endswith(_FILE_ENDS):
            raise BadFile(f"{ref[:200]}: there is no such file, and its name stands for no known model") from None
        raise
    return build_model(read_facts(_folder() / f"{key}.toml"), quant or named)


def load_facts(ref: str) -> Facts:
    """Facts of a model of the library, by key or alias.

    Raises:
        UnknownName: no such model.
    """
    return read_facts(_folder() / f"{identify_file_name(ref)[0]}.toml")


@cache
def list_models() -> tuple[str, ...]:
    """Keys of all models of the library, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


def identify_file_name(name: str) -> tuple[str, str | None]:
    """Key and storage mix that a published name stands for, without reading any model file.

    Understands ``Qwen3-235B-A22B-Instruct-2507-Q4_K_M-00001-of-00003.gguf`` and
    ``unsloth/Qwen3-235B-A22B-GGUF:Q4_K_M``.

    Raises:
        UnknownName: the model is not in the library.
    """
    text = name.strip().replace("\\", "/").rstrip("/")
    for end in _FILE_ENDS:
        if text.lower().endswith(end):
            text = text[: -len(end)]
    text = _SPLIT.sub("", text)
    quant = None
    if matched := _QUANT.search(text):
        quant, text = matched[1].lower().replace("-", "_"), text[: matched.start()]
    elif ":" in text:
        text, _, quant = text.rpartition(":")
    if quant == "mxfp4" and name.strip().lower().endswith(".gguf"):
        quant = "mxfp4_moe"  # what llama.cpp calls its files of that format
    stem = _normalised(text)
    key = _find(stem)
    if key is None:
        raise UnknownName("model", text.rsplit("/", 1)[-1][:80] or name[:80], list_models())
    return key, quant or None


def _find(stem: str) -> str | None:
    """The longest known name that starts `stem` and leaves only words that do not matter."""
    known = frozenset(list_models())
    if stem in known:
        return stem
    aliases = _aliases()
    words = stem.split("-")
    for length in range(len(words), 0, -1):
        if not all(word in _HARMLESS or word.isdecimal() for word in words[length:]):
            return None
        start = "-".join(words[:length])
        if start in aliases:
            return aliases[start]
    return None


@cache
def _aliases() -> Mapping[str, str]:
    """Key by every normalised name; reads all architecture files, so only names that are not keys come here."""
    found = {key: key for key in list_models()}
    for key in list_models():
        for alias in read_toml(_folder() / f"{key}.toml").get("aliases", ()):
            found.setdefault(_normalised(alias), key)
    return MappingProxyType(found)


def _normalised(name: str) -> str:
    """Last part of a path in lower case, words joined by hyphens."""
    return re.sub(r"[\s_-]+", "-", name.rsplit("/", 1)[-1].lower()).strip("-")


def _folder() -> Path:
    return data_folder("models") / "architectures"


def _existing_path(ref: str) -> Path | None:
    """The path that `ref` names, None when nothing is there."""
    if not ref or len(ref) > _LONGEST_REFERENCE or "\0" in ref:
        raise UnknownName("model", ref[:80], list_models())
    path = Path(ref).expanduser() if ref.startswith("~/") else Path(ref)
    looks_like_path = ref.lower().endswith(_FILE_ENDS) or "/" in ref or "\\" in ref or ref in {".", ".."}
    try:
        return path if looks_like_path and path.exists() else None
    except OSError:
        return None


def _load_path(path: Path, quant: str | None) -> Model:
    from stowplan.models.config_json import read_config
    from stowplan.models.gguf import read_gguf
    from stowplan.models.safetensors import read_checkpoint

    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return read_gguf(path, quant)
    if suffix == ".toml":
        return build_model(read_facts(path), quant)
    if suffix == ".safetensors" or path.name.endswith(".safetensors.index.json"):
        return read_checkpoint(path, quant)
    if path.is_dir():
        parts = sorted(path.glob("*.gguf"))
        if parts:
            return read_gguf(parts[0], quant)
        if quant is None and (path / "config.json").exists() and any(path.glob("*.safetensors")):
            return read_checkpoint(path, quant)
        return build_model(read_config(path), quant)
    if suffix == ".json":
        return build_model(read_config(path), quant)
    raise BadFile(f"{path}: is neither .gguf, .safetensors, .toml nor a config.json")
