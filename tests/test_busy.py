"""Who uses a session while it is in use is told so at once: threads, signal handlers, forks, and the end of Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from llama_rs import Model, ModelClosedError, SamplingParams, Session, SessionBusyError, Stream

PROMPT = "The old lighthouse keeper"
LONG = [i % 200 + 1 for i in range(600)]


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return Model(tiny, threads=1, context_length=4096)


@pytest.fixture(scope="module")
def slow(smollm2: Path) -> Model:
    """A model that computes for a while."""
    return Model(smollm2, threads=1, context_length=4096)


def in_a_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Starts it; what it gave or raised is in the list at the end."""
    done: list[object] = []

    def run() -> None:
        while not done:
            try:
                done.append(work())
            except SessionBusyError:
                pass  # it met wait_until_busy
            except BaseException as e:
                done.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, done


def wait_until_busy(session: Session) -> None:
    while True:
        time.sleep(0.001)
        try:
            session.tokens  # noqa: B018
        except SessionBusyError:
            return


# Threads


def test_a_session_in_use_by_another_thread_says_so_at_once(slow: Model) -> None:
    session = slow.session()
    thread, done = in_a_thread(lambda: session.logits(LONG).shape)
    wait_until_busy(session)
    uses: list[Callable[[], object]] = [
        lambda: session.forward([1]),
        lambda: session.logits([1]),
        lambda: session.truncate(0),
        lambda: session.shift(0, 1),
        lambda: session.tokens,
        lambda: session.save("/tmp/never"),
        lambda: session.generate(PROMPT, max_tokens=1),
    ]
    for use in uses:
        with pytest.raises(SessionBusyError, match="in use by another call"):
            use()
    assert session.position == 0
    assert session.context_length == 4096
    assert thread.is_alive(), "the others did not wait"
    thread.join()
    assert done == [(len(LONG), slow.config.vocab_size)]
    assert session.position == len(LONG)
    assert session.tokens == LONG


