"""``llama-rs chat --jsonl``: conversations that a program drives, a request a line, the answers in lines."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from ..chat import CHAT_OPTIONS, ChatStream, checked
from ..errors import LlamaError
from ..model import Model
from ..options import SamplingParams
from ..output import write_json
from ..session import Session

MOST_SESSIONS = 16
"""Conversations whose keys and values are kept; those of others are computed again when they go on."""

MOST_LINE = 1 << 28
"""Bytes of a request."""

_OWN = {"id", "content", "messages", "system", "stream", "close"}


class _Conversation:
    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.session: Session | None = None


def answer_lines(llama: Model, system: str | None, options: dict[str, Any]) -> None:
    """Answers the requests of standard input until that ends."""
    conversations: OrderedDict[str, _Conversation] = OrderedDict()
    for line in _lines():
        request_id: Any = None
        try:
            request = _request(line)
            request_id = request.get("id")
            _answer(llama, conversations, request, system, options)
        except (ValueError, TypeError, MemoryError, LlamaError) as e:
            write_json({"id": request_id, "error": {"type": type(e).__name__, "message": str(e)}})


def _lines() -> Iterator[bytes]:
    while line := sys.stdin.buffer.readline(MOST_LINE):
        if line.strip():
            yield line


def _request(line: bytes) -> dict[str, Any]:
    import json

    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"a request is an object of JSON in a line: {e}") from None
    if not isinstance(request, dict):
        raise TypeError("a request is an object of JSON in a line")
    if not isinstance(request.get("id", ""), str):
        raise TypeError("id is text")
    unknown = set(request) - _OWN - {*CHAT_OPTIONS, *SamplingParams.__slots__}
    if unknown:
        raise ValueError(f"a request has no {sorted(unknown)[0]!r}")
    return request


def _answer(
    llama: Model,
    conversations: OrderedDict[str, _Conversation],
    request: dict[str, Any],
    system: str | None,
    options: dict[str, Any],
) -> None:
    key = request.get("id", "")
    known = conversations.get(key)
    if request.get("close"):
        if known and known.session:
            known.session.close()
        conversations.pop(key, None)
        write_json({"id": key, "closed": True})
        return
    told = request.get("system", None if known else system)
    before = (
        [{"role": "system", "content": told}] if told else [] if "system" in request or not known else known.messages
    )
    asked = [*before]
    if "messages" in request:
        asked += [dict(message) for message in checked(request["messages"])]
    if "content" in request:
        asked.append({"role": "user", "content": request["content"]})
    if len(asked) == len(before):
        if "system" not in request:
            raise ValueError("a request has content or messages")
        conversations.setdefault(key, _Conversation()).messages = asked
        write_json({"id": key, "finish_reason": None})
        return
    session = known.session if known else None
    if session is None:
        # What it has in common with the last one, the system's message say, is shared.
        others = [c.session for c in reversed(conversations.values()) if c.session]
        session = others[0].fork() if others else llama.session()
    # Only now it is remembered: nothing of a request that is refused.
    stream = session.stream_chat(asked, **{**options, **{k: v for k, v in request.items() if k not in _OWN}})
    conversation = conversations.setdefault(key, _Conversation())
    conversations.move_to_end(key)
    conversation.session = session
    for old in list(conversations.values())[:-MOST_SESSIONS]:
        if old.session:
            old.session.close()
            old.session = None
    _write(key, stream, streamed=request.get("stream", True))
    conversation.messages = [*asked, stream.message]


def _write(key: str, stream: ChatStream, *, streamed: bool) -> None:
    for delta in stream:
        if streamed:
            write_json({"id": key, "delta": delta.to_openai()})
    done = {"message": stream.message, "finish_reason": stream.finish_reason, "usage": stream.usage.to_openai()}
    forgotten = {"forgotten": stream.forgotten} if stream.forgotten else {}
    write_json({"id": key, **done, **forgotten})
