"""progress.md: what each evaluation found, as a table that a person reads; a function of the metrics alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from vit_dist.choosing import better
from vit_dist.telemetry import Line

_HEAD = ["update", "epoch", "train loss", "train top1", "val loss", "val top1", "best", "seconds"]


def write_progress(folder: Path, history: Sequence[Line], metric: str) -> None:
    """Replaces the file in one step."""
    aside = folder / ".progress.md"
    aside.write_text(f"# {folder.name}\n\n{progress_table(history, metric)}", encoding="utf-8")
    aside.replace(folder / "progress.md")


def progress_table(history: Sequence[Line], metric: str) -> str:
    """A row for each evaluation of val: train's mean since the row before, and the seconds of training in it.

    Averaged weights have columns of their own, where there are any; `best` marks a new best of `metric`.
    """
    evaluations = [line for line in history if line["kind"] == "eval" and line["split"] == "val"]
    averaged = any(line["weights"] == "ema" for line in evaluations)
    chosen = "ema" if averaged and not metric.startswith("raw_") else "raw"
    head = _HEAD[:6] + (["averaged loss", "averaged top1"] if averaged else []) + _HEAD[6:]
    rows, best, before = [], None, 0
    for update in dict.fromkeys(line["update"] for line in evaluations):
        scores = {line["weights"]: line for line in evaluations if line["update"] == update}
        trained = [line for line in history if line["kind"] == "train" and before < line["update"] <= update]
        updates = [before, *(line["update"] for line in trained)]
        spans = [end - start for start, end in pairwise(updates)]
        seconds = sum(line["update_seconds"] * span for line, span in zip(trained, spans, strict=True))
        value = scores[chosen][metric.removeprefix("raw_")]
        is_best = best is None or better(metric, value, best)
        best = value if is_best else best
        row = [str(update), f"{scores['raw']['epoch']:.2f}"]
        row += [_mean(trained, spans, "loss", ".4f"), _mean(trained, spans, "top1", ".2f")]
        for weights in ("raw", "ema") if averaged else ("raw",):
            row += [f"{scores[weights]['loss']:.4f}", f"{scores[weights]['top1']:.2f}"]
        rows.append([*row, "best" if is_best else "", f"{seconds:.1f}"])
        before = update
    lines = [head, ["---:"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _mean(lines: Sequence[Line], spans: Sequence[int], name: str, form: str) -> str:
    """Over updates; empty where a line has none, as top1 with mixed targets, or one that is not finite."""
    values = [line[name] for line in lines]
    if not lines or any(not isinstance(value, (int, float)) for value in values):
        return ""
    return format(sum(value * span for value, span in zip(values, spans, strict=True)) / sum(spans), form)
