"""Writes bad model files: one function for each malformation, which changes one thing of a good file.

    python tests/bad_gguf.py DIRECTORY        # all of them, to try another program with, or to start a fuzzer

This is the one list of ways for a file to be bad, and beside each limit stands what is still good. Nothing here checks
anything, and nothing uses the ``gguf`` package: it would refuse to write such files. ``test_bad_gguf.py`` holds
llama_rs to what each case says; ``bad_gguf.rs`` has what cannot be listed: files that are damaged at random.
"""

from __future__ import annotations

import dataclasses
import random
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
NAN, INFINITY = float("nan"), float("inf")

Value = tuple[int, bytes]


def u16(x: int) -> Value:
    return U16, struct.pack("<H", x)


def u32(x: int) -> Value:
    return U32, struct.pack("<I", x)


def i32(x: int) -> Value:
    return I32, struct.pack("<i", x)


def u64(x: int) -> Value:
    return U64, struct.pack("<Q", x)


def f32(x: float) -> Value:
    return F32, struct.pack("<f", x)


def boolean(x: int) -> Value:
    return BOOL, bytes([x])


def text(x: str | bytes) -> bytes:
    """A length and so many bytes."""
    x = x.encode() if isinstance(x, str) else x
    return struct.pack("<Q", len(x)) + x


def string(x: str | bytes) -> Value:
    return STRING, text(x)


def array(element: int, n: int, data: bytes) -> Value:
    """An array that says that it has ``n`` elements."""
    return ARRAY, struct.pack("<IQ", element, n) + data


def strings(items: Iterable[str | bytes]) -> Value:
    items = list(items)
    return array(STRING, len(items), b"".join(map(text, items)))


def integers(items: Iterable[int]) -> Value:
    items = list(items)
    return array(I32, len(items), struct.pack(f"<{len(items)}i", *items))


def unsigned(items: Iterable[int]) -> Value:
    items = list(items)
    return array(U32, len(items), struct.pack(f"<{len(items)}I", *items))


def floats(items: Iterable[float]) -> Value:
    items = list(items)
    return array(F32, len(items), struct.pack(f"<{len(items)}f", *items))


@dataclasses.dataclass
class Tensor:
    name: str | bytes
    dims: list[int]
    data: bytes
    dtype: int = 0  # F32
    offset: int | None = None  # where the data lies, unless a case wants a lie


@dataclasses.dataclass
class Gguf:
    """A file, as it will be written: correct where no case says otherwise."""

    version: int = 3
    alignment: int = 32
    n_tensors: int | None = None
    n_kv: int | None = None
    kv: dict[str | bytes, Value] = dataclasses.field(default_factory=dict)
    extra_kv: bytes = b""  # as it stands, after the others
    n_extra_kv: int = 0
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_kv = len(self.kv) + self.n_extra_kv if self.n_kv is None else self.n_kv
        out = bytearray(b"GGUF" + struct.pack("<IQQ", self.version, n_tensors % 2**64, n_kv % 2**64))
        for key, (kind, data) in self.kv.items():
            out += text(key) + struct.pack("<I", kind) + data
        out += self.extra_kv
        end = 0
        for tensor in self.tensors.values():
            dims = b"".join(struct.pack("<Q", d % 2**64) for d in tensor.dims)
            offset = end if tensor.offset is None else tensor.offset
            out += text(tensor.name) + struct.pack("<I", len(tensor.dims)) + dims
            out += struct.pack("<IQ", tensor.dtype, offset % 2**64)
            end = padded(end + len(tensor.data), self.alignment)
        return bytes(out)

    def content(self) -> bytes:
        out = bytearray(self.header())
        for tensor in self.tensors.values():
            out += bytes(padded(len(out), self.alignment) - len(out))
            out += tensor.data
        return bytes(out)


def padded(n: int, alignment: int) -> int:
    return (n + alignment - 1) // alignment * alignment


VOCAB = 260


