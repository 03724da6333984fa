"""Modules that are imported when something of them is used: importing numpy takes longer than opening a model."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any


class Lazy(ModuleType):
    """Stands for a module. Annotations that name it resolve, as :func:`typing.get_type_hints` does."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)
