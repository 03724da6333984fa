"""The Python API, as its users see it."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import llama_rs
import numpy as np
import pytest
from dtypes import TYPES
from llama_rs import (
    Checkpoint,
    Completion,
    ContextOverflowError,
    LlamaError,
    Model,
    ModelClosedError,
    ModelFileError,
    ModelFormatError,
    ModelNotFoundError,
    SessionBusyError,
    Tokenizer,
    UnsupportedModelError,
)
from tiny_model import write_tiny_model

PROMPT = "The old lighthouse keeper"


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return Model(tiny)


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Model:
    return Model(smollm2, threads=2)


def python(code: str, *arguments: str | Path) -> str:
    """What another Python prints, which has to succeed in silence."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# What a user reads first


def test_the_example_of_the_issue(smollm2: Path) -> None:
    model = Model(smollm2, threads=2, context_length=4096)
    done = model.generate(
        "Once upon a time",
        max_tokens=64,
        temperature=0.8,
        top_k=40,
        top_p=0.95,
        min_p=0.05,
        repeat_penalty=1.0,
        seed=7,
        stop=["\n\n"],
    )
    assert isinstance(done, Completion)
    assert done.text
    assert 0 < len(done.token_ids) <= 64
    assert done.finish_reason in ("stop", "length")
    assert done.prompt_tokens == len(model.tokenizer.encode("Once upon a time"))
    assert done.timings.prompt_tokens == done.prompt_tokens
    assert done.timings.generated_tokens == len(done.token_ids)
    assert done.timings.prompt_seconds > 0
    assert done.timings.generation_seconds > 0
    assert "".join(model.stream("Once upon a time", max_tokens=64, seed=7, stop=["\n\n"])) == done.text
    assert model.logits([1, 2, 3]).shape == (3, model.config.vocab_size)


def test_a_real_model_knows_its_capitals(real: Model) -> None:
    assert "Paris" in real.generate("The capital of France is", max_tokens=8, temperature=0).text


def test_import_brings_neither_numpy_nor_click() -> None:
    code = "import sys, llama_rs; print([m for m in ('numpy', 'click', 'json', 'asyncio') if m in sys.modules])"
    assert python(code) == "[]\n"


def test_numpy_is_imported_when_an_array_is_asked_for(tiny: Path) -> None:
    code = """
import sys
from llama_rs import Model
model = Model(sys.argv[1])
model.generate("the sea", max_tokens=2)
tensor = model.tensors["output_norm.weight"]
tensor.shape, dict(model.metadata), model.config, repr(tensor), tensor.nbytes
print("numpy" in sys.modules)
tensor.numpy()
print("numpy" in sys.modules)
"""
    assert python(code, tiny).split() == ["False", "True"]


def test_the_public_names_are_those_of_the_page() -> None:
    assert sorted(llama_rs.__all__) == llama_rs.__all__
    for name in llama_rs.__all__:
        assert getattr(llama_rs, name).__doc__, name
    from importlib.metadata import version

    assert version("llama_rs") == llama_rs.__version__


def test_paths_may_be_str_or_path_and_need_not_be_unicode(tiny: Path, tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"mod\xff el.gguf")
    strange.symlink_to(tiny)
    assert Model(str(tiny)).path == str(tiny)
    assert Model(strange).config == Model(tiny).config
    assert Tokenizer(strange).vocab_size == Tokenizer(str(tiny)).vocab_size


# Generation


def test_temperature_0_takes_the_most_likely_token(model: Model) -> None:
    done = model.generate(PROMPT, max_tokens=20, temperature=0, ignore_eos=True)
    ids = model.tokenizer.encode(PROMPT)
    end = [i for i in range(model.config.vocab_size) if model.tokenizer.is_end_of_generation(i)]
    with model.session() as session:
        logits = session.forward(ids)
        for expected in done.token_ids:
            logits = logits.copy()
            logits[end] = -np.inf
            assert int(logits.argmax()) == expected
            logits = session.forward([expected])


