"""Where the data folders are, in a checkout and in an installed wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from stowplan.errors import BadFile

_PACKAGE = Path(__file__).resolve().parent
_LARGEST_FILE = 4 * 2**20


def data_folder(name: str) -> Path:
    """Folder of shipped data: ``hwprofiles``, ``models`` or ``traces``.

    A wheel carries them inside the package; an editable install reads the checkout's own folders.
    """
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parents[1] / name


def read_toml(path: Path) -> dict[str, Any]:
    """Contents of a TOML file of at most 4 MiB.

    Raises:
        BadFile: missing, too large, not UTF-8 or not TOML.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise BadFile(f"{path}: larger than 4 MiB; a data file of stowplan is a few kilobytes")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number of 5,000 digits, nested too deeply
        raise BadFile(f"{path}: is not valid TOML ({error})") from error
