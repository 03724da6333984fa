"""The stored logits: `logits/NAME.npz`, rounded to a 32767th of the largest, which is finer than any tolerance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

FOLDER = Path(__file__).parent / "logits"


def write(name: str, logits: Array) -> None:
    step = np.float32(np.abs(logits).max() / 32767)
    np.savez_compressed(FOLDER / f"{name}.npz", step=step, logits=np.rint(logits / step).astype(np.int16))


def read(name: str) -> Array:
    """``(n_tokens, vocab_size)``"""
    with np.load(FOLDER / f"{name}.npz") as file:
        out: Array = file["logits"] * file["step"]
    return out
