"""Packages that are called like a command: `edgeconvnext.quantize(...)` runs it, `edgeconvnext.quantize.plan` is a module.

Python puts a package into its parent under its own name when it is first imported, over the function of that name.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class CommandPackage(ModuleType):
    """A package whose call is the function of the same name in `edgeconvnext.api`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._command()(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._command())

    def _command(self) -> Any:
        return getattr(import_module("edgeconvnext.api"), self.__name__.rpartition(".")[2])


def make_callable(package: str) -> None:
    """Let the package of this full name be called."""
    sys.modules[package].__class__ = CommandPackage
