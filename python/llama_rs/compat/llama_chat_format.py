"""Chat: messages to a prompt, by the template of the model or by a format with a name, and answers in OpenAI's shapes.

A format is a template; what people wrote never becomes a control token, whatever the format. Handlers and formatters of
your own can be registered, as in llama-cpp-python.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .. import _core
from ..chat import checked
from .llama_grammar import LlamaGrammar

if TYPE_CHECKING:
    from .llama import Llama, StoppingCriteriaList

F = TypeVar("F", bound=Callable[..., Any])

OF_THE_MODEL = "chat_template.default"
"""The name of the template in the model file."""


class Format(Protocol):
    """A formatter: messages to a prompt, in text."""

    def __call__(self, *, messages: list[Any], **kwargs: Any) -> ChatFormatterResponse: ...


@dataclass
class ChatFormatterResponse:
    """What a formatter makes of messages."""

    prompt: str
    stop: str | list[str] | None = None
    stopping_criteria: StoppingCriteriaList | None = None
    added_special: bool = False
    """Whether the prompt has its beginning-of-text."""


class LlamaChatCompletionHandlerNotFoundException(Exception):
    """There is no chat format of that name."""


def _turns(system: str, user: str, assistant: str, end: str) -> str:
    """A template in which each message stands between a header and an end."""
    return (
        "{%- set system = messages | selectattr('role', 'equalto', 'system') | list %}"
        + system
        + "{%- for m in messages %}{%- if m['role'] == 'user' %}{{ '"
        + user
        + "' + (m['content'] or '') + '"
        + end
        + "' }}{%- elif m['role'] == 'assistant' %}{{ '"
        + assistant
        + "' + (m['content'] or '') + '"
        + end
        + "' }}{%- endif %}{%- endfor %}{{ '"
        + assistant
        + "' }}"
    )


_SYSTEM = "(system[0]['content'] or '') if system else "


def _system(before: str, after: str, default: str = "") -> str:
    """A system message that is always there."""
    return "{{ '" + before + "' + (" + _SYSTEM + "'" + default + "') + '" + after + "' }}"


_CHATML = ("<|im_start|>user\\n", "<|im_start|>assistant\\n", "<|im_end|>\\n")

FORMATS: dict[str, tuple[str, list[str]]] = {
    "chatml": (_turns(_system("<|im_start|>system\\n", "<|im_end|>\\n"), *_CHATML), ["<|im_end|>"]),
    "qwen": (
        _turns(_system("<|im_start|>system\\n", "<|im_end|>\\n", "You are a helpful assistant."), *_CHATML),
        ["<|endoftext|>"],
    ),
    "llama-3": (
        "{%- for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n'"
        " + (m['content'] or '') + '<|eot_id|>' }}{%- endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
        ["<|eot_id|>"],
    ),
    "llama-2": (
        "{%- set system = messages | selectattr('role', 'equalto', 'system') | list %}"
        "{%- if system and system[0]['content'] %}"
        "{{ '[INST] <<SYS>>\\n' + system[0]['content'] + '\\n<</SYS>>' }}{%- endif %}{{ ' ' }}"
        "{%- for m in messages if m['role'] in ('user', 'assistant') %}"
        "{%- set end = ' ' if loop.index0 % 2 == 0 else '</s>' %}"
        "{%- if system and system[0]['content'] and loop.first %}{{ (m['content'] or '') + end }}"
        "{%- else %}{{ ('<s>[INST]' if m['role'] == 'user' else '[/INST]') + (m['content'] or '') + ' ' + end }}"
        "{%- endif %}{%- endfor %}{{ '[/INST]' }}",
        [],
    ),
    "mistral-instruct": (
        "{%- for m in messages %}{%- if m['role'] == 'user' %}{{ '[INST] ' + (m['content'] or '') }}"
        "{%- elif m['role'] == 'assistant' %}{{ ' [/INST]' + (m['content'] or '') + '</s>' }}"
        "{%- endif %}{%- endfor %}{{ ' [/INST]' }}",
        ["</s>"],
    ),
    "gemma": (
        _turns("", "<start_of_turn>user\\n", "<start_of_turn>model\\n", "<end_of_turn>\\n"),
        ["<end_of_turn>\n"],
    ),
    "zephyr": (
        _turns(_system("<|system|>\\n", "</s>\\n"), "<|user|>\\n\\n", "<|assistant|>\\n\\n", "</s>\\n"),
        ["</s>"],
    ),
    "vicuna": (
        "{{ 'A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user\\'s questions. ' }}"
        "{%- for m in messages if m['role'] in ('user', 'assistant') %}"
        "{{ ('USER: ' if m['role'] == 'user' else 'ASSISTANT: ') + (m['content'] or '')"
        " + (' ' if loop.index0 % 2 == 0 else '</s>') }}{%- endfor %}{{ 'ASSISTANT:' }}",
        [],
    ),
}
"""Formats by name: a template, and the strings that end an answer."""

_handlers: dict[str, Callable[..., Any]] = {}


def register_chat_completion_handler(name: str, *, overwrite: bool = False) -> Callable[[F], F]:
    """Has ``chat_format=name`` mean this handler: it takes all that ``create_chat_completion`` does, and ``llama``."""

    def register(handler: F) -> F:
        if name in _handlers and not overwrite:
            raise ValueError(
                f"Formatter with name '{name}' is already registered. Use `overwrite=True` to overwrite it."
            )
        _handlers[name] = handler
        return handler

    return register


def register_chat_format(name: str) -> Callable[[F], F]:
    """Has ``chat_format=name`` mean this formatter, which makes a :class:`ChatFormatterResponse` of messages."""

    def register(formatter: F) -> F:
        register_chat_completion_handler(name)(chat_formatter_to_chat_completion_handler(formatter))
        return formatter

    return register


def get_chat_completion_handler(name: str) -> Callable[..., Any]:
    """The handler of a format."""
    if name in _handlers:
        return _handlers[name]
    if name in FORMATS:
        return _handler_of_template(*FORMATS[name])
    if name == FUNCTION_CALLING:
        return call_functions
    formats = [*FORMATS, FUNCTION_CALLING, *_handlers]
    raise LlamaChatCompletionHandlerNotFoundException(f"Invalid chat handler: {name} (valid formats: {formats})")


def chat_formatter_to_chat_completion_handler(formatter: Format) -> Callable[..., Any]:
    """A handler that answers the prompts of a formatter."""

    def handler(*, llama: Llama, messages: list[Any], **options: Any) -> Any:
        asked = ("functions", "function_call", "tools", "tool_choice")
        made = formatter(messages=messages, **{name: options.get(name) for name in asked})
        prompt = llama.tokenize(made.prompt.encode(), add_bos=not made.added_special, special=True)
        stop = [made.stop] if isinstance(made.stop, str) else made.stop or []
        return answer(llama, prompt, stop, made.stopping_criteria, **options)

    return handler


def _handler_of_template(template: str, stop: list[str]) -> Callable[..., Any]:
    def handler(*, llama: Llama, messages: list[Any], **options: Any) -> Any:
        chat = _core.Chat(llama._tokenizer._core, template, llama.model_path)
        written = {"messages": checked(messages)}
        prompt = chat.encode({"add_generation_prompt": True}, written, int(time.time()), 1 << 32)
        return answer(llama, prompt, stop, None, **options)

    return handler


def handler_of_model(*, llama: Llama, messages: list[Any], **options: Any) -> Any:
    """Answers by the template in the model file."""
    tools = _tools(options.get("tools"), options.get("functions"))
    prompt = llama._opened.chat_prompt(messages, tools=tools)
    return answer(llama, prompt, [], None, **options)


def _tools(tools: Sequence[Any] | None, functions: Sequence[Any] | None) -> list[Any] | None:
    """The tools, those of the older form among them."""
    if functions is not None:
        return [{"type": "function", "function": function} for function in functions]
    return None if tools is None else list(tools)


def _arguments(tool: Any) -> LlamaGrammar:
    """The form of a tool's arguments."""
    return LlamaGrammar.from_json_schema(json.dumps(tool["function"].get("parameters", {"type": "object"})))


