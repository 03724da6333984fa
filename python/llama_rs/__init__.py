"""LLaMA models that are ready at once.

>>> from llama_rs import Model
>>> model = Model("model.gguf")                       # milliseconds: the file is mapped, not read
>>> model.generate("Once upon a time", max_tokens=64).text

The names below are imported when they are first used: whoever wants one does not wait for all.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .async_chat import AsyncChatStream
    from .chat import ChatCompletion, ChatDelta, ChatStream, ToolCall, ToolCallDelta, Usage
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
    from .hints import ChatFinishReason as ChatFinishReason
    from .hints import ChatOptions, GenerateOptions
    from .hints import FinishReason as FinishReason
    from .hints import KvType as KvType
    from .hints import Load as Load
    from .hints import LogitsProcessor as LogitsProcessor
    from .hints import Messages as Messages
    from .hints import OnOverflow as OnOverflow
    from .hints import Pooling as Pooling
    from .hints import Schema as Schema
    from .hints import Tools as Tools
    from .model import Benchmark, Config, Model, Perplexity, Score
    from .options import SamplingParams
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
    "tokenizer",
    "checkpoint",
    "session",
    "model",
    "hints",
    "files",
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
        from .lazy import load

        for home in _HOMES:
            names = vars(load(f"{__name__}.{home}"))
            if name in names:
                globals()[name] = value = names[name]
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LITERALS})
