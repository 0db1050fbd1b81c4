"""Scikit-learn's digits with captions that say what is measured of each: which digit, slant, thickness and width."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_dist.data.sources.builtin import read_digits
from vit_dist.data.sources.captions import Captions
from vit_dist.data.sources.source import Pixels, decoded
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.plan.keys import Ints

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Bounds between the words: degrees, pixels of 8.
_SLANTS, _SLANT_WORDS = (-3.0, 3.0), ("leaning left", "upright", "leaning right")
_STROKES, _STROKE_WORDS = (1.15, 1.3), ("thin", "medium", "bold")
_INK = 0.25  # darkness, of 1, from which a pixel belongs to the digit


def read_digits_captions(root: Path) -> LabelledSplits:
    """Return the digits in the splits of `digits`, four captions to each, and their names as classes."""
    data = read_digits(root)
    source = data.splits["train"].source
    pixels = decoded(source)
    assert pixels is not None
    captions = Captions.of(map(sentences, np.asarray(source.labels).tolist(), *measure(pixels)))
    splits = {name: replace(split, captions=captions) for name, split in data.splits.items()}
    return replace(data, splits=splits, classes=NAMES)


def measure(pixels: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64], Ints]:
    """Return slant in degrees, thickness and width in pixels of grey images, uint8 [n, 1, height, width], [n] each.

    Slant: of the line on which rows' centres of ink lie best, from the upright; above 0, the top leans right.
    Thickness: twice the ink over the length of its edge, which is right for long strokes. Width: of the columns with
    ink.
    """
    ink = pixels[:, 0] / 255.0
    y, x = np.mgrid[: ink.shape[1], : ink.shape[2]].astype(float)
    total = ink.sum((1, 2))
    down = y - (ink * y).sum((1, 2), keepdims=True) / total[:, None, None]
    right = x - (ink * x).sum((1, 2), keepdims=True) / total[:, None, None]
    slant = np.degrees(np.arctan(-(ink * right * down).sum((1, 2)) / (ink * down * down).sum((1, 2))))
    framed = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    edge = np.abs(np.diff(framed, axis=1)).sum((1, 2)) + np.abs(np.diff(framed, axis=2)).sum((1, 2))
    width = (ink >= _INK).any(1).sum(1)
    return slant, 2 * total / edge, width


def sentences(digit: int, slant: float, thickness: float, width: int) -> tuple[str, ...]:
    """Return four captions of a digit: its name alone, then with more and more of what was measured."""
    name, pixels = NAMES[digit], NAMES[width]
    leaning = _SLANT_WORDS[int(np.searchsorted(_SLANTS, slant))]
    stroke = _STROKE_WORDS[int(np.searchsorted(_STROKES, thickness))]
    return (
        f"a handwritten {name}",
        f"a {stroke} {name}, {leaning}",
        f"the digit {name} in {stroke} strokes, {pixels} pixels wide",
        f"{name}, {abs(slant):.0f} degrees {'right' if slant > 0 else 'left'}, stroke {thickness:.1f}, {pixels} wide",
    )
