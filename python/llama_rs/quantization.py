"""A model file into a smaller one, and how important its weights are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from . import _core
from .checkpoint import Checkpoint
from .options import default_threads

if TYPE_CHECKING:
    from .model import Model

MIXES: dict[str, str] = dict(_core.mixes())
"""The mixes by name, fewest bits first: the type of most matrices of each."""

TYPES: tuple[str, ...] = tuple(_core.encodable_types())
"""The types that weights can be made into."""


class QuantizedTensor(NamedTuple):
    """What becomes of a tensor."""

    name: str
    shape: tuple[int, ...]
    """Numbers of weights, rows first."""
    source_type: str
    type: str
    source_bytes: int
    bytes: int


class Quantized(NamedTuple):
    """What :func:`quantize` did, or would do."""

    tensors: list[QuantizedTensor]
    seconds: float
    """0 if nothing was written."""

    @property
    def source_bytes(self) -> int:
        """Bytes of all tensors before."""
        return sum(tensor.source_bytes for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors after."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes on average, scales included."""
        from math import prod

        return 8 * self.bytes / max(sum(prod(tensor.shape) for tensor in self.tensors), 1)


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    type: str,
    *,
    output_type: str | None = None,
    token_embedding_type: str | None = None,
    tensor_types: Iterable[tuple[str, str]] = (),
    imatrix: str | os.PathLike[str] | None = None,
    pure: bool = False,
    allow_requantize: bool = False,
    threads: int | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> Quantized:
    """Writes the model of one file to another with fewer bits a weight.

    The file appears under its name when it is whole. A file of several parts becomes one. The same source gives the
    same bytes on any computer, with any number of threads.

    Args:
        source: a GGUF file, best of F16, BF16 or F32.
        target: the file to write; None to write nothing and only say what would be done.
        type: a mix, one of :data:`MIXES`, such as ``"Q4_K_M"``: most matrices get its base type, and those where errors
            cost more a better one.
        output_type: the type of the output, which is the token embeddings in many models; one of :data:`TYPES`.
        token_embedding_type: the type of the token embeddings.
        tensor_types: pairs of a regular expression and a type, for the matrices in whose names it is found; the first
            pair that fits counts, and comes before all other rules.
        imatrix: a file that says how much the error of each weight costs, made by ``llama-rs imatrix`` or by llama.cpp.
            Types of less than 3.5 bits need one.
        pure: the base type for all matrices.
        allow_requantize: convert also what is quantised already, and lose more.
        threads: cores to use; by default those that this process may use.
        on_progress: called now and then with the bytes written so far and those of the file.

    Raises:
        ValueError: for a type that does not exist, a pattern that fits no tensor, or something that cannot be done to
            this file.
        re.error: for a pattern that is no regular expression.
        ModelFileError: if a file cannot be read or written.
        ModelFormatError: if one is not valid.
        ModelChangedError: if one changed meanwhile.
    """
    start = perf_counter()
    if os.path.isdir(source):
        raise ValueError(f"{os.fspath(source)} is a directory: make a GGUF file of it with convert, and quantize that")
    file = Checkpoint(source)
    patterns = [(re.compile(pattern), of) for pattern, of in tensor_types]
    for pattern, _ in patterns:
        if not any(map(pattern.search, file.tensors)):
            raise ValueError(f"{os.fspath(source)} has no tensor in whose name {pattern.pattern!r} is found")
    chosen: dict[str, str] = {}
    for name in file.tensors:
        for pattern, of in patterns:
            if pattern.search(name):
                chosen[name] = of
                break
    quantizer = _core.Quantizer(
        file._core,
        type,
        output=output_type,
        token_embedding=token_embedding_type,
        tensors=chosen,
        imatrix=imatrix,
        pure=pure,
        allow_requantize=allow_requantize,
        dry=target is None,
    )
    tensors = []
    for old, (name, new, n_bytes) in zip(file.tensors.values(), quantizer.tensors(), strict=True):
        tensors.append(QuantizedTensor(name, old.shape, old.dtype, new, old.nbytes, n_bytes))
    if target is None:
        return Quantized(tensors, 0.0)
    if threads is None:
        threads = default_threads()
    elif not 1 <= threads <= 256:
        raise ValueError(f"threads is {threads}, it must be from 1 to 256")
    quantizer.write(target, threads, on_progress)
    return Quantized(tensors, perf_counter() - start)


class Importance(NamedTuple):
    """What :func:`imatrix` measured."""

    chunks: int
    tokens: int
    seconds: float


def imatrix(
    model: Model,
    text: str,
    target: str | os.PathLike[str],
    *,
    dataset: str = "",
    chunk_length: int = 512,
    max_chunks: int | None = None,
    on_chunk: Callable[[int, int], object] | None = None,
) -> Importance:
    """Measures how important each column of each matrix is: the mean square of what it is multiplied with in a text.

    :func:`quantize` then spends its bits where an error costs most. The text should be like those that the model is
    used for, some hundred thousand tokens of it; a few thousand are much better than none. llama.cpp reads the file
    too.

    Args:
        model: best of the weights that are to be quantised. It computes as before, and slightly slower from then on.
        text: is cut into chunks, each read from an empty context; what does not fill a chunk at its end is left out.
        target: the file to write, an importance matrix in GGUF.
        dataset: what the file says that the text is.
        chunk_length: tokens of a chunk.
        max_chunks: read no more than so many.
        on_chunk: called after each chunk with how many of how many were read.

    Raises:
        ValueError: if the text does not fill a chunk, or if this model was measured before.
        LlamaError: if the model computes what is no number: a weight is damaged.
    """
    start = perf_counter()
    if chunk_length < 16:
        raise ValueError(f"chunk_length is {chunk_length}, it must be 16 or more")
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text, parse_special=False)
    n_chunks = min(len(ids) // chunk_length, len(ids) if max_chunks is None else max_chunks)
    if n_chunks < 1:
        what = f"the text has {len(ids)} tokens, too few for a chunk of {chunk_length}"
        raise ValueError(f"{what}: take a longer text or shorter chunks")
    begin = [tokenizer.bos] if tokenizer.bos is not None and tokenizer.encode("")[:1] == [tokenizer.bos] else []
    collector = _core.Collector(model._handle)
    with model.session(context_length=chunk_length) as session:
        for i in range(n_chunks):
            session.truncate(0)
            session.forward([*begin, *ids[i * chunk_length + len(begin) : (i + 1) * chunk_length]])
            if on_chunk:
                on_chunk(i + 1, n_chunks)
    collector.write(target, dataset, n_chunks, chunk_length)
    return Importance(n_chunks, n_chunks * chunk_length, perf_counter() - start)
