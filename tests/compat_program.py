"""A program written for llama-cpp-python, as a list of things that people do with it.

``python tests/compat_program.py llama_cpp MODEL.gguf`` prints what each gives as JSON: with the real package that is
``tests/data/llama_cpp_python.json``, which ``test_compat.py`` holds ``llama_rs.compat`` against.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

PROMPT = "The quick brown fox"
MESSAGES = [{"role": "user", "content": "Say hello to my friend."}]
CONVERSATION = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "And Spain?"},
]
FORMATS = ("chatml", "qwen", "llama-2", "llama-3", "mistral-instruct", "gemma", "zephyr", "vicuna")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
}


def program(package: Any, model: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is done, by name."""
    options = {"verbose": False, "n_ctx": 512, "n_threads": 1, "n_threads_batch": 1}
    llm = package.Llama(model, **options)
    with_logits = package.Llama(model, logits_all=True, **options)
    ids = llm.tokenize(PROMPT.encode())

    yield "completion", lambda: llm(PROMPT, temperature=0)
    yield "echo", lambda: llm(PROMPT, temperature=0, echo=True, max_tokens=5)
    yield "of ids", lambda: llm(ids, temperature=0, max_tokens=5)
    yield "stop", lambda: llm(PROMPT, temperature=0, max_tokens=40, stop=["bear"])
    yield "stream", lambda: list(llm(PROMPT, temperature=0, max_tokens=6, stream=True))
    yield "name of the model", lambda: llm(PROMPT, temperature=0, max_tokens=3, model="gpt")
    penalties = {"repeat_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.1}
    yield "penalties", lambda: llm("a b a b a b", temperature=0, max_tokens=20, **penalties)
    yield "bias", lambda: llm(PROMPT, temperature=0, max_tokens=3, logit_bias={198: 100.0})
    yield "logprobs", lambda: with_logits(PROMPT, temperature=0, max_tokens=3, logprobs=2)
    yield (
        "logprobs in a stream",
        lambda: list(with_logits(PROMPT, temperature=0, max_tokens=3, logprobs=2, stream=True)),
    )

    yield "chat", lambda: llm.create_chat_completion(MESSAGES, temperature=0, max_tokens=5)
    yield (
        "chat in a stream",
        lambda: list(llm.create_chat_completion(MESSAGES, temperature=0, max_tokens=4, stream=True)),
    )
    yield (
        "chat with logprobs",
        lambda: with_logits.create_chat_completion(
            MESSAGES, temperature=0, max_tokens=2, logprobs=True, top_logprobs=2
        ),
    )
    for name in FORMATS:
        yield f"prompt of {name}", partial(prompt_of, package.Llama(model, chat_format=name, **options))

    yield (
        "tokenize",
        lambda: [
            llm.tokenize("Hello <|im_start|> wé".encode()),
            llm.tokenize(b"Hello <|im_start|>", special=True),
            llm.tokenize(b"x", add_bos=False),
        ],
    )
    yield (
        "detokenize",
        lambda: [
            llm.detokenize([1, 9690, 2]),
            llm.detokenize([1, 9690, 2], special=True),
            llm.detokenize([19556, 216]),
        ],
    )
    yield "metadata", lambda: dict(sorted((k, v) for k, v in llm.metadata.items() if k != "tokenizer.chat_template"))
    yield (
        "numbers",
        lambda: [llm.n_ctx(), llm.n_vocab(), llm.token_bos(), llm.token_eos(), llm.token_nl(), llm.n_embd()],
    )
    yield "generate", lambda: [token for token, _ in zip(llm.generate(ids, temp=0), range(5), strict=False)]
    yield "eval and sample", lambda: evaluated(llm, ids)
    yield "state", lambda: state(llm, ids)
    yield "cache", lambda: cached(package, llm)
    yield "processor", lambda: processed(package, llm)
    criteria = package.StoppingCriteriaList([lambda ids, _: len(ids) >= 7])
    yield "criterion", lambda: llm(PROMPT, temperature=0, max_tokens=10, stopping_criteria=criteria)

    grammar = package.LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
    yield "grammar", lambda: llm("The sea is salt:", temperature=0, max_tokens=5, grammar=grammar)
    as_json = {"type": "json_object", "schema": SCHEMA}
    yield "json", lambda: parsed(llm.create_chat_completion(CONVERSATION, temperature=0, response_format=as_json))
    tool = {"type": "function", "function": {"name": "person", "description": "d", "parameters": SCHEMA}}
    chosen: dict[str, Any] = {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "person"}}}
    yield "tool", lambda: parsed(llm.create_chat_completion(CONVERSATION, temperature=0, **chosen))
    yield (
        "tool in a stream",
        lambda: parsed_stream(llm.create_chat_completion(CONVERSATION, temperature=0, stream=True, **chosen)),
    )
    function: dict[str, Any] = {"functions": [tool["function"]], "function_call": {"name": "person"}}
    yield "function", lambda: parsed(llm.create_chat_completion(CONVERSATION, temperature=0, **function))

    calling = package.Llama(model, chat_format="chatml-function-calling", **options)
    yield (
        "functions: none",
        lambda: calling.create_chat_completion(
            CONVERSATION, temperature=0, max_tokens=5, tools=[tool], tool_choice="none"
        ),
    )
    yield "functions: one", lambda: parsed(calling.create_chat_completion(CONVERSATION, temperature=0, **chosen))
    yield (
        "functions: one in a stream",
        lambda: parsed_stream(calling.create_chat_completion(CONVERSATION, temperature=0, stream=True, **chosen)),
    )
    unknown: dict[str, Any] = {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}}}
    yield "functions: no such", lambda: calling.create_chat_completion(CONVERSATION, **unknown)

    pooled = package.Llama(model, embedding=True, pooling_type=1, **options)
    yield "embed", lambda: [pooled.embed("hello world", normalize=True)[:8], len(pooled.embed(["a", "b"]))]
    yield "embedding", lambda: embedded(pooled)
    of_tokens = package.Llama(model, embedding=True, **options)
    yield "vectors of tokens", lambda: [[len(v), len(v[0])] for v in of_tokens.embed(["hello world", "b c d"])]

    yield "too long", lambda: llm("a " * 600)
    yield "no embedding", lambda: llm.embed("x")
    yield "no file", lambda: package.Llama("/nope", **options)
    named = {"type": "function", "function": {"name": "f"}}
    yield "no tool", lambda: llm.create_chat_completion(MESSAGES, tools=[], tool_choice=named)


