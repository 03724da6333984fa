"""``--jsonl``: a line in, a line out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_rs import Model
from test_cli import bad


def run(*arguments: str | Path, given: str = "", code: int = 0, command: str = "generate") -> list[dict[str, Any]]:
    """The lines that it writes."""
    done = subprocess.run(
        [sys.executable, "-m", "llama_rs", command, "--jsonl", *map(str, arguments)],
        input=given.encode(),
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr.decode()
    if not code:
        assert done.stderr == b""
    return [json.loads(line) for line in done.stdout.splitlines()]


def lines(*asked: Any) -> str:
    return "".join(json.dumps(one) + "\n" for one in asked)


def test_each_line_has_the_answer_that_it_has_alone(tiny: Path) -> None:
    model = Model(tiny)
    asked: list[Any] = [
        {"id": f"n{i}", "prompt": "abcdefgh"[: i % 8 + 1], "max_tokens": i % 5 + 1, "temperature": 0.9, "seed": i}
        for i in range(20)
    ]
    asked += ["text alone", {"prompt": [1, 2, 3], "id": None}, {"messages": [{"role": "user", "content": "hi"}]}]
    answers = run("-m", tiny, "--temperature", "0", "-n", "3", "--parallel", "2", given=lines(*asked))
    assert [a["id"] for a in answers] == [*(f"n{i}" for i in range(20)), 20, None, 22]
    for i in range(20):
        options = {k: v for k, v in asked[i].items() if k not in ("id", "prompt")}
        own = model.generate(asked[i]["prompt"], **options)
        assert (answers[i]["text"], answers[i]["finish_reason"]) == (own.text, own.finish_reason)
        assert answers[i]["generated_tokens"] <= asked[i]["max_tokens"]
    assert answers[20]["text"] == model.generate("text alone", temperature=0, max_tokens=3).text
    assert answers[22]["text"] == model.chat("hi", temperature=0, max_tokens=3).text


def test_a_broken_line_is_an_error_and_the_others_are_answered(tiny: Path) -> None:
    good = {"prompt": "ab", "max_tokens": 1}
    bad: list[tuple[str, str]] = [
        ("{", "Expecting property name"),
        ("3", "neither an object nor a text"),
        (json.dumps({"id": "x"}), "either prompt or messages"),
        (json.dumps({"prompt": "a", "messages": []}), "either prompt or messages"),
        (json.dumps({"prompt": "a", "temprature": 1}), "unexpected keyword argument 'temprature'"),
        (json.dumps({"prompt": "a", "temperature": -1}), "temperature is -1"),
        (json.dumps({"prompt": 3}), "prompt is neither text"),
        (json.dumps({"prompt": ""}) if Model(tiny).tokenizer.encode("") == [] else "[", ""),
        (json.dumps({"prompt": "a" * 5000}), "context"),
        (json.dumps({"prompt": [1 << 40]}), "not in the vocabulary"),
        (json.dumps({"messages": [{"content": "x"}]}), "message 0 has no role"),
        ("[" * 100_000, ""),
    ]
    text = "\n\n".join(f"{line}\n{json.dumps(good)}" for line, _ in bad)
    answers = run("-m", tiny, given=text, code=1)
    assert len(answers) == 2 * len(bad)
    for (_, says), wrong, right in zip(bad, answers[::2], answers[1::2], strict=True):
        assert says in wrong["error"] and "text" not in wrong
        assert "error" not in right
    assert answers[4]["id"] == "x" and answers[0]["id"] == 0 and answers[1]["id"] == 1


def test_it_goes_on_where_it_was_interrupted(tiny: Path, tmp_path: Path) -> None:
    output, source = tmp_path / "out.jsonl", tmp_path / "in.jsonl"
    source.write_text(lines(*({"id": i, "prompt": f"a{i}", "max_tokens": 2, "seed": 1} for i in range(6))))
    assert run("-m", tiny, "-f", source, "-o", output) == []
    whole = output.read_bytes()
    some = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(some[:2]) + some[2][:7])
    run("-m", tiny, "-f", source, "-o", output, "--resume")
    assert output.read_bytes() == whole
    # What failed is tried again.
    output.write_bytes(some[0] + b'{"id": 1, "error": "once"}\n')
    run("-m", tiny, "-f", source, "-o", output, "--resume")
    assert [json.loads(line)["id"] for line in output.read_bytes().splitlines()] == [0, 1, 1, 2, 3, 4, 5]
    output.write_text("something else\n")
    run("-m", tiny, "-f", source, "-o", output, "--resume", code=1)
    assert output.read_text() == "something else\n"


def test_a_program_may_write_a_line_and_wait(tiny: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "llama_rs", "generate", "--jsonl", "-m", str(tiny), "-n", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        for i in range(3):
            process.stdin.write(lines({"id": i, "prompt": "ab"}))
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == i
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    "arguments", [["--jsonl", "text"], ["--jsonl", "--json"], ["--resume", "x"], ["--jsonl", "--resume"], ["-o", "f"]]
)
def test_options_that_do_not_go_together_are_wrong_usage(tiny: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "llama_rs", "generate", "-m", str(tiny), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"") and done.stderr.startswith(b"error: ")


def test_vectors_and_scores_of_many(tiny: Path, tmp_path: Path) -> None:
    model = Model(tiny)
    asked = ["the sea", {"id": "w", "text": "wind"}, {"text": 7}, {"txt": "x"}, {"id": 9, "text": "a" * 9000}]
    found = run("-m", tiny, "--no-normalize", given=lines(*asked), code=1, command="embed")
    assert [row["id"] for row in found] == [0, "w", 2, 3, 9]
    expected = model.embed(["the sea", "wind"], normalize=False)
    for row, vector in zip(found, expected, strict=False):
        assert row["embedding"] == pytest.approx(vector.tolist())
    for row, says in zip(found[2:], ("no text in text", "a line has no 'txt'", "context"), strict=True):
        assert says in row["error"]

    pairs: list[Any] = [{"prompt": "the sea", "continuation": " gives"}, {"prompt": "a", "continuation": ""}, "x"]
    found = run("-m", tiny, given=lines(*pairs), code=1, command="score")
    score = model.score("the sea", " gives")
    assert found[0]["logprob"] == pytest.approx(score.total)
    assert [token["id"] for token in found[0]["tokens"]] == score.token_ids
    assert "continuation is empty" in found[1]["error"]
    assert "it must be an object" in found[2]["error"]

    output, source = tmp_path / "out.jsonl", tmp_path / "in.jsonl"
    source.write_text(lines(*({"id": i, "text": f"a{i}"} for i in range(5))))
    assert run("-m", tiny, "-f", source, "-o", output, command="embed") == []
    whole = output.read_bytes()
    for cut in (0, len(whole) // 3, len(whole) - 1):
        output.write_bytes(whole[:cut])
        run("-m", tiny, "-f", source, "-o", output, "--resume", command="embed")
        assert output.read_bytes() == whole


def test_tokens_and_perplexities_of_many(tiny: Path, tmp_path: Path) -> None:
    model = Model(tiny)
    asked: list[Any] = ["the sea", {"id": "w", "text": "<|im_start|> é"}, {"text": None}, ["the"]]
    found = run("-m", tiny, given=lines(*asked), code=1, command="tokenize")
    assert found[:2] == [
        {"id": 0, "tokens": model.tokenizer.encode("the sea")},
        {"id": "w", "tokens": model.tokenizer.encode("<|im_start|> é")},
    ]
    assert [row["error"] for row in found[2:]] == [
        "the line has no text in text",
        "the line is neither an object nor a text",
    ]
    as_text = run("-m", tiny, "--no-add-special", "--no-parse-special", given=lines(asked[1]), command="tokenize")
    assert as_text[0]["tokens"] == model.tokenizer.encode("<|im_start|> é", add_special=False, parse_special=False)

    texts = ["the sea gives and the sea takes " * 3, "wind and rain " * 4]
    given = lines(texts[0], {"id": "b", "text": texts[1]}, "a", {"id": 0, "t": "x"})
    found = run("-m", tiny, "-c", "16", "--stride", "4", given=given, code=1, command="perplexity")
    for job_id, row, text in zip((0, "b"), found, texts, strict=False):
        assert row == {"id": job_id, **model.perplexity(text, context_length=16, stride=4)._asdict()}
    assert "too few for a window of 16" in found[2]["error"] and "a line has no 't'" in found[3]["error"]

    source = tmp_path / "in.jsonl"
    source.write_text(lines(*(f"the sea and {i} gulls " * 4 for i in range(4))))
    for command, *options in (("tokenize",), ("perplexity", "-c", "16")):
        output = tmp_path / f"{command}.jsonl"
        assert run("-m", tiny, *options, "-f", source, "-o", output, command=command) == []
        whole = output.read_bytes()
        output.write_bytes(whole[: len(whole) * 2 // 3])
        run("-m", tiny, *options, "-f", source, "-o", output, "--resume", command=command)
        assert output.read_bytes() == whole


def test_reranking_of_many(tmp_path: Path) -> None:
    from oracle.cases import ENCODERS
    from test_embeddings import with_words

    path = with_words(next(case for name, case in ENCODERS.items() if "rank" in name).make(), tmp_path / "rank.gguf")
    asked: dict[str, Any] = {"id": 1, "query": "the cat", "documents": ["the dog", "a cat", "the cat sat"]}
    found = run("-m", path, "--top-n", "2", given=lines(asked, {"query": "x"}), code=1, command="rerank")
    scores = Model(path).rerank("the cat", asked["documents"])
    order = sorted(range(3), key=lambda i: -scores[i])[:2]
    assert found[0] == {"id": 1, "results": [{"index": i, "score": pytest.approx(scores[i])} for i in order]}
    assert "no list of texts in documents" in found[1]["error"]


def test_what_does_not_go_together(tiny: Path) -> None:
    for command, arguments, says in [
        ("embed", ["--jsonl", "text"], "there is no TEXT"),
        ("score", ["--jsonl", "text", "more"], "there is no PROMPT"),
        ("rerank", ["--jsonl", "query"], "there is no QUERY"),
        ("tokenize", ["--jsonl", "text"], "there is no TEXT and no --json"),
        ("tokenize", ["--jsonl", "--json"], "there is no TEXT and no --json"),
        ("perplexity", ["--jsonl", "--json"], "there is no --json"),
        ("perplexity", ["--resume"], "--output and --resume are for --jsonl"),
        ("score", [], "Missing argument 'PROMPT'"),
        ("rerank", [], "Missing argument 'QUERY'"),
        ("embed", ["-o", "x", "text"], "--output and --resume are for --jsonl"),
        ("generate", ["--jsonl", "--resume"], "--resume needs --output"),
        ("generate", ["--jsonl", "--lookup"], "--draft and --lookup are for one answer"),
    ]:
        assert says in bad(2, command, "-m", tiny, *arguments)
