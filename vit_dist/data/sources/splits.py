"""Splits of a data set: train, val and test, and the keyed hold-out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vit_dist.data.sources.captions import Captions
from vit_dist.data.sources.source import Source
from vit_dist.errors import UserError, visible
from vit_dist.plan.keys import Ints, Keys, Purpose, key
from vit_dist.plan.keys import keys as keys_of
from vit_dist.plan.permutation import permute

# Names of folders and flags → the split they mean.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# The classes of images that have captions and no labels.
UNLABELLED = ("",)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Subset:
    """A part of a source: the indices of its samples there and their classes, int64 [length] each.

    weights: of the samples in training's loss, float32 [length]; None: all 1. captions: of the source's images, by
    their index there; None: they have none, or none that are used.
    """

    source: Source
    indices: Ints
    labels: Ints
    weights: NDArray[np.float32] | None = None
    captions: Captions | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, places: Ints | slice) -> Subset:
        """Return the samples at places of this subset, in that order."""
        weights = None if self.weights is None else self.weights[places]
        return replace(self, indices=self.indices[places], labels=self.labels[places], weights=weights)

    def only(self, indices: Ints) -> Subset:
        """Return the samples of this subset that have these indices in the source, in the order of `indices`."""
        order = np.argsort(self.indices, kind="stable")
        return self.take(order[np.searchsorted(self.indices, indices, sorter=order)])


@dataclass(frozen=True)
class LeftOut:
    """Files or folders of one kind that are not used: what they are, how many, and one of them."""

    kind: str
    count: int
    example: str

    def __str__(self) -> str:
        """Return it in words, safe to show on one line."""
        return f"{self.kind}: {self.count:,} ({visible(self.example)})"


@dataclass(frozen=True)
class ImageSizes:
    """Sides in pixels of a sample of a data set's images, and the share of grey ones among them, 0 to 1.

    smallest and largest: of any side. median: of the shorter sides. sampled: images whose header could be read;
    unreadable: names of those looked at whose header could not. turned, transparent: how many of them are turned by
    their EXIF, and have an alpha channel or a transparent colour.
    """

    sampled: int
    smallest: int
    median: int
    largest: int
    grey: float
    unreadable: tuple[str, ...] = ()
    turned: int = 0
    transparent: int = 0


@dataclass(frozen=True)
class LabelledSplits:
    """The data of a run: splits by name, class names, channels, side in pixels, mean and std per channel.

    sizes: of the images, before they are resized. left_out: what is in their folder and not used. notes: lines for the
    user on how the folder was read. name: what a run on it is called after, if not after the config's data. without: a
    hash of the names that a list leaves out; empty: there are none.
    """

    splits: dict[str, Subset]
    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: ImageSizes | None = None
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    name: str = ""
    without: str = ""


def all_of(source: Source) -> Subset:
    """Return all of a source, in its own order."""
    return Subset(source, np.arange(len(source), dtype=np.int64), np.asarray(source.labels, np.int64))


def with_val(data: LabelledSplits, fraction: float, keys: Keys | None = None) -> LabelledSplits:
    """Return `data` with a val split: its own, or a part of train that is the same for every seed.

    keys: of train's images; by default those that its source has. Held out are the images of each class with the
    lowest keys (`stratified_split`); without keys, a keyed permutation of all. Raises UserError if a split would be
    empty.
    """
    if "val" in data.splits or fraction == 0:
        return data
    train = data.splits["train"]
    if keys is None:
        keys = getattr(train.source, "keys", None)
    if keys is not None:
        val, rest = stratified_split(train, fraction, keys)
    elif 0 < (held_out := round(fraction * len(train))) < len(train):
        val, rest = keyed_split(train, held_out)
    else:
        val, rest = train.take(slice(0)), train
    if not len(val) or not len(rest):
        if keys is not None:
            raise UserError(
                "data.val_fraction: no class has two images, so none can be held out: add images, or set "
                "data.val_fraction 0"
            )
        raise UserError(f"data.val_fraction: {fraction} of {len(train)} images leaves a split empty: set another, or 0")
    return replace(data, splits={**data.splits, "train": rest, "val": val})


def stratified_split(subset: Subset, fraction: float, keys: Keys) -> tuple[Subset, Subset]:
    """Split a subset into (held out, rest): of each class, `fraction` of its images, those with the lowest keys.

    At least one image of a class is held out and one kept; of a class of one image, none is held out. keys: uint64
    [length of the subset]. An image that is added or removed moves at most one other, of its own class.
    """
    order = np.lexsort((keys, subset.labels))
    counts = np.unique(subset.labels, return_counts=True)[1]
    quota = np.minimum(np.maximum(np.floor(fraction * counts + 0.5).astype(np.int64), 1), counts - 1)
    rank = np.arange(len(subset)) - np.repeat(np.cumsum(counts) - counts, counts)
    held_out = np.zeros(len(subset), bool)
    held_out[order] = rank < np.repeat(quota, counts)
    return subset.take(np.flatnonzero(held_out)), subset.take(np.flatnonzero(~held_out))


def name_keys(names: Iterable[str]) -> Keys:
    """Return a key for each name, for `stratified_split`: the same ones in any list."""
    hashes = (hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names)
    return keys_of(0, Purpose.SPLIT, np.frombuffer(b"".join(hashes), "<u8"))


def keyed_split(subset: Subset, held_out: int) -> tuple[Subset, Subset]:
    """Split a subset into (held out, rest), by a keyed permutation that no seed changes."""
    order = permute(np.arange(len(subset), dtype=np.int64), len(subset), key(0, Purpose.SPLIT))
    return subset.take(order[:held_out]), subset.take(order[held_out:])