def bpe_tokens() -> list[str | bytes]:
    """256 bytes in GPT-2's alphabet, an end token, and three that merges make."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    letters = [chr(b if b in printable else next(others)) for b in range(256)]
    return [*letters, "<|endoftext|>", "he", "ll", "hell"]


def spm_tokens() -> list[str | bytes]:
    return ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581"]


def good() -> Gguf:
    """A llama of one layer with a byte-level vocabulary."""
    file = Gguf()
    dim, hidden_dim, kv_dim = 32, 64, 16
    file.kv = {
        "general.architecture": string("llama"),
        "llama.block_count": u32(1),
        "llama.context_length": u32(64),
        "llama.embedding_length": u32(dim),
        "llama.feed_forward_length": u32(hidden_dim),
        "llama.attention.head_count": u32(4),
        "llama.attention.head_count_kv": u32(2),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.vocab_size": u32(VOCAB),
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": strings(bpe_tokens()),
        "tokenizer.ggml.token_type": integers([1] * 256 + [3, 1, 1, 1]),
        "tokenizer.ggml.merges": strings(["h e", "l l", "he ll"]),
        "tokenizer.ggml.bos_token_id": u32(256),
        "tokenizer.ggml.eos_token_id": u32(256),
    }
    rng = random.Random(1)
    shapes = {
        "token_embd": [dim, VOCAB],
        "blk.0.attn_norm": [dim],
        "blk.0.attn_q": [dim, dim],
        "blk.0.attn_k": [dim, kv_dim],
        "blk.0.attn_v": [dim, kv_dim],
        "blk.0.attn_output": [dim, dim],
        "blk.0.ffn_norm": [dim],
        "blk.0.ffn_gate": [dim, hidden_dim],
        "blk.0.ffn_up": [dim, hidden_dim],
        "blk.0.ffn_down": [hidden_dim, dim],
        "output_norm": [dim],
    }
    for name, dims in shapes.items():
        n = dims[0] * (dims[1] if len(dims) > 1 else 1)
        data = struct.pack(f"<{n}f", *(rng.uniform(-0.5, 0.5) for _ in range(n)))
        file.tensors[name] = Tensor(f"{name}.weight", dims, data)
    return file


def good_spm() -> Gguf:
    """The same with a SentencePiece vocabulary."""
    file = good()
    del file.kv["tokenizer.ggml.merges"], file.kv["tokenizer.ggml.pre"]
    file.kv |= {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": strings(spm_tokens()),
        "tokenizer.ggml.token_type": integers([2, 3, 3] + [6] * 256 + [1]),
        "tokenizer.ggml.scores": floats([-float(i) for i in range(VOCAB)]),
        "tokenizer.ggml.unknown_token_id": u32(0),
        "tokenizer.ggml.bos_token_id": u32(1),
        "tokenizer.ggml.eos_token_id": u32(2),
    }
    return file


def good_qwen2() -> Gguf:
    """The same as a Qwen2: other keys, and biases of queries, keys and values."""
    file = good()
    file.kv = {key.replace("llama.", "qwen2.") if isinstance(key, str) else key: v for key, v in file.kv.items()}
    file.kv["general.architecture"] = string("qwen2")
    for part in ("q", "k", "v"):
        rows = file.tensors[f"blk.0.attn_{part}"].dims[1]
        file.tensors[f"blk.0.attn_{part}.bias"] = Tensor(f"blk.0.attn_{part}.bias", [rows], bytes(4 * rows))
    return file


def good_parts() -> dict[str, Gguf]:
    """The good file in three parts, by their names: the first has the metadata, the others have tensors."""
    whole = good()
    tensors = list(whole.tensors.items())
    parts = {}
    for i, own in enumerate([[], tensors[:5], tensors[5:]]):
        kv: dict[str | bytes, Value] = {"split.no": u16(i), "split.count": u16(3), "split.tensors.count": i32(11)}
        parts[part_name(i)] = Gguf(kv=(whole.kv if i == 0 else {}) | kv, tensors=dict(own))
    return parts


def part_name(i: int, n: int = 3) -> str:
    return f"model-{i + 1:05}-of-{n:05}.gguf"


Kind = Literal["format", "unsupported"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A bad file, or several, the kind of error it has to give, and what the message has to say.

    ``files`` gives the contents of each by its name; the first is the one to open. Of what is good, ``kind`` is None.
    """

    name: str
    kind: Kind | None
    says: tuple[str, ...]
    files: Callable[[], dict[str, bytes]]

    def write(self, folder: Path) -> Path:
        """Writes the files to ``folder`` and gives the path to open."""
        files = self.files()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder / next(iter(files))


CASES: list[Case] = []
"""The bad ones."""
GOOD_CASES: list[Case] = []
"""What is just about good."""

Change = Callable[[Gguf], bytes | None]


def _add(name: str, kind: Kind | None, says: tuple[str, ...], files: Callable[[], dict[str, bytes]]) -> None:
    assert all(name != other.name for other in CASES + GOOD_CASES), f"two cases {name}"
    (CASES if kind else GOOD_CASES).append(Case(name, kind, says, files))


def case(kind: Kind | None, *says: str, base: Callable[[], Gguf] = good) -> Callable[[Change], None]:
    """Makes a case of a function that changes a good file, or returns other bytes."""

    def register(function: Change) -> None:
        def files() -> dict[str, bytes]:
            file = base()
            replaced = function(file)
            return {"model.gguf": file.content() if replaced is None else replaced}

        _add(getattr(function, "__name__", "?").strip("_"), kind, says, files)

    return register


def parts_case(
    kind: Kind | None, *says: str, opens: int = 0
) -> Callable[[Callable[[dict[str, Gguf]], dict[str, bytes] | None]], None]:
    """Makes a case of a function that changes the parts of a good model; the part ``opens`` is the one to open."""

    def register(function: Callable[[dict[str, Gguf]], dict[str, bytes] | None]) -> None:
        def files() -> dict[str, bytes]:
            parts = good_parts()
            replaced = function(parts)
            contents = {name: part.content() for name, part in parts.items()} if replaced is None else replaced
            first = part_name(opens)
            return {first: contents[first]} | contents

        _add(getattr(function, "__name__", "?"), kind, says, files)

    return register


def named(name: str, kind: Kind | None, change: Change, *says: str, base: Callable[[], Gguf] = good) -> None:
    """A case of a function without a name of its own."""
    change.__name__ = name
    case(kind, *says, base=base)(change)


