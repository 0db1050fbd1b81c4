"""Splits of a data set: train, val and test, and the keyed hold-out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vit_dist.config.fields import DataConfig
from vit_dist.data.sources.source import Source, decoded
from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints, Purpose, key
from vit_dist.plan.permutation import permute

# Names of folders and flags → the split they mean.
SPLITS = {"train": "train", "training": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5,), (0.5,))


@dataclass(frozen=True)
class Subset:
    """A part of a source: the indices of its samples there and their classes, int64 [length] each."""

    source: Source
    indices: Ints
    labels: Ints

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, places: Ints | slice) -> Subset:
        """Return the samples at places of this subset, in that order."""
        return Subset(self.source, self.indices[places], self.labels[places])


@dataclass(frozen=True)
class LabelledSplits:
    """The data of a run: splits by name, class names, channels, side in pixels, mean and std per channel."""

    splits: dict[str, Subset]
    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def all_of(source: Source) -> Subset:
    """Return all of a source, in its own order."""
    return Subset(source, np.arange(len(source), dtype=np.int64), np.asarray(source.labels, np.int64))


def with_val(data: LabelledSplits, fraction: float) -> LabelledSplits:
    """Return `data` with a val split: its own, or a keyed part of train that is the same for every seed.

    Raises UserError if a split would be empty.
    """
    if "val" in data.splits or fraction == 0:
        return data
    train = data.splits["train"]
    held_out = round(fraction * len(train))
    if not 0 < held_out < len(train):
        raise UserError(f"data.val_fraction: {fraction} of {len(train)} images leaves a split empty: set another, or 0")
    val, rest = keyed_split(train, held_out)
    return replace(data, splits={**data.splits, "train": rest, "val": val})


def keyed_split(subset: Subset, held_out: int) -> tuple[Subset, Subset]:
    """Split a subset into (held out, rest), by a keyed permutation that no seed changes."""
    order = permute(np.arange(len(subset), dtype=np.int64), len(subset), key(0, Purpose.SPLIT))
    return subset.take(order[:held_out]), subset.take(order[held_out:])


def from_source(source: Any, config: DataConfig) -> LabelledSplits:
    """Make train, and a keyed val split by `data.val_fraction`, of one source.

    Class names are the source's `classes` if it has them, else the labels' numbers. Channels are those of its first
    image. The side is `data.image_size`, else that of `pixels`, else 224; mean and std are the config's, else
    ImageNet's for RGB and 0.5 for grey. Raises UserError, naming what is missing or wrong.
    """
    missing = [name for name in ("__len__", "labels", "image") if not hasattr(source, name)]
    if missing:
        raise UserError(
            f"source: {type(source).__name__} has no {', '.join(missing)}: it needs __len__(), labels (class numbers) "
            "and image(index), which returns a PIL image"
        )
    length, labels = len(source), np.asarray(source.labels)
    if not length or labels.shape != (length,) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise UserError(
            f"source.labels: must be one class number, 0 or more, for each of its {length} images, "
            f"not {labels.dtype} {list(labels.shape)}"
        )
    classes = _classes(source, int(labels.max()))
    pixels = decoded(source)
    if pixels is not None and (pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != length):
        raise UserError(
            f"source.pixels: must be uint8 [{length}, channels, height, width], not {pixels.dtype} {list(pixels.shape)}"
        )
    mode = getattr(source.image(0), "mode", None)
    if mode not in ("L", "RGB"):
        raise UserError(f"source.image: must return PIL images of mode RGB or L, not {mode or type(source.image(0))}")
    channels = 3 if mode == "RGB" else 1
    mean, std = IMAGENET if channels == 3 else _HALF
    side = config.image_size or (pixels.shape[2] if pixels is not None else 224)
    return with_val(LabelledSplits({"train": all_of(source)}, classes, channels, side, mean, std), config.val_fraction)


def _classes(source: Any, largest: int) -> tuple[str, ...]:
    """Return the names of a source's classes, up to its largest label at least. Raises UserError."""
    names: Sequence[str] | None = getattr(source, "classes", None)
    if names is None:
        return tuple(str(number) for number in range(largest + 1))
    if len(names) <= largest:
        raise UserError(f"source.classes: has {len(names)} names, and source.labels go up to {largest}")
    return tuple(map(str, names))
