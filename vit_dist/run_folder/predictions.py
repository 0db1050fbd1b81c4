"""What a model said of each sample of a split, as arrays and as a file; numpy alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vit_dist.errors import UserError
from vit_dist.files import replacing
from vit_dist.plan.keys import Ints

Floats32 = NDArray[np.float32]


Pixels = NDArray[np.uint8]


TOP_K = 5


PREDICTIONS, INPUTS = "predictions.safetensors", "inputs.safetensors"


@dataclass(frozen=True)
class Predictions:
    """index: of the samples in their source; label: their classes, int64 [n]. top: the likeliest classes, best first,
    int64 [n, k]; probability: theirs, float32 [n, k]; k is 5, or the number of classes where it is less."""

    index: Ints
    label: Ints
    top: Ints
    probability: Floats32

    def __len__(self) -> int:
        return len(self.label)

    def confusion(self, classes: int) -> Ints:
        """How often each class (row) was taken for each (column): int64 [classes, classes]."""
        pairs = np.bincount(self.label * classes + self.top[:, 0], minlength=classes * classes)
        return pairs.reshape(classes, classes)

    def per_class(self, classes: int) -> tuple[Ints, Ints]:
        """(samples, right ones) of each class, int64 [classes]."""
        right = self.label[self.top[:, 0] == self.label]
        return np.bincount(self.label, minlength=classes), np.bincount(right, minlength=classes)

    def mistakes(self, count: int) -> Ints:
        """Rows of the wrong answers given with the most confidence, that first."""
        wrong = np.flatnonzero(self.top[:, 0] != self.label)
        order = np.argsort(-self.probability[wrong, 0], kind="stable")
        return wrong[order[:count]].astype(np.int64)

    def top1(self) -> float:
        """Percent of right answers."""
        return 100 * int((self.top[:, 0] == self.label).sum()) / len(self)


@dataclass(frozen=True)
class SavedPredictions:
    """A file of predictions. about: what they are of (split, weights, update, classes …). pictures: of the samples in
    the rows `shown`, uint8 [m, channels, height, width]."""

    predictions: Predictions
    about: dict[str, Any]
    shown: Ints
    pictures: Pixels

    def captions(self) -> list[tuple[str, str]]:
        """(what was said, with its probability; the true class) of each picture."""
        names, found = self.about["classes"], self.predictions
        return [
            (f"{names[found.top[row, 0]]} {found.probability[row, 0]:.0%}", names[found.label[row]])
            for row in self.shown.tolist()
        ]


@dataclass(frozen=True)
class InputExamples:
    """The first slots of a global batch as the model sees them: uint8 pixels [n, channels, side, side], and the two
    classes that each one's target is most of, int64 [n, 2], with their parts, float32 [n, 2]."""

    pixels: Pixels
    classes: Ints
    parts: Floats32
    about: dict[str, Any]

    def captions(self) -> list[str]:
        """The class of each, or both with their parts where two are mixed."""
        named = [[self.about["classes"][number] for number in pair] for pair in self.classes.tolist()]
        return [
            first if parts[0] > 0.995 else f"{first} {parts[0]:.0%}, {second} {parts[1]:.0%}"
            for (first, second), parts in zip(named, self.parts.tolist(), strict=True)
        ]


def write_predictions(path: Path, kept: SavedPredictions) -> None:
    """Replaces a file of predictions in one step. Raises OSError."""
    arrays = {name: getattr(kept.predictions, name) for name in ("index", "label", "top", "probability")}
    _replace(path, {**arrays, "shown": kept.shown, "pictures": kept.pictures}, kept.about)


def read_predictions(path: Path) -> SavedPredictions | None:
    """A file of predictions; None where there is none. Raises UserError where it is another file."""
    found = _read(path, {"index", "label", "top", "probability", "shown", "pictures"})
    if found is None:
        return None
    arrays, about = found
    shown, pictures = arrays.pop("shown"), arrays.pop("pictures")
    return SavedPredictions(Predictions(**arrays), about, shown, pictures)


def write_inputs(path: Path, inputs: InputExamples) -> None:
    """Replaces a file of inputs in one step. Raises OSError."""
    _replace(path, {name: getattr(inputs, name) for name in ("pixels", "classes", "parts")}, inputs.about)


def read_inputs(path: Path) -> InputExamples | None:
    """A file of inputs; None where there is none. Raises UserError where it is another file."""
    found = _read(path, {"pixels", "classes", "parts"})
    return InputExamples(**found[0], about=found[1]) if found else None


def _replace(path: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with replacing(path) as hidden:
        hidden.write_bytes(save(whole, {"about": json.dumps(about)}))


def _read(path: Path, names: set[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    if not path.is_file():
        return None
    content = path.read_bytes()
    try:
        arrays = load(content)
        length = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["about"])
    except (SafetensorError, ValueError, KeyError):
        arrays, about = {}, {}
    if arrays.keys() != names:
        raise UserError(f"{path}: is not a file that vit_dist wrote, or is broken: remove it")
    return arrays, about
