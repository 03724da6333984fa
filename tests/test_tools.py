"""What models are told of tools, how their answers are taken apart, and conversations that outgrow the context."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from llama_rs import ChatDelta, Model, ToolCall, ToolCallDelta, _core, run_tools
from llama_rs import tools as tools_module
from llama_rs.chat import Question, described, schema_of_calls
from llama_rs.session import Timings
from test_chat import NOW, oracle


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Model:
    return Model(smollm2, threads=1, context_length=2048)


def weather(
    place: Annotated[str, "Where"], days: int = 1, unit: Literal["C", "F"] = "C", note: str | None = None
) -> Any:
    """The weather at a place,
    for some days.

    Args:
        place: which is overruled
        days: how many,
            at most five
    Returns:
        Numbers.
    """
    return {"place": place, "days": days, "unit": unit, "note": note}


def now() -> str:
    """The time."""
    return "noon"


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place, for some days.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "which is overruled"},
                "days": {"type": "integer", "description": "how many, at most five", "default": 1},
                "unit": {"enum": ["C", "F"], "default": "C"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
            "required": ["place"],
        },
    },
}


def test_a_function_is_described_by_its_signature_and_docstring() -> None:
    assert tools_module.schema(weather) == WEATHER
    inner: Any = WEATHER["function"]
    assert described([weather, WEATHER, inner]) == [WEATHER] * 3

    def typed(a: list[dict[str, int]], b: tuple[float, ...], c: Any, *rest: int, **more: int) -> None: ...

    properties = tools_module.schema(typed)["function"]["parameters"]["properties"]
    assert properties == {
        "a": {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "integer"}}},
        "b": {"type": "array", "items": {"type": "number"}},
        "c": {},
    }

    def odd(a: complex) -> None: ...

    with pytest.raises(TypeError, match="odd: parameter a is of type complex, which JSON does not have"):
        tools_module.schema(odd)
    for tools, kind, says in [
        ("x", TypeError, "tools are of type str"),
        ([1], TypeError, "tool 0 is of type int"),
        ([{"type": "function"}], ValueError, "tool 0 has no name"),
    ]:
        with pytest.raises(kind, match=says):
            described(tools)  # type: ignore[arg-type]


def test_what_functions_give_becomes_messages() -> None:
    calls = [
        ToolCall("a", "weather", '{"place": "sea", "days": 2}'),
        ToolCall("b", "now", "{}"),
        ToolCall("c", "nothing", "{}"),
        ToolCall("d", "weather", '{"plaice": 1}'),
        ToolCall("e", "weather", '{"place": "s'),
    ]
    results = run_tools(calls, [weather, now])
    assert [m["tool_call_id"] for m in results] == list("abcde")
    assert {m["role"] for m in results} == {"tool"}
    assert json.loads(results[0]["content"]) == {"place": "sea", "days": 2, "unit": "C", "note": None}
    assert results[1]["content"] == "noon"
    assert "there is no function nothing" in results[2]["content"]
    assert "missing a required argument: 'place'" in results[3]["content"]
    assert "cannot be called with these arguments" in results[4]["content"]


def test_which_calls_an_answer_may_be() -> None:
    tools = described([weather, now])
    assert schema_of_calls(None, tools) is schema_of_calls("auto", tools) is schema_of_calls("none", tools) is None
    one = schema_of_calls("now", tools)
    assert one == schema_of_calls({"type": "function", "function": {"name": "now"}}, tools)
    assert one and one["properties"]["name"] == {"const": "now"}
    both = schema_of_calls("required", tools)
    assert both and [call["properties"]["name"]["const"] for call in both["anyOf"]] == ["weather", "now"]
    for choice, says in [("x", "'x'"), ({"function": {"name": "x"}}, "no such tool")]:
        with pytest.raises(ValueError, match=says):
            schema_of_calls(choice, tools)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are no tools"):
        schema_of_calls("required", None)


class Scripted:
    """A stream of an answer that is known."""

    def __init__(self, text: str, finish_reason: str) -> None:
        self.text, self._reason = text, finish_reason
        self._pieces = iter([text[i : i + 3] for i in range(0, len(text), 3)])
        self.finish_reason: str | None = None
        self.token_ids = list(range(len(text)))
        self.timings, self.seed, self.logprobs = Timings(10, 1.0, len(text), 1.0, 4), 7, None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration:
            self.finish_reason = self._reason
            raise

    def __iter__(self) -> Iterator[str]:
        return self

    def _completion(self) -> Scripted:
        self.finish_reason = self._reason
        return self

    def close(self) -> None:
        pass


CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "sea"}}\n</tool_call>'
ANSWER = f"Let me see.\n{CALL}"


def answers(monkeypatch: pytest.MonkeyPatch, text: str, finish_reason: str = "stop") -> None:
    monkeypatch.setattr(Question, "stream", lambda *_: Scripted(text, finish_reason))


def test_an_answer_is_taken_apart(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, ANSWER)
    done = model.chat("The weather?", tools=[weather])
    assert (done.content, done.finish_reason, done.text) == ("Let me see.", "tool_calls", ANSWER)
    [call] = done.tool_calls
    assert (call.name, call.arguments) == ("weather", '{"place": "sea"}')
    assert len(call.id) == 9
    assert call.id.isalnum()
    assert (done.usage.total_tokens, done.usage.cached_tokens) == (10 + len(ANSWER), 4)
    deltas = list(model.stream_chat("The weather?", tools=[weather]))
    assert all(isinstance(delta, ChatDelta) for delta in deltas)
    assert "".join(delta.content for delta in deltas) == done.content
    parts = [delta.tool_call for delta in deltas if delta.tool_call]
    assert parts[0] == ToolCallDelta(0, call.id, "weather")
    assert "".join(part.arguments for part in parts) == call.arguments
    assert all(part.id is part.name is None for part in parts[1:])


def test_answers_are_as_openai_has_them(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, ANSWER)
    done = model.chat("The weather?", tools=[weather], chat_family="hermes", template_options={"x": "</think>"})
    whole = done.to_openai(model="m")
    [choice] = whole["choices"]
    call = {"id": done.tool_calls[0].id, "type": "function"}
    assert choice["message"]["tool_calls"] == [
        {**call, "function": {"name": "weather", "arguments": '{"place": "sea"}'}}
    ]
    assert (whole["object"], whole["model"], choice["finish_reason"]) == ("chat.completion", "m", "tool_calls")
    assert whole["usage"]["total_tokens"] == done.usage.total_tokens
    json.dumps(whole)
    # The pieces come to the same, by the rule of OpenAI's client: texts of a place are joined.
    message: dict[str, Any] = {}
    for delta in model.stream_chat("The weather?", tools=[weather]):
        piece = delta.to_openai()
        for part in piece.pop("tool_calls", []):
            calls = message.setdefault("tool_calls", [])
            if part["index"] == len(calls):
                calls.append({"id": part["id"], "type": part["type"], "function": {**part["function"]}})
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
        for name, text in piece.items():
            message[name] = message.get(name, "") + text
    assert message["content"] == done.content
    assert message["tool_calls"] == choice["message"]["tool_calls"]


def test_an_answer_that_is_cut_off(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, ANSWER[:-25], "length")
    done = model.chat("The weather?", tools=[weather])
    assert done.finish_reason == "length"
    assert ANSWER.count(done.tool_calls[0].arguments) == 1
    answers(monkeypatch, ANSWER)
    assert model.chat("?", tools=[weather], tool_choice="none").tool_calls == []
    assert model.chat("?").content == model.chat("?").text.strip() == ANSWER


def test_calls_and_results_go_back_to_the_model(model: Model) -> None:
    """SmolLM2's template knows nothing of tools: they are described in words, and nothing is lost."""
    messages: list[Mapping[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "The weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [ToolCall("a" * 9, "weather", '{"place": "sea"}').to_openai()],
        },
        {"role": "tool", "tool_call_id": "a" * 9, "content": "calm"},
    ]
    text = model.tokenizer.decode(model.chat_prompt(messages, tools=[weather]))
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.")
    assert json.dumps(WEATHER) in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"place": "sea"}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>user\n<tool_response>\ncalm\n</tool_response><|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n")


