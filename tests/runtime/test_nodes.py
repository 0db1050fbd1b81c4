"""Two hosts, each a network namespace, train one run: as two processes of one host do, or say in a line why not."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.processes import run_world
from tests.runs import DIGITS, QUIET
from tests.runtime.namespaces import Node, two_nodes
from tests.runtime.test_launch import ACCELERATE, environment
from vit_dist import Config, train
from vit_dist.run_folder.metrics import read_metrics
from vit_dist.run_folder.status import status

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
VALUES = {**DIGITS, **QUIET, "batch.micro_size": 24, "train.duration": "12 updates", "evaluate.every": "6 updates"}
PORT = "29511"
# Waits for a file to be seen as for a network file system, but not as long.
_IMPATIENT = """
import sys
from vit_dist.__main__ import main
from vit_dist.training import handshake
handshake._LONGEST_WAIT = 0.5
sys.exit(main(["train", *sys.argv[1:]]))
"""

Nodes = tuple[Node, Node]


def flags(folder: Path, **more: Any) -> list[str]:
    """Return the script and the flags of a short run in a folder."""
    values = {**VALUES, "run.dir": folder, **{name.replace("__", "."): value for name, value in more.items()}}
    return ["scripts/train.py", *(f"--{name}={value}" for name, value in values.items())]


def launchers(kind: str, nodes: Nodes) -> list[list[str]]:
    """Return the command of each host that starts the two processes of a run."""
    first = nodes[0]
    if kind == "accelerate":
        configured = [*ACCELERATE, "--config_file", "accelerate_configs/multi_node.yaml"]
        main = ["--main_process_ip", first.address, "--main_process_port", PORT]
        return [[*configured, *main, "--machine_rank", str(rank)] for rank in range(2)]
    if kind == "c10d":  # by the name: where it leads to loopback, torchrun does not know its own address
        return [[*TORCHRUN, "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{first.name}:{PORT}", "--rdzv_id", "1"]] * 2
    main = ["--master_addr", first.name, "--master_port", PORT]
    return [[*TORCHRUN, *main, "--node_rank", str(rank)] for rank in range(2)]


def last_words(
    nodes: Nodes, commands: list[list[str]], environs: list[dict[str, str]], own_disk: Path | None = None
) -> list[tuple[int, str]]:
    """Run a command on each host to its end; return each one's exit code and output. own_disk: of the second host."""
    started = [
        node.start(command, environ, own_disk if node is nodes[1] else None)
        for node, command, environ in zip(nodes, commands, environs, strict=True)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


def ranks(nodes: Nodes) -> list[dict[str, str]]:
    """Return the environment of each host's process, as a launcher sets it."""
    world = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": PORT}
    world |= {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    return [{**environment(), **world, "RANK": str(rank), "MASTER_ADDR": nodes[0].address} for rank in range(2)]


def weights(folder: Path) -> list[str]:
    """Return the digest of each file of tensors of the last checkpoint."""
    files = sorted((folder / "checkpoints" / "last").glob("*.safetensors"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def trained(folder: str) -> str:
    train(Config.load("digits", {**VALUES, "run.dir": folder}))
    return ""


@pytest.fixture(scope="module")
def on_one_host(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the last checkpoint of two processes on one host."""
    folder = tmp_path_factory.mktemp("one-host")
    run_world(2, trained, folder / "logs", str(folder / "run"))
    found = weights(folder / "run")
    assert len(found) == 3
    return found


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with two_nodes() as joined:
        yield joined


@pytest.fixture
def debian_nodes() -> Iterator[Nodes]:
    """Join two hosts whose own names lead to loopback."""
    with two_nodes(loopback=True) as joined:
        yield joined


def check_same(kind: str, nodes: Nodes, folder: Path, on_one_host: list[str]) -> None:
    commands = [[*launcher, *flags(folder)] for launcher in launchers(kind, nodes)]
    done = last_words(nodes, commands, [environment()] * 2)
    assert [code for code, _ in done] == [0, 0], done
    assert weights(folder) == on_one_host
    starts = [line["world_size"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "start"]
    assert starts == [2]


@pytest.mark.parametrize(
    "kind", ["static", pytest.param("c10d", marks=pytest.mark.slow), pytest.param("accelerate", marks=pytest.mark.slow)]
)
def test_hosts_whose_names_lead_to_loopback_reach_each_other(
    kind: str, debian_nodes: Nodes, tmp_path: Path, on_one_host: list[str]
) -> None:
    check_same(kind, debian_nodes, tmp_path / "run", on_one_host)


@pytest.mark.parametrize(
    "kind", ["accelerate", pytest.param("static", marks=pytest.mark.slow), pytest.param("c10d", marks=pytest.mark.slow)]
)
def test_two_hosts_train_as_two_processes_do(kind: str, nodes: Nodes, tmp_path: Path, on_one_host: list[str]) -> None:
    check_same(kind, nodes, tmp_path / "run", on_one_host)


def test_a_run_folder_that_hosts_do_not_share_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    folder = disk / "run"
    commands = [[sys.executable, "-c", _IMPATIENT, *flags(folder)[1:]]] * 2

    def refusal() -> str:
        """Return the one line that the first host prints; check that neither prints more than notes beside it."""
        (code, main), (other_code, other) = last_words(nodes, commands, ranks(nodes), disk)
        assert (code, other_code) == (2, 2)
        (line,) = [text for text in main.splitlines() if text.startswith("vit-dist: ") and " note: " not in text]
        assert "Traceback" not in main + other
        return line

    who = f"vit-dist: process 1 on {nodes[1].name}: "
    assert refusal() == (
        f"{who}run.dir: {folder} is not the folder that {nodes[0].name} writes to: use storage that hosts share"
    )
    assert not (folder / "checkpoints").exists()

    train(Config.load("digits", {**VALUES, "train.duration": "6 updates", "run.dir": str(folder)}))
    before = weights(folder)
    last = folder / "checkpoints" / "update_00000006"
    assert refusal() == f"{who}{last} is not there: a run's folder must be on storage that all machines share"
    assert weights(folder) == before


def test_a_link_that_is_cut_ends_both_hosts(nodes: Nodes, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, *flags(folder, train__duration="100000 updates", log__every="1 updates", run__timeout=7)]
    processes = [node.start(command, environ) for node, environ in zip(nodes, ranks(nodes), strict=True)]
    assert processes[0].stdout is not None
    for line in processes[0].stdout:
        if line.startswith("update 3/"):
            nodes[1].set_link("down")
            break
    outputs = [process.communicate(timeout=90)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], outputs
    told = [re.findall(r"^vit-dist: (process .*)$", output, re.MULTILINE) for output in outputs]
    assert [len(lines) for lines in told] == [1, 1], outputs
    main, other = told[0][0], told[1][0]
    assert re.match(rf"process 1 of 2 on {nodes[1].name} does not answer for \d+ s \(run.timeout\)", main)
    assert re.match(rf"process 1 on {nodes[1].name}: no answer from other processes for \d+ s \(run.timeout\), ", other)
    assert f", nor is there an answer from {nodes[0].address}:{PORT}: " in other
    assert "Traceback" not in outputs[0] + outputs[1]
    assert status(folder)["state"] == "failed"
