"""A plugin for ``llm`` (https://llm.datasette.io): mapped models beside all others there, for prompts and for vectors.

``llm llama-rs add model.gguf --alias mine`` has ``llm -m mine`` mean a file, which stays where it is. What is added is
a list in llm's folder. A process opens a model once and keeps what it computed of the last conversations.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import llm
from pydantic import Field, create_model

from .options import PARAMETERS, Parameter

if TYPE_CHECKING:
    from .model import Model
    from .session import Session

MOST_CONVERSATIONS = 4
"""So many of the last ones stay computed."""

_guard = threading.Lock()
_models: dict[str, Model] = {}
_sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()


def opened(path: str) -> Model:
    """The model of a file, opened once a process."""
    from .model import Model

    with _guard:
        if path not in _models:
            _models[path] = Model(path)
        return _models[path]


def _session(path: str, conversation: Any) -> Session | None:
    """What was computed of a conversation, for whoever goes on with it. Nobody else finds it meanwhile."""
    if conversation is None:
        return None
    with _guard:
        found = _sessions.pop((path, conversation.id), None)
    return found or opened(path).session()


def _keep(path: str, conversation: Any, session: Session | None) -> None:
    if session is None:
        return
    with _guard:
        if other := _sessions.pop((path, conversation.id), None):  # two answers at a time
            other.close()
        _sessions[path, conversation.id] = session
        while len(_sessions) > MOST_CONVERSATIONS:
            _sessions.popitem(last=False)[1].close()


# Options


def _field(row: Parameter) -> tuple[Any, Any]:
    """An option of llm for a parameter of the library. None leaves it as it is by default."""
    kinds: dict[str, Any] = {
        "bool": bool,
        "int": int,
        "float": float,
        "strings": str | list[str],
        "biases": dict[int, float],
    }
    kind = Literal[row.choices] if row.kind == "choice" else kinds.get(row.kind, str)
    limits = {"gt" if row.above else "ge": row.minimum, "le": row.maximum} if row.kind in ("int", "float") else {}
    return kind | None, Field(default=None, description=row.help, **limits)  # type: ignore[call-overload]


_ROWS = [row for row in PARAMETERS.values() if row.group in ("sampling", "generation")]
Options: Any = create_model("Options", __base__=llm.Options, **{row.name: _field(row) for row in _ROWS})  # type: ignore[call-overload]


# Models


class _Shared:
    """What models have in common, synchronous or not."""

    can_stream = True
    supports_schema = True
    supports_tools = True
    Options = Options

    def __init__(self, model_id: str, path: str) -> None:
        self.model_id, self.path = model_id, path

    def _begin(self, prompt: Any, session: Session | None) -> Any:
        """The answer in the making: of a chat, or of a model that only continues texts."""
        from .errors import UnsupportedModelError

        model = opened(self.path)
        options = {name: value for name, value in prompt.options.model_dump().items() if value is not None}
        if prompt.schema:
            # An object has the properties that the schema names, and no others: a small model would go on for ever.
            named = {"name": "answer", "schema": prompt.schema, "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": named}
        messages = list(_messages(prompt.messages))
        tools = [_described(tool) for tool in prompt.tools] or None
        try:
            return (session or model).stream_chat(messages, tools=tools, **options)
        except UnsupportedModelError:
            if "tokenizer.chat_template" in model.metadata:
                raise
        text = "\n".join(message["content"] for message in messages)
        return (session or model).stream(text, **options)

    def _end(self, response: Any, stream: Any) -> None:
        for call in getattr(stream, "tool_calls", ()):
            response.add_tool_call(llm.ToolCall(call.name, _arguments(call.arguments), call.id))
        timings = stream.timings
        details = {"cached_tokens": timings.cached_tokens} if timings.cached_tokens else None
        response.set_usage(input=timings.prompt_tokens, output=timings.generated_tokens, details=details)
        response.response_json = {
            "finish_reason": stream.finish_reason,
            "seed": stream.seed,
            "timings": timings._asdict(),
        }


class LlamaRs(_Shared, llm.Model):  # type: ignore[misc, unused-ignore]
    """A model of ``llm``."""

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any = None) -> Iterator[Any]:  # noqa: ARG002
        """The pieces of an answer."""
        session = _session(self.path, conversation)
        try:
            answer = self._begin(prompt, session)
            with answer:
                for piece in answer:
                    yield from _events(piece)
            self._end(response, answer)
        finally:
            _keep(self.path, conversation, session)


class AsyncLlamaRs(_Shared, llm.AsyncModel):  # type: ignore[misc, unused-ignore]
    """The same for whoever awaits. The model computes in a thread; a task that is cancelled ends it."""

    async def execute(
        self,
        prompt: Any,
        stream: bool,  # noqa: ARG002
        response: Any,
        conversation: Any = None,
    ) -> AsyncGenerator[Any, None]:
        """The pieces of an answer."""
        session = await asyncio.to_thread(_session, self.path, conversation)
        try:
            answer = await asyncio.to_thread(self._begin, prompt, session)
            with answer:
                while (piece := await asyncio.to_thread(next, answer, None)) is not None:
                    for event in _events(piece):
                        yield event
            self._end(response, answer)
        except asyncio.CancelledError:
            if session is not None:
                session.close()  # ends what the thread computes
            session = None
            raise
        finally:
            _keep(self.path, conversation, session)


class LlamaRsEmbedding(llm.EmbeddingModel):  # type: ignore[misc, name-defined, unused-ignore]
    """Vectors by a model."""

    batch_size = 64

    def __init__(self, model_id: str, path: str) -> None:
        self.model_id, self.path = model_id, path

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:  # noqa: ARG002
        """Vectors of texts, of length 1."""
        texts = [item if isinstance(item, str) else item.decode("utf-8", "replace") for item in items]
        return (vector.tolist() for vector in opened(self.path).embed(texts, truncate=True))


def _events(piece: Any) -> Iterator[Any]:
    """A piece of an answer as llm has it. Calls of tools are told at the end, whole."""
    if isinstance(piece, str):
        yield piece
    elif piece.content:
        yield piece.content
    elif piece.reasoning:
        yield llm.parts.StreamEvent(type="reasoning", chunk=piece.reasoning)


def _described(tool: Any) -> dict[str, Any]:
    """A tool of llm as OpenAI's API has it."""
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call; those that a model wrote wrongly are one text, for the tool to refuse."""
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        arguments = text
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}


def _messages(messages: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """llm's messages as those of a chat template."""
    for message in messages:
        text: list[str] = []
        calls = []
        for part in message.parts:
            kind = type(part).__name__
            if kind == "TextPart":
                text.append(part.text)
            elif kind == "ToolCallPart":
                function = {"name": part.name, "arguments": part.arguments}
                calls.append({"id": part.tool_call_id, "type": "function", "function": function})
            elif kind == "ToolResultPart":
                yield {"role": "tool", "name": part.name, "content": part.output, "tool_call_id": part.tool_call_id}
        if text or calls:
            said: dict[str, Any] = {"role": message.role, "content": "\n".join(text)}
            yield said | {"tool_calls": calls} if calls else said


