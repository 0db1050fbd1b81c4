"""Run folders written by hand: their metrics lines, predictions and input examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vit_dist import Config
from vit_dist.files import write_json
from vit_dist.run_folder.predictions import (
    InputExamples,
    Predictions,
    SavedPredictions,
)

PIXELS = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)


def start_line(update: int, time: float, *, planned: int = 30, **more: Any) -> dict[str, Any]:
    return {
        **{"kind": "start", "time": time, "update": update, "epoch": update / 10},
        **{"plan": {"samples": 480, "updates": planned}, "world_size": 1, "device": "cpu", "precision": "fp32"},
        **{"threads": 1, "versions": {"vit_dist": "0.1.0"}, "parameters": 18154, "changed": {}, **more},
    }


def train_line(update: int, time: float, **more: Any) -> dict[str, Any]:
    return {
        **{"kind": "train", "time": time, "update": update, "epoch": update / 10, "loss": 2.0, "top1": 50.0},
        **{"lr": 1e-3, "grad_norm": 1.0, "samples_per_second": 100.0, "update_seconds": 0.1},
        **{"data_wait_fraction": 0.25, "mfu": None, "matmul_fraction": 0.5, "peak_memory_bytes": 2**20},
        **{"skipped_updates": 0, **more},
    }


def eval_line(update: int, time: float, **more: Any) -> dict[str, Any]:
    return {
        **{"kind": "eval", "time": time, "update": update, "epoch": update / 10, "split": "val", "weights": "raw"},
        **{"loss": 1.5, "top1": 60.0, "top5": 90.0, "seen": 48, "seconds": 0.5, "best": False},
        **{"weights_update": update, **more},
    }


def save_line(update: int, time: float, seconds: float) -> dict[str, Any]:
    return {"kind": "save", "time": time, "update": update, "seconds": seconds, "stall_seconds": seconds, "bytes": 9}


def make_run(
    folder: Path,
    lines: Sequence[dict[str, Any]],
    *,
    state: str = "running",
    summary: dict[str, Any] | None = None,
    reason: str | None = None,
    **fields: Any,
) -> Path:
    """Write a run's folder without checkpoints; fields: of the config, such as optimizer__lr."""
    folder.mkdir(parents=True)
    changes = {name.replace("__", "."): value for name, value in fields.items()}
    config = Config.load("digits", {"run.dir": str(folder), **changes})
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    write_json(folder / "status.json", {"state": state, "update": 0, **({"reason": reason} if reason else {})})
    if summary is not None:
        write_json(folder / "summary.json", summary)
    return folder


def some_predictions(classes: Sequence[str]) -> SavedPredictions:
    """Return predictions for four samples of three classes, two of them wrong."""
    predictions = Predictions(
        index=np.arange(4),
        label=np.asarray([0, 1, 2, 2]),
        top=np.asarray([[0, 1, 2], [2, 1, 0], [2, 0, 1], [0, 2, 1]]),
        probability=np.asarray([[0.9, 0.06, 0.04], [0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.7, 0.2, 0.1]], np.float32),
    )
    about = {"split": "test", "weights": "raw", "update": 30, "classes": list(classes)}
    return SavedPredictions(predictions, about, np.asarray([3, 1]), PIXELS)


def some_inputs(classes: Sequence[str]) -> InputExamples:
    pairs, parts = np.asarray([[0, 1], [2, 0]]), np.asarray([[0.75, 0.25], [1.0, 0.0]], np.float32)
    return InputExamples(PIXELS, pairs, parts, {"position": 0, "classes": list(classes)})
