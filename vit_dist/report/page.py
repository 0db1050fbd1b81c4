"""The report of one run: a page that opens from the disk, and its pictures.

It answers three questions in this order: how good is it, what is wrong, what next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure

from vit_dist.errors import UserError
from vit_dist.files import write_text
from vit_dist.formatting import loss_text
from vit_dist.report import about, curves, grids, pairs
from vit_dist.report.advice import hints
from vit_dist.report.confusion import confusion_matrix, confusions
from vit_dist.report.drawing import save_png, short, to_svg
from vit_dist.report.faults import findings
from vit_dist.report.measures import run_figures
from vit_dist.report.profile import last_profile
from vit_dist.report.quality import Result, best_evaluation, class_rows, result_of, tiles, val_evaluations, verdict
from vit_dist.report.rendering import render
from vit_dist.report.smoothing import end_of
from vit_dist.run_folder.metrics import Line
from vit_dist.run_folder.pair_figures import headlines
from vit_dist.run_folder.record import RunRecord, read_run
from vit_dist.version import __version__

# Classes up to which the confusion matrix is a table; and up to which it is a picture.
_TABLE_CLASSES, _PICTURE_CLASSES = 25, 100
# Classes that the table shows at once, and those that it shows when it is unfolded.
_WORST_CLASSES, _MOST_CLASSES = 25, 1000
_LATEST_EVALUATIONS, _MOST_EVALUATIONS = 25, 100
_LEARNING = {"loss": "Loss", "accuracy": "Accuracy"}
_TRAINING = {"rate": "Learning rate", "gradient_norm": "Gradient norm, before clipping"}
_MACHINE = {
    "throughput": "Throughput: images per second, all devices",
    "utilisation": "Device utilisation",
    "memory": "Peak memory so far",
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
        write_text(page, render("pairs.html" if pairs.of_pairs(run) else "page.html", **_values(run, pictures)))
    except OSError as error:
        raise UserError(f"report: {out} cannot be written: {error.strerror}") from None
    return page


def _drawings(run: RunRecord) -> Mapping[str, Callable[[RunRecord], Figure]]:
    """Return the run's pictures: file name → function that draws it."""
    drawings: dict[str, Callable[[RunRecord], Figure]] = {}
    best = best_evaluation(run)
    best = best if best is not None and best["best"] else None
    if len(run.metrics.train["update"]):
        drawings["loss"] = lambda run: curves.loss_curve(run, best)
        if not pairs.of_pairs(run):
            drawings["accuracy"] = lambda run: curves.accuracy_curve(run, best)
        drawings |= {"rate": curves.rate_curve, "gradient_norm": curves.norm_curve}
        drawings |= {"throughput": curves.throughput_curve, "utilisation": curves.utilisation_curve}
        drawings |= {"memory": curves.memory_curve, "seconds": lambda run: curves.time_bars(run.seconds)}
    if run.predictions is not None:
        predictions, classes = run.predictions.predictions, run.predictions.metadata["classes"]
        if len(classes) <= _PICTURE_CLASSES:
            drawings["confusion"] = lambda run: confusion_matrix(predictions, classes)
    return drawings | pairs.drawings(run) if pairs.of_pairs(run) else drawings


def _write_grids(run: RunRecord, out: Path) -> None:
    """Write mistakes.png or the pairs, and inputs.png, if there are any."""
    pairs.write_grids(run, out)
    if run.predictions is not None and len(run.predictions.picture_rows):
        grids.draw_tiles(out / "mistakes.png", grids.mistake_tiles(run.predictions))
    if run.inputs is not None:
        grids.draw_tiles(out / "inputs.png", grids.input_tiles(run.inputs))


def _values(run: RunRecord, pictures: Mapping[str, Figure]) -> dict[str, Any]:
    """Return what page.html shows; texts are escaped there."""
    result = result_of(run)
    labels = {**_LEARNING, **_TRAINING, **_MACHINE, **pairs.CAPTIONS, **_alternatives(run)}
    labels |= {"confusion": "Confusion matrix", pairs.SIMILARITIES: "Cosines of images and captions"}
    svgs = {name: Markup(to_svg(figure, name, labels.get(name, ""))) for name, figure in pictures.items()}

    def charts(captions: Mapping[str, str]) -> dict[str, Markup]:
        return {caption: svgs[name] for name, caption in captions.items() if name in svgs}

    return {
        "title": f"{run.name}: report",
        "name": run.name,
        "state": run.state,
        "state_kind": run.state.partition(":")[0],
        "started": _started(run),
        "now": time.strftime("%Y-%m-%d %H:%M", time.localtime()),
        "version": __version__,
        "about": about.about_rows(run, run_figures(run)),
        "fitted": about.fitted_fields(run.config),
        "starts_in_words": about.starts_in_words(run),
        **_quality(run, result, svgs, charts),
        "learning": charts(_LEARNING),
        "loss_note": about.loss_note(run),
        "findings": [(finding.name, finding.text) for finding in findings(run, result)],
        "hints_to_show": hints(run),
        "progress": _progress(run),
        "no_hints": "Nothing stands out." if result or val_evaluations(run) else "Nothing has been evaluated yet.",
        "training": charts(_TRAINING),
        "machine": charts(_MACHINE),
        "profile": last_profile(run),
        "inputs": _inputs(run),
        "evaluations": _evaluations(run),
        "starts": [["from update", "when", "machine", "threads", "versions", "changed"], *_starts(run)],
        "config": yaml.safe_dump(run.config.to_dict(), sort_keys=False),
    }


