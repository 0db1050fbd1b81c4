"""Images in any form that Python programs hold them in: files, PIL images, arrays, tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vit_dist.data.sources.decode import MAX_PIXELS, plain_image
from vit_dist.data.sources.image_files import FileSource
from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints

_FORMS = "a path, a PIL image, or a uint8 array or tensor"


@dataclass(frozen=True)
class ImageList:
    """A source of images in any form, without labels.

    items: paths, PIL images and arrays [height, width(, channels)] or [channels, height, width]. paths: the name of
    each, for people: its file, or its place in the list. mode: Pillow's, RGB or L (grey).
    """

    items: Sequence[Any]
    paths: Sequence[str]
    mode: str
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labels(self) -> Ints:
        """Return class 0 for each: nothing is known of them."""
        return np.zeros(len(self.items), np.int64)

    def image(self, index: int) -> Image.Image:
        """Return the decoded image in the source's mode. Raises UserError that names it."""
        item = self.items[index]
        if isinstance(item, Path):
            return FileSource([item], np.zeros(1, np.int64), self.mode, self.max_pixels).image(0)
        return to_pil(item, self.paths[index], self.mode)


def list_images(images: Any, find: Callable[[str], Sequence[Path]]) -> tuple[list[Any], list[str]]:
    """Return the images in `images` one by one, batches taken apart, and the name of each.

    images: one image or any iterable of them, in any form. find: called with the text of a path, returns the files
    that it names. Raises UserError.
    """
    items: list[Any] = []
    names: list[str] = []
    for item in _one_by_one(images):
        if isinstance(item, (str, Path)):
            files = find(str(item))
            items += files
            names += map(str, files)
        else:
            names.append(f"images[{len(items)}]")
            items.append(item)
    if not items:
        raise UserError(f"images: there are none: give {_FORMS}, or a list of these")
    return items, names


def _one_by_one(images: Any) -> Iterator[Any]:
    if isinstance(images, (str, Path, Image.Image)):
        yield images
    elif isinstance(images, (np.ndarray, Tensor)):
        yield from images if images.ndim == 4 else [images]
    elif isinstance(images, Iterable) and not isinstance(images, (bytes, Mapping)) and not hasattr(images, "columns"):
        for image in images:
            yield from _one_by_one(image)
    else:
        raise UserError(f"images: {type(images).__name__} is no image: give {_FORMS}, or a list of these")


def to_pil(image: Any, name: str, mode: str = "") -> Image.Image:
    """Return an image in memory as a PIL image of a mode, L or RGB; empty: its own, of 8 bits and opaque.

    image: a PIL image of any mode; or an array or tensor, uint8, or uint16 whose 65,535 is white, [height, width],
    [height, width, channels] or [channels, height, width] with 1, 3 or 4 (RGBA) channels. Where the first and the last
    dimension both may be the channels, an array has them last, a tensor first. Raises UserError that names it.
    """
    if isinstance(image, Image.Image):
        opened = image
    elif isinstance(image, (np.ndarray, Tensor)):
        opened = Image.fromarray(_bytes(image, name))
    else:
        raise UserError(f"{name}: is {type(image).__name__}: give {_FORMS}")
    return plain_image(opened, name, mode)


def check_dtype(array: Any, name: str) -> NDArray[Any]:
    """Return an array or tensor of uint8 or uint16 as an array. Raises UserError for other types, with the fix."""
    values = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    if values.dtype in (np.uint8, np.uint16):
        return values
    if values.dtype.kind == "f":
        raise UserError(
            f"{name}: has {values.dtype} values: give the image itself, uint8 from 0 to 255, without ToTensor, scaling "
            "or normalising, which vit_dist does"
        )
    raise UserError(f"{name}: has {values.dtype} values: give uint8, from 0 to 255")


def _bytes(image: Any, name: str) -> NDArray[np.uint8]:
    """Return an array or tensor as uint8 [height, width] or [height, width, 3 or 4]. Raises UserError."""
    values = check_dtype(image, name)
    if values.ndim == 3:
        first, last = (size in (1, 3, 4) for size in (values.shape[0], values.shape[2]))
        if first and (isinstance(image, Tensor) or not last):
            values = values.transpose(1, 2, 0)
        elif not last:
            shape, fix = list(values.shape), "give several images as a list"
            raise UserError(f"{name}: {shape} has no 1, 3 or 4 channels, neither last nor first: {fix}")
        values = values[:, :, 0] if values.shape[2] == 1 else values
    if values.ndim not in (2, 3):
        dimensions = f"{values.ndim} dimension{'s' if values.ndim != 1 else ''}"
        raise UserError(f"{name}: has {dimensions}: an image has two, or three with its channels")
    if not values.size:
        raise UserError(f"{name}: has no pixels: {list(values.shape)}")
    if values.dtype == np.uint16:
        values = (values.astype(np.float32) / 257).round()
    return np.ascontiguousarray(values, np.uint8)
