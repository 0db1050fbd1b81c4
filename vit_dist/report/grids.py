"""Pictures of images in a grid: the most confident mistakes, the model's inputs, predictions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from vit_dist.report.drawing import FAINT, GREEN, INK, RED, literal, save_png, short
from vit_dist.report.faults import suspected_labels
from vit_dist.run_folder.predictions import InputExamples, Pixels, SavedPredictions

_SMALL = 64  # pixels


@dataclass(frozen=True)
class Tile:
    """An image, uint8 [channels, height, width], with its caption.

    right: whether it was classified correctly; None if that is not known. truth: the true class, shown if it was not.
    path: of its file, if it has one; place: the end of that. suspected: whether its label is.
    """

    pixels: Pixels
    caption: str
    right: bool | None = None
    truth: str = ""
    path: str = ""
    place: str = ""
    suspected: bool = False

    @property
    def is_small(self) -> bool:
        """Return whether a browser should enlarge it without smoothing."""
        return int(self.pixels.shape[-1]) < _SMALL


def mistake_tiles(saved: SavedPredictions) -> list[Tile]:
    """Return the mistakes made with the most confidence, most confident first."""
    suspected = set(suspected_labels(saved.predictions).tolist())
    rows = zip(saved.picture_rows.tolist(), saved.captions(), saved.pictures, saved.paths, strict=True)
    return [
        Tile(pixels, caption, False, truth, path, "/".join(Path(path).parts[-2:]), row in suspected)
        for row, (caption, truth), pixels, path in rows
    ]


def input_tiles(inputs: InputExamples) -> list[Tile]:
    """Return the model's inputs with their classes, and the share of each where two are mixed."""
    return [Tile(pixels, caption) for caption, pixels in zip(inputs.captions(), inputs.pixels, strict=True)]


def _wrapped(text: str, lines: int) -> list[str]:
    """Return a text cut to so many lines below a picture."""
    if lines == 1:
        return [short(text)]
    return textwrap.wrap(text, 24, max_lines=lines, placeholder=" …") or [""]


def draw_tiles(path: Path, tiles: Sequence[Tile], lines: int = 1) -> None:
    """Write a PNG of images in a square: framed green if right, red with the true class if wrong. Raises OSError.

    lines: that a caption, or a true class, may take.
    """
    columns = max(1, math.ceil(math.sqrt(len(tiles))))
    rows = math.ceil(len(tiles) / columns)
    side = 1.7 if columns <= 5 else 1.4
    parts = 2 if any(tile.right is False for tile in tiles) else 1
    title = 0.1 + 0.16 * parts * lines
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
        texts = [tile.caption, f"is {tile.truth}"] if tile.right is False else [tile.caption]
        text = "\n".join(literal(line) for part in texts for line in _wrapped(part, lines))
        axes.set_title(text, color=INK if tile.right is None else colour, fontsize=8, pad=3)
    save_png(figure, path)
