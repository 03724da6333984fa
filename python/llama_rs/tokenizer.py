"""Text to token ids and back."""

from __future__ import annotations

import os
from collections.abc import Sequence

from . import _core
from .errors import ModelChangedError
from .lazy import typing
from .notes import note


class Tokenizer:
    """The tokenizer of a model file, which may also be one with a vocabulary and no weights.

    The vocabulary is indexed when it is first used. A tokenizer can be pickled, as the path of its file and a
    fingerprint: whoever unpickles it opens the same file.

    Raises:
        ModelFileError, ModelFormatError, UnsupportedModelError: by what is wrong with the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._core = _core.Tokenizer(path)
        self._path = os.fspath(path)

    @classmethod
    def _of(cls, core: _core.Tokenizer, path: str) -> Tokenizer:
        self = cls.__new__(cls)
        self._core, self._path = core, path
        return self

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Turns text into token ids.

        Args:
            text: the text.
            add_special: put the tokens around it that the model expects (a beginning-of-text, usually).
            parse_special: read ``<|im_start|>`` and the like as the tokens they name, not as text.
        """
        return self._encode(text, add_special, parse_special, None)

    def _encode(self, text: str, add_special: bool, parse_special: bool, at_most: int | None) -> list[int]:
        ids = self._core.encode(text, add_special, parse_special, at_most)
        for odd in self._core.take_notes():  # once each
            note(f"{self._path}: {odd}")
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Turns token ids into text. Bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: for an id that is not in the vocabulary.
        """
        return self._core.decode(ids, skip_special)

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for."""
        return self._core.token_bytes(token_id)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._core.vocab_size

    @property
    def bos(self) -> int | None:
        """The beginning-of-text token."""
        return self._core.bos

    @property
    def eos(self) -> int | None:
        """The end-of-text token."""
        return self._core.eos

    def is_special(self, token_id: int) -> bool:
        """Whether it is a control token, which is no text."""
        return self._core.is_special(token_id)

    def is_end_of_generation(self, token_id: int) -> bool:
        """Whether it ends an answer."""
        return self._core.is_end_of_generation(token_id)

    def __reduce__(self) -> tuple[typing.Any, ...]:
        return _reopen, (os.path.abspath(self._path), self._core.checkpoint().fingerprint())

    def __repr__(self) -> str:
        return f"<Tokenizer of {self.vocab_size} tokens>"


def _reopen(path: str, fingerprint: tuple[int, int, int]) -> Tokenizer:
    """A tokenizer as it was pickled."""
    tokenizer = Tokenizer(path)
    if tokenizer._core.checkpoint().fingerprint() != fingerprint:
        raise ModelChangedError(f"{path}: the model file is not the one that was pickled", path)
    return tokenizer
