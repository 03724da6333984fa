"""Batches for Ray Data, without Ray: what is added to their columns. tests/cluster.py has Ray itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_rs import ContextOverflowError, Model, ModelClosedError
from llama_rs.ray import Batch

TEXTS = ["the sea", "a hill", "once upon a time"]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return Model(tiny, threads=1, context_length=256)


def column(*values: Any) -> np.ndarray[Any, Any]:
    """A column as Ray Data has it."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def test_batches_get_what_the_model_says_of_each_row(model: Model) -> None:
    batch = {"text": column(*TEXTS), "id": np.arange(3)}
    done = [model.generate(text, **GREEDY) for text in TEXTS]
    answered = Batch(model, **GREEDY)(batch)
    assert list(answered) == ["text", "id", "answer", "answer_finish_reason", "answer_tokens"]
    assert answered["answer"].tolist() == [one.text for one in done]
    assert answered["answer_finish_reason"].tolist() == [one.finish_reason for one in done]
    assert answered["answer_tokens"].tolist() == [len(one.token_ids) for one in done]
    assert (answered["id"] == batch["id"]).all()

    messages = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}] for text in TEXTS]
    told = {"said": column(*(np.array(of) for of in messages))}  # lists come as arrays
    answered = Batch(model, "chat", column="said", output="reply", parallel=2, **GREEDY)(told)
    assert answered["reply"].tolist() == [model.chat(of, **GREEDY).content for of in messages]

    labels = ["about the sea", "about land"]
    answered = Batch(model, "classify", labels=labels)(batch)
    found = model.classify(TEXTS, labels)
    assert answered["label"].tolist() == [one.label for one in found]
    assert answered["label_probs"].tolist() == [[one.probs[label] for label in labels] for one in found]

    answered = Batch(model, "embed", pooling="mean")(batch)
    assert answered["embedding"].dtype == np.float32
    np.testing.assert_array_equal(answered["embedding"], model.embed(TEXTS, pooling="mean"))


@pytest.mark.parametrize("task", ["generate", "chat", "classify", "embed"])
def test_a_row_that_cannot_be_done_is_told_and_the_others_are_done(model: Model, task: Any) -> None:
    options: dict[str, Any] = {"classify": {"labels": ["a", "b"]}, "embed": {}}.get(task, GREEDY)
    batch = {"text": column("the sea", "the sea " * 300, "a hill")}
    with pytest.raises(ContextOverflowError) as e:
        Batch(model, task, **options)(batch)
    assert e.value.__notes__ == ["It is of row 1 in a batch of 3, column 'text'."]
    result = Batch(model, task, errors="column", **options)(batch)
    good = Batch(model, task, **options)({"text": batch["text"][[0, 2]]})
    (_, name, *_) = result
    assert "256" in result[f"{name}_error"][1] and result[f"{name}_error"].tolist()[::2] == ["", ""]
    for key in good:
        assert result[key][[0, 2]].tolist() == good[key].tolist()
    assert result[name][1] is None if result[name].dtype == object else np.isnan(result[name][1]).all()
    if task in ("generate", "classify"):
        assert Batch(model, task, errors="column", **options)({"text": column()})[name].tolist() == []
    # Batches become one table: those in which no row can be done have the columns of the others.
    nothing = Batch(model, task, errors="column", **options)({"text": column("the sea " * 300)})
    for key in result:
        assert (nothing[key].dtype, nothing[key].shape[1:]) == (result[key].dtype, result[key].shape[1:])


def test_what_is_wrong_with_a_job_is_told_before_its_first_row(model: Model, tiny: Path) -> None:
    with pytest.raises(ValueError, match="task is 'rerank', it must be one of generate, chat, classify, embed"):
        Batch(model, "rerank")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="errors is 'ignore'"):
        Batch(model, errors="ignore")  # type: ignore[arg-type]
    for task in ("generate", "chat", "classify", "embed"):
        with pytest.raises(TypeError, match="tempersture"):
            Batch(model, task, tempersture=1)
    with pytest.raises(TypeError, match="labels"):
        Batch(model, "classify")
    with pytest.raises(KeyError, match="there is no column 'text', only 'prompt'"):
        Batch(model)({"prompt": column("a")})
    with pytest.raises(ValueError, match="there is a column 'label' already"):
        Batch(model, "classify", labels=["a", "b"])({"text": column("a"), "label": column("b")})
    own = Model(tiny, threads=1)
    batch = Batch(own, errors="column", threads=2)
    assert (own.threads, batch.model.threads) == (1, 2)
    batch.model.close()
    with pytest.raises(ModelClosedError):  # of all rows, and so of none
        batch({"text": column("a")})


def test_ray_is_imported_when_a_deployment_is_asked_for(tiny: Path) -> None:
    code = f"""
import sys
sys.modules["ray"] = None  # it is not there
from llama_rs.ray import Batch, deployment
try:
    deployment({str(tiny)!r})
except ImportError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.rstrip().endswith(": pip install 'llama_rs[ray]'")
