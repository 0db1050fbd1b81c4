"""What an image looks like in 64 bits, and which of many images look alike, without comparing each with each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_dist.plan.keys import Ints, Keys

# Two images look alike if their hashes differ in so many bits or fewer.
ALIKE_BITS = 4
# Images with a shorter side below this, or whose grey values differ by less on average (standard deviation, of 255),
# show too little to be told apart.
SMALLEST_SIDE, FLATTEST = 16, 2.0
_SIDE, _FREQUENCIES = 32, 8
# Equal keys up to which all are compared with each other; more are searched by their other bits.
_FEW = 128
_PAIRS_AT_ONCE = 4_000_000


def look_of(image: Image.Image) -> int | None:
    """Return the perceptual hash of an image: 64 signs of its lowest frequencies; None if it shows too little.

    The image is made 32 × 32 grey pixels, of whose discrete cosine transform 8 × 8 low frequencies (without the mean,
    with the next horizontal one) are each above their median or not (Zauner, "Implementation and Benchmarking of
    Perceptual Image Hash Functions", 2010).
    """
    if min(image.size) < SMALLEST_SIDE:
        return None
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0).convert("L")
    grey = np.asarray(small, np.float64)
    if grey.std() < FLATTEST:
        return None
    waves = _cosines()
    low = waves @ grey @ waves.T
    values = np.append(low[:_FREQUENCIES, :_FREQUENCIES].ravel()[1:], low[0, _FREQUENCIES])
    return int(np.packbits(values > np.median(values)).view("<u8")[0])


@cache
def _cosines() -> NDArray[np.float64]:
    """Return the first 9 rows of the 32-point discrete cosine transform."""
    rows, places = np.arange(_FREQUENCIES + 1)[:, None], np.arange(_SIDE)[None]
    return np.cos(np.pi * (2 * places + 1) * rows / (2 * _SIDE))


def differing_bits(a: Keys, b: Keys) -> Ints:
    """Return in how many bits hashes differ, elementwise."""
    bits = a ^ b
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    with np.errstate(over="ignore"):
        return ((bits * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)


class Pairs(NamedTuple):
    """Pairs of hashes that are alike: first < second, int64 [pairs] each; complete: whether these are all."""

    first: Ints
    second: Ints
    complete: bool


def alike_pairs(hashes: Keys, most_bits: int = ALIKE_BITS, most: int = 2_000_000) -> Pairs:
    """Return the pairs of different hashes that differ in `most_bits` bits or fewer: all of them, up to `most`.

    hashes: all different, uint64 [n]. The bits are cut into most_bits + 2 bands. A pair that differs in `most_bits`
    bits agrees in two bands at least, so that it stands together where hashes are sorted by these two (multi-index
    hashing: Norouzi, Punjani and Fleet, 2012). Where many stand together they are sorted by their other bits in the
    same way, so time grows as n log n with the number of hashes, and with that of the pairs that are found.
    """
    found: list[Ints] = []
    count = 0
    complete = True
    for first, second in _search(hashes, np.arange(len(hashes), dtype=np.int64), list(range(64)), most_bits):
        near = (differing_bits(hashes[first], hashes[second]) <= most_bits) & (first != second)
        low, high = np.minimum(first[near], second[near]), np.maximum(first[near], second[near])
        found.append(np.unique(low * len(hashes) + high))
        count += len(found[-1])
        if count > _PAIRS_AT_ONCE or len(found) > 1000:
            found = [np.unique(np.concatenate(found))]
            count = len(found[0])
        if count >= most:
            found = [np.unique(np.concatenate(found))]
            count = len(found[0])
            if count >= most:
                complete = False
                break
    codes = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    return Pairs(codes // max(1, len(hashes)), codes % max(1, len(hashes)), complete)


def _search(hashes: Keys, places: Ints, bits: Sequence[int], most_bits: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield candidates (first, second) among the hashes at places, which agree in all bits but `bits`."""
    if len(bits) < 2 * (most_bits + 2):
        yield from _compared(places, np.zeros(len(places), np.uint64), len(places))
        return
    bands = [bits[number :: most_bits + 2] for number in range(most_bits + 2)]
    for pair in combinations(range(most_bits + 2), 2):
        taken = {bit for number in pair for bit in bands[number]}
        keys = hashes[places] & np.uint64(sum(1 << bit for bit in taken))
        order = np.argsort(keys, kind="stable")
        ordered, sorted_keys = places[order], keys[order]
        starts = np.flatnonzero(np.append(True, sorted_keys[1:] != sorted_keys[:-1]))
        lengths = np.diff(np.append(starts, len(ordered)))
        few = np.repeat(lengths <= _FEW, lengths)
        yield from _compared(ordered[few], sorted_keys[few], _FEW)
        left = [bit for bit in bits if bit not in taken]
        for start, length in zip(starts[lengths > _FEW].tolist(), lengths[lengths > _FEW].tolist(), strict=True):
            yield from _search(hashes, ordered[start : start + length], left, most_bits)


def _compared(ordered: Ints, keys: Keys, longest: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield the pairs with equal keys, of places whose keys are sorted. longest: run of equal keys."""
    active = np.arange(len(ordered), dtype=np.int64)
    for shift in range(1, longest):
        active = active[active + shift < len(ordered)]
        active = active[keys[active] == keys[active + shift]]
        if not len(active):
            return
        yield ordered[active], ordered[active + shift]