def test_the_same_seed_gives_the_same_answer(model: Model) -> None:
    def answer(seed: int | None) -> Completion:
        return model.generate(PROMPT, max_tokens=24, temperature=1.5, seed=seed, ignore_eos=True)

    first = answer(3)
    assert answer(3).token_ids == first.token_ids
    assert answer(4).token_ids != first.token_ids
    drawn = answer(None)
    assert answer(drawn.seed).token_ids == drawn.token_ids
    assert len({tuple(answer(None).token_ids) for _ in range(3)}) == 3


def test_the_number_of_threads_changes_no_answer(tiny: Path) -> None:
    answers = {Model(tiny, threads=n).generate(PROMPT, max_tokens=24, temperature=0).text for n in (1, 2, 3)}
    assert len(answers) == 1


def test_a_prompt_of_ids_is_taken_as_it_is(model: Model) -> None:
    ids = model.tokenizer.encode(PROMPT)
    by_text, by_ids = (model.generate(p, max_tokens=8, temperature=0) for p in (PROMPT, ids))
    assert by_text.token_ids == by_ids.token_ids
    assert by_ids.prompt_tokens == len(ids)
    assert model.generate(tuple(ids), max_tokens=8, temperature=0).text == by_text.text
    assert model.generate(np.array(ids), max_tokens=8, temperature=0).text == by_text.text  # type: ignore[arg-type]


def test_special_tokens_are_parsed_unless_not_wanted(model: Model) -> None:
    parsed, not_parsed = (
        model.generate("the <|im_end|>", max_tokens=1, parse_special=parse).prompt_tokens for parse in (True, False)
    )
    assert parsed < not_parsed


def test_finish_reasons(model: Model) -> None:
    endless = model.generate(PROMPT, max_tokens=9, temperature=0, ignore_eos=True)
    assert (endless.finish_reason, len(endless.token_ids)) == ("length", 9)
    stop = endless.text[3:5]
    stopped = model.generate(PROMPT, max_tokens=9, temperature=0, ignore_eos=True, stop=stop)
    assert stopped.finish_reason == "stop"
    assert stopped.text == endless.text[: endless.text.index(stop)]
    full = Model(model.path, context_length=16).generate(PROMPT, temperature=0, ignore_eos=True)
    assert full.finish_reason == "length"
    nothing = model.generate(PROMPT, max_tokens=0)
    assert (nothing.text, nothing.token_ids, nothing.finish_reason) == ("", [], "length")


def test_the_model_ends_an_answer_unless_told_not_to(real: Model) -> None:
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ended = real.generate(question, max_tokens=200, temperature=0)
    assert ended.finish_reason == "stop"
    assert "<|im_end|>" not in ended.text
    assert not any(map(real.tokenizer.is_end_of_generation, ended.token_ids))
    n = len(ended.token_ids)
    goes_on = real.generate(question, max_tokens=n + 5, temperature=0, ignore_eos=True)
    assert len(goes_on.token_ids) == n + 5


def test_a_stream_can_be_watched_and_left(model: Model) -> None:
    stream = model.stream(PROMPT, temperature=0, ignore_eos=True, max_tokens=50)
    assert isinstance(stream, Iterator)
    pieces = [next(stream), next(stream)]
    assert stream.finish_reason is None
    assert stream.prompt_tokens == len(model.tokenizer.encode(PROMPT))
    assert 2 <= len(stream.token_ids) < 50
    assert stream.timings.generated_tokens == len(stream.token_ids)
    assert all(isinstance(piece, str) and piece for piece in pieces)
    stream.close()
    stream.close()
    assert list(stream) == []
    assert stream.token_ids  # what it has can still be asked for


