"""Which classes are taken for which: the confusion matrix as a picture, and the most frequent mistakes.

Up to 25 classes the page shows the matrix as a table instead, by the macro in templates/macros.html.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vit_dist.report.drawing import BLUE, FAINT, INK, ORANGE, literal, new_figure, short
from vit_dist.run_folder.predictions import Predictions


def confusion_matrix(predictions: Predictions, classes: Sequence[str]) -> Figure:
    """Draw the confusion matrix: true classes in rows, predictions in columns, in percent of the row."""
    counts = predictions.confusion(len(classes))
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 4.8 if len(classes) <= 12 else 6.4
    figure, axes = new_figure(side, side)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    if len(classes) <= 30:
        names = [literal(short(name, 12)) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=7)
        axes.set_yticks(range(len(classes)), names, fontsize=7)
    if len(classes) <= 12:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if share[row, column] > 50 else INK
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="predicted", ylabel="true class")
    axes.grid(False)
    return figure


def confusions(predictions: Predictions, classes: Sequence[str], count: int = 10) -> list[tuple[str, str, int]]:
    """Return the most frequent mistakes: (true class, predicted class, how often)."""
    wrong = predictions.top[:, 0] != predictions.label
    pairs, times = np.unique(predictions.label[wrong] * len(classes) + predictions.top[wrong, 0], return_counts=True)
    order = np.argsort(-times, kind="stable")[:count]
    return [
        (classes[pair // len(classes)], classes[pair % len(classes)], int(often))
        for pair, often in zip(pairs[order].tolist(), times[order].tolist(), strict=True)
    ]


def difference_bars(classes: Sequence[tuple[str, int, float]], best: str, second: str) -> Figure:
    """Draw by how many percentage points two runs' recall of classes differs: (class, its images, points) each."""
    figure, axes = new_figure(6.4, max(1.6, 0.22 * len(classes) + 0.8))
    rows = np.arange(len(classes))[::-1]
    points = [value for _, _, value in classes]
    axes.barh(rows, points, color=[BLUE if value > 0 else ORANGE for value in points], height=0.6)
    axes.set_yticks(rows, [f"{literal(short(name))} ({images:,})" for name, images, _ in classes], fontsize=8)
    for row, value in zip(rows, points, strict=True):
        side = "left" if value > 0 else "right"
        axes.text(value, row, f"\u00a0{value:+.1f}\u00a0", va="center", ha=side, fontsize=7, color=INK)
    axes.axvline(0, color=FAINT, linewidth=0.9)
    axes.margins(x=0.15)
    axes.set(xlabel=f"recall: points by which {literal(short(best))} is above {literal(short(second))}")
    axes.set_ylabel("class (images)")
    axes.grid(False)
    return figure
