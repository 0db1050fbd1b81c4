"""One process's part of a run: what it records, evaluates and saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from vit_dist.checkpointing import checkpoint
from vit_dist.checkpointing.folder import point_to, prune
from vit_dist.checkpointing.state import TrainState
from vit_dist.config.config import Config
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.data.stream import EvaluationStream, Stream, pictures
from vit_dist.errors import UserError
from vit_dist.files import json_number
from vit_dist.inference.evaluation import Evaluation, evaluate
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.lock import FolderLock
from vit_dist.run_folder.metrics import Line, MetricsLog, position_fields
from vit_dist.run_folder.predictions import (
    INPUTS,
    PREDICTIONS,
    TOP_K,
    Predictions,
    SavedPredictions,
    write_inputs,
    write_predictions,
)
from vit_dist.run_folder.progress import write_progress
from vit_dist.run_folder.status import versions, write_status
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.clock import Clock
from vit_dist.telemetry.console import Console
from vit_dist.telemetry.meter import Meter
from vit_dist.telemetry.trackers import Trackers
from vit_dist.training.model_selection import out_of_patience, update_best, value_of, weights_of
from vit_dist.training.update import Updater

_MISTAKES = 24


@dataclass
class Trainer:
    """One process's part of a run, built and ready. `module` is the bare model, `history` the metrics that count."""

    config: Config
    runtime: Runtime
    console: Console
    folder: Path
    lock: FolderLock | None
    data: LabelledSplits
    plan: Plan
    module: nn.Module
    preprocessing: Preprocessing
    updater: Updater
    state: TrainState
    stream: Stream
    evaluations: dict[str, EvaluationStream]
    journal: MetricsLog
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
        lr = self.updater.schedule.rate
        self.updater.finish_previous()
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
        self.updater.finish_previous()
        results = self.evaluate("val")
        scores = {weights: result.to_dict() for weights, result in results.items()}
        warming = self.state.position <= self.plan.warmup
        metric = self.updater.schedule.metric
        if metric is not None:
            before = self.updater.schedule.rate
            self.updater.schedule.evaluated({metric: value_of(metric, scores)})
            if self.updater.schedule.rate != before:
                self.console.say(f"plateau of {metric}: rate {before:.3g} → {self.updater.schedule.rate:.3g}")
        best = update_best(self.state, self.config.evaluate, scores, warming=warming)
        self.report(
            "val", results, self.state.position, best=weights_of(self.config.evaluate.metric, scores) if best else None
        )
        if self.runtime.is_main:
            write_progress(self.folder, self.history, self.config.evaluate.metric)
        if out_of_patience(self.state, self.config.evaluate):
            count, metric = self.state.evaluations_without_improvement, self.config.evaluate.metric
            self.console.say(f"out of patience: {metric} no better in {count} evaluations")
        return best

    @property
    def over(self) -> bool:
        """Whether no update is left to make: all are done, or patience is at its end."""
        return self.state.position >= self.plan.updates or out_of_patience(self.state, self.config.evaluate)

    def evaluate(self, split: str, keep: str = "") -> dict[str, Evaluation]:
        """One exact pass over a split by the model's weights (raw), and one by their average (ema), if there is one.

        keep: the weights whose predictions are kept.
        """
        results, average = {"raw": self.one_pass(split, TOP_K * (keep == "raw"))}, self.updater.average
        if average is not None:
            with average.swapped():
                results["ema"] = self.one_pass(split, TOP_K * (keep == "ema"))
        return results

    def one_pass(self, split: str, keep: int) -> Evaluation:
        """By the weights that the model has now; keep: classes kept of each sample."""
        stream = self.evaluations[split]
        return evaluate(self.module, stream, stream.length, self.runtime, keep=keep)

    def keep_inputs(self) -> None:
        """inputs.safetensors: what the model sees first, once in a run's life."""
        path = self.folder / INPUTS
        if self.runtime.is_main and not path.exists() and not self.over:
            inputs = self.stream.inputs(self.state.position, self.data.classes)
            self._keep(path, lambda: write_inputs(path, inputs))
            self.trackers.show_inputs(inputs, inputs.captions())

    def keep_predictions(self, split: str, weights: str, of: int, predictions: Predictions) -> None:
        """predictions.safetensors: what these weights, of update `of`, say of a split, and pictures of the worst."""
        if not self.runtime.is_main:
            return
        shown = predictions.mistakes(_MISTAKES)
        about = {"split": split, "weights": weights, "update": of, "classes": list(self.data.classes)}
        kept = SavedPredictions(predictions, about, shown, pictures(self.data.splits[split], shown, self.preprocessing))
        path = self.folder / PREDICTIONS
        self._keep(path, lambda: write_predictions(path, kept))
        captions = [f"{said}, is {true}" for said, true in kept.captions()]
        self.trackers.show_predictions(kept, captions, self.state.position)

    def _keep(self, path: Path, write: Callable[[], None]) -> None:
        """What the run can do without: where it cannot be written, that is said."""
        try:
            write()
        except OSError as error:
            self.console.note(f"{path}: cannot be written: {error.strerror}")

    def report(self, split: str, results: dict[str, Evaluation], of: int, *, best: str | None = None) -> None:
        """Records and shows evaluations by the weights of update `of`; those named `best` are the best so far."""
        for weights, result in results.items():
            values = result.to_dict() | {
                "loss": json_number(result.loss),
                "best": weights == best,
                "weights_update": of,
            }
            where = position_fields(self.plan, self.state.position)
            self.console.evaluation(self.record("eval", {**where, "split": split, "weights": weights, **values}))

    def save(self) -> None:
        """A checkpoint at this position, once; rank 0 writes, and a failure is everyone's. Raises UserError."""
        if self.saved == self.state.position:
            return
        self.updater.finish_previous()
        self.state.train_seconds = self.clock.seconds
        watch = Clock()
        watch.start()
        path, size = self.runtime.run_on_main(self._write_checkpoint)
        self.saved = self.state.position
        seconds = watch.seconds
        values = {"path": path, "seconds": seconds, "stall_seconds": seconds, "bytes": size}
        self.record("save", {**position_fields(self.plan, self.state.position), **values})

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
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "channels": self.data.channels,
            "plan": self.plan.to_dict(),
            "config": self.config.to_dict(),
            "versions": versions(),
        }
        try:
            path, size = checkpoint.save(
                self.checkpoints, state.position, self.module, self.updater.optimizer, content, self.updater.average
            )
            point_to(self.checkpoints, "last", path)
            if state.best is not None and state.best.update == state.position:
                point_to(self.checkpoints, "best", path)
            prune(self.checkpoints, self.config.checkpoint.keep)
        except OSError as error:
            raise UserError(f"{self.checkpoints}: a checkpoint cannot be written: {error}") from None
        return str(path.relative_to(self.folder)), size

    def write_status(self, state: str, reason: str | None = None) -> None:
        """status.json: running, finished, stopped or failed."""
        if self.runtime.is_main:
            write_status(self.folder, state, self.state.position, reason)

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
