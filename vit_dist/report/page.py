"""The report of one run: a page that opens from the disk, and its pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from vit_dist.errors import UserError
from vit_dist.files import write_text
from vit_dist.formatting import big, duration, loss_text
from vit_dist.report import curves, grids
from vit_dist.report.drawing import save_png, to_svg
from vit_dist.report.html import charts, confusion_table, document, figures, folded, table, tiles
from vit_dist.run_folder.predictions import SavedPredictions
from vit_dist.run_folder.record import RunRecord, best_of, read_run
from vit_dist.version import __version__

_FULL_TABLE, _PICTURED = 25, 100


def write_report(folder: Path, out: Path | None = None) -> Path:
    """The page of a run, finished or not, with its pictures as PNGs beside it; in `folder`/report by default.

    Returns the page. A function of the run's folder alone. Raises UserError.
    """
    run = read_run(folder)
    out = out or folder / "report"
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = {name: draw(run) for name, draw in _curves(run).items()}
        for name, figure in pictures.items():
            save_png(figure, out / f"{name}.png")
        _grids(run, out)
        page = out / "index.html"
        write_text(page, document(f"{run.name}: report", _parts(run, pictures)))
    except OSError as error:
        raise UserError(f"report: {out} cannot be written: {error.strerror}") from None
    return page


def headline(run: RunRecord) -> dict[str, str]:
    """The numbers that matter: what they are → their text."""
    summary, train = run.summary, run.metrics.train
    shown: dict[str, str] = {}
    if summary.get("test"):
        shown["top1 on test"] = f"{summary['test']['top1']:.2f} %"
        if summary["test"]["top5"] is not None:
            shown["top5 on test"] = f"{summary['test']['top5']:.2f} %"
        shown["loss on test"] = loss_text(summary["test"]["loss"])
    best = best_of(run)
    if best:
        value = loss_text(best["value"]) if best["metric"].endswith("loss") else f"{best['value']:.2f} %"
        shown[f"best {best['metric']} on val, update {best['update']:,}"] = value
    if len(train["update"]):
        done, planned = int(train["update"][-1]), run.start["plan"]["updates"]
        shown["updates"] = f"{done:,}" if done == planned else f"{done:,} of {planned:,}"
        shown["epochs"] = f"{train['epoch'][-1]:.4g}"
        seconds = summary.get("train_seconds") or float(run.train_seconds[-1])
        shown["training"] = duration(seconds)
        shown["an epoch"] = f"{seconds / train['epoch'][-1]:.3g} s"
        rate = summary.get("samples_per_second") or float(np.median(train["samples_per_second"]))
        shown["images/s"] = f"{rate:,.0f}"
        if not np.isnan(train["mfu"]).all():
            shown["MFU, median"] = f"{100 * np.nanmedian(train['mfu']):.1f} %"
    if run.memory:
        shown["memory at most"] = f"{run.memory / 2**20:,.0f} MiB"
    shown["parameters"] = big(run.start["parameters"])
    return shown


def _curves(run: RunRecord) -> Mapping[str, Any]:
    """File's name → what draws it."""
    drawn: dict[str, Any] = {}
    if len(run.metrics.train["update"]):
        drawn = {"loss": curves.loss_curve, "accuracy": curves.accuracy_curve, "rate": curves.rate_curve}
        drawn |= {"gradient_norm": curves.norm_curve, "throughput": curves.throughput_curve}
        drawn |= {"utilisation": curves.utilisation_curve, "seconds": lambda run: curves.seconds_bar(run.seconds)}
    if run.predictions is not None:
        kept = run.predictions
        drawn["classes"] = lambda run: grids.class_bars(kept.predictions, kept.about["classes"])
        if len(kept.about["classes"]) <= _PICTURED:
            drawn["confusion"] = lambda run: grids.confusion_picture(kept.predictions, kept.about["classes"])
    return drawn


_CAPTIONS = {
    "loss": "Loss; of val plain cross entropy",
    "accuracy": "Top-1 accuracy",
    "rate": "Learning rate",
    "gradient_norm": "Norm of the gradient, before clipping",
    "throughput": "Images per second, all devices",
    "utilisation": "How busy a device was",
    "seconds": "Where the time went",
}


def _grids(run: RunRecord, out: Path) -> None:
    """PNGs of pictures."""
    if run.predictions is not None and len(run.predictions.shown):
        grids.draw_tiles(out / "mistakes.png", grids.mistake_tiles(run.predictions))
    if run.inputs is not None:
        grids.draw_tiles(out / "inputs.png", grids.input_tiles(run.inputs))


