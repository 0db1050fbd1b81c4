"""Several runs in comparison: which is best, what differs, curves, classes; then how fast they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from vit_dist.errors import UserError
from vit_dist.files import write_text
from vit_dist.formatting import duration, loss_text, markdown
from vit_dist.report import curves, speed
from vit_dist.report.confusion import difference_bars
from vit_dist.report.differences import changed_fields, data_names
from vit_dist.report.drawing import save_png, to_svg
from vit_dist.report.measures import run_figures
from vit_dist.report.ranking import accuracy, difference, ranked, value_text, verdict
from vit_dist.report.rendering import render
from vit_dist.run_folder.figures import figures_of
from vit_dist.run_folder.metrics import Floats
from vit_dist.run_folder.pair_figures import top1_of
from vit_dist.run_folder.record import RunRecord, best_line, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_FIELDS = 8  # columns of fields that differ
_MOST_CLASSES = 20
_MOST_NAMES = 3  # in the title
_AGAINST = "against the best"
_CAPTIONS = {
    "loss": "Loss (faint: training, dots: validation)",
    "accuracy": "Top-1 accuracy, % (faint: training, dots: validation)",
    "classes": "Recall of the classes in which the best two differ most",
    **speed.CAPTIONS,
}


@dataclass(frozen=True)
class Row:
    """A run in the table: its cells; how it is against the best, a class of style.css: best, better, worse, noise."""

    cells: list[str]
    kind: str


def write_comparison(
    folders: Sequence[Path], out: Path, say: Callable[[str], None] = lambda text: None
) -> tuple[Path, str]:
    """Write comparison.html, comparison.md and PNGs of several runs; return the page and the Markdown text.

    The table and the curves begin with the best run; speeds are compared with the first one that is given. say: is
    told what of the runs is damaged and left out. Raises UserError.
    """
    given = [read_run(folder) for folder in folders]
    for problem in [problem for run in given for problem in run.problems]:
        say(problem)
    given_names = distinct_names([run.name for run in given], [str(run.folder) for run in given])
    order = ranked(given)
    runs, names = [given[place] for place in order], [given_names[place] for place in order]
    head, rows, notes = _table(runs, names)
    section = speed.compare_speed(given, given_names, order)
    pictures = {**_pictures(runs, names), **section.pictures}
    values: dict[str, Any] = {
        "verdict": verdict(runs, names),
        "head": head,
        "rows": rows,
        "notes": notes,
        "speed": section,
    }
    text = _markdown(values, pictures)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures.items():
            save_png(figure, out / f"{name}.png")
        write_text(out / "comparison.md", text)
        svgs = {name: Markup(to_svg(figure, name)) for name, figure in pictures.items()}
        page = render(
            "comparison.html",
            title=_title(names),
            against=_AGAINST,
            curves={_CAPTIONS[name]: svgs[name] for name in ("loss", "accuracy") if name in svgs},
            classes=svgs.get("classes"),
            speed_curves={_CAPTIONS[name]: svgs[name] for name in section.pictures},
            **values,
        )
        write_text(out / "comparison.html", page)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
    return out / "comparison.html", text


def _title(names: Sequence[str]) -> str:
    return f"Comparison of {' · '.join(names) if len(names) <= _MOST_NAMES else f'{len(names)} runs'}"


def distinct_names(names: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Return the names, or, if two are the same, as much of the ends of the folders as tells them apart."""
    if len(set(names)) == len(names):
        return list(names)
    parts = [Path(folder).parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        tails = [str(Path(*part[-length:])) for part in parts]
        if len(set(tails)) == len(tails):
            return tails
    return [f"{tail} ({number})" for number, tail in enumerate(folders, 1)]


def _table(runs: Sequence[RunRecord], names: Sequence[str]) -> tuple[list[str], list[Row], list[str]]:
    """Return the head and the rows of the table of runs, and notes on it; columns that no run fills are left out."""
    data, figures = data_names(runs), [run_figures(run) for run in runs]
    fields = changed_fields(runs)
    shown, hidden = list(fields)[:_MOST_FIELDS], list(fields)[_MOST_FIELDS:]
    same = len(set(data)) == 1
    known = same and (figures[0].best is not None or accuracy(runs[0], "test") is not None)
    compared = [None, *(difference(runs[0], run) if known else None for run in runs[1:])]
    tests = [str(accuracy(run, "test") or _percent(run_figures(run).test_top1)) for run in runs]
    metric = figures[0].metric
    columns = {
        "run": list(names),
        "data": data if not same else [],
        **{name: fields[name] for name in shown},
        f"best {metric} on val": [_best_text(run, metric) for run in runs],
        "top1 on val": [_percent(top1_of(line) if (line := best_line(run)) else None) for run in runs],
        "loss on val": [loss_text(line["loss"]) if (line := best_line(run)) else "" for run in runs],
        "top1 on test (95 % interval)": tests,
        _AGAINST: ["best" if known else "", *(str(each or "") for each in compared[1:])],
        "epochs": [f"{run.epochs:.4g}" if run.epochs is not None else "" for run in figures],
        "time": [duration(run.total_seconds) for run in figures],
        "state": [] if all(run.summary for run in runs) else [run.state_word for run in runs],
    }
    columns.pop(f"{metric.removeprefix('raw_')} on val", None)
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [
        Row([cell or "–" for cell in cells], "best" if known and not number else each.kind if each else "")
        for number, (cells, each) in enumerate(zip(zip(*columns.values(), strict=True), compared, strict=True))
    ]
    notes = []
    if any(compared):
        paired = all(each.on_same for each in compared if each)
        how = "McNemar's test on the images that both classified" if paired else "intervals that do not overlap"
        notes.append(f"Beyond noise: by {how}, at 95 %. Another seed would move the figures as well.")
    if hidden:
        notes.append(f"Also different: {', '.join(hidden)}.")
    if not fields:
        notes.append("The configs differ in nothing that can change the result.")
    return list(columns), rows, notes


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"


def _best_text(run: RunRecord, metric: str) -> str:
    best = run_figures(run).best
    if best is None:
        return ""
    value = str(accuracy(run, "val")) if best["metric"].endswith("top1") else value_text(best)
    return value if best["metric"] == metric else f"{best['metric']} {value}"


def _pictures(runs: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Figure]:
    """Draw loss and accuracy over epochs, and the classes in which the best two differ: file name → picture."""

    def series(run: RunRecord, name: str) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        train, evaluated = run.metrics.train, speed.evaluations(run)
        at = np.asarray([line["epoch"] for line in evaluated], np.float64)
        values = [top1_of(line) if name == "top1" else float(line[name]) for line in evaluated]
        return (train["epoch"], train[name]), (at, np.asarray(values, np.float64))  # None becomes NaN

    pictures = {
        name: curves.comparison_curve(
            [(title, series(run, field)) for title, run in zip(names, runs, strict=True)], "epoch", label
        )
        for name, field, label in (("loss", "loss", "loss"), ("accuracy", "top1", "top1, %"))
    }
    if len({*data_names(runs[:2])}) == 1 and (classes := class_differences(*runs[:2])):
        pictures["classes"] = difference_bars(classes, names[0], names[1])
    return pictures


def class_differences(best: RunRecord, second: RunRecord) -> list[tuple[str, int, float]]:
    """Return (class, its images, percentage points by which the best run's recall is above the second's).

    At most 20 classes, the largest differences first; none if the runs did not keep predictions of one split.
    """
    kept = [run.predictions for run in (best, second) if run.predictions is not None]
    if len(kept) < 2 or any(kept[0].metadata[name] != kept[1].metadata[name] for name in ("split", "classes")):
        return []
    classes = kept[0].metadata["classes"]
    one, two = (figures_of(each.predictions, len(classes)) for each in kept)
    points = np.nan_to_num(one.recall - two.recall)
    order = np.argsort(-np.abs(points), kind="stable")[:_MOST_CLASSES]
    return [(classes[at], int(one.support[at]), float(points[at])) for at in order.tolist() if points[at]]


def _markdown(values: dict[str, Any], pictures: dict[str, Figure]) -> str:
    section = values["speed"]

    def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        lines = [[markdown(cell) for cell in row] for row in (head, *rows)]
        lines.insert(1, ["---", *["---:"] * (len(head) - 1)])
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def points(lines: Sequence[str]) -> str:
        return "".join(f"- {markdown(line)}\n" for line in lines)

    def shown(names: Sequence[str]) -> str:
        return "\n".join(f"![{_CAPTIONS[name]}]({name}.png)" for name in names)

    quality = [name for name in pictures if name not in section.pictures]
    parts = [
        f"# Comparison\n\n**{markdown(values['verdict'])}**\n",
        table(values["head"], [row.cells for row in values["rows"]]),
        points(values["notes"]),
        f"{shown(quality)}\n",
        f"## {section.title}\n\n{table(section.rows[0], section.rows[1:])}",
        points(section.notes),
        f"{shown(list(section.pictures))}\n",
    ]
    return "\n".join(filter(None, parts))
