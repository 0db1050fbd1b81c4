"""Data of the user's own, in any form that Python programs hold it in: checked, and made into splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.config.fields import DataConfig
from vit_dist.data.sources.arrays import ArraySource, array_source
from vit_dist.data.sources.datasets import DatasetSource
from vit_dist.data.sources.image_files import FilePaths, FileSource
from vit_dist.data.sources.labelled import Labelled, labelled_files, open_labelled, open_listing
from vit_dist.data.sources.listing import Listing, columns_read
from vit_dist.data.sources.source import MemorySource, Pixels, Source, decoded, read_image
from vit_dist.data.sources.splits import (
    IMAGENET,
    SPLITS,
    UNLABELLED,
    ImageSizes,
    LabelledSplits,
    Subset,
    all_of,
    name_keys,
    with_val,
)
from vit_dist.data.sources.survey import measure, sizes_of
from vit_dist.errors import UserError, nearest
from vit_dist.plan.keys import Keys, Purpose, keys

_HALF = ((0.5,), (0.5,))


def from_source(source: Any, config: DataConfig, field: str = "source", *, captions: bool = False) -> LabelledSplits:
    """Make splits of labelled images in any form (docs/python.md lists them), or of a dictionary of splits of them.

    Without val, a keyed part of train is held out, by `data.val_fraction`. Class names are the source's if it has them,
    else the labels' numbers. Files have three channels; arrays, Datasets and other objects as many as their images. The
    side is `data.image_size`, else that of images which are equal squares, in arrays and Datasets, else 224; mean and
    std are ImageNet's for RGB, 0.5 for grey. field: what errors call it. captions: read them too; then labels may be
    missing, and are used where every split has them. Raises UserError, naming what is missing or wrong.
    """
    parts = open_parts(source, config.max_pixels, columns_read(config.columns, captions), field)
    train = parts.get("train")
    if train is None:
        raise UserError(f"{field}: has {', '.join(parts)} but no train")
    without = any(part.classes == UNLABELLED for part in parts.values())
    classes = UNLABELLED if without else train.classes or _numbers(train)
    pixels = _check_pixels(train)
    mode = _mode(train)
    channels = 3 if mode == "RGB" else 1
    if pixels is not None and pixels.shape[1] != channels:
        field, have = train.field, f"have {pixels.shape[1]} channels"
        raise UserError(f"{field}.pixels: {have}, and {field}.image(0) is {mode}: make them alike")
    mean, std = IMAGENET if channels == 3 else _HALF
    side = config.image_size or (pixels.shape[2] if pixels is not None else _side(train.source))
    splits = {name: numbered(part, classes, mode) for name, part in parts.items()}
    sizes, notes = _sizes(train.source), dict.fromkeys(note for part in parts.values() for note in part.notes)
    data = LabelledSplits(splits, classes, channels, side, mean, std, sizes, notes=tuple(notes), name=train.name)
    return with_val(data, config.val_fraction, _keys(train.source))


def open_parts(source: Any, max_pixels: int, columns: Mapping[str, str], field: str = "source") -> dict[str, Labelled]:
    """Open labelled images in any form, by split; those that say no split are train.

    columns: `data.columns`. field: what errors call the source. Raises UserError.
    """
    if isinstance(source, Mapping) and any(str(name).lower() in SPLITS for name in source):
        parts: dict[str, Labelled] = {}
        for key, part in source.items():
            split = SPLITS.get(str(key).lower())
            if split is None or split in parts:
                twice = f"is a second {split} split" if split else f"is no split{nearest(str(key), sorted(SPLITS))}"
                raise UserError(f"{field}: {key} {twice}")
            parts[split] = open_labelled(part, f"{field}[{key!r}]", max_pixels, columns)
        return parts
    listing = open_listing(source, field, columns)
    if listing is None:
        return {"train": open_labelled(source, field, max_pixels, columns)}
    return _by_split(*listing, max_pixels, field)


def numbered(part: Labelled, classes: Sequence[str], mode: str) -> Subset:
    """Return all of a part, its labels numbered as in `classes`, its images in a mode (L, RGB) if it can choose.

    Raises UserError for a class that is not among them.
    """
    subset, source = replace(all_of(part.source), weights=part.weights, captions=part.captions), part.source
    if isinstance(source, (ArraySource, DatasetSource, FileSource)):
        source = replace(source, mode=mode)
    elif type(source) is MemorySource:
        source = array_source(source.pixels, source.labels, mode)
    if tuple(classes) == UNLABELLED:
        return replace(subset, source=source, labels=np.zeros_like(subset.labels))
    number_of = {name: number for number, name in enumerate(classes)}
    if part.classes is None:
        largest = int(subset.labels.max())
        if largest >= len(classes):
            raise UserError(f"{part.field}: has class {largest}, and there are {len(classes)} classes, numbered from 0")
        return replace(subset, source=source)
    used = sorted({part.classes[number] for number in np.unique(subset.labels).tolist()})
    unknown = [name for name in used if name not in number_of]
    if unknown:
        known = ", ".join(classes[:5]) + (" …" if classes[5:] else "")
        raise UserError(f"{part.field}: class {unknown[0]} is not one of the {len(classes)} classes ({known})")
    numbers = np.asarray([number_of.get(name, -1) for name in part.classes], np.int64)
    return replace(subset, source=source, labels=numbers[subset.labels])


def _by_split(listing: Listing, name: str, max_pixels: int, field: str) -> dict[str, Labelled]:
    """Return the parts of a listing by the split of each file, if it says it. Raises UserError."""
    if listing.splits is None:
        return {"train": labelled_files(listing, name, field, max_pixels)}
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(listing.splits):
        split = SPLITS.get(text.lower())
        if split is None:
            said = f"{text or 'an empty cell'} is no split{nearest(text, sorted(SPLITS))}"
            raise UserError(f"{listing.rows.at(row, 'split')}: {said}")
        rows.setdefault(split, []).append(row)
    parts = {split: listing.take(of_split) for split, of_split in rows.items()}
    return {split: labelled_files(part, name, f"{field}, split {split}", max_pixels) for split, part in parts.items()}


def _sizes(source: Source) -> ImageSizes | None:
    """Return the sizes of a source's images, if it has files or has been looked at."""
    if isinstance(source, DatasetSource):
        return sizes_of(source.sizes)
    return measure(source.paths) if isinstance(source, FileSource) else None


