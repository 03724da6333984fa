"""Tokenizers against their oracles, token for token: HF's `tokenizers` for byte-level BPE, `sentencepiece` for SPM."""

from __future__ import annotations

import io
import random
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import vocabularies
from llama_rs import Tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from vocabularies import Vocabulary

BYTE_LEVEL = ("smollm2", "gpt2", "llama3", "qwen2")
SENTENCEPIECE = ("mistral_v1", "mistral_v2", "mistral_v3")
EVERY = BYTE_LEVEL + SENTENCEPIECE

MAKERS: dict[str, Callable[[Path], Vocabulary]] = {
    "smollm2": vocabularies.smollm2,
    "gpt2": vocabularies.gpt2,
    "llama3": vocabularies.llama3,
    "qwen2": vocabularies.qwen2,
    "mistral_v1": lambda folder: vocabularies.mistral(folder, "v1"),
    "mistral_v2": lambda folder: vocabularies.mistral(folder, "v2"),
    "mistral_v3": lambda folder: vocabularies.mistral(folder, "v3"),
}

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "Hello world",
    " Hello  world ",
    "   three spaces, then\ttab\t\tand\n\nlines\r\n  \n x",
    "I'll, you're, HE'S, they'Ve; 'tis 's 'S '\u017f 'll'd 'x ''s don't",
    "1 12 123 1234 12345 1,234.5 x1y22z ٣٤٥ ½Ⅷ２ 1 2  3",
    "C++ == (a->b) != {[c]}; /* ... */ // --!!??\n#end",
    "naïve café e\u0301 n\u0303 \u1e9b\u0323 Å \ufb03",
    "日本語の文章、中文。 한국어 텍스트",
    "مرحبا بالعالم हिन्दी में ไทย עברית",
    "👩‍👩‍👧 🏳️‍🌈 \U0001f600\U0001f601 🇩🇪",
    "\u00a0nbsp\u2003em\u2028line\u3000wide\u200bzero\u180e\ufeffbom \u0085nel",
    "▁already▁escaped ▁▁ ▁",
    "<0x41><0x0A> <s> </s> <unk> [INST]",
    "\0\x01\x7f\ufffd\U0010ffff\U000e0001",
]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Vocabulary, Tokenizer]]:
    """A vocabulary by its name, with our tokenizer for it; each is made once."""
    made: dict[str, tuple[Vocabulary, Tokenizer]] = {}
    folder = tmp_path_factory.mktemp("vocabularies")

    def make(name: str) -> tuple[Vocabulary, Tokenizer]:
        if name not in made:
            oracle = MAKERS[name](folder)
            made[name] = oracle, Tokenizer(oracle.path)
        return made[name]

    return make


Get = Callable[[str], tuple[Vocabulary, Tokenizer]]


def check(oracle: Vocabulary, tokenizer: Tokenizer, text: str) -> None:
    """Both make the same tokens of `text`, and the same text of those."""
    expected = oracle.encode(text)
    ids = tokenizer.encode(text, add_special=False, parse_special=True)
    if ids != expected:
        differ = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), None)
        around = slice(None) if differ is None else slice(max(differ - 3, 0), differ + 4)
        pytest.fail(f"{text[:200]!r}: {ids[around]} where the oracle has {expected[around]}, at token {differ}")
    assert tokenizer.decode(ids) == oracle.decode(ids), f"{text[:200]!r}"


def plain(name: str, text: str, oracle: Vocabulary) -> str:
    """`text` without the names of special tokens, where the oracle takes them for text."""
    if name in SENTENCEPIECE:
        for special in (*oracle.specials, "<unk>"):
            text = text.replace(special, "")
    return text


ASSIGNED = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cs", "Cn", "Co")]


