"""Draft models: they change how fast an answer comes, and not the answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class LlamaDraftModel(ABC):
    """What guesses the next tokens of a text."""

    @abstractmethod
    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]: ...


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Guesses that a text goes on as it did where its last tokens stood before."""

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:  # noqa: ARG002
        import numpy as np

        n = len(input_ids)
        for size in range(min(self.max_ngram_size, n - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(input_ids, size)[:-1]
            for at in np.flatnonzero((windows == input_ids[-size:]).all(axis=1)):
                guess = input_ids[at + size : at + size + self.num_pred_tokens]
                if len(guess):
                    return guess
        return np.array([], dtype=np.intc)
