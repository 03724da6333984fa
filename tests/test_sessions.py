"""Sessions: saved and brought back, continued, shared by processes, shifted at the end of the context."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
from llama_rs import ContextOverflowError, Model, SavedSessionError
from llama_rs.cli import main
from oracle.cases import CASES, TOKENS

TEXT = "The old lighthouse keeper climbed the stairs every evening and lit the lamp for the ships at sea. "
HEADER_LEN = 160 + 2 * 272  # of a session of 100 tokens, see rust/kv/saved.rs


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def saving_for_ever(model: object, path: object) -> subprocess.Popen[str]:
    """A process that has begun to save a session of 200 tokens over and over."""
    code = """if True:
        import sys
        from llama_rs import Model
        session = Model(sys.argv[1], threads=1).session()
        session.forward(list(range(200)))
        print("ready", flush=True)
        while True:
            session.save(sys.argv[2])
    """
    process = python(code, model, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return Model(tiny, threads=1)


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    """A session of 100 tokens, in a file."""
    path = tmp_path / "session.kv"
    with model.session() as session:
        session.forward(list(range(100)))
        session.save(path)
    return path


# Types of keys and values


def test_a_q8_0_cache_is_nearly_the_same_and_half_the_size(smollm2: Path, tmp_path: Path) -> None:
    ids = list(range(100, 400))
    half, q8_0 = Model(smollm2), Model(smollm2, kv_type="q8_0")
    logits = {}
    for model in (half, q8_0):
        with model.session() as session:
            session.forward(ids[:200])
            session.save(tmp_path / model.kv_type)
            session.shift(4, 96)
            logits[model.kv_type] = session.logits(ids[200:])
    assert logits["f16"].std() / 50 < np.abs(logits["f16"] - logits["q8_0"]).max() < logits["f16"].std()
    sizes = [(tmp_path / t).stat().st_size for t in ("q8_0", "f16")]
    assert sizes[0] < 0.6 * sizes[1]
    with q8_0.load_session(tmp_path / "q8_0") as session:
        session.shift(4, 96)
        assert np.array_equal(session.logits(ids[200:]), logits["q8_0"])
    assert pickle.loads(pickle.dumps(q8_0)).kv_type == "q8_0"
    with pytest.raises(SavedSessionError, match="keys and values in F16, not in Q8_0"):
        q8_0.load_session(tmp_path / "f16")


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_what_latent_attention_keeps_is_saved(tmp_path: Path, kv_type: Any) -> None:
    """Values are part of the keys there."""
    model = Model(CASES["deepseek2"].make().write_gguf(tmp_path / "latent.gguf"), kv_type=kv_type)
    with model.session() as session:
        session.forward(TOKENS)
        session.save(tmp_path / "session.kv")
        rest = session.logits(TOKENS)
    with model.load_session(tmp_path / "session.kv") as session:
        np.testing.assert_array_equal(session.logits(TOKENS), rest)


@pytest.mark.parametrize("name", ["deepseek2", "deepseek2-kv-b"])
def test_keys_of_latent_attention_turn_when_tokens_before_them_are_forgotten(tmp_path: Path, name: str) -> None:
    """In a model of one layer, whose keys and values know of no other tokens, it is as if those had never been."""
    tiny = CASES[name].make()
    tiny.keys |= {".block_count": 1, ".expert_count": None}
    tiny.tensors = {name: x for name, x in tiny.tensors.items() if not name.startswith(("blk.1.", "blk.2."))}
    model = Model(tiny.write_gguf(tmp_path / "latent.gguf"))
    with model.session() as session:
        session.forward(TOKENS)
        session.shift(4, 19)
        shifted = session.logits(TOKENS)
        session.truncate(0)
        session.forward(TOKENS[:4] + TOKENS[23:])
        anew = session.logits(TOKENS)
    assert np.sqrt(np.mean((shifted - anew) ** 2)) < 0.002 * anew.std()


def test_types_of_keys_and_values_that_cannot_be(tiny: Path, tmp_path: Path) -> None:
    wrong: Any = "q4_0"
    with pytest.raises(ValueError, match='kv_type is "q4_0", it must be "f16" or "q8_0"'):
        Model(tiny, kv_type=wrong).session()
    path = tmp_path / "narrow.gguf"
    tiny_model.write_tiny_model(path, head_dim=16)
    with pytest.raises(
        ValueError, match="kv_type Q8_0 cannot hold the keys of this model, 16 numbers per head: use F16"
    ):
        Model(path, kv_type="q8_0").session()


# Forked


def test_forks_go_on_by_themselves(model: Model) -> None:
    with model.session() as session:
        session.forward(list(range(70)))
        with session.fork() as a, session.fork() as b:
            assert a.tokens == b.tokens == session.tokens
            one, two = a.forward([1, 2, 3]), b.forward([4, 5, 6])
            assert (a.position, b.position, session.position) == (73, 73, 70)
            third = session.forward([1, 2, 3])
        np.testing.assert_array_equal(one, third)
        assert not np.array_equal(one, two)
        session.truncate(70)
        np.testing.assert_array_equal(session.forward([4, 5, 6]), two)
    with model.session() as alone:
        np.testing.assert_array_equal(alone.forward([*range(70), 4, 5, 6]), two)


# Saved and brought back


@pytest.mark.parametrize("n", [1, 31, 32, 33, 100])
def test_a_session_comes_back_to_the_bit(model: Model, tmp_path: Path, n: int) -> None:
    with model.session() as session:
        session.forward(list(range(n)))
        session.save(tmp_path / "session.kv")
        expected = session.logits([7, 8, 9])
    with model.load_session(tmp_path / "session.kv") as session:
        assert (session.tokens, session.position) == (list(range(n)), n)
        assert np.array_equal(session.logits([7, 8, 9]), expected)
        assert session.tokens == [*range(n), 7, 8, 9]


def test_an_empty_session_can_be_saved(model: Model, tmp_path: Path) -> None:
    with model.session() as session:
        session.save(tmp_path / "session.kv")
    assert model.load_session(tmp_path / "session.kv").position == 0


def test_another_process_goes_on_with_the_same_logits(model: Model, saved: Path) -> None:
    code = """if True:
        import sys
        from llama_rs import Model
        print(Model(sys.argv[1], threads=1).load_session(sys.argv[2]).forward([7, 8, 9]).tobytes().hex())
    """
    out, _ = python(code, model.path, saved).communicate()
    assert np.array_equal(np.frombuffer(bytes.fromhex(out), np.float32), model.load_session(saved).forward([7, 8, 9]))


def test_what_sessions_add_is_their_own(model: Model, saved: Path) -> None:
    before = saved.read_bytes()
    a, b = model.load_session(saved), model.load_session(saved)
    first = a.forward([1, 2, 3])
    b.forward([4, 5, 6])
    b.truncate(50)
    b.forward([8] * 60)
    a.truncate(100)
    assert np.array_equal(a.forward([1, 2, 3]), first)
    assert saved.read_bytes() == before


def test_a_loaded_session_can_be_saved_over_its_own_file(model: Model, saved: Path) -> None:
    session = model.load_session(saved)
    session.forward([1, 2, 3])
    session.save(saved)
    expected = session.forward([4])
    again = model.load_session(saved)
    assert again.tokens == [*range(100), 1, 2, 3]
    assert np.array_equal(again.forward([4]), expected)


def test_the_context_may_be_of_another_length(model: Model, saved: Path) -> None:
    expected = model.load_session(saved).forward([1])
    assert np.array_equal(model.load_session(saved, context_length=101).forward([1]), expected)
    with pytest.raises(ContextOverflowError, match="100 tokens do not fit in a context of 99"):
        model.load_session(saved, context_length=99)


def test_the_random_numbers_come_back_too(model: Model, tmp_path: Path) -> None:
    session = model.session()
    first = session.generate(TEXT, seed=7, max_tokens=8, ignore_eos=True)
    prompt = session.tokens + first.token_ids[-1:]
    session.save(tmp_path / "session.kv")
    expected = session.generate(prompt, max_tokens=8, ignore_eos=True)
    again = model.load_session(tmp_path / "session.kv").generate(prompt, max_tokens=8, ignore_eos=True)
    whole = model.generate(TEXT, seed=7, max_tokens=16, ignore_eos=True)
    assert again.token_ids == expected.token_ids
    assert first.token_ids + again.token_ids == whole.token_ids
    assert again.timings.cached_tokens == len(prompt) - 1


# Refused


def test_the_session_of_another_model_is_refused(saved: Path, tmp_path: Path) -> None:
    for other in (
        tiny_model.write_tiny_model(tmp_path / "other-size.gguf", "Q8_0", n_layers=3),
        tiny_model.write_tiny_model(tmp_path / "other-weights.gguf", "Q8_0", seed=1),
    ):
        with pytest.raises(SavedSessionError, match=r"session\.kv: the session of another model") as raised:
            Model(other).load_session(saved)
        assert "\n" not in str(raised.value)
        assert raised.value.path == str(saved)


def test_a_copy_of_the_model_is_the_same_model(model: Model, saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(Path(model.path).read_bytes())
    assert Model(copy).load_session(saved).position == 100


def test_no_flipped_bit_of_the_header_gets_through(model: Model, saved: Path) -> None:
    good = saved.read_bytes()
    for at in range(HEADER_LEN):
        for bit in (1, 128):
            saved.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
            with pytest.raises(SavedSessionError):
                model.load_session(saved)
    saved.write_bytes(good[:8] + b"\x01" + good[9:])
    with pytest.raises(SavedSessionError, match="version 1: this llama_rs reads version 3; make it again"):
        model.load_session(saved)


def test_a_damaged_block_is_found_before_it_is_used(model: Model, saved: Path) -> None:
    good = saved.read_bytes()
    rng = np.random.default_rng(3)
    for at in [len(good) - 1, *rng.integers(4096, len(good), 30)]:  # the header and its padding are one page
        saved.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with model.load_session(saved) as session:
            damaged = r"session\.kv: a damaged saved session: what it has of tokens"
            with pytest.raises(SavedSessionError, match=damaged):
                session.forward([1])
            with pytest.raises(SavedSessionError, match=damaged):
                session.save(saved.with_suffix(".copy"))
    saved.write_bytes(good)
    with model.load_session(saved) as session:
        session.forward([1])


def test_a_damaged_state_of_recurrent_layers_is_found_at_once(tmp_path: Path) -> None:
    model = Model(CASES["qwen35"].make().write_gguf(tmp_path / "hybrid.gguf"), threads=1)
    path = tmp_path / "session.kv"
    with model.session() as session:
        expected = session.forward(list(range(40)))
        session.truncate(39)
        session.save(path)
    good = path.read_bytes()
    with model.load_session(path) as session:
        assert session.position == 39
        np.testing.assert_array_equal(session.forward([39]), expected)
    rng = np.random.default_rng(3)
    for at in [len(good) - 1, *rng.integers(len(good) // 2, len(good), 20)]:  # state and tail are most of the file
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(SavedSessionError, match="what recurrent layers remember is not what was saved"):
            model.load_session(path)
    for at in range(120, 160):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(SavedSessionError):
            model.load_session(path)


def test_a_large_hole_is_refused_by_its_size(model: Model, saved: Path) -> None:
    os.truncate(saved, 1 << 42)
    with pytest.raises(SavedSessionError, match="cut short: 4398046511104 bytes, expected"):
        model.load_session(saved)


def test_what_was_forgotten_is_not_saved(model: Model, tmp_path: Path) -> None:
    """A saved session holds what was computed of its tokens, and zeros."""
    long, short = tmp_path / "long.kv", tmp_path / "short.kv"
    with model.session() as session:
        session.forward(list(range(130)))
        session.truncate(70)
        session.save(long)
    with model.session() as session:
        session.forward(list(range(70)))
        session.save(short)
    assert long.read_bytes() == short.read_bytes()


def test_no_file_that_is_cut_short_gets_through(model: Model, saved: Path) -> None:
    good = saved.read_bytes()
    for length in [*range(HEADER_LEN + 1), *range(4096, len(good), 1000), len(good) - 1]:
        saved.write_bytes(good[:length])
        with pytest.raises(SavedSessionError, match="not a saved session" if length < 8 else "cut short"):
            model.load_session(saved)


def test_a_session_is_not_saved_over_a_model(model: Model, tmp_path: Path) -> None:
    other = tiny_model.write_tiny_model(tmp_path / "other.gguf")
    before = other.read_bytes()
    with model.session() as session:
        session.forward([1, 2, 3])
        with pytest.raises(OSError, match=r"other\.gguf: is a model file: not replaced by a session"):
            session.save(other)
    assert other.read_bytes() == before


def test_a_saved_session_keeps_its_mode_and_nothing_stays_behind(model: Model, saved: Path) -> None:
    saved.chmod(0o600)
    with model.load_session(saved) as session:
        session.forward([1])
        session.save(saved)
    assert saved.stat().st_mode & 0o777 == 0o600
    for i in range(8):
        process = saving_for_ever(model.path, saved)
        time.sleep(0.004 * i)
        process.terminate()
        process.communicate()
    left = [name for name in os.listdir(saved.parent) if name != saved.name]
    assert len(left) <= 1  # of eight, in the moment in which it has a name and not yet its own


def test_other_files_are_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(SavedSessionError, match="not a saved session"):
        model.load_session(model.path)
    with pytest.raises(SavedSessionError, match="not a file"):
        model.load_session(tmp_path)
    with pytest.raises(FileNotFoundError):
        model.load_session(tmp_path / "missing.kv")


# Faults


def test_a_file_that_changes_under_a_session_is_found(model: Model, saved: Path) -> None:
    from llama_rs import ModelChangedError

    for change in (lambda: os.truncate(saved, 4096), lambda: saved.write_bytes(bytes(saved.stat().st_size))):
        good = saved.read_bytes()
        session = model.load_session(saved)
        change()
        for _ in range(2):
            with pytest.raises(ModelChangedError, match=r"session\.kv"):
                session.forward([1])
        saved.write_bytes(good)


def test_rename_and_unlink_change_nothing_for_who_has_the_file(model: Model, saved: Path) -> None:
    session = model.load_session(saved)
    saved.rename(saved.with_suffix(".old"))
    session.forward([1])
    saved.with_suffix(".old").unlink()
    session.forward([2])


def test_a_save_that_is_killed_leaves_the_file_as_it_was(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "session.kv"
    with model.session() as session:
        session.forward(list(range(50)))
        session.save(path)
    for i in range(10):
        process = saving_for_ever(model.path, path)
        time.sleep(0.003 * i)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert model.load_session(path).position in (50, 200)


def test_a_save_that_fails_leaves_the_file_as_it_was(model: Model, saved: Path) -> None:
    code = """if True:
        import resource, signal, sys
        from llama_rs import Model
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        session = Model(sys.argv[1], threads=1).session()
        session.forward(list(range(200)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
        try:
            session.save(sys.argv[2])
        except OSError as e:
            print(e)
    """
    out, _ = python(code, model.path, saved).communicate()
    assert "session.kv: File too large" in out
    assert model.load_session(saved).position == 100
    assert os.listdir(saved.parent) == [saved.name]


# Shared


def test_ten_processes_hold_one_copy_of_a_saved_session(smollm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.kv"
    model = Model(smollm2)
    prompt = (model.tokenizer.encode(TEXT) * 80)[:1500]
    with model.session() as session:
        session.forward(prompt)
        session.save(path)
    code = """if True:
        import sys
        from llama_rs import Model
        session = Model(sys.argv[1], threads=1).load_session(sys.argv[2])
        print(session.forward([1, 2, 3]).argmax(), flush=True)
        sys.stdin.read()
    """
    processes = [python(code, smollm2, path) for _ in range(10)]
    try:
        answers = {process.stdout.readline() for process in processes if process.stdout}
        assert len(answers) == 1
        pss = private = 0.0
        for process in processes:
            ours = False
            for line in Path(f"/proc/{process.pid}/smaps").read_text().splitlines():
                name, *rest = line.split()
                if "-" in name:
                    ours = line.endswith(str(path))
                elif ours and name == "Pss:":
                    pss += int(rest[0]) / 1024
                elif ours and name == "Anonymous:":
                    private += int(rest[0]) / 1024
    finally:
        for process in processes:
            process.communicate()
    size = path.stat().st_size / 2**20
    # One copy of the file, and of each process the block it wrote to: 64 positions of 30 x 2 x 3 heads of 64 numbers.
    # (smaps rounds each region of each process down to 1 KiB, which is up to 5 % here.)
    assert 0.9 * size < pss - private < 1.01 * size
    assert private <= 10 * 64 * 2 * 30 * 3 * 64 * 2 / 2**20


# Continued


def test_a_session_computes_only_what_is_new_of_a_prompt(model: Model) -> None:
    session = model.session()
    first = session.generate(TEXT, temperature=0, max_tokens=8)
    prompt = TEXT + first.text + " The wind"
    second = session.generate(prompt, temperature=0, max_tokens=8)
    assert second.timings.cached_tokens > 0.8 * len(model.tokenizer.encode(TEXT))
    assert second.text == model.generate(prompt, temperature=0, max_tokens=8).text
    assert second.prompt_tokens == len(model.tokenizer.encode(prompt))
    same = session.generate(prompt, temperature=0, max_tokens=8)
    assert (same.text, same.timings.cached_tokens) == (second.text, second.prompt_tokens - 1)
    with pytest.raises(TypeError, match="max_token'"):
        session.stream(TEXT, max_token=3)  # type: ignore[call-arg]


def test_an_explicit_session_stays_open_after_an_answer(model: Model) -> None:
    session = model.session()
    stream = session.stream(TEXT, max_tokens=3)
    assert "".join(stream)
    stream.close()
    assert session.position == len(model.tokenizer.encode(TEXT)) + 2


# The end of the context


def test_at_the_end_of_the_context_an_answer_ends(tiny: Path) -> None:
    model = Model(tiny, context_length=64, threads=1)
    done = model.generate([1, 2, 3], ignore_eos=True)
    assert (done.finish_reason, len(done.token_ids)) == ("length", 62)
    with pytest.raises(
        ContextOverflowError, match="65 tokens do not fit in a context of 64: shorten the prompt or raise"
    ):
        model.generate([1] * 65)


@pytest.mark.parametrize("n_keep", [0, 4, -1, 63])
def test_an_endless_answer_goes_on_past_the_context(tiny: Path, n_keep: int) -> None:
    model = Model(tiny, context_length=64, threads=1)
    session = model.session()
    prompt = list(range(10, 20))
    done = session.generate(prompt, max_tokens=200, ignore_eos=True, on_overflow="shift", n_keep=n_keep, seed=1)
    assert (done.finish_reason, len(done.token_ids)) == ("length", 200)
    assert session.position <= 64
    kept = len(prompt) if n_keep == -1 else n_keep
    everything = prompt + done.token_ids
    assert session.tokens[:kept] == everything[:kept]
    assert session.tokens[kept:] == everything[-1 - (session.position - kept) : -1]


def test_bad_overflow_options_are_refused(tiny: Path) -> None:
    model = Model(tiny, context_length=64, threads=1)
    with pytest.raises(ValueError, match="on_overflow is 'error'"):
        model.generate([1], on_overflow="error")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_keep is -2"):
        model.generate([1], n_keep=-2)
    with pytest.raises(ValueError, match="n_keep is 64, it must be less than the context_length of 64"):
        model.generate([1], on_overflow="shift", n_keep=64)


def test_an_endless_answer_of_a_real_model_stays_sane(smollm2: Path) -> None:
    model = Model(smollm2, context_length=128)
    done = model.generate(TEXT, max_tokens=384, ignore_eos=True, on_overflow="shift", temperature=0.7, seed=3)
    assert len(done.token_ids) == 384
    # Were the cache wrong after a shift, the text would be noise to the model itself.
    with model.session(context_length=512) as session:
        logits = session.logits(done.token_ids).astype(np.float64)[:-1]
    scores = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    nll = (scores - logits[np.arange(len(logits)), done.token_ids[1:]]).mean()
    assert nll < 3.0


def test_the_last_tokens_after_a_shift_predict_as_if_computed_anew(smollm2: Path) -> None:
    model = Model(smollm2)
    tokens = model.tokenizer.encode(TEXT * 8)[:160]
    with model.session() as session:
        session.forward(tokens)
        session.shift(0, 0)
        assert session.tokens == tokens
        session.shift(4, 100)
        assert session.tokens == tokens[:4] + tokens[104:]
        shifted = session.forward(tokens[:1]).argmax()
        session.truncate(0)
        assert session.forward(tokens[:4] + tokens[104:] + tokens[:1]).argmax() == shifted
        with pytest.raises(ValueError, match="cannot discard"):
            session.shift(4, 1000)


def test_what_was_shifted_is_not_taken_for_a_prompt(model: Model, tmp_path: Path) -> None:
    with model.session() as session:
        session.forward(list(range(100)))
        session.shift(10, 20)
        session.save(tmp_path / "shifted.kv")
        expected = session.forward([5])
    session = model.load_session(tmp_path / "shifted.kv")
    assert np.array_equal(session.forward([5]), expected)
    done = session.generate([*range(10), *range(30, 100)], max_tokens=1)
    assert done.timings.cached_tokens == 10
    assert session.generate([*range(10), *range(30, 100)], max_tokens=1).timings.cached_tokens == 79


# The prompt cache


def test_a_prompt_cache_is_made_then_used_then_extended(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "prompt.kv"

    def cached(prompt: str | list[int], **options: Any) -> int:
        done = model.generate(prompt, temperature=0, max_tokens=4, prompt_cache=path, **options)
        assert done.text == model.generate(prompt, temperature=0, max_tokens=4).text
        return done.timings.cached_tokens

    n = len(model.tokenizer.encode(TEXT))
    with pytest.raises(FileNotFoundError):
        cached(TEXT, prompt_cache_readonly=True)
    assert cached(TEXT) == 0
    made = path.stat()
    assert cached(TEXT) == n - 1
    assert cached(model.tokenizer.encode(TEXT)[:20]) == 19
    assert cached(TEXT + "The ship", prompt_cache_readonly=True) >= n - 1
    assert path.stat().st_ino == made.st_ino  # not written again
    assert cached(TEXT + "The ship") >= n - 1
    assert path.stat().st_ino != made.st_ino
    assert cached(TEXT + "The ship") == len(model.tokenizer.encode(TEXT + "The ship")) - 1
    assert cached("Something else") == 0
    assert cached(TEXT) == 0


def test_a_prompt_cache_does_not_fix_the_random_numbers(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "prompt.kv"
    answers = {model.generate(TEXT, temperature=2.0, max_tokens=16, prompt_cache=path).text for _ in range(4)}
    assert len(answers) > 1
    seeded = {model.generate(TEXT, seed=1, max_tokens=16, prompt_cache=path).text for _ in range(3)}
    assert len(seeded) == 1


def test_a_prompt_cache_longer_than_the_context_serves_its_start(tiny: Path, tmp_path: Path) -> None:
    Model(tiny).generate(list(range(100)), max_tokens=1, prompt_cache=tmp_path / "prompt.kv")
    done = Model(tiny, context_length=32).generate(
        list(range(30)), max_tokens=1, prompt_cache=tmp_path / "prompt.kv", prompt_cache_readonly=True
    )
    assert done.timings.cached_tokens == 29


def test_the_prompt_cache_on_the_command_line(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompt.kv"
    command = ["generate", "-m", str(tiny), "--temperature", "0", "-n", "4", "--json", TEXT]

    def run(*options: str) -> Any:
        assert main([*command, *options]) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return json.loads(out)

    plain = run()
    made, used = run("--prompt-cache", str(path)), run("--prompt-cache", str(path), "--prompt-cache-ro")
    assert plain["text"] == made["text"] == used["text"]
    assert plain["timings"]["cached_tokens"] == made["timings"]["cached_tokens"] == 0
    assert used["timings"]["cached_tokens"] == used["prompt_tokens"] - 1

    def fail(code: int, *options: str) -> str:
        assert main([*command, *options]) == code
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    assert "--prompt-cache-ro needs" in fail(2, "--prompt-cache-ro")
    path.write_bytes(b"no such thing")
    assert f"{path}: not a saved session" in fail(1, "--prompt-cache", str(path), "--prompt-cache-ro")
    assert path.read_bytes() == b"no such thing"
    assert "do not fit in a context of 8" in fail(1, "-c", "8")
    assert (
        len(run("-c", "60", "--on-overflow", "shift", "--keep", "2", "-n", "100", "--ignore-eos")["token_ids"]) == 100
    )