def _parts(run: RunRecord, pictures: Mapping[str, Figure]) -> Iterator[str]:
    yield f"<h1>{escape(run.name)}</h1>"
    told = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.metrics.others[0]["time"]))
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    machine = f"{run.start['world_size']} × {run.start['device']}, {run.start['precision']}"
    yield f'<p class="note">{escape(run.state)}; on {escape(machine)}; started {told}</p>'
    yield f'<p class="note">This page: {at}, vit_dist {__version__}</p>'
    yield figures(headline(run))
    for line in _warnings(run):
        yield f"<p><b>{escape(line)}</b></p>"
    yield charts({caption: to_svg(pictures[name], name) for name, caption in _CAPTIONS.items() if name in pictures})
    if not len(run.metrics.train["update"]):
        yield "<p>No line of training yet.</p>"
    if run.predictions is not None:
        yield from _of_predictions(run.predictions, pictures)
    if run.inputs is not None:
        yield "<h2>What the model sees</h2>"
        at_update = run.inputs.about["position"]
        of = f", of update {at_update + 1:,}" if at_update else ""
        yield f'<p class="note">The first training images{of}, augmented, exactly as the model gets them.</p>'
        yield tiles(grids.input_tiles(run.inputs))
    yield "<h2>Evaluations</h2>"
    yield _evaluations(run)
    yield "<h2>Starts</h2>"
    yield _starts(run)
    yield "<h2>Config</h2>"
    yield folded("All fields, as the run keeps them", yaml.safe_dump(run.config.to_dict(), sort_keys=False))


def _warnings(run: RunRecord) -> Iterator[str]:
    """What a curve does not show."""
    train = run.metrics.train
    lost = train["update"][~np.isfinite(train["loss"])]
    if len(lost):
        more = f", and in {len(lost)} lines in all" if len(lost) > 1 else ""
        yield f"The training loss is no number at update {lost[0]:,.0f}{more}."
    skipped = train["skipped_updates"][-1:]
    if len(skipped) and skipped[0]:
        yield f"Updates skipped, because their gradient was not finite: {skipped[0]:,.0f}."


def _of_predictions(kept: SavedPredictions, pictures: Mapping[str, Figure]) -> Iterator[str]:
    about, found = kept.about, kept.predictions
    classes = about["classes"]
    averaged = "averaged " if about["weights"] == "ema" else ""
    yield f"<h2>On {escape(about['split'])}</h2>"
    yield (
        f'<p class="note">{len(found):,} images by the {averaged}weights of update {about["update"]:,}: '
        f"{found.top1():.2f} % right</p>"
    )
    parts = {"Top-1 of each class, the worst on top": to_svg(pictures["classes"], "classes")}
    if len(classes) <= _FULL_TABLE:
        whole = confusion_table(found.confusion(len(classes)).tolist(), classes)
        parts["How often a class (row) is taken for which (column)"] = whole
    elif "confusion" in pictures:
        parts["Which class (row) is taken for which (column)"] = to_svg(pictures["confusion"], "confusion")
    yield charts(parts)
    frequent = grids.confusions(found, classes)
    if frequent:
        rows = [[truth, said, f"{often:,}"] for truth, said, often in frequent]
        yield '<p class="note">The most frequent mistakes:</p>'
        yield table([["true class", "taken for", "times"], *rows], text=(1,))
    if len(kept.shown):
        yield "<h2>The most confident mistakes</h2>"
        yield tiles(grids.mistake_tiles(kept))


def _evaluations(run: RunRecord) -> str:
    """The last ones, and all that were the best."""
    lines = [line for line in run.metrics.others if line["kind"] == "eval"]
    shown = [line for number, line in enumerate(lines) if line["best"] or number >= len(lines) - _FULL_TABLE]
    rows = [["split", "weights", "update", "epoch", "loss", "top1", "top5", "best so far", "seconds"]]
    for line in shown[-4 * _FULL_TABLE :]:
        fifth = f"{line['top5']:.2f}" if line["top5"] is not None else ""
        rows.append(
            [
                line["split"],
                "averaged" if line["weights"] == "ema" else "raw",
                f"{line['weights_update']:,}",
                f"{line['epoch']:.2f}",
                loss_text(line["loss"]),
                f"{line['top1']:.2f}",
                fifth,
                "best" if line["best"] else "",
                f"{line['seconds']:.1f}",
            ]
        )
    return table(rows, text=(1, 7))


def _starts(run: RunRecord) -> str:
    rows = [["from update", "when", "machine", "threads", "versions", "changed"]]
    for line in run.metrics.starts:
        changed = ", ".join(f"{name} {value}" for name, value in line["changed"].items())
        rows.append(
            [
                f"{line['update']:,}",
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["time"])),
                f"{line['world_size']} × {line['device']}, {line['precision']}",
                str(line["threads"]),
                ", ".join(f"{name} {number}" for name, number in line["versions"].items()),
                changed,
            ]
        )
    return table(rows, text=(1, 2, 4, 5))