def _ends(stop: str | list[str] | None, end: list[str]) -> list[str]:
    """What ends an answer: what is asked for, and the marks of the format."""
    return [*([stop] if isinstance(stop, str) else stop or []), *end]


def answer(
    llama: Llama,
    prompt: list[int],
    end: list[str],
    stopping_criteria: StoppingCriteriaList | None,
    *,
    functions: Sequence[Any] | None = None,
    function_call: Any = None,
    tools: Sequence[Any] | None = None,
    tool_choice: Any = None,
    response_format: Any = None,
    stop: str | list[str] | None = None,
    grammar: LlamaGrammar | None = None,
    logprobs: bool | None = None,
    top_logprobs: int | None = None,
    stream: bool = False,
    **options: Any,
) -> Any:
    """Completes a prompt, in the shape of a chat."""
    if response_format is not None:
        grammar = _grammar_of(response_format) or grammar
    given = _tools(tools, functions)
    if isinstance(function_call, dict) and "name" in function_call:
        tool_choice = {"type": "function", "function": {"name": function_call["name"]}}
    tool = None
    if isinstance(tool_choice, dict) and given is not None:
        name = tool_choice["function"]["name"]
        tool = next((t for t in given if t["function"]["name"] == name), None)
        if tool is None:
            raise ValueError(f"Tool choice '{name}' not found in tools.")
        grammar = _arguments(tool)
    completion = llama.create_completion(
        prompt=prompt,
        stop=_ends(stop, end),
        stream=stream,
        grammar=grammar,
        logprobs=(top_logprobs or 0) if logprobs else None,
        stopping_criteria=stopping_criteria,
        **options,
    )
    called = tool["function"]["name"] if tool else None
    return chunks_of_chat(completion, called) if stream else chat_of(completion, called)


