"""One rank's part of a run: log, evaluate, save."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vit_dist.checkpointing.checkpointer import Checkpointer
from vit_dist.checkpointing.state import TrainState
from vit_dist.data.stream import EvaluationStream, Stream
from vit_dist.files import json_number
from vit_dist.inference.contrastive import Evaluated, evaluate_towers
from vit_dist.inference.evaluation import Swap, evaluate_each
from vit_dist.inference.split_texts import SplitTexts, split_texts
from vit_dist.models.contrastive_loss import ContrastiveLoss
from vit_dist.run_folder.lock import FolderLock
from vit_dist.run_folder.predictions import TOP_K
from vit_dist.run_folder.progress import write_progress
from vit_dist.run_folder.status import write_status
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.clock import Clock
from vit_dist.telemetry.console import Console
from vit_dist.telemetry.meter import Meter
from vit_dist.telemetry.ranks import RankMeter, RankTimes, Stragglers, rank_fields
from vit_dist.telemetry.recorder import Recorder
from vit_dist.training.components import Components
from vit_dist.training.model_selection import out_of_patience, take_evaluation
from vit_dist.training.profiling import UpdateProfile, in_words
from vit_dist.training.update import Updater


@dataclass
class Trainer:
    """One rank's part of a run, built and ready: `loop` calls it at the boundaries between updates.

    save_seconds: the time between checkpoints, if it goes by the clock. saved: the position of the last checkpoint in
    the folder, and whether its evaluation was still due.
    """

    components: Components
    runtime: Runtime
    console: Console
    folder: Path
    lock: FolderLock | None
    updater: Updater
    state: TrainState
    stream: Stream
    evaluation_streams: dict[str, EvaluationStream]
    clock: Clock
    meter: Meter
    rank_meter: RankMeter
    recorder: Recorder
    checkpointer: Checkpointer
    profile: UpdateProfile
    save_seconds: float | None = None
    saved: tuple[int, bool] | None = None
    _texts: dict[str, SplitTexts] = field(default_factory=dict)
    _saved_at: float = field(default_factory=time.monotonic)
    _stragglers: Stragglers = field(default_factory=Stragglers)

    @property
    def over(self) -> bool:
        """Return whether no update is left to make: all are done, or patience has run out."""
        at_the_end = self.state.position >= self.components.plan.updates
        return at_the_end or out_of_patience(self.state, self.components.config.evaluate)

    def log(self) -> None:
        """Record a `train` line of the updates since the last one, if there are any. Waits for the device."""
        if self.meter.last is not None and self.meter.last[0] == self.state.position:
            return
        lr = self.updater.schedule.rate
        self.updater.finish_previous()
        grad_norm, skipped = self.updater.grad_norm.item(), self.state.skipped_updates
        self.runtime.synchronize()
        position, waited = self.state.position, self.stream.wait_seconds
        times = self.rank_meter.times(position, waited)
        sums = self.updater.take_sums()
        line = self.meter.line(position, waited, sums, lr=lr, grad_norm=grad_norm, skipped=skipped)
        gathered = self.runtime.gather([self.stream.bad.take(), line["data_wait_fraction"], times.to_json()])
        bad, waits, values = zip(*gathered, strict=True)
        line["bad_samples"] = sum(bad)
        ranks = [RankTimes(**each) for each in values]
        if len(ranks) > 1:
            line |= rank_fields(ranks, waits, line["update_seconds"])
        self.recorder.record("train", position, line)
        for text in self._stragglers.take(ranks):
            self.console.note(text)
            self.recorder.record("note", position, {"text": text})
        self.record_saves()
        self.write_status("running")
        self.rank_meter.restart(position, waited)

    def start_meters(self) -> None:
        """Make the next `train` line count from here."""
        self.meter.restart(self.state.position, self.stream.wait_seconds)
        self.rank_meter.restart(self.state.position, self.stream.wait_seconds)

    def validate(self) -> bool:
        """Evaluate val and feed the plateau schedule, the choice of the best and patience.

        Return whether the weights are the best so far.
        """
        self.updater.finish_previous()
        results = self.evaluate_split("val")
        warming = self.state.position <= self.components.plan.warmup
        config = self.components.config.evaluate
        self.state.evaluation_due = False
        best, notes = take_evaluation(results, self.state, self.updater.schedule, config, warming=warming)
        self.record_evaluations("val", results, self.state.position, best=best)
        self.console.evaluated(self.state.position)
        for note in notes:
            self.console.say(note)
        if self.runtime.is_main:
            history, metric = self.recorder.history, config.metric
            progress = self.folder / "progress.md"
            self.recorder.outputs.write(progress, lambda: write_progress(self.folder, history, metric))
        return best is not None

    def evaluate_split(self, split: str, keep: str = "") -> Mapping[str, Evaluated]:
        """Evaluate a split with the model's weights (raw) and, if there is one, their average (ema), in one pass.

        keep: the weights (raw or ema) whose predictions, or pairs, the result keeps.
        """
        self.console.phase(f"evaluating {split}")
        weights: dict[str, Swap] = {"raw": contextlib.nullcontext}
        if self.updater.average is not None:
            weights["ema"] = self.updater.average.swapped
        return self._evaluate(split, weights, keep)

    def evaluate_weights(self, split: str) -> Evaluated:
        """Make one exact pass over a split with the weights that the model holds now; keep its predictions or pairs."""
        return self._evaluate(split, {"raw": contextlib.nullcontext}, "raw")["raw"]

    def _evaluate(self, split: str, weights: Mapping[str, Swap], keep: str) -> Mapping[str, Evaluated]:
        stream, model = self.evaluation_streams[split], self.components.model
        if not self.components.config.contrastive:
            of_classes = {keep: TOP_K}
            return evaluate_each(model, weights, stream, stream.length, self.runtime, keep=of_classes, bad=stream.bad)
        if split not in self._texts:
            data = self.components.data
            self._texts[split] = split_texts(self.components.config, data.splits[split], data.classes)
        return evaluate_towers(
            model,
            weights,
            stream,
            self._texts[split],
            self.runtime,
            loss=ContrastiveLoss(self.components.config.loss),
            loss_size=self.components.plan.global_size,
            batch_size=self.components.config.evaluate.batch_size,
            keep=keep,
            bad=stream.bad,
        )

    def record_evaluations(
        self, split: str, results: Mapping[str, Evaluated], update: int, *, best: str | None = None
    ) -> None:
        """Record an `eval` line for each of the weights of `update`. best: those that are the best so far, if any."""
        for weights, result in results.items():
            values = {"split": split, "weights": weights, **result.to_dict(), "loss": json_number(result.loss)}
            values |= {"best": weights == best, "weights_update": update}
            self.recorder.record("eval", self.state.position, values)

    def save(self) -> None:
        """Begin to save a checkpoint of this position, unless there is one. Raises UserError, on all ranks alike."""
        mark = (self.state.position, self.state.evaluation_due)
        if self.saved == mark:
            return
        self.updater.finish_previous()
        if not self.updater.weights_are_finite():
            self.console.note(f"update {self.state.position}: the weights are not finite: no checkpoint is saved")
            return
        self.state.train_seconds = self.clock.seconds
        self.checkpointer.save()
        self.saved, self._saved_at = mark, time.monotonic()
        self.record_saves()

    def ask_to_save_by_the_clock(self) -> None:
        """Raise the flag to save on rank 0, whose clock decides, if the time between checkpoints has passed."""
        if self.save_seconds and self.runtime.is_main and time.monotonic() - self._saved_at > self.save_seconds:
            self._saved_at = time.monotonic()
            self.runtime.flags.save()

    def record_saves(self) -> None:
        """Record a `save` line of each checkpoint that has been written since the last call."""
        for position, values in self.checkpointer.take_written():
            self.recorder.record("save", position, values)

    def record_profile(self) -> None:
        """Record a `profile` line if the updates to profile are made."""
        if not self.profile.is_due(self.state.position, over=self.over):
            return
        self.runtime.synchronize()
        with self.clock.paused(self.runtime), self.runtime.working():
            line, problem = self.profile.finish(self.state.position)
        if line:
            self.recorder.record("profile", self.state.position, line)
            self.console.say(in_words(line))
        if problem:
            self.console.note(problem)

    def write_status(self, state: str, reason: str | None = None, *, speaks: bool = False) -> None:
        """Write status.json: running, finished, stopped or failed. speaks: whether this rank stands in for rank 0."""
        if self.runtime.is_main or speaks:
            folder, position, recorder = self.folder, self.state.position, self.recorder
            status = folder / "status.json"
            recorder.outputs.write(status, lambda: write_status(folder, state, position, reason, recorder.problems))

    def close(self, *, wait: bool = True) -> None:
        """Release workers, trackers, files and the folder. wait: for a checkpoint that is being written."""
        self.console.stop()
        self.profile.close()
        self.checkpointer.close(wait=wait)
        self.stream.close()
        for stream in self.evaluation_streams.values():
            stream.close()
        self.recorder.close()
        if self.lock is not None:
            self.lock.release()
