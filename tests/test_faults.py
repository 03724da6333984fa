"""The file is cut short, written over, replaced or deleted while it is in use: real files, processes and signals.

``LLAMA_RS_FAULT_ROUNDS=100`` truncates that often (default 10), each time with one and with two processes at work.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import llama_rs
import numpy as np
import pytest
from llama_rs import Checkpoint, Model, ModelChangedError, Stream, Tokenizer
from tiny_model import write_tiny_model

ROUNDS = int(os.environ.get("LLAMA_RS_FAULT_ROUNDS", "10"))
PROMPT = "The old lighthouse keeper"
N_TOKENS = 400

# Answers the prompt with each model that it is told of, for as long as it can; says what happened.
WORKER = f"""
import json, sys
from llama_rs import LlamaError, Model

for line in sys.stdin:
    tokens, error = [], None
    try:
        print("started", flush=True)
        model = Model(line.strip(), threads=1)
        ids = model.tokenizer.encode({PROMPT!r})
        stream = model.stream(ids, temperature=0, ignore_eos=True)
        for piece in stream:
            tokens = stream.token_ids
    except LlamaError as e:
        error = type(e).__name__ + ": " + str(e)
    print(json.dumps([tokens, error]), flush=True)
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "model.gguf"
    write_tiny_model(path, "Q8_0", n_layers=8, dim=512, hidden_dim=1024, context_length=100_000)
    return path


@pytest.fixture
def model_file(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(original, tmp_path / "model.gguf"))


@pytest.fixture(scope="module")
def expected(original: Path) -> list[int]:
    model = Model(original, threads=1)
    return model.generate(PROMPT, max_tokens=N_TOKENS, temperature=0, ignore_eos=True).token_ids