def test_pieces_of_a_stream_are_whole_characters(real: Model) -> None:
    stream = real.stream("Emoji: 😀 😃 😄 日本語 中文", max_tokens=60, temperature=1.2, seed=1, ignore_eos=True)
    text = "".join(stream)
    whole = real.tokenizer.decode(stream.token_ids, skip_special=True)
    assert text == whole
    text.encode()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": -0.1},
        {"top_p": 1.5},
        {"min_p": 2},
        {"repeat_penalty": 0},
        {"repeat_penalty": -1},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"stop": ""},
        {"stop": ["fine", ""]},
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_a_value_error(model: Model, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).split("_")[0]):
        model.generate(PROMPT, max_tokens=1, **options)


def test_prompts_that_cannot_be(model: Model) -> None:
    for empty in ("", ()):
        with pytest.raises(ValueError, match="prompt"):
            model.generate(empty)
    with pytest.raises(ValueError, match=str(model.config.vocab_size)):
        model.generate([model.config.vocab_size])
    with pytest.raises(TypeError):
        model.generate(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a sequence of bool"):
        model.generate([1, True])
    with pytest.raises(TypeError, match="stop has an item of type int, each must be a str"):
        model.generate(PROMPT, stop=["a", 1])  # type: ignore[list-item]


def test_models_that_cannot_be(tiny: Path) -> None:
    zeros: list[dict[str, Any]] = [{"threads": 0}, {"context_length": 0}, {"load": "fetch"}]
    for options in zeros:
        with pytest.raises(ValueError, match=next(iter(options))):
            Model(tiny, **options)


def test_a_context_that_no_memory_holds_is_a_memory_error(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "wide.gguf", "F32", n_heads=8, n_kv_heads=8, head_dim=256, n_layers=3)
    with pytest.raises(MemoryError, match=r"no memory for \d{15,} bytes of keys and values: choose a shorter context"):
        Model(path, context_length=2**32 - 1)
    with pytest.raises(MemoryError), Model(path) as model:
        model.session(context_length=2**32 - 1)


def test_a_prompt_that_does_not_fit_says_so(tiny: Path) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        Model(tiny, context_length=4).generate(PROMPT)
    assert caught.value.context_length == 4
    assert caught.value.tokens is not None
    assert caught.value.tokens > 4
    assert isinstance(caught.value, ValueError)


# Logits and sessions


def test_logits_are_those_of_the_reference(tiny_models: Callable[[str], Path]) -> None:
    import reference

    path = tiny_models("F32")
    ids = list(range(40, 60))
    ours, exact = Model(path).logits(ids), reference.Decoder(path).logits(ids)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, exact, atol=0.02 * float(np.abs(exact).max()))
    assert (ours.argmax(-1) == exact.argmax(-1)).all()


def test_a_session_goes_on_where_it_was(model: Model) -> None:
    ids = model.tokenizer.encode(PROMPT)
    every = model.logits(ids)
    with model.session() as session:
        assert session.position == 0
        one_by_one = np.stack([session.forward([token]) for token in ids])
        assert (session.position, session.tokens) == (len(ids), ids)
        np.testing.assert_allclose(one_by_one, every, atol=0.02 * float(np.abs(every).max()))

        session.truncate(3)
        assert session.tokens == ids[:3]
        np.testing.assert_allclose(session.logits(ids[3:]), every[3:], atol=0.02 * float(np.abs(every).max()))
        for n in (len(ids) + 1, -1):
            with pytest.raises(ValueError, match=r"truncate|n is"):
                session.truncate(n)


def test_tokens_that_do_not_fit_change_nothing(model: Model) -> None:
    with model.session(context_length=8) as session:
        session.forward([1, 2, 3])
        with pytest.raises(ContextOverflowError):
            session.forward([4] * 6)
        with pytest.raises(ValueError, match="token"):
            session.forward([])
        assert session.tokens == [1, 2, 3]
        session.forward([4] * 5)
        assert session.position == session.context_length == 8


# The tokenizer, and what is in the file