def text_of(model: Model, source: str, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
    """The end of a prompt, which is all of it here."""
    return _core.Chat(model.tokenizer._core, source, "m").prompt(messages, tools, {}, NOW, 1 << 20, True, False)[1]


def call_with(arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": arguments}}],
    }


def test_messages_become_what_a_template_takes(model: Model) -> None:
    user = {"role": "user", "content": "hello"}
    parts = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}
    said = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    added = "{% for m in messages %}{{ '[' + m.content + ']' }}{% endfor %}"
    calls = "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    cases: list[tuple[str, list[Any], str]] = [
        (said, [parts], "[user:one\n\ntwo]"),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }};{% endfor %}{% endfor %}", [parts], "one;two;"),
        # Where only parts are shown, text is one.
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", [user], "hello"),
        (said, [{"role": "developer", "content": "x"}, user], "[system:x][user:hello]"),
        (said + "{# developer #}", [{"role": "developer", "content": "x"}], "[developer:x]"),
        (added, [user, {"role": "assistant", "content": None}], "[hello][]"),
        (said, [{"role": "assistant", "content": None}], "[assistant:]"),
        (
            said + "{{ raise_exception('no') if messages[0].role == 'system' }}",
            [{"role": "system", "content": "s"}, user],
            "[user:s\n\nhello]",
        ),
        # Arguments as an object, or as text, whatever they come as.
        *[
            (calls + source + "{% endfor %}{% endfor %}", [call_with(arguments)], expected)
            for arguments in ({"a": [1, None, "é"]}, '{"a": [1, null, "é"]}')
            for source, expected in [
                ("{{ c.function.arguments | tojson }}", '{"a": [1, null, "é"]}'),
                ("{{ c.function.arguments.a | length }}", "3"),
                ("{{ 'x' + c.function.arguments }}", 'x{"a": [1, null, "é"]}'),
                ("{{ 'x' ~ c.function.arguments }}", 'x{"a": [1, null, "é"]}'),
                (
                    "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}",
                    '{"a": [1, null, "é"]}',
                ),
            ]
        ],
        # What a tool is called is known by the id of its call; thoughts have several names.
        (
            "{% for m in messages %}{{ m.name }}{% endfor %}",
            [call_with("{}"), {"role": "tool", "tool_call_id": "abcdefghi", "content": "x"}],
            "f",
        ),
        (
            "{{ messages[0].thinking }}",
            [{"role": "assistant", "content": "x", "reasoning_content": "why"}],
            "why",
        ),
        # Where one call at a time is taken, each is a message, with its result after it.
        (
            "{% for m in messages %}{{ raise_exception('one') if m.tool_calls and m.tool_calls|length > 1 }}"
            "{{ m.tool_calls[0].id if m.tool_calls else m.tool_call_id }} {% endfor %}",
            [
                {"role": "assistant", "tool_calls": [{"id": i, "function": {"name": "f"}} for i in "ab"]},
                *({"role": "tool", "tool_call_id": i, "content": "x"} for i in "ba"),
            ],
            "a a b b ",
        ),
    ]
    for source, messages, expected in cases:
        assert text_of(model, source, messages) == expected, source
    for part in ({"type": "image_url", "image_url": {"url": "x"}}, {"type": "input_audio"}, {}):
        with pytest.raises(ValueError, match=r"message 0 has a part of type .*: this model is given text only"):
            text_of(model, said, [{"role": "user", "content": [part]}])


