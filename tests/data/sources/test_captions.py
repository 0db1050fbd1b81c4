"""Captions of images: packed, taken apart, hashed; and those of digits_captions, made from what is measured."""

from __future__ import annotations

import numpy as np
import pytest

from vit_dist.config.fields import DataConfig
from vit_dist.data.sources.captions import Captions
from vit_dist.data.sources.digits_captions import NAMES, measure, sentences
from vit_dist.data.sources.open import open_data

THREE = (("a cat", "une chatte, là"), ("",), ("\ud800 half", "b", "c"))


def test_captions_come_back_as_they_were() -> None:
    captions = Captions.of(THREE)
    assert tuple(captions) == THREE
    assert len(captions) == 3
    assert captions.counts(np.array([2, 0])).tolist() == [3, 2]
    assert tuple(captions.take(np.array([2, 0, 2]))) == (THREE[2], THREE[0], THREE[2])
    assert list(captions.of_images(np.array([1, 0]))) == ["", *THREE[0]]


@pytest.mark.parametrize(("text", "plain"), [("A cat,\n\ta dog~ 1", True), ("é", False), ("a & b", False),
                                              ("a\x1b[0m", False), ("\x7f", False)])  # fmt: skip
def test_plain_captions_are_known_by_their_bytes(text: str, plain: bool) -> None:
    assert Captions.of([("x",), ("y", text)]).is_plain() is plain


def test_the_digest_is_that_of_each_image_s_captions_in_order() -> None:
    everyone = np.arange(3)
    digest = Captions.of(THREE).digest(everyone)
    assert Captions.of([("other",), *THREE]).digest(everyone + 1) == digest
    changed = [
        [("a cat!", THREE[0][1]), *THREE[1:]],
        [THREE[0][::-1], *THREE[1:]],
        [THREE[0], ("", THREE[2][0]), THREE[2][1:]],
    ]
    assert len({digest, *(Captions.of(images).digest(everyone) for images in changed)}) == 4


def stroke(columns: range, lean: int) -> np.ndarray:
    """One image of a stroke that leans by so many columns over 8 rows, uint8 [1, 1, 8, 16]."""
    pixels = np.zeros((1, 1, 8, 16), np.uint8)
    for row in range(8):
        shift = round(lean * (3.5 - row) / 7)
        pixels[0, 0, row, columns.start + shift : columns.stop + shift] = 255
    return pixels


def test_slant_thickness_and_width_are_those_of_strokes_that_are_known() -> None:
    slant, thickness, width = measure(np.concatenate([stroke(range(6, 8), 0), stroke(range(6, 8), 7)]))
    assert slant[0] == 0
    assert abs(slant[1] - 45) < 1.5
    assert thickness[0] == 2 * 16 / 20
    assert width.tolist() == [2, 10]
    assert measure(stroke(range(6, 8), -7))[0][0] == -slant[1]
    assert measure(stroke(range(5, 9), 0))[1][0] == 2 * 32 / 24


def test_sentences_say_what_was_measured() -> None:
    assert sentences(7, 12.4, 1.18, 6) == (
        "a handwritten seven",
        "a medium seven, leaning right",
        "the digit seven in medium strokes, six pixels wide",
        "seven, 12 degrees right, stroke 1.2, six wide",
    )
    assert sentences(8, -3.2, 1.05, 5)[1:3] == (
        "a thin eight, leaning left",
        "the digit eight in thin strokes, five pixels wide",
    )
    assert sentences(1, 2.9, 1.4, 3)[1] == "a bold one, upright"


def test_digits_captions_are_the_digits_with_four_captions_each() -> None:
    data, plain = (open_data(DataConfig(name=name), captions=True) for name in ("digits_captions", "digits"))
    assert data.classes == NAMES
    assert open_data(DataConfig(name="digits_captions")).splits["train"].captions is None
    for name, split in data.splits.items():
        assert split.indices.tolist() == plain.splits[name].indices.tolist()
        assert split.captions is not None
        for place in range(0, len(split), 40):
            captions = split.captions[int(split.indices[place])]
            assert len(captions) == 4
            assert all(NAMES[split.labels[place]] in caption for caption in captions)
        assert max(map(len, split.captions.of_images(split.indices))) <= 62  # room in 64 bytes, start and end included
