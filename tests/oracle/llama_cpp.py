"""llama.cpp itself, by the C interface that the package xllamacpp exports.

Weights, keys and values are float32 here, and attention is the plain one, so what it returns is as exact as it gets.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int32, c_uint8, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

F32, F16 = 0, 1
POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}


class ModelParams(Structure):
    """The beginning of `llama_model_params`. Both structures are passed in memory, where a longer one does no harm."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("rest", c_uint8 * 64),
    )


class ContextParams(Structure):
    """The beginning of `llama_context_params`."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("rest", c_uint8 * 128),  # more than there is: copied as it comes
    )


class Batch(Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_uint8)),
    )


LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
log: list[str] = []


def _collect(level: int, text: bytes, _data: Any) -> None:
    if level >= 3 or os.environ.get("LLAMA_CPP_LOG"):  # warnings and errors
        log.append(text.decode(errors="replace"))


_log = LOG_CALLBACK(_collect)


@cache
def library() -> ctypes.CDLL:
    import xllamacpp

    (path,) = Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    lib = ctypes.CDLL(str(path))
    lib.llama_log_set.argtypes = (LOG_CALLBACK, c_void_p)
    lib.llama_model_default_params.restype = ModelParams
    lib.llama_context_default_params.restype = ContextParams
    lib.llama_model_load_from_file.argtypes = (c_char_p, ModelParams)
    lib.llama_model_load_from_file.restype = c_void_p
    lib.llama_init_from_model.argtypes = (c_void_p, ContextParams)
    lib.llama_init_from_model.restype = c_void_p
    lib.llama_batch_init.argtypes = (c_int32, c_int32, c_int32)
    lib.llama_batch_init.restype = Batch
    for name in ("llama_decode", "llama_encode"):
        getattr(lib, name).argtypes = (c_void_p, Batch)
    for name in ("llama_get_logits_ith", "llama_get_embeddings_ith", "llama_get_embeddings_seq"):
        getattr(lib, name).argtypes = (c_void_p, c_int32)
        getattr(lib, name).restype = POINTER(c_float)
    lib.llama_model_get_vocab.argtypes = (c_void_p,)
    lib.llama_model_get_vocab.restype = c_void_p
    lib.llama_vocab_n_tokens.argtypes = (c_void_p,)
    lib.llama_model_n_embd.argtypes = (c_void_p,)
    lib.llama_model_n_embd_out.argtypes = (c_void_p,)
    lib.llama_model_n_cls_out.argtypes = (c_void_p,)
    lib.llama_model_has_encoder.argtypes = (c_void_p,)
    lib.llama_set_embeddings.argtypes = (c_void_p, c_bool)
    lib.llama_set_embeddings.restype = None
    for name in ("llama_free", "llama_model_free"):
        getattr(lib, name).argtypes = (c_void_p,)
        getattr(lib, name).restype = None
    lib.llama_batch_free.argtypes = (Batch,)
    lib.llama_batch_free.restype = None
    lib.llama_log_set(_log, None)
    lib.llama_backend_init()
    return lib


def run(
    path: str | Path,
    tokens: Sequence[int],
    context: int,
    *,
    kv_type: int = F32,
    pooling: str | None = None,
    pieces: Sequence[int] | None = None,
) -> Array:
    """Logits of each token given those before it, ``(n_tokens, vocab_size)``; with `pooling` embeddings: of each token
    for "none", else one of all, ``(n_tokens, dim)`` or ``(dim,)``.

    `pieces` are the lengths that the tokens are fed in; all at once without.
    """
    lib = library()
    log.clear()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise RuntimeError(f"llama.cpp does not load it: {' '.join(log).strip()}")
    context_params = lib.llama_context_default_params()
    context_params.n_ctx = context
    context_params.n_batch = context_params.n_ubatch = max(512, len(tokens))
    context_params.n_threads = context_params.n_threads_batch = 1
    context_params.type_k = context_params.type_v = kv_type
    context_params.flash_attn_type = 0
    if pooling is not None:
        context_params.pooling_type = POOLING[pooling]
    ctx = lib.llama_init_from_model(model, context_params)
    if not ctx:
        raise RuntimeError(f"llama.cpp makes no context: {' '.join(log).strip()}")

    lib.llama_set_embeddings(ctx, pooling is not None)

    out: list[Array] = []
    at = 0
    for n in pieces or [len(tokens)]:
        batch = lib.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i in range(n):
            batch.token[i] = tokens[at + i]
            batch.pos[i] = at + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = 1
        status = lib.llama_decode(ctx, batch)
        if status != 0:
            raise RuntimeError(f"llama.cpp decodes with {status}: {' '.join(log).strip()}")
        if pooling in (None, "none"):
            get = lib.llama_get_logits_ith if pooling is None else lib.llama_get_embeddings_ith
            width = (
                lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
                if pooling is None
                else lib.llama_model_n_embd_out(model)
            )
            out += [np.ctypeslib.as_array(get(ctx, i), (width,)).copy() for i in range(n)]
        else:
            width = lib.llama_model_n_cls_out(model) if pooling == "rank" else lib.llama_model_n_embd_out(model)
            out = [np.ctypeslib.as_array(lib.llama_get_embeddings_seq(ctx, 0), (width,)).copy()]
        lib.llama_batch_free(batch)
        at += n
    lib.llama_free(ctx)
    lib.llama_model_free(model)
    return np.stack(out) if pooling in (None, "none") else out[0]
