"""Break runs of two processes in every way, by launcher: what is printed, how long all of it takes, what is lost.

    python benchmarks/failures.py [--out benchmarks/results/failures.json] [--only WORD …]

Each run is broken at update 12 of 40. Then the same command runs again, and must end as a run of the same two
processes that nothing has disturbed; and a copy of what was left goes on as one process. `--only` runs the cases whose
names hold one of the words, and keeps the others of the file. Two hosts are network namespaces, which take root.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import cross_entropy

REPOSITORY = Path(__file__).resolve().parents[1]
TIMEOUT = 10  # run.timeout, in seconds
_AT = 12  # the update at which a run is broken
_LIMIT = 120.0  # seconds after which what still runs is said to go on
_MARK = "VIT_DIST_BROKEN"
_PORT = "29533"
_TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
_ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
VALUES: dict[str, Any] = {
    **{"data.workers": 1, "data.image_size": 8, "model.patch_size": 4, "model.width": 32, "model.depth": 2},
    **{"model.heads": 2, "batch.global_size": 16, "batch.micro_size": 8, "optimizer.lr": 1e-3, "train.ema": 0.9},
    **{"train.duration": "40 updates", "evaluate.every": "10 updates", "checkpoint.every": "5 updates"},
    **{"log.every": "1 updates", "log.trackers": "none", "log.report": False, "run.device": "cpu", "run.threads": 1},
    **{"run.timeout": TIMEOUT, "loss.name": "benchmarks.failures:loss"},
}

_forwards = 0


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


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy, slowly; break this process as the environment asks, once in a run."""
    global _forwards
    values = cross_entropy(logits.float(), targets, reduction="none")
    if not logits.requires_grad:
        return values
    time.sleep(0.05)
    _forwards += 1
    act, stamp = os.environ.get("BREAK", ""), Path(os.environ.get("BREAK_STAMP", ""))
    if act and os.environ.get("RANK", "0") == os.environ["BREAK_RANK"]:
        if act == "image":
            if _forwards == _AT - 8:  # workers read ahead
                Path(os.environ["BREAK_FILE"]).write_bytes(b"no image")
            stamp.touch()
        elif _forwards == _AT and not stamp.exists():
            stamp.touch()
            _break(act)
    return values


def _break(act: str) -> None:
    if act == "exception":
        raise RuntimeError("a mistake in the loss")
    if act == "disk":
        with contextlib.suppress(OSError), Path(os.environ["BREAK_FILE"]).open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 10, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass
    else:
        os.kill(os.getpid(), signal.SIGKILL if act == "kill" else signal.SIGSTOP)


def write_images(root: Path) -> None:
    """Write scikit-learn's digits as files: 40 of each for train and 10 for val."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    counts = [0] * 10
    for pixels, label in zip(digits.images, digits.target, strict=True):
        split = "train" if counts[label] < 40 else "val"
        counts[label] += 1
        if counts[label] <= 50:
            folder = root / split / f"digit-{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).save(folder / f"{counts[label]:03}.png")


def file_of_second(root: Path) -> Path:
    """Return the image that process 1 alone reads, at the update where a run is broken."""
    from vit_dist.plan.plan import Plan
    from vit_dist.training.resolve import resolve

    resolved = resolve(_config(root, Path("run")))
    train = resolved.data.splits["train"]
    plan = Plan.from_config(resolved.config, len(train), 2)
    index = int(plan.slots(_AT - 1, 1).index[0])
    source: Any = train.source
    return Path(str(source.paths[train.indices[index]]))


def _config(root: Path, folder: Path, more: Mapping[str, Any] | None = None) -> Any:
    from vit_dist import Config

    return Config.load("folder", {**VALUES, "data.root": str(root), "run.dir": str(folder), **(more or {})})


def _flags(root: Path, folder: Path) -> list[str]:
    values = {**VALUES, "data.root": root, "run.dir": folder}
    return ["--config", "folder", *(f"--{name}={value}" for name, value in values.items())]


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
            if line.startswith(f"update {_AT}/"):
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
            if f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found


def weights(folder: Path) -> list[str]:
    """Return the digest of each file of tensors of the last checkpoint."""
    files = sorted((folder / "checkpoints" / "last").glob("*.safetensors"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def difference(folder: Path, reference: Path) -> float:
    """Return the largest difference between two runs' last weights, relative to the largest weight."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(path / "checkpoints" / "last" / "model.safetensors") for path in (folder, reference))
    largest = max(float(value.abs().max()) for value in theirs.values())
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) / largest


def run_whole(case: Case, nodes: list[Any], root: Path, folder: Path) -> list[int]:
    """Run a case's command with nothing that breaks it; return the exit codes."""
    return Launched(case, nodes, _flags(root, folder), environment()).wait()