# The format in which any model calls functions: ChatML, in which an answer begins with what it is

FUNCTION_CALLING = "chatml-function-calling"
MOST_CALLS = 16
"""So many calls an answer may have."""

_TOLD_OF_TOOLS = """\
{%- macro told() %}{% if tools %}


You have access to the following functions:
{% for tool in tools %}

functions.{{ tool.function.name }}:
{{ tool.function.parameters | tojson }}
{% endfor %}


You can respond to users messages with either a single message or one or more function calls.

To respond with a message begin the message with 'message:', use the following format:

message:
<message>

To respond with one or more function calls begin the message with 'functions.<function_name>:', \
use the following format:

functions.<function_name>:
{ "arg1": "value1", "arg2": "value2" }
functions.<function_name>:
{ "arg1": "value1", "arg2": "value2" }{% endif %}{% endmacro -%}
"""
_FUNCTION_CALLING = (
    _TOLD_OF_TOOLS
    + """\
{%- if tools and messages[0].role != 'system' %}{{ '<|im_start|>system' + told() + '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and m.content and tools %}{{ 'message:\\n' }}{% endif %}
{{- m.content or '' }}{% if m.role == 'system' %}{{ told() }}{% endif %}
{%- for call in m.tool_calls or [] %}
{{- 'functions.' + call.function.name + ':\\n' + call.function.arguments }}
{%- endfor %}{{ '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}"""
)


def call_functions(
    *,
    llama: Llama,
    messages: list[Any],
    functions: Sequence[Any] | None = None,
    function_call: Any = None,
    tools: Sequence[Any] | None = None,
    tool_choice: Any = None,
    response_format: Any = None,
    stop: str | list[str] | None = None,
    grammar: LlamaGrammar | None = None,
    logprobs: bool | None = None,
    top_logprobs: int | None = None,
    stream: bool = False,
    **options: Any,
) -> Any:
    """Answers with a message or with calls of functions, as the model likes, or with the one that is asked for.

    Models are told of the functions also if there is no message of the system, and of what functions gave.
    """
    if isinstance(function_call, str):
        tool_choice = function_call
    elif isinstance(function_call, dict):
        tool_choice = {"type": "function", "function": {"name": function_call["name"]}}
    given = None if tool_choice in (None, "none") else _tools(tools, functions) or None
    by_name = {tool["function"]["name"]: tool for tool in given or []}
    chat = _core.Chat(llama._tokenizer._core, _FUNCTION_CALLING, llama.model_path)
    prompt = chat.encode({}, {"messages": checked(messages), "tools": given or []}, int(time.time()), 1 << 32)
    end = _ends(stop, ["<|im_end|>"])

    def then(text: str) -> list[int]:
        return llama.tokenize(text.encode(), add_bos=False)

    def chosen(*words: str, grammar: str = "root ::= word") -> str:
        """What the answer goes on with, of some words."""
        rules = f"{grammar}\nword ::= {' | '.join(map(json.dumps, words))}\n"
        completion = llama.create_completion(
            prompt, **options | {"temperature": 0, "max_tokens": None}, grammar=LlamaGrammar.from_string(rules)
        )
        word: str = completion["choices"][0]["text"]
        return word.strip().removesuffix(":").removeprefix("functions.")

    if isinstance(tool_choice, dict) and given:
        name = tool_choice["function"]["name"]
        if name not in by_name:
            raise ValueError(f"Tool with name '{name}' not found in tools")
        prompt += then(f"functions.{name}:\n")
        return answer(llama, prompt, end, None, tools=given, tool_choice=tool_choice, stream=stream, **options)

    words = [f"functions.{name}:" for name in by_name]
    name = chosen(*words, *(["message:"] if tool_choice == "auto" else [])) if given else "message"
    if name not in by_name:
        prompt += then("message:\n") if given else []
        said: dict[str, Any] = {"logprobs": logprobs, "top_logprobs": top_logprobs, "stream": stream}
        return answer(llama, prompt, end, None, response_format=response_format, grammar=grammar, **said, **options)
    if stream:
        raise ValueError("Automatic streaming tool choice is not supported")
    calls: list[tuple[str, Any]] = []
    while name in by_name and len(calls) < MOST_CALLS:
        prompt += then(f"functions.{name}:\n")
        completion = llama.create_completion(prompt, stop=end, grammar=_arguments(by_name[name]), **options)
        text = completion["choices"][0]["text"]
        if any(name == other and text == before["choices"][0]["text"] for other, before in calls):
            break  # small models go on with the same for ever
        calls.append((name, completion))
        if completion["choices"][0]["finish_reason"] == "length":
            break
        prompt += then(text + "\n")
        name = chosen(*words, grammar="root ::= word?")
    return _chat_of_calls(calls)