def _keys(source: Source) -> Keys:
    """Return a key for each image, which decides whether it is held out as val.

    Of its file's name and folder, so that the list may change; without files of its index, so that images may be added
    at the end.
    """
    paths: Sequence[Any] | None = getattr(source, "paths", None)
    if paths is None:
        return keys(0, Purpose.SPLIT, np.arange(len(source), dtype=np.int64))
    return name_keys(map(_last_parts, paths.names if isinstance(paths, FilePaths) else paths))


def _last_parts(path: Any) -> str:
    """Return the name of a file and that of its folder."""
    parts = path.rsplit("/", 2) if isinstance(path, str) and os.sep == "/" else []
    return "/".join(parts[1:] if len(parts) == 3 and parts[0] else Path(path).parts[-2:])


def _side(source: Source) -> int:
    """Return the side of a Dataset's images in pixels if those looked at are equal squares, else 224."""
    sizes = source.sizes if isinstance(source, DatasetSource) else ()
    sides = {side for header in sizes for side in (header.width, header.height)}
    return sides.pop() if len(sides) == 1 else 224


def _mode(part: Labelled) -> str:
    """Return L or RGB: that of a source which chooses it, else that of its first image. Raises UserError."""
    if isinstance(part.source, (ArraySource, DatasetSource, FileSource)):
        return part.source.mode
    image = read_image(part.source, 0)
    mode = getattr(image, "mode", None)
    if mode not in ("L", "RGB"):
        kind = mode if isinstance(mode, str) else type(image).__name__
        raise UserError(f"{part.field}.image: must return PIL images of mode RGB or L, not {kind}")
    return str(mode)


def _numbers(part: Labelled) -> tuple[str, ...]:
    """Return the numbers up to the largest label as class names. Raises UserError."""
    largest = int(np.max(part.source.labels))
    if largest >= len(part.source):
        raise UserError(
            f"{part.field}.labels: go up to {largest} for {len(part.source)} images: number the classes from 0 on, or "
            f"give {part.field}.classes"
        )
    return tuple(str(number) for number in range(largest + 1))


def _check_pixels(part: Labelled) -> Pixels | None:
    """Return the source's decoded pixels, if it has them. Raises UserError."""
    pixels, length = decoded(part.source), len(part.source)
    if pixels is None:
        return None
    shape, dtype = list(np.shape(pixels)), getattr(pixels, "dtype", type(pixels).__name__)
    if dtype != np.uint8 or len(shape) != 4 or shape[0] != length or shape[1] not in (1, 3) or shape[2] != shape[3]:
        raise UserError(f"{part.field}.pixels: must be uint8 [{length}, 1 or 3, side, side], not {dtype} {shape}")
    return pixels
