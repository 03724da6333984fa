"""What holds memory, and frees it at the end of a ``with`` block, or of an ``async with``."""

from __future__ import annotations

from abc import ABC, abstractmethod

from .lazy import types, typing


class Closing(ABC):
    """A context manager that closes itself."""

    @abstractmethod
    def close(self) -> None:
        """Frees what it holds; closing again does nothing."""

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        self.close()


class AsyncClosing(ABC):
    """An asynchronous context manager that closes itself."""

    @abstractmethod
    async def aclose(self) -> None:
        """Frees what it holds; closing again does nothing."""

    async def __aenter__(self) -> typing.Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        await self.aclose()
