"""What is held against what when runs are compared: figures, streams, how far losses part, and a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vit_dist.run_folder.metrics import Floats
from vit_dist.run_folder.record import RunRecord, best_of

# Accuracies that are this near, in percent, are called the same.
_NEAR = 0.5


@dataclass(frozen=True)
class RunFigures:
    """A run's figures; None where nobody knows. seconds: of training; total: with all beside it."""

    machine: str
    updates: int
    planned: int
    seconds: float | None
    epoch_seconds: float | None
    total: float
    rate: float | None
    mfu: float | None
    memory: float | None
    best: float | None
    test: float | None
    fifth: float | None


@dataclass(frozen=True)
class Drift:
    """How far a run's losses are from the first's: relative differences at the updates that both have."""

    updates: Floats
    differences: Floats
    of: str


def measured(run: RunRecord) -> RunFigures:
    """Of its summary, or of what it has done so far."""
    summary, train = run.summary, run.metrics.train
    started = len(train["update"]) > 0
    seconds = summary.get("train_seconds") or (float(run.train_seconds[-1]) if started else None)
    epochs = summary.get("epochs") or (float(train["epoch"][-1]) if started else None)
    best, test = best_of(run), summary.get("test") or {}
    return RunFigures(
        machine=f"{run.start['world_size']} × {run.start['device']}, {run.start['precision']}",
        updates=summary.get("updates") or (int(train["update"][-1]) if started else 0),
        planned=run.start["plan"]["updates"],
        seconds=seconds,
        epoch_seconds=seconds / epochs if seconds and epochs else None,
        total=summary.get("total_seconds") or run.metrics.seconds,
        rate=summary.get("samples_per_second") or (float(np.median(train["samples_per_second"])) if started else None),
        mfu=float(np.nanmedian(train["mfu"])) if started and not np.isnan(train["mfu"]).all() else None,
        memory=run.memory,
        best=best["value"] if best else None,
        test=test.get("top1"),
        fifth=test.get("top5"),
    )


def drift(first: RunRecord, other: RunRecord) -> Drift:
    """Of the training loss where both have lines of the same updates, else of the loss on val."""
    ours, theirs = first.metrics.train, other.metrics.train
    mine = _spans(ours["update"], first.spans, ours["loss"])
    others = _spans(theirs["update"], other.spans, theirs["loss"])
    both = [(at, mine[at], loss) for at, loss in others.items() if at in mine]
    of = "the training loss"
    if not both:
        evaluated = {line["update"]: float(line["loss"]) for line in first.evaluations("val", "raw")}
        lines = [line for line in other.evaluations("val", "raw") if line["update"] in evaluated]
        both = [((0, line["update"]), evaluated[line["update"]], float(line["loss"])) for line in lines]
        of = "the loss on val"
    updates = np.asarray([at[1] for at, _, _ in both], np.float64)
    one, two = (np.asarray([values[place] for values in both], np.float64) for place in (1, 2))
    with np.errstate(invalid="ignore"):  # an infinity beside another is no number
        return Drift(updates, np.abs(two - one) / np.maximum(np.abs(one), 1e-12), of)