def test_tokenizer_of_a_model_and_of_a_file_are_the_same(model: Model, tiny: Path) -> None:
    alone = Tokenizer(tiny)
    ids = alone.encode("the sea <|im_end|> é日")
    assert model.tokenizer.encode("the sea <|im_end|> é日") == ids
    assert alone.decode(ids) == "the sea <|im_end|> é日"
    assert "<|im_end|>" not in alone.decode(ids, skip_special=True)
    assert b"".join(map(alone.token_bytes, alone.encode("é日"))).decode() == "é日"
    assert alone.vocab_size == model.config.vocab_size
    for token in (alone.bos, alone.eos):
        assert token is not None
        assert alone.is_special(token)
    for wrong in (alone.vocab_size, -1):
        with pytest.raises(ValueError, match="not in the vocabulary"):
            alone.decode([wrong])


def test_config_says_what_the_file_says(real: Model) -> None:
    c = real.config
    assert (c.architecture, c.dim, c.hidden_dim, c.n_layers) == ("llama", 576, 1536, 30)
    assert (c.n_heads, c.n_kv_heads, c.head_dim) == (9, 3, 64)
    assert (c.vocab_size, c.context_length, c.rope_theta) == (49152, 8192, 100000.0)
    assert c.norm_eps == pytest.approx(1e-5)


def test_metadata_is_a_mapping(real: Model) -> None:
    metadata = real.metadata
    assert isinstance(metadata, Mapping)
    assert metadata["general.architecture"] == "llama"
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert len(metadata["tokenizer.ggml.tokens"]) == 49152
    assert list(metadata) == [k for k in gguf.GGUFReader(real.path).fields if not k.startswith("GGUF.")]
    assert "nothing" not in metadata
    with pytest.raises(KeyError):
        metadata["nothing"]