def random_texts(seed: int, count: int, specials: list[str]) -> Iterator[str]:
    """Texts of things that tokenizers trip over, next to one another in all orders."""
    rng = random.Random(seed)
    words = ["the", "of", "Once", "upon", "a", "time", "HELLO", "Ünïcödé", "don't", "I'LL", "x1", "std::vector"]
    spaces = [" ", " ", " ", "  ", "    ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", " \n "]
    marks = [*"'\"!?.,:;-_/\\()[]{}<>|#@^&*~`+=$%▁\u017f", "'s", "'LL", "...", "n't"]
    numbers = ["0", "7", "42", "123", "2024", "1234567", "٣", "½", "Ⅻ"]
    combining = [c for c in ASSIGNED if unicodedata.combining(c)]
    kinds: list[Callable[[], str]] = [
        lambda: rng.choice(words),
        lambda: rng.choice(spaces),
        lambda: rng.choice(marks),
        lambda: rng.choice(numbers),
        lambda: rng.choice(ASSIGNED),
        lambda: chr(rng.randrange(0x20, 0x250)),
        lambda: rng.choice("aeiounAEIOUN") + rng.choice(combining),
        lambda: rng.choice("😀👩🏽🇫🇷") + rng.choice(["", "\u200d", "\ufe0f"]),
        lambda: rng.choice(ASSIGNED) * rng.randrange(2, 9),
        lambda: rng.choice(specials),
    ]
    for _ in range(count):
        yield "".join(rng.choice(kinds)() for _ in range(rng.randrange(1, 40)))


@pytest.mark.parametrize("name", EVERY)
def test_texts_are_encoded_as_the_oracle_does(vocabulary: Get, name: str) -> None:
    oracle, tokenizer = vocabulary(name)
    for text in TEXTS:
        check(oracle, tokenizer, plain(name, text, oracle))


@pytest.mark.parametrize("name", EVERY)
def test_random_unicode_is_encoded_as_the_oracle_does(vocabulary: Get, name: str) -> None:
    oracle, tokenizer = vocabulary(name)
    for text in random_texts(20261123, 3000, oracle.specials):
        check(oracle, tokenizer, plain(name, text, oracle))


