"""Making model files: a GGUF of a directory, parts of a GGUF, one of parts.

A file appears under its name when it is whole; whatever goes wrong, and Ctrl-C, leaves what was there before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

from . import _core

OutputType = Literal["auto", "f32", "f16", "bf16", "q8_0"]
"""What matrices of a converted file are; `auto`: what they are in the directory."""

Progress = Callable[[int, int], object]
"""Called now and then with the bytes written so far and the bytes of the file."""


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    output_type: OutputType = "auto",
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> None:
    """Writes the model in a directory, with its tokenizer, as a GGUF file that other programs read too.

    Needs no memory to speak of: rows are read, changed and written a few megabytes at a time. A directory need not be
    converted to be run; the GGUF is one file, starts without its tokenizer being read, and can be quantized.

    Args:
        source: a directory as Hugging Face has them: ``config.json``, safetensors, the files of a tokenizer.
        target: the file; one that is there is replaced.
        output_type: the type of matrices; vectors are F32. ``"q8_0"`` takes half the room of 16 bits.
        threads: cores to use; by default those that this process may use.
        on_progress: called now and then with the bytes written so far and the bytes of the file.

    Raises:
        ModelFileError: if something cannot be read or written.
        ModelFormatError: if something in the directory is damaged.
        UnsupportedModelError: for a family that is not known, and for weights that are quantized already.
        ValueError: if an argument is out of range.
    """
    _core.convert_directory(source, target, output_type, threads, on_progress)


def split(
    source: str | os.PathLike[str],
    prefix: str | os.PathLike[str],
    *,
    max_size: int | None = None,
    max_tensors: int | None = None,
    on_progress: Progress | None = None,
) -> list[str]:
    """Writes a GGUF file in parts, called ``PREFIX-00001-of-00003.gguf`` and so on; gives their paths.

    Args:
        source: the file, or any part of one that is in parts already.
        prefix: what the names begin with.
        max_size: bytes of tensors in a part, which has one at least.
        max_tensors: tensors in a part; give one of the two.
        on_progress: called now and then with the bytes written so far and the bytes of all parts.

    Raises:
        ModelFileError, ModelFormatError, UnsupportedModelError: by what is wrong with the file.
        ValueError: if an argument is out of range.
    """
    return [os.fspath(path) for path in _core.split(source, prefix, max_tensors, max_size, on_progress)]


def merge(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, on_progress: Progress | None = None
) -> None:
    """Writes a model that is in parts as one GGUF file.

    Args:
        source: any of the parts; the others are found by its name.
        target: the file; one that is there is replaced.
        on_progress: called now and then with the bytes written so far and the bytes of the file.

    Raises:
        ModelFileError, ModelFormatError, UnsupportedModelError: by what is wrong with a part.
        ValueError: if it is no part of anything.
    """
    _core.merge(source, target, on_progress)
