"""Many answers at once: `generate_batch`, and the asynchronous engine. Each answer is the one that comes alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_rs import (
    AsyncEngine,
    AsyncStream,
    ChatCompletion,
    Completion,
    ContextOverflowError,
    EngineFullError,
    Model,
    ModelClosedError,
    SamplingParams,
)

PROMPTS = ["The old lighthouse keeper", "The sea", "The old lighthouse keeper wrote", "A", "The sea gives"]
LONG = [i % 200 + 1 for i in range(600)]


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return Model(tiny, threads=2, context_length=1024)


@pytest.fixture(scope="module")
def slow(smollm2: Path) -> Model:
    """A model that computes for a while."""
    return Model(smollm2, threads=1, context_length=4096)


def same(a: Completion, b: Completion) -> bool:
    return a._replace(timings=b.timings) == b


# Batches


@pytest.mark.parametrize(
    "options", [{"temperature": 0, "seed": 0}, {"seed": 7, "temperature": 1.5}, {"seed": 1, "stop": ["e"]}]
)
@pytest.mark.parametrize("parallel", [1, 3, 16])
def test_each_answer_of_a_batch_is_the_one_that_comes_alone(
    model: Model, options: dict[str, Any], parallel: int
) -> None:
    got = model.generate_batch(PROMPTS, max_tokens=20, parallel=parallel, **options)
    alone = [model.generate(prompt, max_tokens=20, **options) for prompt in PROMPTS]
    assert all(map(same, got, alone))
    assert all(done.timings.generated_tokens == len(done.token_ids) for done in got)


def test_a_batch_may_have_options_for_each_prompt(model: Model) -> None:
    sampling = [SamplingParams(seed=i, max_tokens=i) for i in range(4)]
    prompts: list[str | Sequence[int]] = [[1, 2, 3], (4, 5), "the", "sea"]
    got = model.generate_batch(prompts, sampling=sampling, ignore_eos=True)
    assert [len(done.token_ids) for done in got] == [0, 1, 2, 3]
    alone = [model.generate(p, sampling=s, ignore_eos=True) for p, s in zip(prompts, sampling, strict=True)]
    assert all(map(same, got, alone))
    assert model.generate_batch([]) == []


def test_what_prompts_of_a_batch_have_in_common_is_computed_once(model: Model) -> None:
    prompts = [[*LONG[:200], i] for i in range(5)]
    got = model.generate_batch(prompts, max_tokens=2, temperature=0)
    assert sum(done.timings.cached_tokens for done in got) == 4 * 200
    assert [done.prompt_tokens for done in got] == [201] * 5


def test_log_probabilities_and_forms_are_as_alone(model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "seed": 3, "top_logprobs": 2, "regex": "[ab]{3}"}
    alone = model.generate("the", **options)
    assert alone.logprobs and len(alone.logprobs) == len(alone.token_ids)
    assert same(model.generate_batch(["the", "a"], **options)[0], alone)

    async def main() -> None:
        stream = model.astream("the", **options)
        assert "".join([piece async for piece in stream]) == alone.text
        assert stream.logprobs == alone.logprobs
        assert same(await model.agenerate("the", **options), alone)
        assert model.astream("the").logprobs is None

    asyncio.run(main())


def test_batches_that_cannot_be_are_refused(model: Model) -> None:
    with pytest.raises(TypeError, match="prompts is a str"):
        model.generate_batch("the sea")
    with pytest.raises(ValueError, match="sampling has 1 items for 2 prompts"):
        model.generate_batch(["a", "b"], sampling=[SamplingParams()])
    with pytest.raises(ValueError, match="parallel is 0"):
        model.generate_batch(["a"], parallel=0)
    with pytest.raises(ValueError, match="the prompt is empty"):
        model.generate_batch([[1], []])
    with pytest.raises(ContextOverflowError):
        model.generate_batch(["a", "the " * 2000])
    with pytest.raises(ValueError, match="logits_processor is for answers that are made one by one"):
        model.generate_batch(["a"], logits_processor=lambda *_: None)


def test_a_signal_stops_a_batch(slow: Model) -> None:
    def handler(*_: object) -> None:
        raise InterruptedError("asked to")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(InterruptedError, match="asked to"):
            slow.generate_batch([LONG, LONG[1:]], max_tokens=2000, ignore_eos=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Streams


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_many_at_once_get_what_they_get_alone(model: Model) -> None:
    async def main() -> list[Completion]:
        async def one(i: int) -> Completion:
            if i % 3 == 0:
                return await model.agenerate(PROMPTS[i % 5], max_tokens=20, seed=i)
            stream = model.astream(PROMPTS[i % 5], max_tokens=20, seed=i)
            pieces = [piece async for piece in stream]
            assert "" not in pieces and "".join(pieces) == stream.text
            assert stream.finish_reason is not None and stream.seed == i
            return Completion(
                stream.text,
                stream.token_ids,
                stream.finish_reason,
                stream.timings.prompt_tokens,
                stream.timings,
                stream.seed,
            )

        return await asyncio.gather(*map(one, range(30)))

    for _ in range(2):  # in one event loop, and in another
        for i, got in enumerate(asyncio.run(main())):
            assert same(got, model.generate(PROMPTS[i % 5], max_tokens=20, seed=i))


def test_threads_have_event_loops_of_their_own(model: Model) -> None:
    expected = model.generate("The sea", max_tokens=30, seed=3)
    engine = AsyncEngine(model)
    done: list[Completion] = []

    def run() -> None:
        done.extend(asyncio.run(several()))

    async def several() -> list[Completion]:
        return await asyncio.gather(*(engine.generate("The sea", max_tokens=30, seed=3) for _ in range(5)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 20 and all(same(got, expected) for got in done)
    engine.close()


def test_the_event_loop_goes_on_while_an_answer_is_made(slow: Model) -> None:
    async def main() -> None:
        turns = 0
        stream = slow.astream(LONG, max_tokens=5, ignore_eos=True)
        first = asyncio.ensure_future(anext(stream))
        while not first.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns > 100  # a prompt of 600 tokens takes thousands of them
        await stream.aclose()

    asyncio.run(main())


def test_cancelling_a_task_frees_what_it_uses(slow: Model) -> None:
    async def main() -> None:
        async with AsyncEngine(slow, parallel=2) as engine:
            endless = [
                asyncio.ensure_future(engine.generate(LONG[i:], max_tokens=3000, ignore_eos=True)) for i in range(3)
            ]
            await until(lambda: engine.stats.running > 0 and engine.stats.waiting > 0)
            for task in endless:
                task.cancel()
            results = await asyncio.gather(*endless, return_exceptions=True)
            assert [type(r) for r in results] == [asyncio.CancelledError] * 3
            await until(lambda: engine.stats.running == engine.stats.waiting == 0)
            assert engine.stats.kv_used == 0
            # Who stops reading lets go as well.
            async with engine.stream("The sea", max_tokens=3000, ignore_eos=True) as stream:
                async for _ in stream:
                    break
            await until(lambda: engine.stats.running == 0)
            left = engine.stream("The sea", max_tokens=3000, ignore_eos=True)
            await anext(left)
            del left
            await until(lambda: engine.stats.running == 0)
            await until(lambda: not engine._bell()._waiting)
            assert await engine.generate("The sea", max_tokens=3, temperature=0)

    asyncio.run(main())


def test_a_full_engine_says_so(slow: Model) -> None:
    async def main() -> None:
        async with AsyncEngine(slow, parallel=1, max_queue=1) as engine:
            first = engine.stream(LONG, max_tokens=3000, ignore_eos=True)
            await anext(first)
            second = asyncio.ensure_future(engine.generate("The sea", max_tokens=1))
            await until(lambda: engine.stats.waiting == 1)
            with pytest.raises(EngineFullError, match="too many requests wait") as e:
                await engine.generate("The sea", max_tokens=1)
            assert e.value.retry_after is not None and e.value.retry_after > 0
            await first.aclose()
            assert len((await second).token_ids) == 1

    asyncio.run(main())


def test_what_takes_too_long_is_a_timeout(slow: Model) -> None:
    async def main() -> None:
        async with AsyncEngine(slow) as engine:
            stream = engine.stream(LONG, max_tokens=3000, ignore_eos=True, timeout=0.3)
            with pytest.raises(TimeoutError, match=r"not complete after 0\.3 s"):
                async for _ in stream:
                    pass
            await until(lambda: engine.stats.running == 0)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["engine", "model"])
def test_closing_ends_what_is_being_made(smollm2: Path, how: str) -> None:
    model = Model(smollm2, threads=1)

    async def main() -> None:
        engine = AsyncEngine(model)
        stream = engine.stream(LONG, max_tokens=3000, ignore_eos=True)
        await anext(stream)
        (engine if how == "engine" else model).close()
        with pytest.raises(ModelClosedError, match=f"the {how} is closed"):
            async for _ in stream:
                pass
        assert engine.closed
        with pytest.raises(ModelClosedError):
            await engine.generate("The sea")

    asyncio.run(main())


def weather(place: str) -> str:
    """The weather at a place."""
    return place


QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("What is the capital of France?", {}),
    ("Name a colour.", {"top_logprobs": 2}),
    ("The weather in Rome?", {"tools": [weather], "tool_choice": "required", "max_tokens": 40}),
    ("Is it warm?", {"response_format": {"type": "json_object"}, "stop": ["}"], "max_tokens": 12}),
]


def test_conversations_are_answered_as_alone(slow: Model) -> None:
    async def main() -> list[ChatCompletion]:
        async with AsyncEngine(slow) as engine:
            return await asyncio.gather(
                *(engine.chat(q, **{"max_tokens": 6, "seed": 1, **more}) for q, more in QUESTIONS)
            )

    got = asyncio.run(main())
    for done, (question, more) in zip(got, QUESTIONS, strict=True):
        alone = slow.chat(question, **{"max_tokens": 6, "seed": 1, **more})
        assert done._replace(timings=alone.timings, usage=alone.usage) == alone
        assert done.usage.total_tokens == alone.usage.total_tokens
    assert got[1].logprobs
    assert [call.name for call in got[2].tool_calls] == ["weather"]
    assert got[2].finish_reason == "tool_calls"
    assert got[2].message["tool_calls"][0]["function"]["name"] == "weather"


def test_a_conversation_comes_in_pieces(slow: Model) -> None:
    question, more = QUESTIONS[2]

    async def main() -> None:
        stream = slow.astream_chat(question, seed=1, **more)
        assert (stream.content, stream.finish_reason, stream.seed, stream.forgotten) == ("", None, None, 0)
        assert stream.usage.total_tokens == 0
        deltas = [delta async for delta in stream]
        whole = await slow.achat(question, seed=1, **more)
        parts = [delta.tool_call for delta in deltas if delta.tool_call]
        assert parts[0].id == whole.tool_calls[0].id
        assert "".join(part.arguments for part in parts) == whole.tool_calls[0].arguments
        assert (stream.tool_calls, stream.finish_reason, stream.seed) == (whole.tool_calls, "tool_calls", 1)
        assert stream.message == whole.message
        # Whoever leaves early ends it.
        async with slow.astream_chat("Count.", max_tokens=2000, ignore_eos=True) as stream:
            async for _ in stream:
                break
        assert [delta async for delta in stream] == []
        assert stream.content
        with pytest.raises(TimeoutError):
            await AsyncEngine(slow).chat("Count.", max_tokens=4000, ignore_eos=True, timeout=0.2)

    asyncio.run(main())


def test_a_long_conversation_loses_its_oldest_messages(slow: Model) -> None:
    messages: list[Any] = [{"role": "system", "content": "You tell stories."}]
    for i in range(4):
        messages += [
            {"role": "user", "content": f"Part {i}"},
            {"role": "assistant", "content": "The sea was calm. " * 6},
        ]
    messages.append({"role": "user", "content": "A very long story, please."})
    options: dict[str, Any] = {"ignore_eos": True, "seed": 1}
    small = Model(slow.path, threads=1, context_length=288)

    async def main() -> None:
        stream = small.astream_chat(messages, on_overflow="shift", max_tokens=160, **options)
        text = "".join([delta.content async for delta in stream])
        assert (len(stream.token_ids), stream.finish_reason) == (160, "length")
        assert stream.forgotten > 0
        assert text.strip() == stream.text.strip()
        assert stream.timings.generated_tokens == 160
        assert (await small.achat(messages, **options)).finish_reason == "length"

    asyncio.run(main())


def test_what_cannot_be_asked_of_an_engine_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="speculative is for answers that are made one by one"):
        model.astream_chat("a", speculative="prompt-lookup")
    with pytest.raises(ValueError, match="tool_choice is 'required', and there are no tools"):
        model.astream_chat("a", tool_choice="required")
    with pytest.raises(ValueError, match="priority is 101"):
        AsyncEngine(model).stream_chat("a", priority=101)
    with pytest.raises(ContextOverflowError):
        asyncio.run(model.achat("word " * 3000))


def test_arguments_are_checked(model: Model) -> None:
    for options in ({"parallel": 0}, {"max_queue": -1}, {"kv_memory": 0}, {"step_ms": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            AsyncEngine(model, **options)
    with pytest.raises(ValueError, match="priority is 101"):
        AsyncEngine(model).stream("a", priority=101)
    with pytest.raises(ValueError, match="top_p"):
        model.astream("a", top_p=2)
    stream: AsyncStream = model.astream("")
    with pytest.raises(ValueError, match="the prompt is empty"):
        asyncio.run(anext(stream))


# Processes


def test_a_forked_child_has_an_engine_of_its_own(tiny: Path) -> None:
    code = """
import asyncio, os, sys
from llama_rs import Model
model = Model(sys.argv[1])
ask = lambda: asyncio.run(model.agenerate("The sea", max_tokens=10, temperature=0)).text
text = ask()
pid = os.fork()
if not pid:
    os._exit(0 if ask() == text else 1)
assert os.waitpid(pid, 0)[1] == 0 and ask() == text
print("same")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, tiny], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "same\n")


def test_python_ends_while_answers_are_made(smollm2: Path) -> None:
    code = """
import asyncio, sys, threading
from llama_rs import Model
model = Model(sys.argv[1], threads=2)
async def main(started):
    stream = model.astream("The sea", max_tokens=3000, ignore_eos=True)
    async for _ in stream:
        started.set()
started = threading.Event()
threading.Thread(target=lambda: asyncio.run(main(started)), daemon=True).start()
started.wait()
print("over")
"""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code, smollm2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "over\n")
