"""Runs mlx-lm and llama.cpp on the cases and stores what they say: `pip install '.[oracle]'`.

    python tests/oracle/make.py                  # all
    python tests/oracle/make.py llama qwen2      # those whose names begin so
    python tests/oracle/make.py --check          # stores nothing
    python tests/oracle/make.py --influences     # also: does llama.cpp's answer show each change that the tests make?

A case is stored when both agree, or when it says why they differ; and when llama.cpp with keys and values of f16, which
is what we have, is as near as our tests ask of us: a router that is torn between two experts is no test of anything.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from oracle import llama_cpp, stored
from oracle.cases import CASES, ENCODERS, TOKENS, Case
from oracle.compare import deviation, selected
from oracle.tiny import Change

Array = NDArray[np.float32]


def mlx_logits(case: Case, folder: Path) -> Array:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model, _ = load_model(case.make().write_directory(folder))
    logits = model(mx.array([TOKENS]), cache=make_prompt_cache(model))[0]
    return np.array(logits.astype(mx.float32))


def llama_cpp_answers(case: Case, path: Path, *changes: Change, kv_type: int = llama_cpp.F32) -> dict[str, Array]:
    case.make().changed(*case.as_if, *changes).write_gguf(path)
    if not case.poolings:
        return {"logits": llama_cpp.run(path, TOKENS, case.context, kv_type=kv_type)}
    return {pooling: llama_cpp.run(path, TOKENS, case.context, pooling=pooling) for pooling in case.poolings}


def make(name: str, case: Case, folder: Path) -> tuple[dict[str, Array], list[str]]:
    """What is to be stored, and what is wrong with it."""
    problems: list[str] = []
    path = folder / "tiny.gguf"
    answers = llama_cpp_answers(case, path)
    rounded = llama_cpp_answers(case, path, kv_type=llama_cpp.F16)
    cache = max(deviation(rounded[kind], answers[kind]) for kind in answers)
    if cache > case.tolerance:
        problems.append("rounding keys and values to f16 changes too much: choose another seed")
    apart = np.nan
    if case.make().hf and not case.poolings:
        try:
            mlx = mlx_logits(case, folder / "hf")
        except (ModuleNotFoundError, ValueError) as error:
            if case.truth == "mlx":
                problems.append(f"mlx-lm: {error}")
        else:
            apart = deviation(mlx, answers["logits"])
            differ = not apart <= case.tolerance / 2
            if differ and not case.differs:
                problems.append("they differ")
            if not differ and case.differs:
                problems.append("they do not differ")
            but_for = llama_cpp_answers(case, path, *case.but_for)["logits"]
            if case.but_for and not deviation(mlx, but_for) <= case.tolerance / 2:
                problems.append("they differ in other things too")
            if case.truth == "mlx":
                answers["logits"] = mlx
    spread = float(next(iter(answers.values())).std())
    print(f"{name:24} {spread:9.3f} {apart:15.6f} {cache:9.6f}  {'; '.join(problems)}", flush=True)
    return answers, problems


def wrong_changes(case: Case, folder: Path) -> list[str]:
    """The changes that llama.cpp's answers do not show and should, or show and should not."""
    answers = llama_cpp_answers(case, folder / "tiny.gguf")
    wrong: list[str] = []
    for what, change in {**case.influences(), **case.without_influence()}.items():
        changed = llama_cpp_answers(case, folder / "tiny.gguf", change)
        by = max(deviation(changed[kind], answers[kind]) for kind in answers)
        if by > case.visible if what in case.without_influence() else not by > case.visible:
            wrong.append(f"{what}: {by:.6f}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description="Store the logits of other engines.")
    parser.add_argument("cases", nargs="*", help="names of cases, or their beginnings (all)")
    parser.add_argument("--check", action="store_true", help="store nothing")
    parser.add_argument("--influences", action="store_true", help="also run every change of a model")
    args = parser.parse_args()

    failed = False
    print(f"{'case':24} {'deviation':>9} {'mlx - llama.cpp':>15} {'f16 cache':>9}")
    for name, case in selected(args.cases, {**CASES, **ENCODERS}).items():
        with tempfile.TemporaryDirectory() as tmp:
            try:
                answers, problems = make(name, case, Path(tmp))
                wrong = wrong_changes(case, Path(tmp)) if args.influences else []
            except RuntimeError as error:
                print(f"{name:24} {error}")
                failed = True
                continue
        for what in wrong:
            print(f"    {what}")
        failed |= bool(problems or wrong)
        if not problems and not args.check:
            stored.write(name, answers)
    sys.exit(failed)


if __name__ == "__main__":
    main()
