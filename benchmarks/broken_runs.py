"""Ways to break a run of two processes, and its launchers, on one host or on two."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from breaking_loss import AT

REPOSITORY = Path(__file__).resolve().parents[1]
MARK = "VIT_DIST_BROKEN"
_PORT = "29533"
_TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
_ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]


class Case(NamedTuple):
    """A way to break a run. act: what the process `rank` does to itself; or what is sent to a launcher."""

    launcher: str
    kind: str
    act: str = ""
    rank: int = 1
    send: signal.Signals | None = None
    restarts: int = 0

    @property
    def name(self) -> str:
        """Return the launcher and the kind, in words."""
        return f"{self.launcher}: {self.kind}"


_ACTS = [
    ("an image is broken", "image", 1),
    ("an exception in process 1", "exception", 1),
    ("an exception in process 0", "exception", 0),
    ("process 1 is killed", "kill", 1),
    ("process 0 is killed", "kill", 0),
    ("process 1 is stopped (SIGSTOP)", "stop", 1),
    ("the disk of run.dir is full", "disk", 0),
]
_SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL]
_RESTARTS = [
    ("torchrun", 1),
    ("torchrun, static", 1),
    ("torchrun, static", 3),
    ("two hosts", 1),
    ("two hosts", 3),
    ("two hosts, c10d", 1),
    ("two hosts, c10d", 3),
]
CASES = [
    *(Case("two hosts", *act) for act in _ACTS),
    Case("two hosts", "the link is cut", "link"),
    Case("two hosts, c10d", "the link is cut", "link"),
    Case("two hosts, c10d", "process 1 is killed", "kill"),
    *(Case("torchrun", *act) for act in _ACTS),
    *(
        Case(launcher, f"{number.name} to the launcher", send=number)
        for launcher in ("accelerate --cpu", "torchrun")
        for number in _SIGNALS
    ),
    *(Case("two hosts", f"{_SIGNALS[i].name} to the second launcher", send=_SIGNALS[i]) for i in (0, 1, 4)),
    *(
        Case(launcher, f"process 1 is killed, --max_restarts {restarts}", "kill", restarts=restarts)
        for launcher, restarts in _RESTARTS
    ),
    *(Case("accelerate", *act) for act in _ACTS),
    *(Case("accelerate", f"{number.name} to the launcher", send=number) for number in _SIGNALS),
]


def commands(case: Case, addresses: list[str]) -> list[list[str]]:
    """Return the launcher's command on each host."""
    restarts = ["--max_restarts", str(case.restarts)] if case.restarts else []
    first = addresses[0]
    if case.launcher == "torchrun":
        return [[*_TORCHRUN, "--standalone", "--nproc_per_node", "2", *restarts]]
    if case.launcher == "torchrun, static":
        return [[*_TORCHRUN, "--nproc_per_node", "2", "--master_port", _PORT, *restarts]]
    if case.launcher == "accelerate --cpu":
        return [[*_ACCELERATE, "--cpu"]]
    if case.launcher == "accelerate":
        configured = ["--config_file", "accelerate_configs/multi_gpu.yaml", "--main_process_port", _PORT]
        return [[*_ACCELERATE, *configured]]
    host = [*_TORCHRUN, "--nnodes", "2", "--nproc_per_node", "1", *restarts]
    if case.launcher == "two hosts, c10d":
        return [[*host, "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{first}:{_PORT}", "--rdzv_id", "1"]] * 2
    main = ["--master_addr", first, "--master_port", _PORT]
    return [[*host, *main, "--node_rank", str(rank)] for rank in range(2)]


@contextlib.contextmanager
def hosts(case: Case) -> Iterator[list[Any]]:
    """Give the two hosts of a case, or this machine alone."""
    if not case.launcher.startswith("two hosts"):
        yield [None]
        return
    from tests.runtime.namespaces import two_nodes

    with two_nodes() as nodes:
        yield list(nodes)


class Launched:
    """The launchers of a run, one for each host, and what they print."""

    def __init__(self, case: Case, nodes: list[Any], flags: list[str], environ: dict[str, str]) -> None:
        self.printed: list[list[str]] = [[] for _ in nodes]
        self.at_update = threading.Event()
        words = commands(case, [node.address if node else "127.0.0.1" for node in nodes])
        self.processes = []
        for node, command in zip(nodes, words, strict=True):
            full = [*command, "scripts/train.py", *flags]
            process = subprocess.Popen(
                node.command(full) if node else full,
                cwd=REPOSITORY,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            self.processes.append(process)
        self._readers = [threading.Thread(target=self._read, args=(number,)) for number in range(len(nodes))]
        for reader in self._readers:
            reader.start()

    def _read(self, number: int) -> None:
        output = self.processes[number].stdout
        assert output is not None
        for line in output:
            self.printed[number].append(line.rstrip())
            if line.startswith(f"update {AT}/"):
                self.at_update.set()

    def wait(self) -> list[int]:
        """Wait for the ends of the launchers and of their output; return their exit codes."""
        codes = [process.wait() for process in self.processes]
        for reader in self._readers:
            reader.join(20)
        return codes


def environment() -> dict[str, str]:
    """Return this environment, without what another launcher has left in it."""
    dropped = ("ACCELERATE_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "TORCHELASTIC", "BREAK")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def marked(mark: str) -> set[int]:
    """Return the ids of the processes that have a mark in their environment, launchers included."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found
