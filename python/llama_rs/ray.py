"""On many machines: a deployment of Ray Serve, and work on batches for Ray Data.

>>> from ray import serve
>>> from llama_rs.ray import deployment
>>> serve.run(deployment("/models/model.gguf", num_cpus=8, replicas=(1, 4)).bind())

>>> from llama_rs.ray import Batch
>>> workers = ray.data.ActorPoolStrategy(size=4)
>>> rows.map_batches(Batch, fn_constructor_args=("/models/model.gguf", "embed"), batch_size=64, compute=workers)

A model travels as its path: the file has to be on every machine that uses it, under the same name. A
:class:`llama_rs.Model` in its place travels with the file's fingerprint as well, and another file there is refused. All
that use a file on one machine, replicas and workers, map it: its weights are in memory once.

Nothing of Ray is imported before it is used: ``pip install 'llama_rs[ray]'``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from .asgi import App
from .engine import AsyncEngine
from .hints import KvType, Messages
from .model import Model

if TYPE_CHECKING:
    import numpy.typing as npt
    from ray.serve import Deployment

Path = str | os.PathLike[str]
Task = Literal["generate", "chat", "classify", "embed"]
Columns = dict[str, Any]

ADDED: dict[Task, list[tuple[str, type]]] = {
    "generate": [("answer", object), ("_finish_reason", object), ("_tokens", np.int64)],
    "chat": [("answer", object), ("_finish_reason", object), ("_tokens", np.int64)],
    "classify": [("label", object), ("_probs", np.float64)],
    "embed": [("embedding", np.float32)],
}
"""The columns that are added and what they have; the first name stands before the others."""

OF_A_ROW = (ValueError, TypeError)
"""What may be wrong with one row and not with the next: among them is a text that is too long."""

BESIDE = 16
"""Requests that a replica takes beyond those that it answers or has in its queue: so that it is the server that refuses
one too many, with its reason and ``Retry-After``, and that ``/health`` is answered."""


def deployment(
    model: Path | Model,
    *,
    num_cpus: float = 1,
    replicas: int | tuple[int, int] = 1,
    threads: int | None = None,
    context_length: int | None = None,
    kv_type: KvType = "f16",
    parallel: int = 8,
    max_queue: int = 64,
    **options: Any,
) -> Deployment:
    """A deployment of Ray Serve with all routes of ``llama-rs serve``: ``serve.run(deployment(path).bind())``.

    A replica answers many requests at the same time, and each pass over the weights gives all of them a token. More
    cores make it faster, a second replica on the same machine does not: both would read the same memory. So there is
    at most one on each machine, and it is meant to have its cores. What is decided here is Ray's to change:
    ``deployment(path).options(max_replicas_per_node=None, graceful_shutdown_timeout_s=300).bind()``.

    Args:
        model: a path, the same on every machine that may run a replica; or a model, whose file is compared.
        num_cpus: cores that Ray keeps for a replica, and that it uses. With 0 Ray keeps none, and it may use all.
        replicas: how many; or the least and the most, between which Ray decides by how many requests there are, so that
            each has about ``parallel`` of them.
        threads: workers, if not as many as ``num_cpus``.
        context_length, kv_type: those of :class:`llama_rs.Model`, for a path.
        parallel, max_queue: as for :class:`llama_rs.Server`; Ray passes on so many to a replica, keeps ``max_queue``
            waiting, and refuses more (503).
        options: others of :class:`llama_rs.Server`, also how answers are made if a request does not say.

    Raises:
        ImportError: if Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as e:
        raise ImportError(f"{e}: pip install 'llama_rs[ray]'") from None
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    if not 0 <= least <= most or most == 0:
        raise ValueError(f"replicas is {replicas}, it must be a number from 1, or the least and the most")
    settings = {"context_length": context_length, "kv_type": kv_type}
    place = model if isinstance(model, Model) else os.path.abspath(model)

    def application() -> App:
        """Is called in a replica."""
        return App(opened(place, threads, **settings), parallel=parallel, max_queue=max_queue, **options)

    class Llama:
        app: App

        def check_health(self) -> None:
            """Ray asks from time to time, and replaces a replica that raises."""
            self.app.check()

    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": parallel}
    made: Deployment = serve.deployment(
        serve.ingress(application)(Llama),
        name="llama_rs",
        num_replicas=replicas if isinstance(replicas, int) else None,
        autoscaling_config=None if isinstance(replicas, int) else scaling,
        max_replicas_per_node=1,
        ray_actor_options={"num_cpus": num_cpus},
        max_ongoing_requests=parallel + max_queue + BESIDE,
        max_queued_requests=max_queue,
        graceful_shutdown_timeout_s=30.0,  # as of llama-rs serve
    )
    return made


