"""What guessing tokens ahead gains, and that it changes nothing.

    python benches/speculation.py model.gguf [--draft smaller.gguf] --threads 2
    python benches/speculation.py model.gguf --identity 50

A summary and an edit of code repeat what was there, which is what prompt lookup lives of; a story does not, and shows
what wrong guesses cost. Each is asked plainly and with guesses in turns, greedily, and the best of the rounds counts.
With `--identity` so many answers are compared, greedy ones and sampled ones, token for token.
"""

from __future__ import annotations

import argparse
from typing import Any

from llama_rs import Model

TEXT = (
    "The lighthouse at Cape Aldan was built in 1851, after three ships had been lost on the reef in one winter. Its "
    "first keeper, Tomas Berg, lived there with his wife and two sons for thirty-one years. The lamp burned whale "
    "oil until 1874, when it was changed to paraffin, and electric light came only in 1932. In the storm of 1889 "
    "the sea broke the lower door and put out the lamp for four hours, the only time in its history that it was "
    "dark at night. The tower is thirty-four metres high, and its light can be seen from eighteen nautical miles "
    "away. Since 1981 nobody has lived there, and the lamp is looked after by a machine that a technician visits "
    "twice a year."
)
CODE = """\
class Cart:
    def __init__(self):
        self.items = []

    def add(self, name, price, count=1):
        self.items.append((name, price, count))

    def total(self):
        result = 0
        for name, price, count in self.items:
            result += price * count
        return result

    def describe(self):
        lines = []
        for name, price, count in self.items:
            lines.append(f"{count} x {name}: {price * count:.2f}")
        lines.append(f"total: {self.total():.2f}")
        return "\\n".join(lines)
"""
TASKS = {
    "summary": f"Summarize this text in its own words and sentences.\n\n{TEXT}",
    "code edit": f"Write this Python class again, with the method `add` renamed to `put`:\n\n```python\n{CODE}```",
    "story": "Tell a story about a dragon who is afraid of mice.",
}
TOPICS = ["the sea", "a bridge", "bread", "a violin", "snow", "a market", "the moon", "a train", "bees", "a letter"]
FORMS = [
    "Write two sentences about {}.",
    "List five words that have to do with {}, one a line, and then the same list again.",
    "Question: what is said about {}?\nAnswer:",
    "def describe():\n    # {}\n",
    "The text is about {0}. The text is about {0}. The text is",
]


def prompts(n: int) -> list[str]:
    """Some that repeat, and some that do not."""
    return [FORMS[i % len(FORMS)].format(TOPICS[i // len(FORMS) % len(TOPICS)]) for i in range(n)]


def identity(model: Model, ways: dict[str, Any], n: int, max_tokens: int) -> None:
    """Compares answers with guesses and without."""
    for kind, options in (("greedy", {"temperature": 0.0}), ("sampled", {"temperature": 0.8})):
        asked: dict[str, Any] = {"max_tokens": max_tokens, "ignore_eos": True, **options}
        plain = [model.generate(prompt, seed=i, **asked) for i, prompt in enumerate(prompts(n))]
        for name, way in ways.items():
            done = [model.generate(p, seed=i, speculative=way, **asked) for i, p in enumerate(prompts(n))]
            same = sum(a.token_ids == b.token_ids for a, b in zip(plain, done, strict=True))
            drafted = sum(b.timings.drafted_tokens for b in done)
            accepted = sum(b.timings.accepted_tokens for b in done)
            print(f"{kind}, {name}: {same} of {n} answers are the same; {accepted} of {drafted} guesses were right")


def speed(model: Model, ways: dict[str, Any], max_tokens: int, rounds: int) -> None:
    """Tokens per second of each task in each way."""
    for task, question in TASKS.items():
        best: dict[str, tuple[float, str]] = {}
        first: list[int] | None = None
        for _ in range(rounds):
            for name, way in {"plain": None, **ways}.items():
                done = model.chat(question, temperature=0, max_tokens=max_tokens, speculative=way)
                first = done.token_ids if first is None else first
                assert done.token_ids == first, f"{task}: {name} is another answer"
                t = done.timings
                said = f"{t.accepted_tokens} of {t.drafted_tokens} guesses right" if way else ""
                best[name] = max(best.get(name, (0.0, "")), (t.generated_tokens / t.generation_seconds, said))
        plain = best["plain"][0]
        for name, (tokens_per_second, said) in best.items():
            print(f"{task:<9} {name:<14} {tokens_per_second:6.1f} tokens/s  {tokens_per_second / plain:.2f} x  {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft", help="a smaller model of the same vocabulary")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--identity", type=int, metavar="N", help="compare N answers, and measure nothing")
    arguments = parser.parse_args()
    model = Model(arguments.model, threads=arguments.threads)
    ways: dict[str, Any] = {"prompt-lookup": "prompt-lookup"}
    if arguments.draft:
        ways["draft"] = Model(arguments.draft, threads=arguments.threads)
    if arguments.identity:
        identity(model, ways, arguments.identity, min(arguments.max_tokens, 48))
    else:
        speed(model, ways, arguments.max_tokens, arguments.rounds)


if __name__ == "__main__":
    main()
