"""Writes bad model files: one function a malformation, each of which changes one thing of a good file.

    python tests/bad_gguf.py DIRECTORY        # all of them, to try another program with, or to start a fuzzer

Nothing here checks anything, and nothing uses the ``gguf`` package: it would refuse to write such files.
``test_bad_gguf.py`` holds llama_rs to what each case says.
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
        out = b"GGUF" + struct.pack("<IQQ", self.version, n_tensors % 2**64, n_kv % 2**64)
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
        return out

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


Kind = Literal["format", "unsupported"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A bad file, the kind of error it has to give, and what the message has to say."""

    name: str
    kind: Kind
    says: tuple[str, ...]
    content: Callable[[], bytes]


CASES: list[Case] = []


def case(kind: Kind, *says: str, base: Callable[[], Gguf] = good) -> Callable[..., None]:
    """Makes a case of a function that changes a good file, or returns other bytes."""

    def register(function: Callable[[Gguf], bytes | None]) -> None:
        def content() -> bytes:
            file = base()
            replaced = function(file)
            return file.content() if replaced is None else replaced

        name = getattr(function, "__name__", "?").strip("_")
        assert all(name != other.name for other in CASES), f"two cases {name}"
        CASES.append(Case(name, kind, says, content))

    return register


def key_case(name: str, kind: Kind, key: str, value: Value | None, *says: str) -> None:
    """A case that sets one key, or takes it away."""

    def change(file: Gguf) -> None:
        if value is None:
            del file.kv[key]
        else:
            file.kv[key] = value

    change.__name__ = name
    case(kind, key, *says)(change)


# Container: the start of the file.


@case("format", "empty")
def empty(_: Gguf) -> bytes:
    return b""


@case("format", "shorter than a header", "4 bytes", "at least 24")
def only_magic(_: Gguf) -> bytes:
    return b"GGUF"


@case("format", "shorter than a header", "23 bytes")
def less_than_a_header(file: Gguf) -> bytes:
    return file.content()[:23]


@case("format", "not a GGUF file")
def wrong_magic(file: Gguf) -> bytes:
    return b"GGUX" + file.content()[4:]


LOOK_ALIKES = {
    "git_lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    "html_page": (b"<!DOCTYPE html>\n<html><body>Please log in</body></html>", "web page"),
    "xml_error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    "json_error": (b'{"error": "Repository not found"}', "JSON"),
    "zip_archive": (b"PK\x03\x04" + bytes(60), "zip archive"),
    "pickle": (b"\x80\x02}q\x00." + bytes(60), "pickle"),
    "gzip": (b"\x1f\x8b\x08" + bytes(60), "gzip"),
    "zstandard": (b"\x28\xb5\x2f\xfd" + bytes(60), "Zstandard"),
    "safetensors": (struct.pack("<Q", 24) + b'{"__metadata__":{}}     ' + bytes(64), "safetensors"),
    "ggml": (b"lmgg" + bytes(60), "GGML"),
    "ggmf": (b"fmgg\x01\0\0\0" + bytes(60), "GGMF"),
    "ggjt": (b"tjgg\x03\0\0\0" + bytes(60), "GGJT"),
    "llamafile": (b"MZqFpD='\n" + bytes(60), "llamafile"),
    "linux_program": (b"\x7fELF\x02\x01\x01" + bytes(60), "Linux program"),
    "zeros": (bytes(64), "zeros"),
}


def look_alike(name: str, content: bytes, says: str) -> None:
    def replace(_: Gguf) -> bytes:
        return content

    replace.__name__ = f"look_alike_{name}"
    case("format", "not a GGUF file, but", says)(replace)


for _name, (_content, _says) in LOOK_ALIKES.items():
    look_alike(_name, _content, _says)


@case("format", "version", "got 0", "2 or 3")
def version_0(file: Gguf) -> None:
    file.version = 0


@case("unsupported", "version 1")
def version_1(file: Gguf) -> None:
    file.version = 1


@case("unsupported", "version 4")
def version_4(file: Gguf) -> None:
    file.version = 4


@case("unsupported", "big-endian")
def big_endian(file: Gguf) -> None:
    file.version = 3 << 24


@case("format", "tensor count", "byte 8", "got -1")
def tensor_count_negative(file: Gguf) -> None:
    file.n_tensors = -1


@case("format", "tensor count", "byte 8", "got 1099511627776")
def tensor_count_huge(file: Gguf) -> None:
    file.n_tensors = 1 << 40


@case("format")
def tensor_count_one_too_many(file: Gguf) -> None:
    file.n_tensors = len(file.tensors) + 1


@case("format", "metadata count", "byte 16", "got -9223372036854775808")
def metadata_count_negative(file: Gguf) -> None:
    file.n_kv = 1 << 63


@case("format")
def metadata_count_one_too_many(file: Gguf) -> None:
    file.n_kv = len(file.kv) + 1


# Container: metadata.


@case("format", "metadata key", "got 0", "1 to 65535")
def key_empty(file: Gguf) -> None:
    file.kv[""] = u32(1)