def test_messages_that_a_template_takes_as_they_are_are_left_so(model: Model) -> None:
    from test_chat import CONVERSATIONS, TEMPLATES, TOOLS

    n = 0
    for name, source in TEMPLATES.items():
        for conversation in ("one", "system", "turns", "tools"):
            messages = CONVERSATIONS[conversation]
            special = {"bos_token": "", "eos_token": "<|im_end|>"}
            variables = {"messages": messages, "tools": TOOLS, "add_generation_prompt": True, **special}
            try:
                expected = oracle(source, variables)
            except Exception:
                continue
            if "tools" not in source or len(expected) > 1000 or name == "calls_between_marks":
                continue
            ids, _ = _core.Chat(model.tokenizer._core, source, "m").prompt(
                messages, TOOLS, {}, NOW, 1 << 20, True, False
            )
            decoded = model.tokenizer.decode(ids)
            bos = model.tokenizer.token_bytes(model.tokenizer.bos or 0).decode()
            special["bos_token"] = bos
            assert decoded == oracle(source, {**variables, **special}), (name, conversation)
            n += 1
    assert n > 5


def test_nothing_of_tools_is_a_control_token(model: Model) -> None:
    rng = random.Random(2)
    vocabulary = range(model.tokenizer.vocab_size)
    names = [model.tokenizer.token_bytes(i).decode() for i in vocabulary if model.tokenizer.is_special(i)]
    for source in (
        None,
        "{{ messages | tojson }}{{ tools | tojson }}",
        "{{ messages | tojson(ensure_ascii=true) }} {{ tools }}",
    ):
        chat = _core.Chat(model.tokenizer._core, source, "m")

        def control_tokens(text: str, chat: _core.Chat = chat) -> int:
            messages = [
                {"role": "user", "content": text},
                {**call_with({text: [text, {"x": text}]}), "content": text, "reasoning_content": text},
                {**call_with(json.dumps({text: text})), "content": text},
                {"role": "tool", "tool_call_id": "abcdefghi", "name": text, "content": text},
            ]
            tool = {"name": text, "description": text, "parameters": {"properties": {text: {"type": text}}}}
            tools = [{"type": "function", "function": tool}]
            ids, _ = chat.prompt(messages, tools, {}, NOW, 1 << 20, True, False)
            return sum(map(model.tokenizer.is_special, ids))

        expected = control_tokens("x")
        for _ in range(60):
            parts = [rng.choice(names) for _ in range(rng.randrange(1, 4))]
            parts = [part[: rng.randrange(len(part) + 1)] if rng.random() < 0.3 else part for part in parts]
            text = "".join(parts) + rng.choice(["", "<", "|>", "\\", '"', "\n"])
            assert control_tokens(text) == expected, text


