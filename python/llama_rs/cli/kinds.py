"""Kinds of values: what becomes of the text that an option or an argument is given as."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from ..lazy import TYPE_CHECKING
from ..options import Parameter
from ..output import shorten

if TYPE_CHECKING:
    from typing import Any

MOST_GRAMMAR = 1 << 20
"""Characters of a grammar or a schema that are read; the library takes a quarter of them."""


def is_utf8(argument: str) -> bool:
    """Whether an argument of the process was text: other bytes are surrogates in it."""
    return argument.isascii() or not any("\ud800" <= c <= "\udfff" for c in argument)


class Kind:
    """Text as it is; and what others may say beside what they convert it to."""

    name = "text"
    """What help calls the value of an option, in capitals."""

    metavar: str | None = None
    """What it calls any value, instead."""

    completed: str | None = None
    """Shells complete it with what they know: ``file`` or ``dir``."""

    choices: Sequence[str] = ()
    """All that it may be, if there are only so many."""

    reads = False
    """Whether it reads from the file that it is the name of."""

    def convert(self, value: Any) -> Any:
        """The value of a text, or of a default; a ValueError says what is wrong with it."""
        return value

    def names(self, beginning: str) -> Iterable[str]:
        """What shells complete it with, beside that."""
        return [choice for choice in self.choices if choice.startswith(beginning)]


class Choice(Kind):
    """One of some words."""

    def __init__(self, choices: Iterable[str]) -> None:
        self.choices = tuple(choices)
        self.metavar = f"[{'|'.join(self.choices)}]"

    def convert(self, value: Any) -> Any:
        if value not in self.choices:
            raise ValueError(f"{value!r} is not one of {', '.join(map(repr, self.choices))}")
        return value


class Path(Kind):
    """The name of a file. If there is one of that name, it must be of the right kind, and open to the user."""

    def __init__(
        self,
        *,
        exists: bool = False,
        file_okay: bool = True,
        dir_okay: bool = True,
        writable: bool = False,
        allow_dash: bool = False,
    ) -> None:
        self.exists, self.writable, self.allow_dash = exists, writable, allow_dash
        self.file_okay, self.dir_okay = file_okay, dir_okay
        self.name = "file" if not dir_okay else "directory" if not file_okay else "path"
        self.completed = "file" if file_okay else "dir"

    def convert(self, value: Any) -> Any:
        wrong = "" if self.allow_dash and value == "-" else self._wrong(value)
        if wrong:
            raise ValueError(f"{self.name.title()} {os.fsencode(value).decode(errors='replace')!r} {wrong}")
        return value

    def _wrong(self, path: str) -> str:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return "does not exist" if self.exists else ""
        if not self.file_okay and stat.S_ISREG(mode):
            return "is a file"
        if not self.dir_okay and stat.S_ISDIR(mode):
            return "is a directory"
        if not os.access(path, os.R_OK):
            return "is not readable"
        return "is not writable" if self.writable and not os.access(path, os.W_OK) else ""


class ModelPath(Path):
    """A model file or directory, or the name of one."""

    def names(self, beginning: str) -> Iterable[str]:
        """Names, once there is the beginning of one: shells hide files behind them."""
        from .. import stores

        return [model.name for model in stores.find() if model.name.startswith(beginning)] if beginning else []


class Number(Kind):
    """A finite number in a range; ``above`` says that the minimum itself is out of it."""

    def __init__(
        self, kind: type[int] | type[float], minimum: float | None, maximum: float | None, above: bool = False
    ) -> None:
        self.kind = kind
        self.minimum, self.maximum, self.above = minimum, maximum, above
        self.name = "integer" if kind is int else "number"

    def convert(self, value: Any) -> Any:
        try:
            number = self.kind(value)
        except ValueError:
            what = "an integer" if self.kind is int else "a number"
            raise ValueError(f"{shorten(repr(value), 40)} is not {what}") from None
        if (
            number - number != 0  # NaN, infinity
            or (self.minimum is not None and (number < self.minimum or (self.above and number == self.minimum)))
            or (self.maximum is not None and number > self.maximum)
        ):
            raise ValueError(f"{number} is out of range, it must be {self.range()}")
        return number

    def range(self) -> str:
        if self.minimum is None:
            return "a finite number"
        if self.maximum is not None:
            return f"{'above' if self.above else 'from'} {self.minimum} to {self.maximum}"
        return f"above {self.minimum} and finite" if self.above else f"{self.minimum} or more, and finite"


class Text(Kind):
    """One of the texts of a parameter."""

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter

    def convert(self, value: Any) -> Any:
        if value == "":
            raise ValueError(f"an empty {self.parameter.name} string")
        if not is_utf8(value):
            raise ValueError("not valid UTF-8")
        return value


class InFile(Kind):
    """A text in a file; what begins as an object of JSON does is one itself, where JSON is wanted."""

    completed = "file"
    reads = True

    def __init__(self, parameter: Parameter) -> None:
        self.is_json = parameter.kind == "json"
        self.name = "FILE|JSON" if self.is_json else "FILE"

    def convert(self, value: Any) -> Any:
        if self.is_json and value.lstrip().startswith("{"):
            return value
        try:
            with open(value, encoding="utf-8") as f:
                return f.read(MOST_GRAMMAR)
        except OSError as e:
            raise ValueError(f"{value}: {e.strerror}") from None
        except UnicodeDecodeError as e:
            raise ValueError(f"{value}: not UTF-8 text at byte {e.start}") from None


class Adapter(Kind):
    """An adapter, and how strong it is: ``FILE`` or ``FILE:0.5``."""

    name = "adapter"
    completed = "file"

    def convert(self, value: Any) -> tuple[str, float]:
        path, colon, number = value.rpartition(":")
        if colon and path and not os.path.exists(value):
            try:
                return path, float(number)
            except ValueError:
                pass  # it is a name with a colon in it
        if not value:
            raise ValueError("the name of an adapter is empty")
        return value, 1.0
