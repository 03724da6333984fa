"""Classification: which of some labels a text has, by how likely a model finds each as the answer.

The prompt ends where the answer begins, and each label, with the end of an answer behind it, is scored as that answer:
all texts share what their prompts begin with, and the labels of a text are a tree that is computed in one batch. What a
model would say to a text without content is what it prefers for no reason, and is taken out (contextual calibration,
Zhao et al. 2021; per token, arXiv 2511.14385). Nothing is drawn: the same text has the same numbers in any company.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from . import _core
from .closing import Closing
from .errors import ContextOverflowError, UnsupportedModelError
from .hints import CalibrationKind, ScoreNormalization
from .lazy import model as _model
from .lazy import np, npt

CONTENT_FREE = tuple(_core.content_free())
"""Texts that say nothing, as Zhao et al. have them."""

ECE_BINS = 15
CHUNK = 64
"""Texts whose tokens are held at a time."""

FIT_STEPS = 100


class Classification(NamedTuple):
    """What a text is."""

    label: str
    """The most likely label."""
    probs: dict[str, float]
    """The probability of each label, calibrated; they sum to 1, unless a text may have several labels."""
    scores: dict[str, float]
    """What the model says of each as an answer, before any calibration: the mean natural logarithm of the probability
    of its tokens, or the sum."""

    def labels(self, threshold: float = 0.5) -> list[str]:
        """The labels that are at least so likely, the most likely first: those of a text that may have several."""
        likely = [label for label, p in self.probs.items() if p >= threshold]
        return sorted(likely, key=lambda label: -self.probs[label])

    @property
    def entropy(self) -> float:
        """How undecided that is, in nats: 0 if all is certain, log(n) if all n labels are equally likely."""
        from math import log

        return -sum(p * log(p) for p in self.probs.values() if p > 0)

    @property
    def margin(self) -> float:
        """By how much the most likely label is likelier than the next."""
        first, second, *_ = sorted(self.probs.values(), reverse=True)
        return first - second


class Evaluation(NamedTuple):
    """How good the answers to texts are whose labels are known."""

    texts: int
    accuracy: float
    macro_f1: float
    """The mean of the labels' F1, of those that occur."""
    brier: float
    """The mean squared distance of the probabilities from what is true, summed over labels: from 0, perfect, to 2."""
    ece: float
    """Expected calibration error: by how much confidence differs from accuracy, over 15 bins of equal width."""
    confusion: dict[str, dict[str, int]]
    """How often a text of the first label was given the second."""


class Calibration(NamedTuple):
    """What labelled texts taught about a model's preferences: made by :meth:`Classifier.fit`."""

    biases: dict[str, float]
    """What is added to each label's score over ``temperature``."""
    temperature: float
    fingerprint: str
    """Of the model, the prompt and the labels that it was fitted with."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a file, as JSON."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self._asdict(), file, ensure_ascii=False, indent=2)
            file.write("\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Reads one that was saved.

        Raises:
            ValueError: if the file holds none.
        """
        with open(path, encoding="utf-8") as file:
            try:
                found = json.load(file)
                biases = {str(name): float(bias) for name, bias in found["biases"].items()}
                temperature = float(found["temperature"])
                fingerprint = str(found["fingerprint"])
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise ValueError(f"{os.fspath(path)}: no calibration of llama_rs") from None
        numbers = [*biases.values(), temperature]
        if not all(x - x == 0 for x in numbers) or temperature == 0:
            raise ValueError(f"{os.fspath(path)}: a calibration with a number that is none")
        return cls(biases, temperature, fingerprint)


class ClassifyOptions(TypedDict, total=False):
    """The arguments of :meth:`Model.classifier` besides the labels."""

    instructions: str | None
    template: str | None
    examples: Sequence[tuple[str, str]]
    chat: bool | None
    template_options: Mapping[str, Any] | None
    calibration: CalibrationKind | Calibration
    normalize: ScoreNormalization
    multi_label: bool


