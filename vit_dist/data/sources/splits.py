"""Splits of a data set: train, val and test, and the keyed hold-out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vit_dist.data.sources.source import Source
from vit_dist.errors import UserError, visible
from vit_dist.plan.keys import Ints, Purpose, key
from vit_dist.plan.permutation import permute

# Names of folders and flags → the split they mean.
SPLITS = {"train": "train", "training": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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
        return f"{self.count:,} {self.kind} ({visible(self.example)})"


@dataclass(frozen=True)
class LabelledSplits:
    """The data of a run: splits by name, class names, channels, side in pixels, mean and std per channel.

    left_out: what is in its folder and not used. notes: lines for the user on how the folder was read.
    """

    splits: dict[str, Subset]
    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


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