def key_case(
    name: str,
    kind: Kind | None,
    key: str,
    value: Value | None,
    *says: str,
    base: Callable[[], Gguf] = good,
) -> None:
    """A case that sets one key, or takes it away. Where that is bad, the message names the key."""

    def change(file: Gguf) -> None:
        if value is None:
            del file.kv[key]
        else:
            file.kv[key] = value

    named(name, kind, change, *(says if kind != "format" else (key, *says)), base=base)


# Container: the start of the file.


@case("format", "empty")
def empty(_: Gguf) -> bytes:
    return b""


for _n in range(4, 24):
    named(
        f"header_of_{_n}_bytes",
        "format",
        lambda file, n=_n: file.content()[:n],  # type: ignore[misc]
        "shorter than a header",
        f"{_n} bytes",
        "at least 24",
    )


@case("format", "not a GGUF file")
def two_bytes(_: Gguf) -> bytes:
    return b"GG"


@case("format", "not a GGUF file")
def wrong_magic(file: Gguf) -> bytes:
    return b"GGUX" + file.content()[4:]


LOOK_ALIKES = {
    "git_lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    "html_after_a_byte_order_mark": (b"\xef\xbb\xbf\n  <HTML>", "web page"),
    "saved_session": (b"llama_rs\x01\0\0\0" + bytes(60), "a saved session"),
    "html_page": (b"<!DOCTYPE html>\n<html><body>Please log in</body></html>", "web page"),
    "xml_error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    "json_error": (b'{"error": "Repository not found"}', "JSON"),
    "zip_archive": (b"PK\x03\x04" + bytes(60), "zip archive"),
    "pickle": (b"\x80\x02}q\x00." + bytes(60), "pickle"),
    "gzip": (b"\x1f\x8b\x08" + bytes(60), "gzip"),
    "zstandard": (b"\x28\xb5\x2f\xfd" + bytes(60), "Zstandard"),
    "safetensors": (struct.pack("<Q", 24) + b'{"__metadata__":{}}     ' + bytes(64), "safetensors"),
    "ggml": (b"lmgg" + bytes(60), "GGML"),
    "llamafile": (b"MZqFpD='\n" + bytes(60), "llamafile"),
    "linux_program": (b"\x7fELF\x02\x01\x01" + bytes(60), "Linux program"),
    "zeros": (bytes(64), "zeros"),
}


for _name, (_content, _says) in LOOK_ALIKES.items():
    named(
        f"look_alike_{_name}",
        "format",
        lambda _, content=_content: content,  # type: ignore[misc]
        "not a GGUF file, but",
        _says,
    )


@case("format", "version", "got 0", "1 to 3")
def version_0(file: Gguf) -> None:
    file.version = 0


@case("format")
def version_1_with_the_numbers_of_version_3(file: Gguf) -> None:
    file.version = 1


@case("format", "missing key", "general.architecture")
def version_1_shorter_than_a_later_header(_: Gguf) -> bytes:
    return b"GGUF" + struct.pack("<III", 1, 0, 0)


@case(None)
def version_2(file: Gguf) -> None:
    file.version = 2


@case("unsupported", "version 4")
def version_4(file: Gguf) -> None:
    file.version = 4


@case("unsupported", "big-endian")
def big_endian(file: Gguf) -> None:
    file.version = 3 << 24


for _n, _got in {-1: "-1", 1 << 63: "-9223372036854775808", 1 << 40: "1099511627776", 10_000: "10000"}.items():

    def _tensors(file: Gguf, n: int = _n) -> None:
        file.n_tensors = n

    def _keys(file: Gguf, n: int = _n) -> None:
        file.n_kv = n

    named(f"tensor_count_{_n}", "format", _tensors, "tensor count", "byte 8", f"got {_got}", "at most")
    named(f"metadata_count_{_n}", "format", _keys, "metadata count", "byte 16", f"got {_got}", "at most")


@case("format")
def tensor_count_one_too_many(file: Gguf) -> None:
    file.n_tensors = len(file.tensors) + 1


@case("format")
def metadata_count_one_too_many(file: Gguf) -> None:
    file.n_kv = len(file.kv) + 1


@case("format")
def metadata_count_one_too_few(file: Gguf) -> None:
    file.n_kv = len(file.kv) - 1


# Container: metadata.


@case("format", "metadata key", "got 0", "1 to 65535")
def key_empty(file: Gguf) -> None:
    file.kv[""] = u32(1)


@case("format", "metadata key", "got 65536", "1 to 65535")
def key_too_long(file: Gguf) -> None:
    file.kv["k" * 65536] = u32(1)


@case(None)
def key_of_the_longest(file: Gguf) -> None:
    file.kv["k" * 65535] = u32(1)


for _n in (-1, 1 << 63, 1 << 50):
    named(
        f"key_length_{_n}",
        "format",
        lambda _, n=_n: Gguf(n_kv=1).header() + struct.pack("<Q", n % 2**64) + bytes([1] * 50),  # type: ignore[misc]
        "metadata key",
        f"got {_n if _n < 1 << 63 else _n - 2**64}",
        "byte 24",
        "at most 50",
    )


