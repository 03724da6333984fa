"""The prompt cache: a file with a computed prompt, that saves work and decides nothing.

A cache that cannot be used or written is no reason to withhold an answer: that is found out before the first piece,
kept as :attr:`PromptCache.error`, and said by whoever talks to people. A file that is something else than a sound cache
of this model is never replaced, for the name is most likely wrong. Only who asks for the file as it is gets an error.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from .errors import LlamaError, ModelFileError, SavedSessionError
from .lazy import TYPE_CHECKING, hints

if TYPE_CHECKING:
    from .model import Model
    from .session import Session


class PromptCache:
    """The file of one answer."""

    def __init__(self, path: str | os.PathLike[str], *, readonly: bool) -> None:
        self.path = path
        self.error: str | None = None
        self._held = 0  # tokens of the file, as far as they fit in the context
        self._is_to_be_written = not readonly

    def open(self, model: Model, lora: hints.Lora | None = None) -> Session:
        """A session of what the file holds; an empty one if there is no file, or an empty file (mktemp makes one).

        Raises:
            SavedSessionError: if it is to be used as it is and is no session of this model.
            ModelFileError: if it is to be used as it is and cannot be read.
        """
        session = None
        try:
            if not self._is_to_be_written or _holds_something(self.path):
                session = model._load_session(self.path, model.context_length, prefix=True, lora=lora)
                self._held = session.position
        except (ModelFileError, SavedSessionError) as e:
            if not self.is_dispensable(e):
                raise
        if self._is_to_be_written:
            self._try_the_folder()
        return session or model.session(lora=lora)

    def keep(self, session: Session, prompt_tokens: int, cached_tokens: int) -> None:
        """Writes the file once the prompt is computed, if that is worth it. Later calls do nothing."""
        if not self._is_to_be_written:
            return
        self._is_to_be_written = False
        if is_worth_writing(prompt_tokens, cached_tokens, self._held):
            try:
                session._handle.save(self.path, prompt_tokens)
            except LlamaError as e:
                self._give_up(str(e))

    def compute(self, session: Session, prompt: Sequence[int]) -> None:
        """Computes a prompt that nobody wants an answer to, and writes the file."""
        if self._is_to_be_written:
            tokens = session.tokens
            most = min(len(tokens), len(prompt) - 1)
            cached = next((i for i in range(most) if tokens[i] != prompt[i]), most)
            session.truncate(cached)
            try:
                session._handle.forward(prompt[cached:])
            except SavedSessionError as e:
                if not self.is_dispensable(e):
                    raise
            self.keep(session, len(prompt), cached)

    def is_dispensable(self, error: LlamaError) -> bool:
        """Whether the answer goes on without the file, which ``error`` is about. If so it is not written either."""
        if self._is_to_be_written:
            self._is_to_be_written = False
            self.error = f"{error}; it is not used, and not replaced"
            return True
        return False

    def _try_the_folder(self) -> None:
        """Finds out whether a file can be written there, before anything is computed."""
        from contextlib import suppress

        folder = os.path.dirname(os.path.realpath(self.path))
        trial = os.path.join(os.fsdecode(folder), f".llama_rs-{os.getpid()}-{id(self)}.tmp")
        try:
            os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with suppress(OSError):
                os.unlink(trial)
        except OSError as e:
            self._give_up(f"{os.fsdecode(self.path)}: {e.strerror}")

    def _give_up(self, why: str) -> None:
        self._is_to_be_written = False
        self.error = f"{why}; the prompt is not kept"


def is_worth_writing(prompt_tokens: int, cached_tokens: int, held: int) -> bool:
    """Whether a cache of this prompt gains enough over the file, of whose ``held`` tokens ``cached_tokens`` were used.

    - A prompt that goes on from all that the file holds has to add a sixteenth: a token takes some 25 times longer to
      compute than to write, and the whole file is written.
    - One that differs from it earlier has to be new in more than half. So a changing question behind fixed rules leaves
      the file alone: another question in it would help the next one as little.
    """
    if held == 0:
        return True
    if cached_tokens >= held - 1:  # the last token is computed again in any case
        return prompt_tokens - held > held / 16
    return prompt_tokens - cached_tokens > cached_tokens


def _holds_something(path: str | os.PathLike[str]) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return not stat.S_ISREG(found.st_mode) or found.st_size > 0
