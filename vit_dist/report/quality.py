"""How good a run's model is: its result with an interval, a baseline, a verdict in words, and the figures per class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vit_dist.formatting import loss_text
from vit_dist.report.drawing import short
from vit_dist.run_folder.figures import Figures, Interval, figures_of, interval, margin
from vit_dist.run_folder.metrics import Line
from vit_dist.run_folder.pair_figures import is_of_pairs
from vit_dist.run_folder.record import RunRecord

# Fewer images than this give a figure that one of them moves by more than a point.
SMALL_SPLIT = 100
# Up to so many classes, the right one is among the five likeliest without much merit.
TOP5_CLASSES = 10
# Accuracy and balanced accuracy that differ by more points than this are both in the verdict.
UNBALANCED_POINTS = 5.0
# How much of the way from the baseline to 100 % is far above, well above and above it.
_FAR, _WELL, _ABOVE = 0.75, 0.4, 0.1


@dataclass(frozen=True)
class Result:
    """Say what a run's model reaches on the split that says most: test, else val. Rates are in percent.

    figures: None until the run has finished. baseline: of always answering the commonest class; None if not known.
    chosen_by: whether the same split chose the weights.
    """

    split: str
    weights: str
    update: int
    epoch: float
    loss: float | str
    top1: float
    top5: float | None
    seen: int
    classes: list[str]
    figures: Figures | None
    baseline: float | None
    chose_the_weights: bool

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the accuracy."""
        return interval(round(self.top1 * self.seen / 100), self.seen)

    @property
    def margin(self) -> str:
        """The interval as text: ±1.1."""
        return f"±{margin(self.top1, self.interval):.1f}"

    @cached_property
    def is_above_baseline(self) -> bool:
        """Return whether the result is better than always answering the commonest class, by more than chance."""
        return self.baseline is None or self.interval[0] > self.baseline


def result_of(run: RunRecord) -> Result | None:
    """Return the result of a run: of its saved predictions, or of the best evaluation so far; None without any.

    None for images and captions: `pairs_page` has theirs.
    """
    best = best_evaluation(run)
    saved = run.predictions
    if saved is None:
        if best is None or is_of_pairs(best):
            return None
        classes = class_names(run)
        counts = run.facts.counts.get("val") if run.facts else None
        known = counts is not None and counts.sum() > 0
        return Result(
            **_common(best),
            classes=classes,
            figures=None,
            baseline=float(100 * counts.max() / counts.sum()) if known and counts is not None else None,
            chose_the_weights=True,
        )
    about = saved.metadata
    figures = figures_of(saved.predictions, len(about["classes"]))
    split, weights, update = about["split"], about["weights"], about["update"]
    lines = [line for line in run.evaluations(split, weights) if line["weights_update"] == update]
    loss = lines[-1]["loss"] if lines else (run.summary.get("test") or {}).get("loss", "unknown")
    top = saved.predictions.top
    top5 = 100 * float((top == saved.predictions.label[:, None]).any(1).mean()) if top.shape[1] == 5 else None
    return Result(
        split=split,
        weights=weights,
        update=update,
        epoch=_epoch_of(run, update),
        loss=loss,
        top1=figures.top1,
        top5=top5 if len(about["classes"]) > 5 else None,
        seen=figures.seen,
        classes=about["classes"],
        figures=figures,
        baseline=figures.baseline,
        chose_the_weights=split == "val" and best is not None,
    )


def best_evaluation(run: RunRecord) -> Line | None:
    """Return the evaluation of val that is the best so far; the latest one if none was chosen; None without any."""
    lines = val_evaluations(run)
    return next((line for line in reversed(lines) if line["best"]), lines[-1] if lines else None)


def val_evaluations(run: RunRecord) -> list[Line]:
    """Return the evaluations of val by the weights that are judged: the EMA's if there are any, else the raw ones."""
    judged = "ema" if run.config.train.ema and not run.config.evaluate.metric.startswith("raw_") else "raw"
    return run.evaluations("val", judged) or run.evaluations("val", "raw")


def class_names(run: RunRecord) -> list[str]:
    """Return the names of the classes; empty if no file of the run holds them."""
    if run.facts is not None:
        return run.facts.classes
    saved = run.predictions or run.inputs
    return list(saved.metadata["classes"]) if saved is not None else []


def verdict(result: Result) -> str:
    """Return in plain words how good the result is."""
    return " ".join(_verdict_sentences(result))