def verdict(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    """One sentence on the last run against the first."""
    first, last = measured(runs[0]), measured(runs[-1])
    unfinished = [name for name, run in zip(names, runs, strict=True) if not run.summary]
    if unfinished:
        return f"Not finished yet: {', '.join(unfinished)}; what is below is of the updates done so far."
    if not _same_data(runs[0], runs[-1]):
        return f"Other data than that of {names[0]}: {names[-1]}; speeds and accuracies cannot be compared."
    if first.seconds is None or last.seconds is None:
        return "One of the runs has not measured anything."
    assert first.epoch_seconds is not None
    assert last.epoch_seconds is not None
    ratio = first.epoch_seconds / last.epoch_seconds
    slower = f"needs {1 / ratio:.3g} times as long for an epoch as"
    pace = f"trains an epoch {ratio:.3g} times as fast as" if ratio >= 1 else slower
    pace = "trains an epoch as fast as" if 0.95 <= ratio <= 1.05 else pace
    speed = (
        f"{names[-1]} ({last.machine}) {pace} {names[0]} ({first.machine}): "
        f"{last.epoch_seconds:.3g} s against {first.epoch_seconds:.3g} s"
    )
    kind, one, two = ("test", first.test, last.test) if first.test is not None else ("val", first.best, last.best)
    if one is None or two is None:
        return f"{speed}."
    figures = f"({two:.2f} % against {one:.2f} % on {kind})"
    if kind == "val" and not metric_of(runs[0]).endswith(("top1", "top5")):
        return f"{speed}; {metric_of(runs[0])} on val is {two:.4g} against {one:.4g}."
    if abs(one - two) <= _NEAR:
        return f"{speed}, to the same accuracy within {_NEAR} points {figures}."
    return f"{speed}, and ends {abs(two - one):.2f} points {'better' if two > one else 'worse'} {figures}."


def _same_data(first: RunRecord, other: RunRecord) -> bool:
    """Whether two runs share what their figures are of, as far as their folders say."""
    known = [run.inputs.about["classes"] for run in (first, other) if run.inputs is not None]
    mine, theirs = (
        (run.config.data.name or bool(run.config.data.root), run.config.data.val_fraction, run.start["plan"]["samples"])
        for run in (first, other)
    )
    return mine == theirs and all(classes == known[0] for classes in known)


def metric_of(run: RunRecord) -> str:
    return run.config.evaluate.metric


def compare_configs(runs: Sequence[RunRecord], names: Sequence[str]) -> Iterator[str]:
    """Whether the others saw the samples that the first did."""
    mine = runs[0].config.fields(changes_result=True)
    for run, name in zip(runs[1:], names[1:], strict=True):
        theirs = run.config.fields(changes_result=True)
        odd = [field for field in mine if mine[field] != theirs[field]]
        samples = runs[0].start["plan"]["samples"], run.start["plan"]["samples"]
        if not odd and samples[0] == samples[1]:
            yield (
                f"{name} and {names[0]} have one identity ({runs[0].config.identity()}): "
                "the same batches, augmentations and rates, update for update."
            )
        elif not odd:
            yield f"{name} has {samples[1]:,} training images, {names[0]} {samples[0]:,}: the streams are not the same."
        else:
            changes = ", ".join(f"{field} {mine[field]} → {theirs[field]}" for field in odd[:6])
            more = f" and {len(odd) - 6} more" if len(odd) > 6 else ""
            yield f"{name} is another run than {names[0]}: {changes}{more}."


def loss_divergence(names: Sequence[str], drifts: Sequence[Drift]) -> Iterator[str]:
    for name, one in zip(names[1:], drifts, strict=True):
        lost = one.updates[~np.isfinite(one.differences)]
        if len(lost):
            yield f"{one.of.capitalize()} of {name} or {names[0]} is no number at update {lost[0]:,.0f}."
        elif not one.differences.any() and len(one.updates):
            yield f"{one.of.capitalize()} of {name} is exactly that of {names[0]} at all {len(one.updates)} lines."
        elif len(one.updates):
            end = int(np.argmax(one.differences))
            yield (
                f"{one.of.capitalize()} of {name} parts from that of {names[0]} by {one.differences[0]:.1e}, relative, "
                f"at update {one.updates[0]:,.0f}, by {one.differences[-1]:.1e} at update {one.updates[-1]:,.0f}, "
                f"and by {one.differences[end]:.1e} at most, at update {one.updates[end]:,.0f}."
            )


def _spans(updates: Floats, spans: Floats, losses: Floats) -> dict[tuple[int, int], float]:
    """(first, last update of a line) → its loss: means over other updates cannot be compared."""
    starts = (updates - spans).astype(np.int64).tolist()
    return dict(zip(zip(starts, updates.astype(np.int64).tolist(), strict=True), losses.tolist(), strict=True))
