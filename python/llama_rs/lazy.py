"""What is imported when it is used: importing ``typing`` takes as long as Python does to start, and numpy far longer.

A module on the way to the first token imports what costs next to nothing, and takes the others from here. Annotations
that name them resolve, as :func:`typing.get_type_hints` does. What has to be there for a type checker alone stands
behind ``TYPE_CHECKING``, which type checkers know by its name.
"""

from __future__ import annotations

import sys
from collections import namedtuple

TYPE_CHECKING = False


def load(name: str) -> types.ModuleType:
    """The module of that name: ``importlib`` is slower than what it imports."""
    __import__(name)
    return sys.modules[name]


class Lazy(type(sys)):  # type: ignore[misc]  # a module
    """Stands for a module."""

    def __getattr__(self, name: str) -> typing.Any:
        if sys.modules.get(self.__name__) is self:  # while others are imported, see `import_click`
            del sys.modules[self.__name__]
        return getattr(load(self.__name__), name)


if TYPE_CHECKING:
    import signal as signal
    import types as types
    import typing as typing
    from typing import Generic as Generic
    from typing import NamedTuple as NamedTuple

    import numpy
    import numpy.typing

    from . import async_chat as async_chat
    from . import chat as chat
    from . import classify as classify
    from . import engine as engine
    from . import hints as hints
    from . import model as model
    from . import residency as residency
    from . import session as session

    np, npt = numpy, numpy.typing
else:
    import _signal as signal  # noqa: F401  # what does it: the module of that name makes enums of its constants

    types, typing, np, npt = map(Lazy, ("types", "typing", "numpy", "numpy.typing"))
    async_chat, chat, classify, engine, hints, model, residency, session = (
        Lazy(f"{__package__}.{name}")
        for name in ("async_chat", "chat", "classify", "engine", "hints", "model", "residency", "session")
    )

    class _Fields(type):
        """Makes a named tuple of a class, as that of ``typing`` does."""

        def __new__(cls, name, bases, body):
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = body["__annotations__"]
            defaults = [body[field] for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults)
            for key in body.keys() - fields.keys():
                setattr(made, key, body[key])
            return made

    class NamedTuple(metaclass=_Fields):
        """``typing.NamedTuple``, for those who cannot wait for ``typing``."""

    class Generic:
        """``typing.Generic`` likewise."""

        def __class_getitem__(cls, parameters):
            return cls


def import_click() -> None:
    """Imports click without ``inspect``, which takes a quarter of the time that it does.

    No command uses that, but for :func:`inspect.cleandoc` of each help, which is a line of text. Click gets what
    imports it when something else of it is used; for everybody else it is a module that was not imported yet.
    """
    name = "inspect"
    if name in sys.modules:
        return
    stand_in = sys.modules[name] = Lazy(name)
    stand_in.__dict__["cleandoc"] = _cleandoc
    try:
        load("click")
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def _cleandoc(text: str) -> str:
    if "\n" not in text:
        return text.expandtabs().lstrip()
    from inspect import cleandoc

    return cleandoc(text)