def opened(model: Path | Model, threads: int | None = None, **settings: Any) -> Model:
    """The model of a worker, which uses as many cores as Ray has given to it, unless asked for otherwise."""
    threads = threads or assigned_cores()
    if not isinstance(model, Model):
        return Model(model, threads=threads, **settings)
    own = copy(model)
    own.threads = threads or model.threads
    return own


def assigned_cores() -> int | None:
    """The cores that Ray has assigned to this worker, if it is one that has some."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    cores: float = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    return max(1, int(cores)) if cores else None


class Batch:
    """What ``map_batches`` of Ray Data does to each batch: it asks a model about each row, and adds what it says.

    >>> options = {"column": "review", "labels": ["good", "bad"]}
    >>> rows = ray.data.read_csv("reviews.csv")
    >>> rows = rows.map_batches(
    ...     Batch,
    ...     fn_constructor_args=("/models/model.gguf", "classify"),
    ...     fn_constructor_kwargs=options,
    ...     batch_size=64,
    ...     compute=ray.data.ActorPoolStrategy(size=4),  # workers: one a machine is enough, with its cores
    ...     num_cpus=8,
    ... )

    These columns are added, whose names begin with that of the first:

    ``"generate"``: ``answer``, ``answer_finish_reason``, and ``answer_tokens``, how many it has.

    ``"chat"``: the same; what ``column`` has is what the user says, or a list of messages.

    ``"classify"``: ``label``, and ``label_probs``, float64 ``(rows, labels)`` in the order of ``labels``.

    ``"embed"``: ``embedding``, float32 ``(rows, dim)``.

    Rows that begin alike are computed once as far as they do, and what comes of a row does not depend on those it is
    in a batch with.

    Args:
        model: a path, the same on every machine that has a worker; or a model, whose file is compared.
        task: ``"generate"``, ``"chat"``, ``"classify"`` or ``"embed"``.
        column: where the texts are.
        output: the name of the first column that is added; by default as above.
        errors: ``"raise"`` fails at a row that cannot be done (its text is too long, say), and Ray's settings say what
            that ends; ``"column"`` says why in a further column, ``answer_error``, which is empty for the others.
        parallel: answers that are made at the same time.
        threads: workers; by default the cores that Ray assigns (``num_cpus`` of ``map_batches``).
        context_length, kv_type: those of :class:`llama_rs.Model`, for a path.
        options: those of :meth:`llama_rs.Model.generate`, :meth:`~llama_rs.Model.chat`,
            :meth:`~llama_rs.Model.classifier` (with ``labels``) or :meth:`~llama_rs.Model.embed`.

    Raises:
        ValueError: if an argument is out of range, or (from a batch) a column is there that is to be added.
        KeyError: if a batch has no such column.
    """

    def __init__(
        self,
        model: Path | Model,
        task: Task = "generate",
        *,
        column: str = "text",
        output: str | None = None,
        errors: Literal["raise", "column"] = "raise",
        parallel: int = 16,
        threads: int | None = None,
        context_length: int | None = None,
        kv_type: KvType = "f16",
        **options: Any,
    ) -> None:
        if task not in get_args(Task):
            raise ValueError(f"task is {task!r}, it must be one of {', '.join(get_args(Task))}")
        if errors not in ("raise", "column"):
            raise ValueError(f'errors is {errors!r}, it must be "raise" or "column"')
        self.model = opened(model, threads, context_length=context_length, kv_type=kv_type)
        self.task: Task = task
        self.column = column
        self.output = output or ADDED[task][0][0]
        self.errors = errors
        self._work, self._nothing = _working(self.model, task, parallel, options)

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> Columns:
        """A batch, columns of numpy by their names, with the columns that are added."""
        if self.column not in batch:
            raise KeyError(f"there is no column {self.column!r}, only {', '.join(map(repr, batch))}")
        (_, first), *others = ADDED[self.task]
        columns = {self.output: first, **{self.output + end: kind for end, kind in others}}
        if there := [name for name in (*columns, f"{self.output}_error") if name in batch]:
            raise ValueError(f"there is a column {there[0]!r} already: name another one with output=")
        results = self._work([_plain(value) for value in batch[self.column]])
        if self.errors == "raise":
            for i, result in enumerate(results):
                if isinstance(result, Exception):
                    result.add_note(f"It is of row {i} in a batch of {len(results)}, column {self.column!r}.")
                    raise result
        rows = [self._nothing if isinstance(result, Exception) else result for result in results]
        added: Columns = {
            name: np.array([row[i] for row in rows], dtype=kind).reshape(len(rows), *np.shape(self._nothing[i]))
            for i, (name, kind) in enumerate(columns.items())
        }
        if self.errors == "column":
            said = [str(result) if isinstance(result, Exception) else "" for result in results]
            added[f"{self.output}_error"] = np.array(said, dtype=object)
        return {**batch, **added}


Work = Callable[[list[Any]], list[Any]]
"""Texts to what their columns have, or to why there is nothing."""


def _working(model: Model, task: Task, parallel: int, options: dict[str, Any]) -> tuple[Work, tuple[Any, ...]]:
    """How it is done, and what a row has for which it cannot be: None, not a number, or 0, in the shape of others,
    as batches become one table. Raises now if an option is none."""
    if task == "classify":
        classifier = model.classifier(**options)
        work = _each_if_not_all(lambda texts: [(of.label, [*of.probs.values()]) for of in classifier(texts)])
        return work, (None, np.full(len(classifier.labels), np.nan))
    if task == "embed":
        nothing = np.full(np.shape(model.embed([], **options))[1:], np.nan, np.float32)
        return _each_if_not_all(lambda texts: [(vector,) for vector in model.embed(texts, **options)]), (nothing,)
    engine = AsyncEngine(model, parallel=parallel, max_queue=1 << 40, max_queued_tokens=1 << 40)  # a whole batch waits
    _ = engine.stream("", **options) if task == "generate" else engine.stream_chat("", **options)

    async def generate(text: str) -> tuple[str, str, int]:
        done = await engine.generate(text, **options)
        return done.text, done.finish_reason, len(done.token_ids)

    async def chat(messages: Messages) -> tuple[str, str, int]:
        done = await engine.chat(messages, **options)
        return done.content, done.finish_reason, len(done.token_ids)

    one: Callable[[Any], Awaitable[tuple[str, str, int]]] = generate if task == "generate" else chat

    async def all_of(texts: list[Any]) -> list[Any]:
        results = await asyncio.gather(*map(one, texts), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, OF_A_ROW):
                raise result
        return results

    return lambda texts: asyncio.run(all_of(texts)), (None, None, 0)


def _each_if_not_all(work: Work) -> Work:
    """Does all together; if that fails, each by itself, to tell with which of them something is wrong."""

    def one(text: Any) -> Any:
        try:
            return work([text])[0]
        except OF_A_ROW as e:
            return e

    def all_of(texts: list[Any]) -> list[Any]:
        try:
            return work(texts)
        except OF_A_ROW:
            return [one(text) for text in texts]

    return all_of


def _plain(value: Any) -> Any:
    """A cell as Python has it: lists of messages come as arrays of numpy."""
    return value.tolist() if isinstance(value, np.ndarray) else value