def _verdict_sentences(result: Result) -> Iterator[str]:
    score = f"{result.top1:.1f} % on {result.split} ({result.margin})"
    if result.baseline is None:
        yield f"{score}."
    else:
        yield f"{score}: {_compared(result)} the {result.baseline:.1f} % of always answering the commonest class."
    figures = result.figures
    if figures is not None and abs(figures.balanced_accuracy - result.top1) > UNBALANCED_POINTS:
        yield f"If every class counts the same, it is {figures.balanced_accuracy:.1f} %."
    if result.seen < SMALL_SPLIT:
        images = "1 image" if result.seen == 1 else f"{result.seen} images"
        yield f"{result.split.capitalize()} is small: {images}, each of {100 / result.seen:.1f} points."
    if result.chose_the_weights:
        yield "The same images chose the best weights, so expect a little less on new ones."


def _compared(result: Result) -> str:
    assert result.baseline is not None
    if not result.is_above_baseline:
        return "no better than" if result.top1 <= result.baseline else "not clearly above"
    way = (result.top1 - result.baseline) / max(100 - result.baseline, 1e-9)
    return (
        "far above" if way >= _FAR else "well above" if way >= _WELL else "above" if way >= _ABOVE else "barely above"
    )


def tiles(result: Result) -> list[tuple[str, str, str]]:
    """Return the numbers at the top: (value, name, more), an even number of them."""
    figures = result.figures
    shown = [(f"{result.top1:.2f} %", f"accuracy on {result.split}", f"{result.margin} (95 % interval)")]
    if result.baseline is not None:
        commonest = ""
        if figures is not None:
            commonest = f"always “{short(result.classes[figures.majority_class])}”"
        shown.append((f"{result.baseline:.2f} %", "baseline", commonest or "the commonest class"))
    if result.top5 is not None and len(result.classes) > TOP5_CLASSES:
        shown.append((f"{result.top5:.2f} %", "top-5 accuracy", "among the five likeliest"))
    if figures is not None:
        low, high = figures.macro_f1_interval
        shown.append((f"{figures.macro['f1']:.2f} %", "macro F1", f"{low:.1f} to {high:.1f}"))
        shown.append((f"{figures.balanced_accuracy:.2f} %", "balanced accuracy", "all classes count alike"))
    wrong = result.seen - round(result.top1 * result.seen / 100)
    shown.append((f"{wrong:,}", "images wrong", f"of {result.seen:,} on {result.split}"))
    if len(shown) % 2:
        update = f"of update {result.update:,}"
        shown.append((loss_text(result.loss), f"loss on {result.split}", update))
    return shown


def class_rows(figures: Figures, classes: list[str], most: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the table of the classes, lowest F1 first, and its mean rows; at most `most` classes.

    Each row has its name, images, precision, recall, F1 in percent, and what it was taken for most often.
    """
    mistaken = _most_frequent_mistakes(figures, classes)
    rows = [
        {
            "name": classes[number],
            "images": int(figures.support[number]),
            "precision": _rate(figures.precision[number]),
            "recall": _rate(figures.recall[number]),
            "f1": _rate(figures.f1[number]),
            "mistaken": mistaken.get(number, ""),
        }
        for number in figures.worst(most).tolist()
    ]
    means = [
        {"name": name, "images": figures.seen, "mistaken": "", **values}
        for name, values in (("macro mean", figures.macro), ("weighted mean", figures.weighted))
    ]
    return rows, means


def _rate(value: np.floating[Any]) -> float | None:
    return None if np.isnan(value) else float(value)


def _most_frequent_mistakes(figures: Figures, classes: list[str]) -> dict[int, str]:
    """Return what each class was taken for most often, and how often: class → text."""
    pairs, times = np.unique(figures.mistakes, axis=1, return_counts=True)
    order = np.argsort(-times, kind="stable")
    texts: dict[int, str] = {}
    for truth, predicted, often in zip(*pairs[:, order].tolist(), times[order].tolist(), strict=True):
        texts.setdefault(truth, f"{short(classes[predicted])} ({often:,}×)")
    return texts


def _common(line: Line) -> dict[str, Any]:
    return {
        **{name: line[name] for name in ("split", "weights", "epoch", "loss", "top1", "top5")},
        **{"update": line["weights_update"], "seen": max(1, line["seen"])},
    }


def _epoch_of(run: RunRecord, update: int) -> float:
    """Return the epoch of an update, from the evaluation that was made there, else from the plan."""
    lines = [line["epoch"] for line in run.metrics.other_lines if line["kind"] == "eval" and line["update"] == update]
    return float(lines[0]) if lines else update * run.config.batch.global_size / max(1, run.start["plan"]["samples"])
