"""The table of runs that `vit-dist runs` prints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from vit_dist.errors import visible
from vit_dist.formatting import duration
from vit_dist.report.measures import RunFigures
from vit_dist.report.ranking import accuracy
from vit_dist.run_folder.figures import margin
from vit_dist.run_folder.lines import is_time
from vit_dist.run_folder.record import RunRecord

# Columns that are left out if the terminal is too narrow, the first one first.
_SPARE = ("when", "time", "epochs", "model", "data", "best")
_NUMBERS = ("test %", "epochs", "time")
_NARROWEST = {"name": 14, "changed": 16, "data": 6, "model": 8}


@dataclass(frozen=True)
class Row:
    """A run in the table. changed: the fields in which it differs from the other runs on its data, with their values.

    run and figures are None for a folder that cannot be read; then `problem` says why.
    """

    name: str
    run: RunRecord | None
    figures: RunFigures | None
    data: str = ""
    changed: str = ""
    problem: str = ""

    @property
    def when(self) -> float:
        """The time of the last sign of life, in seconds since the epoch; 0 if it is not known."""
        if self.run is None:
            return 0.0
        lines = self.run.metrics.other_lines
        last = self.run.status.get("time")
        if last is None or not is_time(last):
            return float(lines[-1]["time"]) if lines else 0.0
        return float(last)


def table_lines(rows: Sequence[Row], width: int | None) -> list[str]:
    """Return the table as lines, at most `width` columns wide: cells are cut and columns left out as needed."""
    columns: dict[str, list[str]] = {
        "name": [visible(row.name) for row in rows],
        "data": [visible(row.data) for row in rows],
        "model": [visible(row.run.config.model.name) if row.run else "" for row in rows],
        "changed": [visible(row.changed) for row in rows],
        "best": [_best_text(row) for row in rows],
        "test": [_test_text(row) for row in rows],
        "epochs": [_epochs_text(row) for row in rows],
        "seconds": [duration(row.figures.total_seconds) if row.figures else "" for row in rows],
        "state": [row.run.state_word if row.run else "" for row in rows],
        "when": [_when_text(row.when) for row in rows],
    }
    heads = {"seconds": "time", "test": "test %"}
    shown = {heads.get(name, name): cells for name, cells in columns.items() if any(cells) or name == "name"}
    if width is not None:
        _fit(shown, width)
    widths = {name: max(map(len, (name, *cells))) for name, cells in shown.items()}

    def line(cells: Sequence[str]) -> str:
        pairs = zip(cells, widths.items(), strict=True)
        return "  ".join(f"{cell:>{wide}}" if name in _NUMBERS else f"{cell:<{wide}}" for cell, (name, wide) in pairs)

    lines = [line(list(shown)).rstrip()]
    for row, cells in zip(rows, zip(*shown.values(), strict=True), strict=True):
        lines.append(f"{cells[0]:<{widths['name']}}  {visible(row.problem)}" if row.problem else line(cells).rstrip())
    return [text if width is None or len(text) <= width else f"{text[: width - 1]}…" for text in lines]


def _fit(columns: dict[str, list[str]], width: int) -> None:
    """Remove columns of a table, and cut the cells of what is left, until it is at most `width` wide."""
    widths = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}

    def excess(least: bool) -> int:
        """Return by how much the table is too wide, with all cells cut as far as they may be, or as they are."""
        cut = {name: min(wide, _NARROWEST.get(name, wide)) for name, wide in widths.items()} if least else widths
        return sum(wide + 2 for wide in cut.values()) - 2 - width

    for spare in _SPARE:
        if excess(least=True) > 0 and spare in columns:
            del columns[spare], widths[spare]
    for name, least in _NARROWEST.items():
        if name in columns and widths[name] > least:
            widths[name] = max(least, widths[name] - max(0, excess(least=False)))
            columns[name] = [_cut(cell, widths[name]) for cell in columns[name]]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _best_text(row: Row) -> str:
    best = row.figures.best if row.figures else None
    if best is None or row.run is None:
        return ""
    known = accuracy(row.run, "val") if best["metric"].endswith("top1") else None
    value = f"{best['value']:.4f}" if best["metric"].endswith("loss") else f"{best['value']:.1f}"
    around = f" ±{margin(known.top1, known.bounds):.1f}" if known else ""
    return f"{best['metric']} {value}{around} at {best['update']:,}"


def _test_text(row: Row) -> str:
    if row.figures is None or row.figures.test_top1 is None:
        return ""
    around = row.figures.test_margin
    return f"{row.figures.test_top1:.1f}" + (f" ±{around:.1f}" if around is not None else "")


def _epochs_text(row: Row) -> str:
    figures = row.figures
    if figures is None or figures.epochs is None:
        return ""
    planned = figures.epochs * figures.planned_updates / max(1, figures.updates)
    return f"{figures.epochs:.3g}" + (f" of {planned:.3g}" if figures.updates < figures.planned_updates else "")


def _when_text(when: float) -> str:
    if not when:
        return ""
    this_year = time.localtime(when).tm_year == time.localtime().tm_year
    return time.strftime("%d %b %H:%M" if this_year else "%d %b %Y", time.localtime(when))
