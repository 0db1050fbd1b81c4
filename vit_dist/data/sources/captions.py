"""The captions of a source's images, kept as one text: a million Python strings take a hundred bytes each, and more."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints


def plain_captions(value: Any, place: Callable[[], str]) -> list[str]:
    """Return the captions in a value: a text, or several. place: how messages begin. Raises UserError."""
    several = isinstance(value, (list, tuple)) or hasattr(value, "tolist")
    found = list(value) if several else [value]
    for caption in found:
        if isinstance(caption, str) and caption.strip():
            continue
        if isinstance(caption, str) or caption is None or caption != caption:
            raise UserError(f"{place()}: a caption is empty: write one, or remove the image")
        raise UserError(f"{place()}: must be a text, or a list of texts, not {type(caption).__name__}")
    if not found:
        raise UserError(f"{place()}: has no caption: write one, or remove the image")
    return found


@dataclass(frozen=True, eq=False)
class Captions(Sequence[tuple[str, ...]]):
    """The captions of each image, by its index in its source: `captions[index]`.

    text: of all, in UTF-8, uint8 [bytes]; it may be a file's, read where it is used. ends: where each ends in it, int64
    [captions]. first: the number of each image's first caption, and at last that of all captions, int64 [images + 1].
    """

    text: NDArray[np.uint8]
    ends: Ints
    first: Ints

    @classmethod
    def of(cls, images: Iterable[Sequence[str]]) -> Captions:
        """Pack the captions of images, in the order of the images."""
        lengths: list[int] = []
        counts, parts = [], []
        for captions in images:
            encoded = [caption.encode("utf-8", "surrogatepass") for caption in captions]
            counts.append(len(encoded))
            lengths += map(len, encoded)
            parts.append(b"".join(encoded))
        first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        return cls(np.frombuffer(b"".join(parts), np.uint8), np.cumsum(lengths, dtype=np.int64), first.astype(np.int64))

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, index: int) -> tuple[str, ...]:  # type: ignore[override]
        """Return the captions of an image."""
        first, end = int(self.first[index]), int(self.first[index + 1])
        return tuple(self.caption(number) for number in range(first, end))

    def caption(self, number: int) -> str:
        """Return a caption by its number among all."""
        begin = int(self.ends[number - 1]) if number else 0
        return self.text[begin : int(self.ends[number])].tobytes().decode("utf-8", "surrogatepass")

    @property
    def parts(self) -> tuple[NDArray[np.uint8], Ints, Ints]:
        """Return text, ends and first."""
        return self.text, self.ends, self.first

    def fits(self, images: int) -> bool:
        """Return whether these are whole captions of so many images, one for each at least."""
        first, ends = self.first, self.ends
        return (
            first.shape == (images + 1,)
            and int(first[0]) == 0
            and bool((np.diff(first) > 0).all())
            and ends.shape == (int(first[-1]),)
            and bool((np.diff(ends) >= 0).all())
            and int(ends[0]) >= 0
            and self.text.shape == (int(ends[-1]),)
        )

    def is_plain(self) -> bool:
        """Return whether all captions are printable ASCII without an ampersand, which may begin an entity of HTML."""
        text = self.text
        return not ((text >= 0x7F) | (text == ord("&")) | ((text < 0x20) & ~np.isin(text, [9, 10, 13]))).any()

    def counts(self, indices: Ints) -> Ints:
        """Return how many captions these images have, int64 [indices]."""
        counts: Ints = self.first[indices + 1] - self.first[indices]
        return counts

    def take(self, indices: Ints) -> Captions:
        """Return the captions of these images, in this order."""
        return Captions.of(self[index] for index in indices.tolist())

    def of_images(self, indices: Ints) -> Iterator[str]:
        """Yield all captions of these images, one image after the other."""
        return chain.from_iterable(self[index] for index in indices.tolist())

    def digest(self, indices: Ints) -> str:
        """Return a SHA-256 of the captions of these images, in this order, in hexadecimal."""
        starts = np.concatenate([[0], self.ends])
        counts = self.counts(indices)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        numbers = np.repeat(self.first[indices], counts) + within
        found = hashlib.sha256(counts.astype("<i8").tobytes())
        found.update((starts[numbers + 1] - starts[numbers]).astype("<i8").tobytes())
        begins, ends = starts[self.first[indices]].tolist(), starts[self.first[indices + 1]].tolist()
        found.update(b"".join(self.text[begin:end].tobytes() for begin, end in zip(begins, ends, strict=True)))
        return found.hexdigest()
