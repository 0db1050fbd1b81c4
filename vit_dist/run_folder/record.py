"""The record of a run: the one reader of a run's folder, behind every report."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.config.config import Config
from vit_dist.config.recipe import read_yaml
from vit_dist.errors import UserError
from vit_dist.files import read_json_or_empty
from vit_dist.run_folder.lock import is_held
from vit_dist.run_folder.metrics import Floats, Line, Metrics, read_columns, spanned_updates
from vit_dist.run_folder.predictions import (
    INPUTS,
    PREDICTIONS,
    InputExamples,
    SavedPredictions,
    read_inputs,
    read_predictions,
)

COLUMNS = (
    *("time", "epoch", "loss", "top1", "lr", "grad_norm", "samples_per_second", "update_seconds"),
    *("data_wait_fraction", "mfu", "matmul_fraction", "peak_memory_bytes", "skipped_updates"),
)


@dataclass(frozen=True)
class RunRecord:
    """A run, finished or not, as its folder shows it. summary: empty until it is finished."""

    folder: Path
    name: str
    config: Config
    status: dict[str, Any]
    summary: dict[str, Any]
    metrics: Metrics
    predictions: SavedPredictions | None
    inputs: InputExamples | None

    @property
    def start(self) -> Line:
        """Its last `start` line."""
        return self.metrics.starts[-1]

    def evaluations(self, split: str, weights: str) -> list[Line]:
        """Return the evaluations of one split by one kind of weights (raw, ema), in order."""
        lines = (line for line in self.metrics.other_lines if line["kind"] == "eval")
        return [line for line in lines if line["split"] == split and line["weights"] == weights]

    @property
    def state(self) -> str:
        """The state in words: that of status.json, unless the process was killed before it could write it."""
        state = str(self.status.get("state", "unknown"))
        if state == "running" and self.status.get("host") == platform.node() and not is_held(self.folder):
            return "killed: the same command goes on from its last checkpoint"
        return f"{state}: {self.status['reason']}" if "reason" in self.status else state

    @property
    def memory(self) -> float | None:
        """Peak memory in bytes; None before the first line."""
        values = [self.summary.get("peak_memory_bytes", 0.0), *self.metrics.train["peak_memory_bytes"]]
        return float(np.nanmax(values)) or None

    @property
    def train_seconds(self) -> Floats:
        """Seconds of training up to each train line."""
        train = self.metrics.train
        return np.cumsum(train["update_seconds"] * self.spans)

    @property
    def spans(self) -> Floats:
        """Updates that each train line is of."""
        return spanned_updates(self.metrics.train["update"], [line["update"] for line in self.metrics.starts])

    @property
    def total_seconds(self) -> float:
        """Seconds in which the run ran: those of its summary, else those of its lines."""
        return float(self.summary.get("total_seconds") or self.metrics.seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """The time breakdown: seconds by activity."""
        train, other_lines = self.metrics.train, self.metrics.other_lines
        training = train["update_seconds"] * self.spans
        waiting = float(np.nansum(training * train["data_wait_fraction"]))
        seconds = {
            "updates": float(training.sum()) - waiting,
            "waiting for images": waiting,
            "evaluating": sum(line["seconds"] for line in other_lines if line["kind"] == "eval"),
            "saving": sum(line["stall_seconds"] for line in other_lines if line["kind"] == "save"),
        }
        return {**seconds, "starting and ending": max(0.0, self.total_seconds - sum(seconds.values()))}


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder. Raises UserError if no run is there, or it has not started yet."""
    for name in ("config.yaml", "metrics.jsonl"):
        if not (folder / name).is_file():
            missing = "it is a file" if folder.exists() else "no folder is there"
            problem = f"it has no {name}" if folder.is_dir() else missing
            raise UserError(f"{folder}: not a run's folder: {problem}")
    metrics = read_columns(folder / "metrics.jsonl", COLUMNS)
    if not metrics.starts:
        raise UserError(f"{folder}: the run has not started yet: its metrics.jsonl has no start")
    config = Config.from_dict(read_yaml(folder / "config.yaml"))
    status, summary = read_json_or_empty(folder / "status.json"), read_json_or_empty(folder / "summary.json")
    return RunRecord(
        folder=folder,
        name=config.run.name or folder.resolve().name,
        config=config,
        status=status,
        summary=summary if status.get("state") == "finished" else {},
        metrics=metrics,
        predictions=read_predictions(folder / PREDICTIONS),
        inputs=read_inputs(folder / INPUTS),
    )


def best_of(run: RunRecord) -> dict[str, Any] | None:
    """Return the update, metric and value of the best evaluation so far; None without one."""
    evaluations = (line for line in run.metrics.other_lines if line["kind"] == "eval")
    lines = [line for line in evaluations if line["split"] == "val" and line["best"]]
    if not lines:
        return None
    metric = run.config.evaluate.metric
    return {"update": lines[-1]["update"], "metric": metric, "value": float(lines[-1][metric.removeprefix("raw_")])}
