"""One of two processes fails, is killed, stopped or hangs: one line says so, and the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests import custom_losses
from tests.training.test_kill_points import _CONTEXT, CONFIG
from vit_dist.cli.main import main
from vit_dist.errors import UserError
from vit_dist.run_folder.status import status

HOST = socket.gethostname()
# Two micro-batches of each rank an update: the fault comes in the backward of the first of update 4.
TWO = {**CONFIG, "batch.micro_size": 6, "loss.name": "tests.custom_losses:acting", "train.ema": 0, "log.level": "info"}
AT = 7


def mistake() -> None:
    raise UserError("data.root: broken.png cannot be read: remove it")


def crash() -> None:
    raise KeyError("a name")


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    threading.Event().wait()


def terminate_at(opened: str) -> None:
    """Send SIGTERM to this process when it opens a file whose path holds a text."""
    waits = [opened]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if waits and event == "open" and waits[0] in str(arguments[0]):
            waits.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    sys.addaudithook(watch)


def train_rank(folder: str, rank: int, port: int, log: str, faults: dict[int, Any], timeout: float) -> None:
    """Train as one of two ranks, whose output goes to a file.

    faults: what a rank does at a forward pass, or a text of the path at whose opening it gets a SIGTERM.
    """
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if isinstance(faults.get(rank), str):
        terminate_at(faults[rank])
    elif rank in faults:
        custom_losses.actions[AT] = faults[rank]
    flags = [word for name, value in TWO.items() for word in (f"--{name}", _flag(value))]
    sys.exit(main(["train", "--run.dir", folder, "--run.timeout", str(timeout), *flags]))


def _flag(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", '"')


def world(folder: Path, faults: dict[int, Any], timeout: float = 60.0) -> tuple[list[int | None], list[str]]:
    """Train with two ranks; return their exit codes, None for one that has not ended, and what each printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [str(folder.parent / f"{folder.name}-{rank}.log") for rank in range(2)]
    ranks = [
        _CONTEXT.Process(target=train_rank, args=(str(folder), rank, port, logs[rank], faults, timeout))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    stopped = {rank for rank, fault in faults.items() if fault is stop}
    for rank in {0, 1} - stopped:
        ranks[rank].join(100)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    return codes, [Path(log).read_text() for log in logs]


def last_weights(folder: Path) -> bytes:
    return (folder / "checkpoints" / "last" / "model.safetensors").read_bytes()


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("vit-dist: ")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole") / "run"
    codes, outputs = world(folder, {})
    assert codes == [0, 0], outputs
    return last_weights(folder)


@pytest.mark.parametrize(
    ("rank", "fault", "timeout", "codes", "line"),
    [
        (1, mistake, 60, [2, 2], f"process 1 on {HOST}: data.root: broken.png cannot be read: remove it"),
        (0, mistake, 60, [2, 2], "data.root: broken.png cannot be read: remove it"),
        (1, crash, 60, [1, 1], f"process 1 on {HOST}: KeyError: 'a name'"),
        (1, kill, 60, [1, -9], f"process 1 of 2 on {HOST} ended without a word: killed, or out of memory"),
        (1, stop, 4, [1, None], f"process 1 of 2 on {HOST} does not answer for SECONDS s (run.timeout)"),
        (1, hang, 4, [1, 1], f"process 1 of 2 on {HOST} has made no progress for SECONDS s (run.timeout), and"),
    ],
    ids=["mistake", "mistake of rank 0", "exception", "killed", "stopped", "hangs"],
)
def test_a_process_that_fails_is_named_in_one_line_and_the_run_goes_on(
    rank: int, fault: Any, timeout: float, codes: list[int | None], line: str, whole: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ended, outputs = world(folder, {rank: fault}, timeout)
    assert ended == codes, outputs
    (said,) = (each.removeprefix("vit-dist: ") for each in lines(outputs[0]))
    seconds = re.search(r"for (\d+) s \(run.timeout\)", said)
    if seconds:  # at least run.timeout; on a busy machine a second more
        assert int(seconds[1]) >= timeout
        line = line.replace("SECONDS", seconds[1])
    assert said.startswith(line)
    assert lines(outputs[1]) == []
    assert "Traceback" not in outputs[0]
    assert ("Traceback" in outputs[1]) == (fault is crash)
    now = status(folder)
    assert now["state"] == "failed"
    assert now["reason"].startswith(line)
    if fault in (crash, kill):
        assert world(folder, {})[0] == [0, 0]
        assert last_weights(folder) == whole


def test_where_rank_0_is_killed_with_the_store_another_process_says_so(whole: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    codes, outputs = world(folder, {0: kill})
    assert codes == [-9, 1], outputs
    assert lines(outputs[1]) == [f"vit-dist: {status(folder)['reason']}"]
    assert "the connection to the others broke, nor is there an answer from 127.0.0.1:" in outputs[1]
    assert status(folder)["state"] == "failed"
    assert world(folder, {})[0] == [0, 0]
    assert last_weights(folder) == whole


def test_an_exception_of_rank_0_has_its_traceback_where_rank_0_has_the_store(tmp_path: Path) -> None:
    codes, outputs = world(tmp_path / "run", {0: crash})
    assert codes == [1, 1], outputs
    assert outputs[0].count("KeyError: 'a name'") == outputs[0].count("Traceback") == 1
    assert lines(outputs[0]) == lines(outputs[1]) == []
    assert status(tmp_path / "run")["reason"] == "KeyError: 'a name'"


def test_a_rank_that_is_asked_to_stop_just_before_the_first_update_takes_the_others_along(
    whole: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    codes, outputs = world(folder, {0: "inputs.safetensors"})
    assert codes == [75, 75], outputs
    assert status(folder)["state"] == "stopped"
    assert "nothing is lost: the same command goes on from there" in outputs[0]
    assert lines(outputs[0]) == lines(outputs[1]) == []
    assert world(folder, {})[0] == [0, 0]
    assert last_weights(folder) == whole


@pytest.mark.parametrize("ranks", [(0, 1), (1,)], ids=["both", "rank 1"])
def test_ranks_that_are_stopped_while_the_data_is_opened_say_so_once(ranks: tuple[int, ...], tmp_path: Path) -> None:
    codes, outputs = world(tmp_path / "run", dict.fromkeys(ranks, "digits.csv"))
    assert codes == [75, 75], outputs
    alone = f"vit-dist: process 1 on {HOST}: was asked to stop (SIGTERM)"
    both = "vit-dist: stopped before the first update; the same command starts again"
    assert lines(outputs[0]) == [both if 0 in ranks else alone]
    assert lines(outputs[1]) == []
    assert not (tmp_path / "run").exists()
