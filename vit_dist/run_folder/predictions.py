"""Files of predictions and inputs: a split's predictions as arrays, and the examples that a report shows."""

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
from vit_dist.run_folder.lines import is_count

Floats32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]

TOP_K = 5  # classes saved of each sample
PREDICTIONS, INPUTS = "predictions.safetensors", "inputs.safetensors"

BROKEN = "{}: is not a file that vit_dist wrote, or is broken: remove it"


@dataclass(frozen=True)
class Predictions:
    """The predictions for the samples of a split.

    index: of the samples in their source, label: their true classes, int64 [n]. top: the likeliest classes, best
    first, int64 [n, k], probability: theirs, float32 [n, k]; k is 5, or the number of classes if that is smaller.
    """

    index: Ints
    label: Ints
    top: Ints
    probability: Floats32

    def __len__(self) -> int:
        return len(self.label)

    def confusion(self, classes: int) -> Ints:
        """Return the confusion matrix, int64 [classes, classes]: true classes in rows, predictions in columns."""
        pairs = np.bincount(self.label * classes + self.top[:, 0], minlength=classes * classes)
        return pairs.reshape(classes, classes)

    def per_class(self, classes: int) -> tuple[Ints, Ints]:
        """Return (samples, correct ones) of each class, int64 [classes] each."""
        correct = self.label[self.top[:, 0] == self.label]
        return np.bincount(self.label, minlength=classes), np.bincount(correct, minlength=classes)

    def mistakes(self, count: int) -> Ints:
        """Return the rows of the most confident mistakes, most confident first, int64 [count] at most."""
        wrong = np.flatnonzero(self.top[:, 0] != self.label)
        order = np.argsort(-self.probability[wrong, 0], kind="stable")
        return wrong[order[:count]].astype(np.int64)

    def top1(self) -> float:
        """Return the accuracy in percent."""
        return 100 * int((self.top[:, 0] == self.label).sum()) / len(self)


@dataclass(frozen=True)
class SavedPredictions:
    """A file of predictions.

    metadata: split, weights, update and class names; `paths`, those of the pictures, if they are files. pictures: those
    of the samples in the rows `picture_rows`, uint8 [m, channels, height, width].
    """

    predictions: Predictions
    metadata: dict[str, Any]
    picture_rows: Ints
    pictures: Pixels

    @property
    def paths(self) -> list[str]:
        """The path of each picture's file; empty if it has none."""
        paths: list[str] = self.metadata.get("paths", [""] * len(self.picture_rows))
        return paths

    def captions(self) -> list[tuple[str, str]]:
        """Return (the predicted class with its probability, the true class) of each picture."""
        names, of_split = self.metadata["classes"], self.predictions
        return [
            (f"{names[of_split.top[row, 0]]} {of_split.probability[row, 0]:.0%}", names[of_split.label[row]])
            for row in self.picture_rows.tolist()
        ]


@dataclass(frozen=True)
class InputExamples:
    """The first slots of a global batch as the model sees them.

    pixels: uint8 [n, channels, side, side]. classes: the two classes with the largest shares in each target, int64
    [n, 2]; parts: these shares, float32 [n, 2]. metadata: position, class names, and captions if the images have them.
    """

    pixels: Pixels
    classes: Ints
    parts: Floats32
    metadata: dict[str, Any]

    def captions(self) -> list[str]:
        """Return the caption of each; without one its class, or both with their shares where two are mixed."""
        if "captions" in self.metadata:
            return [str(caption) for caption in self.metadata["captions"]]
        pairs = [[self.metadata["classes"][number] for number in pair] for pair in self.classes.tolist()]
        return [
            first if parts[0] > 0.995 else f"{first} {parts[0]:.0%}, {second} {parts[1]:.0%}"
            for (first, second), parts in zip(pairs, self.parts.tolist(), strict=True)
        ]


def write_predictions(path: Path, saved: SavedPredictions) -> None:
    """Replace a file of predictions atomically. Raises OSError."""
    arrays = {name: getattr(saved.predictions, name) for name in ("index", "label", "top", "probability")}
    replace_arrays(path, {**arrays, "shown": saved.picture_rows, "pictures": saved.pictures}, saved.metadata)


