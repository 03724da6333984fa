"""LLaMA models that are ready at once.

>>> from llama_rs import Model
>>> model = Model("model.gguf")                       # milliseconds: the file is mapped, not read
>>> model.generate("Once upon a time", max_tokens=64).text
"""

from .checkpoint import Checkpoint, Tensor
from .errors import (
    ContextOverflowError,
    LlamaError,
    ModelChangedError,
    ModelClosedError,
    ModelFileError,
    ModelFormatError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from .model import Completion, Config, Model, Session, Stream, Timings
from .tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "Completion",
    "Config",
    "ContextOverflowError",
    "LlamaError",
    "Model",
    "ModelChangedError",
    "ModelClosedError",
    "ModelFileError",
    "ModelFormatError",
    "ModelNotFoundError",
    "Session",
    "Stream",
    "Tensor",
    "Timings",
    "Tokenizer",
    "UnsupportedModelError",
]
