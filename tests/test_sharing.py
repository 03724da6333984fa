"""Processes that use one model share one copy of it: counted in PSS, where each page counts by one over its users."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
from llama_rs import Model, _core
from llama_rs.residency import Residency, is_known, processes, residency
from oracle.cases import CASES
from tiny_model import write_tiny_model

MIB = 1 << 20
LLAMA_RS = [sys.executable, "-m", "llama_rs"]

# Answers, says so, and waits with the session open.
WORKER = """
import sys
from llama_rs import Model

model = Model(sys.argv[1], threads=1, context_length=512)
stream = model.stream("Once upon a time", temperature=0, ignore_eos=True)
for _ in range(16):
    next(stream)
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def worker(path: Path) -> Iterator[int]:
    command = [sys.executable, "-c", WORKER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process.pid


def pss(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as f:
        return sum(int(line.split()[1]) << 10 for line in f if line.startswith("Pss:"))


def test_one_more_process_costs_little(smollm2: Path) -> None:
    size = smollm2.stat().st_size
    with ExitStack() as stack:
        pids = [stack.enter_context(worker(smollm2))]
        alone = pss(pids[0])
        pids += [stack.enter_context(worker(smollm2)) for _ in range(3)]
        together = sum(map(pss, pids))
    assert alone > 0.6 * size, "the model is part of the sum"
    assert together - alone < 3 * 40 * MIB, f"{(together - alone) / MIB:.0f} MiB for three more processes"


def test_the_whole_file_is_mapped_shared_and_never_written(smollm2: Path) -> None:
    with worker(smollm2) as pid, open(f"/proc/{pid}/smaps") as f:
        lines = f.read().splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith(str(smollm2)))
    values = {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines[at + 1 : at + 20])}
    assert lines[at].split()[1] == "r--s"
    assert values["Private_Dirty"] == values["Shared_Dirty"] == 0


def test_the_processes_that_map_a_file_are_found(tiny: Path) -> None:
    model = Model(tiny)
    model.generate([1], max_tokens=1)
    core = model._handle.checkpoint()
    assert [p.pid for p in processes(core)] == [os.getpid()]
    with worker(tiny) as pid:
        found = {p.pid: p for p in processes(core)}
    assert found.keys() == {os.getpid(), pid}
    assert 0 < found[pid].pss <= tiny.stat().st_size
    assert found[pid].pss < found[pid].pss_total
    assert "python" in found[pid].command


