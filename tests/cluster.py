"""Ray itself: a local cluster of several workers. Not among the tests of every day: ``make test-ray``."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import ray
from llama_rs import Model
from llama_rs.ray import Batch, deployment
from ray import serve
from test_server import becomes
from tiny_model import write_tiny_model

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
TEXTS = ["the sea", "a hill", "once upon a time", "the rain"] * 6


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some size, so that it is seen who has a copy of it."""
    path = tmp_path_factory.mktemp("ray") / "model.gguf"
    return write_tiny_model(path, "F16", n_layers=4, dim=512, hidden_dim=1536, n_heads=8, context_length=1024)


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return Model(path, threads=1)


class Cluster:
    """Where Ray Serve listens."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/llm"

    def run(self, of: Any) -> None:
        """Serves this, and nothing else."""
        serve.run(of.bind(), route_prefix="/llm")

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            text: str = response.read().decode()
            return text

    def has(self, name: str, number: float) -> bool:
        try:
            return self.metric(name) == number
        except urllib.error.HTTPError as e:
            if e.code != 503:  # Ray's own, while it hands out more requests than it lets wait
                raise
            return False

    def metric(self, name: str) -> float:
        """Of a replica, if there is one only."""
        (value,) = re.findall(rf"^llama_rs_{name}(?:{{.*}})? (\S+)$", self.get("/metrics"), re.MULTILINE)
        return float(value)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Eight cores as Ray counts them: workers take turns on those that there are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=8, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield Cluster(port)
    serve.shutdown()
    ray.shutdown()


def sharers(path: Path) -> list[tuple[int, int]]:
    """What of a file each process has in memory, and its share of that (PSS), in bytes; this process is left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            maps = (folder / "smaps").read_text(errors="replace").split("VmFlags")
        except OSError:
            continue
        of = [m for m in maps if str(path) in m]
        if of and folder.name != str(os.getpid()):
            sums = [
                sum(int(line.split()[1]) << 10 for m in of for line in m.splitlines() if line.startswith(name))
                for name in ("Rss:", "Pss:")
            ]
            found.append((sums[0], sums[1]))
    return found


def test_a_replica_serves_all_routes(cluster: Cluster, path: Path, model: Model) -> None:
    cluster.run(deployment(path, context_length=512, kv_bytes=64 << 20, parallel=2, max_queue=2))
    assert json.loads(cluster.get("/health")) == {"status": "ok"}
    expected = model.generate("the sea", **GREEDY).text
    with cluster.client() as client:
        assert [m.id for m in client.models.list()] == ["model"]
        done = client.completions.create(model="model", prompt="the sea", **GREEDY)
        assert done.choices[0].text == expected
        pieces = list(client.completions.create(model="model", prompt="the sea", stream=True, **GREEDY))
        assert "".join(piece.choices[0].text for piece in pieces) == expected and len(pieces) > 2
        with pytest.raises(openai.BadRequestError) as e:
            client.completions.create(model="model", prompt="the sea " * 600)
        assert e.value.code == "context_length_exceeded"


def read_all(client: openai.OpenAI, body: dict[str, Any]) -> None:
    with client.completions.create(stream=True, **body) as stream:
        for _ in stream:
            pass


def test_who_goes_away_is_not_computed_for_and_one_too_many_is_refused(cluster: Cluster, path: Path) -> None:
    cluster.run(deployment(path, context_length=8192, kv_bytes=256 << 20, parallel=2, max_queue=2))
    long: dict[str, Any] = {"model": "model", "prompt": "the sea", "max_tokens": 8000, "temperature": 0}
    long["extra_body"] = {"ignore_eos": True}
    with cluster.client() as client:
        streams = [client.completions.create(stream=True, **long) for _ in range(2)]
        for stream in streams:
            next(iter(stream))
        assert cluster.metric("requests_running") == 2
        for stream in streams:
            stream.close()
        becomes(lambda: cluster.metric("requests_running") == 0)
        waiting = [threading.Thread(target=read_all, args=(client, long)) for _ in range(4)]
        for some, metric in ((waiting[:2], "requests_running"), (waiting[2:], "requests_waiting")):
            for thread in some:
                thread.start()
            becomes(partial(cluster.has, metric, 2))
        with pytest.raises(openai.RateLimitError) as e:  # of the server, and not of Ray, which would let it wait
            client.completions.create(**long)
        assert e.value.code == "queue_full" and int(e.value.response.headers["retry-after"]) >= 1
        for thread in waiting:
            thread.join()


