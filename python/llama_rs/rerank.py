"""What a reranker is asked: a query and a document, in the form that it was trained for."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import _core

if TYPE_CHECKING:
    from .model import Model

TEMPLATE = "tokenizer.chat_template.rerank"
"""The key of a template of its own, which has ``{query}`` and ``{document}`` in it."""

QWEN3 = """<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer \
can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: Given a web search query, retrieve relevant passages that answer the query
<Query>: {query}
<Document>: {document}<|im_end|>
<|im_start|>assistant
<think>

</think>

"""
"""What Qwen3's rerankers were trained with."""


def pairs(model: Model, query: str, documents: Sequence[str]) -> list[list[int]]:
    """The tokens of the query with each document."""
    if isinstance(documents, str):
        raise TypeError("documents is a str, it must be a sequence of texts")
    template = model.metadata.get(TEMPLATE)
    if template is None and model.config.architecture == "qwen3":
        template = QWEN3
    if isinstance(template, str):
        return _filled(model, template, query, documents)
    return _joined(model, query, documents)


def _filled(model: Model, template: str, query: str, documents: Sequence[str]) -> list[list[int]]:
    """In a template, which may have control tokens: what fills it has none."""
    parts = re.split(r"\{(query|document)\}", template)  # every other one is a name
    literals = {f"literal{i}": part for i, part in enumerate(parts) if i % 2 == 0}
    source = "".join(f"{{{{ {part if i % 2 else f'literal{i}'} }}}}" for i, part in enumerate(parts))
    chat = _core.Chat(model.tokenizer._core, source, model.path)
    now, most = int(time.time()), 1 << 32
    return [chat.encode(literals, {"query": query, "document": document}, now, most) for document in documents]


def _joined(model: Model, query: str, documents: Sequence[str]) -> list[list[int]]:
    """One after the other, as BERT has two texts: ``[CLS] query [SEP] document [SEP]``; RoBERTa has two ends there."""
    tokenizer = model.tokenizer
    first = tokenizer.encode(query, parse_special=False)
    bos = tokenizer.bos
    begins = bos is not None and tokenizer.encode("")[:1] == [bos]
    if bos is not None and begins and tokenizer.token_bytes(bos) == b"<s>":
        first.append(first[-1])
    return [[*first, *tokenizer.encode(document, parse_special=False)[begins:]] for document in documents]
