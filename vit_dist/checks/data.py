"""Check a data set: look at all of its images, and find what is broken and what a person should know of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_dist.checks.copies import AllCopies, find_copies
from vit_dist.checks.images import MODES, Records, look_at
from vit_dist.data.sources.leave_out import SampleNames
from vit_dist.data.sources.source import is_named, sample_name
from vit_dist.data.sources.splits import LabelledSplits, Subset
from vit_dist.plan.keys import Ints

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """An image: its split, the name that lists call it by, its name for people, whole and short, and its class."""

    split: str
    key: str
    name: str
    shown: str
    label: str


@dataclass(frozen=True)
class DataCheck:
    """What was seen of a data set, its images numbered through train, val and test.

    splits: the number of each image's split, in SPLITS. labels: class numbers. reasons: why some cannot be used.
    """

    data: LabelledSplits
    names: SampleNames
    records: Records
    splits: NDArray[np.uint8]
    labels: Ints
    reasons: dict[int, str]
    copies: AllCopies
    seconds: float

    def __len__(self) -> int:
        return len(self.records)

    def place(self, image: int) -> tuple[Subset, int]:
        """Return the split of an image, and its place there."""
        number = int(self.splits[image])
        return self.data.splits[SPLITS[number]], image - int(np.searchsorted(self.splits, number))

    def sample(self, image: int) -> Sample:
        """Return what an image is called."""
        subset, place = self.place(image)
        split = SPLITS[int(self.splits[image])]
        index = int(subset.indices[place])
        (key,) = self.names.of(subset.source, subset.indices[place : place + 1])
        label = self.data.classes[int(self.labels[image])]
        name = sample_name(subset.source, index, split)
        named = is_named(subset.source) and not hasattr(subset.source, "paths")
        return Sample(split, key, name, self.names.below_root(name) if named else key, label)

    @property
    def usable(self) -> Ints:
        """The images that can be used."""
        return np.flatnonzero(self.records["problem"] == 0)

    def modes(self) -> dict[str, int]:
        """Return how many images are stored in each of Pillow's modes, the most frequent first."""
        counts = np.bincount(self.records["mode"][self.usable], minlength=len(MODES) + 1)
        order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
        return {MODES[number - 1] if number else "other": int(counts[number]) for number in order}

    def sizes(self) -> dict[str, Any]:
        """Return the sides in pixels and the aspect ratios of the images that can be used; empty without any."""
        used = self.records[self.usable]
        if not len(used):
            return {}
        shorter, longer = np.minimum(used["width"], used["height"]), np.maximum(used["width"], used["height"])
        ratio = longer / np.maximum(shorter, 1)
        return {
            "shorter_side": {name: int(value) for name, value in _spread(shorter).items()},
            "longer_side": {name: int(value) for name, value in _spread(longer).items()},
            "aspect_ratio": {name: round(float(value), 3) for name, value in _spread(ratio).items()},
            "megapixels": round(float((shorter.astype(np.float64) * longer).mean()) / 1e6, 4),
            "bytes": int(used["bytes"].sum(dtype=np.int64)),
        }


def _spread(values: NDArray[Any]) -> dict[str, float]:
    return {"smallest": values.min(), "median": np.percentile(values, 50, method="lower"), "largest": values.max()}


def check_data(
    data: LabelledSplits,
    root: str,
    *,
    workers: int,
    timeout: float,
    counted: Callable[[Iterator[Any], int], Iterator[Any]] = lambda items, count: items,
) -> DataCheck:
    """Look at every image of every split, and find those that are there twice. Raises UserError.

    root: `data.root`. workers, timeout, counted: as in `look_at`.
    """
    start = time.monotonic()
    present = [(number, data.splits[name]) for number, name in enumerate(SPLITS) if name in data.splits]
    parts: list[Records] = []
    reasons: dict[int, str] = {}
    offset = 0
    for _, split in present:
        seen = look_at(split, workers, timeout, counted)
        parts.append(seen.records)
        reasons |= {offset + place: reason for place, reason in seen.reasons.items()}
        offset += len(split)
    records = np.concatenate(parts)
    splits = np.concatenate([np.full(len(split), number, np.uint8) for number, split in present])
    labels = np.concatenate([split.labels for _, split in present])
    copies = find_copies(records, splits, labels)
    names = SampleNames(data.splits, root)
    return DataCheck(data, names, records, splits, labels, reasons, copies, time.monotonic() - start)
