"""Functions of Python as tools of a model: their description, and what they give when the model calls them.

The loop is the caller's, and short:

>>> messages = [{"role": "user", "content": "Is it warm in Lisbon?"}]
>>> while (done := model.chat(messages, tools=[weather])).tool_calls:
...     messages += [done.message, *run_tools(done.tool_calls, [weather])]
>>> print(done.content)
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, Union

from .chat import ToolCall

_SIMPLE: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def schema(function: Callable[..., Any]) -> dict[str, Any]:
    """A function as OpenAI's API describes one: its parameters by their types, what they mean by its docstring.

    The docstring's first paragraph says what it does; in a section ``Args:`` a line ``name: meaning`` is about a
    parameter.

    Raises:
        TypeError: if a parameter has a type that JSON does not have.
    """
    hints = typing.get_type_hints(function)
    summary, meanings = _docstring(function)
    properties: dict[str, Any] = {}
    required = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        described = _of_type(hints.get(name, Any), f"{_name(function)}: parameter {name}")
        if name in meanings:
            described["description"] = meanings[name]
        if parameter.default is parameter.empty:
            required.append(name)
        elif isinstance(parameter.default, (str, int, float, bool)):
            described["default"] = parameter.default
        properties[name] = described
    parameters = {"type": "object", "properties": properties, "required": required}
    return {
        "type": "function",
        "function": {"name": _name(function), "description": summary, "parameters": parameters},
    }


def run_tools(tool_calls: Iterable[ToolCall], tools: Sequence[Callable[..., Any]]) -> list[dict[str, Any]]:
    """Calls the functions that a model calls, and gives their results as messages for it.

    What a function returns becomes text, as JSON unless it is text. A call of an unknown function, or one with
    arguments that it does not take, becomes a message that says so: a model can try again. What a function raises
    goes up.
    """
    functions = {_name(function): function for function in tools}
    messages = []
    for call in tool_calls:
        content = _result(functions.get(call.name), call)
        messages.append({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": content})
    return messages


def _result(function: Callable[..., Any] | None, call: ToolCall) -> str:
    if function is None:
        return f"error: there is no function {call.name}"
    try:
        arguments = json.loads(call.arguments or "{}")
        inspect.signature(function).bind(**arguments)
    except (ValueError, TypeError) as e:
        return f"error: {call.name} cannot be called with these arguments: {e}"
    result = function(**arguments)
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Its first paragraph, and what it says of parameters."""
    text = inspect.getdoc(function) or ""
    summary = " ".join(re.split(r"\n\s*\n|\n(?:Args|Parameters|Returns|Raises):", text, maxsplit=1)[0].split())
    meanings: dict[str, str] = {}
    section = re.search(r"^(?:Args|Parameters):[ \t]*\n((?:[ \t]+.*\n?|\s*\n)+)", text, re.MULTILINE)
    last = None
    for line in section[1].splitlines() if section else []:
        if item := re.match(r"\s+\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)", line):
            last = item[1]
            meanings[last] = item[2].strip()
        elif last and line.strip():
            meanings[last] += f" {line.strip()}"
    return summary, meanings


def _of_type(hint: Any, what: str) -> dict[str, Any]:
    """The JSON schema of a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return {}
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if origin is typing.Annotated:
        described = _of_type(arguments[0], what)
        meaning = next((extra for extra in arguments[1:] if isinstance(extra, str)), None)
        return {**described, "description": meaning} if meaning else described
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        kinds = [_of_type(argument, what) for argument in arguments]
        return {"anyOf": kinds}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    if hint in (list, tuple, set) or origin in (list, tuple, set, Sequence, Iterable):
        items = [_of_type(argument, what) for argument in arguments[:1]]
        return {"type": "array", "items": items[0] if items else {}}
    if hint is dict or origin in (dict, Mapping):
        values = _of_type(arguments[1], what) if len(arguments) == 2 else {}
        return {"type": "object", "additionalProperties": values} if values else {"type": "object"}
    if typing.is_typeddict(hint):
        fields = typing.get_type_hints(hint)
        properties = {name: _of_type(kind, what) for name, kind in fields.items()}
        return {"type": "object", "properties": properties, "required": sorted(hint.__required_keys__)}
    raise TypeError(f"{what} is of type {getattr(hint, '__name__', hint)}, which JSON does not have")