def _chat_of_calls(calls: list[tuple[str, Any]]) -> dict[str, Any]:
    """Completions, each the arguments of a call, as the answer of a chat."""
    whole = chat_of(calls[0][1], calls[0][0])
    message = whole["choices"][0]["message"]
    message["tool_calls"] = [
        {
            **_call(name, completion["choices"][0]["text"], completion["id"]),
            "id": f"call__{i}_{name}_{completion['id']}",
        }
        for i, (name, completion) in enumerate(calls)
    ]
    if len(calls) > 1:
        del message["function_call"]
    usages = [completion["usage"] for _, completion in calls]
    whole["usage"] = {key: sum(usage[key] for usage in usages) for key in usages[0]}
    return whole


def _grammar_of(response_format: Any) -> LlamaGrammar | None:
    """The grammar of a ``response_format``, of llama-cpp-python's form or of OpenAI's."""
    kind = response_format.get("type")
    if kind == "json_schema":
        return LlamaGrammar.from_json_schema(json.dumps(response_format["json_schema"]["schema"]))
    if kind != "json_object":
        return None
    if "schema" in response_format:
        return LlamaGrammar.from_json_schema(json.dumps(response_format["schema"]))
    return LlamaGrammar.of_json()


def _logprobs(logprobs: Any) -> Any:
    """Log-probabilities of a completion, as a chat has them."""
    if logprobs is None:
        return None
    rows = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    return {
        "content": [
            {
                "token": token,
                "bytes": None,
                "logprob": logprob,
                "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in top.items()],
            }
            for token, logprob, top in rows
        ],
        "refusal": None,
    }


def _call(name: str, arguments: str, completion_id: str) -> dict[str, Any]:
    """A tool that is called, with the arguments or a part of them."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call__0_{name}_{completion_id}", "type": "function", "function": function}


def chat_of(completion: Any, tool: str | None) -> dict[str, Any]:
    """A completion as the answer of a chat; as the call of ``tool``, if so."""
    choice = completion["choices"][0]
    message: dict[str, Any] = {"role": "assistant", "content": choice["text"]}
    finish_reason = choice["finish_reason"]
    if tool is not None:
        call = _call(tool, choice["text"], completion["id"])
        message.update(content=None, function_call=dict(call["function"]), tool_calls=[call])
        finish_reason = "tool_calls"
    return {
        "id": f"chat{completion['id']}",
        "object": "chat.completion",
        "created": completion["created"],
        "model": completion["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": _logprobs(choice["logprobs"]),
                "finish_reason": finish_reason,
            }
        ],
        "usage": completion["usage"],
    }


def chunks_of_chat(chunks: Iterator[Any], tool: str | None) -> Iterator[dict[str, Any]]:
    """The pieces of a completion as those of a chat."""
    nothing = {"role": None, "content": None, "function_call": None, "tool_calls": None}
    first = True
    for chunk in chunks:
        choice = chunk["choices"][0]

        def piece(delta: dict[str, Any], finish_reason: str | None, logprobs: Any, of: Any = chunk) -> dict[str, Any]:
            return {
                "id": f"chat{of['id']}",
                "model": of["model"],
                "created": of["created"],
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}],
            }

        if first:
            first = False
            start = {"role": "assistant"}
            yield piece(start if tool is None else nothing | start, None, None)
        finish_reason, text = choice["finish_reason"], choice["text"]
        if tool is None:
            delta = {"content": text} if finish_reason is None else {}
        elif finish_reason is None:
            call = _call(tool, text, chunk["id"])
            delta = nothing | {"function_call": dict(call["function"]), "tool_calls": [{"index": 0, **call}]}
        else:
            delta, finish_reason = nothing, "tool_calls"
        yield piece(delta, finish_reason, _logprobs(choice["logprobs"]))