def test_a_parser_says_so_if_there_is_no_such_family(model: Model) -> None:
    with pytest.raises(ValueError, match=r"chat_family is \"nonsense\", it must be one of gpt_oss, "):
        model.chat("x", chat_family="nonsense")
    with pytest.raises(ValueError, match="reasoning is 'much'"):
        model.chat("x", reasoning="much")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="nonsense"):
        model.chat("x", nonsense=1)  # type: ignore[call-arg]


def test_the_end_of_a_prompt_may_be_the_beginning_of_the_answer(model: Model) -> None:
    messages = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It is"}]
    prompt = model.tokenizer.decode(model.chat_prompt(messages, continue_final=True))
    assert prompt.endswith("<|im_start|>assistant\nIt is")
    # A template that has the model think: the answer begins amid its thoughts.
    source = "{{ messages[0].content }}<think>\n{# </think> #}"
    chat = _core.Chat(model.tokenizer._core, source, "m")
    _, end = chat.prompt([{"role": "user", "content": "x"}], None, {}, NOW, 1 << 20, True, False)
    parser = chat.parser(None, "none", True, None, end, 0)
    assert parser.in_reasoning
    assert parser.push("why</think>so") == [("reasoning", 0, "why", ""), ("content", 0, "so", "")]
    plain = chat.parser(None, "none", False, None, end, 0)
    assert plain.push("why</think>so") == [("content", 0, "why</think>so", "")]


# Conversations that outgrow the context


