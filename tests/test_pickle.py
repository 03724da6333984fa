"""A model goes to other processes as its path and a fingerprint, and is mapped again there."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from operator import methodcaller
from pathlib import Path

import numpy as np
import pytest
from llama_rs import Model, ModelChangedError, ModelClosedError, ModelNotFoundError, Session
from tiny_model import write_tiny_model

PROMPT = [1, 2, 3]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # what is tested here, on purpose


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("pickle") / "model.gguf", "Q8_0")


def answer(model: Model) -> list[int]:
    return model.generate(PROMPT, max_tokens=8, temperature=0, ignore_eos=True).token_ids


def go_on(session: Session) -> list[float]:
    logits: list[float] = session.forward([7, 8]).tolist()
    return logits


def test_a_pickle_is_small_and_keeps_the_options(model_file: Path) -> None:
    model = Model(model_file, threads=1, context_length=100, load="read")
    data = pickle.dumps(model)
    assert len(data) < 500
    other = pickle.loads(data)
    assert (other.path, other.threads, other.context_length) == (str(model_file), 1, 100)
    assert other._load == {"load": "read", "prefault": False, "lock": False}
    assert answer(other) == answer(model)


def test_unpickled_twice_it_is_mapped_once(model_file: Path) -> None:
    data = pickle.dumps(Model(model_file))
    models = [pickle.loads(data) for _ in range(20)]
    assert Path("/proc/self/maps").read_text().count(str(model_file)) == 1
    assert answer(models[0]) == answer(models[19])


def test_a_relative_path_is_pickled_as_an_absolute_one(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_file.parent)
    data = pickle.dumps(Model(model_file.name))
    monkeypatch.chdir("/")
    assert pickle.loads(data).path == str(model_file)


def test_another_file_at_the_path_is_refused(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "model.gguf", "Q8_0")
    data = pickle.dumps(Model(path))
    os.replace(write_tiny_model(tmp_path / "other.gguf", "Q8_0", n_layers=3), path)
    with pytest.raises(ModelChangedError, match="not the one that was pickled"):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(ModelNotFoundError, match=rf"{path}.*on host {os.uname().nodename}"):
        pickle.loads(data)


def test_sessions_streams_and_closed_models_are_not_pickled(model_file: Path) -> None:
    model = Model(model_file)
    for value in (model.session(), model.stream(PROMPT)):
        with pytest.raises(TypeError, match=r"cannot be pickled: (save it to a file|pickle its model)"):
            pickle.dumps(value)
    model.close()
    with pytest.raises(ModelClosedError):
        pickle.dumps(model)


def test_copies_share_the_map_and_close_by_themselves(model_file: Path) -> None:
    model = Model(model_file)
    for other in (copy.copy(model), copy.deepcopy({"model": model})["model"]):
        assert other is not model
        assert answer(other) == answer(model)
        other.close()
    assert answer(model)
    assert Path("/proc/self/maps").read_text().count(str(model_file)) == 1


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_model_works_in_the_processes_of_a_pool(model_file: Path, method: str) -> None:
    model = Model(model_file, threads=2)
    expected = model.logits(PROMPT)  # starts the threads, which a forked child does not have
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        for logits in pool.map(methodcaller("logits", PROMPT), [model] * 4):
            assert np.array_equal(logits, expected)


def in_a_fork(work: object) -> int:
    """The exit code of a child that calls ``work``: 0 if it is done, 1 for an exception, -14 if it hangs."""
    assert callable(work)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python says that threads and fork do not mix
        child = os.fork()
    if child == 0:
        import signal

        signal.alarm(20)
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_model_and_session_go_on_in_a_forked_child(model_file: Path) -> None:
    model = Model(model_file, threads=2)
    session = model.session()
    session.forward(PROMPT)

    def child() -> None:
        assert answer(model) == expected
        assert go_on(session) == logits
        assert Model(model_file).config == model.config

    with model.session() as other:
        other.forward(PROMPT)
        logits = go_on(other)
    expected = answer(model)
    assert in_a_fork(child) == 0
    assert go_on(session) == logits  # the child's copy was its own


def test_a_session_that_was_busy_at_the_fork_says_so(model_file: Path) -> None:
    model = Model(model_file, threads=1, context_length=4096)
    session = model.session()
    stop = False

    def busy() -> None:
        while not stop:
            session.truncate(0)
            session.forward([5] * 1000)

    def child() -> None:
        with pytest.raises(ValueError, match="in use when this process was forked"):
            session.position  # noqa: B018
        assert model.session().forward(PROMPT).shape
        with Model(model_file) as again:
            assert answer(again)

    thread = threading.Thread(target=busy)
    thread.start()
    time.sleep(0.3)
    try:
        assert in_a_fork(child) == 0
    finally:
        stop = True
        thread.join()
