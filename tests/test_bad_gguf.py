"""Bad model files: one clear line each, as the right exception."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import bad_gguf
import llama_rs
import pytest

ERRORS: dict[str, type[llama_rs.LlamaError]] = {
    "format": llama_rs.ModelFormatError,
    "unsupported": llama_rs.UnsupportedModelError,
}


def use(path: Path) -> None:
    """Opens a model and makes it read its vocabulary, which is checked when it is first used."""
    model = llama_rs.Model(path)
    ids = model.tokenizer.encode("Hello, hell! \u00e9", parse_special=True)
    model.tokenizer.decode(ids)
    model.tokenizer.decode(range(model.config.vocab_size))


def one_line(error: llama_rs.LlamaError, path: Path) -> str:
    """The message, which is one line and begins with the file; the error survives pickling."""
    message = str(error)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == message
    assert vars(copy) == vars(error)
    return message


@pytest.mark.parametrize("file", [bad_gguf.good, bad_gguf.good_spm])
def test_the_files_that_the_bad_ones_are_made_of_are_good(tmp_path: Path, file: object) -> None:
    assert callable(file)
    path = tmp_path / "good.gguf"
    path.write_bytes(file().content())
    use(path)
    assert llama_rs.Model(path).generate("hell", max_tokens=4, temperature=0).token_ids


@pytest.mark.parametrize("case", bad_gguf.CASES, ids=lambda case: case.name)
def test_each_malformation_has_its_error(tmp_path: Path, case: bad_gguf.Case) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(case.content())
    with pytest.raises(ERRORS[case.kind]) as caught:
        use(path)
    error = caught.value
    message = one_line(error, path)
    for fact in case.says:
        assert fact in message
    assert isinstance(error, llama_rs.ModelFormatError | llama_rs.UnsupportedModelError)
    assert error.path == str(path)


def test_the_error_holds_the_facts(tmp_path: Path) -> None:
    file = bad_gguf.good()
    file.kv["llama.block_count"] = bad_gguf.u32(0)
    path = tmp_path / "bad.gguf"
    path.write_bytes(file.content())
    with pytest.raises(llama_rs.ModelFormatError) as caught:
        llama_rs.Model(path)
    assert caught.value.name == "llama.block_count"
    assert caught.value.offset == file.content().index(b"llama.block_count")


def test_no_allocation_grows_with_a_lie(tmp_path: Path) -> None:
    """All bad files in a process that may have a quarter of a gigabyte more than it started with."""
    for case in bad_gguf.CASES:
        (tmp_path / f"{case.name}.gguf").write_bytes(case.content())
    code = """
import pathlib, resource, sys
import llama_rs

used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        llama_rs.Model(path).tokenizer.encode("Hello, hell!")
    except llama_rs.LlamaError:
        pass
print("done")
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def not_a_file(path: Path, kind: str) -> Path:
    """Makes something at ``path`` that is no regular file."""
    match kind:
        case "directory":
            path.mkdir()
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
        ("directory", "directory"),
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
