"""A source of the user's own: check it, and make splits of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.config.fields import DataConfig
from vit_dist.data.sources.source import Pixels, decoded, read_image
from vit_dist.data.sources.splits import IMAGENET, LabelledSplits, all_of, name_keys, with_val
from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints, Keys, Purpose, keys

_HALF = ((0.5,), (0.5,))


def from_source(source: Any, config: DataConfig) -> LabelledSplits:
    """Make train, and a val split of `data.val_fraction` of each class, by key, of one source.

    Class names are the source's `classes` if it has them, else the labels' numbers. Channels are those of its first
    image. The side is `data.image_size`, else that of `pixels`, else 224; mean and std are the config's, else
    ImageNet's for RGB and 0.5 for grey. Raises UserError, naming what is missing or wrong.
    """
    missing = [name for name in ("__len__", "labels", "image") if not hasattr(source, name)]
    if missing or not callable(source.image):
        names = ", ".join(missing) or "image(index), a method"
        raise UserError(
            f"source: {type(source).__name__} has no {names}: it needs __len__(), labels (class numbers) and "
            "image(index), which returns a PIL image"
        )
    labels = _check_labels(source)
    classes = _class_names(source, int(labels.max()))
    pixels = _check_pixels(source)
    image = read_image(source, 0)
    mode = getattr(image, "mode", None)
    if mode not in ("L", "RGB"):
        kind = mode if isinstance(mode, str) else type(image).__name__
        raise UserError(f"source.image: must return PIL images of mode RGB or L, not {kind}")
    channels = 3 if mode == "RGB" else 1
    if pixels is not None and pixels.shape[1] != channels:
        raise UserError(
            f"source.pixels: have {pixels.shape[1]} channels, and source.image(0) is {mode}: make them alike"
        )
    mean, std = IMAGENET if channels == 3 else _HALF
    side = config.image_size or (pixels.shape[2] if pixels is not None else 224)
    splits = {"train": all_of(source)}
    return with_val(LabelledSplits(splits, classes, channels, side, mean, std), config.val_fraction, _keys(source))


def _keys(source: Any) -> Keys:
    """Return a key for each image, which decides whether it is held out as val.

    Of its file's name and folder, so that the list may change; without files of its index, so that images may be added
    at the end.
    """
    paths: Sequence[Any] | None = getattr(source, "paths", None)
    if paths is None:
        return keys(0, Purpose.SPLIT, np.arange(len(source), dtype=np.int64))
    return name_keys("/".join(Path(path).parts[-2:]) for path in paths)


def _check_labels(source: Any) -> Ints:
    """Return the labels as int64 [length]. Raises UserError."""
    length, labels = len(source), np.asarray(source.labels)
    if not length:
        raise UserError("source: has no images")
    if labels.shape != (length,) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"source.labels: must be one class number, 0 or more, for each of its {length} images, "
            f"not {labels.dtype} {list(labels.shape)}"
        )
    if labels.min() < 0:
        index = int(labels.argmin())
        raise UserError(f"source.labels: must be 0 or more, not {labels[index]} (image {index})")
    return labels.astype(np.int64)


def _class_names(source: Any, largest: int) -> tuple[str, ...]:
    """Return the names of a source's classes, up to its largest label at least. Raises UserError."""
    names: Sequence[str] | None = getattr(source, "classes", None)
    if names is None:
        if largest >= len(source):
            raise UserError(
                f"source.labels: go up to {largest} for {len(source)} images: number the classes from 0 on, or give "
                "source.classes"
            )
        return tuple(str(number) for number in range(largest + 1))
    if isinstance(names, str) or not isinstance(names, Sequence) or len(set(names)) != len(names):
        raise UserError("source.classes: must be a list of different names")
    if len(names) <= largest:
        raise UserError(f"source.classes: has {len(names)} names, and source.labels go up to {largest}")
    return tuple(map(str, names))


def _check_pixels(source: Any) -> Pixels | None:
    """Return the source's decoded pixels, if it has them. Raises UserError."""
    pixels = decoded(source)
    if pixels is None:
        return None
    shape, dtype = list(np.shape(pixels)), getattr(pixels, "dtype", type(pixels).__name__)
    if (
        dtype != np.uint8
        or len(shape) != 4
        or shape[0] != len(source)
        or shape[1] not in (1, 3)
        or shape[2] != shape[3]
    ):
        raise UserError(f"source.pixels: must be uint8 [{len(source)}, 1 or 3, side, side], not {dtype} {shape}")
    return pixels
