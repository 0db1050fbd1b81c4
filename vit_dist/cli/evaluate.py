"""The `evaluate` command: measure a model on a split or a folder, on any number of processes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.cli.evaluate_pairs import classifier_of_folders, measure_pairs
from vit_dist.errors import UserError, visible
from vit_dist.files import check_output_path, json_number, write_json
from vit_dist.formatting import aligned, loss_text, weights_text
from vit_dist.inference.evaluation import Evaluation, evaluate_subset, precision_of
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.splits import Split, open_split
from vit_dist.inference.tables import MOST_COLUMNS, check_tables_path, write_tables
from vit_dist.inference.zero_shot import has_two_towers
from vit_dist.run_folder.figures import Figures, figures_of
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.console import Console

_LISTED = 30


def run_evaluate(
    trained: TrainedModel,
    name: str,
    console: Console,
    *,
    split: str,
    folder: Path | None,
    out: Path | None,
    tables: Path | None,
) -> dict[str, Any]:
    """Evaluate a model, print the result, and write it as JSON to `out` and as CSV to `tables`, if given.

    Every process calls it. name: the model's, as the user wrote it. Raises UserError.
    """
    if split and folder is not None:
        raise UserError("--split: is of the model's data and --folder is other data: give one of them")
    if folder is not None and (trained.config.data.root and trained.update is None):
        raise UserError("data.root: --folder is other data: give one of them")
    if out is not None:
        check_output_path(out, "--json")
    if tables is not None:
        check_tables_path(tables, "--csv")
        if folder is None and has_two_towers(trained):
            raise UserError("--csv: has the figures of classes, and these are of images and captions: --json has them")
    runtime = Runtime(trained.config.run, precision_of(trained))
    # A launcher that has lost a process asks the others to stop: they first find out why.
    signals = runtime.flags.on_signals() if runtime.world_size > 1 else contextlib.nullcontext()
    try:
        with signals, runtime.together():
            console.speaks = runtime.is_main
            if folder is not None and has_two_towers(trained):
                trained = classifier_of_folders(trained, folder, runtime, console)
            opened = runtime.run_main_first(lambda: open_split(trained, split, folder))
            return _evaluate(trained, name, opened, runtime, console, out, tables)
    finally:
        runtime.end()


def _evaluate(
    trained: TrainedModel,
    name: str,
    opened: Split,
    runtime: Runtime,
    console: Console,
    out: Path | None,
    tables: Path | None,
) -> dict[str, Any]:
    """Evaluate a model on a split that is open, print and write the result, and return what --json holds."""
    for note in opened.notes:
        console.note(f"  note: {note}")
    if has_two_towers(trained):
        values = measure_pairs(trained, name, opened, runtime, console)
        if out is not None:
            runtime.run_on_main(lambda: _write_json(out, values))
        return values
    console.phase(f"evaluating {len(opened.subset):,} images")
    result = evaluate_subset(trained, opened.subset, runtime, keep=1)
    console.stop()
    assert result.predictions is not None
    figures = figures_of(result.predictions, len(trained.classes))
    values = _values(trained, name, opened, result, figures, runtime)
    if absent := _absent_text(figures, opened.classes):
        console.note(f"  note: {absent}")
    _show(trained, values, figures, console)
    _show_classes(figures, opened.classes, console)
    if out is not None:
        runtime.run_on_main(lambda: _write_json(out, values))
    if tables is not None:
        runtime.run_on_main(lambda: _write_tables(tables, figures, opened.classes, console))
    return values


def _values(
    trained: TrainedModel, name: str, split: Split, result: Evaluation, figures: Figures, runtime: Runtime
) -> dict[str, Any]:
    """Return the content of --json."""
    columns = {
        "seen": figures.support,
        "predicted": figures.predicted,
        "top1": figures.recall,
        "precision": figures.precision,
        "recall": figures.recall,
        "f1": figures.f1,
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return {
        "model": name,
        "weights": trained.weights,
        "update": trained.update,
        "data": split.name,
        **result.to_dict(),
        "loss": json_number(result.loss),
        **figures.to_dict(),
        "majority_class": split.classes[figures.majority_class],
        "images_per_second": result.seen / result.seconds,
        "device": runtime.device_name,
        "world_size": runtime.world_size,
        "precision": runtime.precision,
        "classes": [
            {"class": label, **{key: None if cell != cell else cell for key, cell in zip(columns, row, strict=True)}}
            for label, row in zip(split.classes, rows, strict=True)
        ],
    }


def _absent_text(figures: Figures, names: list[str]) -> str:
    """Return which classes have no samples, in words; empty if all have some."""
    absent = [visible(names[number]) for number in np.flatnonzero(figures.support == 0).tolist()]
    if not absent:
        return ""
    present = len(names) - len(absent)
    few = ", ".join(absent[:3]) + (" …" if len(absent) > 3 else "")
    return f"only {present} of the {len(names)} classes {'has' if present == 1 else 'have'} images here (none of {few})"


def _show(trained: TrainedModel, values: dict[str, Any], figures: Figures, console: Console) -> None:
    """Print the result; macro F1 where all classes have samples, the baseline where several have."""
    present = int((figures.support > 0).sum())
    weights = f", {weights_text(trained.weights)} of update {trained.update}" if trained.update is not None else ""
    top5 = f", top5 {values['top5']:.2f} %" if values["top5"] is not None else ""
    plural = "es" if values["world_size"] > 1 else ""
    macro = f", macro F1 {values['macro']['f1']:.2f} % ({_interval_text(values['macro_f1_interval'])})"
    baseline = f"{values['baseline']:.2f} %: always the most frequent class, {visible(values['majority_class'])}"
    console.table(
        {
            "model": f"{values['model']}{weights}",
            "data": f"{values['data']}: {values['seen']:,} images",
            "result": f"top1 {values['top1']:.2f} % ({_interval_text(values['top1_interval'])}){top5}, "
            f"loss {loss_text(values['loss'])}",
            "classes": f"balanced accuracy {values['balanced_accuracy']:.2f} %"
            + (macro if present == len(figures.support) else ""),
            **({"baseline": baseline} if present > 1 else {}),
            "speed": f"{values['images_per_second']:,.0f} images/s, reading included; {values['world_size']} process"
            f"{plural} on {values['device']}, {values['precision']}",
        }
    )


def _interval_text(interval: list[float]) -> str:
    return f"95 % interval {interval[0]:.1f} to {interval[1]:.1f}"


def _show_classes(figures: Figures, names: list[str], console: Console) -> None:
    """Print the classes from the worst on, and those that nothing was taken for."""
    worst, present = figures.worst(_LISTED).tolist(), int((figures.support > 0).sum())
    head = ["class, worst first", "images", "recall", "precision", "F1", "most often taken for"]
    taken = figures.taken_for()
    rows = [
        [
            visible(names[number]),
            f"{figures.support[number]:,}",
            *map(_rate_text, (figures.recall[number], figures.precision[number], figures.f1[number])),
            f"{visible(names[taken[number][0]])} ({taken[number][1]:,})" if number in taken else "",
        ]
        for number in worst
    ]
    console.say("")
    for line in aligned([head, *rows]):
        console.say(f"  {line}")
    if present > len(worst):
        console.say(
            f"  … the other {present - len(worst)} of {present} classes are no worse: --json and --csv have all"
        )
    never = [visible(names[number]) for number in figures.never_predicted.tolist()]
    if never:
        more = f" and {len(never) - 5} more" if len(never) > 5 else ""
        console.say(f"  never predicted: {', '.join(never[:5])}{more}")


def _rate_text(value: float) -> str:
    return "–" if value != value else f"{value:.2f} %"


def _write_json(path: Path, values: dict[str, Any]) -> None:
    try:
        write_json(path, values)
    except OSError as error:
        raise UserError(f"--json: {path} cannot be written: {error.strerror}") from None


def _write_tables(folder: Path, figures: Figures, names: list[str], console: Console) -> None:
    try:
        written = write_tables(folder, figures, names)
    except OSError as error:
        raise UserError(f"--csv: {folder} cannot be written: {error.strerror}") from None
    console.say(f"\n  written: {', '.join(map(str, written))}")
    if len(written) < 2:
        console.note(f"  note: {len(names):,} classes: a confusion matrix of more than {MOST_COLUMNS:,} is not written")
