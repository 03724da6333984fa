"""What goes wrong around a server, one row of the table after another: each through real sockets."""

from __future__ import annotations

import http.client
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_model
from llama_rs import Model, Server
from test_server import (
    GREEDY,
    HELLO,
    LONG,
    Answer,
    address,
    ask,
    becomes,
    busy,
    connect,
    environment,
    get,
    good,
    is_idle,
    metric,
    post,
    process,
    read_all,
    request,
    versions,
)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return Model(tiny, threads=1, context_length=4096)


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    with Server(model, port=0, kv_bytes=256 << 20) as server:
        yield server


def in_threads(n: int, work: Callable[[int], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    return threads


def joined(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()


# Readers and senders


def test_an_answer_that_nobody_reads_waits_and_is_whole_when_it_is_read(server: Server) -> None:
    # Of each answer the engine holds 256 KiB, some 1500 tokens with all that is said of them; of the connection the
    # system holds 4 MiB, some 500 tokens of each as JSON.
    n = 8 * 3500  # tokens
    asked = {"messages": HELLO, "n": 8, "max_tokens": 3500, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(address(server))
        slow.settimeout(60)
        slow.sendall(request("/v1/chat/completions", {**asked, "stream": True}, "Connection: close"))

        def made() -> int:
            return sum(slot.get("n_decoded", 0) for slot in get(server, "/slots").json)

        def stands_still() -> bool:
            before = made()
            time.sleep(0.3)
            return 0 < before == made()

        becomes(stands_still)
        assert metric(server, "requests_running") == 8 and made() < n
        # The others have the engine for themselves.
        assert good(server, "/v1/embeddings", {"input": "the sea"})["data"]
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        text = read_all(slow)
    assert text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    choices = [json.loads(line[6:])["choices"][0] for line in text.split(b"\n") if line.startswith(b"data: {")]
    tokens = [choice["logprobs"]["content"] for choice in choices if choice["logprobs"]]
    assert sum(map(len, tokens)) == n > 2 * len(tokens)  # what came while it waited is in few events


def test_who_sends_byte_by_byte_is_answered_and_holds_up_nobody(server: Server) -> None:
    text = request("/v1/completions", {"prompt": "the", "max_tokens": 3, **GREEDY}, "Connection: close")
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(20)]
        for i in range(len(text)):
            for client in clients:
                client.sendall(text[i : i + 1])
            if i % 40 == 0:
                assert get(server, "/health").status == 200
        answers = {read_all(client).split(b"\r\n\r\n")[1].split(b'"choices":')[1] for client in clients}
        heads = {answer.split(b'"usage"')[0] for answer in answers}
    assert len(heads) == 1


def test_who_goes_away_in_the_middle_of_a_request_leaves_nothing(server: Server) -> None:
    text = request("/v1/completions", {**LONG, "max_tokens": 5})
    before = metric(server, "connections")
    for cut in (1, 20, len(text) // 2, len(text) - 1):
        client = connect(server)
        client.sendall(text[:cut])
        client.close()
    becomes(lambda: metric(server, "connections") <= before)
    assert is_idle(server)


def test_a_body_without_an_end_is_not_collected(server: Server) -> None:
    with connect(server) as client:
        client.sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        block = b"10000\r\n" + b"[" * (1 << 16) + b"\r\n"
        sent, answer = 0, b""
        while not answer and sent < 1 << 30:
            client.sendall(block)
            sent += len(block)
            if select.select([client], [], [], 0)[0]:
                answer = client.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_is_packed_is_refused(server: Server) -> None:
    answer = post(server, "/tokenize", {"content": "a"}, Content_Encoding="gzip")
    assert (answer.status, answer.error["code"]) == (415, "unsupported_encoding")
    assert post(server, "/tokenize", {"content": "a"}, Content_Encoding="identity").status == 200


# Too many


def test_ten_times_too_many_are_answered_or_refused_at_once(tiny: Path) -> None:
    n, seen, codes = 40, Counter[int](), set[str | None]()
    with Server(Model(tiny, threads=1, context_length=2048), port=0, parallel=2, max_queue=2) as server:
        texts = set()

        def client(_: int) -> None:
            for _ in range(10):
                answer = post(server, "/v1/completions", {"prompt": "the", "max_tokens": 40, **GREEDY})
                seen[answer.status] += 1
                if answer.status == 200:
                    texts.add(answer.json["choices"][0]["text"])
                else:
                    codes.add(answer.error["code"])
                    assert int(answer.headers["retry-after"]) >= 1

        joined(in_threads(n, client))
        assert set(seen) == {200, 429} and codes == {"queue_full"}
        assert sum(seen.values()) == 10 * n and seen[200] >= 10
        assert len(texts) == 1  # and whoever is answered gets the answer
        assert metric(server, "rejected_total") == seen[429]
        becomes(lambda: is_idle(server))


def test_too_many_tokens_that_wait_are_refused(tiny: Path) -> None:
    model = Model(tiny, threads=1, context_length=1 << 18)
    with Server(model, port=0, parallel=1, max_queued_tokens=100) as server, busy(server), ExitStack() as stack:
        first = stack.enter_context(connect(server))
        first.sendall(request("/v1/completions", {"prompt": [1] * 90, "max_tokens": 1}))
        becomes(lambda: metric(server, "queued_prompt_tokens") == 90)
        answer = post(server, "/v1/completions", {"prompt": [1] * 20, "max_tokens": 1})
        assert (answer.status, answer.error["code"]) == (429, "queue_tokens_full")


def test_without_descriptors_it_waits_for_some(tiny: Path) -> None:
    limit = (48, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    with process(tiny, "--port", "0", "-t", "1", "-c", "2048", limit=limit) as served, ExitStack() as stack:
        kept = http.client.HTTPConnection(*address(served), timeout=60)
        kept.request("GET", "/health")
        assert kept.getresponse().read()
        clients = [stack.enter_context(connect(served)) for _ in range(60)]  # the system holds those that do not fit
        kept.request("POST", "/v1/completions", json.dumps({"prompt": "the", "max_tokens": 5}))
        assert kept.getresponse().read()  # who is there is served
        for client in clients:
            client.close()
        becomes(lambda: get(served, "/health").status == 200)
        served.process.terminate()
        kept.close()
        code, _, err = served.end()
        assert code == 0 and "error" not in err.replace('"error"', "")


# The model


def with_a_hole(path: Path, token: int) -> Path:
    """The tiny model, whose vector of one token is no number."""
    tiny_model.write_tiny_model(path, "F32")
    (tensor,) = [t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight"]
    row = tensor.n_bytes // int(tensor.shape[1])
    with open(path, "r+b") as f:
        f.seek(tensor.data_offset + token * row)
        f.write(np.full(row // 4, np.nan, np.float32).tobytes())
    return path


def test_numbers_that_make_no_sense_end_one_answer_and_no_other(tmp_path: Path) -> None:
    token = 7
    with Server(Model(with_a_hole(tmp_path / "nan.gguf", token), threads=1), port=0) as server:
        answers: list[Answer] = []

        def well(i: int) -> None:
            answers.append(
                post(server, "/v1/completions", {"prompt": [1, 2, 9 + i], "max_tokens": 100, "logit_bias": {"7": -100}})
            )

        threads = in_threads(3, well)
        for stream in (False, True):
            body = {"prompt": [1, 2, token], "max_tokens": 20, "stream": stream}
            answer = post(server, "/v1/completions", body)
            error = json.loads(answer.text.removeprefix("data: "))["error"]
            assert (answer.status, error["code"]) == (200 if stream else 500, "numeric")
            assert "[DONE]" not in answer.text and str(tmp_path) not in answer.text
        joined(threads)
        assert [answer.status for answer in answers] == [200] * 3
        assert get(server, "/health").status == 200


def test_one_change_of_the_models_at_a_time(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    os.link(tiny, tmp_path / "m" / "1" / "model.gguf")
    with Server(repository=tmp_path, port=0) as server:
        seen = Counter[int]()

        def load(_: int) -> None:
            seen[post(server, "/v2/repository/models/m/load", {}).status] += 1

        joined(in_threads(8, load))
        assert seen[200] >= 1 and sum(seen.values()) == 8 and set(seen) <= {200, 409}
        assert versions(server, "m") == {"1": ("ready", True)}
        # One that is asked for while the server ends is done or refused, and nobody waits for ever.
        with connect(server) as client:
            server.drain(patience=5)
            client.sendall(request("/v2/repository/models/m/load", {}, "Connection: close"))
            assert read_all(client)[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 503", b"")
        assert server.wait(20)


# The end


def test_no_answer_is_lost_when_it_is_ended_under_load(tiny: Path) -> None:
    """Clients ask on new connections and on old ones until they are told not to. What was taken is answered, whole."""
    with process(tiny, "--port", "0", "-t", "1", "-c", "2048", "--drain-grace", "0.2", "--no-access-log") as served:
        seen, lost, ended = Counter[str](), list[str](), threading.Event()
        body = json.dumps({"prompt": "the", "max_tokens": 60, "ignore_eos": True, **GREEDY})

        def client(i: int) -> None:
            connection: http.client.HTTPConnection | None = None
            while True:
                is_new = connection is None
                connection = connection or http.client.HTTPConnection(*address(served), timeout=60)
                try:
                    connection.connect() if is_new else None
                except ConnectionRefusedError:
                    return  # nobody listens any more
                try:
                    connection.request("POST", "/v1/completions", body)
                    response = connection.getresponse()
                    answer = json.loads(response.read())
                except (OSError, http.client.HTTPException) as e:
                    # An old connection may be closed before anything of a request was read: clients ask again.
                    if is_new or not isinstance(e, (http.client.RemoteDisconnected, ConnectionError)):
                        lost.append(f"{type(e).__name__}: {e}")
                    connection.close()
                    connection = None
                    continue
                seen[str(response.status)] += 1
                if response.status == 200 and answer["usage"]["completion_tokens"] != 60:
                    lost.append(str(answer))
                if i % 2 or response.getheader("connection") == "close":
                    connection.close()
                    connection = None
                if ended.is_set() and response.status == 503:
                    return

        threads = in_threads(8, client)
        becomes(lambda: seen["200"] > 20)
        served.process.send_signal(signal.SIGTERM)
        ended.set()
        joined(threads)
        code, out, err = served.end()
    assert lost == []
    assert set(seen) <= {"200", "503", "429"}
    assert (code, out, err) == (0, "", "")


def test_a_reader_that_sleeps_does_not_keep_it_from_ending(tiny: Path) -> None:
    arguments = ["--port", "0", "-t", "1", "-c", str(1 << 18), "--drain-grace", "0", "--drain", "0.3"]
    with process(tiny, *arguments) as served, connect(served) as client:
        client.sendall(request("/v1/completions", {**LONG, "logprobs": 20, "stream": True}))
        becomes(lambda: metric(served, "requests_running") == 1)
        served.process.terminate()
        assert served.end(20)[0] == 0


def test_a_program_that_is_killed_leaves_a_port_that_can_be_taken_again(tiny: Path) -> None:
    with process(tiny, "--port", "0", "-t", "1") as served:
        host, port = address(served)
        with connect(served) as client:
            client.sendall(request("/v1/completions", {"prompt": "the", "max_tokens": 3}))
            assert client.recv(100)
            served.process.kill()
            served.process.communicate()
    with process(tiny, "--port", str(port), "-t", "1") as again:
        assert ask(again, "GET", "/health").status == 200 and address(again) == (host, port)
        in_use = subprocess.run(
            [sys.executable, "-m", "llama_rs", "serve", str(tiny), "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=environment(),
        )
        assert (in_use.returncode, in_use.stdout) == (1, "")
        assert in_use.stderr == f"error: 127.0.0.1:{port}: Address already in use\n"


def test_a_client_that_goes_away_during_any_stage_frees_all_that_it_had(server: Server) -> None:
    """At random places of random requests; afterwards nothing is left."""
    rng = np.random.default_rng(5)
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {**LONG, "n": 2}),
        ("/v1/completions", {**LONG, "prompt": "the sea " * 400, "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3000, "stream": True}),
        ("/v1/embeddings", {"input": ["the sea " * 300] * 8}),
        ("/v1/classify", {"input": ["the sea"] * 20, "labels": ["a", "b", "c"]}),
        ("/v1/responses", {"input": "the sea", "max_output_tokens": 3000}),
    ]
    connections = metric(server, "connections")
    for i in range(60):
        path, body = bodies[i % len(bodies)]
        client = connect(server)
        client.sendall(request(path, body))
        time.sleep(float(rng.exponential(0.01)))
        client.close()
    becomes(lambda: is_idle(server))
    becomes(lambda: metric(server, "connections") <= connections)
    assert 'kv_bytes{state="used"} 0\n' in get(server, "/metrics").text
