"""Two processes that are killed, or whose disk is full: the run ends as the one that was not, or says why on both."""

from __future__ import annotations

import multiprocessing.connection
import os
import random
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_world
from tests.run_folder.full_disk import small_disk
from tests.training.test_kill_points import _CONTEXT, CONFIG, result, watch_operations
from vit_dist import Config, UserError, train
from vit_dist.files import read_json
from vit_dist.run_folder.status import status

TWO = {**CONFIG, "batch.micro_size": 12}


def train_rank(folder: str, rank: int, port: int, killed: int, operation: int) -> None:
    """Train as one of two ranks; the one that is `killed` dies at the file operation of this number."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    values: dict[str, Any] = {**TWO, "run.dir": folder}
    if rank == killed:
        watch_operations(folder, operation)
    train(Config.load("digits", values))


def kill_one(folder: Path, killed: int, operation: int) -> bool:
    """Train with two ranks until one is killed, and then the other, as a launcher would; return whether one was."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        _CONTEXT.Process(target=train_rank, args=(str(folder), rank, port, killed, operation)) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    multiprocessing.connection.wait([process.sentinel for process in ranks], 120)
    if ranks[killed].exitcode != 0:
        for process in ranks:
            process.kill()
    for process in ranks:
        process.join(120)
    assert ranks[killed].exitcode in (0, -signal.SIGKILL)
    return ranks[killed].exitcode != 0


def train_two(folder: str) -> list[str]:
    """Train as a rank to the end; return the error, if it is one of the user's."""
    try:
        train(Config.load("digits", {**TWO, "run.dir": folder}))
    except UserError as error:
        return [str(error)]
    return []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    assert run_world(2, train_two, folder / "logs", str(folder / "run")) == [[], []]
    return result(folder / "run")


def check_kills(folder: Path, seed: int, whole: dict[str, Any]) -> int:
    """Kill a run of two ranks at up to three random operations, let it end, compare; return the number of kills."""
    draws = random.Random(seed)
    kills = sum(kill_one(folder / "run", 0, draws.randrange(5, 260)) for _ in range(draws.randint(1, 3)))
    assert run_world(2, train_two, folder / "logs", str(folder / "run")) == [[], []]
    assert result(folder / "run") == whole
    return kills


def test_two_processes_killed_at_random_end_the_same(whole: dict[str, Any], tmp_path: Path) -> None:
    assert check_kills(tmp_path, 1, whole) > 0


@pytest.mark.slow
def test_two_processes_killed_fifty_times_at_random_end_the_same(whole: dict[str, Any], tmp_path: Path) -> None:
    kills = seed = 0
    while kills < 50:
        seed += 1
        kills += check_kills(tmp_path / str(seed), seed, whole)


def test_a_full_disk_is_one_line_on_all_ranks_and_the_run_goes_on_once_there_is_room(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "160k") as disk:
        folder = disk / "run"
        errors = run_world(2, train_two, tmp_path / "logs", str(folder))
        assert errors[0] == errors[1]
        assert errors[0][0].startswith(f"{folder}/checkpoints: a checkpoint cannot be written: ")
        assert "\n" not in errors[0][0]
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True, timeout=20)
        assert status(folder).get("state") != "finished"
        assert run_world(2, train_two, tmp_path / "logs", str(folder)) == [[], []]
        assert result(folder) == whole
        assert read_json(folder / "summary.json")["world_size"] == 2