@case("format", "metadata key", "got 65536", "1 to 65535")
def key_too_long(file: Gguf) -> None:
    file.kv["k" * 65536] = u32(1)


@case("format", "metadata key", "got -1", "byte 24")
def key_length_negative(file: Gguf) -> bytes:
    content = file.content()
    return content[:24] + b"\xff" * 8 + content[32:]


@case("format", "metadata key", "UTF-8", "bad")
def key_not_utf8(file: Gguf) -> None:
    file.kv[b"bad\xff"] = u32(1)


@case("format", "used twice", "llama.block_count")
def key_twice(file: Gguf) -> None:
    file.extra_kv = text("llama.block_count") + struct.pack("<I", U32) + struct.pack("<I", 2)
    file.n_extra_kv = 1


key_case("value_type_13", "format", "k", (13, bytes(8)), "value type", "got 13", "0 to 12")
key_case("value_type_negative", "format", "k", (2**32 - 1, bytes(8)), "value type", "got 4294967295")
key_case("bool_2", "format", "k", boolean(2), "bool", "got 2", "0 or 1")
key_case("bool_in_array_9", "format", "k", array(BOOL, 3, b"\0\1\x09"), "bool", "got 9")
key_case("string_length_negative", "format", "k", (STRING, b"\xff" * 8), "got -1")
key_case("array_length_wraps", "format", "k", array(U32, 1 << 61, bytes(8)), "array length", "2305843009213693952")
key_case("array_of_2_to_40_strings", "format", "k", array(STRING, 1 << 40, bytes(8)), "array length")
key_case("array_string_past_the_end", "format", "k", array(STRING, 1, b"\xff" * 8), "past the end")
key_case("array_of_unknown_type", "format", "k", array(13, 1, bytes(8)), "value type", "got 13")


@case("format", "nested", "at most 4")
def arrays_nested_10000_deep(file: Gguf) -> None:
    value = array(U32, 1, bytes(4))
    for _ in range(10_000):
        value = array(ARRAY, 1, value[1])
    file.kv["k"] = value


for _alignment in (0, 3, 33, 2**31):
    key_case(
        f"alignment_{_alignment}", "format", "general.alignment", u32(_alignment), f"got {_alignment}", "power of two"
    )
key_case("alignment_is_a_string", "format", "general.alignment", string("32"), "value type", "a string")


@case("unsupported", "part 2", "split in 3")
def part_of_a_split_model(file: Gguf) -> None:
    file.kv |= {"split.no": u32(1), "split.count": u32(3)}


# Container: tensors.


@case("format", "tensor name", "got 0")
def tensor_name_empty(file: Gguf) -> None:
    file.tensors["blk.0.attn_q"].name = ""


@case("format", "tensor name", "got 1025", "1 to 1024")
def tensor_name_too_long(file: Gguf) -> None:
    file.tensors["blk.0.attn_q"].name = "n" * 1025


@case("format", "tensor name", "UTF-8")
def tensor_name_not_utf8(file: Gguf) -> None:
    file.tensors["blk.0.attn_q"].name = b"blk\xc3"


@case("format", "tensor name", "zero byte")
def tensor_name_with_nul(file: Gguf) -> None:
    file.tensors["blk.0.attn_q"].name = "blk\0"


@case("format", "used twice", "blk.0.attn_k.weight")
def tensor_twice(file: Gguf) -> None:
    file.tensors["blk.0.attn_v"].name = "blk.0.attn_k.weight"


def shape_case(name: str, dims: list[int], *says: str) -> None:
    def change(file: Gguf) -> None:
        file.tensors["blk.0.attn_q"].dims = dims

    change.__name__ = name
    case("format", *says)(change)


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

    change.__name__ = name
    case(kind, "blk.0.attn_q.weight", *says)(change)


type_case("type_Q4_2", "unsupported", 4, "Q4_2")
type_case("type_Q4_3", "unsupported", 5, "Q4_3")
type_case("type_Q4_0_4_4", "unsupported", 31, "Q4_0_4_4")
type_case("type_I32", "unsupported", 26, "I32", "Q4_K")
type_case("type_1000", "format", 1000, "unknown tensor type", "got 1000")
type_case("type_negative", "format", 2**32 - 1, "unknown tensor type", "got 4294967295")


@case("unsupported", "output_norm.weight", "F16")
def norm_in_f16(file: Gguf) -> None:
    file.tensors["output_norm"].dtype = 1


def offset_case(name: str, offset: int, *says: str) -> None:
    def change(file: Gguf) -> None:
        file.tensors["blk.0.attn_q"].offset = offset

    change.__name__ = name
    case("format", *says)(change)


offset_case("offset_unaligned", 33, "blk.0.attn_q.weight", "unaligned", "got 33", "multiple of 32")
offset_case("offset_wraps", -32, "blk.0.attn_q.weight", "past the end")
offset_case("offset_past_the_end", 1 << 40, "blk.0.attn_q.weight", "past the end")
offset_case("offset_in_another_tensor", 32, "overlap", "token_embd.weight")
offset_case("offset_of_another_tensor", 0, "overlap", "token_embd.weight")


