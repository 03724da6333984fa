"""What the README shows, works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


COMMANDS = [
    line.split("#  ")[0] for block in blocks("sh") for line in block.splitlines() if line.startswith("llama-rs")
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the README speaks of."""
    write_tiny_model(tmp_path / "model.gguf", "Q8_0", head_dim=32)  # whole blocks for --kv-type q8_0
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


def test_python_of_the_readme(folder: Path) -> None:
    code = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_readme_shows_every_command() -> None:
    shown = {command.split()[1] for command in COMMANDS}
    assert shown == {"generate", "tokenize", "inspect", "perplexity", "bench", "status", "warm"}