@pytest.mark.parametrize("dtype", TYPES)
def test_tensors_are_views_of_the_file_and_dequantize_as_gguf_does(
    tiny_models: Callable[[str], Path], dtype: str
) -> None:
    path = tiny_models(dtype)
    tensor = Model(path).tensors["blk.0.attn_q.weight"]
    (theirs,) = (t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.attn_q.weight")
    assert (tensor.dtype, tensor.nbytes) == (dtype, theirs.n_bytes)
    assert tensor.shape == tuple(theirs.shape[::-1])
    with path.open("rb") as f:
        f.seek(tensor.offset)
        in_file = f.read(tensor.nbytes)
    view = tensor.numpy()
    assert view.tobytes() == in_file
    assert not view.flags.writeable
    assert not view.flags.owndata
    assert np.shares_memory(view, tensor.numpy())
    exact = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
    np.testing.assert_array_equal(tensor.dequantize(), exact)
    assert np.asarray(tensor).tobytes() == in_file
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 0


def test_tensors_are_exported_by_dlpack_without_a_copy(tiny_models: Callable[[str], Path]) -> None:
    for dtype in ("F32", "F16", "Q4_0"):
        with Model(tiny_models(dtype)) as model:
            tensor = model.tensors["blk.0.attn_q.weight"]
            taken = np.from_dlpack(tensor)
            own = tensor.numpy()
            assert (taken.dtype, taken.shape, taken.ctypes.data) == (own.dtype, own.shape, own.ctypes.data)
            assert not taken.flags.writeable
            del own
            with pytest.raises(BufferError, match="1 view of its tensors in use"):
                model.close()
            del taken
            for refused in ({}, {"max_version": (0, 8)}, {"max_version": (1, 0), "copy": True}):
                with pytest.raises(BufferError):
                    tensor.__dlpack__(**refused)
            with pytest.raises(BufferError, match="memory of the processor"):
                tensor.__dlpack__(max_version=(1, 0), dl_device=(2, 0))
            capsule = tensor.__dlpack__(max_version=(1, 1))
            assert "dltensor_versioned" in repr(capsule) and tensor.__dlpack_device__() == (1, 0)
            del capsule  # which nobody took
        assert gc.collect() >= 0


def test_a_checkpoint_has_what_a_model_has(model: Model, tiny: Path) -> None:
    checkpoint = Checkpoint(tiny)
    assert list(checkpoint.tensors) == list(model.tensors)
    assert dict(checkpoint.metadata) == dict(model.metadata)
    assert "no such tensor" not in checkpoint.tensors


def test_things_show_what_they_are(tiny: Path) -> None:
    model = Model(tiny, threads=1)
    shown = [model, model.tensors, model.metadata, model.tensors["output.weight"], model.tokenizer, Checkpoint(tiny)]
    shown.append(model.session())
    for thing in shown:
        assert " object at 0x" not in repr(thing)
    model.close()
    assert "closed" in repr(model)


# The end of a model


def test_a_closed_model_says_so(tiny: Path) -> None:
    model = Model(tiny)
    session = model.session()
    stream = model.stream(PROMPT, ignore_eos=True)
    next(stream)
    model.close()
    model.close()
    uses: list[Callable[[], object]] = [
        lambda: model.generate(PROMPT),
        lambda: model.stream(PROMPT),
        lambda: model.logits([1]),
        lambda: model.session(),
        lambda: model.tokenizer,
        lambda: model.metadata,
        lambda: model.tensors,
        lambda: model.__enter__(),
        lambda: session.__enter__(),
        lambda: session.position,
        lambda: session.forward([1]),
        lambda: next(stream),
    ]
    for use in uses:
        with pytest.raises(ModelClosedError) as caught:
            use()
        assert str(caught.value) == f"{tiny}: the model is closed"
    session = Model(tiny).session()
    session.close()
    session.model.close()
    with pytest.raises(ModelClosedError, match=r"^the session is closed$"):
        session.forward([1])


def test_with_closes_the_model(tiny: Path) -> None:
    with Model(tiny) as model:
        assert model.logits([1]).shape[0] == 1
    with pytest.raises(ModelClosedError):
        model.logits([1])


def test_a_model_with_views_alive_does_not_close(tiny: Path) -> None:
    model = Model(tiny)
    view = model.tensors["output.weight"].numpy()
    with pytest.raises(BufferError, match="view"):
        model.close()
    assert model.logits([1]).shape[0] == 1  # and can be used as before
    assert view.sum() == view.sum()
    del view
    gc.collect()
    model.close()


def test_views_outlive_the_names_of_their_model(tiny: Path) -> None:
    view = Model(tiny).tensors["output.weight"].numpy()
    copy = view.copy()
    gc.collect()
    np.testing.assert_array_equal(view, copy)
    numbers = Model(tiny).tensors["output.weight"].dequantize()
    gc.collect()
    assert np.isfinite(numbers).all()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_closed_model_is_unmapped(tiny: Path) -> None:
    code = """
import sys
from llama_rs import Model
mapped = lambda: sys.argv[1] in open("/proc/self/maps").read()
model = Model(sys.argv[1])
model.generate("the sea", max_tokens=2)
tokenizer, tensors = model.tokenizer, model.tensors
print(mapped())
del tokenizer, tensors
model.close()
print(mapped())
"""
    assert python(code, tiny).split() == ["True", "False"]


# Errors


@pytest.mark.parametrize(
    "error",
    [
        LlamaError("what"),
        ModelFileError("a.gguf: what", "a.gguf", 13),
        ModelNotFoundError("a.gguf: what", "a.gguf", 2),
        ModelFormatError("a.gguf: what", "a.gguf", 24, "name"),
        UnsupportedModelError("a.gguf: what", "a.gguf"),
        ContextOverflowError("what", 5, 4),
        ModelClosedError("what"),
        SessionBusyError("what"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_every_error_is_picklable(error: LlamaError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error) == error.message
    assert vars(copy) == vars(error)
    assert copy.args == error.args
    if isinstance(error, ModelFileError) and isinstance(copy, ModelFileError):
        assert (copy.filename, copy.errno) == (error.filename, error.errno)


def test_errors_are_of_the_kind_that_callers_catch(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Model(tmp_path / "nothing.gguf")
    assert isinstance(caught.value, ModelNotFoundError)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ValueError, match=r"a directory without config\.json") as no_model:
        Model(tmp_path)
    assert isinstance(no_model.value, ModelFormatError)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match="version") as bad:
        Model(tmp_path / "bad.gguf")
    assert isinstance(bad.value, ModelFormatError)


# Threads and signals


def test_two_threads_use_one_model(model: Model) -> None:
    def answer(seed: int) -> list[int]:
        return model.generate(PROMPT, max_tokens=32, temperature=1.0, seed=seed, ignore_eos=True).token_ids

    expected = [answer(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(answer, range(8))) == expected


def test_the_interpreter_is_free_during_work(real: Model) -> None:
    ticks = 0
    stop = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.wait(0.005):
            ticks += 1

    with real.session() as session:
        thread = threading.Thread(target=tick)
        thread.start()
        before = ticks
        session.forward([1] * 400)
        during = ticks - before
        stop.set()
        thread.join()
    assert during > 0  # far less than it could: the cores are at work


def interrupt_soon() -> None:
    """Sends this process a Ctrl-C in a while."""

    def send() -> None:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send).start()


@pytest.fixture
def _ctrl_c_works() -> Iterator[None]:
    """Also if the tests run in the background of a script, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_works")
@pytest.mark.parametrize("work", ["prefill", "logits", "decode", "bench"])
def test_ctrl_c_ends_work_that_would_take_hours(smollm2: Path, work: str) -> None:
    model = Model(smollm2, context_length=1_000_000)
    long = [i % 1000 + 100 for i in range(500_000)]

    def run() -> None:
        if work == "prefill":
            model.generate(long, max_tokens=1)
        elif work == "logits":
            model.logits(long[:10_000])  # minutes, for their logits have to fit in memory
        elif work == "decode":
            model.generate(PROMPT, ignore_eos=True)
        else:
            model.bench(prompt_tokens=4000, max_tokens=0, repetitions=1_000_000)

    interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        run()
    assert "Paris" in model.generate("The capital of France is", max_tokens=8, temperature=0).text  # all is well after


def test_nothing_runs_between_calls(tiny: Path) -> None:
    def ticks() -> dict[str, int]:
        """Of the CPU, by thread: 100 a second."""
        found = {}
        for task in Path("/proc/self/task").iterdir():
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            found[task.name] = int(fields[11]) + int(fields[12])
        return {thread: n for thread, n in found.items() if thread != str(threading.get_native_id())}

    model = Model(tiny, threads=2)
    model.generate(PROMPT, max_tokens=8)
    time.sleep(0.5)  # workers wait awake for a moment
    before = ticks()
    time.sleep(0.5)
    assert ticks() == before


def test_a_fork_may_use_the_model_of_its_parent(tiny: Path) -> None:
    code = """
import os, sys, warnings
from llama_rs import Model
warnings.simplefilter("ignore")  # Python says that threads and fork do not mix
model = Model(sys.argv[1], threads=2)
here = model.generate("the sea", max_tokens=8, temperature=0).text
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, model.generate("the sea", max_tokens=8, temperature=0).text.encode())
    os._exit(0)
os.close(write)
there = b"".join(iter(lambda: os.read(read, 999), b"")).decode()
os.wait()
print(here == there != "")
"""
    assert python(code, tiny) == "True\n"


# Cost


def test_opening_a_model_touches_its_header_and_nothing_else(smollm2: Path) -> None:
    code = """
import sys
from llama_rs import Model

def file_pages():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[2])

before = file_pages()
model = Model(sys.argv[1])
print(file_pages() - before)
"""
    touched = int(python(code, smollm2)) * os.sysconf("SC_PAGESIZE")
    assert touched < smollm2.stat().st_size / 20
