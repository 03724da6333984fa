"""What commands take, declared once, as data: the decorators are spelt as click's, and only keep what they are told.

Click makes help, completions and messages of it (``clicked.py``), and importing it takes longer than opening a model.
What most people write needs none of that: :meth:`Command.parse` takes the arguments of which it is certain, and leaves
all others to click, which begins anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from ..lazy import TYPE_CHECKING
from .kinds import Kind

if TYPE_CHECKING:
    from typing import Any, TypedDict, TypeVar, Unpack

    F = TypeVar("F", bound=Callable[..., Any])

    class Settings(TypedDict, total=False):
        """What can be said of an option or an argument, as click has it; of anything else `parse` would not know."""

        type: Kind
        default: Any
        required: bool
        is_flag: bool
        multiple: bool
        nargs: int
        metavar: str
        help: str | Callable[[], str]
        show_default: bool | str


TEXT = Kind()


class Parameter:
    """An option or an argument of a command."""

    def __init__(self, names: Sequence[str], settings: Settings) -> None:
        self.names, self.settings = names, settings
        self.is_option = names[0].startswith("-")
        self.is_flag = settings.get("is_flag", any("/" in name for name in names))
        self.is_list = settings.get("multiple", False) or settings.get("nargs") == -1
        self.kind = settings.get("type", TEXT)
        said = [name for name in names if not name.startswith("-")]
        long = [name.partition("/")[0][2:].replace("-", "_") for name in names if name.startswith("--")]
        self.name = (said or long)[0]
        """That of the keyword for it."""

    def spellings(self) -> Iterator[tuple[str, bool | None]]:
        """How an option is spelt, and the value that each spelling stands for; None if one must follow."""
        for name in self.names:
            on, slash, off = name.partition("/")
            if name.startswith("-"):
                yield on, True if self.is_flag else None
            if slash:
                yield off, False

    def value(self, given: Any) -> Any:
        """The value of what was given, None for nothing; a ValueError if there is something wrong with it."""
        if given is None and self.settings.get("required", not self.is_option and not self.is_list):
            raise ValueError("it is missing")
        if given is None:
            given = self.settings.get("default", False if self.is_flag else None)
        if self.is_list:
            return tuple(map(self._converted, given or ()))
        return given if given is None or self.is_flag else self._converted(given)

    def _converted(self, given: Any) -> Any:
        if self.kind.reads and not os.path.isfile(given):
            raise ValueError("what is no file can be read once, and click may have to")
        return self.kind.convert(given)


class Command:
    """A command: a function, and what it takes.

    With ``with_given`` it is told, as ``given``, the names of those parameters that do not have their defaults.
    """

    def __init__(self, name: str, callback: Callable[..., Any], *, with_given: bool) -> None:
        self.name, self.callback, self.with_given = name, callback, with_given
        self.help = callback.__doc__ or ""
        self.parameters: list[Parameter] = vars(callback).pop("declared", [])[::-1]  # decorators run from below

    def parse(self, words: Sequence[str]) -> dict[str, Any] | None:
        """The keywords for the function, as click would have them; None if there is anything unusual in the words."""
        try:
            given = self._given(words)
            values = {parameter.name: parameter.value(given.get(parameter.name)) for parameter in self.parameters}
        except (ValueError, LookupError, StopIteration):
            return None
        return values | {"given": set(given)} if self.with_given else values

    def _given(self, words: Sequence[str]) -> dict[str, Any]:
        """What was given for which parameter."""
        spelt = {name: (option, constant) for option in self.parameters for name, constant in option.spellings()}
        given: dict[str, Any] = {}
        texts: list[str] = []
        rest = iter(words)
        for word in rest:
            if word == "--":
                texts += rest
            elif word == "-" or not word.startswith("-"):
                texts.append(word)
            else:
                name, equals, text = word.partition("=")
                option, constant = spelt[name]
                if equals and (option.is_flag or not name.startswith("--")):
                    raise ValueError("an option that takes no value, or no = before it")
                if option.is_flag:
                    given[option.name] = constant
                elif option.is_list:
                    given.setdefault(option.name, []).append(text if equals else next(rest))
                else:
                    given[option.name] = text if equals else next(rest)
        for argument in [p for p in self.parameters if not p.is_option]:
            if texts:
                given[argument.name] = texts[:] if argument.is_list else texts[0]
                del texts[: None if argument.is_list else 1]
        if texts:
            raise ValueError("more arguments than the command takes")
        return given


def option(*names: str, **settings: Unpack[Settings]) -> Callable[[F], F]:
    """Declares an option of a command, as ``click.option`` does."""

    def declare(function: F) -> F:
        vars(function).setdefault("declared", []).append(Parameter(names, settings))
        return function

    return declare


argument = option
"""Declares an argument of a command, as ``click.argument`` does."""


def command(name: str, *, with_given: bool = False) -> Callable[[Callable[..., Any]], Command]:
    """Makes a command of a function."""
    return lambda function: Command(name, function, with_given=with_given)
