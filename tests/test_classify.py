"""Classification: scores against the logits, calibration against its formulas, and the command that sorts files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_rs import Calibration, Classifier, ContextOverflowError, Model
from llama_rs.classify import CONTENT_FREE, evaluation
from test_cli import bad, good, run

TEXTS = ["The sea gives and takes.", "", "Rain, and then the sun!\nAnd wind.", "x"]
LABELS = ["sea", "sea and wind", "the morning", "se"]
DATA = Path(__file__).parent / "data" / "reviews.csv"


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return Model(tiny, threads=2)


def from_logits(model: Model, prompt: list[int], answer: list[int], ends: list[int]) -> list[float]:
    """The log-probability of each token of an answer, and of an end behind it, from all logits of the whole."""
    logits = model.logits(prompt + answer).astype(np.float64)[len(prompt) - 1 :]
    logs = logits - logits.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    found = [float(logs[i, token]) for i, token in enumerate(answer)]
    return found + ([float(np.log(np.exp(logs[len(answer), ends]).sum()))] if ends else [])


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("normalize", ["mean", "sum"])
def test_a_score_is_the_likelihood_of_the_label_as_the_answer(model: Model, chat: bool, normalize: Any) -> None:
    tokenizer = model.tokenizer
    ends = [i for i in range(tokenizer.vocab_size) if tokenizer.is_end_of_generation(i)]
    assert ends
    examples = [("A boat.", "sea")]
    with model.classifier(LABELS, chat=chat, normalize=normalize, examples=examples) as classifier:
        got = classifier.scores(TEXTS)
    for text, row in zip(TEXTS, got, strict=True):
        intro = f"Classify the text into one of these categories: {', '.join(LABELS)}."
        for label, score in zip(LABELS, row, strict=True):
            if chat:
                messages = [
                    {"role": "user", "content": f"{intro} Answer with the category alone.\n\nText: A boat."},
                    {"role": "assistant", "content": "sea"},
                    {"role": "user", "content": f"Text: {text}"},
                ]
                prompt = model.chat_prompt(messages)
                whole = prompt + tokenizer.encode(label, add_special=False)
            else:
                before = f"{intro}\n\nText: A boat.\nLabel: sea\n\nText: {text}\nLabel:"
                prompt = tokenizer.encode(before, parse_special=False)
                whole = tokenizer.encode(f"{before} {label}\n", parse_special=False)
            n = next((i for i in range(len(prompt)) if whole[i] != prompt[i]), len(prompt))
            logs = from_logits(model, whole[:n], whole[n:], ends if chat else [])
            assert score == pytest.approx(sum(logs) / (len(logs) if normalize == "mean" else 1), abs=0.02)


def test_a_text_has_the_same_numbers_in_any_company(model: Model) -> None:
    with model.classifier(LABELS) as classifier:
        together = classifier.scores(TEXTS)
        assert (classifier.scores(TEXTS[::-1])[::-1] == together).all()
        for text, row in zip(TEXTS, together, strict=True):
            assert (classifier.scores([text])[0] == row).all()
            with model.classifier(LABELS) as other:
                assert (other.scores([text])[0] == row).all()
        assert classifier.scores([]).shape == (0, 4)
        assert classifier([]) == []
    alone = Model(model.path, threads=1, kv_type="f16", context_length=256).classify(TEXTS[0], LABELS)
    assert alone == model.classify(TEXTS, LABELS)[:1]


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_calibration_takes_out_what_is_said_to_nothing(model: Model) -> None:
    with model.classifier(LABELS, calibration="none") as classifier:
        scores, nothing = classifier.scores(TEXTS), classifier.scores(CONTENT_FREE)
        expected = {
            "none": softmax(scores),
            "content_free": softmax(scores - np.log(softmax(nothing).mean(0))),
            "batch": softmax(scores - np.log(softmax(scores).mean(0))),
        }
        for kind, probs in expected.items():
            classifier.calibration = kind  # type: ignore[assignment]
            for result, row, raw in zip(classifier(TEXTS), probs, scores, strict=True):
                assert list(result.probs) == LABELS
                np.testing.assert_allclose(list(result.probs.values()), row, rtol=1e-9)
                assert result.label == LABELS[int(row.argmax())]
                assert list(result.scores.values()) == list(raw)
                assert result.entropy == pytest.approx(-(row * np.log(row)).sum())
                assert result.margin == pytest.approx(np.sort(row)[-1] - np.sort(row)[-2])


def test_a_text_may_have_several_labels(model: Model) -> None:
    one = model.classifier(LABELS)(TEXTS)
    for alone, result in zip(one, model.classify(TEXTS, LABELS, multi_label=True), strict=True):
        p = np.array(list(alone.probs.values()))
        others = (1 - p) / (len(LABELS) - 1)
        np.testing.assert_allclose(list(result.probs.values()), p / (p + others), rtol=1e-9)
        assert result.label == alone.label
        assert result.labels(0) == sorted(LABELS, key=lambda label: -result.probs[label])
        assert result.labels() == [label for label in result.labels(0) if result.probs[label] >= 0.5]
    with model.classifier(LABELS, multi_label=True) as classifier, pytest.raises(ValueError, match="one label"):
        classifier.evaluate(["a"], ["sea"])


def test_a_long_prompt_is_not_read_once_for_each_label_and_has_the_same_tokens(model: Model) -> None:
    """Behind the last control token labels are tokenized alone."""
    for chat in (True, False):
        with model.classifier([*LABELS, " the", "\nwind", "<|im_end|>"], chat=chat) as classifier:
            for text in TEXTS:
                prompt, answers = classifier._asking.choices(text)
                for label, ids in zip(classifier.labels, answers, strict=True):
                    whole = model.tokenizer.decode([*prompt, *ids], skip_special=False)
                    assert whole.endswith(label if chat else f" {label}\n")
        with model.classifier(LABELS, chat=chat) as several, model.classifier(LABELS[:2], chat=chat) as few:
            for text in TEXTS:
                assert several._asking.choices(text)[1][:1] == few._asking.choices(text)[1][:1]


def test_fitting_finds_the_weights_that_made_the_labels(model: Model, tmp_path: Path) -> None:
    """Labels drawn from known biases and a known temperature; and the gradient is zero where it ends."""
    rng = np.random.default_rng(1)
    with model.classifier(["a", "b", "c"]) as classifier:
        raw = rng.normal(size=(4000, 3))
        raw = np.log(softmax(raw))
        biases = np.array([1.0, -0.5, -0.5])
        truth = [rng.choice(3, p=p) for p in softmax(raw / 0.5 + biases)]
        classifier.scores = lambda texts: raw[: len(texts)] if len(texts) > 3 else np.zeros((3, 3))  # type: ignore[method-assign]
        calibration = classifier.fit(["x"] * 4000, ["abc"[i] for i in truth])
        assert calibration.temperature == pytest.approx(0.5, rel=0.1)
        np.testing.assert_allclose(list(calibration.biases.values()), biases, atol=0.15)
        expected = softmax(raw / calibration.temperature + list(calibration.biases.values()))
        np.testing.assert_allclose([list(r.probs.values()) for r in classifier.judge(raw)], expected, rtol=1e-9)
        report = classifier.evaluate(["x"] * 4000, ["abc"[i] for i in truth])
        assert report.ece < 0.03
        calibration.save(tmp_path / "c.json")
    loaded = Calibration.load(tmp_path / "c.json")
    assert loaded == calibration
    with model.classifier(["a", "b", "c"], calibration=loaded) as again:
        assert again.calibration == calibration
    for changes in ({"labels": ["a", "b", "d"]}, {"normalize": "sum"}, {"instructions": "Say."}, {"chat": False}):
        options: dict[str, Any] = {"labels": ["a", "b", "c"], "calibration": loaded, **changes}
        with pytest.raises(ValueError, match="fitted with another model, prompt or set of labels"):
            model.classifier(**options)
    for text in ("", "[]", '{"biases": {"a": "x"}}', '{"biases": {}, "temperature": 0, "fingerprint": ""}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json: (no|a) calibration"):
            Calibration.load(tmp_path / "bad.json")


def test_one_text_of_each_label_is_enough_to_fit(model: Model) -> None:
    with model.classifier(["sea", "wind"]) as classifier:
        calibration = classifier.fit(["The sea.", "The wind."], ["sea", "wind"])
        assert all(np.isfinite([calibration.temperature, *calibration.biases.values()]))
        with pytest.raises(ValueError, match="no texts"):
            classifier.fit([], [])
        with pytest.raises(ValueError, match="1 texts and 2 labels"):
            classifier.fit(["x"], ["sea", "wind"])
        with pytest.raises(ValueError, match="'rain' is none of sea, wind"):
            classifier.evaluate(["x"], ["rain"])


def test_measures_are_those_of_the_books() -> None:
    probs = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]])
    e = evaluation(["a", "b", "c"], probs, [0, 1, 1, 0])
    assert (e.texts, e.accuracy) == (4, 0.75)
    assert e.macro_f1 == pytest.approx((2 * 2 / (2 * 2 + 1) + 2 * 1 / (2 * 1 + 1)) / 2)  # c occurs nowhere
    assert e.brier == pytest.approx((0.02 + 0.72 + 0.08 + 0.18) / 4)
    assert e.ece == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)  # each in a bin of its own
    assert e.confusion["b"] == {"a": 1, "b": 1, "c": 0}


def test_what_cannot_be_classified_says_so(model: Model, tiny: Path) -> None:
    for labels in ([], ["a"], ["a", "a"], ["a", " "], {"x": "a", "y": "a"}):
        with pytest.raises(ValueError, match="label"):
            model.classify("x", labels)
    for labels in ("ab", b"ab", [1, 2]):  # type: ignore[assignment]
        with pytest.raises(TypeError, match="label"):
            model.classify("x", labels)
    bad_options: list[dict[str, Any]] = [
        {"template": "no place"},
        {"template": "{text} {text}"},
        {"calibration": "nothing"},
        {"normalize": "max"},
        {"examples": [("x", "c")]},
    ]
    for options in bad_options:
        with pytest.raises(ValueError, match=r"it must (be|have)|is none of"):
            model.classify("x", ["a", "b"], **options)
    with pytest.raises(TypeError, match="text 1 is of type int"):
        model.classify(["x", 1], ["a", "b"])  # type: ignore[list-item]
    short = Model(tiny, context_length=64)
    with pytest.raises(ContextOverflowError, match=r"text 1: .* do not fit in a context of 64"):
        short.classify(["x", "the wind " * 40], ["a", "b"], instructions="")


def test_nothing_in_a_text_or_a_label_is_a_control_token(model: Model) -> None:
    """As many as in any other prompt of the same form."""

    def control(text: str, label: str) -> int:
        classifier = Classifier(model, ["a", label])
        prompt, answers = classifier._asking.choices(text)
        return sum(model.tokenizer.is_special(i) for ids in (prompt, *answers) for i in ids)

    assert control("<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>") == control("hello", "b")


def test_a_real_model_is_better_for_its_calibration(smollm2: Path) -> None:
    with DATA.open() as file:
        rows = list(csv.DictReader(file))[3::5]
    assert len(rows) == 16
    texts, labels = [row["text"] for row in rows], [row["topic"] for row in rows]
    with Model(smollm2).classifier(["food", "travel", "film", "phone"], chat=False) as classifier:
        scores = classifier.scores(texts)
        accuracy = {}
        for kind in ("none", "content_free"):
            classifier.calibration = kind
            accuracy[kind] = np.mean(
                [r.label == label for r, label in zip(classifier.judge(scores), labels, strict=True)]
            )
    assert accuracy["content_free"] > accuracy["none"]


# The command

ASK = ("classify", "--labels", "sea,land=the land", "-t", "1")


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_classify_says_what_the_library_says(model: Model, tiny: Path, tmp_path: Path) -> None:
    texts = ["The ships", 'The, "hill"', "wind"]
    expected = model.classify(texts, {"sea": "sea", "land": "the land"})
    found = lines(good(*ASK, "-m", tiny, *texts))
    assert [(row["index"], row["label"], row["text"]) for row in found] == [
        (i, result.label, text) for i, (text, result) in enumerate(zip(texts, expected, strict=True))
    ]
    assert found[0]["probs"] == pytest.approx(expected[0].probs, rel=1e-5)
    (tmp_path / "lines.txt").write_text("\n".join([texts[0], "", *texts[1:]]))
    from_lines = lines(good(*ASK, "-m", tiny, "-f", tmp_path / "lines.txt"))
    assert [row["index"] for row in from_lines] == [0, 2, 3]
    assert [row["probs"] for row in from_lines] == [row["probs"] for row in found]
    stdin = "\n".join(json.dumps({"body": text, "n": 1}) for text in texts).encode()
    assert lines(good(*ASK, "-m", tiny, "--format", "jsonl", "--text-column", "body", stdin=stdin)) == found
    table = list(csv.DictReader(io.StringIO(good(*ASK, "-m", tiny, "--csv", *texts))))
    assert [(row["label"], row["text"]) for row in table] == [(row["label"], row["text"]) for row in found]
    assert float(table[1]["p_land"]) == pytest.approx(found[1]["probs"]["land"], abs=1e-6)


def test_labels_in_the_input_are_compared_with(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text('text,label\n"The ships, and\nthe harbour",sea\nA hill,land\nwind,\n')
    done = run(*ASK, "-m", tiny, "-f", file)
    assert done.returncode == 0
    assert len(lines(done.stdout.decode())) == 3
    assert done.stderr.decode().startswith("accuracy ")
    assert done.stderr.decode().endswith("over 2 texts\n")
    report = json.loads(good(*ASK, "-m", tiny, "-f", file, "--report"))
    assert report["texts"] == 2
    learned = tmp_path / "learned.json"
    fitted = json.loads(good(*ASK, "-m", tiny, "-f", file, "--fit", file, "--save-calibration", learned, "--report"))
    assert fitted["brier"] <= report["brier"]
    assert json.loads(good(*ASK, "-m", tiny, "-f", file, "--calibration", learned, "--report")) == fitted
    file.write_text("text,label\nx,hill\n")
    assert "label 'hill' of text 0 is none of sea, land" in bad(1, *ASK, "-m", tiny, "-f", file)
    file.write_text("text,label\nx,sea,more\n")
    assert "the row that ends in line 2 has 3 fields, its header 2" in bad(1, *ASK, "-m", tiny, "-f", file)
    file.write_text("body\nx\n")
    assert "no column text among body" in bad(1, *ASK, "-m", tiny, "-f", file)
    assert "no text has a label" in bad(1, *ASK, "-m", tiny, "--report", "x")
    assert "line 1 is no JSON" in bad(1, *ASK, "-m", tiny, "--format", "jsonl", stdin=b"{")


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_run_that_was_stopped_goes_on_where_it_was(tiny: Path, tmp_path: Path, name: str) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / name
    file.write_text("".join(json.dumps({"text": f'The "sea"\n{i}'}) + "\n" for i in range(5)))
    good(*ASK, "-m", tiny, "-f", file, "-o", out)
    whole = out.read_bytes()
    assert whole.count(b"sea") >= 5
    for cut in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 2, len(whole)):
        out.write_bytes(whole[:cut])
        good(*ASK, "-m", tiny, "-f", file, "-o", out, "--resume")
        assert out.read_bytes() == whole, cut
    out.unlink()
    good(*ASK, "-m", tiny, "-f", file, "-o", out, "--resume")
    assert out.read_bytes() == whole
    other = ("classify", "--labels", "a,b", "-m", str(tiny), "-f", str(file), "-o", str(out), "--resume")
    assert "cannot be resumed" in bad(1, *other)
    assert out.read_bytes() == whole


def test_wrong_usage_of_classify_is_2(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x\n")
    for arguments, what in (
        (("x", "-f", str(tmp_path / "f")), "not both"),
        (("--resume", "x"), "--resume needs the file of -o"),
        (("--save-calibration", "c.json", "x"), "without --fit"),
        (("--template", "no", "x"), "template"),
        (("--labels", "a", "x"), "at least two labels"),
        (("--labels", "a,a", "x"), "twice"),
    ):
        assert what in bad(2, *ASK, "-m", tiny, *arguments)
    assert "no kind of calibration" in bad(1, *ASK, "-m", tiny, "--calibration", "nowhere", "x")


def test_score_is_that_of_the_library(model: Model, tiny: Path) -> None:
    found = lines(good("score", "-m", tiny, "the sea is", " cold", " wide"))
    for row, continuation in zip(found, (" cold", " wide"), strict=True):
        score = model.score("the sea is", continuation)
        assert row["continuation"] == continuation
        assert row["logprob"] == pytest.approx(score.total)
        assert [token["id"] for token in row["tokens"]] == score.token_ids
        assert "".join(token["text"] for token in row["tokens"]) == continuation
