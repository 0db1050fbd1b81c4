"""The report of one run: a page that opens from the disk, and its pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure

from vit_dist.errors import UserError
from vit_dist.files import write_text
from vit_dist.formatting import big, duration, loss_text, weights_text
from vit_dist.report import curves, grids
from vit_dist.report.confusion import confusion_matrix, confusions, per_class_accuracy
from vit_dist.report.drawing import save_png, to_svg
from vit_dist.report.measures import RunFigures, run_figures
from vit_dist.report.rendering import render
from vit_dist.run_folder.metrics import Line
from vit_dist.run_folder.predictions import SavedPredictions
from vit_dist.run_folder.record import RunRecord, read_run
from vit_dist.version import __version__

# Classes up to which the confusion matrix is a table; and up to which it is a picture.
_TABLE_CLASSES, _PICTURE_CLASSES = 25, 100
_LATEST_EVALUATIONS, _MOST_EVALUATIONS = 25, 100
_CAPTIONS = {
    "loss": "Loss (validation: plain cross entropy)",
    "accuracy": "Top-1 accuracy",
    "rate": "Learning rate",
    "gradient_norm": "Gradient norm, before clipping",
    "throughput": "Throughput: images per second, all devices",
    "utilisation": "Device utilisation",
    "seconds": "Time breakdown",
}


def write_report(folder: Path, out: Path | None = None, say: Callable[[str], None] = lambda text: None) -> Path:
    """Write the page of a run, finished or not, with its pictures as PNGs in the same folder; return the page.

    out: where to, `folder`/report by default. It depends on the run's folder alone. say: is told what of that is
    damaged and left out. Raises UserError.
    """
    run = read_run(folder)
    for problem in run.problems:
        say(problem)
    out = out or folder / "report"
    page = out / "index.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = {name: draw(run) for name, draw in _drawings(run).items()}
        for name, figure in pictures.items():
            save_png(figure, out / f"{name}.png")
        _write_grids(run, out)
        write_text(page, render("page.html", **_values(run, pictures)))
    except OSError as error:
        raise UserError(f"report: {out} cannot be written: {error.strerror}") from None
    return page


def headline(figures: RunFigures) -> dict[str, str]:
    """Return the numbers at the top of the page: name → text."""
    shown: dict[str, str] = {}
    if figures.test_top1 is not None:
        shown["top1 on test"] = f"{figures.test_top1:.2f} %"
    if figures.test_top5 is not None:
        shown["top5 on test"] = f"{figures.test_top5:.2f} %"
    if figures.test_loss is not None:
        shown["loss on test"] = loss_text(figures.test_loss)
    best = figures.best
    if best:
        value = loss_text(best["value"]) if best["metric"].endswith("loss") else f"{best['value']:.2f} %"
        shown[f"best {best['metric']} on val, update {best['update']:,}"] = value
    if figures.seconds is not None and figures.epochs is not None:
        shown["updates"] = figures.updates_text
        shown["epochs"] = f"{figures.epochs:.4g}"
        shown["training"] = duration(figures.seconds)
        shown["an epoch"] = f"{figures.seconds / figures.epochs:.3g} s"
        shown["images/s"] = f"{figures.samples_per_second:,.0f}"
    if figures.mfu is not None:
        shown["MFU, median"] = f"{100 * figures.mfu:.1f} %"
    if figures.memory_bytes:
        shown["peak memory"] = f"{figures.memory_bytes / 2**20:,.0f} MiB"
    shown["parameters"] = big(figures.parameters)
    return shown


def _drawings(run: RunRecord) -> Mapping[str, Callable[[RunRecord], Figure]]:
    """Return the run's pictures: file name → function that draws it."""
    drawings: dict[str, Callable[[RunRecord], Figure]] = {}
    if len(run.metrics.train["update"]):
        drawings = {"loss": curves.loss_curve, "accuracy": curves.accuracy_curve, "rate": curves.rate_curve}
        drawings |= {"gradient_norm": curves.norm_curve, "throughput": curves.throughput_curve}
        drawings |= {"utilisation": curves.utilisation_curve, "seconds": lambda run: curves.time_bars(run.seconds)}
    if run.predictions is not None:
        predictions, classes = run.predictions.predictions, run.predictions.metadata["classes"]
        drawings["classes"] = lambda run: per_class_accuracy(predictions, classes)
        if len(classes) <= _PICTURE_CLASSES:
            drawings["confusion"] = lambda run: confusion_matrix(predictions, classes)
    return drawings


def _write_grids(run: RunRecord, out: Path) -> None:
    """Write mistakes.png and inputs.png, if there are any."""
    if run.predictions is not None and len(run.predictions.picture_rows):
        grids.draw_tiles(out / "mistakes.png", grids.mistake_tiles(run.predictions))
    if run.inputs is not None:
        grids.draw_tiles(out / "inputs.png", grids.input_tiles(run.inputs))