def _quality(
    run: RunRecord,
    result: Result | None,
    svgs: Mapping[str, Markup],
    charts: Callable[[Mapping[str, str]], dict[str, Markup]],
) -> dict[str, Any]:
    """Return how good the model is, and where it is wrong."""
    if pairs.of_pairs(run):
        return pairs.values(run, charts)
    return {
        "verdict": verdict(result) if result else "Not evaluated yet.",
        "headline": tiles(result) if result else [],
        "classes": _classes(result),
        "confusion": _confusion(run, svgs),
        "mistakes": grids.mistake_tiles(run.predictions) if run.predictions else [],
    }


def _alternatives(run: RunRecord) -> dict[str, str]:
    """Return what the two large charts show, for those who cannot see them."""
    texts, val = {}, val_evaluations(run)[-1:]
    shown = (("loss", "loss", ""), ("accuracy", "top1", " %"))
    for name, measure, unit in shown[: 1 if pairs.of_pairs(run) else 2]:
        train = end_of(run.metrics.train[measure])
        ends = [] if train is None else [f"{train:.3g}{unit} on train"]
        ends += [f"{float(line[measure]):.3g}{unit} on val" for line in val]
        texts[name] = f"{name.capitalize()} over epochs" + (f"; at the end {', '.join(ends)}" if ends else "")
    return texts


def _started(run: RunRecord) -> str:
    """Return when the run was started first."""
    lines = run.metrics.other_lines[:1]
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(lines[0]["time"])) if lines else "at a time that is lost"


def _progress(run: RunRecord) -> str:
    """Return how a run that has not finished goes on; empty for one that has."""
    state, text = run.state.partition(":")[0], run_figures(run).updates_text
    return {
        "running": f"The run goes on: {text} updates are done.",
        "stopped": f"The same command goes on from where it stopped: {text} updates are done.",
        "killed": f"The same command goes on from the last checkpoint: {text} updates were done.",
        "failed": f"Mend what made it fail; then the same command goes on: {text} updates were done.",
    }.get(state, "")


def _classes(result: Result | None) -> dict[str, Any] | None:
    """Return the table of the classes: those to show at once, and the rest."""
    if result is None or result.figures is None:
        return None
    rows, means = class_rows(result.figures, result.classes, _MOST_CLASSES)
    rest = rows[_WORST_CLASSES:]
    all_of = "all" if len(rows) == int(np.count_nonzero(result.figures.support)) else "the worst"
    more = f"The other {len(rest):,} of {all_of} {len(rows):,} classes"
    return {"rows": rows[:_WORST_CLASSES], "means": means, "rest": rest, "more": more}


def _confusion(run: RunRecord, svgs: Mapping[str, Markup]) -> dict[str, Any] | None:
    """Return which classes are taken for which."""
    if run.predictions is None:
        return None
    predictions, classes = run.predictions.predictions, run.predictions.metadata["classes"]
    frequent = [[short(truth), short(name), f"{times:,}"] for truth, name, times in confusions(predictions, classes)]
    return {
        "classes": classes,
        "counts": predictions.confusion(len(classes)).tolist() if len(classes) <= _TABLE_CLASSES else None,
        "picture": svgs.get("confusion"),
        "frequent": frequent,
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
    names = headlines(lines) if pairs.of_pairs(run) else {"top1": "top1", "top5": "top5"}
    head = ["split", "weights", "update", "epoch", "loss", *names.values(), "best so far", "seconds"]
    return [head, *(_evaluation_row(line, names) for line in shown[-_MOST_EVALUATIONS:])]


def _evaluation_row(line: Line, names: Iterable[str]) -> list[str]:
    return [
        line["split"],
        "EMA" if line["weights"] == "ema" else "raw",
        f"{line['weights_update']:,}",
        f"{line['epoch']:.2f}",
        loss_text(line["loss"]),
        *(f"{line[name]:.2f}" if line.get(name) is not None else "" for name in names),
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
