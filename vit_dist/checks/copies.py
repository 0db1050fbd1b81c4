"""Which images are there twice: the same bytes, or alike; in one split, across splits, under two labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_dist.checks.images import Flag, Records
from vit_dist.checks.looks import Pairs, alike_pairs
from vit_dist.plan.keys import Ints

_NOBODY = np.iinfo(np.int64).max


class Twins(NamedTuple):
    """Images and, of each, another that is the same or alike: int64 [n] each, numbers in the data set."""

    images: Ints
    others: Ints

    def __len__(self) -> int:
        return len(self.images)


class Copies(NamedTuple):
    """Images that are there twice.

    leaks: images of val or test with a twin in train, or images of test with one in val. conflicts: images with a twin
    of another label. repeats: images with an earlier twin in their split, of the same label.
    """

    leaks: Twins
    conflicts: Twins
    repeats: Twins


@dataclass(frozen=True)
class AllCopies:
    """exact: of the same bytes. alike: of other bytes and the same look; an image is in one of the two of each kind.

    complete: whether all that are alike are among them. same: of each image of the data set, a number that copies of
    the same bytes share, int64; -1 for one that cannot be used.
    """

    exact: Copies
    alike: Copies
    complete: bool
    same: Ints


def find_copies(records: Records, splits: NDArray[np.uint8], labels: Ints) -> AllCopies:
    """Find copies among all images of a data set, numbered through its splits.

    splits: the number of each image's split: 0 train, 1 val, 2 test. Images that cannot be used are no copies.
    """
    usable = np.flatnonzero(records["problem"] == 0)
    content = records["content"][usable]
    order = np.lexsort((content[:, 1], content[:, 0]))
    new = np.append(True, (content[order][1:] != content[order][:-1]).any(1))[: len(order)]
    same = np.full(len(records), -1, np.int64)
    same[usable[order]] = np.cumsum(new) - 1
    exact = _twins(usable[order], np.cumsum(new) - 1, splits, labels, None)
    looks = usable[(records["flags"][usable] & Flag.HAS_LOOK) > 0]
    hashes, values = np.unique(records["look"][looks], return_inverse=True)
    pairs = alike_pairs(hashes)
    order = np.argsort(values, kind="stable")
    alike = _twins(looks[order], values[order], splits, labels, pairs)
    return AllCopies(
        exact,
        Copies(
            _without(alike.leaks, exact.leaks),
            _without(alike.conflicts, exact.conflicts),
            _without(_without(alike.repeats, exact.repeats), exact.conflicts),
        ),
        pairs.complete,
        same,
    )


def to_leave_out(copies: AllCopies, splits: NDArray[np.uint8]) -> Ints:
    """Return the fewest images without which no split has images of another, and no image has two labels.

    Of an image in several splits those of the last one stay (test, then val); of one with several labels none does,
    since nobody knows which label is right. Only exact copies count.
    """
    known = np.flatnonzero(copies.same >= 0)
    last = np.zeros(int(copies.same.max(initial=-1)) + 1, np.uint8)
    np.maximum.at(last, copies.same[known], splits[known])
    earlier = known[splits[known] < last[copies.same[known]]]
    return np.union1d(earlier, copies.exact.conflicts.images)


def _without(twins: Twins, known: Twins) -> Twins:
    kept = ~np.isin(twins.images, known.images)
    return Twins(twins.images[kept], twins.others[kept])


def _twins(images: Ints, values: Ints, splits: NDArray[np.uint8], labels: Ints, pairs: Pairs | None) -> Copies:
    """Find copies among images, given the value of each, int64 and ascending: copies have one value, or that of a pair.

    Within a value, only its first image of each split and those of its lowest and highest label are compared with
    others, so the work is that of the images and the pairs.
    """
    count = int(values[-1]) + 1 if len(values) else 0
    near = _Neighbours(count, pairs)
    of_split = [near.first(images, values, splits[images] == number) for number in range(3)]
    leaks = np.full(len(images), _NOBODY)
    split = splits[images]
    for number, seen_in in ((1, (0,)), (2, (1, 0))):
        for earlier in seen_in:
            found = of_split[earlier].any[values]
            chosen = (split == number) & (found != _NOBODY)
            leaks[chosen] = found[chosen]
    lowest, highest = near.extremes(images, values, labels)
    conflicts = np.full(len(images), _NOBODY)
    for other in (lowest[values], highest[values]):
        differ = labels[other] != labels[images]
        conflicts[differ] = other[differ]
    repeats = np.full(len(images), _NOBODY)
    for number in range(3):
        found = of_split[number].lowest[values]
        chosen = (split == number) & (found < images) & (conflicts == _NOBODY)
        repeats[chosen] = found[chosen]
    return Copies(*(_taken(images, others) for others in (leaks, conflicts, repeats)))


def _taken(images: Ints, others: Ints) -> Twins:
    chosen = np.flatnonzero(others != _NOBODY)
    chosen = chosen[np.argsort(images[chosen], kind="stable")]
    return Twins(images[chosen], others[chosen])


class _First(NamedTuple):
    """By value: `any`: the first image of the value, else of those near it; lowest: the first of all of them."""

    any: Ints
    lowest: Ints


class _Neighbours:
    """Values, and which of them are near each other."""

    def __init__(self, count: int, pairs: Pairs | None) -> None:
        self.count = count
        empty = np.empty(0, np.int64)
        first, second = (empty, empty) if pairs is None else (pairs.first, pairs.second)
        self.here, self.there = np.concatenate([first, second]), np.concatenate([second, first])

    def first(self, images: Ints, values: Ints, chosen: NDArray[np.bool_]) -> _First:
        """Return the first of some images of each value, and of each value with those near it."""
        own = np.full(self.count, _NOBODY)
        np.minimum.at(own, values[chosen], images[chosen])
        near = np.full(self.count, _NOBODY)
        np.minimum.at(near, self.here, own[self.there])
        return _First(np.where(own != _NOBODY, own, near), np.minimum(own, near))

    def extremes(self, images: Ints, values: Ints, labels: Ints) -> tuple[Ints, Ints]:
        """Return the images of the lowest and of the highest label of each value and those near it."""
        ends = []
        for sign in (1, -1):
            order = np.lexsort((images, sign * labels[images], values))
            starts = np.flatnonzero(np.append(True, values[order][1:] != values[order][:-1])[: len(order)])
            own = images[order][starts]
            rank = sign * labels[own]
            best = rank.copy()
            np.minimum.at(best, self.here, rank[self.there])
            image = own.copy()
            better = rank[self.there] == best[self.here]
            better &= rank[self.here] != best[self.here]
            image[self.here[better]] = own[self.there[better]]
            ends.append(image)
        return ends[0], ends[1]
