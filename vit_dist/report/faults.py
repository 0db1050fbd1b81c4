"""Find what is wrong: what curves leave out, the gap between train and val, missed classes, suspected labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vit_dist.plan.keys import Ints
from vit_dist.report.drawing import short
from vit_dist.report.quality import Result, best_evaluation, val_evaluations
from vit_dist.report.smoothing import end_of
from vit_dist.run_folder.predictions import Predictions
from vit_dist.run_folder.record import RunRecord

# A label is suspected if the model gives another class so much and the label itself so little, and is right so often.
SURE, UNLIKELY, TRUSTED = 0.8, 0.05, 70.0
_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or not. name: what it is about; text: a sentence or two."""

    name: str
    text: str


def findings(run: RunRecord, result: Result | None) -> list[Finding]:
    """Return what is wrong with a run, and with its model, in words."""
    found = [Finding("Files", problem) for problem in run.problems]
    if run.status.get("state") == "failed":
        found.append(Finding("The run", f"It failed: {run.status.get('reason', 'nobody knows why')}"))
    notes = (line.get("text") for line in run.metrics.other_lines if line["kind"] == "note")
    found += [Finding("Noted", text) for text in dict.fromkeys(notes) if isinstance(text, str)]
    found += [Finding("Training", text) for text in _training(run)]
    if result is not None and result.loss in ("nan", "inf", "-inf"):
        text = (
            f"The loss on {result.split} is {result.loss}: the model gives no answers, and its accuracy says nothing."
        )
        found.append(Finding("Training", text))
    if run.summary and not val_evaluations(run):
        text = "There is none, so nothing chose among the weights, or warned of overfitting: the last ones count."
        found.append(Finding("Validation set", text))
    if gap := _gap(run):
        found.append(Finding("Train and val", gap))
    if result is not None and result.figures is not None:
        found += [Finding(name, text) for name, text in _classes(result)]
    if run.predictions is not None and (text := _suspected(run.predictions.predictions, run)):
        found.append(Finding("Labels", text))
    return found


def _training(run: RunRecord) -> Iterator[str]:
    train = run.metrics.train
    lost = train["update"][~np.isfinite(train["loss"])]
    if len(lost):
        more = f", and in {len(lost)} lines in all" if len(lost) > 1 else ""
        yield f"The training loss is not finite at update {lost[0]:,.0f}{more}."
    skipped = train["skipped_updates"][-1:]
    if len(skipped) and skipped[0] > 0:
        yield f"Updates skipped because their loss or gradient was not finite: {skipped[0]:,.0f}."


def _gap(run: RunRecord) -> str:
    """Return how train and val differ at the end, in accuracy if both have it, else in loss."""
    val = val_evaluations(run)
    if not val:
        return ""
    last, top1, loss = val[-1], end_of(run.metrics.train["top1"]), end_of(run.metrics.train["loss"])
    if top1 is not None:
        gap = top1 - last["top1"]
        size = "no gap" if gap < 1 else f"a gap of {gap:.1f} points"
        best = best_evaluation(run)
        kept = (
            ""
            if best is None or best is last or not best["best"]
            else (f" (The weights that are kept, of epoch {best['epoch']:.3g}, reach {best['top1']:.1f} % on val.)")
        )
        return f"{top1:.1f} % right on train at the end, {last['top1']:.1f} % on val: {size}.{kept}"
    if loss is not None and isinstance(last["loss"], float):
        why = "" if run.config.contrastive else " Mixed labels have no accuracy."
        return f"The loss ends at {loss:.3g} on train, {last['loss']:.3g} on val.{why}"
    return ""


def _classes(result: Result) -> Iterator[tuple[str, str]]:
    figures, classes = result.figures, result.classes
    assert figures is not None
    never = figures.never_predicted
    if len(never):
        names = ", ".join(short(classes[number]) for number in never[:_NAMED].tolist())
        more = " …" if len(never) > _NAMED else ""
        count = "1 class is" if len(never) == 1 else f"{len(never):,} classes are"
        yield "Never predicted", f"{count} never the answer: {names}{more}."
    worst = [number for number in figures.worst(3).tolist() if figures.f1[number] < 100]
    if worst and len(classes) > 2:
        texts = (
            f"{short(classes[number])} (F1 {figures.f1[number]:.0f} %, {figures.recall[number]:.0f} % found)"
            for number in worst
        )
        yield "Worst classes", f"{', '.join(texts)}."


def _suspected(predictions: Predictions, run: RunRecord) -> str:
    count = len(suspected_labels(predictions))
    if not count:
        return ""
    split = run.predictions.metadata["split"] if run.predictions else ""
    labels = "1 label looks" if count == 1 else f"{count:,} labels look"
    return (
        f"{labels} wrong on {split}: the model is at least {SURE:.0%} sure of another class, as sure as it "
        f"usually is of that class’s own images, and gives the label under {UNLIKELY:.0%}. Look at those below."
    )


def suspected_labels(predictions: Predictions) -> Ints:
    """Return the rows whose label may be wrong, by confident learning (Northcutt et al., 2021), int64 [n].

    Those of which the model gives another class at least `SURE`, and at least what it gives the images of that class
    on average, and the label less than `UNLIKELY`. None if the model is right on less than `TRUSTED` percent.
    """
    if predictions.top1() < TRUSTED:
        return np.empty(0, np.int64)
    of_label = np.where(predictions.top == predictions.label[:, None], predictions.probability, 0.0).sum(1)
    classes = int(max(predictions.label.max(), predictions.top.max())) + 1
    totals = np.bincount(predictions.label, weights=of_label, minlength=classes)
    usual = totals / np.maximum(np.bincount(predictions.label, minlength=classes), 1)
    predicted, probability = predictions.top[:, 0], predictions.probability[:, 0]
    sure = probability >= np.maximum(usual[predicted], SURE)
    return np.flatnonzero((predicted != predictions.label) & sure & (of_label < UNLIKELY)).astype(np.int64)
