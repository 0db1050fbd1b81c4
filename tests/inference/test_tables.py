"""CSV files of figures: names that a spreadsheet would take for formulas, classes that do not occur, many classes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from vit_dist.inference.tables import CLASSES, CONFUSION, MOST_COLUMNS, write_tables
from vit_dist.run_folder.figures import figures


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_names_are_no_formulas_and_undefined_rates_are_empty(tmp_path: Path) -> None:
    names = ["=1+1", 'say "a, b"', "@sum", "crane"]
    ours = figures(np.asarray([0, 0, 1, 1, 1]), np.asarray([0, 1, 1, 1, 2]), 4)
    assert write_tables(tmp_path / "out", ours, names) == [tmp_path / "out" / CLASSES, tmp_path / "out" / CONFUSION]
    assert rows(tmp_path / "out" / CLASSES)[1:] == [
        ["'=1+1", "2", "1", "1", "100.0000", "50.0000", "66.6667"],
        ['say "a, b"', "3", "3", "2", "66.6667", "66.6667", "66.6667"],
        ["'@sum", "0", "1", "0", "0.0000", "", "0.0000"],
        ["crane", "0", "0", "0", "", "", ""],
    ]
    assert rows(tmp_path / "out" / CONFUSION) == [
        ["true class (down), predicted (across)", "'=1+1", 'say "a, b"', "'@sum", "crane"],
        ["'=1+1", "1", "1", "0", "0"],
        ['say "a, b"', "0", "2", "1", "0"],
        ["'@sum", "0", "0", "0", "0"],
        ["crane", "0", "0", "0", "0"],
    ]


def test_the_matrix_of_very_many_classes_is_left_out(tmp_path: Path) -> None:
    count = MOST_COLUMNS + 1
    ours = figures(np.arange(count), np.zeros(count, np.int64), count)
    assert write_tables(tmp_path / "out", ours, list(map(str, range(count)))) == [tmp_path / "out" / CLASSES]
    assert len(rows(tmp_path / "out" / CLASSES)) == 1 + count
