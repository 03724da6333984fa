"""Vectors of texts and scores of documents: what is asked of models in Python and on the command line.

Whose vectors they are is shown in `test_architectures.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_rs import ContextOverflowError, Model, UnsupportedModelError
from oracle.cases import ENCODERS
from test_cli import good, run

TEXTS = ["The lighthouse keeper lit the lamp.", "A storm came from the sea.", "hello"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bert, with a vocabulary."""
    tiny = ENCODERS["bert"].make()
    path = tmp_path_factory.mktemp("bert") / "bert.gguf"
    return with_words(tiny, path)


def with_words(tiny: Any, path: Path) -> Path:
    """Writes a model with a vocabulary of letters, as BERT has them."""
    letters = "abcdefghijklmnopqrstuvwxyz.,"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *("▁" + x for x in letters)]
    tokens += [f"[unused{i}]" for i in range(128 - len(tokens))]
    writer = gguf.GGUFWriter(path, tiny.arch)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 2, 3, 3] + [1] * (len(tokens) - 4))
    writer.add_uint32("tokenizer.ggml.cls_token_id", 2)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_unk_token_id(1)
    for name, value in tiny.keys.items():
        if name.startswith("."):
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}[type(value)]
            add(f"{tiny.arch}{name}", value)
    for name, tensor in tiny.tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_vectors_are_of_length_one_as_the_file_pools(bert: Path) -> None:
    model = Model(bert)
    vectors = model.embed(TEXTS)
    assert vectors.shape == (3, 64)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(model.embed(TEXTS, pooling="mean"), vectors)
    of_tokens = model.embed(TEXTS, pooling="none", normalize=False)
    assert [len(rows) for rows in of_tokens] == [len(model.tokenizer.encode(text)) for text in TEXTS]
    raw = model.embed(TEXTS, normalize=False)
    np.testing.assert_allclose(raw, [rows.mean(axis=0) for rows in of_tokens], atol=1e-6)
    np.testing.assert_array_equal(model.embed(TEXTS, pooling="cls", normalize=False), [rows[0] for rows in of_tokens])
    np.testing.assert_array_equal(model.embed(TEXTS, pooling="last", normalize=False), [rows[-1] for rows in of_tokens])


def test_one_text_none_and_ids(bert: Path) -> None:
    model = Model(bert)
    np.testing.assert_array_equal(model.embed(TEXTS[2]), model.embed(TEXTS)[2:])
    ids = [model.tokenizer.encode(text) for text in TEXTS]
    np.testing.assert_array_equal(model.embed(ids), model.embed(TEXTS))
    assert model.embed([]).shape == (0, 64)
    assert model.embed([], pooling="none") == []


def test_dimensions_are_the_first_of_a_vector_and_of_length_one_again(bert: Path) -> None:
    model = Model(bert)
    raw = model.embed(TEXTS, normalize=False)
    some = model.embed(TEXTS, dimensions=16)
    np.testing.assert_allclose(some, raw[:, :16] / np.linalg.norm(raw[:, :16], axis=1, keepdims=True), atol=1e-6)
    for n in (0, 65):
        with pytest.raises(ValueError, match=f"dimensions is {n}, it must be 1 to the model's 64"):
            model.embed(TEXTS, dimensions=n)


def test_a_text_longer_than_the_model_has_positions_for_is_an_error_or_cut(bert: Path) -> None:
    model = Model(bert, context_length=4096)
    long = "a " * 100
    with pytest.raises(ContextOverflowError, match="102 tokens do not fit in a context of 64"):
        model.embed(["a", long])
    ids = model.tokenizer.encode(long)
    cut = model.embed([long], truncate=True)
    np.testing.assert_array_equal(cut, model.embed([[*ids[:63], ids[-1]]]))
    with pytest.raises(ContextOverflowError):
        model.embed([[5] * 65])


def test_an_encoder_gives_no_text(bert: Path) -> None:
    model = Model(bert)
    for use in (
        lambda: model.generate("a"),
        lambda: model.session(),
        lambda: model.logits([1, 2]),
        lambda: model.score("a", "b"),
        lambda: model.bench(),
    ):
        with pytest.raises(UnsupportedModelError, match="text by bert, an encoder, which makes vectors of texts"):
            use()
    done = run("generate", "-m", bert, "a")
    assert done.returncode == 4
    assert re.fullmatch(rb"error: .*bert.gguf: not supported: text by bert, an encoder.*\n", done.stderr)


