"""The Recorder: one line of metrics to the file, the history, the console and the trackers."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vit_dist.config.config import Config
from vit_dist.config.fields import BatchConfig, RunConfig, ScheduleConfig, TrainConfig
from vit_dist.config.output_fields import LogConfig
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.metrics import Line
from vit_dist.run_folder.status import write_status
from vit_dist.telemetry.console import Console
from vit_dist.telemetry.recorder import Recorder
from vit_dist.telemetry.trackers import Trackers

TRAIN: Line = {"loss": 0.5, "lr": 1e-3, "samples_per_second": 8.0, "data_wait_fraction": 0.0, "update_seconds": 1.0}
EVAL: Line = {
    "split": "val", "weights": "raw", "weights_update": 15, "loss": 0.25, "top1": 50.0, "top5": None, "seen": 4,
    "seconds": 0.5, "best": True,
}  # fmt: skip


class Sent(Trackers):
    """Trackers that keep the lines that they are sent."""

    def __init__(self) -> None:
        config = Config(run=RunConfig(dir="unused"), log=LogConfig(trackers="none"))
        super().__init__(config, lambda text: None, enabled=False)
        self.lines: list[Line] = []

    def log(self, line: Line) -> None:
        """Keep the line."""
        self.lines.append(line)


def recorder(path: Path, sent: Sent, *, writes: bool = True, **more: Any) -> Recorder:
    config = Config(
        batch=BatchConfig(global_size=4, micro_size=4),
        schedule=ScheduleConfig(warmup="0 updates"),
        train=TrainConfig(duration="198 samples"),
    )
    return Recorder(path, Plan.from_config(config, 30, 1), Console(speaks=writes), sent, writes=writes, **more)


def test_a_line_goes_to_file_history_console_and_trackers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, sent, earlier = tmp_path / "metrics.jsonl", Sent(), {"kind": "start", "update": 0}
    record = recorder(path, sent, history=[earlier])
    lines = [
        record.record("train", 15, TRAIN),
        record.record("eval", 15, EVAL),
        record.record("stop", 50, {"reason": "x"}),
    ]
    record.close()
    assert [json.loads(text) for text in path.read_text().splitlines()] == lines == sent.lines
    assert record.history == [earlier, *lines]
    assert [(line["kind"], line["update"], line["epoch"], line["samples"]) for line in lines] == [
        ("train", 15, 2.0, 60), ("eval", 15, 2.0, 60), ("stop", 50, 6.6, 198),
    ]  # fmt: skip
    assert {**lines[0], **TRAIN} == lines[0]
    assert list(lines[0])[:5] == ["kind", "time", "update", "epoch", "samples"]
    assert capsys.readouterr().out.splitlines() == [
        "update 15/50  epoch 2.00/6.6  loss 0.5000  lr 1.0e-03  8 images/s  data wait 0%  35 s left",
    ]


def test_other_ranks_keep_the_history_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    record = recorder(path, Sent(), writes=False)
    line = record.record("train", 15, TRAIN)
    record.close()
    assert record.history == [line]
    assert not path.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_memory_and_descriptors_are_flat_over_many_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history of lines grows, by design, by about 2 KB a line; nothing else does."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = Config(run=RunConfig(dir=str(tmp_path), device="cpu"), log=LogConfig(trackers="wandb"))
    trackers = Trackers(config, lambda text: None, enabled=True)
    trackers.start(None)
    plan = recorder(tmp_path / "other.jsonl", Sent()).plan
    record = Recorder(tmp_path / "metrics.jsonl", plan, Console(speaks=False), trackers, writes=True)
    status = tmp_path / "status.json"

    def usage() -> tuple[int, int, int]:
        """Return resident bytes, open descriptors and threads of this process."""
        fields = Path("/proc/self/statm").read_text().split()
        return int(fields[1]) * 4096, len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    def record_lines(first: int, last: int) -> None:
        for update in range(first, last):
            record.record("train", update, {**TRAIN, "grad_norm": 1.0, "top1": None, "skipped_updates": 0})
            record.outputs.write(status, lambda: write_status(tmp_path, "running", 0))
            while trackers._trackers["wandb"].background._calls.qsize() > 500:
                time.sleep(0.001)

    record_lines(1, 1000)
    before = usage()
    record_lines(1000, 6000)
    after = usage()
    record.close()
    assert after[1:] == before[1:]
    assert (after[0] - before[0]) / 5000 < 3000
    print(f"{(after[0] - before[0]) / 5000:.0f} bytes a line, {after[1]} descriptors, {after[2]} threads")
