"""OpenAI's own client against the server: what it parses, joins and raises is what it should."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from llama_rs import Model, Server
from pydantic import BaseModel

GREEDY: dict[str, Any] = {"temperature": 0}
HELLO: Any = [{"role": "user", "content": "the sea"}]

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "light",
        "description": "Lights the lamp.",
        "parameters": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        },
    },
}


class Lamp(BaseModel):
    """What an answer may have to be."""

    on: bool
    color: bool


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return Model(tiny, threads=1, context_length=4096)


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    with Server(model, port=0, kv_bytes=256 << 20) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def stop(model: Model) -> str:
    """A piece of the answer: the client takes one that is cut off by its length for an error when it is streamed."""
    return model.chat(HELLO, max_tokens=30, **GREEDY).text[-6:-3]


def test_a_chat(client: openai.OpenAI, server: Server, model: Model, stop: str) -> None:
    expected = model.chat(HELLO, max_tokens=40, stop=stop, **GREEDY)
    assert expected.finish_reason == "stop"
    answer = client.chat.completions.create(model=server.name, messages=HELLO, max_tokens=40, stop=stop, **GREEDY)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage is not None and answer.usage.completion_tokens == len(expected.token_ids)
    with client.chat.completions.stream(
        model=server.name, messages=HELLO, stop=stop, stream_options={"include_usage": True}, **GREEDY
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert text == expected.text == final.choices[0].message.content
    assert final.choices[0].message.role == "assistant"
    assert final.usage is not None and final.usage.completion_tokens == len(expected.token_ids)


def test_logprobs(client: openai.OpenAI, server: Server, model: Model, stop: str) -> None:
    answer = client.chat.completions.create(
        model=server.name, messages=HELLO, stop=stop, logprobs=True, top_logprobs=3, **GREEDY
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    kept = [token for token in logprobs.content if not token.token.startswith("<|")]  # control tokens are no text
    joined = b"".join(bytes(token.bytes or []) for token in kept).decode(errors="replace")
    assert joined.startswith(answer.choices[0].message.content or "?")  # what follows is the stop string
    for token in logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob  # what is taken is the likeliest
    with client.chat.completions.stream(
        model=server.name, messages=HELLO, stop=stop, logprobs=True, top_logprobs=3, **GREEDY
    ) as stream:
        final = stream.get_final_completion().choices[0].logprobs
    assert final is not None and final.content is not None
    assert [t.logprob for t in final.content] == [t.logprob for t in logprobs.content]
    text = client.completions.create(model=server.name, prompt="the", max_tokens=5, logprobs=2, echo=True, **GREEDY)
    legacy = text.choices[0].logprobs
    assert legacy is not None and legacy.tokens is not None and legacy.token_logprobs is not None
    expected = model.generate("the", max_tokens=5, top_logprobs=2, **GREEDY)
    assert expected.logprobs is not None
    assert legacy.token_logprobs[-5:] == pytest.approx([token.logprob for token in expected.logprobs], rel=1e-5)


def test_an_answer_in_a_form(client: openai.OpenAI, server: Server) -> None:
    answer = client.chat.completions.parse(
        model=server.name, messages=HELLO, response_format=Lamp, max_tokens=600, seed=1
    )
    assert isinstance(answer.choices[0].message.parsed, Lamp)
    answer_in_json = client.chat.completions.create(
        model=server.name, messages=HELLO, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert answer_in_json.choices[0].message.content in ("yes", "no")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=server.name,
            messages=HELLO,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}},
        )
    assert caught.value.code == "invalid_schema"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "light"}}])
def test_a_call_of_a_tool(client: openai.OpenAI, server: Server, choice: Any) -> None:
    common: Any = {"model": server.name, "messages": HELLO, "tools": [TOOL], "tool_choice": choice, "max_tokens": 600}
    answer = client.chat.completions.create(**common, parallel_tool_calls=False, seed=3)
    (of,) = answer.choices
    assert of.finish_reason == "tool_calls" and of.message.content is None and of.message.tool_calls
    (call,) = of.message.tool_calls
    assert call.type == "function" and call.function.name == "light"
    assert isinstance(json.loads(call.function.arguments)["on"], bool)
    with client.chat.completions.stream(**common, parallel_tool_calls=False, seed=3) as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert (streamed.function.name, streamed.function.arguments) == ("light", call.function.arguments)
    # The call and its result are part of the next question.
    messages = [
        *HELLO,
        of.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "it burns"},
    ]
    again = client.chat.completions.create(model=server.name, messages=messages, tools=[TOOL], max_tokens=4)
    assert again.choices[0].finish_reason in ("length", "stop", "tool_calls")


def test_responses(client: openai.OpenAI, server: Server, model: Model) -> None:
    expected = model.chat(HELLO, max_tokens=12, **GREEDY)
    answer = client.responses.create(model=server.name, input="the sea", max_output_tokens=12, **GREEDY)
    assert answer.output_text == expected.text
    assert answer.usage is not None and answer.usage.output_tokens == len(expected.token_ids)
    with client.responses.stream(model=server.name, input="the sea", max_output_tokens=12, **GREEDY) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == expected.text
    tool: Any = {"type": "function", "strict": True, **TOOL["function"]}
    called = client.responses.create(
        model=server.name,
        input="the sea",
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=600,
        extra_body={"seed": 3},
    )
    (item,) = called.output
    assert item.type == "function_call" and item.name == "light" and "on" in json.loads(item.arguments)


def test_embeddings_models_and_errors(client: openai.OpenAI, server: Server, model: Model) -> None:
    vector = client.embeddings.create(model=server.name, input="a cat").data[0].embedding  # in base64, unless told
    assert vector == pytest.approx([float(x) for x in model.embed(["a cat"])[0]], rel=1e-6)
    assert [served.id for served in client.models.list()] == [server.name]
    assert client.models.retrieve(server.name).id == server.name
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=server.name, messages=HELLO, top_p=2)
    assert (caught.value.code, caught.value.param, caught.value.type) == (
        "invalid_value",
        "/top_p",
        "invalid_request_error",
    )
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")
    long: Any = [{"role": "user", "content": "the " * 9000}]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 4096 tokens") as caught:
        client.chat.completions.create(model=server.name, messages=long)
    assert caught.value.code == "context_length_exceeded"
