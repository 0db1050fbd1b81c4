"""The figures of runs, and what a comparison says of their speed and of how far their losses diverge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_dist.report.differences import same_data
from vit_dist.report.processes import ProcessTimes, process_times
from vit_dist.run_folder.figures import interval, margin
from vit_dist.run_folder.metrics import Floats
from vit_dist.run_folder.pair_figures import is_of_pairs, top1_of
from vit_dist.run_folder.record import RunRecord, best_of


@dataclass(frozen=True)
class RunFigures:
    """The figures of a run, from its summary or from what it has done so far; None if they are not known.

    seconds: of training; total_seconds: with evaluation, saving and the rest. best: update, metric and value of the
    best evaluation. mfu: the median of its lines. test_top1, test_top5: zero-shot, of images and captions.
    test_interval: of test_top1, 95 %. processes: with several.
    """

    machine: str
    parameters: int
    metric: str
    updates: int
    planned_updates: int
    epochs: float | None
    seconds: float | None
    total_seconds: float
    samples_per_second: float | None
    mfu: float | None
    memory_bytes: float | None
    best: dict[str, Any] | None
    test_loss: float | str | None
    test_top1: float | None
    test_top5: float | None
    test_interval: tuple[float, float] | None = None
    processes: ProcessTimes | None = None

    @property
    def test_margin(self) -> float | None:
        """How far the 95 % interval of the accuracy on test reaches."""
        return None if self.test_top1 is None or not self.test_interval else margin(self.test_top1, self.test_interval)

    @property
    def epoch_seconds(self) -> float | None:
        """Seconds of training for one epoch."""
        return self.seconds / self.epochs if self.seconds and self.epochs else None

    @property
    def updates_text(self) -> str:
        """The updates made, with those planned if there are more."""
        done, planned = self.updates, self.planned_updates
        return f"{done:,} of {planned:,}" if done < planned else f"{done:,}"


@dataclass(frozen=True)
class Divergence:
    """How far a run's losses are from the first run's: relative differences at the updates that both have.

    subject: the loss compared.
    """

    updates: Floats
    differences: Floats
    subject: str


def run_figures(run: RunRecord) -> RunFigures:
    """Return the figures of a run."""
    summary, train = run.summary, run.metrics.train
    started = len(train["update"]) > 0
    test = summary.get("test") or {}
    rate = summary.get("samples_per_second")
    return RunFigures(
        machine=f"{run.start['world_size']} × {run.start['device']}, {run.start['precision']}",
        parameters=run.start["parameters"],
        metric=run.config.evaluate.metric,
        updates=summary.get("updates") or (int(train["update"][-1]) if started else 0),
        planned_updates=run.start["plan"]["updates"],
        epochs=summary.get("epochs") or (float(train["epoch"][-1]) if started else None),
        seconds=summary.get("train_seconds") or (float(run.train_seconds[-1]) if started else None),
        total_seconds=run.total_seconds,
        samples_per_second=rate or (float(np.median(train["samples_per_second"])) if started else None),
        mfu=float(np.nanmedian(train["mfu"])) if started and not np.isnan(train["mfu"]).all() else None,
        memory_bytes=run.memory,
        best=best_of(run),
        test_loss=test.get("loss"),
        test_top1=top1_of(test),
        test_top5=test.get("zero_shot_top5" if is_of_pairs(test) else "top5"),
        test_interval=_test_interval(run),
        processes=process_times(run),
    )


def _test_interval(run: RunRecord) -> tuple[float, float] | None:
    """Return the interval of the accuracy on test: the summary's, or that of as many images, if it does not say it."""
    figures, test = run.summary.get("figures"), run.summary.get("test") or {}
    if figures and figures["split"] == "test":
        low, high = figures["top1_interval"]
        return low, high
    seen = next((line["seen"] for line in reversed(run.evaluations("test", run.summary.get("weights", "raw")))), 0)
    top1 = top1_of(test)
    return interval(round(top1 * seen / 100), seen) if seen and top1 is not None else None


