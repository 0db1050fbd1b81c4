"""Several runs side by side: how fast, how good, and how far apart; a CPU against a GPU among its uses."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vit_dist.errors import UserError
from vit_dist.files import write_text
from vit_dist.formatting import duration
from vit_dist.report import curves
from vit_dist.report.drawing import save_png, to_svg
from vit_dist.report.html import charts, document, table
from vit_dist.report.measures import (
    Drift,
    RunFigures,
    compare_configs,
    drift,
    loss_divergence,
    measured,
    metric_of,
    verdict,
)
from vit_dist.run_folder.metrics import Floats
from vit_dist.run_folder.record import RunRecord, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_comparison(folders: Sequence[Path], out: Path) -> tuple[Path, str]:
    """comparison.html, comparison.md and PNGs of several runs, the first of which the others are held against.

    Returns the page and what the Markdown says. Raises UserError.
    """
    runs = [read_run(folder) for folder in folders]
    names = distinct([run.name for run in runs], [str(run.folder) for run in runs])
    drifts = [drift(runs[0], run) for run in runs[1:]]
    pictures = _pictures(runs, names, drifts)
    rows, told = _rows(runs, names), [*compare_configs(runs, names), *loss_divergence(names, drifts)]
    others = zip(runs[1:], names[1:], strict=True)
    sentence = " ".join(verdict([runs[0], run], [names[0], name]) for run, name in others)
    text = _markdown(rows, sentence, told, list(pictures))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures.items():
            save_png(figure, out / f"{name}.png")
        parts = [
            f"<h1>{escape(' · '.join(names))}</h1>",
            f'<p class="verdict">{escape(sentence)}</p>',
            table(rows),
            *(f"<p>{escape(line)}</p>" for line in told),
            charts({_CAPTIONS[name]: to_svg(figure, name) for name, figure in pictures.items()}),
        ]
        for name, content in (
            ("comparison.md", text),
            ("comparison.html", document(f"{' · '.join(names)}: comparison", parts)),
        ):
            write_text(out / name, content)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
    return out / "comparison.html", text


def distinct(names: Sequence[str], folders: Sequence[str]) -> list[str]:
    """The names, or, where two are the same, as much of the folders' ends as tells them apart."""
    if len(set(names)) == len(names):
        return list(names)
    parts = [Path(folder).parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        tails = [str(Path(*part[-length:])) for part in parts]
        if len(set(tails)) == len(tails):
            return tails
    return [f"{tail} ({number})" for number, tail in enumerate(folders, 1)]


_CAPTIONS = {
    "loss_over_updates": "Loss over updates: faint of train, dots of val",
    "loss_over_time": "Loss over the time of training",
    "accuracy_over_time": "Top-1 on val over the time of training",
    "drift": "How far the losses part from the first run's",
}


def _rows(runs: Sequence[RunRecord], names: Sequence[str]) -> list[list[str]]:
    """A column for each run; the first row is the head."""
    found = [measured(run) for run in runs]
    first = found[0]

    def row(name: str, of: Sequence[str | None]) -> list[str]:
        return [name, *(cell or "–" for cell in of)]

    rows = [
        ["", *names],
        row("machine", [one.machine for one in found]),
        row("updates", [_done(one) for one in found]),
        row("seconds an epoch", [None if one.epoch_seconds is None else f"{one.epoch_seconds:.3g}" for one in found]),
        row("training", [None if one.seconds is None else duration(one.seconds) for one in found]),
        row("in all", [duration(one.total) for one in found]),
        row("images/s", [None if one.rate is None else f"{one.rate:,.0f}" for one in found]),
        row("MFU", [None if one.mfu is None else f"{100 * one.mfu:.1f} %" for one in found]),
        row("memory at most, MiB", [None if one.memory is None else f"{one.memory / 2**20:,.0f}" for one in found]),
        row(f"best {metric_of(runs[0])} on val", [None if one.best is None else f"{one.best:.4g}" for one in found]),
        row("top1 on test, %", [None if one.test is None else f"{one.test:.2f}" for one in found]),
        row("top5 on test, %", [None if one.fifth is None else f"{one.fifth:.2f}" for one in found]),
        row("speed, times the first", [_ratio(first.epoch_seconds, one.epoch_seconds) for one in found]),
        row("minutes saved", [_saved(first, one) for one in found]),
    ]
    return [row for row in rows if set(row[1:]) != {"–"}]


def _done(one: RunFigures) -> str:
    return f"{one.updates:,} of {one.planned:,}" if one.updates < one.planned else f"{one.updates:,}"


def _ratio(first: float | None, other: float | None) -> str | None:
    return f"{first / other:.3g}" if first and other else None


def _saved(first: RunFigures, other: RunFigures) -> str | None:
    """Of the whole run, where both did as many updates."""
    if first.updates != other.updates:
        return None
    return f"{round((first.total - other.total) / 60, 1) + 0.0:.1f}"


def _pictures(runs: Sequence[RunRecord], names: Sequence[str], drifts: Sequence[Drift]) -> dict[str, Figure]:
    """File's name → picture."""
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

    def drawn(name: str, label: str, *, time: bool) -> Figure:
        given = [(title, series(run, name, time=time)) for title, run in zip(names, runs, strict=True)]
        return curves.comparison_curve(given, f"{unit} of training" if time else "update", label)

    pictures = {
        "loss_over_updates": drawn("loss", "loss", time=False),
        "loss_over_time": drawn("loss", "loss", time=True),
        "accuracy_over_time": drawn("top1", "top1, %", time=True),
    }
    # A logarithm has no place for what is exactly the same.
    apart = [(one.differences > 0) & np.isfinite(one.differences) for one in drifts]
    parted = [
        (name, one.updates[real], one.differences[real])
        for name, one, real in zip(names[1:], drifts, apart, strict=True)
        if real.any()
    ]
    if parted:
        pictures["drift"] = curves.drift_curve(parted)
    return pictures


def _markdown(rows: Sequence[Sequence[str]], sentence: str, told: Sequence[str], pictures: Sequence[str]) -> str:
    lines = [list(rows[0]), ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    body = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
    shown = "\n".join(f"![{_CAPTIONS[name]}]({name}.png)" for name in pictures)
    points = "".join(f"- {line}\n" for line in told)
    return f"# Comparison\n\n**{sentence}**\n\n{body}\n{points}\n{shown}\n"