@pytest.mark.parametrize("name", EVERY)
def test_the_first_text_of_a_tokenizer_is_encoded_as_any_other(vocabulary: Get, name: str) -> None:
    """The first gets an index of what it needs, and what is made of the same parts shares it."""
    oracle, _ = vocabulary(name)
    texts = [plain(name, text, oracle) for text in [*TEXTS, *random_texts(20261126, 80, oracle.specials)]]
    for text, next_text in zip(texts, [*texts[1:], texts[0]], strict=True):
        tokenizer = Tokenizer(oracle.path)
        for part in (text, text[len(text) // 3 :], text[: len(text) // 2], next_text, text):
            check(oracle, tokenizer, plain(name, part, oracle))


@pytest.mark.parametrize("name", [*BYTE_LEVEL, "mistral_v1"])
def test_every_character_is_what_it_is_for_the_oracle(vocabulary: Get, name: str) -> None:
    """Letter, number, white space or none: each character beside each of them. Unassigned ones too."""
    oracle, tokenizer = vocabulary(name)
    last = 0x33FFF  # beyond are unassigned characters, but for tags and variation selectors; some will do
    codes = [*range(0xD800), *range(0xE000, last), *range(0xE0000, 0xE0200), *range(last, sys.maxunicode + 1, 997)]
    every = [chr(code) for code in codes]
    if name == "qwen2":
        # Python's NFC leaves alone what is newer than its tables.
        every = [c for c in every if unicodedata.category(c) != "Cn"]
    for start in range(0, len(every), 4096):
        check(oracle, tokenizer, "".join(f"a{c}1{c} {c}." for c in every[start : start + 4096]))


@pytest.mark.parametrize("name", vocabularies.PATTERNS)
def test_every_pre_tokenizer_cuts_words_as_its_patterns_say(tmp_path: Path, name: str) -> None:
    oracle = vocabularies.pairs(tmp_path, name)
    tokenizer = Tokenizer(oracle.path)
    bits = [" ", "  ", "\n", "\r\n", "\u3000", "'", "'s", "'LL", "'\u017f", "\u0301", "ʰ", "ǅ", "A", "b", "É", "é", "ß"]
    bits += ["中", "の", "ー", "1", "12", "٣", "½", "/", "!", "`", "$", "€", "。", "\0", "\u200b", "\ufeff", "😀"]
    rng = random.Random(12)
    for _ in range(2000):
        check(oracle, tokenizer, "".join(rng.choice(bits) for _ in range(rng.randrange(1, 9))))
    for text in [*TEXTS, *random_texts(13, 300, ["<s>"])]:
        check(oracle, tokenizer, text)
    for run in ("a", "A", "1", "٣", " ", "\n", "\u0301", "中", "!", "\x00", "ʰA", "1a", " 1", "'s", "ǅʰ"):
        check(oracle, tokenizer, run * 2000)
        tokenizer.encode(run * (200_000 // len(run)))  # in no quadratic time, which would be hours


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("run", ["a", " ", "^", "1", "\n", "é", "\u0301", "😀", "ab", "'s"])
def test_a_long_run_takes_no_stack_and_no_quadratic_time(vocabulary: Get, name: str, run: str) -> None:
    oracle, tokenizer = vocabulary(name)
    text = run * (1_000_000 // len(run))
    ids = tokenizer.encode(text, add_special=False, parse_special=True)  # half a second; quadratic would be an hour
    shorter = run * (50_000 // len(run))  # the oracles need longer
    check(oracle, tokenizer, shorter)
    assert tokenizer.decode(ids) == (unicodedata.normalize("NFC", text) if name == "qwen2" else text)


@pytest.mark.parametrize("name", ["llama3", "qwen2"])
def test_decoding_gives_the_text_back(vocabulary: Get, name: str) -> None:
    oracle, tokenizer = vocabulary(name)
    for text in random_texts(7, 2000, oracle.specials):
        for parse_special in (False, True):
            ids = tokenizer.encode(text, add_special=False, parse_special=parse_special)
            assert tokenizer.decode(ids) == (text if name == "llama3" else unicodedata.normalize("NFC", text))


@pytest.mark.parametrize("name", EVERY)
def test_any_tokens_are_decoded_as_the_oracle_does(vocabulary: Get, name: str) -> None:
    """Also those that no text gives: halves of characters, bytes that are not UTF-8."""
    oracle, tokenizer = vocabulary(name)
    rng = random.Random(3)
    ids = list(range(32_000))
    if name in SENTENCEPIECE:
        # It decodes control tokens to nothing and the unknown token to a sign; we give their names.
        special = {"<unk>", *oracle.specials}
        ids = [id for id in ids if tokenizer.decode([id]) not in special]
    bytes_or_near = [id for id in ids if len(tokenizer.decode([id])) == 1]
    for _ in range(2000):
        some = [rng.choice(rng.choice([ids, bytes_or_near])) for _ in range(rng.randrange(12))]
        assert tokenizer.decode(some) == oracle.decode(some), some


@pytest.mark.parametrize("name", EVERY)
def test_special_tokens_are_parsed_only_on_request(vocabulary: Get, name: str) -> None:
    oracle, tokenizer = vocabulary(name)
    for special in oracle.specials[:20]:
        text = f"a{special}b"
        parsed = tokenizer.encode(text, add_special=False, parse_special=True)
        read = tokenizer.encode(text, add_special=False, parse_special=False)
        (token,) = tokenizer.encode(special, add_special=False, parse_special=True)
        assert token in parsed
        assert token not in read
        assert tokenizer.decode(read) == text
        assert special not in tokenizer.decode(parsed, skip_special=True)


def test_bos_is_added_where_the_model_wants_it(vocabulary: Get) -> None:
    """Where the file does not say: Llama 3 and SentencePiece begin with it, the others do not."""
    for name, bos in [("llama3", [128000]), ("mistral_v1", [1]), ("qwen2", []), ("smollm2", []), ("gpt2", [])]:
        _, tokenizer = vocabulary(name)
        ids = tokenizer.encode("Hello", add_special=False)
        assert tokenizer.encode("Hello", add_special=True) == bos + ids


def test_sentencepiece_texts_between_special_tokens_are_texts_of_their_own(vocabulary: Get) -> None:
    oracle, tokenizer = vocabulary("mistral_v3")
    ids = tokenizer.encode("<s>[INST]Hi there[/INST] you", add_special=False, parse_special=True)
    assert ids == [1, 3, *oracle.encode("Hi there"), 4, *oracle.encode(" you")]


def test_tokens_that_were_added_to_a_sentencepiece_model_end_a_text(tmp_path: Path) -> None:
    """Control tokens and user-defined ones alike; a token that ends an answer by its name is a control token."""
    control, user_defined = ["<|control|>"], ["<|im_start|>", "<|im_end|>", "<tool>", "<tool>x", "ab c", "éé", "<|"]
    oracle = vocabularies.chatml(tmp_path, control, user_defined)
    tokenizer = Tokenizer(oracle.path)
    for text in [
        "hi<|im_end|>hi",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>",
        "hi <|im_end|> hi",
        "<tool>xx ab c",
        "é",
    ]:
        assert tokenizer.encode(text, add_special=False) == oracle.encode(text), repr(text)
    for text in random_texts(14, 3000, [*oracle.specials, *user_defined, "a", "b c"]):
        assert tokenizer.encode(text, add_special=False) == oracle.encode(text), repr(text)
    end = tokenizer.vocab_size - 6
    assert tokenizer.encode("<|im_end|>", add_special=False) == [end]
    assert end not in tokenizer.encode("<|im_end|>", add_special=False, parse_special=False)
    assert tokenizer.is_end_of_generation(end) and not tokenizer.is_end_of_generation(end - 1)
    text = "a<tool>b<|im_start|>ab c"
    parsed = [tokenizer.encode(text, add_special=False, parse_special=parse) for parse in (False, True)]
    assert parsed[0] == parsed[1] == oracle.encode(text)


CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Sphinx of black quartz, judge my vow; and the fox judged the dog.",
    "for (int i = 0; i < n; ++i) { sum += values[i]; }  // the sum of the values",
    "Der Fuchs springt über den faulen Hund, und der Hund über den Fuchs.",
] * 20


@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize("add_space_prefix", [False, True])
def test_a_trained_sentencepiece_model(tmp_path: Path, byte_fallback: bool, add_space_prefix: bool) -> None:
    """User-defined tokens inside one another; and where there are no byte tokens, runs of unknown characters."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=out,
        model_type="bpe",
        vocab_size=420 if byte_fallback else 170,
        byte_fallback=byte_fallback,
        user_defined_symbols=["fox", "ox▁j", "the", "▁▁", "quick▁brown", "o", "ab", "abc", "bcd"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=add_space_prefix,
        minloglevel=2,
    )
    oracle = vocabularies.from_sentencepiece(tmp_path, out.getvalue(), "trained", add_space_prefix=add_space_prefix)
    tokenizer = Tokenizer(oracle.path)
    bits = [
        "fox",
        "ox j",
        "the",
        " ",
        "  ",
        "   ",
        "quick",
        " brown",
        "o",
        "a",
        "b",
        "c",
        "d",
        "lazy dog",
        "日",
        "ü",
        "for",
    ]
    rng = random.Random(5)
    for _ in range(3000):
        text = "".join(rng.choice(bits) for _ in range(rng.randrange(12)))
        for one in (tokenizer, Tokenizer(oracle.path)):
            assert one.encode(text, add_special=False) == oracle.encode(text), repr(text)

    # Tokens that were added to that model cut its texts.
    proto = vocabularies.ModelProto.FromString(out.getvalue())
    added = ["<|im_end|>", "a b", "oxen"]
    first = len(proto.pieces)
    path = vocabularies.write_gguf(
        tmp_path / "added.gguf",
        "llama",
        [*(piece.piece for piece in proto.pieces), *added],
        types=[*(piece.type for piece in proto.pieces), *[vocabularies.TokenType.USER_DEFINED] * len(added)],
        scores=[*(piece.score for piece in proto.pieces), *[0.0] * len(added)],
        unknown_token_id=0,
        add_space_prefix=add_space_prefix,
    )
    tokenizer = Tokenizer(path)
    cut = re.compile("(" + "|".join(map(re.escape, added)) + ")")
    for _ in range(2000):
        text = "".join(rng.choice([*bits, *added]) for _ in range(rng.randrange(12)))
        parts = [part for part in cut.split(text) if part]
        expected = [[first + added.index(part)] if part in added else oracle.encode(part) for part in parts]
        assert tokenizer.encode(text, add_special=False) == [id for ids in expected for id in ids], repr(text)


def test_unused_sentencepiece_tokens_are_taken_apart_again(tmp_path: Path) -> None:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=out, model_type="bpe", vocab_size=200, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    proto = vocabularies.ModelProto.FromString(out.getvalue())
    rng = random.Random(11)
    for piece in proto.pieces:
        if len(piece.piece) > 1 and piece.type == vocabularies.TokenType.NORMAL and rng.random() < 0.5:
            piece.type = vocabularies.TokenType.UNUSED
    oracle = vocabularies.from_sentencepiece(tmp_path, proto.SerializeToString(), "unused")
    tokenizer = Tokenizer(oracle.path)
    for line in CORPUS[:4]:
        for start in range(len(line)):
            text = line[start:]
            assert tokenizer.encode(text, add_special=False) == oracle.encode(text), repr(text)


def test_user_defined_tokens_of_byte_level_bpe(tmp_path: Path) -> None:
    """They are found without being asked for, the longest first; control tokens only on request."""
    alphabet = vocabularies.byte_alphabet()
    user_defined = ["ab", "abc", "b c", "über", "<tool>", "<tool>x"]
    tokens = [*alphabet, "he", "ll", "hell", *user_defined, "<|end|>"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    kind = vocabularies.TokenType
    types = [kind.NORMAL] * 259 + [kind.USER_DEFINED] * len(user_defined) + [kind.CONTROL]
    path = vocabularies.write_gguf(
        tmp_path / "user.gguf", "gpt2", tokens, types=types, merges=map(" ".join, merges), pre="gpt-2"
    )
    tokenizer = Tokenizer(path)

    oracle = tokenizers.Tokenizer(models.BPE({token: id for id, token in enumerate(tokens[:259])}, merges))
    oracle.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    oracle.decoder = decoders.ByteLevel()
    oracle.add_tokens([AddedToken(token, normalized=False, special=False) for token in user_defined])
    bits = ["a", "b", "c", " ", "ab", "hell", "über", "<tool>", "x", "o", "日"]
    rng = random.Random(9)
    for _ in range(2000):
        text = "".join(rng.choice(bits) for _ in range(rng.randrange(12)))
        for parse_special in (False, True):
            ids = tokenizer.encode(text, add_special=False, parse_special=parse_special)
            assert ids == oracle.encode(text).ids, repr(text)
        assert tokenizer.decode(ids) == text
    assert 265 not in tokenizer.encode("<|end|>", add_special=False, parse_special=False)
    assert tokenizer.encode("<|end|>", add_special=False, parse_special=True) == [265]


def test_a_hundred_thousand_special_tokens_inside_one_another(tmp_path: Path) -> None:
    names = [f"<{'x' * (i % 40)}{i}" for i in range(100_000)]
    tokens = [*vocabularies.byte_alphabet(), "xx", *names]
    types = [vocabularies.TokenType.NORMAL] * 257 + [vocabularies.TokenType.CONTROL] * len(names)
    path = vocabularies.write_gguf(tmp_path / "many.gguf", "gpt2", tokens, types=types, merges=["x x"], pre="gpt-2")
    tokenizer = Tokenizer(path)
    assert tokenizer.encode("a<x1<" * 1000, add_special=False, parse_special=True).count(tokens.index("<x1")) == 1000