def read_predictions(path: Path) -> SavedPredictions | None:
    """Read a file of predictions; None if there is none. Raises UserError for any other file."""
    content = read_arrays(path, {"index", "label", "top", "probability", "shown", "pictures"})
    if content is None:
        return None
    arrays, metadata = content
    rows, pictures = arrays.pop("shown"), arrays.pop("pictures")
    saved = SavedPredictions(Predictions(**arrays), metadata, rows, pictures)
    if not _agree(saved):
        raise UserError(BROKEN.format(path))
    return saved


def write_inputs(path: Path, inputs: InputExamples) -> None:
    """Replace a file of inputs atomically. Raises OSError."""
    replace_arrays(path, {name: getattr(inputs, name) for name in ("pixels", "classes", "parts")}, inputs.metadata)


def read_inputs(path: Path) -> InputExamples | None:
    """Read a file of inputs; None if there is none. Raises UserError for any other file."""
    content = read_arrays(path, {"pixels", "classes", "parts"})
    if content is None:
        return None
    inputs, position = InputExamples(**content[0], metadata=content[1]), content[1].get("position")
    count, classes, captioned = len(inputs.pixels), content[1].get("classes", []), "captions" in content[1]
    pairs, parts = inputs.classes, inputs.parts
    if not (
        _are_names(classes)
        and is_count(position)
        and are_pictures(inputs.pixels, count)
        and _are_within(pairs, max(len(classes), 2 * captioned), (count, 2))
        and parts.dtype == np.float32
        and parts.shape == (count, 2)
        and np.isfinite(parts).all()
        and (not captioned or (isinstance(content[1]["captions"], list) and len(content[1]["captions"]) == count))
    ):
        raise UserError(BROKEN.format(path))
    return inputs


def _agree(saved: SavedPredictions) -> bool:
    """Return whether the arrays have the types and shapes of one split's predictions, of the classes that are named."""
    about, predictions, count = saved.metadata, saved.predictions, len(saved.predictions.label)
    classes, top = about.get("classes", []), predictions.top
    return bool(
        _are_names(classes)
        and isinstance(about.get("split"), str)
        and about.get("weights") in ("raw", "ema")
        and is_count(about.get("update"))
        and count
        and top.ndim == 2
        and 1 <= top.shape[1] <= len(classes)
        and _are_within(predictions.index, 1 << 53, (count,))
        and _are_within(predictions.label, len(classes), (count,))
        and _are_within(top, len(classes), top.shape)
        and predictions.probability.dtype == np.float32
        and predictions.probability.shape == top.shape
        and len(top) == count
        and not ((predictions.probability < 0) | (predictions.probability > 1.001)).any()
        and saved.picture_rows.ndim == 1
        and _are_within(saved.picture_rows, count, saved.picture_rows.shape)
        and are_pictures(saved.pictures, len(saved.picture_rows))
        and _are_paths(about.get("paths"), len(saved.picture_rows))
    )


def _are_names(classes: Any) -> bool:
    return isinstance(classes, list) and len(classes) > 0 and all(isinstance(name, str) for name in classes)


def _are_paths(paths: Any, count: int) -> bool:
    return paths is None or (isinstance(paths, list) and len(paths) == count and (not count or _are_names(paths)))


def _are_within(numbers: NDArray[Any], limit: int, shape: tuple[int, ...]) -> bool:
    """Return whether these are int64 of a shape, from 0 on and below the limit."""
    right = numbers.dtype == np.int64 and numbers.shape == shape
    return right and bool(((numbers >= 0) & (numbers < limit)).all())


def are_pictures(pixels: NDArray[Any], count: int) -> bool:
    """Return whether these are `count` pictures, grey or in colour, uint8 [count, channels, height, width]."""
    right = pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) == count
    return right and (not count or (pixels.shape[1] in (1, 3) and pixels.size > 0))


def replace_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> None:
    """Replace a safetensors file of arrays, with metadata as JSON, atomically. Raises OSError."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with replacing(path) as hidden:
        hidden.write_bytes(save(contiguous, {"about": json.dumps(metadata)}))


def read_arrays(path: Path, names: set[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    """Read the arrays of these names and the metadata; None if there is no file. Raises UserError for any other."""
    if not path.is_file():
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        arrays = load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["about"])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        arrays, metadata = {}, {}
    if arrays.keys() != names or not isinstance(metadata, dict) or any(array.ndim == 0 for array in arrays.values()):
        raise UserError(BROKEN.format(path))
    return arrays, metadata
