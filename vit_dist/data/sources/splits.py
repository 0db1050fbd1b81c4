"""Splits of a data set: train, val and test, and the keyed hold-out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vit_dist.data.sources.source import FileSource, MemorySource
from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints, Purpose, key
from vit_dist.plan.order import permute

SPLITS = {"train": "train", "training": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}


@dataclass(frozen=True)
class Subset:
    """A part of a source: the indices of its samples there, int64 [length]."""

    source: MemorySource | FileSource
    indices: Ints

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class LabelledSplits:
    """What a run reads: splits by name, the classes' names, channels, the sides of an image, mean and std."""

    splits: dict[str, Subset]
    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def all_of(source: MemorySource | FileSource) -> Subset:
    """All of a source, in its own order."""
    return Subset(source, np.arange(len(source), dtype=np.int64))


def with_val(data: LabelledSplits, fraction: float) -> LabelledSplits:
    """`data` with a val split: its own, or a keyed part of train that is the same for every seed."""
    if "val" in data.splits or fraction == 0:
        return data
    train = data.splits["train"]
    held_out = round(fraction * len(train))
    if not 0 < held_out < len(train):
        raise UserError(f"data.val_fraction: {fraction} of {len(train)} images leaves a split empty: set another, or 0")
    val, rest = keyed_split(train, held_out)
    return replace(data, splits={**data.splits, "train": rest, "val": val})


def keyed_split(subset: Subset, held_out: int) -> tuple[Subset, Subset]:
    """(held out, rest), by a keyed permutation that no seed changes."""
    order = subset.indices[permute(np.arange(len(subset), dtype=np.int64), len(subset), key(0, Purpose.SPLIT))]
    return Subset(subset.source, order[:held_out]), Subset(subset.source, order[held_out:])
