"""progress.md: the evaluations of a run as a table, written from its metrics alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from vit_dist.files import write_text
from vit_dist.formatting import loss_text, markdown
from vit_dist.run_folder.lines import weighted_mean
from vit_dist.run_folder.metrics import Line, spanned_updates
from vit_dist.run_folder.pair_figures import headlines, is_of_pairs


def write_progress(folder: Path, history: Sequence[Line], metric: str) -> None:
    """Replace the file atomically. metric: the one that decides the best evaluation. Raises OSError."""
    of_pairs = any(line["kind"] == "eval" and is_of_pairs(line) for line in history)
    loss = "as in training, without augmentation" if of_pairs else "plain cross entropy"
    caption = f"Train and seconds: since the row above. Val loss: {loss}. Best so far: by {metric}."
    write_text(folder / "progress.md", f"# {markdown(folder.name)}\n\n{caption}\n\n{progress_table(history)}")


def progress_table(history: Sequence[Line]) -> str:
    """Return a Markdown table with a row for each evaluation of val.

    It holds the mean of the train lines since the row before, and the seconds of training in them. EMA weights have
    columns of their own, if there are any.
    """
    has_ema = any(line["kind"] == "eval" and line["weights"] == "ema" for line in history)
    train = [line for line in history if line["kind"] == "train"]
    starts = [line["update"] for line in history if line["kind"] == "start"]
    spans = spanned_updates(np.asarray([line["update"] for line in train], np.float64), starts)
    evaluations = [line for line in history if line["kind"] == "eval" and line["split"] == "val"]
    measures = headlines(evaluations)
    head = ["update", "epoch", "train loss", *["train top1"] * ("top1" in measures)]
    for name in ("val", "EMA") if has_ema else ("val",):
        head += [f"{name} loss", *(f"{name} {title}" for title in measures.values())]
    head += ["best", "seconds"]
    rows: list[list[str]] = []
    previous = 0
    for update, lines in groupby(evaluations, key=lambda line: int(line["update"])):
        since = [(span, line) for span, line in zip(spans, train, strict=True) if previous < line["update"] <= update]
        rows.append(_row(list(lines), since, list(measures)))
        previous = update
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---:"] * len(head), *rows])


def _row(evaluations: Sequence[Line], train: Sequence[tuple[float, Line]], measures: Sequence[str]) -> list[str]:
    """Return the row of one evaluation, raw before EMA; train: the lines before it with the updates of each."""
    first = evaluations[0]
    row = [str(first["update"]), f"{first['epoch']:.2f}", _mean(train, "loss", ".4f")]
    row += [_mean(train, "top1", ".2f")] * ("top1" in measures)
    for line in evaluations:
        row += [loss_text(line["loss"]), *(f"{line[name]:.2f}" for name in measures)]
    seconds = sum(line["update_seconds"] * updates for updates, line in train)
    return [*row, "best" if any(line["best"] for line in evaluations) else "", f"{seconds:.1f}"]


def _mean(train: Sequence[tuple[float, Line]], name: str, spec: str) -> str:
    """Return a field's mean over samples; empty if a line has none, as top1 with mixed targets, or is not finite."""
    mean = weighted_mean(train, name)
    return "" if mean is None else format(mean, spec)
