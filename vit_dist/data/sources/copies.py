"""Find files of val and test that are in train too, under any name."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from vit_dist.data.sources.image_files import file_names, sizes_of_files
from vit_dist.data.sources.source import decoded
from vit_dist.data.sources.splits import LabelledSplits, Subset
from vit_dist.errors import visible
from vit_dist.plan.keys import Ints, Keys

# Pairs of files of equal size that are compared in each split, and the bytes of each end that are read of them.
_MOST_COMPARED, _END = 300, 64 * 1024
_MOST_OF_A_SIZE = 3
# Images in shards that are looked up at once, and the bits of their checksums that say first whether one is worth it.
_AT_A_TIME, _BITS = 1 << 22, 24
_LOW = np.uint64((1 << _BITS) - 1)


def copies_in_train(data: LabelledSplits) -> Iterator[str]:
    """Yield a note for each of val and test with files whose size and bytes are those of a file of train.

    Only files whose size occurs in both are read, a bounded number of them, and of each its beginning and its end.
    Images that are held in memory are all compared, by a hash of their pixels; those in shards by the length and the
    checksum that the index has of each.
    """
    source = data.splits["train"].source
    if decoded(source) is not None:
        yield from _copies_in_memory(data)
        return
    if hasattr(source, "checksums"):
        yield from _copies_in_shards(data, source)
        return
    for split in ("val", "test"):
        if split not in data.splits:
            continue
        other = _sizes(data.splits[split])
        train = _sizes(data.splits["train"], np.fromiter(other, np.int64, len(other)))
        found = list(_copied(train, other))
        if found:
            most = "at least " if len(found) == _MOST_COMPARED else ""
            path, twin = map(visible, found[0])
            yield (
                f"{most}{len(found)} of the {len(data.splits[split]):,} images of {split} "
                f"{'is' if len(found) == 1 else 'are'} in train too ({path} is {twin}): remove one of each, since "
                "nothing new is measured on them"
            )


def _copies_in_memory(data: LabelledSplits) -> Iterator[str]:
    train = _digests(data.splits["train"])
    for split in ("val", "test"):
        if split not in data.splits:
            continue
        copied = np.flatnonzero(np.isin(_digests(data.splits[split]), train))
        if len(copied):
            yield (
                f"{len(copied):,} of the {len(data.splits[split]):,} images of {split} "
                f"{'is' if len(copied) == 1 else 'are'} in train too, pixel for pixel: remove one of each, since "
                "nothing new is measured on them"
            )


def _copies_in_shards(data: LabelledSplits, source: Any) -> Iterator[str]:
    """Yield the notes on images in shards, which all splits have in one source."""
    for split in ("val", "test"):
        if split not in data.splits:
            continue
        subset = data.splits[split]
        sums = source.checksums(subset.indices)
        known = np.unique(sums)
        twins = _of_sums(data.splits["train"], source, known)[np.searchsorted(known, sums)]
        copied = np.flatnonzero(twins >= 0)
        if len(copied):
            pair = int(subset.indices[copied[0]]), int(twins[copied[0]])
            name, twin = (visible(source.image_name(index)) for index in pair)
            yield (
                f"{len(copied):,} of the {len(subset):,} images of {split} {'is' if len(copied) == 1 else 'are'} in "
                f"train too, by length and checksum ({name} is {twin}): leave one of each out (vit-dist check writes "
                "the list), since nothing new is measured on them"
            )


def _of_sums(train: Subset, source: Any, known: Keys) -> Ints:
    """Return of each of some checksums, sorted, the index of an image of train that has it; -1 if none has."""
    found = np.full(len(known), -1, np.int64)
    seen = np.zeros(1 << _BITS, np.bool_)  # of nearly all of train, these bits say that it is not among them
    seen[known & _LOW] = True
    for begin in range(0, len(train), _AT_A_TIME):
        indices = train.indices[begin : begin + _AT_A_TIME]
        sums = source.checksums(indices)
        near = np.flatnonzero(seen[sums & _LOW])
        places = np.minimum(np.searchsorted(known, sums[near]), len(known) - 1)
        same = known[places] == sums[near]
        found[places[same]] = indices[near[same]]
    return found


def _digests(subset: Subset) -> Keys:
    """Return a hash of each image of a split, uint64 [length]; empty for images that are not held in memory."""
    pixels = decoded(subset.source)
    if pixels is None:
        return np.empty(0, np.uint64)
    hashes = (hashlib.blake2b(pixels[index].tobytes(), digest_size=8).digest() for index in subset.indices.tolist())
    return np.frombuffer(b"".join(hashes), "<u8")


def _copied(train: dict[int, list[str]], other: dict[int, list[str]]) -> Iterator[tuple[str, str]]:
    """Yield (file of a split, its copy in train)."""
    compared = 0
    for size in sorted(train.keys() & other.keys(), reverse=True):
        known: dict[str, list[str]] = defaultdict(list)
        by_name = len(train[size]) > _MOST_OF_A_SIZE  # files of one size throughout say nothing by that
        for twin in train[size]:
            known[os.path.basename(twin) if by_name else ""].append(twin)
        for path in other[size]:
            for twin in known.get(os.path.basename(path) if by_name else "", [])[:_MOST_OF_A_SIZE]:
                if compared == _MOST_COMPARED:
                    return
                compared += 1
                if _same(path, twin, size):
                    yield path, twin
                    break


def _same(path: str, other: str, size: int) -> bool:
    try:
        return all(_end(path, begin) == _end(other, begin) for begin in {0, max(0, size - _END)})
    except OSError:
        return False


def _end(path: str, begin: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(begin)
        return file.read(_END)


def _sizes(subset: Subset, others: Ints | None = None) -> dict[int, list[str]]:
    """Return size in bytes → the regular files of that size, not empty; none for images that are no files.

    others: sizes that are of use; None: all.
    """
    indices = np.sort(subset.indices)
    paths, sizes = file_names(subset.source, indices), sizes_of_files(subset.source, indices)
    of_use = sizes.regular & (sizes.bytes > 0)
    if others is not None:
        of_use &= np.isin(sizes.bytes, others)
    found: dict[int, list[str]] = defaultdict(list)
    for place in np.flatnonzero(of_use).tolist():
        found[int(sizes.bytes[place])].append(paths[place])
    return found
