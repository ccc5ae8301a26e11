"""Every command's ``--json`` output follows the schema that `stowplan schema` publishes for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, RootModel, ValidationError
from typer.testing import CliRunner

from stowplan.cli.app import app
from stowplan.cli.published import SCHEMAS
from stowplan_calibrate import engine_logs

TEXTS = Path(__file__).resolve().parents[2] / "tests" / "calibrate" / "recorded"
PROFILE = str(TEXTS / "profile-epyc.toml")
TRACE = "azure-2023-conversation-first-400"
SMALL = ("llama-3.2-1b", "--quant", "q4_k_m", "--on", "rtx-3060-laptop-16")
SERVED = ("--engine", "vllm", "--model", "llama-3.2-1b", "--quant", "f16", "--on", "h100-sxm")
LISTS = ("machines", "gpus", "cpus", "memory", "disks", "links", "models", "formats", "mixes", "systems")


@cache
def printed(*words: str) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.stdout
