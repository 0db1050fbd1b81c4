"""Several runs in comparison: how fast, how accurate, and how far their losses diverge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from vit_dist.errors import UserError
from vit_dist.files import write_text
from vit_dist.formatting import duration, markdown
from vit_dist.report import curves
from vit_dist.report.drawing import save_png, to_svg
from vit_dist.report.measures import (
    Divergence,
    RunFigures,
    compare_configs,
    divergence,
    loss_divergence,
    run_figures,
    verdict,
)
from vit_dist.report.rendering import render
from vit_dist.run_folder.metrics import Floats
from vit_dist.run_folder.record import RunRecord, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CAPTIONS = {
    "loss_over_updates": "Loss over updates (faint: training, dots: validation)",
    "loss_over_time": "Loss over training time",
    "accuracy_over_time": "Top-1 accuracy on val over training time",
    "divergence": "Divergence of the losses from the first run's",
}


def write_comparison(
    folders: Sequence[Path], out: Path, say: Callable[[str], None] = lambda text: None
) -> tuple[Path, str]:
    """Write comparison.html, comparison.md and PNGs of several runs, each compared with the first.

    say: is told what of the runs is damaged and left out. Return the page and the Markdown text. Raises UserError.
    """
    runs = [read_run(folder) for folder in folders]
    for problem in [problem for run in runs for problem in run.problems]:
        say(problem)
    names = distinct_names([run.name for run in runs], [str(run.folder) for run in runs])
    divergences = [divergence(runs[0], run) for run in runs[1:]]
    pictures = _pictures(runs, names, divergences)
    rows, notes = _rows(runs, names), [*compare_configs(runs, names), *loss_divergence(names, divergences)]
    others = zip(runs[1:], names[1:], strict=True)
    sentence = " ".join(verdict([runs[0], run], [names[0], name]) for run, name in others)
    text = _markdown(rows, sentence, notes, list(pictures))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures.items():
            save_png(figure, out / f"{name}.png")
        write_text(out / "comparison.md", text)
        page = render(
            "comparison.html",
            title=f"{' · '.join(names)}: comparison",
            names=names,
            verdict=sentence,
            rows=rows,
            notes=notes,
            curves={_CAPTIONS[name]: Markup(to_svg(figure, name)) for name, figure in pictures.items()},
        )
        write_text(out / "comparison.html", page)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
    return out / "comparison.html", text


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


def _rows(runs: Sequence[RunRecord], names: Sequence[str]) -> list[list[str]]:
    """Return the table: a column for each run, the first row its head; rows that no run can fill are left out."""
    figures = [run_figures(run) for run in runs]
    first = figures[0]

    def row(name: str, text: Callable[[RunFigures], str | None]) -> list[str]:
        return [name, *(text(run) or "–" for run in figures)]

    def number(value: float | None, spec: str, scale: float = 1.0, unit: str = "") -> str | None:
        return None if value is None else f"{value * scale:{spec}}{unit}"

    rows = [
        ["", *names],
        row("machine", lambda run: run.machine),
        row("updates", lambda run: run.updates_text),
        row("seconds an epoch", lambda run: number(run.epoch_seconds, ".3g")),
        row("training", lambda run: None if run.seconds is None else duration(run.seconds)),
        row("in all", lambda run: duration(run.total_seconds)),
        row("images/s", lambda run: number(run.samples_per_second, ",.0f")),
        row("MFU", lambda run: number(run.mfu, ".1f", 100, " %")),
        row("peak memory, MiB", lambda run: number(run.memory_bytes, ",.0f", 2**-20)),
        row(f"best {first.metric} on val", lambda run: number(run.best["value"] if run.best else None, ".4g")),
        row("top1 on test, %", lambda run: number(run.test_top1, ".2f")),
        row("top5 on test, %", lambda run: number(run.test_top5, ".2f")),
        row("speed, times the first", lambda run: _ratio(first.epoch_seconds, run.epoch_seconds)),
        row("minutes saved", lambda run: _minutes_saved(first, run)),
    ]
    return [row for row in rows if set(row[1:]) != {"–"}]


def _ratio(first: float | None, other: float | None) -> str | None:
    return f"{first / other:.3g}" if first and other else None


def _minutes_saved(first: RunFigures, other: RunFigures) -> str | None:
    """Return the minutes that a whole run took less than the first, if both made as many updates."""
    if first.updates != other.updates:
        return None
    return f"{round((first.total_seconds - other.total_seconds) / 60, 1) + 0.0:.1f}"


def _pictures(runs: Sequence[RunRecord], names: Sequence[str], divergences: Sequence[Divergence]) -> dict[str, Figure]:
    """Draw the comparison: file name → picture."""
    longest = max((float(run.train_seconds[-1]) for run in runs if len(run.train_seconds)), default=0.0)
    scale, unit = curves.time_unit(longest)

    def series(run: RunRecord, name: str, *, time: bool) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        train, evaluated = run.metrics.train, run.evaluations("val", "raw")
        at = np.asarray([line["update"] for line in evaluated], np.float64)
        values = np.asarray([float(line[name]) for line in evaluated], np.float64)
        x = run.train_seconds / scale if time else train["update"]
        if time and len(x):
            at = np.interp(at, train["update"], x)
        return (x, train[name]), (at, values)

    def curve(name: str, label: str, *, time: bool) -> Figure:
        lines = [(title, series(run, name, time=time)) for title, run in zip(names, runs, strict=True)]
        return curves.comparison_curve(lines, f"{unit} of training" if time else "update", label)

    pictures = {
        "loss_over_updates": curve("loss", "loss", time=False),
        "loss_over_time": curve("loss", "loss", time=True),
        "accuracy_over_time": curve("top1", "top1, %", time=True),
    }
    # A logarithmic axis has no place for losses that are exactly the same.
    drawable = [(each.differences > 0) & np.isfinite(each.differences) for each in divergences]
    diverged = [
        (name, each.updates[mask], each.differences[mask])
        for name, each, mask in zip(names[1:], divergences, drawable, strict=True)
        if mask.any()
    ]
    if diverged:
        pictures["divergence"] = curves.divergence_curve(diverged)
    return pictures


def _markdown(rows: Sequence[Sequence[str]], sentence: str, notes: Sequence[str], pictures: Sequence[str]) -> str:
    cells = [[markdown(cell) for cell in row] for row in rows]
    lines = [cells[0], ["---", *["---:"] * (len(cells[0]) - 1)], *cells[1:]]
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    shown = "\n".join(f"![{_CAPTIONS[name]}]({name}.png)" for name in pictures)
    points = "".join(f"- {markdown(line)}\n" for line in notes)
    return f"# Comparison\n\n**{markdown(sentence)}**\n\n{body}\n{points}\n{shown}\n"
