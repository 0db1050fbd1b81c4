"""A part of an image, decoded for training: what Pillow makes of the whole image, within rounding."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import v2

from tests.data.sources.damaged import KINDS, damaged, whole
from vit_dist.data.sources import crop
from vit_dist.data.sources.crop import Box, open_crop, random_box
from vit_dist.data.sources.decode import EncodedImage, ImageError, decode

SIDE = 32
BOX = Box(3, 5, 33, 29)


@lru_cache
def photo(number: int = 0, width: int = 640, height: int = 427) -> Image.Image:
    """Return one of the two photographs that come with scikit-learn."""
    return Image.fromarray(load_sample_images().images[number]).resize((width, height), Image.Resampling.BICUBIC)


def decode_crop(encoded: EncodedImage, choose: Callable[[int, int], Box], side: int, *, alone: bool) -> Tensor:
    return crop.decode_crop(encoded, open_crop(encoded, choose, side), choose, side, alone=alone)


def saved(image: Image.Image, format: str = "JPEG", **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **settings)
    return file.getvalue()


def by_pillow(encoded: EncodedImage, box: Box, side: int) -> np.ndarray:
    """Return what Pillow makes of it: int64 [side, side(, 3)]."""
    part = decode(encoded).crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return np.asarray(part.resize((side, side), Image.Resampling.BICUBIC), np.int64)


def differences(encoded: EncodedImage, box: Box, side: int, *, alone: bool = True) -> np.ndarray:
    """Return |what it is - what Pillow makes of it| for every value."""
    pixels = decode_crop(encoded, lambda width, height: box, side, alone=alone)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3 if encoded.mode == "RGB" else 1, side, side)
    expected = by_pillow(encoded, box, side)
    expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
    return np.abs(pixels.numpy().astype(np.int64) - expected)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_cropped_as_pillow_does(kind: str, mode: str, alone: bool) -> None:
    for side in (8, SIDE, 57):
        assert differences(EncodedImage(whole(kind), "a", mode), BOX, side, alone=alone).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [64, 24])
def test_a_part_of_an_upright_photo(orientation: int, kind: str, side: int) -> None:
    """Side 24: decoded at a fraction of its size."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    settings = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "MPO") else {}
    encoded = EncodedImage(saved(photo(1, 244, 192), kind, exif=exif, **settings), "a")
    asked = []

    def choose(width: int, height: int) -> Box:
        asked.append((width, height))
        return Box(16, 36, 148, 120)

    pixels = decode_crop(encoded, choose, side, alone=True)
    assert asked == [(192, 244) if orientation > 4 else (244, 192)]
    difference = np.abs(
        pixels.permute(1, 2, 0).numpy().astype(np.int64) - by_pillow(encoded, Box(16, 36, 148, 120), side)
    )
    assert difference.mean() < 1


@pytest.mark.parametrize(
    "settings", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}, {"keep_rgb": True}]
)
@pytest.mark.parametrize("colours", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg(colours: str, settings: dict[str, object]) -> None:
    content = saved(photo().convert(colours), **settings)
    for number in (0, 1):
        box = Box(20 * number, 31, 300, 280 + number)
        for mode, alone in (("RGB", True), ("RGB", False), ("L", True)):
            difference = differences(EncodedImage(content, "a", mode), box, 224, alone=alone)
            assert difference.max() <= 2
            assert difference.mean() < 0.05


@pytest.mark.parametrize(
    ("size", "side", "scale"),
    [((640, 427), 100, 2), ((640, 427), 50, 4), ((2000, 1500), 90, 8), ((4000, 3000), 224, 4)],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_large_photo_is_decoded_at_a_fraction_of_its_size(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], side: int, scale: int, mode: str, number: int
) -> None:
    sizes = []
    reduced = crop._reduced

    def noted(image: Image.Image, box: Box, scale: int, *rest: Any) -> Image.Image:
        sizes.append((image.size, scale))
        return reduced(image, box, scale, *rest)

    monkeypatch.setattr(crop, "_reduced", noted)
    encoded = EncodedImage(saved(photo(number, *size), quality=90), "a", mode)
    box = Box(5, 3, size[1] - 7, size[0] - 6)
    assert differences(encoded, box, side).mean() <= 1
    assert sizes == [((-(-size[0] // scale), -(-size[1] // scale)), scale)]
    # Twice the side is left, and no less.
    assert min(box.height, box.width) // scale >= 2 * side
    assert scale == 8 or min(box.height, box.width) // (2 * scale) < 2 * side


def test_parts_at_the_edges_and_of_single_pixels() -> None:
    encoded = EncodedImage(saved(photo(0, 40, 30)), "a")
    for box in (Box(0, 0, 30, 40), Box(0, 0, 1, 1), Box(29, 39, 1, 1), Box(0, 39, 30, 1), Box(29, 0, 1, 40)):
        assert differences(encoded, box, SIDE).max() <= 2
        assert differences(encoded, box, 1).max() <= 5


def outcome(encoded: EncodedImage, *, alone: bool) -> Tensor | str:
    try:
        return decode_crop(encoded, lambda width, height: Box(0, 0, max(1, height // 2), width), SIDE, alone=alone)
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_images_are_refused_in_the_words_of_pillow(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The part that is asked for is above the damage in many of them, and whole."""
    content, refused = whole(kind), 0
    for number in range(40 if "jpg" in kind else 10):
        encoded = EncodedImage(damaged(content, random.Random(f"{kind} {number}")), "x.jpg")
        try:
            expected: Image.Image | str = decode(encoded)
        except ImageError as error:
            expected, refused = str(error), refused + 1
        alone, shared = outcome(encoded, alone=True), outcome(encoded, alone=False)
        if isinstance(expected, str):
            assert alone == shared == expected
        else:
            assert isinstance(alone, Tensor)
            assert isinstance(shared, Tensor)
            assert torch.equal(alone, shared)
    assert refused
    assert capfd.readouterr() == ("", "")


def test_the_number_of_threads_changes_nothing() -> None:
    encoded = EncodedImage(saved(photo()), "a")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(decode_crop(encoded, lambda width, height: Box(7, 9, 400, 500), 224, alone=True))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("crop_min", [0.08, 0.35, 1.0])
def test_a_random_part_is_the_one_that_torchvision_draws(crop_min: float) -> None:
    theirs = v2.RandomResizedCrop(8, (crop_min, 1.0))
    for seed, (width, height) in enumerate([(500, 375), (375, 500), (1, 1), (7, 300), (300, 7), (4000, 3000)] * 50):
        torch.manual_seed(seed)
        expected = theirs.make_params([torch.empty(1, height, width, device="meta")])
        after = torch.rand(1)
        torch.manual_seed(seed)
        box = random_box(crop_min, width, height)
        assert box._asdict() == expected
        assert torch.equal(torch.rand(1), after)
