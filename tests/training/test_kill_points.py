"""A run killed at any of its file operations, from the first to the last, ends as the run that was not."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vit_dist import Config, train
from vit_dist.checkpointing.folder import list_checkpoints, pointed_to
from vit_dist.files import read_json
from vit_dist.run_folder.metrics import read_metrics
from vit_dist.run_folder.status import status

# Weights that improve, then get worse: the best are not the last, and pruning passes them by.
CONFIG: dict[str, Any] = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "batch.global_size": 24,
    "batch.micro_size": 24,
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.9,
    "optimizer.lr": 1.0,
    "schedule.name": "ConstantLR",
    "schedule.args": {"factor": 0.1, "total_iters": "3 updates"},
    "schedule.warmup": "1 updates",
    "train.duration": "7 updates",
    "train.ema": 0.5,
    "evaluate.every": "2 updates",
    "evaluate.batch_size": 72,  # two batches of val, five of test
    "checkpoint.every": "1 updates",
    "checkpoint.keep": 1,
    "log.every": "1 updates",
    "log.level": "warning",
    "log.report": False,
    "log.trackers": "none",
    "run.device": "cpu",
    "run.threads": 1,
}
_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.scandir", "shutil.rmtree")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch", "accelerate", "torchvision.transforms.v2", "vit_dist.training.run", "sklearn"]
)


def config(folder: Path) -> Config:
    return Config.load("digits", {**CONFIG, "run.dir": str(folder)})


def watch_operations(folder: str, operation: int) -> Callable[[], int]:
    """Die of SIGKILL just before a file operation in a folder, numbered from 0; return what counts them."""
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in _OPERATIONS and any(str(argument).startswith(folder) for argument in arguments[:2]):
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(watch)
    return lambda: count


def train_until(folder: str, operation: int, seen: str = "") -> None:
    """Train, and die just before a file operation in the run's folder.

    seen: a file to which the number of operations of a whole run is written.
    """
    count = watch_operations(folder, operation)
    train(config(Path(folder)))
    if seen:
        Path(seen).write_text(str(count()))


def in_process(function: Any, *arguments: Any) -> int | None:
    """Run a function in a process of its own and return its exit code."""
    process = _CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def result(folder: Path) -> dict[str, Any]:
    """Return all that a run leaves, except times and what names the folder."""
    checkpoints = folder / "checkpoints"
    files = {
        f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(checkpoints.glob("update_*/*.safetensors"))
    }
    states = {path.name: read_json(path / "state.json")["train_state"] for path in list_checkpoints(checkpoints)}
    summary = read_json(folder / "summary.json")
    history = read_metrics(folder / "metrics.jsonl")
    lines = [
        tuple(line.get(name) for name in ("kind", "update", "split", "weights", "loss", "top1", "lr", "best"))
        for line in history
        if line["kind"] in ("train", "eval")
    ]
    return {
        "files": files,
        "states": {name: {**state, "train_seconds": 0.0} for name, state in states.items()},
        "links": [str(pointed_to(checkpoints, name)).removeprefix(str(folder)) for name in ("best", "last")],
        "best, final, test": [summary[name] for name in ("best", "final", "test")],
        "lines": lines,
        "state": status(folder)["state"],
        "left over": sorted(str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name != ".lock"),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int]:
    """Return the result of the run that is not killed, and the number of its file operations."""
    folder, seen = tmp_path_factory.mktemp("whole") / "run", tmp_path_factory.mktemp("seen") / "count"
    assert in_process(train_until, str(folder), -1, str(seen)) == 0
    expected = result(folder)
    best = expected["best, final, test"][0]["update"]
    assert best not in (6, 7)  # not among the last: it is kept by what the state says
    assert list(expected["states"]) == [f"update_{best:08d}", "update_00000007"]
    assert expected["left over"] == []
    assert len(expected["lines"]) == len(set(expected["lines"])) == 7 + 2 * 4 + 2
    return expected, int(seen.read_text())


def check_killed_at(operation: int, folder: Path, expected: dict[str, Any]) -> None:
    """Kill a run at an operation, run it again, and compare."""
    code = in_process(train_until, str(folder), operation)
    assert code in (-signal.SIGKILL, 0), f"operation {operation}: exit code {code}"
    assert in_process(train_until, str(folder), -1) == 0, f"operation {operation}: the run does not resume"
    actual = result(folder)
    assert actual == expected, f"operation {operation}: " + json.dumps(
        {name: [actual[name], expected[name]] for name in expected if actual[name] != expected[name]}, default=str
    )


@pytest.mark.parametrize("part", range(8))
def test_a_run_killed_at_a_file_operation_ends_the_same(
    part: int, whole: tuple[dict[str, Any], int], tmp_path: Path
) -> None:
    expected, count = whole
    operation = random.Random(part).randrange(part * count // 8, (part + 1) * count // 8)
    check_killed_at(operation, tmp_path / "run", expected)


@pytest.mark.slow
def test_a_run_killed_at_each_file_operation_ends_the_same(whole: tuple[dict[str, Any], int], tmp_path: Path) -> None:
    expected, count = whole
    for operation in range(count):
        check_killed_at(operation, tmp_path / str(operation), expected)


def test_a_run_killed_again_and_again_ends_the_same(whole: tuple[dict[str, Any], int], tmp_path: Path) -> None:
    expected, _ = whole
    draws = random.Random(0)
    kills = 0
    for _ in range(60):
        code = in_process(train_until, str(tmp_path / "run"), draws.randrange(20, 130))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 3
    assert result(tmp_path / "run") == expected
