"""LLaMA models that are ready at once.

>>> from llama_rs import Model
>>> model = Model("model.gguf")                       # milliseconds: the file is mapped, not read
>>> model.generate("Once upon a time", max_tokens=64).text
"""

from .checkpoint import Checkpoint, Tensor, Warmed
from .errors import (
    ContextOverflowError,
    LlamaError,
    ModelChangedError,
    ModelClosedError,
    ModelFileError,
    ModelFormatError,
    ModelNotFoundError,
    SavedSessionError,
    SessionBusyError,
    UnsupportedModelError,
)
from .model import Benchmark, Config, Model, Perplexity, Score
from .options import FinishReason, GenerateOptions, KvType, Load, OnOverflow, SamplingParams
from .session import Completion, Session, Stream, Timings
from .tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "Benchmark",
    "Checkpoint",
    "Completion",
    "Config",
    "ContextOverflowError",
    "FinishReason",
    "GenerateOptions",
    "KvType",
    "LlamaError",
    "Load",
    "Model",
    "ModelChangedError",
    "ModelClosedError",
    "ModelFileError",
    "ModelFormatError",
    "ModelNotFoundError",
    "OnOverflow",
    "Perplexity",
    "SamplingParams",
    "SavedSessionError",
    "Score",
    "Session",
    "SessionBusyError",
    "Stream",
    "Tensor",
    "Timings",
    "Tokenizer",
    "UnsupportedModelError",
    "Warmed",
]
