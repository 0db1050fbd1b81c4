"""Ranks compared in real runs of two processes, one of them made slow on purpose or not."""

from __future__ import annotations

import io
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.processes import run_world
from vit_dist import Config, train
from vit_dist.telemetry import ranks
from vit_dist.telemetry.console import Console

SLOW = 0.15
HOST = re.escape(socket.gethostname())


class SlowImages:
    """Random images, which rank 1 takes SLOW / 2 to read if `slow` says so."""

    def __init__(self, *, slow: bool) -> None:
        generator = np.random.default_rng(0)
        self.images = generator.integers(0, 256, (48, 8, 8), np.uint8)
        self.labels = generator.integers(0, 2, 48)
        self.delay = SLOW / 2 if slow and os.environ["RANK"] == "1" else 0.0

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        time.sleep(self.delay)
        return Image.fromarray(self.images[index])


def train_two(folder: str, slow: str) -> dict[str, Any]:
    """Train 10 updates of 4 images with a line each 2. slow: what rank 1 is slow at."""
    if slow != "nothing":
        ranks.WORTH_SECONDS = 0.0
    os.environ["LAGGING_SECONDS"] = str(SLOW) if slow == "computing" and os.environ["RANK"] == "1" else "0"
    fields = {
        "run.dir": folder, "run.device": "cpu", "run.threads": 1, "model.width": 16, "model.depth": 1,
        "model.patch_size": 4, "model.heads": 1, "batch.global_size": 4, "batch.micro_size": 2, "data.workers": 0,
        "data.val_fraction": 0, "data.image_size": 8, "train.duration": "10 updates", "log.every": "2 updates",
        "log.trackers": "none", "log.report": False, "loss.name": "tests.custom_losses:lagging",
    }  # fmt: skip
    printed = io.StringIO()
    console = Console(speaks=os.environ["RANK"] == "0", stream=printed)
    run = train(Config.load("digits", fields), source=SlowImages(slow=slow == "images"), console=console)
    lines = [line for line in run.history if line["kind"] == "train"]
    notes = [line["text"] for line in run.history if line["kind"] == "note"]
    return {"lines": lines, "notes": notes, "printed": printed.getvalue()}


@pytest.mark.parametrize(
    ("slow", "look"),
    [
        ("computing", r"its computing takes longer: look there for other programs, fewer CPU cores or a throttled GPU"),
        ("images", r"\d\.\d\d s of it is waiting for images: look at its disk, its CPU cores and data\.workers"),
    ],
)
def test_a_slow_rank_is_named_once_with_what_it_is_slow_at(tmp_path: Path, slow: str, look: str) -> None:
    first, second = run_world(2, train_two, tmp_path / "results", str(tmp_path / "run"), slow)
    [note] = first["notes"]
    seconds = r"\d\.\d\d s"
    pattern = rf"process 1 on {HOST} is \d+ % slower than the others \({seconds} an update, the others {seconds}\): "
    assert re.fullmatch(pattern + look, note)
    assert first["printed"].splitlines().count(note) == 1
    assert (second["notes"], second["printed"]) == ([note], "")
    assert [line["slowest_rank"] for line in first["lines"]][1:] == [1, 1, 1, 1]
    # Not the first: this rank may start when rank 1 is in its first update already.
    for line in first["lines"][1:]:
        update = line["update_seconds"]
        # SLOW is slept through in every update; the parts of each rank are no more than the whole.
        assert update >= SLOW
        if slow == "computing":
            assert line["busy_seconds_max"] >= SLOW
        else:
            assert line["data_wait_fraction_max"] > 2 * line["data_wait_fraction_min"]
        assert 0 < line["communication_fraction"] < 1
        assert line["busy_seconds_max"] + line["communication_fraction"] * update <= update * (1 + 1e-6)
        for name in ("busy_seconds", "data_wait_fraction"):
            assert line[f"{name}_min"] <= line[f"{name}_mean"] <= line[f"{name}_max"]
    assert re.search(r"  data wait \d+%( to \d+%)?  communication \d+%", first["printed"])


def test_equal_ranks_are_compared_and_none_is_named(tmp_path: Path) -> None:
    results = run_world(2, train_two, tmp_path / "results", str(tmp_path / "run"), "nothing")
    for result in results:
        assert result["notes"] == []
        assert all(0 < line["busy_seconds_min"] <= line["busy_seconds_max"] for line in result["lines"])
    assert "slower than" not in results[0]["printed"]


def test_a_single_process_has_no_others_to_be_compared_with(tmp_path: Path) -> None:
    [result] = run_world(1, train_two, tmp_path / "results", str(tmp_path / "run"), "computing")
    assert not any(name.startswith(("busy", "communication", "slowest")) for line in result["lines"] for name in line)
    assert "communication" not in result["printed"]