def drop_from_memory(path: Path) -> None:
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def good(*arguments: str | Path) -> str:
    command = [*LLAMA_RS, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def cold(tmp_path: Path, smollm2: Path) -> Path:
    path = tmp_path / "cold.gguf"
    path.write_bytes(smollm2.read_bytes())
    drop_from_memory(path)
    return path


def status(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(good("status", "--json", path))
    return data


def test_status_shows_what_is_missing_and_reads_nothing(cold: Path) -> None:
    assert "missing" in good("status", cold)
    first, second = status(cold), status(cold)
    # Nothing is read; the kernel may still drop a page.
    assert second["resident"] <= first["resident"] < first["bytes"] / 4
    assert first["bytes"] == cold.stat().st_size
    assert sum(t["resident"] for t in first["tensors"]) <= first["resident"]
    assert [part["name"] for part in first["layers"]][:3] == ["header", "token_embd", "blk.0"]
    assert len(first["tensors"]) == 272
    assert first["processes"] == []


def test_warm_reads_all_of_it(cold: Path) -> None:
    assert status(cold)["resident"] < cold.stat().st_size / 4
    assert "in memory" in good("warm", cold)
    data = status(cold)
    assert data["resident"] > 0.99 * data["bytes"]  # the kernel may take back pages of a file that nobody uses


def test_what_is_locked_is_there(tiny: Path) -> None:
    with subprocess.Popen([*LLAMA_RS, "warm", "--lock", str(tiny)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert "in memory" in process.stdout.readline()
        data, text = status(tiny), good("status", tiny)
        process.terminate()
    assert data["resident"] == data["bytes"]
    assert all(part["resident"] == part["bytes"] for part in [*data["layers"], *data["tensors"]])
    assert "All of it is there." in text
    assert "100%  ████████████████████████████████" in text


def test_an_answer_reads_of_the_embedding_only_some_rows(tmp_path: Path) -> None:
    # Rows of 64 KiB, and more of them than the system reads ahead when the header is read.
    path = write_tiny_model(tmp_path / "wide.gguf", "F16", dim=32768, head_dim=16, hidden_dim=64, n_layers=1)
    drop_from_memory(path)
    with Model(path) as model:
        model.generate([1, 200], max_tokens=1, temperature=0)
        parts = {part.name: part for part in model.residency().layers}
    embedding = parts["token_embd"]
    assert min(embedding.pieces) == 0, "what lies between the rows, and is not read with the header or the next layer"
    assert parts["blk.0"].resident == parts["blk.0"].bytes
    assert parts["output"].resident == parts["output"].bytes


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_warm_keeps_it_locked_until_told_to_stop(tiny: Path, stop: signal.Signals) -> None:
    command = [*LLAMA_RS, "warm", "--lock", str(tiny)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert "in memory" in process.stdout.readline()
        with open(f"/proc/{process.pid}/status") as f:
            locked = next(int(line.split()[1]) for line in f if line.startswith("VmLck:"))
        assert locked >= tiny.stat().st_size >> 10
        process.send_signal(stop)
        assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == (130 if stop == signal.SIGINT else 0)


# The sums of residency


class FileBeingRead:
    """A file with tensors and without contents, of which the kernel says something else each time."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.asked = 0

    def tensor_spans(self) -> list[tuple[str, int, int]]:
        return [(name, 5000 + 10_007 * i, 10_000) for i, name in enumerate(self.names)]

    def files(self) -> list[tuple[str, int, int, int]]:
        return [("model.gguf", 0, 0, self.size())]

    def size(self) -> int:
        return 5000 + 10_007 * len(self.names) + 100

    def resident(self, start: int, end: int) -> int:
        self.asked += 1
        return (self.asked * 7919) % (end - start + 1)


def surveyed(names: list[str]) -> tuple[FileBeingRead, Residency]:
    file = FileBeingRead(names)
    return file, residency(cast(_core.Checkpoint, file))


def test_the_numbers_of_a_file_that_is_being_read_fit_together() -> None:
    names = [f"blk.{i}.{part}.weight" for i in range(3) for part in ("attn_q", "attn_k", "ffn_up")]
    file, what = surveyed([*names, "token_embd.weight", "output.weight"])
    in_layers = sum(layer.resident for layer in what.layers)
    header = what.layers[0].resident
    assert in_layers == header + sum(tensor.resident for tensor in what.tensors)
    between = file.size() - 5000 - 10_000 * len(file.names)
    assert in_layers <= what.resident <= in_layers + between
    for layer in what.layers:
        assert 0 <= min(layer.pieces) <= max(layer.pieces) <= 1
        assert sum(layer.pieces) / len(layer.pieces) == pytest.approx(layer.resident / layer.bytes, abs=0.01)
    assert [t.name for t in what.tensors] == file.names


def test_layers_come_in_the_order_of_a_pass() -> None:
    names = [
        "output.weight",
        *(f"blk.{i}.attn_q.weight" for i in (1, 10, 2, 0)),
        "output_norm.weight",
        "token_embd.weight",
    ]
    _, what = surveyed(names)
    assert [layer.name for layer in what.layers] == [
        *("header", "token_embd", "blk.0", "blk.1", "blk.2", "blk.10", "output", "output_norm")
    ]


def test_the_kernel_is_asked_a_few_times_for_a_tensor() -> None:
    for n in (100, 1000):
        file, _ = surveyed([f"t{i}.weight" for i in range(n)])
        assert file.asked <= 40 * n
        file, _ = surveyed([f"blk.0.t{i}.weight" for i in range(n)])
        assert file.asked <= 3 * n + 40


# Somebody else may not look into the folders of Python: all that is needed is imported before.
AS_NOBODY = """
import json, mmap, os, sys
import llama_rs.cli.status, llama_rs.cli.warm

os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.exit(llama_rs.cli.main())
"""


def test_what_the_kernel_does_not_tell_is_not_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.geteuid() != 0:
        # A file of root: whoever may not write to it is not told.
        assert not is_known("/etc/passwd")
        assert is_known(tmp_path_factory.mktemp("own"))
        return
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = write_tiny_model(Path(folder) / "model.gguf")

        def run(*arguments: str) -> str:
            command = [sys.executable, "-c", AS_NOBODY, *arguments, str(path)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        assert "cannot be known" in run("status")
        data = json.loads(run("status", "--json"))
        assert (data["resident"], data["layers"], data["tensors"]) == (None, None, None)
        assert "cannot be known" in run("warm")
        assert json.loads(run("warm", "--json"))["resident_before"] is None
    assert is_known(path.parent.parent)


def test_experts_are_counted_one_by_one(tmp_path: Path) -> None:
    path = CASES["mixtral"].make().write_gguf(tmp_path / "mixtral.gguf")
    config = CASES["mixtral"].make().config
    what = Model(path).residency()
    assert [len(experts.shares) for experts in what.experts] == [config["num_local_experts"]] * len(what.experts)
    assert {share for experts in what.experts for share in experts.shares} == {1.0}  # just written
    stacks = [part for part in what.tensors if "_exps." in part.name]
    assert sum(experts.bytes for experts in what.experts) == sum(part.bytes for part in stacks) > 0
