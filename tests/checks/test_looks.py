"""Which images look alike: the hash against changes of an image, and the search against comparing each with each."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tests.checks.planting import photo
from vit_dist.checks.looks import ALIKE_BITS, alike_pairs, differing_bits, look_of
from vit_dist.plan.keys import Keys

Change = Callable[[Image.Image], Image.Image]


def compared(hashes: Keys, most_bits: int) -> set[tuple[int, int]]:
    """Return the pairs that differ in so few bits, by comparing each with each, bit by bit."""
    bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    bits = bits.astype(np.int64)
    apart = bits @ (1 - bits).T
    first, second = np.nonzero(np.triu(apart + apart.T <= most_bits, 1))
    return set(zip(first.tolist(), second.tolist(), strict=True))


def found(hashes: Keys, most_bits: int) -> set[tuple[int, int]]:
    pairs = alike_pairs(hashes, most_bits)
    assert pairs.complete
    listed = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert len(listed) == len(set(listed))
    return set(listed)


def with_flips(hashes: Keys, count: int, generator: np.random.Generator) -> Keys:
    """Return hashes with so many bits flipped, each other ones."""
    flips = [generator.permutation(64)[:count] for _ in hashes]
    masks = np.asarray([sum(1 << int(bit) for bit in of_one) for of_one in flips], np.uint64)
    flipped: Keys = hashes ^ masks
    return flipped


@pytest.mark.parametrize("most_bits", [0, 1, 2, ALIKE_BITS, 6])
def test_every_pair_that_is_alike_is_found_and_no_other(most_bits: int) -> None:
    generator = np.random.default_rng(most_bits)
    base = generator.integers(0, 2**64, 400, dtype=np.uint64)
    near = [with_flips(base, count, generator) for count in range(1, 8)]
    hashes = np.unique(np.concatenate([base, *near]))
    pairs = found(hashes, most_bits)
    assert pairs == compared(hashes, most_bits)
    assert len(pairs) >= (300 if most_bits else 0)


def test_hashes_that_crowd_together_are_found_as_well() -> None:
    generator = np.random.default_rng(0)
    few_bits = np.uint64(0x00F0_0000_0F3F_000F)
    crowd = np.unique(generator.integers(0, 2**64, 3000, dtype=np.uint64) & few_bits)
    pairs = found(crowd, ALIKE_BITS)
    assert pairs == compared(crowd, ALIKE_BITS)
    assert len(pairs) > 20_000


def test_the_search_compares_far_fewer_than_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    compared_pairs = 0

    def counted(a: Keys, b: Keys) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        nonlocal compared_pairs
        compared_pairs += len(a)
        return differing_bits(a, b)

    monkeypatch.setattr("vit_dist.checks.looks.differing_bits", counted)
    hashes = np.unique(np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64))
    assert alike_pairs(hashes).complete
    assert compared_pairs < 3 * len(hashes)


def test_more_pairs_than_wanted_are_cut_and_said() -> None:
    crowd = np.arange(2000, dtype=np.uint64)
    pairs = alike_pairs(crowd, most=10_000)
    assert not pairs.complete
    assert 10_000 <= len(pairs.first) < 2000 * 1999 / 2


def test_no_hashes_and_one_have_no_pairs() -> None:
    assert found(np.empty(0, np.uint64), 4) == set()
    assert found(np.asarray([7], np.uint64), 4) == set()


def as_jpeg(image: Image.Image, quality: int = 40) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def differing(a: int | None, b: int | None) -> int:
    assert a is not None
    assert b is not None
    return int(differing_bits(np.asarray([a], np.uint64), np.asarray([b], np.uint64))[0])


@pytest.mark.parametrize(
    "change",
    [
        as_jpeg,
        lambda image: image.resize((75, 55)),
        lambda image: image.resize((300, 220), Image.Resampling.BICUBIC),
        lambda image: image.resize((224, 224), Image.Resampling.BICUBIC),
        lambda image: image.convert("L"),
        lambda image: ImageEnhance.Contrast(image).enhance(0.8),
        lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    ],
    ids=["jpeg", "half", "double", "stretched", "grey", "contrast", "darker"],
)
def test_an_image_made_anew_looks_alike(change: Change) -> None:
    apart = [differing(look_of(photo(seed)), look_of(change(photo(seed)))) for seed in range(20)]
    assert max(apart) <= ALIKE_BITS


def test_other_images_look_different() -> None:
    looks = np.asarray([look_of(photo(seed)) for seed in range(60)], np.uint64)
    assert compared(looks, 2 * ALIKE_BITS) == set()
    mirrored = look_of(photo(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert differing(look_of(photo(0)), mirrored) > 2 * ALIKE_BITS


def test_what_shows_too_little_has_no_look() -> None:
    assert look_of(Image.new("RGB", (200, 100), "red")) is None
    assert look_of(photo(0, (15, 100))) is None
    assert look_of(photo(0, (16, 16))) is not None


def test_the_hash_is_the_signs_of_low_frequencies() -> None:
    """A wave of one frequency alone stands out in its own bit."""
    wave = 128 + 100 * np.cos(np.pi * (2 * np.arange(32) + 1) * 3 / 64)
    image = Image.fromarray(np.tile(wave, (32, 1)).round().astype(np.uint8))
    look = look_of(image)
    assert look is not None
    bits = np.unpackbits(np.asarray([look], "<u8").view(np.uint8))
    assert bits[2] == 1  # row 0, column 3: the mean before them has no bit
    opposite = look_of(Image.fromarray(255 - np.asarray(image)))
    assert opposite is not None
    assert np.unpackbits(np.asarray([opposite], "<u8").view(np.uint8))[2] == 0
