"""An ASGI application: the same server inside of FastAPI, Starlette, Ray Serve or any ASGI server that uses asyncio.

>>> from llama_rs import Model
>>> from llama_rs.asgi import App
>>> app = App(Model("model.gguf"))               # uvicorn module:app
>>> api.mount("/llm", App(Model("model.gguf")))  # or a part of another application

It is a :class:`llama_rs.Server` on a socket file of its own, to which requests are passed on as they are: so there is
one service, with one set of limits, whichever way a client comes. A client that goes away closes the connection behind
it, which cancels what was being computed for it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from .model import Model
from .server import Server

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer", b"proxy-connection"}
"""Headers that are about a connection, and not about what is sent over it."""


class App:
    """The application. Its arguments are those of :class:`llama_rs.Server`, but for where that listens."""

    def __init__(self, model: Model | str | os.PathLike[str] | None = None, **options: Any) -> None:
        for name in ("host", "port", "unix"):
            if name in options:
                raise TypeError(f"{name} is for llama_rs.Server: an application does not listen itself")
        self._model = model
        self._options = options
        self._server: Server | None = None
        self._folder: str | None = None

    def start(self) -> None:
        """Starts the engine; by itself that happens with the first request, or with the server that the app runs in."""
        if self._server is None:
            self._folder = tempfile.mkdtemp(prefix="llama_rs-")  # of this user alone
            try:
                self._server = Server(self._model, unix=os.path.join(self._folder, "socket"), **self._options)
            except BaseException:
                self.close()
                raise

    def check(self) -> None:
        """Does nothing, unless the engine has stopped because of an error in it: then it raises that."""
        if self._server is not None and self._server._core.has_crashed:
            raise RuntimeError("the engine has stopped because of an error in it")

    def close(self) -> None:
        """Ends the engine."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            self.start()
            await self._pass_on(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    self.start()
                except Exception as e:
                    await send({"type": "lifespan.startup.failed", "message": str(e)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await asyncio.to_thread(self.close)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _pass_on(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        assert self._folder is not None
        reader, writer = await asyncio.open_unix_connection(os.path.join(self._folder, "socket"))
        asking = asyncio.create_task(_ask(scope, receive, writer))
        answering = asyncio.create_task(_answer(reader, send))
        tasks = (asking, answering)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and not answering.done() and asking.exception() is None and asking.result():
                answering.cancel()  # the client is gone
            elif not answering.done():
                await asyncio.wait((answering,))
            asking.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
                    await task
        finally:  # also when the server that the app runs in cancels it, as Ray Serve does when a client goes away
            for task in tasks:
                task.cancel()
            writer.close()


async def _ask(scope: MutableMapping[str, Any], receive: Receive, writer: asyncio.StreamWriter) -> bool:
    """Passes a request on; then waits for the client to go away, and gives True."""
    path: str = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
    target = path.encode() if path.isascii() else b"/" + path.encode("ascii", "backslashreplace")
    query: bytes = scope.get("query_string", b"")
    lines = [scope["method"].encode() + b" " + _quoted(target) + (b"?" + query if query else b"") + b" HTTP/1.1"]
    has_length = False
    for name, value in scope["headers"]:
        if name.lower() not in HOP_BY_HOP:
            has_length = has_length or name.lower() == b"content-length"
            lines.append(name + b": " + value)
    lines.append(b"connection: close")
    is_chunked = not has_length and scope["method"] in ("POST", "PUT", "PATCH")
    if is_chunked:
        lines.append(b"transfer-encoding: chunked")
    writer.write(b"\r\n".join([*lines, b"", b""]))
    more = True
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return True
        body: bytes = message.get("body", b"")
        if body:
            writer.write(b"%x\r\n%b\r\n" % (len(body), body) if is_chunked else body)
        if more and not message.get("more_body", False):
            more = False
            if is_chunked:
                writer.write(b"0\r\n\r\n")
        await writer.drain()


def _quoted(path: bytes) -> bytes:
    """A path without what would end it."""
    return b"".join(
        b"%%%02X" % byte if byte <= 32 or byte >= 127 or byte in b"?#%" else bytes((byte,)) for byte in path
    )


async def _answer(reader: asyncio.StreamReader, send: Send) -> None:
    """Passes an answer on, as it comes."""
    head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    while head[0].split(b" ")[1] == b"100":
        head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    pairs = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in head[1:-2])]
    is_chunked = any(name == b"transfer-encoding" and value.lower() == b"chunked" for name, value in pairs)
    headers = [(name, value) for name, value in pairs if name not in HOP_BY_HOP]
    await send({"type": "http.response.start", "status": int(head[0].split(b" ")[1]), "headers": headers})
    if is_chunked:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            chunk = await reader.readexactly(size + 2)
            await send({"type": "http.response.body", "body": chunk[:-2], "more_body": True})
    else:
        while block := await reader.read(1 << 16):
            await send({"type": "http.response.body", "body": block, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
