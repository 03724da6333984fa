"""Tokenizers of llama-cpp-python's form: bytes to ids and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .llama import Llama


class BaseLlamaTokenizer(ABC):
    """What ``Llama(tokenizer=...)`` takes."""

    @abstractmethod
    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Ids of a text, with a beginning-of-text, and reading ``<|im_start|>`` and the like, if so."""

    @abstractmethod
    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        """The text of ids; that of control tokens only if ``special``."""


class LlamaTokenizer(BaseLlamaTokenizer):
    """The tokenizer of the model file."""

    def __init__(self, llama: Llama) -> None:
        self._tokenizer = llama._tokenizer
        self._pieces: dict[int, bytes] = {}

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        if not isinstance(text, (bytes, bytearray)):
            raise TypeError(f"text is of type {type(text).__name__}, it must be bytes: text.encode('utf-8')")
        return self._tokenizer.encode(text.decode("utf-8", "replace"), add_special=add_bos, parse_special=special)

    def detokenize(
        self,
        tokens: list[int],
        prev_tokens: list[int] | None = None,  # noqa: ARG002
        special: bool = False,
    ) -> bytes:
        token_bytes = self._tokenizer.token_bytes if special else self._piece
        text = b"".join(map(token_bytes, tokens))
        # Models of the first Llama begin a text with a space that nobody wrote.
        return text[1:] if tokens and tokens[0] == self._tokenizer.bos and text[:1] == b" " else text

    def _piece(self, token: int) -> bytes:
        """What a token stands for in an answer: a control token stands for nothing."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = b"" if self._tokenizer.is_special(token) else self._tokenizer.token_bytes(token)
            self._pieces[token] = piece
        return piece

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Ids of a text."""
        return self.tokenize(text.encode("utf-8", "ignore"), add_bos, special)

    def decode(self, tokens: list[int]) -> str:
        """The text of ids."""
        return self.detokenize(tokens).decode("utf-8", "ignore")

    @classmethod
    def from_ggml_file(cls, path: str) -> LlamaTokenizer:
        """The tokenizer of a file."""
        from .llama import Llama

        return cls(Llama(path, vocab_only=True))


class LlamaHFTokenizer(BaseLlamaTokenizer):
    """A tokenizer of the ``transformers`` package."""

    def __init__(self, hf_tokenizer: Any) -> None:
        self.hf_tokenizer = hf_tokenizer

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:  # noqa: ARG002
        ids = self.hf_tokenizer.encode(text.decode("utf-8", "ignore"), add_special_tokens=special)
        return [int(token) for token in ids]

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        def text(ids: list[int]) -> bytes:
            decoded: str = self.hf_tokenizer.decode(ids, skip_special_tokens=not special)
            return decoded.encode("utf-8", "ignore")

        before = prev_tokens or []
        return text([*before, *tokens])[len(text(before)) if before else 0 :]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str) -> LlamaHFTokenizer:
        """One of the Hugging Face hub or of a directory."""
        try:
            from transformers import AutoTokenizer  # type: ignore[import-not-found, unused-ignore]
        except ImportError as e:
            raise ImportError(
                "The `transformers` library is required to use the `HFTokenizer`. "
                "You can install it with `pip install transformers`."
            ) from e
        return cls(AutoTokenizer.from_pretrained(pretrained_model_name_or_path=pretrained_model_name_or_path))
