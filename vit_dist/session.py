"""One process's part of a run: what it records, evaluates and saves."""

from __future__ import annotations

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
from vit_dist.config import Config
from vit_dist.console import Console
from vit_dist.data.sources import Data
from vit_dist.data.stream import EvaluationStream, Form, Stream
from vit_dist.evaluation import Evaluation, evaluate
from vit_dist.plan import Plan
from vit_dist.runtime import FolderLock, Runtime
from vit_dist.state import Best, TrainState
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
        lr = self.updater.optimizer.param_groups[0]["lr"]
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

    def evaluate(self, split: str, of: int | None = None) -> Evaluation:
        """One exact pass over a split, recorded, by the weights of update `of`, else by those of now."""
        stream = self.evaluations[split]
        result = evaluate(self.module, stream, stream.length, self.runtime)
        values = {**place(self.plan, self.state.position), "split": split, "weights": "raw", **result.to_dict()}
        values["weights_update"] = self.state.position if of is None else of
        line = self.record("eval", values)
        better = split == "val" and self._is_best(result)
        if better:
            metric = self.config.evaluate.metric
            self.state.best = Best(self.state.position, metric, getattr(result, metric))
        self.console.evaluation(line, best=better)
        return result

    def _is_best(self, result: Evaluation) -> bool:
        metric, best = self.config.evaluate.metric, self.state.best
        value = getattr(result, metric)
        return best is None or (value > best.value if metric == "top1" else value < best.value)

    def save(self) -> None:
        """A checkpoint at this position, once; rank 0 writes, and a failure is everyone's. Raises UserError."""
        if self.saved == self.state.position:
            return
        self.updater.settle()
        self.state.train_seconds = self.clock.seconds
        watch = Clock()
        watch.start()
        failure, path, size = None, "", 0
        if self.runtime.is_main:
            try:
                path, size = self._write_checkpoint()
            except OSError as error:
                failure = f"{self.checkpoints}: a checkpoint cannot be written: {error}"
        failure = self.runtime.from_main(failure)
        if failure:
            raise UserError(failure)
        self.saved = self.state.position
        seconds = watch.seconds
        values = {"path": path, "seconds": seconds, "stall_seconds": seconds, "bytes": size}
        self.record("save", {**place(self.plan, self.state.position), **values})

    def _write_checkpoint(self) -> tuple[str, int]:
        scaler = self.runtime.scaler
        state = {
            "format": 1,
            "train": self.state.to_dict(),
            "schedule": dict(checkpoint.numbers(self.updater.schedule.state_dict())),
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
        path, size = checkpoint.save(self.checkpoints, self.state.position, self.module, self.updater.optimizer, state)
        checkpoint.link(self.checkpoints, "last", path)
        if self.state.best is not None and self.state.best.update == self.state.position:
            checkpoint.link(self.checkpoints, "best", path)
        checkpoint.prune(self.checkpoints, self.config.checkpoint.keep)
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
