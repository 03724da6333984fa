"""Conversations: what a model is asked in messages, and its answer taken apart: thoughts, text, calls of tools."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from . import _core
from .closing import Closing
from .errors import ContextOverflowError, UnsupportedModelError
from .lazy import TYPE_CHECKING, Generic, NamedTuple, hints, np, npt, typing  # noqa: F401  # hints name numpy
from .lazy import model as _model
from .lazy import session as _session
from .options import PARAMETERS, SamplingParams, merged

TEMPLATE = "tokenizer.chat_template"

CHAT_OPTIONS = (
    "tools",
    "tool_choice",
    "reasoning",
    "reasoning_format",
    "continue_final",
    "speculative",
    "chat_family",
    "template_options",
)
"""The names of what :class:`ChatOptions` has beside the options of an answer."""

if TYPE_CHECKING:
    from typing import TypeVar

    from . import engine as _engine

    _Stream = TypeVar("_Stream", bound="_session.Stream | _engine.AsyncStream")
else:
    _Stream = object


class ToolCall(NamedTuple):
    """A call of a tool, which the model waits for the result of."""

    id: str
    name: str
    arguments: str
    """JSON, as the model wrote it: not valid if the answer was cut off in it, or if the model errs."""

    def to_openai(self) -> dict[str, typing.Any]:
        """As OpenAI's API has it, in messages and in answers."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class ToolCallDelta(NamedTuple):
    """A piece of a call: its ``id`` and ``name`` come once, before its arguments."""

    index: int  # type: ignore[assignment]  # hides a method of tuples, as OpenAI calls it so
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ChatDelta(NamedTuple):
    """A piece of an answer: more of what the model says, or of what it thinks, or of a call of a tool."""

    content: str = ""
    reasoning: str = ""
    tool_call: ToolCallDelta | None = None

    def to_openai(self) -> dict[str, typing.Any]:
        """As the ``delta`` of a chunk of OpenAI's API has it."""
        if self.tool_call is None:
            return {"reasoning_content": self.reasoning} if self.reasoning else {"content": self.content}
        index, call_id, name, arguments = self.tool_call
        if call_id is None:
            return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
        function = {"name": name, "arguments": arguments}
        return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}


class Usage(NamedTuple):
    """How many tokens an answer took."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were in the session already."""

    @property
    def total_tokens(self) -> int:
        """Those of the prompt and of the answer."""
        return self.prompt_tokens + self.completion_tokens

    def to_openai(self) -> dict[str, typing.Any]:
        """As OpenAI's API has it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class ChatCompletion(NamedTuple):
    """An answer to a conversation."""

    content: str
    """What the model says."""
    reasoning: str
    """What it thought before, if it is one that does so."""
    tool_calls: list[ToolCall]
    """The tools that it calls."""
    finish_reason: hints.ChatFinishReason
    usage: Usage
    text: str
    """All that it wrote, with the marks of thoughts and calls."""
    token_ids: list[int]
    timings: _session.Timings
    seed: int
    logprobs: list[_session.TokenLogprob] | None = None
    """How likely each of ``token_ids`` was, if that was asked for."""

    @property
    def message(self) -> dict[str, typing.Any]:
        """The answer as a message, to go on with the conversation."""
        return _message(self)

    def to_openai(self, *, model: str = "llama_rs") -> dict[str, typing.Any]:
        """As OpenAI's API has it: a ``chat.completion``."""
        import time
        import uuid

        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": self.message,
                    "finish_reason": self.finish_reason,
                    "logprobs": None if self.logprobs is None else {"content": [_openai(row) for row in self.logprobs]},
                }
            ],
            "usage": self.usage.to_openai(),
        }


