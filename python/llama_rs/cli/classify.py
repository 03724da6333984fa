"""``llama-rs classify``: which of some labels each text of a file has."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .. import Calibration, Model
from ..notes import counted
from ..output import count_progress, is_watched, json_line, say, say_in_place, write
from . import declare
from .arguments import find_model, lora_option, model_option, parameters
from .exits import Failure, UsageError
from .kinds import Choice, Path, is_utf8
from .lines import decoded, lines_of

if TYPE_CHECKING:
    from ..classify import Classification, Classifier

CHUNK = 32
"""Texts between two lines of progress."""


class Record(NamedTuple):
    """A text of the input."""

    number: int
    text: str
    truth: str | None
    """Its label, where the input says it."""


@declare.command("classify")
@declare.argument("texts", nargs=-1, metavar="[TEXT]...")
@declare.option(
    "-f",
    "--file",
    type=Path(exists=True, dir_okay=False, allow_dash=True),
    help="Read texts from this file, as --format says; - is standard input.",
)
@model_option
@declare.option("-l", "--labels", required=True, metavar="A,B,...", help="The labels, or NAME=ANSWER of each.")
@declare.option("--instructions", help="What the model is told to do; {labels} in it is all of them.")
@declare.option("--template", help="What it is asked about each text, with {text} in it.")
@declare.option(
    "--calibration",
    default="content-free",
    metavar="content-free|batch|none|FILE",
    help="What of the model's preferences is taken out: what it says to texts without content, or on average to those "
    "given; or a file that --save-calibration wrote.",
)
@declare.option(
    "--fit",
    type=Path(exists=True, dir_okay=False),
    help="Learn from the labelled texts of this file how to calibrate.",
)
@declare.option("--save-calibration", type=Path(dir_okay=False), help="Write what --fit learned to this file.")
@declare.option(
    "--normalize",
    type=Choice(["mean", "sum"]),
    default="mean",
    help="Whether a label's score is the mean of its tokens' log-probabilities or their sum.",
)
@declare.option(
    "--multi-label",
    is_flag=True,
    help='A text may have several labels, or none: "labels" are those with a probability of 0.5 or more.',
)
@declare.option("--no-chat", is_flag=True, help="Ask as a text, not as a conversation.")
@declare.option(
    "--format",
    "kind",
    type=Choice(["lines", "csv", "jsonl"]),
    help="What the input is: texts, CSV with a header, or JSON, a line each.  [default: by the file's name, or lines]",
)
@declare.option("--text-column", default="text", help="Where CSV or JSON has the text.")
@declare.option("--label-column", default="label", help="Where it has the label, if it has one.")
@declare.option("-o", "--output", type=Path(dir_okay=False), help="Write to this file.")
@declare.option("--resume", is_flag=True, help="Go on where the file of -o ends.")
@declare.option("--csv", "as_csv", is_flag=True, help="Write CSV.  [default: lines of JSON, or by the name of -o]")
@declare.option("--report", is_flag=True, help="Print how good the answers are, given the labels, and nothing else.")
@lora_option
@parameters("context_length", "threads", "kv_type")
def command(
    texts: tuple[str, ...],
    file: str | None,
    model: str | None,
    labels: str,
    instructions: str | None,
    template: str | None,
    calibration: str,
    fit: str | None,
    save_calibration: str | None,
    normalize: Literal["mean", "sum"],
    multi_label: bool,
    no_chat: bool,
    kind: str | None,
    text_column: str,
    label_column: str,
    output: str | None,
    resume: bool,
    as_csv: bool,
    report: bool,
    lora: tuple[tuple[str, float], ...],
    context_length: int | None,
    threads: int | None,
    kv_type: Literal["f16", "q8_0"],
) -> None:
    """Say which of some labels each text has.

    The texts are the arguments, or those of the file given with -f, or else the lines of standard input. Prints a line
    for each, with "index", "label", the probability of each label in "probs", and "text". If the input has the true
    labels, standard error gets a line at the end that says how many answers are right.

    \b
      llama-rs classify --labels positive,negative "The food was cold."
      llama-rs classify --labels spam,ham -f mails.csv -o sorted.csv
      llama-rs classify --labels a,b --instructions "Is this about {labels}?" < lines.txt
    """
    if texts and file is not None:
        raise UsageError("give the texts as arguments or with -f FILE, not both")
    if resume and (output is None or calibration == "batch" or report):
        raise UsageError("--resume needs the file of -o, and neither --calibration batch nor --report")
    if report and multi_label:
        raise UsageError("--report is about the one label of a text: it does not go with --multi-label")
    if save_calibration and not fit:
        raise UsageError("--save-calibration has nothing to save without --fit")
    if not all(is_utf8(text) for text in (*texts, labels, instructions or "", template or "")):
        raise UsageError("an argument is not valid UTF-8")
    names = _labels(labels)
    path = find_model(model)
    columns = text_column, label_column
    kind = kind or {".csv": "csv", ".jsonl": "jsonl"}.get(os.path.splitext(file or "")[1], "lines")
    as_csv = as_csv or (output or "").endswith(".csv")

    llama = Model(path, context_length=context_length, threads=threads, kv_type=kv_type, lora=lora)
    with llama.classifier(
        names,
        instructions=instructions,
        template=template,
        chat=False if no_chat else None,
        calibration=_calibration(calibration),
        normalize=normalize,
        multi_label=multi_label,
    ) as classifier:
        if fit:
            known = [r for r in _records(fit, _kind_of(fit), columns, classifier.labels) if r.truth is not None]
            if not known:
                raise Failure(f"{fit}: no text has a label, in {label_column}")
            learned = classifier.fit([r.text for r in known], [r.truth or "" for r in known])
            if save_calibration:
                learned.save(save_calibration)
        records: Iterator[Record]
        if texts:
            records = (Record(i, text, None) for i, text in enumerate(texts))
        else:
            records = _records(file, kind, columns, classifier.labels)
        with _Target(None if report else output, resume, as_csv, classifier, mute=report) as target:
            done = _classify(classifier, records, target, is_stream=not texts and file in (None, "-"))
        _tell(classifier, done, report)


def _classify(
    classifier: Classifier, records: Iterator[Record], target: _Target, *, is_stream: bool
) -> list[tuple[Record, Classification]]:
    """Classifies what is not done yet; gives those whose label is known."""
    whole, start = None, time.perf_counter()
    chunks: Iterator[list[Record]]
    if classifier.calibration == "batch" or not is_stream:
        todo = [record for record in records if record.number >= target.done]
        whole = len(todo)
        n = CHUNK if classifier.calibration != "batch" else max(whole, 1)
        chunks = (todo[at : at + n] for at in range(0, whole, n))
    else:
        chunks = _as_they_come(record for record in records if record.number >= target.done)
    known, n_done = [], 0
    try:
        for chunk in chunks:
            results = classifier([record.text for record in chunk])
            for record, result in zip(chunk, results, strict=True):
                target.add(record, result)
                if record.truth is not None:
                    known.append((record, result))
            target.flush()
            n_done += len(chunk)
            if is_watched():
                say_in_place(count_progress(n_done, whole, time.perf_counter() - start, "texts"))
    finally:
        if is_watched():
            say_in_place("")
    return known


def _as_they_come(records: Iterator[Record]) -> Iterator[list[Record]]:
    """One by one: a program may write a text and wait for its label."""
    for record in records:
        yield [record]


def _tell(classifier: Classifier, done: Sequence[tuple[Record, Classification]], report: bool) -> None:
    """How good it was."""
    if not done or classifier.multi_label:
        if report:
            raise Failure("no text has a label to compare with: see --label-column")
        return
    import numpy as np

    from ..classify import evaluation

    probs = np.array([list(result.probs.values()) for _, result in done])
    truth = [classifier.labels.index(record.truth or "") for record, _ in done]
    e = evaluation(classifier.labels, probs, truth)
    if report:
        write(json_line(e._asdict()))
    else:
        say(
            f"accuracy {e.accuracy:.3f}, macro F1 {e.macro_f1:.3f}, Brier score {e.brier:.3f}, "
            f"calibration error {e.ece:.3f} over {counted(e.texts, 'text')}"
        )


def _labels(text: str) -> dict[str, str]:
    """``a,b=yes`` as names and answers."""
    pairs = [part.strip().partition("=") for part in text.split(",")]
    names = [name.strip() for name, _, _ in pairs]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise UsageError(f"label {twice!r} is there twice")
    return {
        name: (answer.strip() if is_pair else name) for name, (_, is_pair, answer) in zip(names, pairs, strict=True)
    }


def _calibration(text: str) -> Any:
    words = {"content-free": "content_free", "content_free": "content_free", "batch": "batch", "none": "none"}
    if text in words:
        return words[text]
    try:
        return Calibration.load(text)
    except OSError as e:
        raise Failure(f"{text}: {e.strerror}, and no kind of calibration") from e
    except ValueError as e:
        raise Failure(str(e)) from e


# Input


def _kind_of(path: str) -> str:
    return {".csv": "csv", ".jsonl": "jsonl"}.get(os.path.splitext(path)[1], "csv")


def _records(file: str | None, kind: str, columns: tuple[str, str], labels: Sequence[str]) -> Iterator[Record]:
    """The texts of an input, without empty ones."""
    name = "standard input" if file in (None, "-") else str(file)
    lines = (line for block in lines_of(file) for line in block)
    rows: Iterator[tuple[Any, Any]]
    if kind == "lines":
        rows = ((decoded(name, i, line), None) for i, line in enumerate(lines))
    elif kind == "jsonl":
        rows = _json_rows(name, lines, columns)
    else:
        rows = _csv_rows(name, lines, columns)
    for index, (text, truth) in enumerate(rows):
        if not isinstance(text, str):
            raise Failure(f"{name}: text {index} is no text in {columns[0]}")
        if truth is not None and truth not in labels:
            raise Failure(f"{name}: label {truth!r} of text {index} is none of {', '.join(labels)}")
        if text or kind != "lines":
            yield Record(index, text, truth)


def _json_rows(name: str, lines: Iterator[bytes], columns: tuple[str, str]) -> Iterator[tuple[Any, Any]]:
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            found = json.loads(decoded(name, i, line))
        except (ValueError, RecursionError):
            raise Failure(f"{name}: line {i + 1} is no JSON") from None
        if not isinstance(found, dict):
            raise Failure(f"{name}: line {i + 1} is no JSON object")
        yield found.get(columns[0]), found.get(columns[1])


def _csv_rows(name: str, lines: Iterator[bytes], columns: tuple[str, str]) -> Iterator[tuple[Any, Any]]:
    csv.field_size_limit(1 << 28)
    texts = (decoded(name, i, line).removeprefix("\ufeff" if i == 0 else "") + "\n" for i, line in enumerate(lines))
    reader = csv.reader(texts, strict=True)
    try:
        header = next(reader, [])
        if columns[0] not in header:
            raise Failure(f"{name}: no column {columns[0]} among {', '.join(header)}: see --text-column")
        of_text = header.index(columns[0])
        of_label = header.index(columns[1]) if columns[1] in header else None
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                what = f"{counted(len(row), 'field')}, its header {len(header)}"
                raise Failure(f"{name}: the row that ends in line {reader.line_num} has {what}")
            yield row[of_text], None if of_label is None else row[of_label] or None
    except csv.Error as e:
        raise Failure(f"{name}: line {reader.line_num} is no CSV: {e}") from None


# Output


class _Target:
    """Where results go: standard output, a file, or nowhere."""

    def __init__(self, path: str | None, resume: bool, as_csv: bool, classifier: Classifier, *, mute: bool) -> None:
        self.done = 0
        """Texts that the file has already: those before this index."""
        self._labels, self._as_csv, self._mute = classifier.labels, as_csv, mute
        self._has_several = classifier.multi_label
        self._file: Any = None
        self._lines = io.StringIO()
        self._writer = csv.writer(self._lines, lineterminator="\n")
        several = ["labels"] if self._has_several else []
        header = ["index", "label", *several, "probability", *(f"p_{label}" for label in self._labels), "text"]
        try:
            if path is not None:
                self._file = open(path, "r+b" if resume and os.path.exists(path) else "w+b")  # noqa: SIM115
                if resume:
                    self.done = self._resume(path, header)
        except OSError as e:
            raise Failure(f"{path}: {e.strerror}") from e
        if as_csv and not mute and (self._file is None or self._file.tell() == 0):
            self._writer.writerow(header)

    def add(self, record: Record, result: Classification) -> None:
        if self._as_csv:
            probs = [f"{p:.6f}" for p in result.probs.values()]
            probability = f"{result.probs[result.label]:.6f}"
            several = [";".join(result.labels())] if self._has_several else []
            self._writer.writerow([record.number, result.label, *several, probability, *probs, record.text])
        else:
            rounded = {label: float(f"{p:.6g}") for label, p in result.probs.items()}
            line: dict[str, Any] = {"index": record.number, "label": result.label}
            line |= {"labels": result.labels()} if self._has_several else {}
            self._lines.write(json_line(line | {"probs": rounded, "text": record.text}))

    def flush(self) -> None:
        lines = self._lines.getvalue()
        self._lines.seek(0)
        self._lines.truncate()
        if self._mute:
            return
        if self._file is None:
            write(lines)
        else:
            self._file.write(lines.encode("utf-8", "backslashreplace"))
            self._file.flush()

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _resume(self, path: str, header: list[str]) -> int:
        """Cuts off what was not written to its end; gives the index to go on with."""
        last, end, lines = -1, 0, self._file.read().splitlines(keepends=True)
        rows = self._csv_ends(lines) if self._as_csv else self._json_ends(lines)
        for i, (row, at) in enumerate(rows):
            if self._as_csv and i == 0:
                if row != header:
                    raise Failure(f"{path}: not a table of these labels, so it cannot be resumed")
            elif not self._as_csv and list(row.get("probs", {})) != list(self._labels):
                raise Failure(f"{path}: line {i + 1} is not of these labels, so it cannot be resumed")
            else:
                last = int(row[0] if self._as_csv else row["index"])
            end = at
        self._file.seek(end)
        self._file.truncate()
        return last + 1

    def _json_ends(self, lines: Sequence[bytes]) -> Iterator[tuple[Any, int]]:
        """Whole lines, and where they end."""
        end = 0
        for line in lines:
            end += len(line)
            try:
                row = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or not isinstance(row, dict) or not isinstance(row.get("index"), int):
                return
            yield row, end

    def _csv_ends(self, lines: Sequence[bytes]) -> Iterator[tuple[Any, int]]:
        ends = [0]
        for line in lines:
            ends.append(ends[-1] + len(line))
        if lines and not lines[-1].endswith(b"\n"):
            lines = lines[:-1]
        reader = csv.reader((line.decode("utf-8", "replace") for line in lines), strict=True)
        try:
            for row in reader:
                yield row, ends[reader.line_num]
        except csv.Error:
            return  # the last one, in the midst of a quoted text
