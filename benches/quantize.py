"""Quantised files of ours beside those of llama.cpp: how far their logits are from the source's, and how long it took.

    python benches/quantize.py model-F16.gguf --types Q4_K_M,Q6_K --peer-python peers/bin/python
    python benches/quantize.py model-F16.gguf --types IQ2_XS,IQ3_XXS --imatrix model.imatrix.gguf --peer-python ...

Each type is made twice from the same file, by us and by the `llama_model_quantize` of llama-cpp-python in the peers'
environment, with as many threads. Then both are scored as `quality.py` does it, by our kernels against a float32 pass
of the source: so a difference is one of the files alone. The ratio of the means comes with its standard error, over
positions that both were scored at; which of two files of the same types is nearer is also a matter of chance, some
percent. `error` is none: the squared error of the weights, each by its importance, relative to their squares, a mean
over all matrices. Without --peer-python only ours; with --positions 0 only speed and error.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import quality  # beside this one
from numpy.typing import NDArray


def importance(tensors: Mapping[str, NDArray[np.float32]], name: str) -> NDArray[np.float32]:
    """What an importance matrix says of the columns of a matrix, or of those of each expert."""
    counts = tensors[f"{name}.counts"].reshape(-1, 1)
    return np.asarray(tensors[f"{name}.in_sum2"].reshape(len(counts), -1) / counts)


def squared_error(file: str, source: str, imatrix: str | None) -> float:
    """Of the matrices, relative to their squares, each column by its importance."""
    from llama_rs import Checkpoint

    ours, exact = Checkpoint(file).tensors, Checkpoint(source).tensors
    matrices = {} if imatrix is None else {n: t.numpy() for n, t in Checkpoint(imatrix).tensors.items()}
    errors = []
    for name, tensor in exact.items():
        if len(tensor.shape) != 2:
            continue
        x = tensor.dequantize()
        w = importance(matrices, name)[0] if f"{name}.counts" in matrices else np.ones(x.shape[1], np.float32)
        errors.append(((ours[name].dequantize() - x) ** 2 @ w).sum() / (x**2 @ w).sum())
    return float(np.mean(errors))


def peer(source: str, target: str, file_type: int, imatrix: str | None, threads: int) -> None:
    """Runs in the peers' environment: llama.cpp's quantizer; prints the seconds that it took."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, threads
    kept: list[Any] = []
    if imatrix:

        class Entry(ctypes.Structure):
            _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t))

        from gguf import GGUFReader

        tensors = {t.name: t.data for t in GGUFReader(imatrix).tensors}
        names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
        entries = (Entry * (len(names) + 1))()
        for entry, name in zip(entries, names, strict=False):
            means = np.ascontiguousarray(importance(tensors, name), dtype=np.float32)
            kept.append(means)
            entry.name, entry.size = name.encode(), means.size
            entry.data = means.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
        kept.append(entries)
    start = time.perf_counter()
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        sys.exit(f"llama.cpp made no {target}")
    print(json.dumps(time.perf_counter() - start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of F16, BF16 or F32")
    parser.add_argument("--types", required=True, help="comma-separated")
    parser.add_argument("--imatrix")
    parser.add_argument("--peer-python", help="of an environment with llama-cpp-python, numpy and gguf")
    parser.add_argument("--positions", type=int, default=1024, help="at least this many, whole windows (1024)")
    parser.add_argument("--reference", metavar="NPZ", help="of the source: read if it is there, else written and kept")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--peer", nargs=2, metavar=("TARGET", "FILE_TYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        peer(args.model, args.peer[0], int(args.peer[1]), args.imatrix, args.threads)
        return

    from llama_rs import Checkpoint, _core, quantize

    threads = args.threads or _core.available_threads()
    cpu = quality.available_cpus()[-1]
    source_size = Path(args.model).stat().st_size
    print(f"{cpu}, {threads} threads, {args.positions} positions; MB/s of the source")
    scores = f" {'mean KL':>9} {'same top':>8}" if args.positions else ""
    heads = f"{'type':10} {'MiB':>7} {'MB/s':>6} {'error':>9}{scores}"
    ratios = "error, mean KL" if args.positions else "error"
    print(f"{heads} | {'llama.cpp: MB/s':>15} {'error':>9}{scores} | ratio of {ratios}" if args.peer_python else heads)
    with tempfile.TemporaryDirectory() as folder:
        exact = args.reference or str(Path(folder, "reference.npz"))
        if args.positions and not Path(exact).exists():
            quality.write_reference(args.model, args.positions, exact)

        def score(file: str) -> tuple[str, NDArray[np.float64]]:
            """What a line says of a file, and the divergence of each position."""
            if not args.positions:
                return "", np.empty(0)
            each = str(Path(folder, "each.npy"))
            q = quality.measure(file, exact, cpu, each=each)
            return f" {q.mean:9.5f} {100 * q.same_top:7.1f}%", np.load(each)

        for name in args.types.split(","):
            ours, theirs = str(Path(folder, "ours.gguf")), str(Path(folder, "theirs.gguf"))
            done = quantize(args.model, ours, name, imatrix=args.imatrix, threads=threads)
            words, kl = score(ours)
            lost = squared_error(ours, args.model, args.imatrix)
            line = f"{name:10} {done.bytes / 2**20:7.1f} {source_size / done.seconds / 1e6:6.1f} {lost:9.2e}{words}"
            if args.peer_python:
                file_type = Checkpoint(ours).metadata["general.file_type"]
                command = [args.peer_python, __file__, args.model, "--types", name, "--threads", str(threads)]
                command += ["--peer", theirs, str(file_type)] + (["--imatrix", args.imatrix] if args.imatrix else [])
                run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
                seconds = json.loads(run.stdout.splitlines()[-1])
                words, other = score(theirs)
                lost_there = squared_error(theirs, args.model, args.imatrix)
                line += f" | {source_size / seconds / 1e6:15.1f} {lost_there:9.2e}{words} | {lost / lost_there:.3f}"
                if args.positions:
                    spread = np.std(kl - other) / other.size**0.5 / other.mean()
                    line += f" {kl.mean() / other.mean():.3f} +- {spread:.3f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