def test_threads_on_one_session_get_their_own_answers_or_an_error(model: Model) -> None:
    prompts = ["the old lighthouse", "she said that", "in the morning", "there was a time"]
    options = {"max_tokens": 20, "temperature": 0.0, "ignore_eos": True}
    expected = {p: model.generate(p, **options).token_ids for p in prompts}  # type: ignore[arg-type]
    session, seen = model.session(), Counter[str]()
    barrier = threading.Barrier(len(prompts))

    def work(prompt: str) -> None:
        barrier.wait()
        for _ in range(30):
            try:
                right = session.generate(prompt, **options).token_ids == expected[prompt]  # type: ignore[arg-type]
                seen["right" if right else "wrong"] += 1
            except SessionBusyError:
                seen["busy"] += 1

    threads = [threading.Thread(target=work, args=(p,)) for p in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen.keys() <= {"right", "busy"}
    assert seen["right"] > 0


def test_an_answer_is_one_use_of_its_session_from_the_first_piece_to_the_last(model: Model) -> None:
    """Another thread that wants the session between two pieces is told, and the answer is whole."""
    options = SamplingParams(max_tokens=300, temperature=0, ignore_eos=True)
    expected = model.generate(PROMPT, sampling=options)
    session = model.session()
    done: list[object] = []

    def answer() -> None:
        while not done:
            try:
                done.append(session.generate(PROMPT, sampling=options).text)
            except SessionBusyError as e:  # it may be in use at the first piece, and at no other
                if "since the last piece" in str(e):
                    done.append(e)

    thread = threading.Thread(target=answer)
    thread.start()
    refused = 0
    while not done:
        try:
            session.truncate(0)
        except SessionBusyError:
            refused += 1
        time.sleep(0)
    thread.join()
    assert done == [expected.text]
    assert refused > 0


def test_what_a_stream_has_so_far_can_be_asked_from_another_thread(slow: Model) -> None:
    stream = slow.stream(LONG, max_tokens=3, ignore_eos=True)
    thread, done = in_a_thread(lambda: list(stream))
    wait_until_busy(stream._session)
    assert stream.token_ids == []
    assert stream.finish_reason is None
    assert stream.timings.prompt_tokens == len(LONG)
    assert stream.text == ""
    with pytest.raises(SessionBusyError):
        next(stream)
    assert thread.is_alive()
    thread.join()
    (pieces,) = done
    assert isinstance(pieces, list)
    assert "".join(pieces) == stream.text != ""
    assert len(stream.token_ids) == 3


# A stream and its session


def test_a_stream_that_no_longer_fits_its_session_says_so(model: Model) -> None:
    options = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
    alone = model.generate(PROMPT, **options).text  # type: ignore[arg-type]

    def begun(session: Session) -> Stream:
        stream = session.stream(PROMPT, **options)  # type: ignore[arg-type]
        next(stream)
        return stream

    def another_stream(session: Session) -> None:
        next(session.stream("def fibonacci(n):", **options))  # type: ignore[arg-type]

    def same_length(session: Session) -> None:
        n = session.position
        session.truncate(n - 1)
        session.forward([7])

    changes: list[Callable[[Session], object]] = [
        another_stream,
        same_length,
        lambda session: session.truncate(0),
        lambda session: session.forward([1, 2, 3]),
        lambda session: session.logits([1]),
        lambda session: session.shift(0, 1),
        lambda session: session.generate("something else", max_tokens=1),
    ]
    for change in changes:
        with model.session() as session:
            stream = begun(session)
            change(session)
            with pytest.raises(SessionBusyError, match="used for something else since"):
                next(stream)
    harmless: list[Callable[[Session], object]] = [
        lambda session: session.tokens,
        lambda session: session.position,
        repr,
    ]
    for look in harmless:
        with model.session() as session:
            stream = begun(session)
            look(session)
            list(stream)
            assert stream.text == alone


def test_a_stream_may_be_begun_before_the_session_is_used_for_others(model: Model) -> None:
    with model.session() as session:
        stream = session.stream(PROMPT, max_tokens=5, temperature=0)
        session.generate("something else", max_tokens=3)
        assert "".join(stream) == model.generate(PROMPT, max_tokens=5, temperature=0).text


def test_a_stream_is_a_context_manager_and_keeps_its_text(model: Model) -> None:
    with model.stream(PROMPT, max_tokens=8, temperature=0, ignore_eos=True) as stream:
        first = next(stream)
        assert stream.text == first
        rest = list(stream)
    assert stream.text == first + "".join(rest)
    with model.stream(PROMPT, ignore_eos=True) as stream:
        next(stream)
    assert list(stream) == []
    assert stream._session.closed


# Closing


@pytest.mark.parametrize("how", ["session", "model", "handler"])
@pytest.mark.parametrize("work", ["generate", "stream", "forward", "bench"])
def test_closing_while_it_works_is_a_model_closed_error(smollm2: Path, how: str, work: str) -> None:
    model = Model(smollm2, threads=1, context_length=4096)
    session = model.session()

    def run() -> object:
        if work == "generate":
            return session.generate(PROMPT, ignore_eos=True)
        if work == "stream":
            return list(session.stream(PROMPT, ignore_eos=True))
        if work == "forward":
            return session.forward([1] * 4000)
        return session._handle.bench(4000, True, 3)

    if how == "handler":
        before = signal.signal(signal.SIGALRM, lambda *_: session.close())
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(ModelClosedError):
                run()
        finally:
            signal.signal(signal.SIGALRM, before)
        return
    thread, done = in_a_thread(run)
    wait_until_busy(session)
    if how == "session":
        session.close()
    else:
        model.close()
    thread.join()
    assert [type(e) for e in done] == [ModelClosedError]
    assert session.closed
    with pytest.raises(ModelClosedError):
        session.position  # noqa: B018


# Signals


@pytest.fixture
def in_a_handler() -> Iterator[Callable[[Callable[[], object]], list[object]]]:
    """Has a function called by a signal handler, soon; what it gave or raised is in the list then."""
    before = signal.getsignal(signal.SIGALRM)

    def start(work: Callable[[], object]) -> list[object]:
        done: list[object] = []

        def handler(*_: object) -> None:
            try:
                done.append(work())
            except Exception as e:
                done.append(e)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return done

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "what", ["position", "tokens", "token_ids", "timings", "finish_reason", "next", "forward", "other", "other thread"]
)
def test_a_signal_handler_may_touch_anything(
    smollm2: Path, in_a_handler: Callable[[Callable[[], object]], list[object]], threads: int, what: str
) -> None:
    model = Model(smollm2, threads=threads, context_length=4096)
    session, other = model.session(), model.session()
    stream = session.stream(LONG, max_tokens=2, ignore_eos=True)

    def in_another_thread() -> object:
        thread, done = in_a_thread(lambda: other.forward([1, 2, 3]).shape)
        thread.join()
        return done[0]

    touch: dict[str, Callable[[], object]] = {
        "position": lambda: session.position,
        "tokens": lambda: session.tokens,
        "token_ids": lambda: stream.token_ids,
        "timings": lambda: stream.timings.prompt_tokens,
        "finish_reason": lambda: stream.finish_reason,
        "next": lambda: next(stream),
        "forward": lambda: session.forward([1]),
        "other": lambda: other.forward([1, 2, 3]).shape,
        "other thread": in_another_thread,
    }
    done = in_a_handler(touch[what])
    text = "".join(stream)
    assert text == model.generate(LONG, max_tokens=2, ignore_eos=True, seed=stream.seed).text
    expected: dict[str, object] = {
        "position": 0,
        "token_ids": [],
        "timings": len(LONG),
        "finish_reason": None,
        "other": (model.config.vocab_size,),
        "other thread": (model.config.vocab_size,),
    }
    (found,) = done
    if what in expected:
        assert found == expected[what]
    else:
        assert isinstance(found, SessionBusyError)


