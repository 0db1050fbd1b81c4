"""A long run takes no more memory, descriptors, threads or processes at its end than at its beginning."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import custom_losses
from tests.training.test_kill_points import CONFIG
from vit_dist import Config, train

psutil = pytest.importorskip("psutil")


def usage() -> dict[str, int]:
    """Return what this process takes now."""
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
    values = {**CONFIG, "loss.name": "tests.custom_losses:acting", "train.duration": "5000 updates"}
    values |= {"schedule.name": "constant", "schedule.args": {}, "optimizer.lr": 0.01, "log.every": "5 updates"}
    values |= {"evaluate.every": "50 updates", "checkpoint.every": "10 updates", "run.dir": str(tmp_path / "run")}
    seen: dict[int, dict[str, int]] = {}

    def look(update: int) -> Callable[[], None]:
        return lambda: seen.update({update: usage()})

    custom_losses.forwards, custom_losses.actions = 0, {update: look(update) for update in (1000, 5000)}
    train(Config.load("digits", values))
    custom_losses.actions = {}
    first, last = seen[1000], seen[5000]
    growth = last.pop("MiB") - first.pop("MiB")
    assert growth <= 30, f"{growth} MiB more after 4,000 updates"  # the history of 1,500 lines is about 2
    assert last == first
