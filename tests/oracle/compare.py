"""How far are our logits from the stored ones?

    python tests/oracle/compare.py                     # all cases
    python tests/oracle/compare.py qwen2 gemma         # those whose names begin so
    python tests/oracle/compare.py gemma3 --influences # also: which changes of the model do our logits not show?
    python tests/oracle/compare.py gemma3 --write DIR  # leave the files there
    python tests/oracle/compare.py --directory         # the same of the directories that the files came from

`apart` is the root mean square of the difference in deviations of the logits; `first` the first position that is off.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from oracle import stored
from oracle.cases import CASES, TOKENS, Case

Array = NDArray[np.float32]


def deviation(ours: Array, exact: Array) -> float:
    """The root mean square of the difference, in standard deviations of the exact logits; of one number its share."""
    assert ours.shape == exact.shape
    return float(np.sqrt(np.mean((ours - exact) ** 2)) / (exact.std() if exact.size > 1 else np.abs(exact).max()))


def our_logits(path: Path, case: Case) -> Array:
    """Logits of llama_rs, all positions."""
    from llama_rs import Model

    with Model(path).session(context_length=case.context) as session:
        return session.logits(TOKENS)


def our_answer(path: Path, case: Case, kind: str) -> Array:
    """What llama_rs says, of what is stored as `kind`: logits; vectors by pooling; scores."""
    from llama_rs import Model

    if kind == "logits":
        return our_logits(path, case)
    with Model(path, context_length=case.context) as model:
        if kind == "rank":
            handle = model._handle
            return np.array(handle.rank([TOKENS], case.context, model.threads, model.kv_type, [])[0], np.float32)
        if kind == "none":
            return model.embed([TOKENS], pooling="none", normalize=False)[0]
        pooling: Literal["mean", "cls", "last"] = kind  # type: ignore[assignment]
        (vector,) = model.embed([TOKENS], pooling=pooling, normalize=False)
        return np.asarray(vector)


def apart(path: Path, name: str, case: Case) -> float:
    """The largest deviation of what is stored of a case."""
    kinds = case.poolings or ["logits"]
    return max(deviation(our_answer(path, case, kind), stored.read(name, kind)) for kind in kinds)


def selected(beginnings: list[str], cases: Mapping[str, Case] = CASES) -> dict[str, Case]:
    """Cases whose names are among these or, if none is, begin with one."""
    found = {
        name: case
        for name, case in cases.items()
        if not beginnings or any(name == b or (b not in cases and name.startswith(b)) for b in beginnings)
    }
    if not found:
        sys.exit(f"no such case; there are {', '.join(cases)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare our logits with the stored ones.")
    parser.add_argument("cases", nargs="*", help="names of cases, or their beginnings (all)")
    parser.add_argument(
        "--influences",
        action="store_true",
        help="also run every change of a model; print wrong ones",
    )
    parser.add_argument("--directory", action="store_true", help="open Hugging Face's directory, not the GGUF")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="leave the GGUF files there")
    args = parser.parse_args()

    failed = False
    print(f"{'case':24} {'apart':>9} {'allowed':>7} {'largest':>9} {'scale':>7} {'same top':>8}  first")
    with tempfile.TemporaryDirectory() as tmp:
        folder = args.write or Path(tmp)
        folder.mkdir(exist_ok=True, parents=True)
        for name, case in selected(args.cases).items():
            tiny = case.make()
            path = tiny.write_directory(folder / name) if args.directory else tiny.write_gguf(folder / f"{name}.gguf")
            exact = stored.read(name)
            try:
                ours = our_logits(path, case)
            except Exception as error:
                print(f"{name:24} {type(error).__name__}: {error}")
                failed = True
                continue
            apart = deviation(ours, exact)
            by_position = np.sqrt(np.mean((ours - exact) ** 2, axis=1)) / exact.std()
            off = np.flatnonzero(~(by_position <= 3 * case.tolerance))
            top = np.sum(ours.argmax(1) == exact.argmax(1))
            where = f"position {off[0]} ({len(off)} of {len(exact)})" if len(off) else ""
            print(
                f"{name:24} {apart:9.6f} {case.tolerance:7.4f} {np.abs(ours - exact).max():9.6f} "
                f"{np.abs(exact).max():7.2f} {top:5d}/{len(exact)}  {where}"
            )
            failed |= not apart <= case.tolerance
            if args.influences:
                seen = dict.fromkeys(case.influences(), True) | dict.fromkeys(case.without_influence(), False)
                for what, change in {**case.influences(), **case.without_influence()}.items():
                    changed = our_logits(tiny.changed(change).write_gguf(folder / "changed.gguf"), case)
                    by = deviation(changed, exact)
                    if not by > case.visible if seen[what] else by > case.tolerance:
                        print(f"    {what}: {by:.6f}")
                        failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
