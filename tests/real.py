"""A real model of another family beside llama.cpp. Not among the tests of every day: ``make test-real GEMMA3=FILE``.

The model is Gemma 3 270M in Q4_K_M (Q8_0, Q5_0, Q4_K and Q6_K in one file), 253,113,024 bytes; the other engine is the
package xllamacpp, of the extra ``oracle``.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import reference
from llama_rs import Model
from oracle import llama_cpp

PROMPTS = [
    "Once upon a time",
    "The capital of France is",
    "def fibonacci(n):\n",
    "Die Stadt liegt am Meer, und",
    "1 2 3 4 5",
]


@pytest.fixture(scope="module")
def path() -> Path:
    return Path(os.environ["GEMMA3"])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_gemma_3_says_what_llama_cpp_says(path: Path, prompt: str) -> None:
    """Nearly all of 64 tokens are what llama.cpp holds for the likeliest after those before them, the others for nearly
    as likely; and what both hold of all tokens is the same within what rounding activations to 8 bits changes, as both
    do."""
    model = Model(path)
    done = model.generate(prompt, max_tokens=64, temperature=0, logprobs=True, ignore_eos=True)
    ids = model.tokenizer.encode(prompt)
    tokens = [*ids, *(token.token_id for token in done.logprobs or ())]
    theirs = llama_cpp.run(path, tokens, 256)
    ours = model.logits(tokens)
    divergence = reference.kl_divergence(theirs, ours)
    assert divergence.mean() < 0.02 and divergence.max() < 0.3
    answered = np.arange(len(ids) - 1, len(tokens) - 1)
    chosen = np.array(tokens[len(ids) :])
    behind = theirs[answered].max(axis=1) - theirs[answered, chosen]
    assert np.mean(behind == 0) > 0.9 and behind.max() < 0.6, behind
    print(
        f"{prompt!r}: KL {divergence.mean():.5f}, at most {divergence.max():.4f}; {np.mean(behind == 0):.0%} the same"
    )
