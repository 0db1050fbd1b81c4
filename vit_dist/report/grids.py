"""What a model got right and wrong: pictures side by side, classes, and which it takes for which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vit_dist.report.drawing import BLUE, FAINT, GREEN, INK, RED, new_figure, plain, save_png, short
from vit_dist.run_folder.predictions import InputExamples, Pixels, Predictions, SavedPredictions

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


def mistake_tiles(kept: SavedPredictions) -> list[Tile]:
    """The wrong answers given with the most confidence, that first."""
    both = zip(kept.captions(), kept.pictures, strict=True)
    return [Tile(pixels, said, False, truth) for (said, truth), pixels in both]


def input_tiles(inputs: InputExamples) -> list[Tile]:
    """The inputs with their classes, and the parts of these where two are mixed."""
    return [Tile(pixels, said) for said, pixels in zip(inputs.captions(), inputs.pixels, strict=True)]


def draw_tiles(path: Path, tiles: Sequence[Tile]) -> None:
    """A PNG of pictures in a square: framed green where right, red with the true class where wrong. Raises OSError."""
    columns = max(1, math.ceil(math.sqrt(len(tiles))))
    rows = math.ceil(len(tiles) / columns)
    side = 1.7 if columns <= 5 else 1.4
    title = 0.42 if any(tile.right is False for tile in tiles) else 0.26
    width, height = side * columns, (side + title) * rows
    figure = Figure(figsize=(width, height))
    for number, tile in enumerate(tiles):
        left, bottom = side * (number % columns), height - (side + title) * (number // columns + 1)
        # Placed by hand: a layout engine takes seconds for what is known beforehand.
        inner = ((left + 0.05) / width, (bottom + 0.05) / height, (side - 0.1) / width, (side - 0.1) / height)
        axes = figure.add_axes(inner)
        grey = len(tile.pixels) == 1
        axes.imshow(tile.pixels[0] if grey else tile.pixels.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        colour = {True: GREEN, False: RED, None: FAINT}[tile.right]
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=1 if tile.right is None else 2.5)
        told = [tile.said, f"is {tile.truth}"] if tile.right is False else [tile.said]
        text = "\n".join(plain(short(line)) for line in told)
        axes.set_title(text, color=INK if tile.right is None else colour, fontsize=8, pad=3)
    save_png(figure, path)


def class_bars(predictions: Predictions, classes: Sequence[str]) -> Figure:
    """Top-1 of each class in percent, the worst on top; at most 30 of them. Dots: the axis need not begin at 0."""
    seen, right = predictions.per_class(len(classes))
    present = np.flatnonzero(seen)
    share = 100 * right[present] / seen[present]
    order = np.argsort(share, kind="stable")[:_WORST]
    names = [plain(short(classes[present[row]])) for row in order]
    figure, axes = new_figure(4.8, max(1.6, 0.2 * len(order) + 0.7))
    places = np.arange(len(order))[::-1]
    low = 10 * max(0, math.floor((float(share[order].min()) - 2) / 10))
    axes.hlines(places, low, share[order], color=FAINT, alpha=0.4, linewidth=1)
    axes.plot(share[order], places, "o", color=BLUE, markersize=5)
    axes.set_yticks(places, names, fontsize=8)
    few = f", the worst {_WORST} of {len(share)}" if len(share) > _WORST else ""
    axes.set(xlim=(low, 100 + 0.14 * (100 - low)), xlabel=f"top1, %{few}")
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= 100])
    for place, value in zip(places, share[order], strict=True):
        axes.text(value, place, f"\u00a0\u00a0{value:.1f}", va="center", fontsize=7, color=INK)
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
        names = [plain(short(name, 12)) for name in classes]
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
