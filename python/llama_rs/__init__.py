"""LLaMA models that are ready at once.

>>> from llama_rs import Model
>>> model = Model("model.gguf")                       # milliseconds: the file is mapped, not read
>>> model.generate("Once upon a time", max_tokens=64).text

The names below are imported when they are first used: whoever wants one does not wait for all.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .async_chat import AsyncChatStream
    from .chat import ChatCompletion, ChatDelta, ChatOptions, ChatStream, ToolCall, ToolCallDelta, Usage
    from .chat import ChatFinishReason as ChatFinishReason
    from .checkpoint import Checkpoint, Tensor, Warmed
    from .classify import Calibration, Classification, Classifier, ClassifyOptions, Evaluation
    from .engine import AsyncEngine, AsyncStream, EngineStats
    from .errors import (
        ContextOverflowError,
        EngineFullError,
        GrammarError,
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
    from .files import OutputType as OutputType
    from .files import convert, merge, split
    from .model import Benchmark, Config, Model, Perplexity, Score
    from .options import FinishReason as FinishReason
    from .options import GenerateOptions, SamplingParams
    from .options import KvType as KvType
    from .options import Load as Load
    from .options import LogitsProcessor as LogitsProcessor
    from .options import Messages as Messages
    from .options import OnOverflow as OnOverflow
    from .options import Pooling as Pooling
    from .options import Schema as Schema
    from .options import Tools as Tools
    from .quantization import Importance, Quantized, QuantizedTensor, imatrix, quantize
    from .server import Server
    from .session import Completion, Session, Stream, Timings, TokenLogprob, TopLogprob
    from .tokenizer import Tokenizer
    from .tools import run_tools

__version__ = "0.1.0"

__all__ = [
    "AsyncChatStream",
    "AsyncEngine",
    "AsyncStream",
    "Benchmark",
    "Calibration",
    "ChatCompletion",
    "ChatDelta",
    "ChatOptions",
    "ChatStream",
    "Checkpoint",
    "Classification",
    "Classifier",
    "ClassifyOptions",
    "Completion",
    "Config",
    "ContextOverflowError",
    "EngineFullError",
    "EngineStats",
    "Evaluation",
    "GenerateOptions",
    "GrammarError",
    "Importance",
    "LlamaError",
    "Model",
    "ModelChangedError",
    "ModelClosedError",
    "ModelFileError",
    "ModelFormatError",
    "ModelNotFoundError",
    "Perplexity",
    "Quantized",
    "QuantizedTensor",
    "SamplingParams",
    "SavedSessionError",
    "Score",
    "Server",
    "Session",
    "SessionBusyError",
    "Stream",
    "Tensor",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "ToolCall",
    "ToolCallDelta",
    "TopLogprob",
    "UnsupportedModelError",
    "Usage",
    "Warmed",
    "convert",
    "imatrix",
    "merge",
    "quantize",
    "run_tools",
    "split",
]

# Public too: words and unions, which have no docstring of their own.
_LITERALS = (
    "ChatFinishReason",
    "FinishReason",
    "KvType",
    "Load",
    "LogitsProcessor",
    "Messages",
    "OnOverflow",
    "OutputType",
    "Pooling",
    "Schema",
    "Tools",
)

# Where those names are, the quickest to import first.
_HOMES = (
    "errors",
    "options",
    "files",
    "tokenizer",
    "checkpoint",
    "session",
    "model",
    "chat",
    "classify",
    "quantization",
    "engine",
    "async_chat",
    "tools",
    "server",
)


def __getattr__(name: str) -> object:
    if name in __all__ or name in _LITERALS:
        from importlib import import_module

        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if name in vars(module):
                globals()[name] = value = vars(module)[name]
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LITERALS})