class ChatAnswer(Generic[_Stream]):
    """An answer as far as it has come: streams of text, each but the last ended by a full context, taken apart."""

    def __init__(self) -> None:
        self._question: Question | None = None
        self._parser: _core.ChatParser | None = None
        self._streams: list[_Stream] = []
        self._coming: deque[ChatDelta] = deque()
        self._ended = False
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []

    def _begin(self, question: Question, stream: _Stream, seed: int) -> None:
        self._question, self._parser = question, question.parser(seed)
        self._streams.append(stream)

    def _push(self, piece: str) -> None:
        assert self._parser is not None, "it has begun"
        self._take(self._parser.push(piece))

    def _finish(self) -> None:
        self._ended = True
        reason = self._streams[-1].finish_reason
        if reason is not None and self._parser is not None:  # it was not closed before its end
            self._take(self._parser.finish(reason == "length"))

    def _take(self, pieces: Sequence[tuple[str, int, str, str]]) -> None:
        for kind, index, text, name in pieces:
            if kind == "content":
                self._content.append(text)
                self._coming.append(ChatDelta(content=text))
            elif kind == "reasoning":
                self._reasoning.append(text)
                self._coming.append(ChatDelta(reasoning=text))
            elif kind == "call":
                self._calls.append((text, name, []))
                self._coming.append(ChatDelta(tool_call=ToolCallDelta(index, text, name)))
            else:
                self._calls[index][2].append(text)
                self._coming.append(ChatDelta(tool_call=ToolCallDelta(index, arguments=text)))

    def _made_room(self) -> SamplingParams | None:
        """Makes room where the context is full, if it is to be made: how the answer goes on then."""
        question = self._question
        if question is None or not question.shifts or self._streams[-1].finish_reason != "length":
            return None
        n, most = len(self.token_ids), question.params.max_tokens
        if (most is not None and n >= most) or not question.forget(n):
            return None
        return question.params.replace(seed=None, max_tokens=None if most is None else most - n)

    def _whole(self) -> ChatCompletion:
        finish_reason, seed = self.finish_reason, self._streams[0].seed
        assert finish_reason is not None and seed is not None, "the stream has ended"
        return ChatCompletion(
            self.content,
            self.reasoning,
            self.tool_calls,
            finish_reason,
            self.usage,
            self.text,
            self.token_ids,
            self.timings,
            seed,
            self.logprobs,
        )

    @property
    def content(self) -> str:
        """What the model said so far."""
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        """What it thought so far."""
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The tools that it calls, as far as it has come."""
        return [ToolCall(call_id, name, "".join(arguments)) for call_id, name, arguments in self._calls]

    @property
    def finish_reason(self) -> hints.ChatFinishReason | None:
        """Why the answer ended; None while it has not."""
        if not self._ended or not self._streams:
            return None
        reason = self._streams[-1].finish_reason
        return "tool_calls" if reason == "stop" and self._calls else reason

    @property
    def message(self) -> dict[str, typing.Any]:
        """The answer so far as a message, to go on with the conversation."""
        return _message(self)

    @property
    def usage(self) -> Usage:
        """How many tokens it took so far."""
        timings = self.timings
        return Usage(timings.prompt_tokens, len(self.token_ids), timings.cached_tokens)

    @property
    def forgotten(self) -> int:
        """How many of the oldest messages the model was not given, because the context has no room for them."""
        return 0 if self._question is None else self._question.forgotten

    @property
    def text(self) -> str:
        """All that the model wrote so far, with the marks of thoughts and calls."""
        return "".join(stream.text for stream in self._streams)

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the answer so far, without an end token."""
        return [token for stream in self._streams for token in stream.token_ids]

    @property
    def logprobs(self) -> list[_session.TokenLogprob] | None:
        """How likely each of ``token_ids`` was, if that was asked for; None else."""
        parts = [stream.logprobs for stream in self._streams]
        return None if not parts or parts[0] is None else [row for part in parts for row in part or ()]

    @property
    def timings(self) -> _session.Timings:
        """Where the time went so far."""
        if not self._streams:
            return _session.Timings(0, 0.0, 0, 0.0, 0)
        streams = [stream.timings for stream in self._streams]
        return streams[0]._replace(
            prompt_seconds=sum(t.prompt_seconds for t in streams),
            generated_tokens=sum(t.generated_tokens for t in streams),
            generation_seconds=sum(t.generation_seconds for t in streams),
        )

    def __reduce__(self) -> typing.NoReturn:
        raise TypeError("a stream cannot be pickled: pickle its model, or the text that it gave")


