"""What can go wrong, by what a caller can do about it.

All of them can be pickled, and all of them print the one line that says what is wrong, where, and what to do. An
argument out of range is a ``ValueError``.
"""

from __future__ import annotations

from .lazy import typing


class LlamaError(Exception):
    """The base of every error of this package."""

    def __init__(self, message: str, *facts: typing.Any) -> None:
        super().__init__(message, *facts)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ModelFileError(LlamaError, OSError):
    """The operating system would not open, read or map the file."""

    def __init__(self, message: str, path: str | None = None, errno: int | None = None) -> None:
        super().__init__(message)  # one argument: OSError would take more for its own errno, strerror and filename
        self.filename = path
        self.errno = errno

    def __reduce__(self) -> tuple[typing.Any, ...]:
        return type(self), (self.message, self.filename, self.errno)


class ModelNotFoundError(ModelFileError, FileNotFoundError):
    """There is no such file."""


class ModelFormatError(LlamaError, ValueError):
    """The file is not a valid model file: truncated, damaged or made to deceive."""

    def __init__(
        self, message: str, path: str | None = None, offset: int | None = None, name: str | None = None
    ) -> None:
        super().__init__(message, path, offset, name)
        self.path = path
        self.offset = offset
        self.name = name


class ModelChangedError(LlamaError):
    """The file was cut short, written over or could not be read while it was in use, or is not the one it should be.

    Nothing that was computed from it was returned. The model is of no more use: open it again.
    """

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message, path)
        self.path = path


class UnsupportedModelError(LlamaError):
    """The file is valid, but holds something that this version cannot run."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message, path)
        self.path = path


class SavedSessionError(LlamaError, ValueError):
    """The file is not a saved session, or not one of this model."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message, path)
        self.path = path


class ContextOverflowError(LlamaError, ValueError):
    """The tokens do not fit in the context."""

    def __init__(self, message: str, tokens: int | None = None, context_length: int | None = None) -> None:
        super().__init__(message, tokens, context_length)
        self.tokens = tokens
        self.context_length = context_length


class GrammarError(LlamaError, ValueError):
    """A grammar or a JSON schema that cannot be enforced.

    ``pointer`` is the JSON pointer of the keyword in the schema that is to blame.
    """

    def __init__(self, message: str, pointer: str | None = None) -> None:
        super().__init__(message, pointer)
        self.pointer = pointer


class ModelClosedError(LlamaError):
    """The model was closed."""


class EngineFullError(LlamaError, RuntimeError):
    """Too many answers wait, or their prompts are too long together: try again, after ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after


class SessionBusyError(LlamaError, RuntimeError):
    """The session is in use by another call, or was used for something else while a stream was going on with it."""
