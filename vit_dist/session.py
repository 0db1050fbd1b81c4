"""One process's part of a run: what it records, evaluates and saves."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit_dist import __version__, checkpoint
from vit_dist.choosing import judge, out_of_patience, value_of
from vit_dist.config import Config
from vit_dist.console import Console
from vit_dist.data.sources import Data
from vit_dist.data.stream import EvaluationStream, Form, Stream
from vit_dist.evaluation import evaluate
from vit_dist.locking import FolderLock
from vit_dist.plan import Plan
from vit_dist.progress import write_progress
from vit_dist.runtime import Runtime
from vit_dist.state import TrainState
from vit_dist.telemetry import Clock, Journal, Line, Meter, place, write_json
from vit_dist.trackers import Trackers
from vit_dist.update import Updater
from vit_dist.values import UserError


@dataclass
class Session:
    """One process's part of a run, built and ready. `module` is the bare model, `history` the metrics that count."""

    config: Config
    runtime: Runtime
    console: Console
    folder: Path
    lock: FolderLock | None
    data: Data
    plan: Plan
    module: nn.Module
    form: Form
    updater: Updater
    state: TrainState
    stream: Stream
    evaluations: dict[str, EvaluationStream]
    journal: Journal
    clock: Clock
    meter: Meter
    trackers: Trackers
    parameters: int
    saved: int | None = None
    history: list[Line] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints are."""
        return self.folder / "checkpoints"

    def record(self, kind: str, values: Line) -> Line:
        """Writes a line to the journal, the history and the trackers."""
        line = self.journal.write(kind, values)
        self.history.append(line)
        self.trackers.log(line)
        return line

    def log(self) -> None:
        """A `train` line: what the updates since the last one measured. Waits for the device."""
        if self.meter.last is not None and self.meter.last[0] == self.state.position:
            return
        lr = max(group["lr"] for group in self.updater.optimizer.param_groups)
        self.updater.settle()
        sums = self.updater.take_sums()
        line = self.meter.line(
            self.state.position,
            self.stream.wait_seconds,
            sums,
            lr=lr,
            grad_norm=self.updater.grad_norm.item(),
            skipped=self.state.skipped,
        )
        self.console.progress(self.plan, self.record("train", line))
        self.write_status("running")

    def choose(self) -> bool:
        """Evaluates val, and feeds what listens: the plateau, patience, the best. Whether it is the best so far."""
        self.updater.settle()
        scores = self.evaluate("val", self.state.position)
        warming = self.state.position <= self.plan.warmup
        metric = self.updater.schedule.metric
        if metric is not None:
            self.updater.schedule.evaluated({metric: value_of(metric, scores)})
        best = judge(self.state, self.config.evaluate, scores, warming=warming)
        for line in self.history[-len(scores) :]:
            self.console.evaluation(
                line, best=best and self.state.best is not None and line["weights"] == self.state.best.weights
            )
        if self.runtime.is_main:
            write_progress(self.folder, self.history, self.config.evaluate.metric)
        return best

    @property
    def over(self) -> bool:
        """Whether no update is left to make: all are done, or patience is at its end."""
        return self.state.position >= self.plan.updates or out_of_patience(self.state, self.config.evaluate)

    def evaluate(self, split: str, of: int) -> dict[str, dict[str, float | None]]:
        """One exact pass over a split by the weights of update `of`, and one by their average; recorded."""
        average = self.updater.average
        scores: dict[str, dict[str, float | None]] = {}
        for weights in ("raw", "ema") if average is not None else ("raw",):
            with average.swapped() if average is not None and weights == "ema" else contextlib.nullcontext():
                stream = self.evaluations[split]
                result = evaluate(self.module, stream, stream.length, self.runtime)
            values = {**place(self.plan, self.state.position), "split": split, "weights": weights, **result.to_dict()}
            self.record("eval", {**values, "weights_update": of})
            scores[weights] = {"loss": result.loss, "top1": result.top1, "top5": result.top5}
        return scores

    def save(self) -> None:
        """A checkpoint at this position, once; rank 0 writes, and a failure is everyone's. Raises UserError."""
        if self.saved == self.state.position:
            return
        self.updater.settle()
        self.state.train_seconds = self.clock.seconds
        watch = Clock()
        watch.start()
        path, size = self.runtime.on_main(self._write_checkpoint)
        self.saved = self.state.position
        seconds = watch.seconds
        values = {"path": path, "seconds": seconds, "stall_seconds": seconds, "bytes": size}
        self.record("save", {**place(self.plan, self.state.position), **values})

    def _write_checkpoint(self) -> tuple[str, int]:
        """Its path in the folder and its bytes. Raises UserError."""
        scaler, state = self.runtime.scaler, self.state
        content = {
            "format": 1,
            "train": state.to_dict(),
            "schedule": self.updater.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "precision": self.runtime.precision,
            "world_size": self.runtime.world_size,
            "classes": list(self.data.classes),
            "form": dataclasses.asdict(self.form),
            "channels": self.data.channels,
            "plan": self.plan.to_dict(),
            "config": self.config.to_dict(),
            "versions": versions(),
        }
        try:
            path, size = checkpoint.save(
                self.checkpoints, state.position, self.module, self.updater.optimizer, content, self.updater.average
            )
            checkpoint.link(self.checkpoints, "last", path)
            if state.best is not None and state.best.update == state.position:
                checkpoint.link(self.checkpoints, "best", path)
            checkpoint.prune(self.checkpoints, self.config.checkpoint.keep)
        except OSError as error:
            raise UserError(f"{self.checkpoints}: a checkpoint cannot be written: {error}") from None
        return str(path.relative_to(self.folder)), size

    def write_status(self, state: str, reason: str | None = None) -> None:
        """status.json: running, finished, stopped or failed."""
        if not self.runtime.is_main:
            return
        values: dict[str, Any] = {"state": state, "update": self.state.position, "pid": os.getpid()}
        values |= {"host": platform.node(), "time": time.time()}
        write_json(self.folder / "status.json", {**values, **({"reason": reason} if reason else {})})

    def close(self) -> None:
        """Lets go of workers, trackers, files and the folder."""
        self.console.stop()
        self.stream.close()
        for stream in self.evaluations.values():
            stream.close()
        self.trackers.end()
        self.journal.close()
        if self.lock is not None:
            self.lock.release()


def versions() -> dict[str, str]:
    """What made the numbers."""
    return {
        "vit_dist": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerate": version("accelerate"),
    }
