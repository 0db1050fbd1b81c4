"""The record of a run: the one reader of a run's folder, behind every report."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vit_dist.config.config import Config
from vit_dist.config.recipe import read_saved_yaml
from vit_dist.errors import UserError
from vit_dist.files import read_json_or_empty
from vit_dist.run_folder.data_facts import FACTS, DataFacts, read_data_facts
from vit_dist.run_folder.finding import run_meant
from vit_dist.run_folder.lines import ascending, is_whole
from vit_dist.run_folder.lock import is_held
from vit_dist.run_folder.metrics import Floats, Line, Metrics, damaged_lines, read_columns, spanned_updates
from vit_dist.run_folder.pairs import PAIRS, SavedPairs, read_pairs
from vit_dist.run_folder.predictions import (
    INPUTS,
    PREDICTIONS,
    InputExamples,
    SavedPredictions,
    read_inputs,
    read_predictions,
)
from vit_dist.run_folder.summary import is_sound, read_summary

Content = TypeVar("Content")
COLUMNS = (
    *("time", "epoch", "loss", "top1", "lr", "grad_norm", "samples_per_second", "update_seconds"),
    *("data_wait_fraction", "mfu", "matmul_fraction", "peak_memory_bytes", "skipped_updates"),
    # Of several ranks.
    *("busy_seconds_min", "busy_seconds_mean", "busy_seconds_max", "data_wait_fraction_max", "communication_fraction"),
)


_USE_TEXTS = {
    "updates": "updates",
    "waiting": "waiting for images",
    "evaluating": "evaluating",
    "saving": "saving",
    "starting": "starting",
    "repeated": "done again",
    "other": "other",
    "downtime": "down",
}


@dataclass(frozen=True)
class RunRecord:
    """A run, finished or not, as its folder shows it. summary: empty until it is finished.

    start: its last `start` line; what else shows the same, if that is lost. data: the fingerprint of its splits, empty
    before the first checkpoint. problems: what of the folder is damaged. facts: what it keeps of its data.
    """

    folder: Path
    name: str
    config: Config
    status: dict[str, Any]
    summary: dict[str, Any]
    metrics: Metrics
    predictions: SavedPredictions | None
    pairs: SavedPairs | None
    inputs: InputExamples | None
    start: Line
    data: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    facts: DataFacts | None = None

    def evaluations(self, split: str, weights: str) -> list[Line]:
        """Return the evaluations of one split by one kind of weights (raw, ema), in order."""
        lines = (line for line in self.metrics.other_lines if line["kind"] == "eval")
        return [line for line in lines if line["split"] == split and line["weights"] == weights]

    @property
    def state_word(self) -> str:
        """The state: that of status.json, or killed if the process ended before it could write one."""
        state = str(self.status.get("state", "unknown"))
        here = self.status.get("host") == platform.node()
        return "killed" if state == "running" and here and not is_held(self.folder) else state

    @property
    def state(self) -> str:
        """The state with its reason, or with what to do."""
        if self.state_word == "killed":
            return "killed: the same command goes on from its last checkpoint"
        reason = self.status.get("reason")
        return f"{self.state_word}: {reason_text(reason)}" if reason is not None else self.state_word

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
        """The time breakdown: seconds by activity; repeated work and downtime are known once the run has finished."""
        if "seconds" in self.summary:
            return {_USE_TEXTS[use]: value for use, value in self.summary["seconds"].items() if use in _USE_TEXTS}
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


def read_run(folder: Path, *, images: bool = True) -> RunRecord:
    """Read a run's folder, as far as it is whole; without `images`, predictions and inputs are left out.

    Raises UserError if no run is there, or it has not started yet.
    """
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "no folder is there"
        raise UserError(f"{folder}: not a run's folder: {what}{run_meant(folder)}")
    problems: list[str] = []
    saved = _newest_state(folder)
    config = _read_config(folder, saved, problems)
    metrics = _read_metrics(folder / "metrics.jsonl", problems)
    status, (summary, problem) = read_json_or_empty(folder / "status.json"), read_summary(folder)
    if not status.get("state"):
        problems.append(f"{folder / 'status.json'}: is missing or damaged")
    if summary is None and is_sound(partial := read_json_or_empty(folder / "summary.json")):
        summary = partial
    if status.get("state", _last_reason(metrics)) != "finished":
        summary = {}
    elif not summary:
        problems.append(f"{problem}: figures are those of metrics.jsonl")
    if (summary and _last_reason(metrics) is None) or (metrics.other_lines and not metrics.starts):
        problems.append(f"{folder / 'metrics.jsonl'}: its beginning or its end is missing: curves show what is left")
    start = metrics.starts[-1] if metrics.starts else _start_from(summary or {}, saved)
    if start is None:
        if not (folder / "metrics.jsonl").is_file():
            raise UserError(f"{folder}: not a run's folder: it has no metrics.jsonl{run_meant(folder)}")
        raise UserError(f"{folder}: the run has not started yet: its metrics.jsonl has no start")
    return RunRecord(
        folder=folder,
        name=config.run.name or folder.resolve().name,
        config=config,
        status=status,
        summary=summary or {},
        metrics=metrics,
        predictions=_whole(read_predictions, folder / PREDICTIONS, problems) if images else None,
        pairs=_whole(read_pairs, folder / PAIRS, problems) if images else None,
        inputs=_whole(read_inputs, folder / INPUTS, problems) if images else None,
        start=start,
        data=_fingerprint(saved),
        problems=problems,
        facts=_whole(read_data_facts, folder / FACTS, problems),
    )


def _whole(read: Callable[[Path], Content | None], path: Path, problems: list[str]) -> Content | None:
    """Read an optional file; None, and a line in `problems`, if it is damaged."""
    try:
        return read(path)
    except UserError as error:
        problems.append(str(error))
        return None


def _newest_state(folder: Path) -> dict[str, Any]:
    """Return the content of the newest checkpoint's state.json that can be read, whether or not its hash is right."""
    for path in sorted(folder.glob("checkpoints/update_*/state.json"), reverse=True):
        if state := read_json_or_empty(path):
            return state
    return {}