def test_there_are_as_many_replicas_as_requests_need(cluster: Cluster, path: Path) -> None:
    of = deployment(path, replicas=(1, 2), kv_bytes=64 << 20, parallel=2)
    quickly = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, "upscale_delay_s": 0.5}
    assert of._deployment_config.autoscaling_config.target_ongoing_requests == 2
    assert (of._deployment_config.autoscaling_config.max_replicas, of._replica_config.max_replicas_per_node) == (2, 1)
    cluster.run(of.options(max_replicas_per_node=None, autoscaling_config={**quickly, "metrics_interval_s": 0.2}))

    def replicas() -> int:
        (app,) = serve.status().applications.values()
        (state,) = app.deployments.values()
        n: int = state.replica_states.get("RUNNING", 0)
        return n

    long: dict[str, Any] = {
        "model": "model",
        "prompt": "the sea",
        "max_tokens": 900,
        "extra_body": {"ignore_eos": True},
    }
    with cluster.client() as client:
        assert replicas() == 1
        is_over = threading.Event()

        def ask_again() -> None:
            while not is_over.is_set():
                read_all(client, long)

        asking = [threading.Thread(target=ask_again) for _ in range(6)]
        for thread in asking:
            thread.start()
        try:
            becomes(lambda: replicas() == 2, 90)
        finally:
            is_over.set()
            for thread in asking:
                thread.join()


def test_workers_of_one_machine_have_one_copy_of_the_weights(cluster: Cluster, path: Path, model: Model) -> None:
    many = deployment(path, num_cpus=1, kv_bytes=64 << 20).options(max_replicas_per_node=None, num_replicas=2)
    cluster.run(many)
    with cluster.client() as client:
        for _ in range(12):  # of both
            client.completions.create(model="model", prompt="the sea", max_tokens=2)
    rows = ray.data.from_items([{"text": text} for text in TEXTS], override_num_blocks=8)
    job = rows.map_batches(
        Batch,
        fn_constructor_args=(str(path),),
        fn_constructor_kwargs={"max_tokens": 100, "temperature": 0, "ignore_eos": True},
        batch_size=2,
        compute=ray.data.ActorPoolStrategy(size=3),
    )
    done: list[dict[str, Any]] = []
    working = threading.Thread(target=lambda: done.extend(job.take_all()))
    working.start()
    most: list[tuple[int, int]] = []
    while working.is_alive():
        most = max(most, sharers(path), key=len)
    expected = {t: model.generate(t, max_tokens=100, temperature=0, ignore_eos=True).text for t in TEXTS[:4]}
    assert sorted((row["text"], row["answer"]) for row in done) == sorted((t, expected[t]) for t in TEXTS)
    size = path.stat().st_size
    print(f"\n{size >> 10} KiB; in memory, and its share: {[(a >> 10, b >> 10) for a, b in most]} KiB")
    assert len(most) == 5  # two replicas and three workers
    assert sum(rss for rss, _ in most) > 2.5 * size
    assert sum(pss for _, pss in most) <= size * 1.01


@pytest.mark.usefixtures("cluster")
def test_jobs_of_all_kinds(model: Model) -> None:
    texts = [*TEXTS, "the sea " * 900]
    rows = ray.data.from_items([{"text": text, "id": i} for i, text in enumerate(texts)], override_num_blocks=4)

    def done(*task: Any, **options: Any) -> list[dict[str, Any]]:
        """The rows, by their ids. The model goes as a fingerprint, and is mapped where it comes to."""
        mapped = rows.map_batches(
            Batch,
            fn_constructor_args=(model, *task),
            fn_constructor_kwargs={"errors": "column", **options},
            batch_size=5,
            compute=ray.data.ActorPoolStrategy(size=2),
        )
        *good, bad = sorted(mapped.take_all(), key=lambda row: row["id"])
        (reason,) = (value for key, value in bad.items() if key.endswith("_error"))
        assert "context" in reason
        return good

    vectors = model.embed(TEXTS)
    for row, vector in zip(done("embed"), vectors, strict=True):
        np.testing.assert_array_equal(np.asarray(row["embedding"], np.float32), vector)
    labels = ["about the sea", "about land"]
    found = model.classify(TEXTS, labels)
    assert [row["label"] for row in done("classify", labels=labels)] == [one.label for one in found]
    chats = {text: model.chat(text, **GREEDY).content for text in dict.fromkeys(TEXTS)}
    assert [row["answer"] for row in done("chat", **GREEDY)] == [chats[text] for text in TEXTS]
    with pytest.raises(Exception, match="context"):
        rows.map_batches(
            Batch,
            fn_constructor_args=(model,),
            fn_constructor_kwargs=GREEDY,
            compute=ray.data.ActorPoolStrategy(size=1),
        ).take_all()