def test_a_piece_that_was_computed_when_a_handler_raised_is_not_lost(slow: Model) -> None:
    expected = slow.generate(PROMPT, max_tokens=30, temperature=0, ignore_eos=True).text

    class Raised(Exception):
        pass

    def handler(*_: object) -> None:
        raise Raised

    before = signal.signal(signal.SIGALRM, handler)
    stream = slow.stream(PROMPT, max_tokens=30, temperature=0, ignore_eos=True)
    raised = 0
    try:
        while stream.finish_reason is None:
            signal.setitimer(signal.ITIMER_REAL, 0.023)
            try:
                for _ in stream:
                    pass
            except Raised:
                raised += 1
            if raised > 5:
                signal.setitimer(signal.ITIMER_REAL, 0)
                list(stream)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stream.text == expected


# Forks


def test_a_stream_that_was_computing_at_a_fork_says_so_in_the_child(slow: Model) -> None:
    session = slow.session()
    stream = session.stream(LONG, max_tokens=3)
    thread, _ = in_a_thread(lambda: list(stream))
    wait_until_busy(session)
    uses: list[Callable[[], object]] = [
        lambda: next(stream),
        lambda: stream.token_ids,
        lambda: stream.timings,
        lambda: stream.finish_reason,
        lambda: session.position,
        lambda: session.tokens,
        lambda: session.forward([1]),
    ]
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python says that threads and fork do not mix
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        wrong = 0
        for use in uses:
            try:
                use()
                wrong += 1
            except ValueError as e:
                wrong += "in use when this process was forked" not in str(e)
            except BaseException:
                wrong += 1
        try:
            session.close()  # nor does that hang
        except BaseException:
            wrong += 1
        os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()


# The end of the interpreter


AT_THE_END = """
import sys, threading, time
from llama_rs import Model
model = Model(sys.argv[1], threads=int(sys.argv[2]), context_length=4096)
n, how = int(sys.argv[3]), sys.argv[4]
begun = threading.Barrier(n + 1)

def work():
    session = model.session()
    begun.wait()
    while True:
        if how == "generate":
            session.generate("the sea", max_tokens=50, ignore_eos=True)
        elif how == "stream":
            for _ in session.stream("the sea", max_tokens=50, ignore_eos=True):
                pass
        elif how == "errors":
            try:
                session.forward([1] * 9999)
            except ValueError:
                pass
        else:
            model.tokenizer.encode("the sea " * 2000)

for _ in range(n):
    threading.Thread(target=work, daemon=True).start()
begun.wait()
time.sleep(float(sys.argv[5]))
print("end")
"""


@pytest.mark.parametrize("how", ["generate", "stream", "errors", "encode"])
def test_a_daemon_thread_that_computes_when_python_ends_does_no_harm(tiny: Path, how: str) -> None:
    for i in range(12):
        arguments = [str(tiny), str(1 + i % 2), str(1 + i % 4), how, str(i * 0.004)]
        done = subprocess.run(
            [sys.executable, "-c", AT_THE_END, *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", ""), arguments


def test_functions_at_exit_may_compute_and_wait_for_threads_that_do(tiny: Path) -> None:
    code = """
import atexit, sys, threading
ended = threading.Event()
thread = None

def early():  # registered before, so called after the package's own
    print(len(model.generate("the sea", max_tokens=3, ignore_eos=True).token_ids))
    thread.join()
    print("joined")

atexit.register(early)
from llama_rs import Model
model = Model(sys.argv[1], threads=2, context_length=4096)
atexit.register(lambda: print(len(model.generate("the sea", max_tokens=2, ignore_eos=True).token_ids)))

def work():
    while True:
        model.generate("the sea", max_tokens=50, ignore_eos=True)

thread = threading.Thread(target=work, daemon=True)
thread.start()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n3\njoined\n", "")
