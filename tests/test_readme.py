"""What the README shows, works; what API.md lists, is there, and is all that is there."""

from __future__ import annotations

import inspect
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama_rs
import llama_rs.cli as cli
import numpy as np
import pytest
from llama_rs import split
from oracle.cases import CASES, ENCODERS
from test_embeddings import with_words
from test_lora import write_gguf_adapter
from tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
API = (ROOT / "API.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


SERVING = next(block for block in blocks("sh") if "llama-rs serve" in block)
"""What needs a server, and starts it."""

COMMANDS = [
    line.split("#  ")[0]
    for block in blocks("sh")
    if block != SERVING
    for line in block.splitlines()
    if line.startswith("llama-rs")
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the README speaks of."""
    write_tiny_model(
        tmp_path / "model.gguf", "Q8_0", head_dim=32, context_length=1024
    )  # whole blocks for --kv-type q8_0
    write_tiny_model(tmp_path / "model-F16.gguf", "F16", dim=256, hidden_dim=256)  # whole blocks for Q4_K_M
    split(tmp_path / "model.gguf", tmp_path / "part", max_tensors=8)
    with_words(ENCODERS["bert"].make(), tmp_path / "encoder.gguf")
    with_words(ENCODERS["bert-rerank"].make(), tmp_path / "reranker.gguf")
    q = {"blk.0.attn_q": (np.ones((4, 64), np.float32), np.ones((128, 4), np.float32))}
    write_gguf_adapter(tmp_path / "adapter.gguf", "llama", q)
    (tmp_path / "reviews.csv").write_text("text,label\nFresh bread!,food\nA quiet island.,travel\n")
    CASES["llama"].make().write_directory(tmp_path / "directory")
    (tmp_path / "prompts.jsonl").write_text('{"id": "a", "prompt": "The sea", "max_tokens": 4}\n' * 2)
    (tmp_path / "prompt.txt").write_text("The keeper wrote the weather into his book:\n")
    (tmp_path / "text.txt").write_text("The sea gives and the sea takes, and there is no use in asking. " * 50)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme(folder: Path, command: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "LLAMA_RS_MODEL": "model.gguf"}
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_server_of_the_readme(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = SERVING.replace("8080", str(port)).replace(".gguf &", f".gguf --port {port} --no-access-log &")
    waits = f"until curl -s -o /dev/null http://localhost:{port}/health; do sleep 0.05; done"
    serve, _, rest = script.partition("\n")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", f"{serve}\n{waits}\n{rest}\nkill %1\nwait %1"],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"serving model at http://127.0.0.1:{port}\n"
    answer, *table = done.stdout.splitlines()
    assert '"finish_reason"' in answer and "4 clients" in table[-1]


def test_python_of_the_readme(folder: Path) -> None:
    code = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_readme_shows_every_command() -> None:
    shown = {command.split()[1] for command in [*COMMANDS, *re.findall(r"^llama-rs.*", SERVING, re.MULTILINE)]}
    assert shown == set(cli.COMMANDS)


def test_links_lead_to_files_and_headings() -> None:
    for text in (README, API):
        headings = {
            re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)
        }
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            assert target[1:] in headings if target.startswith("#") else (ROOT / target).exists(), target


def names_of(kind: type) -> set[str]:
    """What a class of the package adds to those of Python."""
    own = [base for base in kind.__mro__ if base.__module__.startswith("llama_rs")]
    names = {name for base in own for name in (*vars(base), *getattr(base, "_fields", ()))}
    return {name for name in names if not name.startswith("_")}


def test_the_reference_lists_all_that_is_public() -> None:
    said = set(re.findall(r"`([A-Za-z_]\w*)", API))
    for public in (*llama_rs.__all__, "FinishReason", "KvType", "Load", "Messages", "OnOverflow", "OutputType"):
        assert public in said
        kind = getattr(llama_rs, public)
        if inspect.isclass(kind) and kind is not llama_rs.GenerateOptions:
            assert names_of(kind) <= said, public


def test_the_reference_has_the_parameters_of_every_method() -> None:
    kinds = [kind for name in llama_rs.__all__ if inspect.isclass(kind := getattr(llama_rs, name))]
    n = 0
    for name, parameters in re.findall(r"`(\w+)\(([^`]*)\)`", API):
        if name == "help" or "..." in parameters:
            continue
        shown = [p.split("=")[0].strip("* ") for p in parameters.split(",") if p.strip("* ")]
        functions: list[Any] = [kind for kind in kinds if kind.__name__ == name] or [
            f for k in kinds if inspect.isfunction(f := vars(k).get(name))
        ]
        assert shown in [[p for p in inspect.signature(f).parameters if p != "self"] for f in functions], name
        n += 1
    assert n > 25
