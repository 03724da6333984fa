"""Answers that follow a grammar: valid documents, every form of asking for them, and what is refused."""

from __future__ import annotations

import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from llama_rs import GrammarError, Model, SamplingParams
from schemas import WRITTEN, schemas

PROMPT = "The old lighthouse keeper"
PERSON: dict[str, Any] = WRITTEN[0]


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return Model(tiny, threads=1, context_length=1024)


def validator(schema: Any) -> Any:
    kind = validator_for(schema, default=Draft202012Validator)
    kind.check_schema(schema)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


@pytest.mark.parametrize("seed", range(3))
def test_a_model_of_random_weights_writes_valid_documents_only(model: Model, seed: int) -> None:
    for i, schema in enumerate(schemas(90)[seed::3]):
        done = model.generate(PROMPT, json_schema=schema, temperature=1, top_p=1, min_p=0, top_k=0, seed=i)
        assert done.finish_reason == "stop", (schema, done.text)
        validator(schema).validate(json.loads(done.text))


def test_a_real_model_does_too(smollm2: Path) -> None:
    real = Model(smollm2, context_length=512)
    for schema in WRITTEN[:4]:
        messages = "Make up an example, as JSON."
        done = real.chat(messages, json_schema=schema, temperature=1, seed=1, max_tokens=400)
        assert done.finish_reason == "stop", done.text
        validator(schema).validate(json.loads(done.text))


def test_every_form_of_asking(model: Model) -> None:
    def asked(**options: Any) -> str:
        done = model.generate(PROMPT, seed=5, temperature=1, **options)
        assert done.finish_reason == "stop"
        assert "".join(model.stream(PROMPT, seed=5, temperature=1, **options)) == done.text
        return done.text

    text = json.dumps(PERSON)
    written = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answers = {
        asked(json_schema=PERSON),
        asked(json_schema=text),
        asked(response_format=written),
        asked(response_format=json.dumps(written)),
        asked(response_format={"type": "json_object", "schema": PERSON}),
        asked(sampling=SamplingParams(json_schema=PERSON)),
    }
    assert len(answers) == 1
    validator(PERSON).validate(json.loads(answers.pop()))
    assert re.fullmatch("[a-c]{3,5}(-[0-9]+){0,2}x", asked(regex="[a-c]{3,5}(-[0-9]+){0,2}x"))
    assert asked(choices=["yes", "no, never"]) in ("yes", "no, never")
    assert asked(choices="only") == "only"
    assert re.fullmatch("(ab?){1,3}", asked(grammar='root ::= item{1,3}\nitem ::= "a" "b"?'))
    assert re.fullmatch("[0-9]{1,3}%", asked(grammar='start: N "%"\nN: /[0-9]{1,3}/'))
    free = model.generate(PROMPT, response_format={"type": "text"}, seed=5, max_tokens=8).text
    assert free == model.generate(PROMPT, seed=5, max_tokens=8).text


def test_json_mode_gives_an_object(model: Model) -> None:
    # Of a model of random weights no long one ends by itself: nothing but short strings and a way out.
    closing = {model.tokenizer.encode(text, add_special=False)[0]: 12.0 for text in ('"', "}", "]", ":")}
    for seed in range(4):
        done = model.generate(
            PROMPT, response_format={"type": "json_object"}, seed=seed, logit_bias=closing, max_tokens=600
        )
        if done.finish_reason == "stop":
            assert isinstance(json.loads(done.text), dict)
        assert done.text.startswith("{")


def test_no_control_token_comes_and_none_ends_what_is_not_complete(model: Model) -> None:
    special = [i for i in range(model.config.vocab_size) if model.tokenizer.is_special(i)]
    wanted = dict.fromkeys(special, 50.0)
    done = model.generate(PROMPT, regex="[^x]{40,60}", logit_bias=wanted, temperature=1, seed=3, max_tokens=60)
    assert not set(done.token_ids) & set(special)
    assert len(done.text) >= 40
    assert done.finish_reason == "stop"
    complete = model.generate(PROMPT, regex="[a-z]{5}", ignore_eos=True, seed=3)
    assert (len(complete.text), complete.finish_reason) == (5, "stop")


def test_max_tokens_and_stop_strings_count_as_ever(model: Model) -> None:
    cut = model.generate(PROMPT, json_schema=PERSON, max_tokens=3, seed=1)
    assert (len(cut.token_ids), cut.finish_reason) == (3, "length")
    stopped = model.generate(PROMPT, json_schema=PERSON, stop="age", seed=1)
    assert stopped.finish_reason == "stop"
    assert stopped.text.endswith('"')
    assert "age" not in stopped.text


def test_greedy_takes_the_most_likely_of_what_is_allowed(model: Model) -> None:
    logits = model.logits(model.tokenizer.encode(PROMPT))[-1]
    for letters in ("akz", "XYZ", "059", "qx"):
        ids = {letter: model.tokenizer.encode(letter, add_special=False)[0] for letter in letters}
        expected = max(letters, key=lambda letter: float(logits[ids[letter]]))
        done = model.generate(PROMPT, choices=list(letters), temperature=0, logprobs=True)
        assert (done.text, done.token_ids) == (expected, [ids[expected]])


def test_threads_share_a_vocabulary_and_not_a_grammar(model: Model) -> None:
    def answer(i: int) -> bool:
        schema = schemas(40)[i]
        done = model.generate(PROMPT, json_schema=schema, temperature=1, seed=i)
        validator(schema).validate(json.loads(done.text))
        return done.text == model.generate(PROMPT, json_schema=schema, temperature=1, seed=i).text

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(answer, range(16)))


@pytest.mark.parametrize(
    ("options", "message", "pointer"),
    [
        ({"json_schema": {"properties": {"a": {"not": {}}}}}, "cannot be enforced", "/properties/a/not"),
        ({"json_schema": {"items": {"type": "string", "format": "x"}}}, "format", "/items/format"),
        ({"response_format": {"type": "json_object", "schema": {"if": {}}}}, "cannot be enforced", "/if"),
        ({"json_schema": "{"}, "the schema is no JSON", None),
        ({"response_format": {"type": "yaml"}}, "response_format has a type that is yaml", None),
        ({"regex": "(a"}, "the grammar cannot be used", None),
        ({"regex": "(?=a)b"}, "the grammar cannot be used", None),
        ({"grammar": "root ::= b"}, 'no rule called "b"', None),
        ({"grammar": "start: nothing"}, "the grammar cannot be used", None),
        ({"grammar": 'start: "a" %%'}, "the grammar cannot be used", None),
    ],
)
def test_what_cannot_be_enforced_is_an_error(
    model: Model, options: dict[str, Any], message: str, pointer: str | None
) -> None:
    with pytest.raises(GrammarError, match=re.escape(message)) as caught:
        model.generate(PROMPT, **options)
    assert isinstance(caught.value, ValueError)
    assert caught.value.pointer == pointer
    assert "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.pointer) == (str(caught.value), pointer)


def test_an_answer_has_one_form(model: Model) -> None:
    with pytest.raises(ValueError, match="grammar and regex are both given"):
        model.generate(PROMPT, grammar="start: A", regex="a")


def test_a_session_goes_on_after_an_error_and_after_a_grammar(model: Model) -> None:
    with model.session() as session:
        with pytest.raises(GrammarError):
            session.generate(PROMPT, regex="(")
        assert re.fullmatch("[ab]{4}", session.generate(PROMPT, regex="[ab]{4}", seed=1).text)
        free = session.generate(PROMPT, max_tokens=8, seed=1).text
    assert free == model.generate(PROMPT, max_tokens=8, seed=1).text