def run(script: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


class Worker:
    def __init__(self) -> None:
        command = [sys.executable, "-c", WORKER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, path: Path) -> None:
        self._in.write(f"{path}\n")
        self._in.flush()
        assert self._out.readline() == "started\n"

    def result(self) -> tuple[list[int], str | None]:
        tokens, error = json.loads(self._out.readline() or '[[], "the process died"]')
        return tokens, error

    def end(self) -> int:
        with self.process:  # closes the pipes, and waits
            pass
        return self.process.returncode

    @property
    def _in(self) -> IO[str]:
        assert self.process.stdin
        return self.process.stdin

    @property
    def _out(self) -> IO[str]:
        assert self.process.stdout
        return self.process.stdout


@pytest.mark.parametrize("n_processes", [1, 2])
def test_truncation_at_any_moment_is_an_error_and_no_wrong_token(
    original: Path, tmp_path: Path, expected: list[int], n_processes: int
) -> None:
    rng = random.Random(n_processes)
    workers = [Worker() for _ in range(n_processes)]
    size = original.stat().st_size
    start = time.perf_counter()
    Model(original, threads=1).generate(PROMPT, max_tokens=N_TOKENS // 2, temperature=0, ignore_eos=True)
    duration = time.perf_counter() - start
    for i in range(ROUNDS):
        path = Path(shutil.copy(original, tmp_path / f"{i}.gguf"))
        for worker in workers:
            worker.start(path)
        time.sleep(rng.uniform(0, duration))
        os.truncate(path, rng.choice([0, rng.randrange(size), rng.randrange(size)]))
        for worker in workers:
            tokens, error = worker.result()
            assert error, f"round {i}: no error"
            # Whoever comes late opens a file that was short from the beginning.
            assert error.startswith(("ModelChangedError", "ModelFormatError")), f"round {i}: {error}"
            assert str(path) in error
            n = min(len(tokens), N_TOKENS)
            assert tokens[:n] == expected[:n]
        path.unlink()
    assert [worker.end() for worker in workers] == [0] * n_processes


@pytest.fixture
def halfway(model_file: Path) -> tuple[Model, Stream]:
    """A model in the middle of an answer."""
    model = Model(model_file, threads=2)
    stream = model.stream(PROMPT, max_tokens=N_TOKENS, temperature=0, ignore_eos=True)
    while len(stream.token_ids) < 5:
        next(stream)
    return model, stream


def test_writing_over_the_file_in_place_is_noticed(halfway: tuple[Model, Stream], model_file: Path) -> None:
    model, stream = halfway
    with open(model_file, "r+b") as f:
        f.seek(-100, os.SEEK_END)
        f.write(bytes(50))
    with pytest.raises(ModelChangedError, match=r"it was written to; replace models by renaming"):
        list(stream)
    with pytest.raises(ModelChangedError):
        model.generate(PROMPT, max_tokens=1)  # it stays so
    Model(model_file).generate([1], max_tokens=1)  # opened again it is another file


def test_a_file_that_was_merely_touched_goes_on(
    halfway: tuple[Model, Stream], model_file: Path, expected: list[int]
) -> None:
    model, stream = halfway
    for times in (None, (1, 1), (2_000_000_000, 1_000_000_000)):
        os.utime(model_file, times)
        next(stream)
    model_file.chmod(0o444)
    assert Model(model_file).path == model.path
    maps = Path("/proc/self/maps").read_text()
    assert maps.count(str(model_file)) == 1, "it is still the same file"
    list(stream)
    assert stream.token_ids == expected


@pytest.mark.parametrize("when", ["before it is used", "in the middle of an answer"])
def test_another_model_copied_over_it_with_its_times_is_noticed(original: Path, model_file: Path, when: str) -> None:
    other = model_file.with_name("other.gguf")
    write_tiny_model(other, "Q8_0", n_layers=8, dim=512, hidden_dim=1024, context_length=100_000, seed=1)
    assert other.stat().st_size == original.stat().st_size
    before = model_file.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    model = Model(model_file)
    stream = model.stream(PROMPT, max_tokens=N_TOKENS, temperature=0, ignore_eos=True)
    if when != "before it is used":
        next(stream)
    subprocess.run(["cp", "-p", other, model_file], check=True)
    assert model_file.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(ModelChangedError, match="its contents are no longer what they were"):
        list(stream)
    Model(model_file).generate([1], max_tokens=1)  # opened again it is another file


def test_a_tensor_that_was_written_over_and_backdated_is_noticed(
    halfway: tuple[Model, Stream], model_file: Path
) -> None:
    model, stream = halfway
    tensor = model.tensors["blk.3.ffn_up.weight"]
    for _ in range(30):
        next(stream)  # all of the file has been seen then
    before = model_file.stat()
    with open(model_file, "r+b") as f:
        f.seek(tensor.offset)
        f.write(bytes(tensor.nbytes))
    os.utime(model_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelChangedError, match="its contents are no longer what they were"):
        list(stream)


def test_what_is_written_through_a_map_that_was_dirty_before_is_noticed(model_file: Path) -> None:
    with open(model_file, "r+b") as f, mmap.mmap(f.fileno(), 0) as writer:
        for page in range(0, len(writer), mmap.PAGESIZE):
            writer[page] = writer[page]  # dirty from here on: what follows has no date
        model = Model(model_file)
        stream = model.stream(PROMPT, temperature=0, ignore_eos=True)
        for _ in range(30):
            next(stream)
        times = model_file.stat().st_mtime_ns, model_file.stat().st_ctime_ns
        tensor = model.tensors["blk.3.ffn_up.weight"]
        writer[tensor.offset : tensor.offset + tensor.nbytes] = bytes(tensor.nbytes)
        assert times == (model_file.stat().st_mtime_ns, model_file.stat().st_ctime_ns)
        with pytest.raises(ModelChangedError, match="its contents are no longer what they were"):
            list(stream)


BLOCKED = """
    import os, signal, sys, threading
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # and all threads of now on inherit that
    from llama_rs import Model, ModelChangedError
    model = Model(sys.argv[1], threads=2)
    use = {
        "forward": lambda: session.forward([1, 2, 3]),
        "stream": lambda: list(stream),
        "encode": lambda: model.tokenizer.encode("the sea and the old lighthouse"),
        "decode": lambda: model.tokenizer.decode(list(range(300))),
        "metadata": lambda: {key: model.metadata[key] for key in model.metadata},
        "dequantize": lambda: tensor.dequantize(),
        "open": lambda: Model(sys.argv[1]),
    }[sys.argv[2]]
    def work():
        try:
            use()
        except ModelChangedError:
            print("changed", flush=True)
    session, tensor = model.session(), model.tensors["blk.7.ffn_down.weight"]
    stream = model.stream("the", ignore_eos=True)
    next(stream)
    os.truncate(sys.argv[1], 4096)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    work()
    assert signal.SIGBUS in signal.pthread_sigmask(signal.SIG_BLOCK, []), "the mask is as it was"
"""


@pytest.mark.parametrize("use", ["forward", "stream", "encode", "decode", "metadata", "dequantize"])
def test_threads_that_block_all_signals_get_the_error(model_file: Path, use: str) -> None:
    result = run(BLOCKED, model_file, use)
    assert (result.returncode, result.stdout, result.stderr) == (0, "changed\nchanged\n", "")


def test_our_threads_leave_signals_to_the_program(model_file: Path) -> None:
    script = """
        import os, signal, sys
        from llama_rs import Model
        Model(sys.argv[1], threads=2).generate("the", max_tokens=10)
        for task in os.listdir("/proc/self/task"):
            status = dict(line.split(":\t", 1) for line in open(f"/proc/self/task/{task}/status"))
            if status["Name"].startswith("llama_rs"):
                blocked = int(status["SigBlk"], 16)
                print([bool(blocked >> s - 1 & 1) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGBUS)])
    """
    result = run(script, model_file)
    n_workers = min(2, llama_rs._core.available_threads()) - 1
    assert (result.stdout, result.stderr) == ("[True, True, False]\n" * n_workers, "")


def test_more_than_a_thousand_maps_are_guarded(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_model(path, "Q8_0", n_layers=1)
    copies = [tmp_path / f"{i}.gguf" for i in range(1100)]
    for copy in copies:
        shutil.copyfile(path, copy)
    script = """
        import os, resource, sys
        from pathlib import Path
        from llama_rs import Model, ModelChangedError
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        models = [Model(path) for path in sorted(Path(sys.argv[1]).glob("*.gguf"))]
        last = [model.tensors["output_norm.weight"].numpy() for model in models]
        n = 0
        for model in models:
            os.truncate(model.path, 100)
            try:
                model.tensors["output_norm.weight"].dequantize()
            except ModelChangedError:
                n += 1
        print(n, any(array.any() for array in last))
    """
    result = run(script, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "1101 False\n", "")


def test_ctrl_c_stops_reading_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    write_tiny_model(path, "Q8_0", n_layers=1)
    os.truncate(path, 16 << 30)  # a hole: its reading takes long, and nothing of the disk
    script = """
        import resource, signal, sys, threading, time
        from llama_rs import Model
        def interrupt():
            resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
            while resident() < 200 << 20:  # in the middle of it
                time.sleep(0.001)
            signal.raise_signal(signal.SIGINT)
        threading.Thread(target=interrupt, daemon=True).start()
        try:
            Model(sys.argv[1], load="read")
        except KeyboardInterrupt:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            print("interrupted", peak < 4 << 30)
    """
    result = run(script, path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "interrupted True\n", "")


def test_what_is_no_model_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 16 << 30)
    script = """
        import re, sys
        from llama_rs import Model, ModelFormatError
        try:
            Model(sys.argv[1], load="read")
        except ModelFormatError as e:
            most = re.search("VmHWM: *([0-9]+)", open("/proc/self/status").read().replace("\t", " "))
            print("not a GGUF file" in str(e), int(most[1]) < 1 << 19)  # KiB; ru_maxrss is the parent's, too
    """
    result = run(script, path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "True True\n", "")


def test_residency_of_somebody_elses_file_is_not_known(model_file: Path) -> None:
    script = """
        import os, sys
        from llama_rs import _core
        known = [_core.Checkpoint(sys.argv[1]).residency_known()]
        if os.getuid() == 0:
            os.chown(sys.argv[1], 1, 1)
            os.chmod(sys.argv[1], 0o644)
            known.append(_core.Checkpoint(sys.argv[1]).residency_known())
            os.setuid(65534)
            known.append(_core.Checkpoint(sys.argv[1]).residency_known())
        print(known)
    """
    for path in (model_file, *model_file.parents[:3]):
        path.chmod(0o755)
    result = run(script, model_file)
    assert (result.stdout, result.stderr) == ("[True, True, False]\n" if os.getuid() == 0 else "[True]\n", "")


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_answers_are_the_same_with_any_number_of_threads_beside_a_busy_machine(
    original: Path, expected: list[int], threads: int
) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        model = Model(original, threads=threads)
        streams = [model.stream(PROMPT, max_tokens=60, temperature=0, ignore_eos=True) for _ in range(3)]
        workers = [threading.Thread(target=list, args=(stream,)) for stream in streams]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [stream.token_ids for stream in streams] == [expected[:60]] * 3
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_sessions_are_opened_while_other_threads_compute(model_file: Path) -> None:
    script = """
        import sys, threading, time
        from llama_rs import Model
        sys.setswitchinterval(1e-4)
        model = Model(sys.argv[1], threads=2)
        def work():
            for _ in range(10):
                list(model.stream("the sea", max_tokens=20, ignore_eos=True))
        threads = [threading.Thread(target=work) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    """
    result = run(script, model_file)  # was a hang: a lock of the engine against that of the interpreter
    assert (result.returncode, result.stderr) == (0, "")


def test_threads_keep_to_the_cores_that_the_process_may_use(model_file: Path) -> None:
    script = """
        import os, sys
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        from llama_rs import Model, _core
        model = Model(sys.argv[1], threads=8)
        model.generate("the", max_tokens=3)
        names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
        print(_core.available_threads(), [name for name in names if name.startswith("llama_rs-")])
    """
    result = run(script, model_file)
    assert (result.stdout, result.stderr) == ("1 []\n", "")


def test_every_use_of_a_truncated_model_is_the_same_error(halfway: tuple[Model, Stream], model_file: Path) -> None:
    model, stream = halfway
    session, tensor = model.session(), model.tensors["blk.7.ffn_down.weight"]
    os.truncate(model_file, 1000)
    uses: list[Callable[[], object]] = [
        lambda: next(stream),
        lambda: session.forward([1]),
        lambda: session.logits([1, 2]),
        lambda: model.session(),
        lambda: model.tokenizer.encode("the sea"),
        lambda: model.tokenizer.decode([100, 101]),
        lambda: model.tokenizer.token_bytes(100),
        lambda: model.metadata["tokenizer.ggml.tokens"],
        lambda: list(model.metadata),
        lambda: model.tensors["output_norm.weight"],
        lambda: tensor.dequantize(),
        lambda: model.__reduce__(),
    ]
    for use in uses:
        with pytest.raises(ModelChangedError, match=r"it had \d+ bytes and has 1000 now"):
            use()


def test_a_vocabulary_that_is_gone_is_an_error(model_file: Path) -> None:
    tokenizer = Tokenizer(model_file)
    os.truncate(model_file, 0)
    with pytest.raises(ModelChangedError):
        tokenizer.encode("the sea")


def test_replaced_and_deleted_files_go_on(halfway: tuple[Model, Stream], model_file: Path, expected: list[int]) -> None:
    _, stream = halfway
    other = model_file.with_name("other.gguf")
    other.write_bytes(b"something else")
    os.replace(other, model_file)
    for _ in range(20):
        next(stream)
    os.unlink(model_file)
    list(stream)
    assert stream.token_ids == expected


def test_read_into_memory_the_file_does_not_matter(model_file: Path, expected: list[int]) -> None:
    model = Model(model_file, load="read")
    os.truncate(model_file, 0)
    answer = model.generate(PROMPT, max_tokens=20, temperature=0, ignore_eos=True)
    assert answer.token_ids == expected[:20]


def test_what_cannot_be_mapped_is_read(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(llama_rs.ModelFormatError):  # it is no model, but it was read
        Model("/sys/kernel/uevent_seqnum")
    assert not caplog.records


def test_arrays_of_a_truncated_file_read_zeros(model_file: Path) -> None:
    array = Checkpoint(model_file).tensors["blk.7.ffn_down.weight"].numpy()
    assert np.any(array)
    os.truncate(model_file, 4096)
    assert not np.any(array)


def test_the_map_is_shared_and_reopened_after_a_change(model_file: Path) -> None:
    a, b = Model(model_file), Model(model_file)
    maps = Path("/proc/self/maps").read_text()
    assert maps.count(str(model_file)) == 1
    with open(model_file, "ab") as f:
        f.write(b"more")  # a new size is always a change; a write within the clock's tick may look like a touch
    with pytest.raises(ModelChangedError):
        a.session()
    c = Model(model_file)
    c.session()
    assert b.path == c.path


def test_other_bus_errors_end_the_process_as_ever(tmp_path: Path, model_file: Path) -> None:
    script = """
        import faulthandler, mmap, os, sys
        before, path, other = sys.argv[1:]
        if before == "before":
            faulthandler.enable()
        from llama_rs import Model
        model = Model(path)
        if before == "after":
            faulthandler.enable()
            model.session()  # puts our handler back in front
        open(other, "wb").write(bytes(8192))
        with open(other, "r+b") as f:
            view = mmap.mmap(f.fileno(), 8192)
            f.truncate(0)
        print(view[5000])
    """
    for before in ("before", "after", "never"):
        result = run(script, before, model_file, tmp_path / "other")
        assert result.returncode == -signal.SIGBUS, result.stderr
        assert ("Fatal Python error: Bus error" in result.stderr) == (before != "never"), result.stderr


@pytest.mark.parametrize("when", ["before", "after"])
def test_faulthandler_does_not_take_our_faults(model_file: Path, when: str) -> None:
    script = """
        import faulthandler, os, sys
        when, path = sys.argv[1:]
        if when == "before":
            faulthandler.enable()
        from llama_rs import Model, ModelChangedError
        model = Model(path)
        if when == "after":
            faulthandler.enable()
        session = model.session()
        array = model.tensors["blk.7.ffn_down.weight"].numpy()
        os.truncate(path, 4096)
        print(array.any())
        try:
            session.forward([1])
        except ModelChangedError as e:
            print("changed")
    """
    result = run(script, when, model_file)
    assert (result.returncode, result.stdout, result.stderr) == (0, "False\nchanged\n", "")


def test_the_guard_can_be_switched_off(model_file: Path) -> None:
    script = """
        import os, sys
        from llama_rs import Model
        array = Model(sys.argv[1]).tensors["blk.7.ffn_down.weight"].numpy()
        os.truncate(sys.argv[1], 4096)
        print(array.any())
    """
    assert run(script, model_file, LLAMA_RS_SIGBUS="0").returncode == -signal.SIGBUS


def test_a_signal_that_somebody_sends_is_not_ours(model_file: Path) -> None:
    script = """
        import os, signal, sys
        from llama_rs import Model
        model = Model(sys.argv[1])
        os.kill(os.getpid(), signal.SIGBUS)
    """
    assert run(script, model_file).returncode == -signal.SIGBUS


def test_the_command_line_says_one_line_and_exits_with_1(model_file: Path) -> None:
    options = ["-m", str(model_file), "--ignore-eos", "-c", "100000"]
    command = [sys.executable, "-m", "llama_rs", "generate", *options, "the"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.read(10)
        os.truncate(model_file, 4096)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    lines = stderr.decode().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {model_file}: the file changed while it was in use")


def test_a_lock_over_the_limit_says_what_to_do(model_file: Path) -> None:
    script = """
        import os, resource, sys
        from llama_rs import Model, ModelFileError
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        if os.getuid() == 0:
            os.setuid(65534)  # root may lock what it likes
        try:
            Model(sys.argv[1], lock=True)
        except ModelFileError as e:
            print(e)
    """
    for path in (model_file, *model_file.parents[:3]):
        path.chmod(0o755)
    result = run(script, model_file)
    assert "cannot lock" in result.stdout, result
    assert "RLIMIT_MEMLOCK is 64 KiB; raise it (ulimit -l" in result.stdout


def test_prefault_reads_the_file(model_file: Path) -> None:
    with open(model_file, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    model = Model(model_file)
    cold = model.residency()
    model.close()
    assert cold.resident < cold.bytes / 2
    warm = Model(model_file, prefault=True).residency()
    assert warm.resident == warm.bytes
    assert all(part.resident == part.bytes for part in (*warm.layers, *warm.tensors))