def divergence(first: RunRecord, other: RunRecord) -> Divergence:
    """Compare the training losses if both have lines of the same updates, else the losses on val."""
    ours, theirs = first.metrics.train, other.metrics.train
    losses = _by_span(ours["update"], first.spans, ours["loss"])
    other_losses = _by_span(theirs["update"], other.spans, theirs["loss"])
    pairs = [(span, losses[span], loss) for span, loss in other_losses.items() if span in losses]
    subject = "the training loss"
    if not pairs:
        evaluated = {line["update"]: float(line["loss"]) for line in first.evaluations("val", "raw")}
        lines = [line for line in other.evaluations("val", "raw") if line["update"] in evaluated]
        pairs = [((0, line["update"]), evaluated[line["update"]], float(line["loss"])) for line in lines]
        subject = "the loss on val"
    updates = np.asarray([span[1] for span, _, _ in pairs], np.float64)
    a, b = (np.asarray([pair[place] for pair in pairs], np.float64) for place in (1, 2))
    with np.errstate(invalid="ignore"):  # an infinity minus another is not a number
        return Divergence(updates, np.abs(b - a) / np.maximum(np.abs(a), 1e-12), subject)


def speed_sentence(first: RunRecord, other: RunRecord, names: tuple[str, str]) -> str | None:
    """Return how fast another run is compared with the first; None if one has measured nothing."""
    one, two = run_figures(first), run_figures(other)
    if one.epoch_seconds is None or two.epoch_seconds is None:
        return None
    return (
        f"{names[1]} ({two.machine}) {_pace(one.epoch_seconds / two.epoch_seconds)} {names[0]} ({one.machine}): "
        f"{two.epoch_seconds:.3g} s against {one.epoch_seconds:.3g} s."
    )


def _pace(ratio: float) -> str:
    """Return how fast an epoch is, `ratio` times as fast as another."""
    if 0.95 <= ratio <= 1.05:
        return "trains an epoch as fast as"
    faster = f"trains an epoch {ratio:.3g} times as fast as"
    return faster if ratio >= 1 else f"needs {1 / ratio:.3g} times as long for an epoch as"


def same_stream(first: RunRecord, other: RunRecord) -> bool:
    """Return whether two runs have the same batches, augmentations and learning rates, update for update."""
    one, two = (run.config.fields(changes_result=True) for run in (first, other))
    return one == two and same_data(first, other)


def loss_divergence(names: Sequence[str], divergences: Sequence[Divergence]) -> Iterator[str]:
    """Yield a sentence for each other run: how far its losses are from the first run's, and where."""
    for name, each in zip(names[1:], divergences, strict=True):
        subject = each.subject.capitalize()
        lost = each.updates[~np.isfinite(each.differences)]
        if len(lost):
            yield f"{subject} of {name} or {names[0]} is not finite at update {lost[0]:,.0f}."
        elif not each.differences.any() and len(each.updates):
            yield f"{subject} of {name} is exactly that of {names[0]} at all {len(each.updates)} lines."
        elif len(each.updates):
            largest = int(np.argmax(each.differences))
            yield (
                f"{subject} of {name} differs from that of {names[0]} by {each.differences[0]:.1e}, relative, "
                f"at update {each.updates[0]:,.0f}, by {each.differences[-1]:.1e} at update {each.updates[-1]:,.0f}, "
                f"and by {each.differences[largest]:.1e} at most, at update {each.updates[largest]:,.0f}."
            )


def _by_span(updates: Floats, spans: Floats, losses: Floats) -> dict[tuple[int, int], float]:
    """Return losses by the first and last update of their lines: means over other updates cannot be compared."""
    starts = (updates - spans).astype(np.int64).tolist()
    return dict(zip(zip(starts, updates.astype(np.int64).tolist(), strict=True), losses.tolist(), strict=True))