@case("format", "metadata key", "zero byte", "a\\0b")
def key_with_nul(file: Gguf) -> None:
    file.kv["a\0b"] = u32(1)


@case(None)
def bytes_after_the_last_tensor(file: Gguf) -> bytes:
    return file.content() + b"\x07" * 100


@case("format", "metadata key", "UTF-8", "bad")
def key_not_utf8(file: Gguf) -> None:
    file.kv[b"bad\xff"] = u32(1)


@case("format", "used twice", "llama.block_count", "only the one at byte")
def key_twice(file: Gguf) -> None:
    file.extra_kv = text("llama.block_count") + struct.pack("<I", U32) + struct.pack("<I", 2)
    file.n_extra_kv = 1


key_case("value_type_13", "format", "k", (13, bytes(8)), "value type", "got 13", "0 to 12")
key_case("value_type_negative", "format", "k", (2**32 - 1, bytes(8)), "value type", "got 4294967295")
key_case("bool_2", "format", "k", boolean(2), "bool", "got 2", "0 or 1")
key_case("bool_in_array_9", "format", "k", array(BOOL, 3, b"\0\1\x09"), "bool", "got 9")
key_case("string_length_negative", "format", "k", (STRING, b"\xff" * 8), "got -1")
key_case("array_of_u64_wraps", "format", "k", array(U64, 1 << 61, bytes(8)), "array length")
key_case("array_of_2_to_32_arrays", "format", "k", array(ARRAY, 1 << 32, bytes(8)), "array length", "4294967296")
key_case("array_length_wraps", "format", "k", array(U32, 1 << 61, bytes(8)), "array length", "2305843009213693952")
key_case("array_of_2_to_40_strings", "format", "k", array(STRING, 1 << 40, bytes(8)), "array length")
key_case("array_string_past_the_end", "format", "k", array(STRING, 1, b"\xff" * 8), "past the end")
key_case("array_of_unknown_type", "format", "k", array(13, 1, bytes(8)), "value type", "got 13")


def nested(levels: int) -> Value:
    value = array(U32, 1, bytes(4))
    for _ in range(levels - 1):
        value = array(ARRAY, 1, value[1])
    return value


for _n in (1, 2, 3, 4):
    key_case(f"arrays_nested_{_n}_deep", None, "k", nested(_n))
for _n in (5, 10_000):
    key_case(f"arrays_nested_{_n}_deep", "format", "k", nested(_n), "nested", "at most 4")


for _alignment in (1, 8, 64, 4096):

    def _aligned(file: Gguf, alignment: int = _alignment) -> None:
        file.alignment = alignment
        file.kv["general.alignment"] = u32(alignment)

    named(f"alignment_{_alignment}", None, _aligned)
for _alignment in (0, 3, 13, 33, 2**21, 2**31):
    key_case(
        f"alignment_{_alignment}", "format", "general.alignment", u32(_alignment), f"got {_alignment}", "power of two"
    )
key_case("alignment_is_a_string", "format", "general.alignment", string("32"), "value type", "a string")


# Container: parts.

for _i in range(3):

    def _any_part(_: dict[str, Gguf]) -> None:
        pass

    _any_part.__name__ = f"part_{_i + 1}_opens_all"
    parts_case(None, opens=_i)(_any_part)

key_case("one_part_of_one", None, "split.count", u16(1))
key_case("split_count_is_a_string", "format", "split.count", string("3"), "value type")
key_case("part_without_a_number", "format", "split.no", None, "missing key", base=lambda: good_parts()[part_name(0)])


@case("format", "part 2 of a model split in 3", "-00002-of-00003.gguf", "llama-gguf-split --merge")
def part_of_another_name(file: Gguf) -> None:
    file.kv |= {"split.no": u16(1), "split.count": u16(3)}


@case("format", "split.no", "got 3", "less than split.count, 3")
def part_behind_the_last(file: Gguf) -> None:
    file.kv |= {"split.no": u16(3), "split.count": u16(3)}


@parts_case("format", "part 3 of 3 is missing", "model-00003-of-00003.gguf")
def part_missing(parts: dict[str, Gguf]) -> None:
    del parts[part_name(2)]


@parts_case("format", "part 1 of 3 is missing", "model-00001-of-00003.gguf", opens=1)
def first_part_missing(parts: dict[str, Gguf]) -> None:
    del parts[part_name(0)]


@parts_case("format", "another part than its name says", "split.no", "got part 2 of 3", "expected part 3 of 3")
def part_twice(parts: dict[str, Gguf]) -> None:
    parts[part_name(2)] = parts[part_name(1)]


@parts_case("format", "another part than its name says", "got part 2 of 4", "expected part 2 of 3")
def part_of_more(parts: dict[str, Gguf]) -> None:
    parts[part_name(1)].kv["split.count"] = u16(4)


@parts_case("format", "missing key", "split.no")
def part_that_is_a_whole_model(parts: dict[str, Gguf]) -> None:
    parts[part_name(1)] = good()


@parts_case("format", "a part of another model", "split.tensors.count", "got 12", "expected 11 as in")
def part_of_a_model_with_more_tensors(parts: dict[str, Gguf]) -> None:
    parts[part_name(1)].kv["split.tensors.count"] = i32(12)


