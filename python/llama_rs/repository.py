"""A folder of models that are served, each in versions.

    models/smollm2/                 the name is that of the folder
        llama-rs.toml               optional, see SETTINGS
        3/model.gguf  5/model.gguf  versions: numbers, of which the highest is the default
    models/other.gguf               a file is version 1 of its name

A version is opened beside the one that is in use and tried before it takes the name: what cannot be opened changes
nothing, and what is being answered goes on with the version that it began with.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Literal, NamedTuple

from . import _core
from .errors import LlamaError
from .model import Model
from .notes import note

SETTINGS = ("policy", "alias", "context_length", "kv_type", "warm", "probe")
"""Of ``llama-rs.toml``: ``policy`` is "latest", "latest:2", "all" or a list of numbers: which versions are loaded;
``alias`` another name; ``context_length`` and ``kv_type`` are those of answers; ``warm = true`` reads the file before
the version is used; ``probe`` is a text that it must be able to continue."""

READY = "READY"
"""A version with a file of this name is complete; others are when nothing in them has changed for a while."""


class Folder(NamedTuple):
    """What a repository has of a model."""

    settings: dict[str, Any]
    versions: dict[str, str]
    """Paths by number."""


class Repository:
    """The models of a folder, as a server has them."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        server: _core.Server,
        defaults: dict[str, Any],
        *,
        threads: int | None = None,
    ) -> None:
        self.folder = os.fspath(folder)
        self.names: list[str] = []
        self._server = server
        self._defaults = defaults
        self._threads = threads
        self._models: dict[tuple[str, str], Model] = {}
        self._seen: dict[tuple[str, str], object] = {}
        self._failed: set[tuple[str, str]] = set()  # versions that are not tried again by themselves
        self._is_over = threading.Event()
        self._is_wanted = threading.Event()  # to look now
        self._thread: threading.Thread | None = None

    def scan(self) -> dict[str, Folder]:
        """What is there now.

        Raises:
            OSError: if the folder cannot be read.
            ValueError: if a ``llama-rs.toml`` is wrong.
        """
        found = {}
        for entry in sorted(os.scandir(self.folder), key=lambda entry: entry.name):
            if entry.name.endswith(".gguf"):
                found[entry.name.removesuffix(".gguf")] = Folder({}, {"1": entry.path})
            elif entry.is_dir() and not entry.name.startswith("."):
                versions = {
                    version.name: path
                    for version in os.scandir(entry.path)
                    if version.is_dir() and version.name.isdecimal() and (path := _model_in(version.path))
                }
                if versions:
                    found[entry.name] = Folder(_settings(os.path.join(entry.path, "llama-rs.toml")), versions)
        return found

    def load_all(self) -> None:
        """Loads what the policies say, of all models.

        Raises:
            LlamaError: if a model cannot be loaded, and no other version of it can.
            ValueError: if there are none.
        """
        folders = self.scan()
        if not folders:
            raise ValueError(
                f"{self.folder}: there are no models: a model is a folder with numbered folders, or a .gguf"
            )
        for name in folders:
            self.load(name)
            self.names.append(name)

    def load(self, name: str, number: str | None = None) -> None:
        """Loads what the policy says of a model; with a number, that version, which becomes the default.

        Raises:
            LlamaError, OSError, ValueError: if it cannot be loaded. Then nothing has changed.
        """
        folder = self.scan().get(name)
        if folder is None:
            raise ValueError(f"there is no model {name!r} in the repository")
        if number is not None and number not in folder.versions:
            raise ValueError(f"there is no version {number} of {name}")
        wanted = [number] if number is not None else chosen(folder)
        error: Exception | None = None
        n_loaded = 0
        for i, version in enumerate(wanted):
            try:
                self._load(name, version, folder, is_default=i == 0)
                n_loaded += 1
            except (LlamaError, OSError, ValueError, MemoryError) as e:
                if (name, version) not in self._models:
                    self._server.fail(name, version, str(e))
                error = error or e
        if error and (number is not None or not n_loaded):
            raise error
        if number is None:
            for loaded in [v for n, v in self._models if n == name and v not in wanted]:
                self._remove(name, loaded, folder.settings)

    def _load(self, name: str, number: str, folder: Folder, *, is_default: bool) -> None:
        settings = folder.settings
        model = Model(
            folder.versions[number],
            threads=self._threads,
            context_length=settings.get("context_length"),
            kv_type=settings.get("kv_type", "f16"),
        )
        if settings.get("warm"):
            model.checkpoint.warm()
        if probe := settings.get("probe"):
            model.generate(probe, max_tokens=1, temperature=0.0)
        for known in _names(name, settings):
            self._server.put(
                known,
                number,
                model._handle,
                model.context_length,
                model.threads,
                model.kv_type,
                self._defaults,
                is_default,
            )
        self._models[name, number] = model  # the one that was there is closed when nobody uses it any more

    def unload(self, name: str) -> None:
        """Takes a model out, with all its versions."""
        folder = self.scan().get(name)
        loaded = [number for known, number in self._models if known == name]
        if not loaded:
            raise ValueError(f"{name} is not loaded")
        for number in loaded:
            self._remove(name, number, folder.settings if folder else {})

    def _remove(self, name: str, number: str, settings: dict[str, Any]) -> None:
        for known in _names(name, settings):
            self._server.remove(known, number)
        self._models.pop((name, number), None)

    def keep(self, reload: float | None = None) -> None:
        """Does on a thread of its own what is ordered over HTTP; and looks for what is new every ``reload`` seconds."""
        self._thread = threading.Thread(target=self._keep, args=(reload,), name="llama_rs-repository", daemon=True)
        self._thread.start()

    def _keep(self, reload: float | None) -> None:
        from time import monotonic

        next_look = monotonic() + (reload or 0.0)
        while not self._is_over.is_set():
            order = self._server.next_order(0.2)
            if order is not None:
                order.done(self._do(order))
            if self._is_wanted.is_set() or (reload is not None and monotonic() >= next_look):
                is_asked = self._is_wanted.is_set()
                self._is_wanted.clear()
                self.look(is_asked=is_asked)
                next_look = monotonic() + (reload or 0.0)

    def _do(self, order: _core.Order) -> str | None:
        try:
            if order.load:
                self.load(order.model, order.number)
            else:
                self.unload(order.model)
        except (LlamaError, OSError, ValueError, MemoryError) as e:
            return _without_folder(str(e), self.folder)
        return None

    def look_soon(self) -> None:
        """Has the thread look for what is new; for handlers of signals."""
        self._is_wanted.set()

    def look(self, *, is_asked: bool = False) -> None:
        """Loads what is new and complete; all that is new, if somebody asks for it."""
        try:
            folders = self.scan()
        except (OSError, ValueError) as e:
            note(f"{self.folder}: {e}")
            return
        seen = {}
        for name, folder in folders.items():
            wanted = chosen(folder)
            for number in wanted:
                state = _state(folder.versions[number])
                seen[name, number] = state
            is_whole = all(
                os.path.exists(os.path.join(os.path.dirname(folder.versions[number]), READY))
                or self._seen.get((name, number)) == seen[name, number]
                for number in wanted
            )
            is_new = any((name, number) not in self._models for number in wanted)
            if is_new and (is_asked or (is_whole and not all((name, n) in self._failed for n in wanted))):
                try:
                    self.load(name)
                except (LlamaError, OSError, ValueError, MemoryError) as e:
                    note(f"{name}: {e}")
                    self._failed.update((name, number) for number in wanted)
        self._seen = seen

    def close(self) -> None:
        self._is_over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)
        self._models.clear()