class ChatStream(ChatAnswer["_session.Stream"], Iterator[ChatDelta], Closing):
    """The pieces of an answer as they come. What it has so far can be asked for at any time.

    As a context manager it is closed at the end of the block:

    >>> with model.stream_chat("What is gravity?") as stream:
    ...     for delta in stream:
    ...         print(delta.content, end="")
    """

    def __init__(self, question: Question, session: _session.Session, *, owned: bool) -> None:
        super().__init__()
        self._session = session
        self._owned = owned
        stream = question.stream(session, [], question.params)
        self._begin(question, stream, stream.seed)

    def __next__(self) -> ChatDelta:
        while not self._coming:
            if self._ended:
                raise StopIteration
            piece = next(self._streams[-1], None)
            if piece is not None:
                self._push(piece)
            elif not self._went_on():
                self._end()
        return self._coming.popleft()

    def _end(self) -> None:
        if self._owned:
            self._session.close()
        self._finish()

    def _went_on(self) -> bool:
        params = None if self._session.closed else self._made_room()
        if params is None or self._question is None:
            return False
        self._streams.append(self._question.stream(self._session, self.token_ids, params))
        return True

    def _completion(self) -> ChatCompletion:
        while not self._ended:
            # In one use of the session: nobody else finds it between two pieces.
            self._push(self._streams[-1]._completion().text)
            if not self._went_on():
                self._end()
        return self._whole()

    @property
    def seed(self) -> int:
        """The seed given, or the one drawn."""
        return self._streams[0].seed

    def close(self) -> None:
        """Ends the stream, and frees the cache if it is not that of an explicit session."""
        self._ended = True
        self._coming.clear()
        self._streams[-1].close()
        if self._owned:
            self._session.close()


def _openai(row: _session.TokenLogprob) -> dict[str, typing.Any]:
    others = [{"token": t.token, "logprob": t.logprob, "bytes": list(t.bytes)} for t in row.top_logprobs]
    return {"token": row.token, "logprob": row.logprob, "bytes": list(row.bytes), "top_logprobs": others}


def _message(answer: ChatCompletion | ChatAnswer[typing.Any]) -> dict[str, typing.Any]:
    content, reasoning, tool_calls = answer.content, answer.reasoning, answer.tool_calls
    message: dict[str, typing.Any] = {"role": "assistant", "content": content}
    if not content and (reasoning or tool_calls):
        message["content"] = None
    if reasoning:
        message["reasoning_content"] = reasoning
    if tool_calls:
        message["tool_calls"] = [call.to_openai() for call in tool_calls]
    return message


class Forgotten(NamedTuple):
    """The messages of a conversation that were left out, as the context has no room for them."""

    n: int
    first_kept: Mapping[str, typing.Any] | None