@parts_case("format", "a part of another model", "general.architecture", "got qwen2", "expected llama as in")
def part_of_another_architecture(parts: dict[str, Gguf]) -> None:
    parts[part_name(2)].kv["general.architecture"] = string("qwen2")


@parts_case("format", "number of tensors in all parts", "split.tensors.count", "got 12", "expected 11")
def parts_without_a_tensor(parts: dict[str, Gguf]) -> None:
    for part in parts.values():
        part.kv["split.tensors.count"] = i32(12)


@parts_case("format", "used twice", "blk.0.attn_q.weight", "model-00002-of-00003.gguf")
def parts_with_the_same_tensor(parts: dict[str, Gguf]) -> None:
    q = parts[part_name(1)].tensors["blk.0.attn_q"]
    parts[part_name(2)].tensors["blk.0.ffn_up"].name = q.name


@parts_case("format", "missing tensor", "blk.0.ffn_up.weight")
def parts_without_a_tensor_nor_its_count(parts: dict[str, Gguf]) -> None:
    del parts[part_name(2)].tensors["blk.0.ffn_up"]
    for part in parts.values():
        del part.kv["split.tensors.count"]


@parts_case("format", "model-00003-of-00003.gguf", "(50 %)", "download is incomplete")
def part_incomplete(parts: dict[str, Gguf]) -> dict[str, bytes]:
    contents = {name: part.content() for name, part in parts.items()}
    last = contents[part_name(2)]
    return contents | {part_name(2): last[: len(last) // 2 + 1]}


@parts_case("format", "model-00002-of-00003.gguf", "a Git LFS pointer")
def part_that_is_a_pointer(parts: dict[str, Gguf]) -> dict[str, bytes]:
    contents = {name: part.content() for name, part in parts.items()}
    return contents | {part_name(1): b"version https://git-lfs.github.com/spec/v1\n"}


@parts_case("format", "model-00002-of-00003.gguf", "the file is empty")
def part_that_is_empty(parts: dict[str, Gguf]) -> dict[str, bytes]:
    return {name: part.content() for name, part in parts.items()} | {part_name(1): b""}


# Container: tensors.


@case(None)
def tensors_in_another_order(file: Gguf) -> None:
    file.tensors = dict(reversed(file.tensors.items()))


@case("unsupported", "tensor hole")
def tensor_that_nobody_knows(file: Gguf) -> None:
    file.tensors = {"hole": Tensor("hole", [16], bytes(64))} | file.tensors


@case("unsupported", "nnn")
def tensor_name_of_the_longest(file: Gguf) -> None:
    file.tensors["long"] = Tensor("n" * 1024, [1], bytes(4))


@case("format", "tensor name", "got 0")
def tensor_name_empty(file: Gguf) -> None:
    file.tensors["blk.0.attn_q"].name = ""


@case("format", "tensor name", "got 1025", "1 to 1024")
def tensor_name_too_long(file: Gguf) -> None:
    file.tensors["blk.0.attn_q"].name = "n" * 1025


@case("format", "tensor name", "UTF-8")
def tensor_name_not_utf8(file: Gguf) -> None:
    file.tensors["blk.0.attn_q"].name = b"blk\xc3"


@case("format", "tensor name", "zero byte", "blk\\0")
def tensor_name_with_nul(file: Gguf) -> None:
    file.tensors["blk.0.attn_q"].name = "blk\0"


@case("format", "used twice", "blk.0.attn_k.weight", "only the one at byte")
def tensor_twice(file: Gguf) -> None:
    file.tensors["blk.0.attn_v"].name = "blk.0.attn_k.weight"


def shape_case(name: str, dims: list[int], *says: str, kind: Kind | None = "format") -> None:
    def change(file: Gguf) -> None:
        file.tensors["blk.0.attn_q"].dims = dims

    named(name, kind, change, *says)


shape_case("dimensions_of_one", [32, 32, 1, 1], kind=None)
shape_case("shape_far_too_large", [32, 1 << 50], "overlap", "blk.0.attn_k.weight")


shape_case("no_dimensions", [], "blk.0.attn_q.weight", "dimensions", "got 0", "1 to 4")
shape_case("five_dimensions", [32, 32, 1, 1, 1], "blk.0.attn_q.weight", "dimensions", "got 5")
shape_case("dimension_0", [32, 0], "blk.0.attn_q.weight", "dimension", "got 0")
shape_case("dimension_negative", [32, -1], "blk.0.attn_q.weight", "dimension", "got -1")
shape_case("product_overflows", [1 << 40, 1 << 40], "blk.0.attn_q.weight", "larger than any file")
shape_case("bytes_overflow", [(1 << 62) + 1], "blk.0.attn_q.weight", "larger than any file")
shape_case("shape_too_large", [32, 33], "overlap")
shape_case("shape_too_small", [32, 31], "blk.0.attn_q.weight", "shape", "[32, 31]", "[32, 32]")
shape_case("shape_flat", [1024], "blk.0.attn_q.weight", "shape", "[1024]")


@case("format", "blk.0.attn_q.weight", "whole number of blocks", "got 33", "32 for Q4_0")
def row_of_half_a_block(file: Gguf) -> None:
    tensor = file.tensors["blk.0.attn_q"]
    tensor.dims[0], tensor.dtype = 33, 2


def type_case(name: str, kind: Kind, dtype: int, *says: str) -> None:
    def change(file: Gguf) -> None:
        file.tensors["blk.0.attn_q"].dtype = dtype

    named(name, kind, change, "blk.0.attn_q.weight", *says)


type_case("type_Q4_2", "unsupported", 4, "Q4_2")
type_case("type_Q4_3", "unsupported", 5, "Q4_3")
type_case("type_Q4_0_4_4", "unsupported", 31, "Q4_0_4_4")
type_case("type_I32", "unsupported", 26, "I32", "Q4_K")
type_case("type_IQ4_NL_8_8", "unsupported", 38, "IQ4_NL_8_8")
type_case("type_43", "format", 43, "unknown tensor type", "got 43")
type_case("type_1000", "format", 1000, "unknown tensor type", "got 1000")
type_case("type_negative", "format", 2**32 - 1, "unknown tensor type", "got 4294967295")


@case("unsupported", "output_norm.weight", "Q8_0", "F32, F16 and BF16")
def norm_in_blocks(file: Gguf) -> None:
    file.tensors["output_norm"].dtype = 8


def offset_case(name: str, offset: int, *says: str) -> None:
    def change(file: Gguf) -> None:
        file.tensors["blk.0.attn_q"].offset = offset

    named(name, "format", change, *says)


offset_case("offset_unaligned", 33, "blk.0.attn_q.weight", "unaligned", "got 33", "multiple of 32")
offset_case("offset_negative", -1, "blk.0.attn_q.weight", "unaligned", "got -1")
offset_case("offset_wraps", -32, "blk.0.attn_q.weight", "past the end")
offset_case("offset_past_the_end", 1 << 40, "blk.0.attn_q.weight", "past the end")
offset_case("offset_in_another_tensor", 32, "overlap", "got offset 32", "where token_embd.weight ends")
offset_case("offset_of_another_tensor", 0, "overlap", "token_embd.weight")


@case("format", "(50 %)", "download is incomplete")
def truncated_download(file: Gguf) -> bytes:
    content = file.content()
    return content[: len(content) // 2 + 1]


@case("format", "(99 %)", "download is incomplete")
def truncated_by_a_byte(file: Gguf) -> bytes:
    return file.content()[:-1]


@case("format", "%)", "download is incomplete")
def truncated_behind_the_header(file: Gguf) -> bytes:
    return file.content()[: len(file.header())]


@case("format", "is the download complete?", "at byte")
def truncated_in_the_last_entry(file: Gguf) -> bytes:
    return file.content()[: len(file.header()) - 1]


@case("format", "is the download complete?", "tokenizer.ggml.tokens", "got 260")
def truncated_in_the_vocabulary(file: Gguf) -> bytes:
    header = file.header()
    return header[: header.index(b"tokenizer.ggml.tokens") + 1000]


# Hyper-parameters.

key_case("no_architecture", "format", "general.architecture", None, "missing key")
key_case("architecture_not_utf8", "format", "general.architecture", string(b"\xff"), "UTF-8")
key_case("architecture_is_a_number", "format", "general.architecture", u32(1), "value type", "the integer 1")
for _key in (
    "llama.block_count",
    "llama.context_length",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.layer_norm_rms_epsilon",
):
    _name = _key.rsplit(".", 1)[1]
    key_case(f"no_{_name}", "format", _key, None, "missing key")
    key_case(f"{_name}_is_a_string", "format", _key, string("1"), "value type", "a string")
    key_case(f"{_name}_negative", "format", _key, i32(-1), "got", "-1")
LARGEST_DIM = 2**20
for _key, _values in {
    "llama.block_count": (0, 10**9),
    "llama.context_length": (0,),
    "llama.embedding_length": (0, LARGEST_DIM + 1, 2**32 - 1),
    "llama.feed_forward_length": (0, LARGEST_DIM + 1, 2**32 - 1),
    "llama.attention.head_count": (0, LARGEST_DIM + 1, 2**32 - 1),
    "llama.attention.head_count_kv": (0, 3, 8, 2**32 - 1),
    "llama.attention.key_length": (0, LARGEST_DIM, 2**32 - 1),
    "llama.rope.dimension_count": (0, 7, 10, 2**32 - 1),
}.items():
    for _value in _values:
        key_case(
            f"{_key.rsplit('.', 1)[1]}_{_value}", "format", _key, u32(_value), f"got {_value}", "expected", "at byte"
        )
# In range, but not what the tensors say.
for _key, _value, _wrong in (
    ("llama.embedding_length", LARGEST_DIM, "wrong shape"),
    ("llama.feed_forward_length", 65, "wrong shape"),
    ("llama.feed_forward_length", LARGEST_DIM, "wrong shape"),
    ("llama.attention.head_count_kv", 1, "wrong shape"),
    ("llama.attention.key_length", 16, "wrong shape"),
    ("llama.block_count", 2, "missing tensor (blk.1.attn_norm.weight)"),
):

    def _resize(file: Gguf, key: str = _key, value: int = _value) -> None:
        file.kv[key] = u32(value)

    named(f"{_key.rsplit('.', 1)[1]}_not_that_of_the_tensors_{_value}", "format", _resize, _wrong)


@case("format", "llama.attention.head_count", "got 3", "a divisor of the embedding length 32")
def heads_that_do_not_divide_the_width(file: Gguf) -> None:
    file.kv["llama.attention.head_count"] = u32(3)
    del file.kv["llama.attention.head_count_kv"]


# A session allocates by request, not by what the file says.
key_case("context_length_of_2_to_40", None, "llama.context_length", u64(1 << 40))
key_case("context_length_of_2_to_63", None, "llama.context_length", u64(2**63 - 1))

for _key, _numbers in {
    "llama.attention.layer_norm_rms_epsilon": (0.0, -1e-5, 1.0, NAN, INFINITY),
    "llama.rope.freq_base": (0.0, -10000.0, 0.5, NAN, INFINITY),
    "llama.rope.scaling.factor": (0.0, -2.0, NAN, INFINITY),
    "llama.rope.scale_linear": (0.0, NAN),
}.items():
    for _number in _numbers:
        key_case(f"{_key.rsplit('.', 1)[1]}_{_number}", "format", _key, f32(_number), "bad value", "expected")

# Sizes layer by layer.
_HEADS = "llama.attention.head_count"
key_case("head_counts_of_each_layer", None, _HEADS, unsigned([4]))
key_case("head_counts_of_no_layer", "format", _HEADS, unsigned([]), "one value per layer", "got 0", "1 values")
key_case("head_counts_for_two_layers", "format", _HEADS, integers([4, 4]), "one value per layer", "got 2")
key_case("head_counts_zero", "format", _HEADS, unsigned([0]), "bad value", "got 0", "1 to 1048576")
key_case("head_counts_negative", "format", _HEADS, integers([-1]), "bad value", "got -1")
key_case("head_counts_too_large", "format", _HEADS, unsigned([2**32 - 1]), "bad value", "got 4294967295")
key_case("head_counts_are_strings", "format", _HEADS, strings(["4"]), "value type", "a string", "integers")
key_case("hidden_dims_too_many", "format", "llama.feed_forward_length", unsigned([64] * 10**6), "got 1000000")

# What runs otherwise than we would run it, and what is no model.
for _name, _key, _variant, _says in (
    ("unknown_architecture", "general.architecture", string("gemma5"), "architecture gemma5; arcee, "),
    ("architecture_without_a_name", "general.architecture", string(""), "architecture ;"),
    ("architecture_in_capitals", "general.architecture", string("LLAMA"), "architecture LLAMA"),
    ("lora_adapter", "general.type", string("adapter"), "a LoRA adapter and no model"),
    ("projector", "general.type", string("mmproj"), "a projector for images or sound and no model"),
    ("projector_of_old", "general.architecture", string("clip"), "a projector for images or sound and no model"),
    ("importance_matrix", "general.type", string("imatrix"), "an importance matrix"),
    ("rope_scaling_dynamic", "llama.rope.scaling.type", string("dynamic"), "rope scaling dynamic"),
    ("attention_factor", "llama.rope.scaling.attn_factor", f32(1.25), "attn_factor = 1.25"),
    ("encoder", "llama.attention.causal", boolean(0), "causal"),
    ("unknown_vocabulary", "tokenizer.ggml.model", string("rwkv"), "rwkv"),
    ("unknown_pre_tokenizer", "tokenizer.ggml.pre", string("poetry"), "poetry"),
):
    key_case(_name, "unsupported", _key, _variant, _says)
key_case("experts_of_qwen2", "unsupported", "qwen2.expert_count", u32(8), "8 experts", base=good_qwen2)
key_case(
    "windows_of_qwen2", "unsupported", "qwen2.attention.sliding_window", u32(16), "sliding-window", base=good_qwen2
)
key_case("windows", None, "llama.attention.sliding_window", u32(16))


@case("format", "blk.0.attn_v.weight", "wrong shape", "[32, 8]")
def values_of_another_length(file: Gguf) -> None:
    file.kv["llama.attention.value_length"] = u32(4)


@case("format", "missing key", "llama.rope.scaling.factor")
def yarn_without_a_factor(file: Gguf) -> None:
    file.kv["llama.rope.scaling.type"] = string("yarn")


@case("format", "missing key", "llama.expert_used_count")
def no_number_of_experts_used(file: Gguf) -> None:
    file.kv["llama.expert_count"] = u32(8)


for _name in good().tensors:

    def _without(file: Gguf, name: str = _name) -> None:
        del file.tensors[name]

    named(f"without_{_name}", "format", _without, "missing tensor", f"({_name}.weight)")


@case("unsupported", "tensor blk.0.attn_q_norm.weight; a plain llama has none")
def tensor_of_another_architecture(file: Gguf) -> None:
    file.tensors["norm"] = Tensor("blk.0.attn_q_norm.weight", [8], bytes(32))


@case("unsupported", "tensor blk.0.attn_verse.bias; a plain qwen2 has none", base=good_qwen2)
def tensor_of_no_architecture(file: Gguf) -> None:
    file.tensors["bias"] = Tensor("blk.0.attn_verse.bias", [32], bytes(128))


@case(None)
def biases_of_any_architecture(file: Gguf) -> None:
    file.tensors["bias"] = Tensor("blk.0.attn_output.bias", [32], bytes(128))


for _name in (
    "blk.1.attn_q.weight",
    "blk.00.attn_q.weight",
    "blk.+0.attn_q.weight",
    "blk..attn_q.weight",
    "attn_q.weight",
):

    def _misplaced(file: Gguf, name: str = _name) -> None:
        file.tensors["more"] = Tensor(name, [32, 32], bytes(4096))

    named(f"tensor_{_name}", "unsupported", _misplaced, f"tensor {_name}; a plain llama has none")


@case("format", "qwen2.attention.head_count", "missing key")
def keys_of_another_architecture(file: Gguf) -> None:
    file.kv["general.architecture"] = string("qwen2")
    for part in ("block_count", "embedding_length"):
        file.kv[f"qwen2.{part}"] = file.kv[f"llama.{part}"]


@case("format", "token_embd.weight", "shape")
def embedding_shorter_than_vocabulary(file: Gguf) -> None:
    file.tensors["token_embd"].dims[1] -= 1


@case("format", "token_embd.weight", "wrong shape", "[32, 260]", "[32, 1]")
def vocabulary_shorter_than_embedding(file: Gguf) -> None:
    del file.kv["llama.vocab_size"]
    file.kv["tokenizer.ggml.tokens"] = strings(["a"])


key_case("vocab_size_differs", "format", "llama.vocab_size", u32(VOCAB + 1), "got 261", "260")


# Vocabulary.

key_case("no_tokens", "format", "tokenizer.ggml.tokens", None, "missing key")
key_case("tokens_are_integers", "format", "tokenizer.ggml.tokens", integers(range(VOCAB)), "value type", "I32")
key_case("no_merges", "format", "tokenizer.ggml.merges", None, "missing key")
key_case("merges_are_integers", "format", "tokenizer.ggml.merges", integers([1]), "value type")
key_case("merge_without_a_space", None, "tokenizer.ggml.merges", strings(["he"]))
key_case("merge_of_nothing", None, "tokenizer.ggml.merges", strings([""]))
key_case("no_vocabulary_model", "format", "tokenizer.ggml.model", None, "missing key")
for _n in (0, 1, 259, 261):
    key_case(f"token_types_{_n}", "format", "tokenizer.ggml.token_type", integers([1] * _n), f"got {_n}", "260")
    key_case(f"spm_scores_{_n}", "format", "tokenizer.ggml.scores", floats([0] * _n), f"got {_n}", "260", base=good_spm)
key_case("token_types_are_floats", "format", "tokenizer.ggml.token_type", floats([1] * VOCAB), "value type", "F32")
for _name in ("bos", "eos", "unknown", "eot", "eom"):
    _key = f"tokenizer.ggml.{_name}_token_id"
    key_case(f"{_name}_out_of_range", None, _key, u32(VOCAB))  # what is never used harms nobody
    key_case(f"{_name}_negative", None, _key, i32(-1))
    key_case(f"{_name}_of_64_bits", None, _key, u64(1 << 32))


@case(None)
def add_bos_without_bos(file: Gguf) -> None:
    del file.kv["tokenizer.ggml.bos_token_id"]
    file.kv["tokenizer.ggml.add_bos_token"] = boolean(1)


def token_case(name: str, token: int, new: str | bytes, base: Callable[[], Gguf]) -> None:
    def change(file: Gguf) -> None:
        tokens = spm_tokens() if base is good_spm else bpe_tokens()
        tokens[token] = new
        file.kv["tokenizer.ggml.tokens"] = strings(tokens)

    named(name, None, change, base=base)


token_case("bpe_token_twice", 97, "he", good)  # as in real files: the first counts
token_case("spm_token_not_utf8", 259, b"\xff", good_spm)
token_case("spm_byte_token_of_letters", 50, "<0xGG>", good_spm)
token_case("spm_byte_token_that_is_none", 50, "x", good_spm)
token_case("bpe_token_empty", 97, "", good)
token_case("bpe_token_not_utf8", 97, b"\xff", good)
token_case("bpe_token_outside_the_alphabet", 97, "a b", good)
token_case("spm_token_empty", 259, "", good_spm)
token_case("spm_byte_token_negative", 50, "<0x-1>", good_spm)
token_case("spm_byte_token_twice", 50, "<0x00>", good_spm)


@case("format", "scores", "value type", base=good_spm)
def spm_scores_are_integers(file: Gguf) -> None:
    file.kv["tokenizer.ggml.scores"] = integers([0] * VOCAB)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, file in {"good": good(), "good_spm": good_spm(), "good_qwen2": good_qwen2()}.items():
        (directory / f"{name}.gguf").write_bytes(file.content())
    for each in [*CASES, *GOOD_CASES]:
        files = each.files()
        if len(files) == 1:
            (directory / f"{each.name}.gguf").write_bytes(*files.values())
        else:
            (directory / each.name).mkdir(exist_ok=True)
            each.write(directory / each.name)
    print(f"{len(CASES)} bad models and {len(GOOD_CASES) + 3} good ones in {directory}")


if __name__ == "__main__":
    main()
