"""How good and how fast classification is, beside the same prompts through llama-cpp-python.

    python benches/classify.py model.gguf --data tests/data/reviews.csv --column topic --no-chat
    python benches/classify.py model.gguf --dump prompts.json ...        # the tokens, for the next one
    python benches/classify.py model.gguf --peer prompts.json            # in an environment with llama-cpp-python

`tree` is what the library does: what prompts share once, the labels of a text as a tree in one batch. `text` is the
same without what texts share, `label` scores each label of each text from the beginning. The peer is asked for the same
tokens twice: each label from the beginning, and with the prompt kept in its cache. Prints JSON, a line each.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any


def ours(options: argparse.Namespace) -> None:
    import numpy as np
    from llama_rs import Model
    from llama_rs.classify import evaluation

    with open(options.data, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts, truth = [row["text"] for row in rows], [row[options.column] for row in rows]
    labels = list(dict.fromkeys(truth))
    numbers = [labels.index(label) for label in truth]
    model = Model(options.model, threads=options.threads)

    if options.dump:
        with model.classifier(labels, chat=options.chat) as classifier:
            choices = [classifier._asking.choices(text) for text in texts]
            ends = [i for i in range(model.tokenizer.vocab_size) if model.tokenizer.is_end_of_generation(i)]
            found = {"choices": choices, "ends": ends if classifier._asking.is_chat else [], "truth": numbers}
            Path(options.dump).write_text(json.dumps(found))
        return

    for normalize in ("mean", "sum"):
        with model.classifier(labels, chat=options.chat, normalize=normalize) as classifier:
            start = time.perf_counter()
            scores = classifier.scores(texts)
            seconds = time.perf_counter() - start
            for kind in ("none", "content_free", "batch"):
                classifier.calibration = kind
                report = evaluation(labels, classifier._probs(scores), numbers)._asdict()
                del report["confusion"]
                say(what="accuracy", normalize=normalize, calibration=kind, **report)
            half = [i for i in range(len(texts)) if i % 2]
            rest = [i for i in range(len(texts)) if not i % 2]
            classifier.fit([texts[i] for i in half], [truth[i] for i in half])
            fitted = classifier.evaluate([texts[i] for i in rest], [truth[i] for i in rest])._asdict()
            del fitted["confusion"]
            say(what="accuracy", normalize=normalize, calibration="fitted on the other half", **fitted)
            say(what="speed", how="tree", normalize=normalize, texts_per_second=len(texts) / seconds)
    some = texts[: options.some]
    start = time.perf_counter()
    for text in some:
        with model.classifier(labels, chat=options.chat) as classifier:
            classifier.scores([text])
    say(what="speed", how="text", texts_per_second=len(some) / (time.perf_counter() - start))
    with model.classifier(labels, chat=options.chat) as classifier:
        choices = [classifier._asking.choices(text) for text in some]
    start = time.perf_counter()
    for prompt, answers in choices:
        for answer in answers:
            model.score(prompt, answer)
    say(what="speed", how="label", texts_per_second=len(some) / (time.perf_counter() - start))
    orders = []
    for shift in range(len(labels)):
        turned = labels[shift:] + labels[:shift]
        with model.classifier(turned, chat=options.chat) as classifier:
            orders.append(classifier.evaluate(texts, truth).accuracy)
    say(what="order of labels", accuracy=orders, deviation=float(np.std(orders)))


def peer(options: argparse.Namespace) -> None:
    import llama_cpp
    import numpy as np

    found = json.loads(Path(options.peer).read_text())
    llama = llama_cpp.Llama(
        options.model,
        n_ctx=2048,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        logits_all=True,
        verbose=False,
    )

    def logs(tokens: list[int], first: int) -> list[float]:
        rows = np.array(llama.scores[first - 1 : len(tokens)], dtype=np.float64)
        rows -= rows.max(1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(1, keepdims=True))
        result = [float(rows[i, token]) for i, token in enumerate(tokens[first:])]
        if found["ends"]:
            result.append(float(np.log(np.exp(rows[len(tokens) - first, found["ends"]]).sum())))
        return result

    for how in ("label", "prompt in the cache"):
        right, start = 0, time.perf_counter()
        choices = found["choices"][: options.some if how == "label" else None]
        for (prompt, answers), truth in zip(choices, found["truth"], strict=False):
            scores = []
            for answer in answers:
                tokens = prompt + answer
                kept = 0
                if how != "label":
                    before = llama.input_ids[: llama.n_tokens].tolist()
                    kept = next((i for i, (a, b) in enumerate(zip(before, tokens, strict=False)) if a != b), 0)
                    kept = min(kept or min(len(before), len(tokens)), len(prompt) - 1)
                llama._ctx.kv_cache_seq_rm(-1, kept, -1)
                llama.n_tokens = kept
                llama.eval(tokens[kept:])
                scores.append(np.mean(logs(tokens, len(prompt))))
            right += int(np.argmax(scores)) == truth
        seconds = time.perf_counter() - start
        say(what="speed", how=how, texts_per_second=len(choices) / seconds, accuracy=right / len(choices))


def say(**what: Any) -> None:
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in what.items()}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default="tests/data/reviews.csv")
    parser.add_argument("--column", default="topic")
    parser.add_argument("--no-chat", dest="chat", action="store_const", const=False)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--some", type=int, default=20, help="texts of the slow ways")
    parser.add_argument("--dump")
    parser.add_argument("--peer")
    options = parser.parse_args()
    peer(options) if options.peer else ours(options)
