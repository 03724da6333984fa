"""One process that answers one prompt, with llama_rs or with llama.cpp: what `startup.py` and `sharing.py` start.

    python benches/one_answer.py llama_rs model.gguf
    python benches/one_answer.py llama.cpp:no-repack model.gguf --tokens 16 --context-length 512 --hold

llama.cpp runs through the low-level functions of llama-cpp-python, which cost nothing to speak of. Standard output has
the answer; the last line of standard error is JSON with the seconds of each stage. With --hold the process stays as it
is until its standard input ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

PROMPT = "The quick brown fox jumps over the lazy dog and runs away"


def write(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def llama_rs(path: str, tokens: int, context_length: int, options: set[str], threads: int) -> dict[str, float]:
    start = time.perf_counter()
    from llama_rs import Model

    imported = time.perf_counter()
    model = Model(path, context_length=context_length, threads=threads, load="read" if "read" in options else "mmap")
    opened = time.perf_counter()
    ids = model.tokenizer.encode(PROMPT)
    encoded = time.perf_counter()
    prefix = next((option.removeprefix("prefix=") for option in options if option.startswith("prefix=")), None)
    session = model.load_session(prefix) if prefix else model.session()
    stream = session.stream(session.tokens + ids, max_tokens=tokens, temperature=0, ignore_eos=True)
    write(next(stream).encode())
    answered = time.perf_counter()
    for piece in stream:
        write(piece.encode())
    globals()["keep"] = model, session  # what the process holds while others are counted
    return {
        "import": imported - start,
        "open": opened - imported,
        "encode": encoded - opened,
        "prompt and token": answered - encoded,
    }


def llama_cpp(path: str, tokens: int, context_length: int, options: set[str], threads: int) -> dict[str, float]:
    start = time.perf_counter()
    import ctypes

    import llama_cpp as c

    quiet = c.llama_log_callback(lambda _level, _text, _data: None)
    c.llama_log_set(quiet, ctypes.c_void_p(0))
    c.llama_backend_init()
    imported = time.perf_counter()
    params = c.llama_model_default_params()
    params.use_extra_bufts = "no-repack" not in options
    params.use_mmap = "no-mmap" not in options
    model = c.llama_model_load_from_file(path.encode(), params)
    context_params = c.llama_context_default_params()
    context_params.n_ctx = context_length
    context_params.n_threads = context_params.n_threads_batch = threads
    context = c.llama_init_from_model(model, context_params)
    opened = time.perf_counter()
    vocabulary = c.llama_model_get_vocab(model)
    ids = (c.llama_token * 256)()
    text = PROMPT.encode()
    n = c.llama_tokenize(vocabulary, text, len(text), ids, len(ids), True, True)
    encoded = time.perf_counter()
    sampler = c.llama_sampler_init_greedy()
    buffer = ctypes.create_string_buffer(256)
    batch = c.llama_batch_get_one(ids, n)
    answered = 0.0
    for _ in range(tokens):
        if c.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        token = c.llama_sampler_sample(sampler, context, -1)
        write(buffer.raw[: max(c.llama_token_to_piece(vocabulary, token, buffer, len(buffer), 0, True), 0)])
        answered = answered or time.perf_counter()
        ids[0] = token
        batch = c.llama_batch_get_one(ids, 1)
    globals()["keep"] = quiet, model, context
    return {
        "import": imported - start,
        "open": opened - imported,
        "encode": encoded - opened,
        "prompt and token": answered - encoded,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer one prompt.")
    parser.add_argument("engine", help="llama_rs or llama.cpp, with options: llama.cpp:no-repack")
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hold", action="store_true")
    args = parser.parse_args()
    name, _, options = args.engine.partition(":")
    engine = {"llama_rs": llama_rs, "llama.cpp": llama_cpp}[name]
    seconds = engine(args.model, args.tokens, args.context_length, set(options.split(",")), args.threads)
    print(json.dumps(seconds), file=sys.stderr, flush=True)
    if args.hold:
        sys.stdin.read()


if __name__ == "__main__":
    main()