class Question:
    """What a model is asked: a prompt out of messages, and how the answer is to be read."""

    def __init__(
        self,
        model: _model.Model,
        messages: hints.Messages,
        sampling: SamplingParams | None,
        options: hints.ChatOptions,
        *,
        context_length: int,
        forgotten: Forgotten | None = None,
    ) -> None:
        rest: typing.Any = dict(options)
        ours = {name: rest.pop(name) for name in CHAT_OPTIONS if name in rest}
        self._model = model
        self._messages = checked(messages)
        self._context_length = context_length
        choice = ours.get("tool_choice")
        tools = described(ours.get("tools"))
        self._tools = None if choice == "none" else tools
        self._calls = "auto" if self._tools is not None else "none"
        self._family: str | None = ours.get("chat_family")
        self._apart: bool = ours.get("reasoning_format", "auto") != "none"
        self._speculative: typing.Any = ours.get("speculative")
        self._continue_final: bool = ours.get("continue_final", False)
        self._variables = {**of_reasoning(ours.get("reasoning")), **(ours.get("template_options") or {})}
        if (schema := schema_of_calls(choice, self._tools)) is not None:
            if "json_schema" not in PARAMETERS:
                raise ValueError(f"tool_choice is {choice!r}, it must be 'auto' or 'none'")
            self._calls = "json"
            rest["json_schema"] = schema
        self.params = merged(sampling, rest)
        self.shifts = self.params.on_overflow == "shift"
        """Whether the oldest messages are left out when the context is full."""
        if self.shifts:
            self.params = self.params.replace(on_overflow="stop")  # it is done here, at the borders of messages
        self.forgotten = 0
        """How many messages are left out: the oldest, but not what the system says."""
        self.prompt: list[int] = []
        """Its tokens, once it is prepared."""
        self._end = ""
        if forgotten and self.shifts and self._first_kept(forgotten.n) == forgotten.first_kept:
            self.forgotten = forgotten.n  # it is the same conversation

    def prepared(self) -> Question:
        """Makes the prompt, which may take a while."""
        try:
            self._encode()
        except ContextOverflowError:
            if not self.shifts or not self.forget(0):
                raise
        if self.shifts and len(self.prompt) + _ROOM >= self._context_length:
            self.forget(0)
        return self

    def _encode(self) -> None:
        first = _system(self._messages)
        kept = [*self._messages[:first], *self._messages[first + self.forgotten :]]
        self.prompt, self._end = self._model._template.prompt(
            kept,
            self._tools,
            self._variables,
            _now(),
            self._context_length,
            add_generation_prompt=True,
            continue_final=self._continue_final,
        )

    def _first_kept(self, forgotten: int) -> Mapping[str, typing.Any] | None:
        at = _system(self._messages) + forgotten
        return self._messages[at] if at < len(self._messages) else None

    def forget(self, n_answer: int) -> bool:
        """Leaves out so many of the oldest messages that half of the context is free again, the answer counted.

        Returns:
            Whether that was possible: something has to be left out, and the last message of the user stays.
        """
        from bisect import bisect_left
        from contextlib import suppress

        first, before = _system(self._messages), self.forgotten
        borders = [i - first for i, m in enumerate(self._messages) if i > first + before and m["role"] == "user"]

        def fits(border: int, limit: int) -> bool:
            self.forgotten = border
            try:
                self._encode()
            except ContextOverflowError:
                return False
            return len(self.prompt) + n_answer <= limit

        for limit in (self._context_length // 2, self._context_length - _ROOM):
            at = bisect_left(borders, True, key=lambda border: fits(border, limit))
            if at < len(borders) and fits(borders[at], limit):
                return True
        self.forgotten = before
        with suppress(ContextOverflowError):
            self._encode()
        return False

    def stream(self, session: _session.Session, answer: Sequence[int], params: SamplingParams) -> _session.Stream:
        """The answer, whose first tokens are there already."""
        marks, free_until = self.marks(params)
        prompt = [*self.prompt, *answer]
        if self.shifts:
            session._realign(prompt)
            first_kept = self._first_kept(self.forgotten)
            session._forgotten = Forgotten(self.forgotten, first_kept) if self.forgotten else None
        more: dict[str, typing.Any] = {"marks": marks, "moved": self.shifts, "speculative": self._speculative}
        if free_until is not None:
            more["free_until"] = ([free_until], False)
        return session._stream(prompt, params, owned=False, **more)

    def marks(self, params: SamplingParams) -> tuple[list[int], str | None]:
        """The control tokens that a parser has to see, and up to which marker a grammar leaves the answer free."""
        marks, answer_mark = self._model._template.marks(self._tools is not None, self._family)
        thinks = _is_constrained(params) and answer_mark is not None and self.parser(0).in_reasoning
        return marks, answer_mark if thinks else None

    def parser(self, seed: int) -> _core.ChatParser:
        """What takes the answer apart."""
        unique = (seed ^ hash(tuple(self.prompt))) & (1 << 64) - 1  # ids of calls in a conversation differ
        return self._model._template.parser(self._tools, self._calls, self._apart, self._family, self._end, unique)


_ROOM = 16
"""Tokens of an answer that there has to be room for, where room can be made."""

_CONSTRAINTS = ("response_format", "json_schema", "grammar", "regex", "choices")


def _is_constrained(params: SamplingParams) -> bool:
    return any(getattr(params, name, None) is not None for name in _CONSTRAINTS)


def _now() -> int:
    import time

    return int(time.time())


def _system(messages: Sequence[Mapping[str, typing.Any]]) -> int:
    """How many messages at the beginning are the system's."""
    return next((i for i, m in enumerate(messages) if m["role"] not in ("system", "developer")), len(messages))


def of_reasoning(reasoning: bool | str | None) -> dict[str, typing.Any]:
    """The variables by which templates know whether a model is to think, and how much."""
    if reasoning is None:
        return {}
    if isinstance(reasoning, bool):
        return {"enable_thinking": reasoning, "thinking": reasoning}
    if reasoning not in ("low", "medium", "high"):
        raise ValueError(f"reasoning is {reasoning!r}, it must be True, False, 'low', 'medium' or 'high'")
    return {"enable_thinking": True, "thinking": True, "reasoning_effort": reasoning}


def schema_of_calls(
    choice: str | Mapping[str, typing.Any] | None, tools: Sequence[Mapping[str, typing.Any]] | None
) -> dict[str, typing.Any] | None:
    """The JSON schema of an answer that has to call a tool; None if it may do as it likes.

    Raises:
        ValueError: if there is no such tool, or no such choice.
    """
    if choice is None or choice in ("auto", "none"):
        return None
    functions = {tool["function"]["name"]: tool["function"] for tool in tools or ()}
    if isinstance(choice, Mapping):
        named: dict[str, typing.Any] = dict(choice)
        name = named.get("function", named).get("name")
        if name not in functions:
            raise ValueError(f"tool_choice is the function {name!r}, and there is no such tool")
        functions = {name: functions[name]}
    elif choice in functions and choice != "required":
        functions = {choice: functions[choice]}
    elif choice != "required":
        raise ValueError(f"tool_choice is {choice!r}, it must be 'auto', 'none', 'required' or the name of a tool")
    if not functions:
        raise ValueError("tool_choice is 'required', and there are no tools")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                "arguments": function.get("parameters") or {"type": "object", "properties": {}},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, function in functions.items()
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def described(tools: hints.Tools | None) -> list[Mapping[str, typing.Any]] | None:
    """Tools as OpenAI's API describes them; functions of Python by their signature."""
    if tools is None:
        return None
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise TypeError(f"tools are of type {type(tools).__name__}, they must be a sequence of functions or dicts")
    return [_described(i, tool) for i, tool in enumerate(tools)] or None


def _described(i: int, tool: Mapping[str, typing.Any] | Callable[..., typing.Any]) -> Mapping[str, typing.Any]:
    if not isinstance(tool, Mapping):
        if not callable(tool):
            raise TypeError(f"tool {i} is of type {type(tool).__name__}, it must be a function or a dict")
        from .tools import schema

        return schema(tool)
    function: Mapping[str, typing.Any] = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
    described = tool if function is not tool else {"type": "function", "function": tool}
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"tool {i} has no name")
    return described


