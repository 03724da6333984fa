"""The stored answers: `logits/NAME.npz`, rounded to a 32767th of the largest, which is finer than any tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

FOLDER = Path(__file__).parent / "logits"


def write(name: str, answers: Mapping[str, Array]) -> None:
    """`answers` by kind: "logits" of a decoder, a vector or vectors by pooling of an encoder."""
    steps = {kind: np.float32(np.abs(answer).max() / 32767) for kind, answer in answers.items()}
    rounded = {kind: np.rint(answer / steps[kind]).astype(np.int16) for kind, answer in answers.items()}
    np.savez_compressed(
        FOLDER / f"{name}.npz", allow_pickle=False, **rounded, **{f"{k} step": step for k, step in steps.items()}
    )


def read(name: str, kind: str = "logits") -> Array:
    """Logits or vectors of all tokens, ``(n_tokens, vocab_size)`` or ``(n_tokens, dim)``; a pooled one, ``(dim,)``."""
    with np.load(FOLDER / f"{name}.npz") as file:
        out: Array = file[kind] * file[f"{kind} step"]
    return out
