"""The plugin for ``llm``, in llm itself."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llm
import pytest
from llama_rs import Model, llm_plugin
from test_chat import write_gguf_without_chatml


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of llm's own, and nothing open from before."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    yield tmp_path
    llm_plugin._sessions.clear()
    llm_plugin._models.clear()


def run(*arguments: str, code: int = 0, **environment: str) -> str:
    """What the command prints; on standard error if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_a_file_is_added_answers_and_is_forgotten(smollm2: Path) -> None:
    assert run("llama-rs", "add", str(smollm2), "--alias", "m") == f"llama-rs/{smollm2.stem}\n"
    answer = run("-m", "m", "Say hello", "-o", "temperature", "0", "-o", "max_tokens", "6", "--no-stream")
    assert answer.strip() == Model(smollm2).chat("Say hello", temperature=0, max_tokens=6).text.strip()
    (logged,) = json.loads(run("logs", "--json"))
    assert (logged["input_tokens"], logged["output_tokens"]) == (32, 6)
    assert logged["response_json"]["finish_reason"] == "length"
    assert "m" in run("llama-rs", "list").split()
    run("llama-rs", "remove", "m")
    assert run("llama-rs", "list") == ""
    assert "there is no model m" in run("llama-rs", "remove", "m", code=1)


def test_what_is_no_model_is_not_added(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no")
    assert "x.gguf: " in run("llama-rs", "add", str(tmp_path / "x.gguf"), code=1)
    assert "Options" not in run("models", "--options", "-q", "llama-rs")


def test_the_model_of_the_environment_has_options_of_the_library(smollm2: Path) -> None:
    said = run("models", "--options", "-q", "llama-rs", LLAMA_RS_MODEL=str(smollm2))
    assert "repeat_penalty: float" in said and "divides the logits" in said
    wrong = run("-m", "llama-rs", "x", "-o", "temperature", "-1", code=1, LLAMA_RS_MODEL=str(smollm2))
    assert "temperature" in wrong


def test_a_conversation_is_not_computed_again(smollm2: Path) -> None:
    conversation = llm_plugin.LlamaRs("it", str(smollm2)).conversation()
    first = conversation.prompt("Say hello", temperature=0, max_tokens=8)
    text = first.text()
    second = conversation.prompt("Again", temperature=0, max_tokens=4)
    second.text()
    cached = (second.usage().details or {})["cached_tokens"]
    assert cached > (first.usage().input or 0) > 0
    messages = [{"role": "user", "content": "Say hello"}, {"role": "assistant", "content": text}]
    expected = Model(smollm2).chat([*messages, {"role": "user", "content": "Again"}], temperature=0, max_tokens=4)
    assert second.text() == expected.text
    assert len(llm_plugin._models) == 1


def test_it_can_be_awaited_and_cancelled(smollm2: Path) -> None:
    model = llm_plugin.AsyncLlamaRs("it", str(smollm2))

    async def pieces() -> list[str]:
        return [piece async for piece in model.prompt("Say hello", temperature=0, max_tokens=6)]

    async def cancelled() -> None:
        async def forever() -> None:
            async for _ in model.conversation().prompt("Say hello", ignore_eos=True):
                started.set()

        started = asyncio.Event()
        task = asyncio.create_task(forever())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    expected = Model(smollm2).chat("Say hello", temperature=0, max_tokens=6).text
    assert "".join(asyncio.run(pieces())) == expected
    asyncio.run(cancelled())


def test_a_model_without_a_template_continues_the_text(tiny: Path, tmp_path: Path) -> None:
    path = write_gguf_without_chatml(tiny, tmp_path / "model.gguf")
    response = llm_plugin.LlamaRs("it", str(path)).prompt("abc", temperature=0, max_tokens=4)
    assert response.text() == Model(path).generate("abc", temperature=0, max_tokens=4).text


def test_an_answer_follows_a_schema(smollm2: Path) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}, "required": ["name"]}
    response = llm_plugin.LlamaRs("it", str(smollm2)).prompt("A name, as JSON.", schema=schema, temperature=0)
    assert set(json.loads(response.text())) == {"name"}


