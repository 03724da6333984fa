"""The HTTP server, through real sockets on this machine: what it answers, and what clients can do to it."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import http.client
import io
import json
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from xml.etree import ElementTree

import gguf
import numpy as np
import pytest
import test_cli
import tiny_model
from llama_rs import AsyncEngine, Model, ModelClosedError, ModelNotFoundError, SavedSessionError, Server, cli

LONG = {"prompt": "the", "max_tokens": 100_000, "temperature": 0, "ignore_eos": True}
"""An answer that goes on for as long as the context has room."""

GREEDY: dict[str, Any] = {"temperature": 0}
HELLO = [{"role": "user", "content": "the sea"}]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> Any:
        return self.json["error"]


class Listening(Protocol):
    """What can be asked: a server, or a process that is one."""

    @property
    def url(self) -> str: ...


def address(server: Listening) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def ask(server: Listening, method: str, path: str, body: object = None, **headers: str) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(*address(server), timeout=60)
    try:
        content = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, content, given)
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read().decode())
    finally:
        connection.close()


def get(server: Listening, path: str, **headers: str) -> Answer:
    return ask(server, "GET", path, **headers)


def post(server: Listening, path: str, body: object, **headers: str) -> Answer:
    return ask(server, "POST", path, body, **headers)


def good(server: Listening, path: str, body: object) -> Any:
    answer = post(server, path, body)
    assert answer.status == 200, answer.text
    return answer.json


def events(server: Listening, path: str, body: dict[str, Any]) -> list[str]:
    """The data of all events of a stream."""
    answer = post(server, path, {**body, "stream": True})
    assert answer.status == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.text.endswith("\n\n")
    lines = answer.text.split("\n\n")[:-1]
    return [line.removeprefix("data: ") for line in lines if not line.startswith(":")]


def chunks(server: Listening, path: str, body: dict[str, Any]) -> list[Any]:
    """The chunks of a stream in OpenAI's shape."""
    *all_but_last, last = events(server, path, body)
    assert last == "[DONE]"
    return [json.loads(chunk) for chunk in all_but_last]