# What is known


def _file() -> Path:
    folder: Path = llm.user_dir()  # type: ignore[no-untyped-call]
    return folder / "llama-rs.json"


def added() -> dict[str, dict[str, Any]]:
    """What was added, by the id of the model."""
    try:
        found: dict[str, dict[str, Any]] = json.loads(_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise click.ClickException(f"{_file()}: {e}") from e
    return found


def _write(models: dict[str, dict[str, Any]]) -> None:
    new = _file().with_suffix(".new")
    new.write_text(json.dumps(models, indent=2) + "\n", encoding="utf-8")
    os.replace(new, _file())


@llm.hookimpl
def register_models(register: Any) -> None:
    """Tells llm of what was added, and of ``LLAMA_RS_MODEL``, which is called ``llama-rs``."""
    for model_id, entry in added().items():
        register(
            LlamaRs(model_id, entry["path"]), AsyncLlamaRs(model_id, entry["path"]), aliases=tuple(entry["aliases"])
        )
    if path := os.environ.get("LLAMA_RS_MODEL"):
        register(LlamaRs("llama-rs", path), AsyncLlamaRs("llama-rs", path))


@llm.hookimpl
def register_embedding_models(register: Any) -> None:
    """The same for vectors."""
    for model_id, entry in added().items():
        register(LlamaRsEmbedding(model_id, entry["path"]), aliases=tuple(entry["aliases"]))


@llm.hookimpl
def register_commands(cli: Any) -> None:
    """Adds ``llm llama-rs``."""

    @cli.group(name="llama-rs")  # type: ignore[untyped-decorator, unused-ignore]
    def group() -> None:
        """Models that llama_rs runs from their files."""

    @group.command()  # type: ignore[untyped-decorator, unused-ignore]
    @click.argument("path", type=click.Path(exists=True, resolve_path=True))
    @click.option("aliases", "-a", "--alias", multiple=True, help="Another name; may be given several times.")
    @click.option("model_id", "--id", help="The name of the model.  [default: llama-rs/ and that of the file]")
    def add(path: str, aliases: tuple[str, ...], model_id: str | None) -> None:
        """Add a GGUF file or a directory of safetensors. It stays where it is."""
        from .errors import LlamaError

        try:
            opened(path)
        except LlamaError as e:
            raise click.ClickException(str(e)) from e
        name = model_id or f"llama-rs/{Path(path).name.removesuffix('.gguf')}"
        _write(added() | {name: {"path": path, "aliases": list(aliases)}})
        click.echo(name)

    @group.command()  # type: ignore[untyped-decorator, unused-ignore]
    @click.argument("name")
    def remove(name: str) -> None:
        """Forget a model, by its name or an alias. Its file stays."""
        models = added()
        found = [model_id for model_id, entry in models.items() if name in (model_id, *entry["aliases"])]
        if not found:
            raise click.ClickException(f"there is no model {name}: llm llama-rs list says what there is")
        _write({model_id: entry for model_id, entry in models.items() if model_id not in found})

    @group.command("list")  # type: ignore[untyped-decorator, unused-ignore]
    def list_() -> None:
        """Show what was added."""
        for model_id, entry in added().items():
            click.echo("\t".join([model_id, entry["path"], *entry["aliases"]]))
