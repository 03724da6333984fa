"""The house is as CONTRIBUTING draws it: arrows between rooms point down, and what a table lists lies in files."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "rust").rglob("*.rs"))


def floors() -> dict[str, int]:
    """The floor of each room, from the picture in CONTRIBUTING."""
    picture = (ROOT / "CONTRIBUTING.md").read_text().split("## Layers")[1].split("```")[1]
    return {room: int(floor) for room, floor in re.findall(r"^  (\w+)(?:\.rs|/)? +(\d+) ", picture, re.MULTILINE)}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "rust").parts[0].removesuffix(".rs")


def code_of(path: Path) -> str:
    """What of a file is neither a comment nor a test."""
    text = path.read_text()
    text = re.split(r"^\s*#\[cfg\(test\)\]\s*\n\s*mod tests \{", text, flags=re.MULTILINE)[0]
    return re.sub(r"//.*", "", text)


def arrows() -> set[tuple[str, str]]:
    """Which room names which."""
    found = set()
    for path in SOURCES:
        if path.name == "tests.rs":
            continue
        for one, several in re.findall(r"\bcrate::(?:(\w+)|\{((?:[^{}]|\{[^{}]*\})*)\})", code_of(path)):
            for name in [one] if one else re.findall(r"(?:^|,)\s*(\w+)", re.sub(r"\{[^{}]*\}", "", several)):
                found.add((room_of(path), name))
    return found


def test_every_room_is_in_the_picture() -> None:
    assert {room_of(path) for path in SOURCES} - {"lib"} == floors().keys()


def test_arrows_point_down() -> None:
    floor = floors()
    up = sorted(
        f"{room} ({floor[room]}) -> {other} ({floor[other]})"
        for room, other in arrows()
        if room not in ("lib", other) and other in floor and floor[other] >= floor[room]
    )
    assert not up
    assert ("engine", "kernels") in arrows()  # else nothing was read
    assert ("model", "arch") in arrows()


def rows(path: str, pattern: str) -> list[str]:
    return re.findall(pattern, (ROOT / path).read_text(), re.MULTILINE)


def files(folder: str, *others: str) -> set[str]:
    return {path.stem for path in (ROOT / folder).glob("*.rs")} - {"mod", *others}


def test_an_architecture_is_a_file_and_a_row() -> None:
    (table,) = rows("rust/arch/mod.rs", r"^architectures! \{([^}]*)\}")
    assert set(table.split()) == files("rust/arch", "keys")
    assert all("ARCHITECTURE" in (ROOT / f"rust/arch/{name}.rs").read_text() for name in table.split())


def test_a_block_type_is_a_file_and_a_row() -> None:
    table = (ROOT / "rust/quant/mod.rs").read_text()
    for name in files("rust/quant", "tests"):
        assert re.search(rf"\b{name}\b", table), name