class ChatTemplate:
    """The template of a model: what makes a prompt of messages."""

    def __init__(self, model: _model.Model) -> None:
        sources = [model.metadata.get(key) for key in (TEMPLATE, f"{TEMPLATE}.tool_use")]
        for source in sources:
            if source is not None and not isinstance(source, str):
                raise UnsupportedModelError(f"{model.path}: {TEMPLATE} is no text", model.path)
        self._core = _core.Chat(model.tokenizer._core, sources[0], model.path, sources[1])
        self.parser = self._core.parser
        self._marks: dict[tuple[bool, str | None], tuple[list[int], str | None]] = {}

    def prompt(
        self,
        messages: Sequence[Mapping[str, typing.Any]],
        tools: Sequence[Mapping[str, typing.Any]] | None,
        variables: Mapping[str, typing.Any],
        now: int,
        at_most: int,
        *,
        add_generation_prompt: bool,
        continue_final: bool,
    ) -> tuple[list[int], str]:
        """The tokens of the prompt, and the end of its text. Nothing that a message says is a control token."""
        return self._core.prompt(messages, tools, dict(variables), now, at_most, add_generation_prompt, continue_final)

    def marks(self, with_tools: bool, family: str | None) -> tuple[list[int], str | None]:
        """The control tokens that a parser has to see, and what comes before an answer after thoughts."""
        key = (with_tools, family)
        if key not in self._marks:
            self._marks[key] = self._core.marks(*key)
        return self._marks[key]


def checked(messages: hints.Messages) -> Sequence[Mapping[str, typing.Any]]:
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