def metric(server: Listening, name: str) -> float:
    """The sum of a metric over its labels."""
    text = get(server, "/metrics").text
    return sum(float(x) for x in re.findall(rf"^llama_rs_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def becomes(fact: Callable[[], bool], seconds: float = 20) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, "it does not come to be"
        time.sleep(0.005)


def is_idle(server: Listening) -> bool:
    return metric(server, "requests_running") == metric(server, "requests_waiting") == 0


def connect(server: Listening) -> socket.socket:
    return socket.create_connection(address(server), timeout=30)


def request(path: str, body: object, *headers: str) -> bytes:
    """A request as bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + content


def read_all(stream: socket.socket) -> bytes:
    return b"".join(iter(lambda: stream.recv(1 << 16), b""))


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return Model(tiny, threads=1, context_length=4096)


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    with Server(model, port=0, kv_bytes=256 << 20) as server:
        yield server


@pytest.fixture(scope="module")
def small(tiny: Path) -> Iterator[Server]:
    """One answer at a time, and one that waits."""
    with Server(Model(tiny, threads=1, context_length=1 << 20), port=0, parallel=1, max_queue=1) as server:
        yield server


@contextmanager
def busy(server: Listening, n: int = 1) -> Iterator[list[socket.socket]]:
    """While somebody has the server make answers that take long.

    Whole ones: an answer that comes in pieces waits for whoever does not read them, and is then not running.
    """
    clients = []
    for i in range(n):
        before = metric(server, "requests_running") + metric(server, "requests_waiting")
        clients.append(connect(server))
        clients[-1].sendall(request("/v1/completions", {**LONG, "prompt": f"the {i}"}))
        becomes(lambda: metric(server, "requests_running") + metric(server, "requests_waiting") > before)  # noqa: B023
    try:
        yield clients
    finally:
        for client in clients:
            client.close()
        becomes(lambda: is_idle(server))


# Answers


def test_a_chat_is_answered_as_the_library_does(server: Server, model: Model) -> None:
    expected = model.chat(HELLO, max_tokens=24, **GREEDY)
    answer = good(server, "/v1/chat/completions", {"messages": HELLO, "max_tokens": 24, **GREEDY})
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == expected.finish_reason
    assert (answer["object"], answer["model"]) == ("chat.completion", server.name)
    n = len(expected.token_ids)
    assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert answer["usage"]["completion_tokens"] == n
    assert answer["usage"]["total_tokens"] == expected.usage.prompt_tokens + n
    assert answer["timings"]["predicted_n"] == n


def test_a_completion_is_that_of_the_library(server: Server, model: Model) -> None:
    expected = model.generate("Once upon", max_tokens=30, **GREEDY)
    body = {"prompt": "Once upon", "max_tokens": 30, **GREEDY}
    answer = good(server, "/v1/completions", body)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["index"]) == (expected.text, expected.finish_reason, 0)
    ids = model.tokenizer.encode("Once upon")
    assert good(server, "/v1/completions", {**body, "prompt": ids})["choices"][0]["text"] == expected.text
    assert good(server, "/completion", {**body, "n_predict": 30})["content"] == expected.text
    assert good(server, "/v1/completions", {"prompt": "Once", **GREEDY})["usage"]["completion_tokens"] <= 16


def test_what_is_streamed_is_what_is_not(server: Server) -> None:
    chat = {"messages": HELLO, "max_tokens": 40, **GREEDY}
    whole = good(server, "/v1/chat/completions", chat)["choices"][0]
    found = chunks(server, "/v1/chat/completions", chat)
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    deltas = [chunk["choices"][0] for chunk in found[1:]]
    assert all(list(delta["delta"]) == ["content"] and delta["delta"]["content"] for delta in deltas[:-1])
    assert "".join(delta["delta"]["content"] for delta in deltas[:-1]) == whole["message"]["content"]
    assert (deltas[-1]["delta"], deltas[-1]["finish_reason"]) == ({}, whole["finish_reason"])
    assert all(delta["finish_reason"] is None for delta in deltas[:-1])
    same = {(chunk["id"], chunk["created"], chunk["model"], chunk["system_fingerprint"]) for chunk in found}
    assert len(same) == 1
    assert all("usage" not in chunk for chunk in found)

    text = {"prompt": "the", "max_tokens": 40, **GREEDY}
    whole = good(server, "/v1/completions", text)["choices"][0]
    found = chunks(server, "/v1/completions", text)
    assert "".join(chunk["choices"][0]["text"] for chunk in found) == whole["text"]
    assert found[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]

    found = [json.loads(event) for event in events(server, "/completion", {**text, "n_predict": 40})]
    assert "".join(piece["content"] for piece in found) == whole["text"]
    assert [piece["stop"] for piece in found] == [False] * (len(found) - 1) + [True]


def test_usage_of_a_stream_comes_last_and_once_if_it_is_asked_for(server: Server) -> None:
    body = {"messages": HELLO, "max_tokens": 5, "n": 2, "stream_options": {"include_usage": True}, **GREEDY}
    found = chunks(server, "/v1/chat/completions", body)
    assert found[-1]["choices"] == [] and found[-1]["usage"]["completion_tokens"] == 10
    assert all("usage" not in chunk for chunk in found[:-1])
    ended = [c["choices"][0]["index"] for c in found[:-1] if c["choices"][0]["finish_reason"]]
    assert sorted(ended) == [0, 1]


def test_several_answers_and_several_prompts_have_their_places(server: Server, model: Model) -> None:
    body = {"prompt": ["the", "a"], "n": 2, "max_tokens": 6, "temperature": 1.5, "seed": 7}
    answer = good(server, "/v1/completions", body)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for i, prompt in enumerate(["the", "a"]):
        for j in range(2):
            expected = model.generate(prompt, max_tokens=6, temperature=1.5, seed=7 + j)
            assert answer["choices"][2 * i + j]["text"] == expected.text
    prompts = sum(len(model.tokenizer.encode(prompt)) for prompt in ["the", "a"])
    assert answer["usage"]["prompt_tokens"] == prompts


def test_the_same_seed_gives_the_same_answer(server: Server) -> None:
    body = {"messages": HELLO, "max_tokens": 12, "temperature": 1.5, "seed": 3}

    def say(seed: int) -> str:
        text: str = good(server, "/v1/chat/completions", {**body, "seed": seed})["choices"][0]["message"]["content"]
        return text

    assert say(3) == say(3) != say(4)


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(server: Server, model: Model) -> None:
    text = model.generate("the", max_tokens=40, **GREEDY).text
    stop = text[10:13]
    body = {"prompt": "the", "max_tokens": 40, **GREEDY}
    answer = good(server, "/v1/completions", {**body, "stop": [stop]})["choices"][0]
    assert (answer["text"], answer["finish_reason"]) == (text[: text.index(stop)], "stop")
    answer = good(server, "/completion", {**body, "stop": [stop]})
    assert (answer["stop_type"], answer["stopping_word"]) == ("word", stop)
    assert good(server, "/completion", {**body, "n_predict": 3})["stop_type"] == "limit"


def test_echo_with_logprobs_says_how_likely_the_prompt_is(server: Server, model: Model) -> None:
    ids = model.tokenizer.encode("the sea gives")
    body = {"prompt": "the sea gives", "echo": True, "max_tokens": 0, "logprobs": 2}
    answer = good(server, "/v1/completions", body)
    (choice,) = answer["choices"]
    assert choice["text"] == "the sea gives"
    shown = choice["logprobs"]
    assert "".join(shown["tokens"]) == "the sea gives"
    assert shown["text_offset"] == [len("".join(shown["tokens"][:i])) for i in range(len(shown["tokens"]))]
    first = len(ids) - len(shown["tokens"])  # a token that begins a text has no entry
    assert first in (0, 1)
    assert (shown["token_logprobs"][0] is None) == (first == 0)
    assert all(x <= 0 for x in shown["token_logprobs"][1:])
    assert answer["usage"]["completion_tokens"] == 0
    with model.session() as session:
        logits = session.logits(ids).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [logits[i - 1, ids[i]] for i in range(max(first, 1), len(ids))]
    found = [x for x in shown["token_logprobs"] if x is not None]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    tops = [top for top in shown["top_logprobs"] if top is not None]
    assert all(2 <= len(top) <= 3 for top in tops)


def test_embeddings_are_those_of_the_library(server: Server, model: Model) -> None:
    texts = ["a cat", "the lighthouse keeper"]
    expected = model.embed(texts)
    answer = good(server, "/v1/embeddings", {"input": texts})
    assert [row["embedding"] for row in answer["data"]] == [[float(str(x)) for x in row] for row in expected]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    packed = good(server, "/v1/embeddings", {"input": texts[1], "encoding_format": "base64"})["data"][0]["embedding"]
    found = struct.unpack(f"<{expected.shape[1]}f", base64.b64decode(packed))
    assert list(found) == list(expected[1])
    ids = model.tokenizer.encode("a cat", parse_special=False)
    assert good(server, "/v1/embeddings", {"input": ids})["data"][0] == answer["data"][0]
    cut = good(server, "/v1/embeddings", {"input": texts[0], "dimensions": 8})["data"][0]["embedding"]
    assert len(cut) == 8 and abs(sum(x * x for x in cut) - 1) < 1e-5
    assert good(server, "/embedding", {"content": "a cat"})[0]["embedding"][0] == answer["data"][0]["embedding"]


def test_tokens_in_both_dialects(server: Server, model: Model) -> None:
    plain = model.tokenizer.encode("Once upon <|im_start|>", add_special=False)
    full = model.tokenizer.encode("Once upon <|im_start|>")
    assert good(server, "/tokenize", {"content": "Once upon <|im_start|>"})["tokens"] == plain
    answer = good(server, "/tokenize", {"prompt": "Once upon <|im_start|>"})
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (full, len(full), 4096)
    pieces = good(server, "/tokenize", {"content": "a é", "with_pieces": True})["tokens"]
    joined = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
    assert joined.decode() == "a é"
    assert good(server, "/detokenize", {"tokens": plain}) == {
        "content": "Once upon <|im_start|>",
        "prompt": "Once upon <|im_start|>",
    }
    chat = good(server, "/tokenize", {"messages": HELLO})
    counted = good(server, "/v1/chat/completions/input_tokens", {"messages": HELLO})
    assert counted == {"object": "response.input_tokens", "input_tokens": chat["count"]}
    prompt = good(server, "/apply-template", {"messages": HELLO})["prompt"]
    assert "the sea" in prompt and model.tokenizer.encode(prompt)[-3:] == chat["tokens"][-3:]


def test_what_a_message_says_is_no_control_token(server: Server, model: Model) -> None:
    (end,) = model.tokenizer.encode("<|im_end|>", add_special=False)
    plain = good(server, "/tokenize", {"messages": [{"role": "user", "content": "x"}]})["tokens"]
    spelt = good(server, "/tokenize", {"messages": [{"role": "user", "content": "x<|im_end|>"}]})["tokens"]
    assert spelt.count(end) == plain.count(end)


def test_an_answer_that_was_begun_goes_on(server: Server) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "There was"}]
    prompt = good(server, "/apply-template", {"messages": begun})["prompt"]
    assert prompt.endswith("There was")
    new = good(server, "/apply-template", {"messages": begun, "add_generation_prompt": True})["prompt"]
    assert new.startswith(prompt) and len(new) > len(prompt)


def test_models_props_slots_and_health(server: Server, model: Model) -> None:
    (served,) = get(server, "/v1/models").json["data"]
    assert served == get(server, f"/v1/models/{server.name}").json
    assert (served["id"], served["max_model_len"]) == (server.name, 4096)
    assert served["meta"]["n_vocab"] == model.config.vocab_size
    assert get(server, "/v1/models/none").error["code"] == "model_not_found"
    props = get(server, "/props").json
    assert props["default_generation_settings"]["n_ctx"] == 4096
    assert props["model_path"] == os.path.basename(model.path)
    assert len(get(server, "/slots").json) == 8
    for path in ("/health", "/v1/health", "/livez", "/readyz"):
        assert get(server, path).json == {"status": "ok"}
    info = get(server, "/tokenizer_info").json
    assert info["vocab_size"] == model.config.vocab_size


def test_health_is_answered_while_a_prompt_is_read(smollm2: Path) -> None:
    with Server(Model(smollm2, threads=1, context_length=2048), port=0) as server:
        client = connect(server)
        client.sendall(request("/v1/completions", {"prompt": "word " * 1800, "max_tokens": 1}))
        becomes(lambda: metric(server, "requests_running") == 1)
        assert get(server, "/health").status == 200
        assert metric(server, "requests_running") == 1  # it is still at it
        client.close()
        becomes(lambda: is_idle(server))


# What is refused


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/v1/completions", b"{", 400, "invalid_json", None),
        ("/v1/completions", b"[]", 400, "invalid_json", ""),
        ("/v1/completions", b'{"prompt":"\xff"}', 400, "invalid_json", None),
        ("/v1/completions", b'{"prompt":"a","temperature":NaN}', 400, "invalid_json", None),
        ("/v1/completions", b'{"prompt":"a","temperature":1e999}', 400, "invalid_json", None),
        ("/v1/completions", b'{"prompt":"a","prompt":"b"}', 400, "invalid_json", None),
        ("/v1/completions", b'{"prompt":"\\ud800"}', 400, "invalid_json", None),
        ("/v1/completions", b"\xef\xbb\xbf{}", 400, "invalid_json", None),
        ("/v1/completions", b"[" * 100_000, 400, "invalid_json", None),
        ("/v1/completions", {}, 400, "invalid_value", "/prompt"),
        ("/v1/completions", {"prompt": 5}, 400, "invalid_value", "/prompt"),
        ("/v1/completions", {"prompt": []}, 400, "invalid_value", "/prompt"),
        ("/v1/completions", {"prompt": [["x"]]}, 400, "invalid_value", "/prompt/0/0"),
        ("/v1/completions", {"prompt": [10**9]}, 400, "invalid_value", "/prompt/0"),
        ("/v1/completions", {"prompt": ["a"] * 65}, 400, "invalid_value", "/prompt"),
        ("/v1/completions", {"prompt": "a", "n": 9}, 400, "invalid_value", "/n"),
        ("/v1/completions", {"prompt": "a", "top_p": 2}, 400, "invalid_value", "/top_p"),
        ("/v1/completions", {"prompt": "a", "temperature": "x"}, 400, "invalid_value", "/temperature"),
        ("/v1/completions", {"prompt": "a", "max_tokens": -5}, 400, "invalid_value", "/max_tokens"),
        ("/v1/completions", {"prompt": "a", "stop": [""]}, 400, "invalid_value", "/stop/0"),
        ("/v1/completions", {"prompt": "a", "stop": ["x"] * 17}, 400, "invalid_value", "/stop"),
        ("/v1/completions", {"prompt": "a", "stop": "x" * 1025}, 400, "invalid_value", "/stop"),
        ("/v1/completions", {"prompt": "a", "logprobs": 21}, 400, "invalid_value", "/logprobs"),
        (
            "/v1/completions",
            {"prompt": "a", "logit_bias": {"99999999": 1}},
            400,
            "invalid_value",
            "/logit_bias/99999999",
        ),
        ("/v1/completions", {"prompt": "a", "best_of": 3}, 400, "unsupported_parameter", "/best_of"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, 400, "unsupported_parameter", "/suffix"),
        ("/v1/completions", {"prompt": "a", "stream_options": {}}, 400, "invalid_value", "/stream_options"),
        ("/v1/completions", {"prompt": "the " * 5000}, 400, "context_length_exceeded", None),
        ("/v1/completions", {"prompt": [1] * 5000}, 400, "context_length_exceeded", None),
        ("/v1/chat/completions", {"messages": []}, 400, "invalid_value", "/messages"),
        ("/v1/chat/completions", {"messages": [{}]}, 400, "invalid_value", "/messages/0/role"),
        ("/v1/chat/completions", {"messages": [{"role": "king"}]}, 400, "invalid_value", "/messages/0/role"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, "invalid_value", "/messages/0"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "unsupported_parameter",
            "/messages/0/content/0/type",
        ),
        ("/v1/chat/completions", {"messages": HELLO * 2049}, 400, "invalid_value", "/messages"),
        ("/v1/chat/completions", {"messages": HELLO, "top_logprobs": 3}, 400, "invalid_value", "/top_logprobs"),
        ("/v1/chat/completions", {"messages": HELLO, "functions": [1]}, 400, "unsupported_parameter", "/functions"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "\ufdd0"}]},
            400,
            "invalid_value",
            "/messages/0",
        ),
        ("/v1/embeddings", {"input": []}, 400, "invalid_value", "/input"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, 400, "invalid_value", "/input"),
        ("/v1/embeddings", {"input": "the " * 5000}, 400, "context_length_exceeded", None),
        ("/v1/embeddings", {"input": "a", "encoding_format": "x"}, 400, "invalid_value", "/encoding_format"),
        ("/v1/embeddings", {"input": "a", "dimensions": 9999}, 400, "invalid_value", None),
        ("/detokenize", {"tokens": [-1]}, 400, "invalid_value", "/tokens/0"),
        ("/detokenize", {"tokens": [], "model": 5}, 400, "invalid_value", "/model"),
        ("/v1/completions", {"prompt": "a", "model": {}}, 400, "invalid_value", "/model"),
        ("/v1/embeddings", {"input": "a", "model": []}, 400, "invalid_value", "/model"),
        ("/v2/none", {}, 404, None, None),
    ],
)
def test_what_cannot_be_is_said_with_its_place(
    server: Server, path: str, body: object, status: int, code: str | None, param: str | None
) -> None:
    answer = post(server, path, body)
    assert answer.status == status, answer.text
    if code is None:
        assert list(answer.json) == ["error"]
        return
    assert (answer.error["code"], answer.error["param"]) == (code, param), answer.text
    assert "\n" not in answer.error["message"] and "/tmp" not in answer.text
    assert good(server, "/tokenize", {"content": "a"})["count"] > 0  # and the server lives


def test_a_prompt_that_is_too_long_is_recognised_by_agents(server: Server) -> None:
    error = post(server, "/v1/chat/completions", {"messages": [{"role": "user", "content": "the " * 5000}]}).error
    assert "exceeds the available context size" in error["message"]
    assert "maximum context length is 4096 tokens" in error["message"]
    assert error["n_prompt_tokens"] > error["n_ctx"] == 4096
    assert "input is too large" in post(server, "/v1/embeddings", {"input": "the " * 5000}).error["message"]


def test_routes_and_methods(server: Server) -> None:
    assert get(server, "/nothing").status == 404
    assert get(server, "/v1/completions").status == 405
    assert get(server, "/v1/completions").headers["allow"] == "POST, OPTIONS"
    assert ask(server, "PUT", "/v1/completions", {}).status == 405
    assert ask(server, "OPTIONS", "/v1/completions").status == 204
    head = ask(server, "HEAD", "/health")
    assert (head.status, head.text) == (200, "")
    assert post(server, "/tokenize", {"content": "a"}, Content_Type="text/xml").status == 415
    curl = "application/x-www-form-urlencoded"  # what curl says of whatever it is given
    assert post(server, "/tokenize", {"content": "a"}, Content_Type=curl).status == 200


def test_every_answer_has_an_id(server: Server) -> None:
    assert get(server, "/health", X_Request_Id="abc-1").headers["x-request-id"] == "abc-1"
    ids = {get(server, "/nothing", X_Request_Id="a b").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3 and all(name.startswith("req_") for name in ids)


def test_unknown_fields_are_counted_and_refused_only_if_strict(server: Server, model: Model) -> None:
    before = metric(server, "unknown_fields_total")
    assert post(server, "/tokenize", {"content": "a", "xyz": 1}).status == 200
    assert metric(server, "unknown_fields_total") == before + 1
    with Server(model, port=0, strict=True, strict_model=True) as strict:
        assert post(strict, "/tokenize", {"content": "a", "xyz": 1}).error["param"] == "/xyz"
        assert post(strict, "/tokenize", {"content": "a", "model": "other"}).status == 404
        assert post(strict, "/tokenize", {"content": "a", "model": strict.name, "xyz": None}).status == 200


def test_keys(model: Model) -> None:
    with Server(model, port=0, api_keys=["one", "two"]) as server:
        for headers in ({}, {"Authorization": "Bearer on"}, {"Authorization": "Bearer onex"}, {"X-Api-Key": "ONE"}):
            answer = post(server, "/tokenize", {"content": "a"}, **headers)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        for headers in ({"Authorization": "Bearer one"}, {"authorization": "bearer two"}, {"X-Api-Key": "two"}):
            assert post(server, "/tokenize", {"content": "a"}, **headers).status == 200
        assert get(server, "/health").status == 200
        assert get(server, "/v1/models").status == 401
        assert get(server, "/health", Host="evil.example").status == 200  # the key protects


def test_pages_of_others_may_not_ask(server: Server, model: Model) -> None:
    host, port = address(server)
    assert get(server, "/health", Host="evil.example").error["code"] == "host_not_allowed"
    for origin in ("https://evil.example", "null", f"http://{host}:{port + 1}"):
        assert get(server, "/health", Origin=origin).error["code"] == "origin_not_allowed"
    same = get(server, "/health", Origin=f"http://{host}:{port}")
    assert same.status == 200 and "access-control-allow-origin" not in same.headers
    with Server(model, port=0, cors=["https://app.example"], allowed_hosts=["llama"]) as open_server:
        answer = get(open_server, "/health", Origin="https://app.example", Host="llama:1")
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        asked = ask(
            open_server,
            "OPTIONS",
            "/v1/completions",
            Origin="https://app.example",
            Access_Control_Request_Headers="authorization",
        )
        assert asked.headers["access-control-allow-headers"] == "authorization"
        assert get(open_server, "/health", Origin="https://evil.example").status == 403


# What clients do


def closes(client: socket.socket) -> None:
    client.close()


def half_closes(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


def resets(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # what is sent is a reset
    client.close()


@pytest.mark.parametrize("leave", [closes, half_closes, resets])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("pipelined", [False, True])
def test_who_goes_away_while_an_answer_is_made_cancels_it(
    small: Server, leave: Callable[[socket.socket], None], stream: bool, pipelined: bool
) -> None:
    client = connect(small)
    client.sendall(request("/v1/completions", {**LONG, "stream": stream}))
    becomes(lambda: metric(small, "requests_running") == 1)
    if pipelined:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.05)
    before = metric(small, "requests_finished_total")
    leave(client)
    becomes(lambda: is_idle(small), 5)
    becomes(lambda: metric(small, "requests_finished_total") == before + 1, 5)
    client.close()


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_while_waiting_leaves_the_queue(small: Server, stream: bool) -> None:
    with busy(small):
        client = connect(small)
        client.sendall(request("/v1/completions", {**LONG, "stream": stream}))
        becomes(lambda: metric(small, "requests_waiting") == 1)
        client.close()
        becomes(lambda: metric(small, "requests_waiting") == 0, 5)
        assert metric(small, "requests_running") == 1


def test_who_goes_away_while_a_prompt_is_read_cancels_it(smollm2: Path) -> None:
    with Server(Model(smollm2, threads=1, context_length=4096), port=0) as server:
        client = connect(server)
        client.sendall(request("/v1/completions", {"prompt": "word " * 3900, "max_tokens": 1}))
        becomes(lambda: metric(server, "requests_running") == 1)
        client.close()
        becomes(lambda: is_idle(server), 5)
        assert metric(server, "generated_tokens_total") == 0


def test_a_full_queue_is_said_at_once(small: Server) -> None:
    with busy(small, 2):
        answer = post(small, "/v1/completions", LONG)
        assert (answer.status, answer.error["code"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1 and int(answer.headers["retry-after-ms"]) > 0
        assert answer.error["type"] == "overloaded_error"
        assert metric(small, "rejected_total") > 0
        assert get(small, "/health").status == 200


def test_a_slow_reader_holds_up_nobody(server: Server) -> None:
    slow = connect(server)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    slow.sendall(request("/v1/completions", {**LONG, "max_tokens": 1500, "stream": True}))
    becomes(lambda: metric(server, "requests_running") == 1)
    for i in range(5):
        assert good(server, "/v1/completions", {"prompt": f"the {i}", "max_tokens": 5})["choices"]
    text = b""
    while b"[DONE]" not in text[-100:]:
        text += slow.recv(1 << 16)
    assert text.count(b"data: ") > 3
    slow.close()


def test_a_request_that_is_not_http_ends_the_connection_alone(server: Server) -> None:
    for bad in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        client = connect(server)
        client.sendall(bad)
        answer = read_all(client)
        assert answer == b"" or re.match(rb"HTTP/1.1 4\d\d ", answer), answer
        client.close()
    assert get(server, "/health").status == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server: Server) -> None:
    client = connect(server)
    client.sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16777217\r\n\r\n{")
    assert b" 413 " in client.recv(1 << 16).split(b"\r\n")[0]
    client.close()
    # In pieces, nobody knows before; and who goes on to send learns of it all the same.
    client = connect(server)
    client.sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    block = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    for _ in range(18):
        client.sendall(block)
    assert b" 413 " in client.recv(1 << 16).split(b"\r\n")[0]
    client.close()
    text = "a" * ((16 << 20) - 15)
    assert post(server, "/tokenize", f'{{"contents":"{text}"}}'[: 16 << 20].encode()).status == 400


def test_several_requests_on_one_connection_are_answered_in_turn(server: Server) -> None:
    client = connect(server)
    one = request("/v1/completions", {"prompt": "the", "max_tokens": 3, **GREEDY})
    last = request("/tokenize", {"content": "a"}, "Connection: close")
    client.sendall(one + one + last)
    text = read_all(client)
    assert text.count(b"HTTP/1.1 200 OK") == 3
    client.close()


def test_an_answer_that_takes_too_long_ends_with_an_error(small: Server) -> None:
    answer = post(small, "/v1/completions", LONG, X_Request_Timeout_Ms="200")
    assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
    answer = post(small, "/v1/completions", {**LONG, "stream": True}, X_Request_Timeout_Ms="200")
    last = answer.text.split("\n\n")[-2]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert "[DONE]" not in answer.text
    assert post(small, "/v1/completions", LONG, X_Request_Timeout_Ms="x").status == 400


def test_too_many_connections_of_one_address_are_refused(server: Server) -> None:
    clients = [connect(server) for _ in range(256)]  # as a proxy has them, for all of its clients
    try:
        one_more = connect(server)
        assert b"503 Service Unavailable" in read_all(one_more)
        one_more.close()
        with socket.create_connection(address(server), timeout=30, source_address=("127.0.0.2", 0)) as other:
            other.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b" 200 OK" in read_all(other)  # and there is room for others
        clients.pop().close()

        def fits() -> bool:
            with connect(server) as client:
                client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return b" 200 OK" in read_all(client)

        becomes(fits)
    finally:
        for client in clients:
            client.close()
    becomes(lambda: get(server, "/health").status == 200)


def test_metrics_are_in_the_format_of_prometheus(server: Server) -> None:
    good(server, "/v1/completions", {"prompt": "the", "max_tokens": 4, **GREEDY})
    answer = get(server, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    kinds: dict[str, str] = {}
    for line in answer.text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("#"):
            found = re.fullmatch(r"(llama_rs_\w+)(\{.*\})? (\S+)", line)
            assert found, line
            float(found[3])
            base = re.sub(r"_(bucket|sum|count)$", "", found[1])
            assert base in kinds or found[1] in kinds, line
    assert metric(server, "generated_tokens_total") > 0
    assert metric(server, "time_to_first_token_seconds_count") > 0


# A process


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_RS_")}


class Process:
    """``llama-rs serve`` as a user starts it."""

    def __init__(self, *arguments: str | Path, limit: tuple[int, int] | None = None) -> None:
        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if limit:
                resource.setrlimit(resource.RLIMIT_NOFILE, limit)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "llama_rs", "serve", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            preexec_fn=prepare,
        )
        assert self.process.stderr
        self.lines: list[str] = []
        while not (line := self.process.stderr.readline()).startswith("serving "):
            self.lines.append(line)
            assert line, "".join(self.lines)
        self.address = line.split(" at ")[1].strip()

    @property
    def url(self) -> str:
        return self.address

    def end(self, seconds: float = 30) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


@contextmanager
def process(*arguments: str | Path, limit: tuple[int, int] | None = None) -> Iterator[Process]:
    """With ``limit`` it may have so many files open."""
    started = Process(*arguments, limit=limit)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_be_finished(tiny: Path, number: int) -> None:
    with process(tiny, "--port", "0", "-t", "1", "-c", "4096", "--drain-grace", "0.3") as served:
        assert served.process.stdout
        answers: list[Answer] = []

        def long() -> None:
            body = {"prompt": "the", "max_tokens": 3000, "temperature": 0, "ignore_eos": True}
            answers.append(post(served, "/v1/completions", body))

        threads = [threading.Thread(target=long) for _ in range(3)]
        for thread in threads:
            thread.start()
        becomes(lambda: metric(served, "requests_running") >= 1)
        served.process.send_signal(number)
        for thread in threads:
            thread.join(60)
        code, out, err = served.end()
    assert [answer.status for answer in answers] == [200] * 3
    assert all(answer.json["usage"]["completion_tokens"] == 3000 for answer in answers)
    assert (code, out) == (0, "")
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["status"] for line in lines if line["route"] == "/v1/completions"] == [200] * 3


def test_what_is_not_finished_in_time_ends_with_an_error(tiny: Path) -> None:
    arguments = ["--port", "0", "-t", "1", "-c", str(1 << 20), "--drain-grace", "0", "--drain", "0.2"]
    with process(tiny, *arguments) as served:
        client = connect(served)
        client.sendall(request("/v1/completions", {**LONG, "stream": True}))
        assert b"200 OK" in client.recv(1 << 16)
        served.process.terminate()
        text = read_all(client)
        client.close()
        code, _, _ = served.end()
    assert b'"code":"draining"' in text and b"[DONE]" not in text
    assert code == 0


def test_a_second_signal_ends_it_at_once(tiny: Path) -> None:
    with process(tiny, "--port", "0", "-t", "1", "-c", str(1 << 20), "--drain-grace", "0") as served:
        client = connect(served)
        client.sendall(request("/v1/completions", LONG))
        becomes(lambda: metric(served, "requests_running") == 1)
        served.process.terminate()
        time.sleep(1.2)  # one that comes sooner means the same
        served.process.terminate()
        code, _, _ = served.end(10)
        client.close()
    assert code == 128 + signal.SIGTERM


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llama_rs", "serve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment())


def test_what_keeps_it_from_starting_is_one_line(tiny: Path, server: Server, tmp_path: Path) -> None:
    _, port = address(server)
    for code, says, arguments in (
        (1, f"127.0.0.1:{port}: Address already in use", [tiny, "--port", str(port)]),
        (1, "192.0.2.1:8080: Cannot assign", [tiny, "--host", "192.0.2.1"]),
        (1, "No such file", [tiny, "--unix", tmp_path / "none" / "socket"]),
        (3, "No such file", [tmp_path / "none.gguf"]),
        (2, "--port", [tiny, "--port", "99999"]),
        (2, "size", [tiny, "--kv-memory", "much"]),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert re.fullmatch(r"error: [^\n]+\n", done.stderr) and says in done.stderr, done.stderr


def test_a_socket_file(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with process(tiny, "--unix", path, "--no-access-log") as served:
        assert served.url == f"unix:{path}"
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        client.sendall(b"GET /health HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in read_all(client)
        client.close()
        served.process.kill()
        served.process.communicate()
        assert path.exists()
        with process(tiny, "--unix", path) as again:  # a file that nobody listens on is in nobody's way
            again.process.terminate()
            assert again.end()[0] == 0
    assert not path.exists()


def test_options_of_the_command_are_for_requests_that_do_not_say(tiny: Path) -> None:
    with process(tiny, "--port", "0", "--temperature", "0", "-n", "7", "--alias", "mine") as served:
        one, other = (good(served, "/v1/chat/completions", {"messages": HELLO}) for _ in range(2))
        assert one["choices"] == other["choices"]
        assert (one["usage"]["completion_tokens"], one["model"]) == (7, "mine")
        more = good(served, "/v1/completions", {"prompt": "the", "max_tokens": 9})
        assert more["usage"]["completion_tokens"] == 9


# Scores


def test_scores_are_those_of_the_library(server: Server, model: Model) -> None:
    expected = model.score("the sea", " gives")
    answer = good(server, "/v1/score", {"prompt": "the sea", "completion": [" gives", " takes"]})
    one = answer["data"][0]
    assert one["token_ids"] == expected.token_ids
    np.testing.assert_allclose(one["logprobs"], expected.logprobs, rtol=1e-4, atol=1e-5)
    assert one["score"] == pytest.approx(expected.total, rel=1e-4)
    assert "".join(one["tokens"]) == " gives"
    ids = model.tokenizer.encode("the sea")
    by_ids = good(server, "/v1/score", {"prompt": ids, "completion": expected.token_ids})["data"][0]
    assert by_ids["logprobs"] == one["logprobs"]
    assert post(server, "/v1/score", {"prompt": "a", "completion": ""}).status == 400


def test_labels_are_as_likely_as_in_python_and_in_the_shell(server: Server, model: Model) -> None:
    """The same labels and texts have the same numbers, to the bit, in whatever way they are asked."""
    labels = {"s": "sea", "w": "wind", "sw": "sea and wind", "h": "harbour"}
    texts = ["the boats", "", "rain <|im_end|>, and more rain"]
    asked: list[dict[str, Any]] = [
        {},
        {"calibration": "none", "normalize": "sum"},
        {"calibration": "batch", "multi_label": True},
        {"instructions": "Is it {labels}?", "template": "{text}, then", "examples": [{"text": "x", "label": "w"}]},
        {"chat": False, "calibration": "none"},
        {"chat": False, "template": "{text} is about", "chat_template_kwargs": {"x": 1}},
    ]
    for body in asked:
        answer = good(server, "/v1/classify", {"input": texts, "labels": labels, **body})
        assert [row["index"] for row in answer["data"]] == [0, 1, 2]
        options: dict[str, Any] = {k: v for k, v in body.items() if k not in ("examples", "chat_template_kwargs")}
        options["template_options"] = body.get("chat_template_kwargs")
        options["examples"] = [(e["text"], e["label"]) for e in body.get("examples", [])]
        for row, expected in zip(answer["data"], model.classify(texts, labels, **options), strict=True):
            assert row["label"] == expected.label
            assert row["scores"] == expected.scores, body
            assert row["probs"] == expected.probs, body
            assert row["entropy"] == pytest.approx(expected.entropy)
            assert row["margin"] == pytest.approx(expected.margin)
    names = "s=sea,w=wind,sw=sea and wind,h=harbour"
    shell = test_cli.good("classify", "-m", model.path, "--labels", names, texts[0], texts[2])
    rows = [json.loads(line) for line in shell.splitlines()]
    for row, i in zip(rows, (0, 2), strict=True):
        expected = good(server, "/v1/classify", {"input": texts[i], "labels": labels})["data"][0]
        assert row["label"] == expected["label"]
        assert row["probs"] == {label: float(f"{p:.6g}") for label, p in expected["probs"].items()}
    free = good(server, "/v1/classify", {"input": "N/A", "labels": labels, "calibration": "batch"})["data"][0]
    assert max(free["probs"].values()) == pytest.approx(1 / 4)  # nothing is left of a batch of one
    bad: list[tuple[dict[str, Any], str]] = [
        ({"labels": ["x"]}, "/labels"),
        ({"labels": ["x", "y", "x"]}, "/labels"),
        ({"template": "no place"}, "/template"),
        ({"examples": [{"text": "a", "label": "z"}]}, "/examples/0/label"),
    ]
    for wrong, at in bad:
        assert post(server, "/v1/classify", {"input": "a", "labels": labels, **wrong}).error["param"] == at


def test_a_completion_is_as_likely_as_in_python(server: Server, model: Model) -> None:
    for prompt, completion in [("the sea", " gives"), ("the se", "a gives"), ("the sea ", "gives")]:
        expected = model.score(prompt, completion)
        one = good(server, "/v1/score", {"prompt": prompt, "completion": completion})["data"][0]
        assert one["token_ids"] == expected.token_ids
        assert one["logprobs"] == pytest.approx(expected.logprobs)
        assert one["score"] == pytest.approx(expected.total)


def test_a_reranker_orders_documents(tmp_path: Path) -> None:
    from oracle.cases import ENCODERS
    from test_embeddings import with_words

    names = [name for name in ENCODERS if "rank" in name]
    assert names
    path = tmp_path / "reranker.gguf"
    with_words(ENCODERS[names[0]].make(), path)
    reranker = Model(path)
    documents = ["the sea", "wind and rain", "a lamp"]
    expected = reranker.rerank("the keeper", documents)
    with Server(reranker, port=0) as server:
        answer = good(server, "/v1/rerank", {"query": "the keeper", "documents": documents})
        found = {row["index"]: row["relevance_score"] for row in answer["results"]}
        np.testing.assert_allclose([found[i] for i in range(3)], expected, rtol=1e-5)
        assert [row["relevance_score"] for row in answer["results"]] == sorted(found.values(), reverse=True)
        top = good(server, "/rerank", {"query": "a", "documents": documents, "top_n": 1, "return_documents": True})
        assert len(top["results"]) == 1 and top["results"][0]["document"]["text"] in documents
        refused = post(server, "/v1/completions", {"prompt": "a"})
        assert (refused.status, refused.error["code"]) == (400, "unsupported")


def test_residency_is_that_of_the_file(server: Server, model: Model) -> None:
    found = get(server, "/residency").json
    expected = model.residency()
    assert found["bytes"] == expected.bytes
    assert [(layer["name"], layer["bytes"]) for layer in found["layers"]] == [
        (p.name, p.bytes) for p in expected.layers
    ]
    assert 0 < found["resident"] <= found["bytes"]


# Open Inference Protocol


def test_the_open_inference_protocol(server: Server, model: Model) -> None:
    name = server.name
    assert get(server, "/v2").json["name"] == "llama_rs"
    assert get(server, "/v2/health/live").json == {"live": True}
    assert get(server, "/v2/health/ready").json == {"ready": True}
    assert get(server, f"/v2/models/{name}/ready").json == {"name": name, "ready": True}
    assert get(server, f"/v2/models/{name}").json["versions"] == ["1"]
    assert get(server, "/v2/models/none/ready").status == 404
    expected = model.generate("the sea", max_tokens=8, temperature=0)
    parameters = {"max_tokens": 8, "temperature": 0}
    body: dict[str, Any] = {"text_input": "the sea", "parameters": {**parameters, "details": True}}
    for path in (f"/v2/models/{name}/generate", f"/v2/models/{name}/versions/1/generate"):
        answer = good(server, path, body)
        assert answer["text_output"] == expected.text
        assert answer["details"]["finish_reason"] == {"length": "length", "stop": "eos_token"}[expected.finish_reason]
    text = post(server, f"/v2/models/{name}/generate_stream", body).text
    pieces = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
    assert "".join(piece["text_output"] for piece in pieces) == expected.text

    tensor = {"name": "text", "datatype": "BYTES", "shape": [2]}
    asked = {"id": "7", "inputs": [{**tensor, "data": ["the sea", "a"]}], "parameters": parameters}
    answer = good(server, f"/v2/models/{name}/infer", asked)
    (output,) = answer["outputs"]
    assert (answer["id"], output["shape"], output["data"][0]) == ("7", [2], expected.text)
    binary = b"".join(struct.pack("<I", len(text)) + text for text in (b"the sea", b"a"))
    head = {"inputs": [{**tensor, "parameters": {"binary_data_size": len(binary)}}], "parameters": parameters}
    header = json.dumps(head).encode()
    answer = ask(
        server,
        "POST",
        f"/v2/models/{name}/infer",
        header + binary,
        Inference_Header_Content_Length=str(len(header)),
        Content_Type="application/octet-stream",
    )
    assert answer.json["outputs"] == [output]
    asked = {"inputs": [{**tensor, "data": ["the sea", "a"]}], "outputs": [{"name": "embedding"}]}
    (output,) = good(server, f"/v2/models/{name}/infer", asked)["outputs"]
    vectors = model.embed(["the sea", "a"])
    assert output["shape"] == list(vectors.shape)
    np.testing.assert_allclose(np.reshape(output["data"], vectors.shape), vectors, rtol=1e-6)
    wrong: list[object] = [{"inputs": []}, {"inputs": [{**tensor, "data": ["one"]}]}, {"inputs": [tensor]}]
    for bad in wrong:
        assert list(post(server, f"/v2/models/{name}/infer", bad).json) == ["error"]


# Responses


def test_a_response_and_its_events(server: Server, model: Model) -> None:
    expected = model.chat(HELLO, max_tokens=12, **GREEDY)
    body = {"input": "the sea", "max_output_tokens": 12, **GREEDY}
    response = good(server, "/v1/responses", body)
    (message,) = response["output"]
    assert message["content"][0]["text"] == expected.text
    status = {"length": "incomplete", "stop": "completed"}[expected.finish_reason]
    assert (response["status"], response["object"]) == (status, "response")
    assert response["usage"]["output_tokens"] == len(expected.token_ids)
    items = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "the sea"}]}]
    assert good(server, "/v1/responses", {**body, "input": items})["output"][0]["content"] == message["content"]

    answer = post(server, "/v1/responses", {**body, "stream": True})
    found = []
    for block in answer.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", status]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert "".join(event["delta"] for event in found[4:-4]) == expected.text
    for name in ("previous_response_id", "conversation"):
        assert post(server, "/v1/responses", {**body, name: "x"}).error["code"] == "unsupported_parameter"
    assert post(server, "/v1/responses", {**body, "input": [{"type": "image"}]}).error["param"] == "/input/0/type"


def test_the_list_of_routes_is_true(server: Server) -> None:
    spec = get(server, "/openapi.json").json
    assert spec["openapi"] == "3.1.0"
    n = 0
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            real = path.replace("{model}", server.name).replace("{version}", "1").replace("{id}", server.name)
            answer = ask(server, method.upper(), real, {} if method == "post" else None)
            assert answer.status not in (404, 405, 500), (path, answer)
            kind = answer.headers["content-type"].split(";")[0]
            assert answer.status != 200 or kind in operation["responses"]["200"]["content"], path
            n += 1
    assert n > 50


# A repository of models


def versions(server: Listening, name: str = "tiny") -> dict[str, tuple[str, bool]]:
    (found,) = [model for model in get(server, "/v1/models").json["data"] if model["id"] == name]
    return {version["version"]: (version["state"], version["default"]) for version in found["versions"]}


def test_versions_change_and_no_request_fails(tiny_models: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for number, dtype in (("1", "Q8_0"), ("2", "Q4_0")):
        (folder / "tiny" / number).mkdir(parents=True)
        os.link(tiny_models(dtype), folder / "tiny" / number / "model.gguf")
    (folder / "tiny" / "llama-rs.toml").write_text('probe = "the sea"\ncontext_length = 2048\n')
    os.link(tiny_models("F16"), folder / "other.gguf")
    texts = {n: Model(folder / "tiny" / n / "model.gguf").generate("the", max_tokens=20, **GREEDY).text for n in "12"}
    body = {"prompt": "the", "max_tokens": 20, **GREEDY}

    def say(model: str) -> str:
        text: str = good(served, "/v1/completions", {**body, "model": model})["choices"][0]["text"]
        return text

    with Server(repository=folder, port=0, kv_bytes=256 << 20) as served:
        assert sorted(model["id"] for model in get(served, "/v1/models").json["data"]) == ["other", "tiny"]
        assert versions(served) == {"2": ("ready", True)}
        assert say("tiny") == say("tiny@2") == texts["2"] != texts["1"]
        assert post(served, "/v1/completions", {**body, "model": "tiny@1"}).error["code"] == "version_not_found"
        assert post(served, "/v1/completions", {**body, "model": "none"}).error["code"] == "model_not_found"

        answers: list[tuple[int, str]] = []
        is_over = threading.Event()

        def client() -> None:
            while not is_over.is_set():
                answer = post(served, "/v1/completions", {**body, "model": "tiny"})
                answers.append(
                    (answer.status, answer.json["choices"][0]["text"] if answer.status == 200 else answer.text)
                )

        clients = [threading.Thread(target=client) for _ in range(3)]
        for thread in clients:
            thread.start()
        load = "/v2/repository/models/tiny/load"
        for number in "1212":
            assert post(served, load, {"parameters": {"version": number}}).status == 200
            assert say("tiny") == texts[number]
        is_over.set()
        for thread in clients:
            thread.join()
        assert {status for status, _ in answers} == {200}
        assert {text for _, text in answers} <= set(texts.values())

        # What is bad changes nothing, and is seen.
        bad = folder / "tiny" / "3"
        bad.mkdir()
        (bad / "model.gguf").write_bytes(b"GGUF nonsense")
        answer = post(served, load, {"parameters": {"version": 3}})
        assert answer.status == 400 and str(tmp_path) not in answer.text
        assert versions(served)["3"] == ("failed", False)
        assert say("tiny") == texts["2"]
        assert metric(served, "reloads_total") == 5
        assert post(served, "/v2/repository/models/tiny/unload", {}).status == 200
        assert post(served, "/v1/completions", {**body, "model": "tiny"}).status == 404
        assert post(served, "/v2/repository/models/tiny/unload", {}).status == 400
        index = post(served, "/v2/repository/index", {}).json
        assert {"name": "other", "version": "1", "state": "READY", "reason": ""} in index


def test_a_file_written_over_fails_its_version_and_not_the_process(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "2").mkdir()
    for number in "12":
        (tmp_path / "m" / number / "model.gguf").write_bytes(tiny.read_bytes())
    (tmp_path / "m" / "llama-rs.toml").write_text('policy = "all"\n')
    with Server(repository=tmp_path, port=0) as server:
        assert versions(server, "m") == {"1": ("ready", False), "2": ("ready", True)}
        (tmp_path / "m" / "2" / "model.gguf").write_bytes(b"")
        answer = post(server, "/v1/completions", {"prompt": "the", "model": "m"})
        assert (answer.status, answer.error["code"]) == (500, "model_changed")
        assert versions(server, "m") == {"1": ("ready", True), "2": ("failed", False)}
        assert post(server, "/v1/completions", {"prompt": "the", "model": "m"}).status == 200


def test_who_may_change_what_is_served(tiny: Path, model: Model, tmp_path: Path) -> None:
    os.link(tiny, tmp_path / "m.gguf")
    path = "/v2/repository/models/m/load"
    with Server(repository=tmp_path, port=0, api_keys=["k"], admin_key="a") as server:
        assert post(server, path, {}).status == 401
        assert post(server, path, {}, X_Api_Key="k").status == 403
        assert post(server, path, {}, X_Api_Key="a").status == 200
        assert post(server, "/tokenize", {"content": "a"}, X_Api_Key="a").status == 200
    with Server(model, port=0) as server:
        assert post(server, path, {}).status == 409


def test_a_repository_that_says_nonsense_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no models"):
        Server(repository=tmp_path, port=0)
    (tmp_path / "m" / "1").mkdir(parents=True)
    os.link(tiny, tmp_path / "m" / "1" / "model.gguf")
    for text in ("policy = 'newest'", "policy = 'latest:0'", "polici = 'all'", "context_length = '5'", "x"):
        (tmp_path / "m" / "llama-rs.toml").write_text(text)
        with pytest.raises(ValueError, match=r"llama-rs\.toml"):
            Server(repository=tmp_path, port=0)


def test_a_new_version_is_found_when_it_is_complete(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    os.link(tiny, tmp_path / "m" / "1" / "model.gguf")
    with Server(repository=tmp_path, port=0, reload=0.1) as server:
        new = tmp_path / "m" / "2"
        new.mkdir()
        content = tiny.read_bytes()
        with open(new / "model.gguf", "wb") as f:
            f.write(content[:1000])
        (new / "READY").touch()
        becomes(lambda: versions(server, "m").get("2", ("", False))[0] == "failed")
        third = tmp_path / "3"
        third.mkdir()
        (third / "model.gguf").write_bytes(content)
        third.rename(tmp_path / "m" / "3")
        becomes(lambda: versions(server, "m").get("3") == ("ready", True))


# The page, and other doors


def test_the_page_may_run_its_own_script_and_nothing_else(server: Server) -> None:
    answer = get(server, "/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert len(answer.text.encode()) <= 40 << 10
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["frame-ancestors"]) == ("'none'", "'none'")
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|https?://", answer.text)


def test_a_server_opens_a_path_and_closes_what_it_opened(tiny: Path, tmp_path: Path, model: Model) -> None:
    with Server(tiny, port=0, threads=1, kv_bytes=64 << 20) as server:
        opened = server.model
        assert opened is not None and (opened.path, opened.threads, server.name) == (str(tiny), 1, "Q8_0")
        answer = good(server, "/v1/completions", {"prompt": "the", "max_tokens": 5, **GREEDY})
        assert answer["choices"][0]["text"] == model.generate("the", max_tokens=5, **GREEDY).text
    with pytest.raises(ModelClosedError):
        opened.session()
    with Server(model, port=0, kv_bytes=64 << 20):
        pass
    model.session().close()  # which the server did not open
    with pytest.raises(ModelNotFoundError):
        Server(str(tmp_path / "none.gguf"), port=0)
    for given in (3, model.tokenizer):
        with pytest.raises(TypeError):
            Server(given, port=0)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"model is a {type(given).__name__}, it must be a Model"):
            AsyncEngine(given)  # type: ignore[arg-type]


def test_an_application_that_is_cancelled_computes_no_further(model: Model) -> None:
    """As Ray Serve does when a client goes away: it says nothing of that."""
    from llama_rs.asgi import App

    async def all_of_it() -> None:
        app = App(model, kv_bytes=64 << 20)
        begun = asyncio.Event()
        content: list[Any] = [json.dumps({**LONG, "stream": True}).encode()]

        async def receive() -> dict[str, Any]:
            if content:
                return {"type": "http.request", "body": content.pop(), "more_body": False}
            return await asyncio.Future()

        async def send(message: Any) -> None:
            assert message.get("status", 200) == 200
            if message["type"] == "http.response.body":
                begun.set()

        app.start()
        try:
            scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
            task = asyncio.create_task(app(scope, receive, send))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            app.check()
        finally:
            app.close()

    asyncio.run(all_of_it())


def test_an_application_for_other_servers(model: Model) -> None:
    from llama_rs.asgi import App

    async def ask_app(app: App, path: str, body: object, *, leaves: bool = False) -> list[Any]:
        content = json.dumps(body).encode()
        halves = [content[:5], content[5:]]
        sent: list[Any] = []
        is_gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if halves:
                return {"type": "http.request", "body": halves.pop(0), "more_body": bool(halves)}
            await is_gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if leaves and message["type"] == "http.response.body":
                is_gone.set()

        scope = {
            "type": "http",
            "method": "POST",
            "path": f"/llm{path}",
            "root_path": "/llm",
            "headers": [
                (b"host", b"whatever.example"),
                (b"content-type", b"application/json"),
            ],
        }
        await app(scope, receive, send)
        return sent

    async def all_of_it() -> None:
        app = App(model, kv_bytes=64 << 20)
        try:
            body = {"prompt": "the", "max_tokens": 12, **GREEDY}
            start, *parts = await ask_app(app, "/v1/completions", body)
            assert start["status"] == 200
            answer = json.loads(b"".join(part["body"] for part in parts))
            assert answer["choices"][0]["text"] == model.generate("the", max_tokens=12, **GREEDY).text
            assert [part["more_body"] for part in parts] == [True] * (len(parts) - 1) + [False]
            start, *parts = await ask_app(app, "/v1/completions", {**body, "stream": True})
            assert (b"content-type", b"text/event-stream; charset=utf-8") in start["headers"]
            assert b"".join(part["body"] for part in parts).endswith(b"data: [DONE]\n\n")
            assert len(parts) > 2
            assert (await ask_app(app, "/none", {}))[0]["status"] == 404
            start, *parts = await ask_app(app, "/v1/completions", {**LONG, "stream": True}, leaves=True)
            assert b"[DONE]" not in b"".join(part["body"] for part in parts)

            lifespan = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
            said: list[str] = []

            async def receive() -> dict[str, Any]:
                return next(lifespan)

            async def send(message: Any) -> None:
                said.append(message["type"])

            await app({"type": "lifespan"}, receive, send)
            assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        finally:
            app.close()

    asyncio.run(all_of_it())


def test_perf_counts_what_the_server_does(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    before = metric(server, "generated_tokens_total")
    assert cli.main(["perf", server.url, "-c", "2", "-n", "6", "-o", "10", "-p", "20", "--completions", "--json"]) == 0
    (of,) = json.loads(capsys.readouterr().out)["rounds"]
    assert (of["requests"], of["answered"], of["errors"], of["tokens"]) == (6, 6, {}, 60)
    assert metric(server, "generated_tokens_total") == before + 60
    assert 0 < of["first_token_seconds"]["p50"] <= of["first_token_seconds"]["max"] <= of["request_seconds"]["max"]
    assert of["tokens_per_second"] > 0
    assert cli.main(["perf", server.url, "--rate", "200", "-n", "5", "-o", "4", "-p", "8", "--slo", "ttft=60s"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert "good/s" in table[0] and table[1].strip().startswith("200/s")
    assert cli.main(["perf", server.url, "-c", "1", "-n", "4", "-o", "500", "-p", "4", "--cancel", "1"]) == 0
    capsys.readouterr()
    assert cli.main(["perf", "http://127.0.0.1:1", "-n", "1", "-c", "1"]) == 1
    assert cli.main(["perf", server.url, "--search"]) == 2
    becomes(lambda: is_idle(server))


def test_perf_serves_a_file_itself_and_draws_what_it_finds(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = ["-c", "1,2", "-n", "4", "-o", "6", "-p", "8", "--completions"]
    assert cli.main(["perf", str(tiny), *of, "--csv", "--plot", str(tmp_path / "a&b.svg")]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["clients"], row["answered"], row["failed"], row["tokens"]) for row in rows] == [
        ("1", "4", "0", "24"),
        ("2", "4", "0", "24"),
    ]
    assert all(0 < float(row["first_token_p50"]) <= float(row["request_max"]) for row in rows)
    picture = ElementTree.parse(tmp_path / "a&b.svg").getroot()
    names = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert names.count("1 clients") == names.count("2 clients") == 3
    places = [float(circle.attrib["cx"]) for circle in picture.iter("{http://www.w3.org/2000/svg}circle")]
    speeds = sorted(float(row["tokens_per_second"]) for row in rows)
    assert len(places) == 6
    left = 58  # where the axis has 0
    assert (places[0] - left) / (places[1] - left) == pytest.approx(speeds[0] / speeds[1], rel=0.02)
    assert cli.main(["perf", str(tmp_path / "a&b.svg"), *of]) == 3  # a file that is no model
    assert cli.main(["perf", str(tiny), "--csv", "--json"]) == 2
    capsys.readouterr()


# What is asked for seldom


def test_a_gap_is_filled_by_a_model_that_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"):
        monkeypatch.setitem(tiny_model.SPECIAL_TOKENS, name, gguf.TokenType.CONTROL)
    model = Model(tiny_model.write_tiny_model(tmp_path / "fim.gguf", "Q8_0"), threads=1)
    encode = model.tokenizer.encode
    before, after, middle = (encode(f"<|fim_{name}|>", add_special=False) for name in ("prefix", "suffix", "middle"))
    assert len(before) == len(after) == len(middle) == 1
    head, text = encode("", add_special=True), encode("the sea", add_special=False)
    prompt = [*head, *before, *text, *after, *encode("and <|im_end|>", add_special=False, parse_special=False), *middle]
    with Server(model, port=0, kv_bytes=64 << 20) as server:
        body = {"prompt": "the sea", "suffix": "and <|im_end|>", "max_tokens": 9, **GREEDY}
        answer = good(server, "/v1/completions", body)
        assert answer["choices"][0]["text"] == model.generate(prompt, max_tokens=9, **GREEDY).text
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        refused = post(server, "/v1/completions", {**body, "echo": True})
        assert (refused.error["code"], refused.error["param"]) == ("unsupported_parameter", "/suffix")
        long = post(server, "/v1/completions", {**body, "suffix": "the sea " * 200})
        assert long.error["code"] == "context_length_exceeded"
        assert good(server, "/v1/completions", {**body, "suffix": ""})["usage"]["prompt_tokens"] < len(prompt)


def test_metrics_by_the_names_of_others(model: Model) -> None:
    with Server(model, port=0, kv_bytes=64 << 20, metrics_names=["vllm", "llamacpp"], name='a"b') as server:
        for i in range(3):
            good(server, "/v1/completions", {"prompt": f"the {i}", "max_tokens": 5, "ignore_eos": True})
        becomes(lambda: is_idle(server))
        text = get(server, "/metrics").text
        kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        label = '{engine="0",model_name="a\\"b"}'
        for name, kind, value in (
            (f"vllm:num_requests_running{label}", "gauge", "0"),
            (f"vllm:generation_tokens_total{label}", "counter", "15"),
            (f"vllm:e2e_request_latency_seconds_count{label}", "histogram", "3"),
            (f"vllm:request_queue_time_seconds_count{label}", "histogram", "3"),
            (f"vllm:request_generation_tokens_sum{label}", "histogram", "15"),
            ("llamacpp:tokens_predicted_total", "counter", "15"),
            ("llamacpp:requests_deferred", "gauge", "0"),
        ):
            assert f"\n{name} {value}\n" in text, name
            assert kinds[name.split("{")[0].removesuffix("_count").removesuffix("_sum")] == kind
        assert f'vllm:request_success_total{{{label[1:-1]},finished_reason="length"}} 3\n' in text
        assert f'vllm:time_to_first_token_seconds_bucket{{{label[1:-1]},le="+Inf"}} 3\n' in text
        assert len(kinds) == text.count("# TYPE")  # each is there once
    with pytest.raises(ValueError, match="the names of vllm and of llamacpp"):
        Server(model, port=0, metrics_names=["tgi"])


def test_saved_prompts_are_not_computed_again(model: Model, tmp_path: Path) -> None:
    rules = "the keeper of the lighthouse says that the sea gives and the sea takes. " * 8
    session = model.session()
    session.generate(rules, max_tokens=1, **GREEDY)
    session.truncate(n := len(model.tokenizer.encode(rules)) // 64 * 64)
    session.save(tmp_path / "rules.kv")
    body = {"prompt": rules + "and the wind", "max_tokens": 8, **GREEDY}
    expected = model.generate(body["prompt"], max_tokens=8, **GREEDY).text
    for keys in ([], ["one", "two"]):
        with Server(model, port=0, kv_bytes=64 << 20, prefixes=[tmp_path / "rules.kv"], api_keys=keys) as server:
            for key in keys or [""]:
                answer = post(server, "/v1/completions", body, X_Api_Key=key).json
                assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == n
                assert answer["choices"][0]["text"] == expected
    (tmp_path / "rules.kv").write_bytes(b"nonsense")
    with pytest.raises(SavedSessionError):
        Server(model, port=0, prefixes=[tmp_path / "rules.kv"])
    done = run(model.path, "--port", "0", "--prefix", tmp_path / "rules.kv")
    assert done.returncode != 0 and re.fullmatch(r"error: [^\n]*rules\.kv[^\n]*\n", done.stderr), done.stderr
    assert run("--repository", tmp_path, "--prefix", "x").returncode == 2
    assert run(model.path, "--metrics-names", "tgi").returncode == 2


def test_a_request_is_a_span_of_its_clients_trace(model: Model) -> None:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    before = time.time_ns()
    with Server(model, port=0, kv_bytes=64 << 20, tracer=provider.get_tracer("test")) as server:
        body = {"messages": HELLO, "max_tokens": 5, "ignore_eos": True}
        post(server, "/v1/chat/completions", body, Traceparent=f"00-{trace}-{parent}-01", X_Request_Id="abc")
        post(server, "/v1/completions", {"prompt": "the", "max_tokens": 5}, Traceparent="nonsense")
        client = connect(server)
        client.sendall(request("/v1/completions", {**LONG, "stream": True}))
        assert client.recv(1000)
        client.close()
        get(server, "/health")
        becomes(lambda: is_idle(server))

    def named(name: str) -> list[ReadableSpan]:
        return [span for span in exporter.get_finished_spans() if span.name == name]

    (chat,) = named("POST /v1/chat/completions")
    assert chat.context and chat.parent and chat.attributes and chat.start_time and chat.end_time
    assert (f"{chat.context.trace_id:032x}", f"{chat.parent.span_id:016x}") == (trace, parent)
    assert chat.attributes["gen_ai.usage.output_tokens"] == 5
    assert chat.attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert (chat.attributes["llama_rs.request_id"], chat.attributes["http.response.status_code"]) == ("abc", 200)
    assert before <= chat.start_time <= chat.events[0].timestamp <= chat.end_time <= time.time_ns()
    inside = [
        span for span in exporter.get_finished_spans() if span.parent and span.parent.span_id == chat.context.span_id
    ]
    assert {"prefill", "decode"} <= {span.name for span in inside}
    for span in inside:
        assert span.start_time and span.end_time
        assert chat.start_time <= span.start_time <= span.end_time <= chat.end_time
    whole, cancelled = named("POST /v1/completions")
    assert whole.parent is None and cancelled.attributes
    assert cancelled.attributes["gen_ai.response.finish_reasons"] == ("cancelled",)
    spans = [span for span in exporter.get_finished_spans() if span.name.startswith("POST")]
    assert len(spans) == 3
    assert all("the sea" not in str(span.to_json()) for span in exporter.get_finished_spans())


def test_traces_are_sent_where_the_environment_says(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        with process(tiny, "--port", "0", "-t", "1", "--drain-grace", "0") as served:
            good(served, "/v1/completions", {"prompt": "the", "max_tokens": 3})
            served.process.terminate()
            assert served.end()[0] == 0
        collector.shutdown()
    assert {path for path, _ in received} == {"/v1/traces"}
    assert any(b"POST /v1/completions" in content and b"llama-rs" in content for _, content in received)
