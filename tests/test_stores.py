"""Models that other programs have fetched: found where these keep them, and used there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from llama_rs import split, stores
from llama_rs.stores import Found
from oracle.cases import CASES


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home where nothing is, and no variable that leads elsewhere."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS", "LLAMA_CACHE", "LLAMA_RS_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(stores, "find_spec", lambda _: None)
    return tmp_path


def put(path: Path, model: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(model)
    return path


def ollama(home: Path, place: str, model: Path, digest: str = "sha256:" + "0a" * 32, more: str = "") -> Path:
    """A model as Ollama keeps it."""
    folder = home / ".ollama/models"
    manifest = folder / "manifests" / place
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "ff" * 32, "size": 3},
        {"mediaType": stores.OLLAMA_MODEL, "digest": digest, "size": 5},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}) + more)
    blob = folder / "blobs" / digest.replace(":", "-")
    return blob if blob.exists() else put(blob, model)


def names(source: str) -> dict[str, str]:
    return {model.name: model.path for model in stores.find() if model.source == source}


@pytest.mark.usefixtures("home")
def test_nothing_is_found_where_nothing_is() -> None:
    assert stores.find() == []
    assert stores.named("x") is None


def test_models_of_the_hub_have_its_names(home: Path, tiny: Path, tmp_path: Path) -> None:
    hub = home / ".cache/huggingface/hub"
    old = hub / "models--org--one/snapshots/aaa/model-Q8_0.gguf"
    put(old, tiny)
    new = put(hub / "models--org--one/snapshots/bbb/model-Q8_0.gguf", tiny)
    (hub / "models--org--one/refs").mkdir()
    (hub / "models--org--one/refs/main").write_text("bbb")
    two = hub / "models--org--two/snapshots/ccc"
    for file in ("a.gguf", "b/c.gguf", "mmproj-x.gguf", "README.md"):
        put(two / file, tiny)
    CASES["llama"].make().write_directory(tmp_path / "made")
    directory = hub / "models--org--three/snapshots/ddd"
    directory.parent.mkdir(parents=True)
    directory.symlink_to(tmp_path / "made")
    assert names("huggingface") == {
        "org/one": str(new),
        "org/two/a.gguf": str(two / "a.gguf"),
        "org/two/b/c.gguf": str(two / "b/c.gguf"),
        "org/three": str(directory),
    }


def test_a_model_in_parts_is_one(home: Path, tiny: Path) -> None:
    folder = home / ".cache/huggingface/hub/models--org--parts/snapshots/a"
    folder.mkdir(parents=True)
    parts = split(tiny, folder / "m", max_tensors=8)
    assert len(parts) > 1
    assert stores.find() == [Found("org/parts", "huggingface", str(parts[0]), sum(map(os.path.getsize, parts)))]


def test_models_of_ollama_are_their_blobs(home: Path, tiny: Path) -> None:
    blob = ollama(home, "registry.ollama.ai/library/tiny/latest", tiny)
    ollama(home, "registry.ollama.ai/someone/tiny/1b", tiny)
    ollama(home, "hf.co/org/repo/Q8_0", tiny)
    assert names("ollama") == {"tiny:latest": str(blob), "someone/tiny:1b": str(blob), "hf.co/org/repo:Q8_0": str(blob)}
    assert stores.named("tiny") == stores.named("tiny:latest") == str(blob)


@pytest.mark.parametrize("digest", ["../../../../etc/passwd", "sha256:" + "0" * 63, "sha256:../x", 7, None])
def test_a_manifest_leads_to_no_other_file(home: Path, digest: str) -> None:
    manifest = home / ".ollama/models/manifests/registry.ollama.ai/library/x/latest"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": stores.OLLAMA_MODEL, "digest": digest}
    for text in (json.dumps({"layers": [layer]}), json.dumps({"layers": 3}), "[" * 100_000, "", "[]", "\xff"):
        manifest.write_text(text)
        assert stores.find() == []


def test_models_of_lm_studio_and_llama_cpp_are_found(home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = put(home / ".lmstudio/models/pub/repo/m.gguf", tiny)
    fetched = put(home / ".cache/llama.cpp/org_m.gguf", tiny)
    assert (names("lmstudio"), names("llama.cpp")) == ({"pub/repo": str(own)}, {"org_m.gguf": str(fetched)})
    (home / ".lmstudio-home-pointer").write_text(str(home / "elsewhere"))
    moved = put(home / "elsewhere/models/pub/repo/n.gguf", tiny)
    assert names("lmstudio") == {"pub/repo": str(moved)}
    monkeypatch.setenv("LLAMA_CACHE", str(home / "none"))
    assert names("llama.cpp") == {}
    monkeypatch.setenv("LLAMA_RS_MODEL", str(tiny))
    assert names("environment") == {str(tiny): str(tiny)}


def test_names_work_where_a_model_is_asked_for(home: Path, tiny: Path) -> None:
    blob = ollama(home, "registry.ollama.ai/library/tiny/1b", tiny)

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"HOME": str(home)} | more
        return subprocess.run(
            [sys.executable, "-m", "llama_rs", *arguments],
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    asked = ("generate", "-n2", "--temperature", "0", "ab")
    by_path = run(*asked, "-m", str(blob))
    assert by_path.returncode == 0 and by_path.stdout
    assert run(*asked, "-m", "tiny:1b").stdout == run(*asked, LLAMA_RS_MODEL="tiny:1b").stdout == by_path.stdout
    assert run(*asked, "-m", "tiny:1b", "--draft", "tiny:1b").stdout == by_path.stdout
    assert run("inspect", "tiny:1b").returncode == 0
    nowhere = run(*asked, "-m", "tiny:7b")
    assert (nowhere.returncode, nowhere.stdout) == (3, "") and "tiny:7b" in nowhere.stderr
    listed = run("models")
    assert "tiny:1b" in listed.stdout and "ollama" in listed.stdout and listed.stderr == ""
    assert {"name": "tiny:1b", "source": "ollama", "path": str(blob), "bytes": tiny.stat().st_size} in json.loads(
        run("models", "--json").stdout
    )


def test_the_manual_has_every_command_and_its_options() -> None:
    from llama_rs.cli import COMMANDS
    from llama_rs.cli.man import page

    text = page()
    assert all(f"\n.SS llama-rs {command}\n" in text for command in COMMANDS)
    assert "\\-\\-repeat\\-penalty" in text and "LLAMA_RS_MODEL" in text
    macros = {line.split()[0] for line in text.splitlines() if line.startswith(".")}
    assert macros <= {".TH", ".SH", ".SS", ".PP", ".TP", ".nf", ".fi", ".RS", ".RE", ".B"}
    assert not any(line.startswith("'") for line in text.splitlines())