def _values(run: RunRecord, pictures: Mapping[str, Figure]) -> dict[str, Any]:
    """Return what page.html shows; texts are escaped there."""
    figures = run_figures(run)
    svgs = {name: Markup(to_svg(figure, name)) for name, figure in pictures.items()}
    return {
        "title": f"{run.name}: report",
        "name": run.name,
        "state": run.state,
        "machine": figures.machine,
        "started": _started(run),
        "now": time.strftime("%Y-%m-%d %H:%M", time.localtime()),
        "version": __version__,
        "headline": headline(figures),
        "warnings": list(_warnings(run)),
        "curves": {caption: svgs[name] for name, caption in _CAPTIONS.items() if name in svgs},
        "has_train_lines": len(run.metrics.train["update"]) > 0,
        "predictions": _predictions(run.predictions, svgs) if run.predictions else None,
        "inputs": _inputs(run),
        "evaluations": _evaluations(run),
        "starts": [["from update", "when", "machine", "threads", "versions", "changed"], *_starts(run)],
        "config": yaml.safe_dump(run.config.to_dict(), sort_keys=False),
    }


def _started(run: RunRecord) -> str:
    """Return when the run was started first."""
    lines = run.metrics.other_lines[:1]
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(lines[0]["time"])) if lines else "at a time that is lost"


def _warnings(run: RunRecord) -> Iterator[str]:
    """Yield what a curve does not show: losses that are not finite, skipped updates, damaged files."""
    yield from run.problems
    train = run.metrics.train
    lost = train["update"][~np.isfinite(train["loss"])]
    if len(lost):
        more = f", and in {len(lost)} lines in all" if len(lost) > 1 else ""
        yield f"The training loss is not finite at update {lost[0]:,.0f}{more}."
    skipped = train["skipped_updates"][-1:]
    if len(skipped) and skipped[0] > 0:
        yield f"Updates skipped because their loss or gradient was not finite: {skipped[0]:,.0f}."


def _predictions(saved: SavedPredictions, svgs: Mapping[str, Markup]) -> dict[str, Any]:
    """Return the section on a split's predictions: accuracy of each class, confusion matrix, mistakes."""
    about, predictions = saved.metadata, saved.predictions
    classes = about["classes"]
    return {
        "split": about["split"],
        "summary": f"{len(predictions):,} images by the {weights_text(about['weights'])} of update "
        f"{about['update']:,}: {predictions.top1():.2f} % correct",
        "classes": classes,
        "per_class": svgs.get("classes", ""),
        "counts": predictions.confusion(len(classes)).tolist() if len(classes) <= _TABLE_CLASSES else None,
        "confusion": svgs.get("confusion"),
        "frequent": [[truth, name, f"{times:,}"] for truth, name, times in confusions(predictions, classes)],
        "mistakes": grids.mistake_tiles(saved),
    }


def _inputs(run: RunRecord) -> dict[str, Any] | None:
    """Return the section on the model's inputs, if the run saved any."""
    if run.inputs is None:
        return None
    position = run.inputs.metadata["position"]
    return {
        "when": f", of update {position + 1:,}" if position else "",
        "tiles": grids.input_tiles(run.inputs),
    }


def _evaluations(run: RunRecord) -> list[list[str]]:
    """Return the rows of the latest evaluations, and of all that were the best when they were made."""
    lines = [line for line in run.metrics.other_lines if line["kind"] == "eval"]
    shown = [line for number, line in enumerate(lines) if line["best"] or number >= len(lines) - _LATEST_EVALUATIONS]
    head = ["split", "weights", "update", "epoch", "loss", "top1", "top5", "best so far", "seconds"]
    return [head, *map(_evaluation_row, shown[-_MOST_EVALUATIONS:])]


def _evaluation_row(line: Line) -> list[str]:
    return [
        line["split"],
        "EMA" if line["weights"] == "ema" else "raw",
        f"{line['weights_update']:,}",
        f"{line['epoch']:.2f}",
        loss_text(line["loss"]),
        f"{line['top1']:.2f}",
        f"{line['top5']:.2f}" if line["top5"] is not None else "",
        "best" if line["best"] else "",
        f"{line['seconds']:.1f}",
    ]


def _starts(run: RunRecord) -> Iterator[list[str]]:
    """Yield a row for each start of the run."""
    for line in run.metrics.starts:
        yield [
            f"{line['update']:,}",
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["time"])),
            f"{line['world_size']} × {line['device']}, {line['precision']}",
            str(line["threads"]),
            ", ".join(f"{name} {number}" for name, number in line["versions"].items()),
            ", ".join(f"{name} {value}" for name, value in line["changed"].items()),
        ]
