"""The server for a long time, and with clients of others. Not among the tests of every day: ``make test-long``.

``$REQUESTS`` and ``$SECONDS_OF_FUZZING`` make it shorter, or longer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from llama_rs import Model, Server
from llama_rs.perf import bodies, measure, prompts
from test_server import Process, address, becomes, connect, get, is_idle, metric, process, read_all
from tritonclient.utils import InferenceServerException

REQUESTS = int(os.environ.get("REQUESTS", "100000"))
SECONDS = int(os.environ.get("SECONDS_OF_FUZZING", "600"))


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Server]:
    with Server(Model(tiny, threads=1, context_length=2048), port=0, kv_bytes=256 << 20) as server:
        yield server


# Clients of others


def test_whatever_the_schema_allows_is_answered_as_it_says(tiny: Path) -> None:
    """Ten minutes of schemathesis: no 5xx, and every answer is what the schema says of it."""
    with process(tiny, "--port", "0", "-t", "1", "-c", "256", "-n", "8", "--no-access-log") as served:
        # What a schema cannot say (a prompt longer than the context) may still be refused; what it does not promise (an
        # empty text, which has a first token all the same) may be answered.
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{served.url}/openapi.json",
            f"--max-time={SECONDS}",
            "--exclude-checks=positive_data_acceptance,negative_data_rejection",
            "--suppress-health-check=all",
            "--no-color",
            "--request-timeout=60",
            "--continue-on-failure",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS + 300)
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        print(done.stdout[-1500:])
        assert get(served, "/health").status == 200
        becomes(lambda: is_idle(served))


def test_triton_client(server: Server) -> None:
    name, model = server.name, server.model
    assert model is not None
    with triton.InferenceServerClient("{}:{}".format(*address(server)), concurrency=4) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(name)
        assert client.is_model_ready(name, "1") and not client.is_model_ready("none")
        assert client.get_server_metadata()["name"] == "llama_rs"
        assert client.get_model_metadata(name)["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        assert client.get_model_repository_index()[0]["state"] == "READY"
        texts = ["the sea", "a"]
        parameters = {"max_tokens": 6, "temperature": 0}
        expected = [model.generate(text, max_tokens=6, temperature=0).text for text in texts]
        vectors = model.embed(texts)
        for is_binary in (True, False):
            given = triton.InferInput("text", [2], "BYTES")
            given.set_data_from_numpy(np.array([text.encode() for text in texts], object), binary_data=is_binary)
            wanted = [triton.InferRequestedOutput("text", binary_data=is_binary)]
            result = client.infer(name, [given], outputs=wanted, parameters=parameters, request_id="5")
            found = [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("text")]
            assert (found, result.get_response()["id"]) == (expected, "5")
            wanted = [triton.InferRequestedOutput("embedding", binary_data=is_binary)]
            result = client.infer(name, [given], outputs=wanted)
            np.testing.assert_allclose(result.as_numpy("embedding"), vectors, rtol=1e-6)
        begun = [client.async_infer(name, [given], parameters=parameters) for _ in range(8)]
        assert all(list(one.get_result().as_numpy("text")) == expected for one in begun)
        with pytest.raises(InferenceServerException, match='there is no model "none"'):
            client.infer("none", [given])
        with pytest.raises(InferenceServerException, match="without a repository"):
            client.unload_model(name)
        with pytest.raises(InferenceServerException, match="must not be compressed"):
            client.infer(name, [given], request_compression_algorithm="gzip")


# What takes its time


def test_who_never_finishes_a_head_or_a_body_is_told_so(server: Server) -> None:
    with connect(server) as head, connect(server) as body:
        for client in (head, body):
            client.settimeout(100)
        start = time.monotonic()
        head.sendall(b"POST /tokenize HTTP/1.1\r\nHost: loc")
        body.sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert read_all(head).startswith(b"HTTP/1.1 408 ")
        assert 9 < time.monotonic() - start < 20
        assert read_all(body).startswith(b"HTTP/1.1 408 ")
        assert 55 < time.monotonic() - start < 75
    becomes(lambda: metric(server, "connections") <= 1)


def resident(process: Process) -> int:
    """Bytes of memory of its own."""
    with open(f"/proc/{process.process.pid}/status") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("RssAnon:"))


def descriptors(process: Process) -> int:
    return len(os.listdir(f"/proc/{process.process.pid}/fd"))


def seconds_of_cpu(process: Process) -> float:
    """What all its threads have used, those that have ended too: the clock that clock_getcpuclockid(3) names."""
    return time.clock_gettime(~process.process.pid << 3 | 2)


def idle(process: Process) -> float:
    """The share of a core that it uses in a minute without requests."""
    time.sleep(2)
    before, start = seconds_of_cpu(process), time.monotonic()
    time.sleep(60)
    return (seconds_of_cpu(process) - before) / (time.monotonic() - start)


def test_after_very_many_requests_it_is_what_it_was(tiny: Path) -> None:
    """A third of the clients goes away in the middle of an answer."""
    rounds = 20
    arguments = ["--port", "0", "-t", "1", "-c", "1024", "--kv-memory", "64M", "--no-access-log"]
    with process(tiny, *arguments) as served:
        texts = [*prompts(200, 30, 0.5, seed=1), *prompts(20, 200, 0.9, seed=2)]
        asked = bodies(texts, model=None, max_tokens=12, is_chat=False) + bodies(
            texts, model=None, max_tokens=6, is_chat=True, temperature=1.0
        )
        paths = ("/v1/completions", "/v1/chat/completions")
        memory, n_descriptors, answered, cancelled = [], [], 0, 0
        start = time.monotonic()
        for i in range(rounds):
            half = asked[: len(texts)] if i % 2 == 0 else asked[len(texts) :]
            load = measure(served.url, half, REQUESTS // rounds, path=paths[i % 2], clients=16, cancel=0.3, seed=i)
            answered += len(load.good)
            cancelled += sum(sample.is_cancelled for sample in load.samples)
            assert load.summary()["errors"] == {}
            becomes(lambda: is_idle(served))
            becomes(lambda: metric(served, "connections") == 1)  # the one that asks
            memory.append(resident(served))
            n_descriptors.append(descriptors(served))
        seconds = time.monotonic() - start
        later = memory[rounds // 4 :]
        slope = np.polyfit(np.arange(len(later)) * (REQUESTS / rounds), later, 1)[0]
        print(
            f"\n{answered} answered, {cancelled} cancelled in {seconds:.0f} s; memory in MiB: "
            f"{[round(m / 2**20, 1) for m in memory]}, {slope:.2f} bytes a request; descriptors: {n_descriptors}"
        )
        assert answered + cancelled == REQUESTS // rounds * rounds and cancelled > 0.25 * REQUESTS
        assert max(n_descriptors) - min(n_descriptors) <= 1  # that of who asks for the metrics
        assert max(later) - min(later) < 2 << 20 and slope * REQUESTS < 1 << 20
        used = idle(served)
        print(f"idle: {100 * used:.4f} % of a core")
        assert used < 0.001


def test_a_server_that_nobody_has_asked_anything_uses_no_cpu(tiny: Path) -> None:
    with process(tiny, "--port", "0", "--no-access-log") as served:
        used = idle(served)
        print(f"\nidle: {100 * used:.4f} % of a core")
        assert used < 0.001
