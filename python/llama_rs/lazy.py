"""Modules that are imported when something of them is used: importing numpy takes longer than opening a model."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class Lazy(ModuleType):
    """Stands for a module. Annotations that name it resolve, as :func:`typing.get_type_hints` does."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:  # while others are imported, see `import_click`
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def import_click() -> None:
    """Imports click without ``inspect``, which takes a quarter of the time that it does.

    No command uses that, but for :func:`inspect.cleandoc` of each help, which is a line of text. Click gets what
    imports it when something else of it is used; for everybody else it is a module that was not imported yet.
    """
    name = "inspect"
    if name in sys.modules:
        return
    stand_in = sys.modules[name] = Lazy(name)
    vars(stand_in)["cleandoc"] = _cleandoc
    try:
        import_module("click")
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def _cleandoc(text: str) -> str:
    return import_module("inspect").cleandoc(text) if "\n" in text else text.expandtabs().lstrip()