def test_what_is_no_text_says_so(bert: Path) -> None:
    model = Model(bert)
    with pytest.raises(ValueError, match="text 1 is empty"):
        model.embed([[1], []])
    with pytest.raises(TypeError, match="a text is a str or token ids, got int"):
        model.embed([1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="token 128 is not in the vocabulary"):
        model.embed([[128]])
    with pytest.raises(ValueError, match='pooling is "rank", it must be'):
        model.embed(["a"], pooling="rank")  # type: ignore[call-overload]


def test_vectors_of_a_decoder_are_what_its_logits_are_made_of(smollm2: Path) -> None:
    """SmolLM2 has its embedding for its output: the vectors behind the last norm times it are the logits."""
    model = Model(smollm2)
    ids = model.tokenizer.encode("Once upon a time, a lighthouse keeper")
    (vectors,) = model.embed([ids], pooling="none", normalize=False)
    logits = vectors @ model.tensors["token_embd.weight"].dequantize().T
    exact = model.logits(ids)
    assert np.abs(logits - exact).max() < 0.01 * exact.std()
    np.testing.assert_array_equal(model.embed([ids], normalize=False)[0], vectors[-1])  # nobody says how to pool


def test_a_reranker_scores_documents(tmp_path: Path) -> None:
    model = Model(with_words(ENCODERS["bert-rerank"].make(), tmp_path / "rerank.gguf"))
    encode = model.tokenizer.encode
    documents = ["b", "a cat", "[SEP] c"]
    scores = model.rerank("query", documents)
    pairs = [[*encode("query"), *encode(document, parse_special=False)[1:]] for document in documents]
    handle = model._handle
    assert scores == [row[0] for row in handle.rank(pairs, model.context_length, 1, "f16", [])]
    assert len(set(scores)) == 3
    assert [model.rerank("query", [document])[0] for document in documents] == scores
    assert model.rerank("query", []) == []
    with pytest.raises(UnsupportedModelError, match="a reranker, which scores documents"):
        model.embed("a")
    assert model.embed("a", pooling="cls").shape == (1, 64)


def test_the_command_sorts_documents(tmp_path: Path) -> None:
    path = with_words(ENCODERS["bert-rerank"].make(), tmp_path / "rerank.gguf")
    documents = ["a storm", "", "the lamp", "hello"]
    scores = Model(path).rerank("the sea", [d for d in documents if d])
    found = [
        json.loads(line)
        for line in good("rerank", "-m", path, "the sea", stdin="\n".join(documents).encode()).splitlines()
    ]
    assert [row["score"] for row in found] == sorted(scores, reverse=True)
    assert all(documents[row["index"]] == row["text"] for row in found)
    assert [
        json.loads(line) for line in good("rerank", "-m", path, "--top-n", "2", "the sea", *documents).splitlines()
    ] == found[:2]


def test_who_is_no_reranker_says_so(bert: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no reranker: it has no classifier"):
        Model(bert).rerank("a", ["b"])
    with pytest.raises(TypeError, match="documents is a str"):
        Model(bert).rerank("a", "b")


def test_embed_prints_a_line_of_json_for_each_text(bert: Path) -> None:
    expected = Model(bert).embed(TEXTS)
    for arguments, stdin in (
        (TEXTS, b""),
        ([], "\n".join(TEXTS).encode()),
        (["-f", "-"], ("\r\n".join(TEXTS) + "\r\n").encode()),
    ):
        lines = [json.loads(line) for line in good("embed", "-m", bert, *arguments, stdin=stdin).splitlines()]
        assert [line["index"] for line in lines] == [0, 1, 2]
        assert [line["text"] for line in lines] == TEXTS
        np.testing.assert_array_equal(np.array([line["embedding"] for line in lines], np.float32), expected)


def test_embed_leaves_empty_lines_out_and_counts_them(bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("a\n\nb\n")
    lines = [json.loads(line) for line in good("embed", "-m", bert, "-f", file, "--dimensions", "3").splitlines()]
    assert [(line["index"], line["text"], len(line["embedding"])) for line in lines] == [(0, "a", 3), (2, "b", 3)]


def test_embed_says_what_is_wrong(bert: Path) -> None:
    for arguments, stdin, code, error in (
        (["a", "-f", "-"], b"", 2, b"give the texts as arguments or with -f FILE, not both"),
        ([], b"a\n\xff\n", 1, b"standard input: line 2 is not UTF-8 text at byte 0"),
        (["a " * 100], b"", 1, b"102 tokens do not fit in a context of 64"),
    ):
        done = run("embed", "-m", bert, *arguments, stdin=stdin)
        assert done.returncode == code
        assert error in done.stderr
        assert done.stderr.count(b"\n") == 1
