"""The facts of a data set: images per class and split, sizes of a sample, what was left out, and what to know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np

from vit_dist.data.sources.decode import Header
from vit_dist.data.sources.image_files import read_header
from vit_dist.data.sources.source import decoded
from vit_dist.data.sources.splits import UNLABELLED, ImageSizes, LabelledSplits, LeftOut, Subset
from vit_dist.errors import visible
from vit_dist.plan.keys import Purpose, key
from vit_dist.plan.permutation import permute

_SAMPLED = 500
# As many classes are all named.
_FEW_CLASSES = 8
FEW_IMAGES, SMALL_VAL, TINY, HUGE, UNBALANCED = 10, 50, 32, 4000, 10


@dataclass(frozen=True)
class Survey:
    """The facts of a data set. counts: split → images of each class, in the order of `classes`.

    sizes: None where no file says (a source of the user's own). notes: lines for the user. captions: of each split, if
    they are read.
    """

    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    sizes: ImageSizes | None
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    captions: dict[str, int] = field(default_factory=dict)

    def total(self, split: str) -> int:
        """Return the images of a split, 0 if there is no such split."""
        return sum(self.counts.get(split, ()))

    def rows(self) -> dict[str, str]:
        """Return classes, captions, sizes and what was left out in words, by name, for an overview."""
        rows = {"classes": self._classes_text()} if self.classes != UNLABELLED else {}
        if self.captions:
            each = self.captions["train"] / max(1, self.total("train"))
            counts = " + ".join(f"{split} {count:,}" for split, count in self.captions.items())
            rows["captions"] = f"{counts}; {each:.3g} to an image of train"
        if self.sizes is not None:
            rows["sizes"] = _sizes_text(self.sizes)
        if self.left_out:
            rows["left out"] = "; ".join(map(str, self.left_out))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        counts = {split: dict(zip(self.classes, row, strict=True)) for split, row in self.counts.items()}
        return {
            "classes": list(self.classes),
            "counts": counts,
            "sizes": None if self.sizes is None else {**asdict(self.sizes), "unreadable": [*self.sizes.unreadable]},
            "left_out": [asdict(kind) for kind in self.left_out],
            "notes": list(self.notes),
        }

    def _classes_text(self) -> str:
        """Return the images of each class: all classes if they are few, else the smallest, median and largest."""
        train = self.counts["train"]
        splits = [split for split in ("train", "val", "test") if split in self.counts]
        if len(train) > _FEW_CLASSES and all(len(set(row)) == 1 for row in self.counts.values()):
            each = " + ".join(f"{self.counts[split][0]:,}" for split in splits)
            return f"{len(train)}, {' + '.join(splits)}: each {each}"
        order = sorted(range(len(train)), key=lambda number: (train[number], number))
        if len(order) <= _FEW_CLASSES:
            shown = {self.classes[number]: number for number in range(len(order))}
        else:
            named = {"smallest": order[0], "median": order[(len(order) - 1) // 2], "largest": order[-1]}
            shown = {f"{what} {self.classes[number]}": number for what, number in named.items()}
        texts = (
            f"{name} ({' + '.join(f'{self.counts[split][number]:,}' for split in splits)})"
            for name, number in shown.items()
        )
        return visible(f"{len(order)}, {' + '.join(splits)}: {', '.join(texts)}")


def survey(data: LabelledSplits) -> Survey:
    """Count the images of each class, and word what a person should know of them."""
    counts = {
        name: tuple(np.bincount(split.labels, minlength=len(data.classes)).tolist())
        for name, split in data.splits.items()
    }
    sizes = data.sizes or _sizes_in_memory(data.splits["train"])
    notes = [*data.notes, *_count_notes(data.classes, counts), *(_size_notes(data.sizes) if data.sizes else [])]
    captions = {
        name: int(split.captions.counts(split.indices).sum())
        for name, split in data.splits.items()
        if split.captions is not None
    }
    return Survey(data.classes, counts, sizes, data.left_out, tuple(notes), captions)


def measure(paths: Sequence[Path]) -> ImageSizes | None:
    """Measure a keyed sample of image files by their headers, at most 500; None if none can be read."""
    count = min(_SAMPLED, len(paths))
    places = permute(np.arange(count, dtype=np.int64), len(paths), key(0, Purpose.SURVEY))
    headers = {path: read_header(path) for path in (paths[place] for place in places.tolist())}
    sizes = sizes_of([header for header in headers.values() if header is not None])
    unreadable = sorted(f"{path.parent.name}/{path.name}" for path, header in headers.items() if header is None)
    return sizes and replace(sizes, unreadable=tuple(unreadable))


def sizes_of(headers: Sequence[Header]) -> ImageSizes | None:
    """Return the sizes of images given what each says of itself; None without images."""
    if not headers:
        return None
    shorter = [min(header.width, header.height) for header in headers]
    return ImageSizes(
        sampled=len(headers),
        smallest=min(shorter),
        median=median_low(shorter),
        largest=max(max(header.width, header.height) for header in headers),
        grey=sum(header.grey for header in headers) / len(headers),
        turned=sum(header.turned for header in headers),
        transparent=sum(header.transparent for header in headers),
    )


def _sizes_in_memory(train: Subset) -> ImageSizes | None:
    pixels = decoded(train.source)
    if pixels is None:
        return None
    sides = sorted(pixels.shape[2:])
    return ImageSizes(len(train), sides[0], sides[0], sides[1], float(pixels.shape[1] == 1))


def _sizes_text(sizes: ImageSizes) -> str:
    grey = "" if sizes.grey in (0, 1) else f", {sizes.grey:.0%} of them grey"
    grey = ", grey" if sizes.grey == 1 else grey
    if sizes.smallest == sizes.largest:
        return f"{sizes.smallest} × {sizes.smallest} pixels{grey}"
    return (
        f"sides of {sizes.smallest:,} to {sizes.largest:,} pixels, median {sizes.median:,} "
        f"(shorter side; {sizes.sampled} images{grey})"
    )


def _count_notes(classes: Sequence[str], counts: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield what a person should know of the numbers of images."""
    train = counts["train"]
    few = [number for number, count in enumerate(train) if count < FEW_IMAGES]
    if few:
        names = _few([f"{classes[number]} {train[number]}" for number in few])
        have = "class has" if len(few) == 1 else "classes have"
        yield f"{len(few)} {have} under {FEW_IMAGES} training images ({names}): add images, or expect mistakes there"
    smallest, largest = min(train), max(train)
    if smallest and largest >= UNBALANCED * smallest:
        names = f"{classes[train.index(largest)]} {largest:,}, {classes[train.index(smallest)]} {smallest:,}"
        ratio = f"{largest / smallest:.0f} to 1 ({visible(names)})"
        yield f"classes are unbalanced, {ratio}: read balanced accuracy and the figures per class, not accuracy alone"
    if "val" not in counts:
        return
    val = sum(counts["val"])
    if val < SMALL_VAL:
        points = f"val has {val} images, so one of them is {100 / val:.1f} points of accuracy"
        yield f"{points}: hold out more by a larger data.val_fraction, or add images to val"
    absent = [f"{classes[number]}, {train[number]} in train" for number, count in enumerate(counts["val"]) if not count]
    if absent:
        have = "class has" if len(absent) == 1 else "classes have"
        yield f"{len(absent)} {have} no image in val ({_few(absent, '; ')}): nothing is measured on them"


def _size_notes(sizes: ImageSizes) -> Iterator[str]:
    """Yield what a person should know of the sizes of image files, and of those that have none."""
    if sizes.unreadable:
        yield (
            f"{len(sizes.unreadable)} of {sizes.sampled + len(sizes.unreadable)} images looked at cannot be read "
            f"({_few(sizes.unreadable)}), and training ends at the first: mend or remove them now, leave "
            "them out (vit-dist check writes the list), or set data.on_bad_sample skip"
        )
    if sizes.smallest < TINY:
        yield f"some sides are of {sizes.smallest} pixels: below {TINY}, little is there to see, however it is enlarged"
    if sizes.largest > HUGE:
        yield (
            f"some sides are of {sizes.largest:,} pixels: decoding may take longer than training; "
            "smaller copies train as well"
        )
    if 0 < sizes.grey < 1:
        grey = f"{sizes.grey:.0%}" if sizes.grey >= 0.005 else "under 1%"
        yield f"{grey} of the images are grey among images in colour: a class that has more of them is told by that"
    if sizes.turned:
        yield f"{sizes.turned} of {sizes.sampled} images looked at are turned upright, as their EXIF says"
    if sizes.transparent:
        yield (
            f"{sizes.transparent} of {sizes.sampled} images looked at have transparency: what is transparent becomes "
            "white"
        )


def _few(names: Sequence[str], between: str = ", ") -> str:
    return visible(between.join(names[:3]) + (" …" if len(names) > 3 else ""))
