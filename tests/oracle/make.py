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
from oracle.cases import TOKENS, Case
from oracle.compare import deviation, selected

Array = NDArray[np.float32]


def mlx_logits(case: Case, folder: Path) -> Array:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(case.make().write_directory(folder))
    return np.array(model(mx.array([TOKENS]))[0].astype(mx.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description="Store the logits of other engines.")
    parser.add_argument("cases", nargs="*", help="names of cases, or their beginnings (all)")
    parser.add_argument("--check", action="store_true", help="store nothing")
    parser.add_argument("--influences", action="store_true", help="also run every change of a model")
    args = parser.parse_args()

    failed = False
    print(f"{'case':24} {'deviation':>9} {'mlx - llama.cpp':>15} {'f16 cache':>9}")
    for name, case in selected(args.cases).items():
        problems: list[str] = []
        with tempfile.TemporaryDirectory() as tmp:
            path = case.make().write_gguf(Path(tmp, "tiny.gguf"))
            found: dict[str, Array] = {}
            try:
                found["llama.cpp"] = llama_cpp.run(path, TOKENS, case.context)
                rounded = llama_cpp.run(path, TOKENS, case.context, kv_type=llama_cpp.F16)
            except RuntimeError as error:
                problems.append(str(error))
            try:
                found["mlx"] = mlx_logits(case, Path(tmp, "hf"))
            except Exception as error:
                if case.truth == "mlx":
                    problems.append(f"mlx-lm: {type(error).__name__}: {error}")
            apart = deviation(found["mlx"], found["llama.cpp"]) if len(found) == 2 else np.nan
            if case.but_for and len(found) == 2:
                other = case.make().changed(*case.but_for).write_gguf(path)
                if deviation(found["mlx"], llama_cpp.run(other, TOKENS, case.context)) > case.tolerance / 2:
                    problems.append("they differ in other things too")
            cache = deviation(rounded, found["llama.cpp"]) if "llama.cpp" in found else np.nan
            if apart > case.tolerance / 2 and not case.differs:
                problems.append("they differ")
            if case.differs and not apart > case.tolerance / 2 and "mlx" in found:
                problems.append("they do not differ")
            if cache > case.tolerance:
                problems.append("rounding keys and values to f16 changes too much: choose another seed")
            truth = found.get(case.truth)
            spread = float(truth.std()) if truth is not None else np.nan
            print(f"{name:24} {spread:9.3f} {apart:15.6f} {cache:9.6f}  {'; '.join(problems)}", flush=True)
            if args.influences and "llama.cpp" in found:
                for what, change in case.influences().items():
                    try:
                        changed = llama_cpp.run(case.make().changed(change).write_gguf(path), TOKENS, case.context)
                    except RuntimeError as error:
                        print(f"    {what}: {error}")
                        failed = True
                        continue
                    by = deviation(changed, found["llama.cpp"])
                    if not by > case.visible:
                        print(f"    {what}: {by:.6f}")
                        failed = True
            if problems or truth is None:
                failed = True
            elif not args.check:
                stored.write(name, truth)
    sys.exit(failed)


if __name__ == "__main__":
    main()
