"""What trackers get of a run on images and captions: its figures by their names, and pictures of pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.runs import train_captions_run
from vit_dist.config.config import Config
from vit_dist.run_folder.metrics import read_metrics
from vit_dist.run_folder.pair_figures import PAIR_FIGURES
from vit_dist.run_folder.pairs import PAIRS, read_pairs
from vit_dist.telemetry.trackers import Trackers


def test_figures_and_pairs_are_sent(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = train_captions_run(tmp_path_factory)
    saved = read_pairs(run / PAIRS)
    assert saved is not None
    said: list[str] = []
    config = Config.load("digits", {"log.trackers": "tensorboard", "run.dir": str(tmp_path)})
    trackers = Trackers(config, said.append, enabled=True)
    trackers.start(None)
    [line] = [
        line
        for line in read_metrics(run / "metrics.jsonl")
        if line["kind"] == "eval" and line["split"] == "test" and line["weights"] == "ema"
    ]
    trackers.log(line)
    trackers.show_pairs(saved, 50)
    trackers.end()
    assert said == []
    board = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0, "images": 0})
    board.Reload()
    for name in PAIR_FIGURES:
        [event] = board.Scalars(f"eval/test_ema_{name}")
        assert (event.step, event.value) == (50, pytest.approx(line[name]))
    assert sorted(board.Tags()["images"]) == ["test/best_pairs", "test/worst_pairs"]
    best, worst = saved.shown()
    assert np.array_equal(saved.pictures[: len(best)], np.stack([pair.picture for pair in best]))
    assert worst[0].in_words().startswith(worst[0].wrong)