def test_a_long_conversation_loses_its_oldest_messages_and_is_not_read_again(model: Model) -> None:
    system = {"role": "system", "content": "You are a keeper of a lighthouse."}
    messages: list[Mapping[str, Any]] = [system]
    with model.session(context_length=384) as session:
        forgotten, read = [], []
        for i in range(14):
            messages.append({"role": "user", "content": f"Question {i}: what do you see from your tower?"})
            with session.stream_chat(messages, on_overflow="shift", max_tokens=40, seed=i) as stream:
                pieces = "".join(delta.content for delta in stream)
            assert stream.finish_reason in ("stop", "length")
            assert pieces == stream.content
            assert len(stream.token_ids) == 40 or stream.finish_reason == "stop"
            messages.append(stream.message)
            forgotten.append(stream.forgotten)
            read.append(stream.timings.prompt_tokens - stream.timings.cached_tokens)
            kept = model.tokenizer.decode(session.tokens)
            assert "You are a keeper of a lighthouse." in kept
            assert f"Question {i}:" in kept
        assert forgotten == sorted(forgotten)
        assert forgotten[-1] > 4
        # They go many at a time, at their borders, and what stays is not computed again.
        assert len(set(forgotten)) <= 6
        assert max(read[1:]) < 60
        assert all(n % 2 == 0 for n in forgotten)
        # Another conversation begins with all of its messages.
        session.chat("Hello", on_overflow="shift", max_tokens=2)
        again = session.stream_chat(messages[:5], on_overflow="shift", max_tokens=2)
        assert again.forgotten == 0


def test_an_answer_that_outgrows_the_context_goes_on(model: Model) -> None:
    messages: list[Mapping[str, Any]] = [{"role": "system", "content": "You tell stories."}]
    for i in range(4):
        messages += [
            {"role": "user", "content": f"Part {i}"},
            {"role": "assistant", "content": "The sea was calm. " * 6},
        ]
    messages.append({"role": "user", "content": "A very long story, please."})
    options: dict[str, Any] = {"ignore_eos": True, "max_tokens": 160, "seed": 1}
    with model.session(context_length=288) as session:
        with session.stream_chat(messages, on_overflow="shift", **options) as stream:
            text = "".join(delta.content for delta in stream)
        assert (len(stream.token_ids), stream.finish_reason) == (160, "length")
        assert stream.forgotten > 0
        assert text.strip() == stream.text.strip()
        assert stream.timings.generated_tokens == 160
    done = model.chat(messages, on_overflow="shift", **{**options, "max_tokens": 20})
    assert len(done.token_ids) == 20
    with model.session(context_length=288) as session:
        assert session.chat(messages, **options).finish_reason == "length"
    with pytest.raises(ValueError, match="context"), model.session(context_length=64) as session:
        session.chat("word " * 100, on_overflow="shift")


# For programs


def lines(model: Path, *requests: Any, options: Sequence[str] = ()) -> list[dict[str, Any]]:
    command = [
        sys.executable,
        "-m",
        "llama_rs",
        "chat",
        "--jsonl",
        "-m",
        str(model),
        "--temp",
        "0",
        "-n",
        "12",
        *options,
    ]
    said = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in requests)
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_conversations_of_a_program(smollm2: Path) -> None:
    got = lines(
        smollm2,
        {"id": "a", "content": "What is gravity?"},
        {"id": "b", "content": "What is gravity?", "stream": False},
        "nonsense",
        {"id": "a", "content": "Who found that?", "max_tokens": 5, "stream": False},
        {"id": "b", "wrong": 1},
        {"id": "c"},
        {"id": "b", "content": "x", "temperature": -1},
        {"id": "a", "system": "You are a sailor.", "content": "Who are you?", "stream": False},
        {"id": "b", "close": True},
        {"id": "b", "messages": [{"role": "user", "content": "What is gravity?"}], "stream": False},
        "[]",
        "",
    )
    deltas = [line["delta"]["content"] for line in got if "delta" in line]
    ends = [line for line in got if "finish_reason" in line]
    errors = [line["error"]["message"] for line in got if "error" in line]
    assert len(deltas) > 3
    assert "".join(deltas) == ends[0]["message"]["content"] == ends[1]["message"]["content"]
    assert [end["id"] for end in ends] == ["a", "b", "a", "a", "b"]
    assert ends[4]["message"] == ends[1]["message"]
    assert ends[2]["usage"]["completion_tokens"] == 5
    assert ends[2]["usage"]["prompt_tokens_details"]["cached_tokens"] > ends[0]["usage"]["prompt_tokens"]
    assert {"id": "b", "closed": True} in got
    assert "in a line" in errors[0]
    assert "has no 'wrong'" in errors[1]
    assert "has content or messages" in errors[2]
    assert "temperature is -1" in errors[3]
    assert len(errors) == 5