def prompt_of(llm: Any) -> str:
    """The prompt that a format makes of a conversation."""
    seen = []
    complete = llm.create_completion

    def completed(**asked: Any) -> Any:
        seen.append(asked["prompt"])
        return complete(**asked)

    llm.create_completion = completed
    llm.create_chat_completion(CONVERSATION, temperature=0, max_tokens=1)
    text: bytes = llm.detokenize(seen[0], special=True)
    return text.decode()


def evaluated(llm: Any, ids: list[int]) -> list[Any]:
    llm.reset()
    llm.eval(ids)
    before, token = llm.n_tokens, llm.sample(temp=0)
    llm.eval([token])
    return [before, token, llm.n_tokens, list(llm.eval_tokens), llm.sample(temp=0)]


def state(llm: Any, ids: list[int]) -> list[Any]:
    llm.reset()
    llm.eval(ids)
    saved = llm.save_state()
    llm.eval(llm.tokenize(b" and the dog"))
    after = llm.n_tokens
    llm.load_state(saved)
    return [saved.n_tokens, after, llm.n_tokens, llm(PROMPT, temperature=0, max_tokens=5)]


def cached(package: Any, llm: Any) -> list[Any]:
    llm.set_cache(package.LlamaRAMCache())
    answers = [llm(prompt, temperature=0, max_tokens=3) for prompt in (PROMPT, "Other words", PROMPT)]
    llm.set_cache(None)
    return answers


def processed(package: Any, llm: Any) -> list[Any]:
    calls = []

    def newlines(ids: Any, scores: Any) -> Any:
        calls.append([len(ids), list(scores.shape), str(ids.dtype), str(scores.dtype)])
        scores[198] = 1e4
        return scores

    processors = package.LogitsProcessorList([newlines])
    answer = llm(PROMPT, temperature=0, max_tokens=3, logits_processor=processors)
    longer = package.LogitsProcessorList([package.llama.MinTokensLogitsProcessor(2, llm.token_eos())])
    return [calls, answer, llm(PROMPT, temperature=0, max_tokens=4, logits_processor=longer)]


def parsed(response: Any) -> Any:
    """An answer in JSON, as the types of its values: the words and the spaces between them are the model's."""
    del response["usage"]
    message = response["choices"][0]["message"]
    parts = [message, message.get("function_call"), *(call["function"] for call in message.get("tool_calls", ()))]
    for part in filter(None, parts):
        for name in ("content", "arguments"):
            if part.get(name) is not None:
                part[name] = {k: type(v).__name__ for k, v in json.loads(part[name]).items()}
    for call in message.get("tool_calls", ()):
        call["id"] = call["id"].split("cmpl-")[0]
    return response


def parsed_stream(chunks: Iterator[Any]) -> Any:
    """The same of a stream: its first chunks, its last, and what all of them say together."""
    every = list(chunks)
    said = [c["choices"][0]["delta"]["tool_calls"] for c in every]
    text = "".join(calls[0]["function"]["arguments"] for calls in said if calls)
    for calls in filter(None, said):
        calls[0]["id"] = calls[0]["id"].split("cmpl-")[0]
        calls[0]["function"]["arguments"] = ""
    for chunk in every:
        called = chunk["choices"][0]["delta"]["function_call"]
        if called:
            called["arguments"] = ""
    return [every[0], every[1], every[-1], {k: type(v).__name__ for k, v in json.loads(text).items()}]


def embedded(llm: Any) -> Any:
    response = llm.create_embedding(["a", "b c"])
    for item in response["data"]:
        item["embedding"] = len(item["embedding"])
    return response


def results(package: Any, model: str) -> dict[str, Any]:
    """What each gives, without what differs from run to run."""
    found = {}
    for name, do in program(package, model):
        try:
            found[name] = settled(do(), model)
        except (ValueError, RuntimeError) as e:
            found[name] = {"error": [type(e).__name__, str(e)]}
    return found


def settled(value: Any, model: str) -> Any:
    """As JSON; ids, times and paths by the same names in each run."""
    if isinstance(value, dict):
        fixed = {"id": "ID", "created": 0}
        return {k: fixed[k] if k in fixed else settled(v, model) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [settled(v, model) for v in value]
    if isinstance(value, (bytes, str)):
        text = value.decode() if isinstance(value, bytes) else value
        return "MODEL" if text == model else text
    return value if isinstance(value, (bool, int, type(None))) else round(float(value), 4)


if __name__ == "__main__":
    print(json.dumps(results(import_module(sys.argv[1]), sys.argv[2]), indent=1, ensure_ascii=False))
