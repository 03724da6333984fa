"""Bad model files: one clear line each, as the right exception."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bad_gguf
import llama_rs
import numpy as np
import pytest
from llama_rs import residency

ERRORS: dict[str | None, type[llama_rs.LlamaError]] = {
    "format": llama_rs.ModelFormatError,
    "unsupported": llama_rs.UnsupportedModelError,
}
TOKENS = [1, 200, 3, 77]


def use(path: Path) -> None:
    """Opens a model and makes it read its vocabulary, which is checked when it is first used."""
    model = llama_rs.Model(path)
    ids = model.tokenizer.encode("Hello, hell! \u00e9", parse_special=True)
    model.tokenizer.decode(ids)
    model.tokenizer.decode(range(model.config.vocab_size))


def one_line(error: llama_rs.LlamaError, path: Path) -> str:
    """The message, which is one short line and begins with the file; the error survives pickling."""
    message = str(error)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 400 + 3 * len(str(path))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == message
    assert vars(copy) == vars(error)
    return message


@pytest.mark.parametrize("file", [bad_gguf.good, bad_gguf.good_spm, bad_gguf.good_qwen2])
def test_the_files_that_the_bad_ones_are_made_of_are_good(tmp_path: Path, file: Callable[[], bad_gguf.Gguf]) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(file().content())
    use(path)
    assert llama_rs.Model(path).generate("hell", max_tokens=4, temperature=0).token_ids


@pytest.mark.parametrize("case", bad_gguf.GOOD_CASES, ids=lambda case: case.name)
def test_what_is_just_about_good_is_taken(tmp_path: Path, case: bad_gguf.Case) -> None:
    path = case.write(tmp_path)
    use(path)
    whole = tmp_path / "good.gguf"
    whole.write_bytes(bad_gguf.good().content())
    assert np.array_equal(llama_rs.Model(path).logits(TOKENS), llama_rs.Model(whole).logits(TOKENS)), "other weights"


@pytest.mark.parametrize("case", bad_gguf.CASES, ids=lambda case: case.name)
def test_each_malformation_has_its_error(tmp_path: Path, case: bad_gguf.Case) -> None:
    path = case.write(tmp_path)
    with pytest.raises(ERRORS[case.kind]) as caught:
        use(path)
    error = caught.value
    assert isinstance(error, llama_rs.ModelFormatError | llama_rs.UnsupportedModelError)
    assert error.path is not None
    assert Path(error.path).parent == tmp_path  # of a model in parts, the one to blame
    message = one_line(error, Path(error.path))
    for fact in case.says:
        assert fact in message
    if len(case.files()) == 1:
        assert error.path == str(path)


def test_a_model_without_a_vocabulary_runs_from_ids(tmp_path: Path) -> None:
    file = bad_gguf.good()
    del file.kv["llama.vocab_size"], file.kv["tokenizer.ggml.tokens"]
    path = tmp_path / "ids.gguf"
    path.write_bytes(file.content())
    model = llama_rs.Model(path)
    assert model.logits(TOKENS).shape == (4, bad_gguf.VOCAB)
    with pytest.raises(llama_rs.ModelFormatError, match="missing key"):
        model.tokenizer.encode("hell")


def test_parts_are_one_model_for_all_who_ask(tmp_path: Path) -> None:
    for name, part in bad_gguf.good_parts().items():
        (tmp_path / name).write_bytes(part.content())
    paths = [tmp_path / bad_gguf.part_name(i) for i in range(3)]
    model = llama_rs.Model(paths[1])
    tensors = [(str(tensor.name), tensor.data) for tensor in bad_gguf.good().tensors.values()]
    assert list(model.tensors) == [name for name, _ in tensors]
    assert model.metadata["general.architecture"] == "llama"
    for name, data in tensors:
        assert model.tensors[name].numpy().tobytes() == data

    found = model.residency()
    sizes = [path.stat().st_size for path in paths]
    assert found.bytes == sum(sizes)
    assert [(part.name, part.bytes) for part in found.tensors] == [(name, len(data)) for name, data in tensors]
    starts = [part.start for part in found.tensors]
    assert starts == sorted(starts), "positions count through the files"
    assert starts[4] < sizes[0] + sizes[1] <= starts[5]
    core = llama_rs.Checkpoint(paths[0])._core
    assert [(path, size) for path, _, _, size in core.files()] == list(zip(map(str, paths), sizes, strict=True))
    core.read_in(0, sum(sizes))
    assert core.resident(0, sum(sizes)) == sum(sizes)
    assert core.resident(sizes[0], sizes[0] + 1) == 1


@pytest.mark.parametrize("part", range(3))
def test_a_change_of_any_part_is_found(tmp_path: Path, part: int) -> None:
    for name, file in bad_gguf.good_parts().items():
        (tmp_path / name).write_bytes(file.content())
    model = llama_rs.Model(tmp_path / bad_gguf.part_name(0))
    pickled = pickle.dumps(model)
    assert np.array_equal(pickle.loads(pickled).logits(TOKENS), model.logits(TOKENS))

    changed = tmp_path / bad_gguf.part_name(part)
    content = changed.read_bytes()
    with changed.open("r+b") as f:
        f.truncate(len(content) - 4096)
    with pytest.raises(llama_rs.ModelChangedError, match=bad_gguf.part_name(part)):
        model.logits(TOKENS)
    changed.unlink()
    changed.write_bytes(content + b"more")
    with pytest.raises(llama_rs.ModelChangedError, match="not the one that was pickled"):
        pickle.loads(pickled)


def test_names_that_change_while_they_are_read_are_never_half_read(tmp_path: Path) -> None:
    """A text that was UTF-8 when it was checked, and is not when it is converted, must not reach Python."""
    file = bad_gguf.good()
    file.kv["general.name"] = bad_gguf.string("name" * 1000)
    path = tmp_path / "model.gguf"
    path.write_bytes(file.content())
    places = path.read_bytes().index(b"namename"), path.read_bytes().index(b"blk.0.attn_q.weight")
    code = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY)
places = [int(place) for place in sys.argv[2:]]
print(flush=True)
while True:
    for text in (bytes([255]) * 4, b"name"):
        for place in places:
            os.pwrite(file, text, place)
"""
    with subprocess.Popen([sys.executable, "-c", code, path, *map(str, places)], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            for _ in range(300):
                with contextlib.suppress(llama_rs.LlamaError):
                    checkpoint = llama_rs.Checkpoint(path)
                    assert list(checkpoint.metadata.items())
                    assert list(checkpoint.tensors.items())
        finally:
            writer.kill()


def test_the_error_holds_the_facts(tmp_path: Path) -> None:
    file = bad_gguf.good()
    file.kv["llama.block_count"] = bad_gguf.u32(0)
    path = tmp_path / "bad.gguf"
    path.write_bytes(file.content())
    with pytest.raises(llama_rs.ModelFormatError) as caught:
        llama_rs.Model(path)
    assert caught.value.name == "llama.block_count"
    assert caught.value.offset == file.content().index(b"llama.block_count")


def limited(code: str, *args: str | Path, more: int = 2**28) -> None:
    """Runs code in a process that may have so many bytes of address space more than it starts with."""
    start = """
import pathlib, resource, sys
import llama_rs
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv.pop())
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""
    command = [sys.executable, "-c", start + code + "\nprint('done')", *args, str(more)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_no_allocation_grows_with_a_lie(tmp_path: Path) -> None:
    """All bad files in a process that may have a quarter of a gigabyte more than it started with."""
    for i, case in enumerate(bad_gguf.CASES):
        folder = tmp_path / str(i)
        folder.mkdir()
        case.write(folder)
    code = """
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    for path in folder.iterdir():
        try:
            llama_rs.Model(path).tokenizer.encode("Hello, hell!")
        except llama_rs.LlamaError:
            pass
"""
    limited(code, tmp_path)


def sparse(path: Path, content: bytes, size: int) -> Path:
    """A file that begins with ``content`` and goes on with a hole up to ``size``."""
    path.write_bytes(content)
    os.truncate(path, size)
    return path


def test_a_long_array_of_the_metadata_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    file = bad_gguf.Gguf(kv={"long": bad_gguf.array(bad_gguf.F32, 400_000_000, b"")})
    path = sparse(tmp_path / "array.gguf", file.content(), len(file.content()) + 1_600_000_000)
    code = """
array = llama_rs.Checkpoint(sys.argv[1]).metadata["long"]
assert len(array) == 400_000_000
assert array[-1] == 0.0 and array[200_000_000:200_000_003] == [0.0, 0.0, 0.0]
assert repr(array) == "[0.0, 0.0, 0.0, 0.0, ... 400000000 in all]"
"""
    limited(code, path, more=1_600_000_000 + 2**27)  # the map, and little else


@pytest.mark.parametrize("options", ['load="read"', "prefault=True", "lock=True"])
@pytest.mark.parametrize("what", ["another format", "another architecture", "a tensor too many"])
def test_a_file_that_is_refused_is_refused_before_it_is_read(tmp_path: Path, what: str, options: str) -> None:
    file = bad_gguf.good()
    match what:
        case "another architecture":
            file.kv["general.architecture"] = bad_gguf.string("mamba")
        case "a tensor too many":
            file.tensors["more"] = bad_gguf.Tensor("more", [1], bytes(4))
    content = b"something else" if what == "another format" else file.content()
    path = sparse(tmp_path / "large.gguf", content, 4 << 30)
    code = f"""
try:
    llama_rs.Model(sys.argv[1], {options})
except (llama_rs.ModelFormatError, llama_rs.UnsupportedModelError):
    pass
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1 << 20, "it was read"  # KiB
"""
    limited(code, path, more=(4 << 30) + 2**27)


def test_a_hole_before_the_tensors_is_not_read(tmp_path: Path) -> None:
    hole = 1 << 30
    file = bad_gguf.good()
    at = 0
    for tensor in file.tensors.values():
        tensor.offset = hole + at
        at = bad_gguf.padded(at + len(tensor.data), file.alignment)
    path = tmp_path / "hole.gguf"
    header = file.header()
    start = bad_gguf.padded(len(header), file.alignment)
    with path.open("wb") as f:
        f.write(header)
        for tensor in file.tensors.values():
            assert tensor.offset is not None
            f.seek(start + tensor.offset)
            f.write(tensor.data)
    with llama_rs.Model(path).session() as session:
        session.forward(TOKENS)
        session.save(tmp_path / "session.kv")
        session.model.load_session(tmp_path / "session.kv").close()
    pickle.loads(pickle.dumps(session.model)).close()
    core = llama_rs.Checkpoint(path)._core
    assert core.resident(start, start + hole) < hole // 64  # what the kernel read ahead, at the borders


def test_arrays_of_the_metadata_are_sequences(tmp_path: Path) -> None:
    texts = [f"token {i}" for i in range(10)]
    kv: dict[str | bytes, bad_gguf.Value] = {
        "strings": bad_gguf.strings(texts),
        "numbers": bad_gguf.integers([3, -1, 4]),
        "bools": bad_gguf.array(bad_gguf.BOOL, 2, b"\0\1"),
        "nested": bad_gguf.array(bad_gguf.ARRAY, 2, bad_gguf.strings(["a"])[1] + bad_gguf.integers([1, -2])[1]),
        "empty": bad_gguf.strings([]),
    }
    path = tmp_path / "arrays.gguf"
    path.write_bytes(bad_gguf.Gguf(kv=kv).content())
    metadata = llama_rs.Checkpoint(path).metadata
    strings = metadata["strings"]
    assert isinstance(strings, Sequence)
    assert [strings[i] for i in (9, 0, 5, 4, -1)] == [texts[i] for i in (9, 0, 5, 4, 9)]
    assert (strings[2:4], strings[::-5]) == (texts[2:4], texts[::-5])
    assert strings == pickle.loads(pickle.dumps(strings)) == texts
    assert strings != [*texts[:9], "another"]
    assert strings != texts[:9]
    assert "token 7" in strings
    numbers, bools, nested = [3, -1, 4], [False, True], [["a"], [1, -2]]
    assert dict(metadata) == {"strings": texts, "numbers": numbers, "bools": bools, "nested": nested, "empty": []}
    for index in (10, -11):
        with pytest.raises(IndexError):
            strings[index]


def test_many_keys_and_tensors_are_all_found(tmp_path: Path) -> None:
    """So many that it would never end if each were looked for among all."""
    n = 100_000
    file = bad_gguf.Gguf()
    file.kv = {f"key.{i}": bad_gguf.u32(i) for i in range(n)}
    file.tensors = {f"blk.{i}.x": bad_gguf.Tensor(f"blk.{i}.x", [1], bytes(4)) for i in range(n)}
    path = tmp_path / "many.gguf"
    path.write_bytes(file.content())
    checkpoint = llama_rs.Checkpoint(path)
    assert all(checkpoint.metadata[f"key.{i}"] == i for i in range(0, n, 97))
    assert all(checkpoint.tensors[f"blk.{i}.x"].nbytes == 4 for i in range(0, n, 97))
    assert len(checkpoint.tensors) == len(checkpoint.metadata) == n


def test_asking_what_is_in_memory_is_linear_in_the_number_of_tensors(tmp_path: Path) -> None:
    calls: Counter[int] = Counter()

    class Counting:
        def __init__(self, n: int) -> None:
            file = bad_gguf.Gguf()
            file.tensors = {f"blk.{i}.x": bad_gguf.Tensor(f"blk.{i}.x", [1], bytes(4)) for i in range(n)}
            path = tmp_path / f"{n}.gguf"
            path.write_bytes(file.content())
            self.n, self.core = n, llama_rs.Checkpoint(path)._core

        def __getattr__(self, name: str) -> Any:
            calls[self.n] += 1
            return getattr(self.core, name)

    for n in (1000, 2000):
        found = residency.residency(Counting(n))  # type: ignore[arg-type]
        assert len(found.tensors) == n
        assert len(found.layers) == n + 1
    assert calls[2000] <= 2 * calls[1000]


def not_a_file(path: Path, kind: str) -> Path:
    """Makes something at ``path`` that is no regular file."""
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "symlink loop":
            path.symlink_to(path)
        case "device":
            return Path("/dev/zero")
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("fifo", "not a regular file"),
        ("device", "not a regular file"),
        ("symlink loop", "symbolic link"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str, says: str) -> None:
    path = not_a_file(tmp_path / "model.gguf", kind)
    with pytest.raises(llama_rs.ModelFileError) as caught:
        llama_rs.Model(path)
    assert says in one_line(caught.value, path)


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "model.gguf"
    with pytest.raises(FileNotFoundError) as caught:
        llama_rs.Model(path)
    assert isinstance(caught.value, llama_rs.ModelFileError)
    assert caught.value.filename == str(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read anything")
def test_an_unreadable_file_is_a_file_error(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bad_gguf.good().content())
    path.chmod(0)
    with pytest.raises(llama_rs.ModelFileError, match=r"(?i)permission denied"):
        llama_rs.Model(path)