def _fingerprint(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the fingerprint of the data that a checkpoint's state keeps, with the names of the classes."""
    splits = saved.get("data")
    return {"splits": splits, "classes": saved.get("classes")} if splits and isinstance(splits, dict) else {}


def _read_config(folder: Path, saved: dict[str, Any], problems: list[str]) -> Config:
    """Read config.yaml or, if it is missing or damaged, the config that a checkpoint keeps. Raises UserError."""
    path = folder / "config.yaml"
    try:
        if not path.is_file():
            raise UserError(f"{folder}: not a run's folder: it has no config.yaml{run_meant(folder)}")
        values, before = read_saved_yaml(path), saved.get("config", {"log": {}})
        if any(name not in values.get(section, {}) for section, fields in before.items() for name in [*fields]):
            raise UserError(f"{path}: is cut: fields are missing")
        return Config.from_dict(values)
    except (UserError, TypeError, AttributeError) as error:
        try:
            config = Config.from_dict(saved["config"])
        except (UserError, KeyError, TypeError, AttributeError):
            problem = error if isinstance(error, UserError) else UserError(f"{path}: is damaged")
            raise problem from None
        problems.append(f"{path}: is missing or damaged: the config is the newest checkpoint's")
        return config


def _read_metrics(path: Path, problems: list[str]) -> Metrics:
    """Read the lines of metrics.jsonl that are whole; none if it cannot be read."""
    try:
        metrics = read_columns(path, COLUMNS)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        problems.append(f"{path}: {'is missing' if missing else f'cannot be read: {error.strerror}'}: no curves")
        return Metrics({name: np.empty(0) for name in ("update", "time", *COLUMNS)}, [])
    train = metrics.train
    needed = np.stack([train[name] for name in ("time", "epoch", "update_seconds", "samples_per_second")])
    kept: NDArray[np.bool_] = np.asarray((np.isfinite(needed) & (needed >= 0)).all(0))
    kept[kept] = ascending(train["update"][kept])
    others = [line for line in metrics.other_lines if is_whole(line)]
    count = metrics.damaged + int((~kept).sum()) + len(metrics.other_lines) - len(others)
    if count:
        problems.append(str(damaged_lines(path, count)))
    return replace(metrics, train={name: column[kept] for name, column in train.items()}, other_lines=others)


def _last_reason(metrics: Metrics) -> str | None:
    """Return "finished" if the last line but for notes says so."""
    lines = [line for line in metrics.other_lines if line["kind"] != "note"]
    ended = lines and lines[-1]["kind"] == "stop" and lines[-1].get("reason") in ("finished", "out of patience")
    return "finished" if ended else None


def _start_from(summary: dict[str, Any], saved: dict[str, Any]) -> Line | None:
    """Return what a start line holds from a summary and a checkpoint's state, if the line is lost; None without them.

    Its world size, device and threads are those of the summary.
    """
    names = ("world_size", "device", "precision", "parameters")
    plan = saved.get("plan")
    line: Line = {"kind": "start", "time": 0.0, "epoch": 0.0, "threads": 0, "versions": {}, "changed": {}, "plan": plan}
    line |= {name: summary.get(name) for name in names}
    return line if is_whole(line) else None


def reason_text(reason: Any) -> str:
    """Return why a run ended for people, who know SIGINT as a key."""
    return str(reason).replace("SIGINT", "Ctrl-C")


def best_line(run: RunRecord) -> Line | None:
    """Return the line of the best evaluation so far; None without one."""
    evaluations = (line for line in run.metrics.other_lines if line["kind"] == "eval")
    name = run.config.evaluate.metric.removeprefix("raw_")
    lines = [line for line in evaluations if line["split"] == "val" and line["best"] and line.get(name) is not None]
    return lines[-1] if lines else None


def best_of(run: RunRecord) -> dict[str, Any] | None:
    """Return the update, metric and value of the best evaluation so far; None without one."""
    metric, line = run.config.evaluate.metric, best_line(run)
    if line is None:
        return None
    return {"update": line["update"], "metric": metric, "value": float(line[metric.removeprefix("raw_")])}
