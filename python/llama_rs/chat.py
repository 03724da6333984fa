"""Conversations: messages to the prompt that a model was trained for, by the template in its file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _core
from .errors import UnsupportedModelError
from .options import Messages

if TYPE_CHECKING:
    from .model import Model

TEMPLATE = "tokenizer.chat_template"


class ChatTemplate:
    """The template of a model: what makes a prompt of messages."""

    def __init__(self, model: Model, *, for_tools: bool = False) -> None:
        metadata, tokenizer = model.metadata, model.tokenizer
        source = metadata.get(f"{TEMPLATE}.tool_use") if for_tools else None
        source = source or metadata.get(TEMPLATE)
        if source is not None and not isinstance(source, str):
            raise UnsupportedModelError(f"{model.path}: {TEMPLATE} is no text", model.path)
        if source is None and len(tokenizer.encode("<|im_start|>", add_special=False)) != 1:
            raise UnsupportedModelError(
                f"{model.path}: the model has no chat template ({TEMPLATE}): write the prompt yourself, for generate",
                model.path,
            )
        self._core = _core.Chat(tokenizer._core, source, model.path)
        names = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
        self._special = {
            name: "" if token is None else tokenizer.token_bytes(token).decode(errors="replace")
            for name, token in names.items()
        }

    def encode(
        self,
        messages: Messages,
        *,
        at_most: int,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The tokens of the prompt. Nothing that a message says is a control token."""
        written: dict[str, Any] = {"messages": checked(messages)}
        if tools is not None:
            written["tools"] = tools
        trusted = {"add_generation_prompt": add_generation_prompt, **self._special, **(options or {})}
        ids: list[int] = self._core.encode(trusted, written, int(time.time()), at_most)
        return ids

    def encode_each(
        self, messages: Messages, beginnings: Sequence[str], *, options: Mapping[str, Any] | None, now: int
    ) -> list[list[int]]:
        """The tokens of the prompt with each of these texts as the beginning of the answer."""
        trusted = {"add_generation_prompt": True, **self._special, **(options or {})}
        return self._core.encode_each(trusted, {"messages": checked(messages)}, now, 1 << 32, beginnings)


def checked(messages: Messages) -> Sequence[Mapping[str, Any]]:
    """The messages, if they are some.

    Raises:
        TypeError: if they are no sequence of mappings.
        ValueError: if there are none, or one has no role.
    """
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    given: object = messages  # whatever its type says
    if not isinstance(given, Sequence) or isinstance(given, (bytes, bytearray)):
        raise TypeError(f"messages are of type {type(messages).__name__}, they must be text or a sequence of dicts")
    if not messages:
        raise ValueError("there are no messages: there must be at least one")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"message {i} is of type {type(message).__name__}, it must be a dict")
        if not isinstance(message.get("role"), str):
            raise ValueError(f"message {i} has no role: it must have one, such as user")
    return messages