def break_run(case: Case, root: Path, work: Path, broken: Path, reference: Path) -> dict[str, Any]:
    """Break a run, run it again, and return a row of the table."""
    from vit_dist import train
    from vit_dist.run_folder.status import status

    folder, stamp = work / "run", work / "stamp"
    filler = work / "filler"
    original = broken.read_bytes()
    environ = {
        **environment(),
        _MARK: str(work),
        "BREAK": case.act if case.act != "link" else "",
        "BREAK_RANK": str(case.rank),
    }
    environ |= {"BREAK_STAMP": str(stamp), "BREAK_FILE": str(broken if case.act == "image" else filler)}
    whole = {**environ, "BREAK": ""}
    with hosts(case) as nodes:
        launched = Launched(case, nodes, _flags(root, folder), environ)
        if case.send is not None or case.act == "link":
            launched.at_update.wait(90)
            begun = time.time()
            if case.send is None:
                nodes[1].set_link("down")
            elif case.send == signal.SIGINT:  # as a terminal does, to the whole group
                os.killpg(launched.processes[-1].pid, case.send)
            else:
                launched.processes[-1].send_signal(case.send)
        else:
            begun = None
        limit, alive = time.monotonic() + 90 + _LIMIT, marked(str(work))
        while alive and time.monotonic() < limit:
            if begun is None and stamp.exists() and case.act != "image":
                begun = stamp.stat().st_mtime
            time.sleep(0.05)
            alive = marked(str(work))
            if begun is not None and time.time() - begun > _LIMIT:
                break
        ended = time.time()
        if case.act == "image":
            begun = stamp.stat().st_mtime
        state = status(folder)
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        codes = launched.wait()
        broken.write_bytes(original)
        filler.unlink(missing_ok=True)
        finished = state.get("state") == "finished"
        alone = work / "alone"
        if not finished and folder.exists() and case.launcher == "torchrun":
            shutil.copytree(folder, alone, symlinks=True)
        if case.act == "link":
            nodes[1].set_link("up")
        again = [] if finished else Launched(case, nodes, _flags(root, folder), whole).wait()
    printed = [line for lines in launched.printed for line in lines]
    told = [line for line in printed if line.startswith("vit-dist: ") and " note: " not in line]
    row = {
        "seconds": round(ended - (begun or ended), 1),
        "goes on": len(alive),
        "exit codes": codes,
        "told": [re.sub(r"/\S*/", "", line) for line in told],
        "lines": len(printed) - sum(line.startswith(("update ", "epoch ")) for line in printed),
        "state": state.get("state"),
        "reason": re.sub(r"/\S*/", "", str(state.get("reason", state.get("error", "")))),
        "update": state.get("update"),
        "again": again,
        "same": weights(folder) == weights(reference),
        "state again": status(folder).get("state"),
    }
    if alone.exists():
        train(_config(root, alone, {"log.level": "warning"}))
        row["difference alone"] = difference(alone, reference)
    return row


def table(rows: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    lines = ["| case | seconds | exit | state | told | again |", "| --- | --- | --- | --- | --- | --- |"]
    for name, row in rows.items():
        alone = row.get("difference alone")
        again = "the same" if row["same"] else f"differs ({row['again']}, {row['state again']})"
        again += f"; alone {alone:.0e}" if alone is not None else ""
        seconds = f"{row['seconds']:.1f}" if not row["goes on"] else f"goes on ({row['goes on']})"
        codes = ", ".join(map(str, row["exit codes"]))
        told = "<br>".join(line.removeprefix("vit-dist: ") for line in row["told"]) or "nothing"
        lines.append(f"| {name} | {seconds} | {codes} | {row['state']} | {told} | {again} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cases, print the table and write the results."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, in all processes below
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "failures.json")
    parser.add_argument("--only", nargs="*", default=[""])
    arguments = parser.parse_args()
    rows: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        root = top / "images"
        write_images(root)
        broken = file_of_second(root)
        references = {}
        for launcher in ("torchrun", "accelerate --cpu"):
            references[launcher] = top / launcher.replace(" ", "")
            codes = run_whole(Case(launcher, ""), [None], root, references[launcher])
            assert codes == [0], codes
        for case in CASES:
            if not any(word in case.name for word in arguments.only):
                continue
            work = top / hashlib.sha256(case.name.encode()).hexdigest()[:8]
            work.mkdir()
            reference = references["accelerate --cpu" if case.launcher == "accelerate --cpu" else "torchrun"]
            if case.act == "disk":
                subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(work)], check=True)
            try:
                rows[case.name] = break_run(case, root, work, broken, reference)
            finally:
                if case.act == "disk":
                    subprocess.run(["umount", "-l", str(work)], check=True)
            print(table({case.name: rows[case.name]}).splitlines()[-1], flush=True)
            rows = {case.name: rows[case.name] for case in CASES if case.name in rows}
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
