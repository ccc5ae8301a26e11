"""Where every byte of a language model should live, and how fast it will be.

The functions have the commands' names and options: `plan`, `predict`, `simulate`, `replay`, `whatif`, `sweep`; they are
described in `stowplan.whatif.api`. Importing the package loads nothing else: each function is imported when it is used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stowplan.whatif.api import plan, predict, replay, simulate, sweep, whatif

__version__ = "0.1.0"
__all__ = ["__version__", "plan", "predict", "replay", "simulate", "sweep", "whatif"]

_MODULES = ("plan", "whatif")
"""Functions that share their name with a module of the package: the module is what is called."""


class _Callable(ModuleType):
    """A module that may be called like the function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function(self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """Makes a submodule callable when the import system binds it here."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _MODULES and isinstance(value, ModuleType):
            value.__class__ = _Callable
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"stowplan.{name}")
    if name in __all__:
        return _function(name)
    raise AttributeError(f"module 'stowplan' has no attribute '{name}'")


def _function(name: str) -> Any:
    return getattr(import_module("stowplan.whatif.api"), name)


sys.modules[__name__].__class__ = _Package
