"""Sources of images: random access by index, so that any order can be read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_dist.data.sources.decode import EncodedImage, ImageError
from vit_dist.errors import UserError, one_line, visible
from vit_dist.plan.keys import Ints

Pixels = NDArray[np.uint8]


class Source(Protocol):
    """Labelled images, each read by its index; an object of your own may be one.

    Some more attributes are used where a source has them: `pixels`, all of its images already decoded, uint8
    [length, channels, height, width]; `paths`, the file of each image, which names it in predictions, or
    `image_name(index)`, which names it; and `encoded(index)`, which returns the EncodedImage whose decoded form
    `image(index)` is.
    """

    @property
    def labels(self) -> Ints:
        """Class numbers, int64 [length]."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Return the decoded image at an index, in mode L or RGB. Raises UserError if it cannot be decoded."""


def read_image(source: Source, index: int) -> Image.Image:
    """Return the image at an index. Raises ImageError that names it for whatever the source raises."""
    with _naming(source, index):
        return source.image(index)


def read_encoded(source: Source, index: int) -> EncodedImage:
    """Return the image at an index as the bytes of its file, of a source that has them. Raises ImageError, likewise."""
    with _naming(source, index):
        found: EncodedImage = source.encoded(index)  # type: ignore[attr-defined]
        return found


@contextlib.contextmanager
def _naming(source: Source, index: int) -> Iterator[None]:
    """Turn whatever a source raises into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except UserError as error:
        raise ImageError(str(error)) from error
    except Exception as error:  # a source of the user's own may raise anything
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise ImageError(f"{visible(sample_name(source, index, 'image'))}: cannot be read ({reason})") from error


def decoded(source: Source) -> Pixels | None:
    """Return a source's decoded pixels, uint8 [length, channels, height, width], if it holds them."""
    pixels: Pixels | None = getattr(source, "pixels", None)
    return pixels


def sample_name(source: Source, index: int, split: str) -> str:
    """Return the name of a sample for people: its file, or its number in the split's source."""
    paths: Sequence[Path] | None = getattr(source, "paths", None)
    if paths is not None:
        return str(paths[index])
    named: Callable[[int], str] | None = getattr(source, "image_name", None)
    return f"{split}/{index}" if named is None else named(index)


def is_named(source: Source) -> bool:
    """Return whether the images of a source have names of their own, by which they can be mended or removed."""
    return hasattr(source, "paths") or hasattr(source, "image_name")


@dataclass(frozen=True)
class MemorySource:
    """A small source held as uint8 pixels, [length, channels, height, width]."""

    pixels: Pixels
    labels: Ints

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Return an image in mode L if it has one channel, else RGB."""
        pixels = self.pixels[index]
        return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