def test_thoughts_and_calls_are_told_apart() -> None:
    said = SimpleNamespace(content="a", reasoning="")
    thought = SimpleNamespace(content="", reasoning="b")
    called = SimpleNamespace(content="", reasoning="", tool_call=())
    told = [event for piece in ("x", said, thought, called) for event in llm_plugin._events(piece)]
    assert told == ["x", "a", llm.parts.StreamEvent(type="reasoning", chunk="b")]
    assert llm_plugin._arguments('{"a": 1}') == {"a": 1}
    assert llm_plugin._arguments("{") == {"arguments": "{"} and llm_plugin._arguments("") == {}

    def weather(city: str) -> str:
        """The weather of a city."""
        return city

    tool = llm.Tool.function(weather)  # type: ignore[no-untyped-call]
    described = llm_plugin._described(tool)["function"]
    assert (described["name"], described["description"]) == ("weather", "The weather of a city.")
    assert described["parameters"]["required"] == ["city"]


def calls_before() -> list[llm.Message]:
    """A conversation in which weather was called for: what a small model needs to do so itself."""
    said = []
    for i, city in enumerate(("Paris", "Rome")):
        question, call = llm.parts.TextPart(f"What is the weather in {city}?"), {"city": city}
        said.append(llm.Message(role="user", parts=[question]))
        said.append(llm.Message(role="assistant", parts=[llm.parts.ToolCallPart("weather", call, f"c{i}")]))
    return said


def test_a_tool_is_called_and_what_it_says_is_answered(smollm2: Path) -> None:
    asked: list[str] = []

    def weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return f"snow in {city}"

    async def later(city: str) -> str:
        """The weather of a city."""
        return weather(city)

    question = "What is the weather in Lisbon?"
    greedy: Any = {"temperature": 0, "max_tokens": 24}
    conversation = llm_plugin.LlamaRs("it", str(smollm2)).conversation(tools=[weather])
    answer = conversation.chain(question, messages=calls_before(), options=greedy).text()
    assert asked == ["Lisbon"] and "<tool_call>" not in answer
    responses: list[Any] = conversation.responses
    calling, answering = responses
    [call] = calling.tool_calls()
    assert (call.name, call.arguments, calling.text()) == ("weather", {"city": "Lisbon"}, "")
    [result] = answering.prompt.tool_results
    assert (result.output, result.tool_call_id) == ("snow in Lisbon", call.tool_call_id)
    assert (answering.usage().details or {})["cached_tokens"] > (calling.usage().input or 0)
    # The library says the same to these messages, and the conversation goes on from them.
    messages = list(llm_plugin._messages(answering.prompt.messages))
    assert messages[-1]["role"] == "tool"
    tools = [llm_plugin._described(tool) for tool in answering.prompt.tools]
    assert answer == Model(smollm2).chat(messages, tools=tools, **greedy).content
    assert conversation.prompt("Thanks", **greedy).text()

    tool = llm.Tool.function(later, name="weather")  # type: ignore[no-untyped-call]
    chain = llm_plugin.AsyncLlamaRs("it", str(smollm2)).chain(
        question, messages=calls_before(), tools=[tool], options=greedy
    )
    assert asyncio.run(chain.text()) == answer
    assert asked == ["Lisbon", "Lisbon"]


def test_vectors_are_those_of_the_library(smollm2: Path) -> None:
    model = llm_plugin.LlamaRsEmbedding("it", str(smollm2))
    vectors = list(model.embed_multi(["a cat", "a dog", "the sea"], batch_size=2))
    assert vectors == Model(smollm2).embed(["a cat", "a dog", "the sea"]).tolist()


def test_messages_of_llm_are_those_of_templates() -> None:
    messages = [
        llm.Message(role="system", parts=[llm.parts.TextPart("S")]),
        llm.Message(role="assistant", parts=[llm.parts.ToolCallPart("f", {"a": 1}, "c1")]),
        llm.Message(role="tool", parts=[llm.parts.ToolResultPart("f", "2", "c1")]),
        llm.Message(role="user", parts=[llm.parts.TextPart("a"), llm.parts.TextPart("b")]),
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert list(llm_plugin._messages(messages)) == [
        {"role": "system", "content": "S"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "f", "content": "2", "tool_call_id": "c1"},
        {"role": "user", "content": "a\nb"},
    ]
