"""What finishes a wheel: links that work, a true record, the same bytes, no word of the folder it was built in."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METADATA = "Name: x\nVersion: 1\n\n# x\n\n[a](docs/a.md), [b](https://b.example/), [c](#c) and `[d](e)`.\n"


def finish(built: Path, target: Path, *more: str, time: str = "1700000000") -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, ROOT / "tools" / "wheel.py", built, target, *more]
    return subprocess.run(command, env={"SOURCE_DATE_EPOCH": time}, capture_output=True, text=True, check=False)


def build(path: Path, library: bytes = b"\x7fELF", *, backwards: bool = False) -> Path:
    files = {
        "x/__init__.py": b"",
        "x/_core.so": library,
        "x-1.dist-info/METADATA": METADATA.encode(),
        "x-1.dist-info/sboms/x.json": f'{{"ref": "path+file://{ROOT}#x"}}'.encode(),
        "x-1.dist-info/RECORD": b"wrong",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for name in sorted(files, reverse=backwards):
            wheel.writestr(name, files[name])
    return path


def read(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name).decode() for name in file.namelist()}


def test_a_wheel_is_the_same_in_whatever_order_it_was_built(tmp_path: Path) -> None:
    for i, backwards in enumerate((False, True)):
        done = finish(build(tmp_path / "x.whl", backwards=backwards), tmp_path / str(i))
        assert done.returncode == 0, done.stderr
    one, other = (tmp_path / name / "x.whl" for name in "01")
    assert one.read_bytes() == other.read_bytes()
    files = read(one)
    assert list(files)[-1] == "x-1.dist-info/RECORD"
    assert files["x-1.dist-info/sboms/x.json"] == '{"ref": "path+file://.#x"}'
    lines = files["x-1.dist-info/RECORD"].splitlines()
    assert lines.pop() == "x-1.dist-info/RECORD,,"
    for line in lines:
        name, digest, size = line.split(",")
        content = files[name].encode()
        assert digest == "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        assert int(size) == len(content)
    assert len(lines) == 4


def test_links_lead_into_the_repository_or_nowhere(tmp_path: Path) -> None:
    built = build(tmp_path / "x.whl")
    assert finish(built, tmp_path / "a", "--repository", "https://host.example/x/").returncode == 0
    text = read(tmp_path / "a" / "x.whl")["x-1.dist-info/METADATA"]
    assert "[a](https://host.example/x/blob/HEAD/docs/a.md), [b](https://b.example/), [c](#c)" in text
    assert "\nProject-URL: Repository, https://host.example/x\n" in text
    assert finish(built, tmp_path / "b").returncode == 0
    text = read(tmp_path / "b" / "x.whl")["x-1.dist-info/METADATA"]
    assert "\n\n# x\n\na, [b](https://b.example/), [c](#c)" in text
    assert "Project-URL" not in text


def test_a_wheel_that_says_where_it_was_built_or_is_too_large_is_an_error(tmp_path: Path) -> None:
    done = finish(build(tmp_path / "x.whl", f"\0{ROOT}/rust/lib.rs".encode()), tmp_path / "a")
    assert done.returncode == 1
    assert "says where it was built, in x/_core.so" in done.stderr
    assert not (tmp_path / "a" / "x.whl").exists()
    done = finish(build(tmp_path / "x.whl", random_bytes(7 << 20)), tmp_path / "b")
    assert done.returncode == 1
    assert "the limit is" in done.stderr


def random_bytes(n: int) -> bytes:
    return b"".join(hashlib.sha256(i.to_bytes(8, "little")).digest() for i in range(n // 32))
