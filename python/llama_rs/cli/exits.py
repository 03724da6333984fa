"""How a command ends, where that is not the end of its work: exit codes, and what becomes a line and a code."""

from __future__ import annotations

EXIT_FAILURE, EXIT_USAGE, EXIT_BAD_MODEL, EXIT_UNSUPPORTED_MODEL = 1, 2, 3, 4
EXIT_INTERRUPTED, EXIT_CLOSED_PIPE = 130, 141  # what a shell says of a process that SIGINT or SIGPIPE ended


class Exit(Exception):
    """The process ends with this code; all that is to be said has been said."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Failure(Exception):
    """What was asked for cannot be done: exit code 1."""


class UsageError(Exception):
    """What was asked for makes no sense: exit code 2.

    ``hint`` says where to look, if that is not simply the help of the command.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
