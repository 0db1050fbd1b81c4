"""A long run takes no more memory, descriptors, threads or processes at its end than at its beginning."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests import custom_losses
from tests.training.test_kill_points import CONFIG
from vit_dist import Config, train

psutil = pytest.importorskip("psutil")


def usage() -> dict[str, int]:
    process = psutil.Process()
    return {
        "MiB": process.memory_info().rss >> 20,
        "descriptors": process.num_fds(),
        "threads": threading.active_count(),
        "processes": len(process.children(recursive=True)),
        "shared memory": len(os.listdir("/dev/shm")),
    }


@pytest.mark.slow
def test_five_thousand_updates_leave_nothing_behind(tmp_path: Path) -> None:
    values = {
        **CONFIG,
        "loss.name": "tests.custom_losses:acting",
        "train.duration": "5000 updates",
        "schedule.args": {},
    }
    values |= {
        "schedule.name": "constant",
        "optimizer.lr": 0.01,
        "evaluate.every": "50 updates",
        "log.every": "5 updates",
    }
    values |= {"checkpoint.every": "10 updates", "run.dir": str(tmp_path / "run"), "data.workers": 2}
    seen: dict[int, dict[str, int]] = {}
    custom_losses.forwards = 0
    custom_losses.actions = {
        number: lambda number=number: seen.update({number: usage()}) for number in range(1000, 5001, 1000)
    }
    train(Config.load("digits", values))
    custom_losses.actions = {}
    first, last = seen[1000], seen[5000]
    print(seen)
    assert last["MiB"] <= first["MiB"] + 40
    assert {name: last[name] for name in last if name != "MiB"} == {
        name: first[name] for name in first if name != "MiB"
    }
