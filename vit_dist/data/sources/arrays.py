"""Sources made of arrays and tensors: all images in one, and their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vit_dist.data.sources.images import check_dtype, to_pil
from vit_dist.data.sources.source import MemorySource, Pixels, Source
from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints


@dataclass(frozen=True)
class ArraySource:
    """A source of images in one array that are no square or in another mode: uint8 [length, channels, height, width].

    mode: Pillow's, RGB or L (grey), of the images that it gives.
    """

    images: Pixels
    labels: Ints
    mode: str

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Return an image in the source's mode."""
        return to_pil(self.images[index].transpose(1, 2, 0), f"images[{index}]", self.mode)


def is_arrays(value: Any) -> bool:
    """Return whether a value is a pair of images and labels, rather than a list of samples."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], (np.ndarray, Tensor))


def read_images(images: Any, field: str) -> Pixels:
    """Return uint8 images [n, height, width(, channels)] or [n, channels, height, width] with their channels second.

    Where both may be the channels, an array has them last, a tensor second. Raises UserError, naming the field.
    """
    values = check_dtype(images, field)
    shape = list(values.shape)
    if values.dtype != np.uint8:
        raise UserError(f"{field}: has {values.dtype} values: give uint8, from 0 to 255")
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim != 4 or not {shape[1], shape[3]} & {1, 3}:
        raise UserError(
            f"{field}: must be [n, height, width, channels] or [n, channels, height, width] with 1 or 3 channels, or "
            f"[n, height, width], not {shape}"
        )
    elif shape[3] in (1, 3) and not (isinstance(images, Tensor) and shape[1] in (1, 3)):
        values = values.transpose(0, 3, 1, 2)
    if not values.size:
        raise UserError(f"{field}: has no images" if not shape[0] else f"{field}: has no pixels: {shape}")
    return values


def array_source(images: Pixels, labels: Ints, mode: str) -> Source:
    """Return the source of images [n, channels, height, width] in a mode; squares in it are used as they are."""
    channels, height, width = images.shape[1:]
    if height == width and channels == (1 if mode == "L" else 3):
        return MemorySource(images, labels)
    return ArraySource(images, labels, mode)
