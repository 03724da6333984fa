"""Finishes a wheel that maturin built: no word of the folder it was built in, links that work, the same bytes always.

    python tools/wheel.py BUILT.whl DIRECTORY [--repository https://...]

The page of a package knows no relative links: they lead into the repository, whose address only the publisher knows;
without it they are plain text. A wheel that says where it was built, or that is too large, is an error.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST = 6 << 20
"""Bytes of a wheel: it comes with `pip install` wherever the package is used.

Of 5.4 MiB kernels are 1.4 (one for each block type, instruction set and number of tokens), the libraries for HTTP,
grammars and templates 0.7.
"""
OLDEST = 315532800
"""1980, where the times of zip files begin."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("built", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--repository", default="", help="address of the repository, for links")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.built) as wheel:
        modes = {info.filename: info.external_attr for info in wheel.infolist()}
        files = {name: wheel.read(name) for name in modes}
    for name, content in files.items():
        if "/sboms/" in name:
            files[name] = content.replace(os.fsencode(ROOT), b".")
        elif name.endswith(".dist-info/METADATA"):
            files[name] = with_links(content.decode(), arguments.repository.rstrip("/")).encode()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    target = arguments.directory / arguments.built.name
    write(target, files, modes)
    places = [os.fsencode(place) + b"/" for place in (ROOT, Path.home())]
    told = [name for name, content in files.items() if any(place in content for place in places)]
    if told:
        target.unlink()
        sys.exit(f"{target}: says where it was built, in {', '.join(told)}")
    if target.stat().st_size > MOST:
        sys.exit(f"{target}: {target.stat().st_size} bytes, the limit is {MOST}")
    print(f"{target}: {target.stat().st_size} bytes, sha256 {hashlib.sha256(target.read_bytes()).hexdigest()}")
    return 0


def with_links(metadata: str, repository: str) -> str:
    """The metadata with absolute links, or none, and the addresses of the project."""
    headers, _, page = metadata.partition("\n\n")
    if repository:
        page = re.sub(r"\]\((?![a-z]+:|#)([^)]+)\)", rf"]({repository}/blob/HEAD/\1)", page)
        for name, address in (
            ("Repository", repository),
            ("Changelog", f"{repository}/blob/HEAD/CHANGELOG.md"),
            ("Issues", f"{repository}/issues"),
        ):
            headers += f"\nProject-URL: {name}, {address}"
    else:
        page = re.sub(r"\[([^]]*)\]\((?![a-z]+:|#)[^)]+\)", r"\1", page)
    return f"{headers}\n\n{page}"


def write(target: Path, files: dict[str, bytes], modes: dict[str, int]) -> None:
    """Writes the wheel in the order of names, the record of hashes at the end."""
    (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
    names = sorted(files.keys() - {record})
    lines = [f"{name},sha256={digest(files[name])},{len(files[name])}" for name in names]
    files[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    date = time.gmtime(max(int(os.environ.get("SOURCE_DATE_EPOCH", OLDEST)), OLDEST))[:6]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
        for name in [*names, record]:
            info = zipfile.ZipInfo(name, date)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = modes[name]
            wheel.writestr(info, files[name])


def digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    sys.exit(main())
