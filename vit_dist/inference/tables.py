"""Write the figures of an evaluation as tables for spreadsheets: one row per class, and the confusion matrix."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vit_dist.errors import UserError
from vit_dist.files import replacing
from vit_dist.formatting import spreadsheet_cell
from vit_dist.run_folder.figures import Figures

CLASSES, CONFUSION = "classes.csv", "confusion.csv"
MOST_COLUMNS = 5000  # of the confusion matrix


def check_tables_path(folder: Path, flag: str) -> None:
    """Check, before the work, that tables can be written to a folder. Raises UserError that names the flag."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{flag}: {folder} is a file: name a folder, for {CLASSES} and {CONFUSION}")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"{flag}: {folder} cannot be written: there is no folder {folder.parent}")


def write_tables(folder: Path, figures: Figures, names: Sequence[str]) -> list[Path]:
    """Write classes.csv and, for at most `MOST_COLUMNS` classes, confusion.csv; return what was written.

    A name that a spreadsheet would take for a formula gets an apostrophe in front. Raises OSError.
    """
    folder.mkdir(exist_ok=True)
    _write(folder / CLASSES, _class_rows(figures, names))
    if len(names) > MOST_COLUMNS:
        return [folder / CLASSES]
    _write(folder / CONFUSION, _confusion_rows(figures, names))
    return [folder / CLASSES, folder / CONFUSION]


def _class_rows(figures: Figures, names: Sequence[str]) -> Iterator[list[str]]:
    yield ["class", "images", "predicted", "correct", "precision", "recall", "f1"]
    counts = zip(figures.support.tolist(), figures.predicted.tolist(), figures.hits.tolist(), strict=True)
    rates = zip(figures.precision.tolist(), figures.recall.tolist(), figures.f1.tolist(), strict=True)
    for name, numbers, values in zip(names, counts, rates, strict=True):
        yield [name, *map(str, numbers), *("" if value != value else f"{value:.4f}" for value in values)]


def _confusion_rows(figures: Figures, names: Sequence[str]) -> Iterator[list[str]]:
    yield ["true class (down), predicted (across)", *names]
    labels, predictions = figures.mistakes
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(len(names) + 1))
    for number, name in enumerate(names):
        row = np.bincount(predictions[order[ends[number] : ends[number + 1]]], minlength=len(names))
        row[number] = figures.hits[number]
        yield [name, *map(str, row.tolist())]


def _write(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with replacing(path) as hidden, hidden.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([spreadsheet_cell(cell) for cell in row] for row in rows)
