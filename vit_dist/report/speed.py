"""How fast several runs were, compared with the first one, and how far the losses of equal runs diverge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vit_dist.formatting import duration
from vit_dist.report import curves
from vit_dist.report.measures import (
    Divergence,
    RunFigures,
    divergence,
    loss_divergence,
    run_figures,
    same_stream,
    speed_sentence,
)
from vit_dist.run_folder.metrics import Floats, Line
from vit_dist.run_folder.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = {
    "loss_over_time": "Loss over training time (faint: training, dots: validation)",
    "divergence": "Divergence of the losses from the first run's",
}


@dataclass(frozen=True)
class SpeedSection:
    """The section on speed. rows: a column for each run, the first row its head. pictures: file name → picture."""

    title: str
    rows: list[list[str]]
    notes: list[str]
    pictures: dict[str, Figure]


def compare_speed(runs: Sequence[RunRecord], names: Sequence[str], order: Sequence[int]) -> SpeedSection:
    """Compare the speed of runs with that of the first one; and the losses of those that are the same run as it.

    order: in which their curves are drawn, so that each has its colour in all pictures.
    """
    figures = [run_figures(run) for run in runs]
    notes = []
    if len({run.machine for run in figures}) > 1:
        pairs = ((run, (names[0], name)) for run, name in zip(runs[1:], names[1:], strict=True))
        notes += [speed_sentence(runs[0], run, pair) or "" for run, pair in pairs]
    equal = [(name, run) for name, run in zip(names[1:], runs[1:], strict=True) if same_stream(runs[0], run)]
    for name, _ in equal:
        notes.append(
            f"{name} and {names[0]} have one identity: the same batches, augmentations and learning rates, update for "
            "update."
        )
    divergences = [divergence(runs[0], run) for _, run in equal]
    equal_names = [name for name, _ in equal]
    notes += loss_divergence([names[0], *equal_names], divergences)
    drawn = [(names[place], runs[place]) for place in order]
    pictures = _pictures(drawn, equal_names, divergences)
    return SpeedSection(_title(runs), _rows(figures, names), list(filter(None, notes)), pictures)


def evaluations(run: RunRecord) -> list[Line]:
    """Return the evaluations on val by the weights that the run's metric is of."""
    average = [] if run.config.evaluate.metric.startswith("raw_") else run.evaluations("val", "ema")
    return average or run.evaluations("val", "raw")


def _title(runs: Sequence[RunRecord]) -> str:
    """Return the title of the section: what was compared, if the devices differ."""
    devices = list(dict.fromkeys(run.start["device"] for run in runs))
    if len(devices) == 1:
        return "Speed"
    return "CPU against GPU" if len(devices) == 2 and "cpu" in devices else "Devices"


def _rows(figures: Sequence[RunFigures], names: Sequence[str]) -> list[list[str]]:
    """Return the table: a column for each run, the first row its head; rows that no run can fill are left out."""
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
        row("communication", lambda run: number(_communication(run), ".1f", 100, " %")),
        row("busy, by process", lambda run: run.processes.range_text if run.processes else None),
        row("peak memory, MiB", lambda run: number(run.memory_bytes, ",.0f", 2**-20)),
    ]
    if len({run.machine for run in figures}) > 1:
        rows.append(row("speed, times the first", lambda run: _ratio(first.epoch_seconds, run.epoch_seconds)))
        rows.append(row("minutes saved", lambda run: _minutes_saved(first, run)))
    return [row for row in rows if set(row[1:]) != {"–"}]


def _communication(run: RunFigures) -> float | None:
    return run.processes.communication_fraction if run.processes else None


def _ratio(first: float | None, other: float | None) -> str | None:
    return f"{first / other:.3g}" if first and other else None


def _minutes_saved(first: RunFigures, other: RunFigures) -> str | None:
    """Return the minutes that a whole run took less than the first, if both made as many updates."""
    if first.updates != other.updates:
        return None
    return f"{round((first.total_seconds - other.total_seconds) / 60, 1) + 0.0:.1f}"


def _pictures(
    runs: Sequence[tuple[str, RunRecord]], equal: Sequence[str], divergences: Sequence[Divergence]
) -> dict[str, Figure]:
    """Draw the loss over training time, and the divergence of the runs that are equal to the first."""
    longest = max((float(run.train_seconds[-1]) for _, run in runs if len(run.train_seconds)), default=0.0)
    scale, unit = curves.time_unit(longest)

    def series(run: RunRecord) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        train, evaluated, x = run.metrics.train, evaluations(run), run.train_seconds / scale
        at = np.asarray([line["update"] for line in evaluated], np.float64)
        values = np.asarray([float(line["loss"]) for line in evaluated], np.float64)
        return (x, train["loss"]), (np.interp(at, train["update"], x) if len(x) else at, values)

    lines = [(name, series(run)) for name, run in runs]
    pictures = {"loss_over_time": curves.comparison_curve(lines, f"{unit} of training", "loss")}
    # A logarithmic axis has no place for losses that are exactly the same.
    drawable = [(each.differences > 0) & np.isfinite(each.differences) for each in divergences]
    diverged = [
        (name, each.updates[mask], each.differences[mask])
        for name, each, mask in zip(equal, divergences, drawable, strict=True)
        if mask.any()
    ]
    if diverged:
        pictures["divergence"] = curves.divergence_curve(diverged)
    return pictures
