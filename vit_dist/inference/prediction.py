"""What a model says of images, for Python: the probabilities of all classes, and the likeliest ones by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from vit_dist.errors import visible
from vit_dist.formatting import aligned

Floats = NDArray[np.float32]

_LISTED = 10


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    image: its file, or `images[3]` for the fourth that was given. label: the likeliest class; probability: its, in
    0..1. top: all classes with their probabilities, the likeliest first.
    """

    image: str
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]

    def __repr__(self) -> str:
        """Return it with the three likeliest classes."""
        top = ", ".join(f"{visible(name)} {probability:.1%}" for name, probability in self.top[:3])
        return f"Prediction({visible(self.image)}: {top}{', …' if self.top[3:] else ''})"


@dataclass(frozen=True, eq=False)
class PredictionList(Sequence[Prediction]):
    """The predictions for images, in their order: a sequence of `Prediction`, and the arrays behind it.

    probabilities: float32 [images, classes]. images: the name of each, see `Prediction`. classes: the names of the
    columns.
    """

    probabilities: Floats
    images: list[str]
    classes: list[str]

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Return the number of the likeliest class of each image, int64 [images]."""
        return np.asarray(self.probabilities.argmax(1), np.int64)

    @property
    def labels(self) -> list[str]:
        """Return the name of the likeliest class of each image."""
        return [self.classes[number] for number in self.numbers.tolist()]

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> PredictionList: ...
    def __getitem__(self, index: int | slice) -> Prediction | PredictionList:
        """Return the prediction for one image, or those of a slice. Raises IndexError."""
        if isinstance(index, slice):
            return PredictionList(self.probabilities[index], self.images[index], self.classes)
        row = self.probabilities[index]
        order = np.argsort(-row, kind="stable")
        top = tuple((self.classes[number], float(row[number])) for number in order.tolist())
        return Prediction(self.images[index], *top[0], top)

    def __iter__(self) -> Iterator[Prediction]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        """Return a table of the first ten: image, class and probability."""
        rows = [[visible(each.image), visible(each.label), f"{each.probability:.1%}"] for each in self[:_LISTED]]
        more = [f"… {len(self) - _LISTED:,} more"] if len(self) > _LISTED else []
        return "\n".join([*aligned(rows), *more]) if rows else "no predictions"
