"""What a grammar costs and whether it holds: 200 schemas, each answered by a real model at temperature 1.

    python benches/grammar.py [MODEL] [--schemas 200]

Prints how many answers are valid by ``jsonschema``, and milliseconds a token with the grammar and without it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import validator_for
from llama_rs import Model
from llama_rs.cli import find_model

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from schemas import schemas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--schemas", type=int, default=200)
    arguments = parser.parse_args()
    model = Model(find_model(arguments.model), context_length=2048)
    prompt = model.chat_prompt("Make up an example, as JSON.")
    start = time.perf_counter()
    model.generate(prompt, json_schema=True, max_tokens=0)
    print(f"first grammar, with the trie of the vocabulary: {1000 * (time.perf_counter() - start):.0f} ms")

    valid = tokens = 0
    seconds = compiling = 0.0
    for i, schema in enumerate(schemas(arguments.schemas)):
        start = time.perf_counter()
        stream = model.stream(prompt, json_schema=schema, temperature=1, top_k=0, top_p=1, min_p=0, seed=i)
        compiling += time.perf_counter() - start
        text = "".join(stream)
        tokens += len(stream.token_ids)
        seconds += stream.timings.generation_seconds
        kind = validator_for(schema, default=Draft202012Validator)
        try:
            kind(schema, format_checker=kind.FORMAT_CHECKER).validate(json.loads(text))
            valid += 1
        except (ValueError, ValidationError) as e:
            print(f"{schema}\n  {text!r}\n  {e}")
    free = model.generate(prompt, max_tokens=256, ignore_eos=True, temperature=1, seed=1).timings
    n = arguments.schemas
    print(f"{valid} of {n} answers are valid; {1000 * compiling / n:.2f} ms to compile a schema")
    print(
        f"{1000 * seconds / tokens:.2f} ms a token over {tokens} tokens, "
        f"{1000 * free.generation_seconds / free.generated_tokens:.2f} ms without a grammar"
    )


if __name__ == "__main__":
    main()