@case("format", "(50 %)", "download is incomplete")
def truncated_download(file: Gguf) -> bytes:
    content = file.content()
    return content[: len(content) // 2 + 1]


@case("format", "(99 %)", "download is incomplete")
def truncated_by_a_byte(file: Gguf) -> bytes:
    return file.content()[:-1]


@case("format", "is the download complete?", "tokenizer.ggml.tokens", "got 260")
def truncated_in_the_vocabulary(file: Gguf) -> bytes:
    header = file.header()
    return header[: header.index(b"tokenizer.ggml.tokens") + 1000]


# Hyper-parameters.

key_case("no_architecture", "format", "general.architecture", None, "missing key")
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
for _key, _values in {
    "llama.block_count": (0, 2, 10**9),
    "llama.context_length": (0,),
    "llama.embedding_length": (0, 2**32 - 1),
    "llama.feed_forward_length": (0, 2**32 - 1),
    "llama.attention.head_count": (0, 2**32 - 1),
    "llama.attention.head_count_kv": (0, 3, 8, 2**32 - 1),
    "llama.attention.key_length": (0, 2**32 - 1),
    "llama.rope.dimension_count": (0, 7, 10, 2**32 - 1),
}.items():
    for _value in _values:
        key_case(f"{_key.rsplit('.', 1)[1]}_{_value}", "format", _key, u32(_value), f"got {_value}")
for _key, _numbers in {
    "llama.attention.layer_norm_rms_epsilon": (0.0, -1.0, NAN),
    "llama.rope.freq_base": (0.0, -1.0, NAN, INFINITY),
    "llama.rope.scaling.factor": (0.0, NAN),
}.items():
    for _number in _numbers:
        key_case(f"{_key.rsplit('.', 1)[1]}_{_number}", "format", _key, f32(_number), "bad value")
key_case("head_counts_for_two_layers", "format", "llama.attention.head_count", integers([4, 4]), "got 2")
key_case("vocab_size_differs", "format", "llama.vocab_size", u32(VOCAB + 1), "got 261", "260")


def _unsupported(name: str, key: str, value: Value, says: str) -> None:
    def change(file: Gguf) -> None:
        file.kv[key] = value

    change.__name__ = name
    case("unsupported", says)(change)


_unsupported("unknown_architecture", "general.architecture", string("gemma3"), "gemma3")
_unsupported("rope_scaling_yarn", "llama.rope.scaling.type", string("yarn"), "yarn")
_unsupported("experts", "llama.expert_count", u32(8), "8 experts")
_unsupported("encoder", "llama.attention.causal", boolean(0), "causal")
_unsupported("sliding_window", "llama.attention.sliding_window", u32(16), "sliding-window")
_unsupported("unknown_vocabulary", "tokenizer.ggml.model", string("rwkv"), "rwkv")
_unsupported("unknown_pre_tokenizer", "tokenizer.ggml.pre", string("poetry"), "poetry")


@case("format", "missing tensor", "blk.0.ffn_up.weight")
def tensor_missing(file: Gguf) -> None:
    del file.tensors["blk.0.ffn_up"]


@case("unsupported", "blk.0.attn_q.bias")
def tensor_unknown(file: Gguf) -> None:
    file.tensors["bias"] = Tensor("blk.0.attn_q.bias", [32], bytes(128))


@case("format", "token_embd.weight", "shape")
def embedding_shorter_than_vocabulary(file: Gguf) -> None:
    file.tensors["token_embd"].dims[1] -= 1


# Vocabulary.

key_case("no_tokens", "format", "tokenizer.ggml.tokens", None, "missing key")
key_case("tokens_are_integers", "format", "tokenizer.ggml.tokens", integers(range(VOCAB)), "value type", "I32")
key_case("no_merges", "format", "tokenizer.ggml.merges", None, "missing key")
key_case("merges_are_integers", "format", "tokenizer.ggml.merges", integers([1]), "value type")
key_case("token_types_too_few", "format", "tokenizer.ggml.token_type", integers([1] * 259), "got 259", "260")


@case("format", "scores", "got 3", "260", base=good_spm)
def spm_scores_too_few(file: Gguf) -> None:
    file.kv["tokenizer.ggml.scores"] = floats([0, 0, 0])


@case("format", "scores", "value type", base=good_spm)
def spm_scores_are_integers(file: Gguf) -> None:
    file.kv["tokenizer.ggml.scores"] = integers([0] * VOCAB)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, file in {"good": good(), "good_spm": good_spm()}.items():
        (directory / f"{name}.gguf").write_bytes(file.content())
    for bad in CASES:
        (directory / f"{bad.name}.gguf").write_bytes(bad.content())
    print(f"{len(CASES)} bad files and two good ones in {directory}")


if __name__ == "__main__":
    main()
