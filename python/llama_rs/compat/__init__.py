"""A drop-in for llama-cpp-python: ``from llama_rs.compat import Llama`` instead of ``from llama_cpp import Llama``.

The same classes in modules of the same names. For programs and packages that import ``llama_cpp`` themselves,
:func:`install` has that name mean this package.
"""

from __future__ import annotations

import sys
from importlib import import_module

from .llama import (
    LLAMA_DEFAULT_SEED,
    Llama,
    LlamaState,
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from .llama_cache import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache
from .llama_grammar import LlamaGrammar
from .llama_speculative import LlamaDraftModel
from .llama_tokenizer import BaseLlamaTokenizer, LlamaTokenizer
from .llama_types import *  # noqa: F403

# What options of the constructor are written with.
GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1 = 0, 1, 2, 3, 6, 7
GGML_TYPE_Q8_0, GGML_TYPE_BF16 = 8, 30
LLAMA_SPLIT_MODE_NONE, LLAMA_SPLIT_MODE_LAYER, LLAMA_SPLIT_MODE_ROW = 0, 1, 2
LLAMA_POOLING_TYPE_UNSPECIFIED, LLAMA_POOLING_TYPE_NONE, LLAMA_POOLING_TYPE_MEAN = -1, 0, 1
LLAMA_POOLING_TYPE_CLS, LLAMA_POOLING_TYPE_LAST, LLAMA_POOLING_TYPE_RANK = 2, 3, 4
LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED, LLAMA_ROPE_SCALING_TYPE_NONE = -1, 0
LLAMA_ROPE_SCALING_TYPE_LINEAR, LLAMA_ROPE_SCALING_TYPE_YARN, LLAMA_ROPE_SCALING_TYPE_LONGROPE = 1, 2, 3
LLAMA_ATTENTION_TYPE_UNSPECIFIED, LLAMA_ATTENTION_TYPE_CAUSAL, LLAMA_ATTENTION_TYPE_NON_CAUSAL = -1, 0, 1
GGML_NUMA_STRATEGY_DISABLED, GGML_NUMA_STRATEGY_DISTRIBUTE = 0, 1

__version__ = "0.3.36"
"""The version of llama-cpp-python whose interface this is."""

MODULES = (
    "llama",
    "llama_cache",
    "llama_chat_format",
    "llama_grammar",
    "llama_speculative",
    "llama_tokenizer",
    "llama_types",
)
"""The modules that both packages have."""


def install() -> None:
    """Has ``import llama_cpp`` give this package, in this process, also to packages that import it themselves.

    Raises:
        RuntimeError: if the real one was imported already.
    """
    before = sys.modules.get("llama_cpp")
    if before is not None and before is not sys.modules[__name__]:
        raise RuntimeError("llama_cpp is imported already: call llama_rs.compat.install() before what imports it")
    sys.modules["llama_cpp"] = sys.modules[__name__]
    for name in MODULES:
        sys.modules[f"llama_cpp.{name}"] = import_module(f"{__name__}.{name}")


def llama_supports_gpu_offload() -> bool:
    """Whether layers can be computed on a GPU: no."""
    return False


__all__ = [
    "LLAMA_DEFAULT_SEED",
    "BaseLlamaCache",
    "BaseLlamaTokenizer",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaDraftModel",
    "LlamaGrammar",
    "LlamaRAMCache",
    "LlamaState",
    "LlamaTokenizer",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "install",
]
