"""progress.md: what each evaluation found, as a table that a person reads; a function of the metrics alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vit_dist.files import write_text
from vit_dist.formatting import loss_text
from vit_dist.run_folder.metrics import Line

_HEAD = ["update", "epoch", "train loss", "train top1", "val loss", "val top1", "best", "seconds"]


def write_progress(folder: Path, history: Sequence[Line], metric: str) -> None:
    """Replaces the file in one step. metric: what `best` is by."""
    caption = f"Train and seconds: since the row above. Val loss: plain cross entropy. Best so far: by {metric}."
    write_text(folder / "progress.md", f"# {folder.name}\n\n{caption}\n\n{progress_table(history)}")


def progress_table(history: Sequence[Line]) -> str:
    """A row for each evaluation of val: train's mean since the row before, and the seconds of training in it.

    Averaged weights have columns of their own, where there are any.
    """
    averaged = any(line["kind"] == "eval" and line["weights"] == "ema" for line in history)
    head = _HEAD[:6] + (["averaged loss", "averaged top1"] if averaged else []) + _HEAD[6:]
    rows: list[list[str]] = []
    trained: list[tuple[int, Line]] = []
    before, evaluated = 0, -1
    for line in history:
        if line["kind"] == "start":
            before = line["update"]
        elif line["kind"] == "train":
            trained.append((line["update"] - before, line))
            before = line["update"]
        elif line["kind"] == "eval" and line["split"] == "val" and line["update"] != evaluated:
            evaluated = line["update"]
            here = [one for one in history if one["kind"] == "eval" and one["update"] == evaluated]
            rows.append(_row([one for one in here if one["split"] == "val"], trained))
            trained = []
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---:"] * len(head), *rows])


def _row(evaluations: Sequence[Line], trained: Sequence[tuple[int, Line]]) -> list[str]:
    """Of one evaluation, raw before averaged, and the train lines before it with the updates that each spans."""
    first = evaluations[0]
    row = [str(first["update"]), f"{first['epoch']:.2f}", _mean(trained, "loss", ".4f"), _mean(trained, "top1", ".2f")]
    for line in evaluations:
        row += [loss_text(line["loss"]), f"{line['top1']:.2f}"]
    seconds = sum(line["update_seconds"] * updates for updates, line in trained)
    return [*row, "best" if any(line["best"] for line in evaluations) else "", f"{seconds:.1f}"]


def _mean(trained: Sequence[tuple[int, Line]], name: str, spec: str) -> str:
    """Over updates; empty where a line has none, as top1 with mixed targets, or one that is not finite."""
    if not trained or any(not isinstance(line[name], (int, float)) for _, line in trained):
        return ""
    updates = sum(count for count, _ in trained)
    return format(sum(line[name] * count for count, line in trained) / max(updates, 1), spec)
