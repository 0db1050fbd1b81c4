"""What a model got right and wrong: pictures side by side, classes, and which it takes for which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vit_dist.predictions import Inputs, Kept, Pixels, Predictions
from vit_dist.report.drawing import BLUE, FAINT, GREEN, INK, RED, new_figure, save_png

_WORST = 30


@dataclass(frozen=True)
class Tile:
    """A picture, uint8 [channels, height, width], with what is said of it.

    right: None where nobody knows. truth: the true class, shown where it was not right.
    """

    pixels: Pixels
    said: str
    right: bool | None = None
    truth: str = ""


def mistake_tiles(kept: Kept) -> list[Tile]:
    """The wrong answers given with the most confidence, that first."""
    both = zip(kept.captions(), kept.pictures, strict=True)
    return [Tile(pixels, said, False, truth) for (said, truth), pixels in both]


def input_tiles(inputs: Inputs) -> list[Tile]:
    """The inputs with their classes, and the parts of these where two are mixed."""
    return [Tile(pixels, said) for said, pixels in zip(inputs.captions(), inputs.pixels, strict=True)]


def draw_tiles(path: Path, tiles: Sequence[Tile]) -> None:
    """A PNG of pictures in a square: framed green where right, red with the true class where wrong. Raises OSError."""
    columns = max(1, math.ceil(math.sqrt(len(tiles))))
    rows = math.ceil(len(tiles) / columns)
    side = 1.7 if columns <= 5 else 1.4
    figure = Figure(figsize=(side * columns, (side + 0.28) * rows), layout="constrained")
    for number, tile in enumerate(tiles, 1):
        axes = figure.add_subplot(rows, columns, number)
        grey = len(tile.pixels) == 1
        axes.imshow(tile.pixels[0] if grey else tile.pixels.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        colour = {True: GREEN, False: RED, None: FAINT}[tile.right]
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=1 if tile.right is None else 2.5)
        told = f"{tile.said}\nis {tile.truth}" if tile.right is False else tile.said
        axes.set_title(told, color=INK if tile.right is None else colour, fontsize=8, pad=3)
    save_png(figure, path)


def class_bars(predictions: Predictions, classes: Sequence[str]) -> Figure:
    """Top-1 of each class in percent, the worst on top; at most 30 of them."""
    seen, right = predictions.per_class(len(classes))
    present = np.flatnonzero(seen)
    share = 100 * right[present] / seen[present]
    order = np.argsort(share, kind="stable")[:_WORST]
    names = [short(classes[present[row]]) for row in order]
    figure, axes = new_figure(4.8, max(1.6, 0.21 * len(order) + 0.6))
    places = np.arange(len(order))[::-1]
    axes.barh(places, share[order], color=BLUE, height=0.65)
    axes.set_yticks(places, names, fontsize=8)
    low = max(0.0, math.floor(float(share.min()) / 10) * 10 - 10)
    few = f", the worst {_WORST} of {len(share)}" if len(share) > _WORST else ""
    axes.set(xlim=(low, 100), xlabel=f"top1, %{few}")
    for place, value in zip(places, share[order], strict=True):
        axes.text(max(value, low), place, f"{value:.1f} ", va="center", ha="right", fontsize=7, color="white")
    axes.grid(False)
    return figure


def confusion_picture(predictions: Predictions, classes: Sequence[str]) -> Figure:
    """Which class (row) is taken for which (column), in percent of the row; for at most 100 classes."""
    counts = predictions.confusion(len(classes))
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 4.8 if len(classes) <= 12 else 6.4
    figure, axes = new_figure(side, side)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    if len(classes) <= 30:
        names = [short(name, 12) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=7)
        axes.set_yticks(range(len(classes)), names, fontsize=7)
    if len(classes) <= 12:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if share[row, column] > 50 else INK
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="taken for", ylabel="true class")
    axes.grid(False)
    return figure


def confusions(predictions: Predictions, classes: Sequence[str], count: int = 10) -> list[tuple[str, str, int]]:
    """(true class, taken for, how often) of the most frequent mistakes, for any number of classes."""
    wrong = predictions.top[:, 0] != predictions.label
    pairs, times = np.unique(predictions.label[wrong] * len(classes) + predictions.top[wrong, 0], return_counts=True)
    order = np.argsort(-times, kind="stable")[:count]
    return [
        (classes[pair // len(classes)], classes[pair % len(classes)], int(often))
        for pair, often in zip(pairs[order].tolist(), times[order].tolist(), strict=True)
    ]


def short(name: str, length: int = 22) -> str:
    """A name cut to a length."""
    return name if len(name) <= length else name[: length - 1] + "…"