class Classifier(Closing):
    """Classifies texts by one model and one set of labels, with what their prompts share computed once.

    Made by :meth:`Model.classifier`. One call at a time may use it; it is a context manager, and ``close()`` frees its
    session.
    """

    def __init__(
        self,
        model: _model.Model,
        labels: Sequence[str] | Mapping[str, str],
        *,
        instructions: str | None = None,
        template: str | None = None,
        examples: Sequence[tuple[str, str]] = (),
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
        calibration: CalibrationKind | Calibration = "content_free",
        normalize: ScoreNormalization = "mean",
        multi_label: bool = False,
    ) -> None:
        self.labels, self._answers = _checked_labels(labels)
        if not isinstance(calibration, Calibration) and calibration not in ("content_free", "batch", "none"):
            raise ValueError(
                f'calibration is {calibration!r}, it must be "content_free", "batch", "none" or a Calibration'
            )
        if normalize not in ("mean", "sum"):
            raise ValueError(f'normalize is {normalize!r}, it must be "mean" or "sum"')
        for _, label in examples:
            self._index(label)
        self.model = model
        self.normalize = normalize
        self.multi_label = multi_label
        shown = [(text, self._answers[self._index(label)]) for text, label in examples]
        self._asking = _asking(model, self._answers, instructions, template, shown, chat, template_options)
        self._session = model.session()
        self._content_free: npt.NDArray[np.float64] | None = None
        if isinstance(calibration, Calibration) and (
            calibration.fingerprint != self.fingerprint or calibration.biases.keys() != set(self.labels)
        ):
            raise ValueError("the calibration was fitted with another model, prompt or set of labels: fit it again")
        self.calibration = calibration

    @property
    def fingerprint(self) -> str:
        """Of the model, the prompt, the labels and ``normalize``: where it differs, so do the scores."""
        from hashlib import sha256

        of = (
            self.model._handle.checkpoint().fingerprint(),
            self.labels,
            self.normalize,
            self._asking.choices("x"),
        )
        return sha256(repr(of).encode()).hexdigest()

    def __call__(self, texts: Sequence[str]) -> list[Classification]:
        """The label of each text.

        Raises:
            ContextOverflowError: if one is too long; nothing is cut.
        """
        scores = self.scores(texts)
        return self.judge(scores)

    def judge(self, scores: npt.NDArray[np.float64]) -> list[Classification]:
        """What follows from scores, ``(texts, labels)``; with ``calibration="batch"`` it is taken from them."""
        results = []
        for row, probs in zip(scores, self._probs(scores), strict=True):
            by_label = dict(zip(self.labels, probs.tolist(), strict=True))
            best = self.labels[int(np.argmax(probs))]
            results.append(Classification(best, by_label, dict(zip(self.labels, row.tolist(), strict=True))))
        return results

    def scores(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """What the model says of each label as the answer, without calibration: float64, ``(texts, labels)``."""
        if isinstance(texts, (str, bytes)):
            raise TypeError(f"texts is a {type(texts).__name__}, it must be a sequence of texts")
        rows: list[list[float]] = []
        for at in range(0, len(texts), CHUNK):
            choices = [self._fitting(i, texts[i]) for i in range(at, min(at + CHUNK, len(texts)))]
            rows += self._session._handle.label_scores(choices, self._asking.is_chat, self.normalize == "sum")
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.labels))

    def fit(self, texts: Sequence[str], labels: Sequence[str]) -> Calibration:
        """Learns a bias of each label and one temperature from texts whose labels are known (logistic regression).

        A few dozen texts do; with few, what they say is held against what texts without content do. The classifier
        uses what it gives from then on.

        Raises:
            ValueError: if there are no texts, or a label is none of the classifier's.
        """
        truth = self._truth(texts, labels)
        prior = self._prior_of_nothing()
        scores = _log_softmax(self.scores(texts))
        weight, biases = _fitted(_log_softmax(scores - prior), truth)
        total = biases - weight * prior  # of the scores themselves
        total -= total.mean()
        self.calibration = Calibration(
            dict(zip(self.labels, total.tolist(), strict=True)), 1 / weight, self.fingerprint
        )
        return self.calibration

    def evaluate(self, texts: Sequence[str], labels: Sequence[str]) -> Evaluation:
        """Classifies texts whose labels are known, and says how well.

        Raises:
            ValueError: if there are no texts, or a label is none of the classifier's.
        """
        if self.multi_label:
            raise ValueError("multi_label is True: what is evaluated is one label of a text")
        truth = self._truth(texts, labels)
        return evaluation(self.labels, self._probs(self.scores(texts)), truth)

    def close(self) -> None:
        """Frees its session."""
        self._session.close()

    def __repr__(self) -> str:
        return f"<Classifier of {', '.join(self.labels)}>"

    def _fitting(self, i: int, text: str) -> tuple[list[int], list[list[int]]]:
        """The tokens of a text, if they fit."""
        if not isinstance(text, str):
            raise TypeError(f"text {i} is of type {type(text).__name__}, it must be a str")
        prompt, answers = self._asking.choices(text)
        n = len(prompt) + max(map(len, answers))
        if n > self._session.context_length:
            limit = self._session.context_length
            message = f"text {i}: {n} tokens with its prompt do not fit in a context of {limit}: shorten it or raise it"
            raise ContextOverflowError(message, n, limit)
        return prompt, answers

    def _truth(self, texts: Sequence[str], labels: Sequence[str]) -> list[int]:
        if len(texts) != len(labels):
            raise ValueError(f"there are {len(texts)} texts and {len(labels)} labels: there must be as many")
        if not texts:
            raise ValueError("there are no texts: there must be at least one")
        return [self._index(label) for label in labels]

    def _index(self, label: str) -> int:
        try:
            return self.labels.index(label)
        except ValueError:
            raise ValueError(f"label {label!r} is none of {', '.join(self.labels)}") from None

    def _probs(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Calibrated probabilities, ``(texts, labels)``."""
        prior: list[float] = []
        if isinstance(self.calibration, Calibration):
            biases = np.array([self.calibration.biases[label] for label in self.labels])
            scores = _log_softmax(scores) / self.calibration.temperature + biases
        elif self.calibration == "content_free":
            prior = self._prior_of_nothing().tolist()
        elif self.calibration == "batch":
            prior = _core.label_prior(scores.tolist())
        probs = _core.label_probabilities(scores.tolist(), prior, self.multi_label)
        return np.array(probs, dtype=np.float64).reshape(scores.shape)

    def _prior_of_nothing(self) -> npt.NDArray[np.float64]:
        if self._content_free is None:
            self._content_free = np.array(_core.label_prior(self.scores(CONTENT_FREE).tolist()))
        return self._content_free


def _asking(
    model: _model.Model,
    answers: Sequence[str],
    instructions: str | None,
    template: str | None,
    examples: Sequence[tuple[str, str]],
    chat: bool | None,
    options: Mapping[str, Any] | None,
) -> _core.Asking:
    """What the model is asked, as a conversation if it can have one."""
    conversation: _core.Chat | None = None
    if chat is not False:
        try:
            conversation = model._template._core
        except UnsupportedModelError:
            if chat:
                raise
    return _core.Asking(
        model.tokenizer._core, conversation, answers, instructions, template, examples, dict(options or {})
    )


def evaluation(labels: Sequence[str], probs: npt.NDArray[np.float64], truth: Sequence[int]) -> Evaluation:
    """How good probabilities, ``(texts, labels)``, are, given the number of each text's true label."""
    n, k = probs.shape
    true = np.asarray(truth)
    given = probs.argmax(1)
    confusion = np.zeros((k, k), dtype=int)
    np.add.at(confusion, (true, given), 1)
    hits, rows, columns = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    occurs = (rows + columns) > 0
    f1 = 2 * hits[occurs] / (rows + columns)[occurs]
    confidence, right = probs.max(1), given == true
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = [abs(float((right[bins == b] - confidence[bins == b]).sum())) for b in range(ECE_BINS)]
    return Evaluation(
        texts=n,
        accuracy=float(right.mean()),
        macro_f1=float(f1.mean()),
        brier=float(((probs - np.eye(k)[true]) ** 2).sum(1).mean()),
        ece=sum(gaps) / n,
        confusion={a: {b: int(confusion[i, j]) for j, b in enumerate(labels)} for i, a in enumerate(labels)},
    )


def _checked_labels(labels: Sequence[str] | Mapping[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """The names of the labels, and the answers that they are."""
    if isinstance(labels, (str, bytes)):
        raise TypeError(f"labels is a {type(labels).__name__}, it must be a sequence of names, or a mapping to answers")
    pairs = list(labels.items()) if isinstance(labels, Mapping) else [(name, name) for name in labels]
    for pair in pairs:
        for text in pair:
            if not isinstance(text, str):
                raise TypeError(f"a label is of type {type(text).__name__}, it must be a str")
            if not text.strip():
                raise ValueError("a label is empty")
    names, answers = tuple(name for name, _ in pairs), [answer for _, answer in pairs]
    for values in (names, answers):
        twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
        if twice is not None:
            raise ValueError(f"label {twice!r} is there twice")
    if len(names) < 2:
        raise ValueError(f"there must be at least two labels, got {len(names)}")
    return names, answers


def _log_softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted: npt.NDArray[np.float64] = scores - scores.max(1, keepdims=True) if len(scores) else scores
    logs: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logs


def _fitted(x: npt.NDArray[np.float64], truth: Sequence[int]) -> tuple[float, npt.NDArray[np.float64]]:
    """The weight and biases of ``softmax(weight * x + biases)`` that make the true labels most likely, by Newton.

    They are held towards 1 and 0 by a term that weighs as much as one text: without it labels that are always right
    would have an infinite weight. The problem is convex.
    """
    n, k = x.shape
    true = np.asarray(truth)
    centre = np.concatenate([[1.0], np.zeros(k)])

    def loss(theta: npt.NDArray[np.float64]) -> float:
        logs = _log_softmax(theta[0] * x + theta[1:])
        return float(-logs[np.arange(n), true].sum() + ((theta - centre) ** 2).sum() / 2)

    theta = centre.copy()
    for _ in range(FIT_STEPS):
        p = np.exp(_log_softmax(theta[0] * x + theta[1:]))
        rest = p - np.eye(k)[true]
        gradient = np.concatenate([[(rest * x).sum()], rest.sum(0)]) + theta - centre
        mean = (p * x).sum(1, keepdims=True)
        hessian = np.eye(k + 1)
        hessian[0, 0] += (p * (x - mean) ** 2).sum()
        hessian[0, 1:] += (p * (x - mean)).sum(0)
        hessian[1:, 0] = hessian[0, 1:]
        hessian[1:, 1:] += np.diag(p.sum(0)) - p.T @ p
        step = np.linalg.solve(hessian, gradient)
        size, before = 1.0, loss(theta)
        while loss(theta - size * step) > before and size > 1e-9:
            size /= 2
        theta = theta - size * step
        if float(np.abs(size * step).max()) < 1e-10:
            break
    weight = float(theta[0])
    return (weight if abs(weight) > 1e-6 else 1e-6), theta[1:]