def chosen(folder: Folder) -> list[str]:
    """The versions that the policy chooses, the default first."""
    numbers = sorted(folder.versions, key=int, reverse=True)
    policy: Any = folder.settings.get("policy", "latest")
    if policy == "all":
        return numbers
    if isinstance(policy, list):
        return [str(number) for number in policy if str(number) in folder.versions] or numbers[:1]
    _, _, n = policy.partition(":")
    return numbers[: int(n or 1)]


def _settings(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as f:
            import tomllib

            settings = tomllib.load(f)
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    for name, value in settings.items():
        if name not in SETTINGS:
            raise ValueError(f"{path}: there is no setting {name}; there are {', '.join(SETTINGS)}")
        if not _is_right(name, value):
            raise ValueError(f"{path}: {name} is {value!r}, see the description of repositories")
    return settings


def _is_right(name: str, value: object) -> bool:
    kinds: dict[str, Literal["text", "number", "flag"]] = {"context_length": "number", "warm": "flag"}
    if name == "policy":
        if isinstance(value, list):
            return bool(value) and all(str(v).isdecimal() for v in value)
        word, _, n = value.partition(":") if isinstance(value, str) else ("", "", "")
        return value == "all" or (word == "latest" and (not n or (n.isdecimal() and int(n) > 0)))
    kind = kinds.get(name, "text")
    if kind == "flag":
        return isinstance(value, bool)
    return isinstance(value, int) and not isinstance(value, bool) if kind == "number" else isinstance(value, str)


def _model_in(folder: str) -> str | None:
    """The model of a version: ``model.gguf``, the only GGUF there, or a directory of safetensors."""
    names = sorted(os.listdir(folder))
    files = [name for name in names if name.endswith(".gguf")]
    if "model.gguf" in files or len(files) == 1:
        return os.path.join(folder, "model.gguf" if "model.gguf" in files else files[0])
    parts = [name for name in files if "-00001-of-" in name]
    if len(parts) == 1:
        return os.path.join(folder, parts[0])
    return folder if "config.json" in names else None


def _names(name: str, settings: dict[str, Any]) -> list[str]:
    return [name, settings["alias"]] if "alias" in settings else [name]


def _state(path: str) -> object:
    """What changes while a file is being written."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _without_folder(text: str, folder: str) -> str:
    """Clients need not know where models lie."""
    return text.replace(os.path.abspath(folder) + os.sep, "").replace(folder.rstrip(os.sep) + os.sep, "")
