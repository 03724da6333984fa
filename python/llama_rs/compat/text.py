"""Tokens to the text of an answer: whole characters, and nothing that a stop string may still swallow."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any


class Text:
    """The text of an answer, token by token.

    A token has the text that it completes, so that one in the middle of a character has none. What is *certain* can go
    out: it is before anything that may yet become a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.text = ""
        self.stopped = False
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._ends: list[tuple[int, Any]] = []  # where in the text each token ends that did not go out, what it brings
        self._sent = 0

    def push(self, piece: bytes, brings: Any = None) -> None:
        """Adds the bytes of a token, until a stop string ends the text, which then is cut before it."""
        before = len(self.text)
        self.text += self._decoder.decode(piece)
        self._ends.append((len(self.text), brings))
        begin = max(before - self._longest + 1, 0)
        found = [at for stop in self._stops if (at := self.text.find(stop, begin)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    @property
    def is_whole(self) -> bool:
        """Whether it does not end within a character."""
        return not self._decoder.getstate()[0]

    def released(self, *, final: bool = False) -> Iterator[tuple[str, Any]]:
        """What became certain, token by token: its text and what it brought. At the end, all that is left."""
        certain = len(self.text) - (0 if final else self._held())
        while self._ends:
            end, brings = self._ends[0]
            if end > certain and not (final and self._sent < certain):
                if final:
                    self._ends.clear()
                return
            del self._ends[0]
            piece = self.text[self._sent : min(end, certain)]
            self._sent = min(end, certain)
            if piece or brings is not None:
                yield piece, brings

    def _held(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        if self.stopped:
            return 0
        held = 0
        for stop in self._stops:
            for n in range(min(len(stop) - 1, len(self.text)), held, -1):
                if self.text.endswith(stop[:n]):
                    held = n
                    break
        return held
