"""Decode one part of an image for training: no more pixels than its size there needs, resized once, as uint8.

Within rounding it is what Pillow makes of the decoded image by `crop` and `resize`, bicubic, which evaluation uses. The
choice of libraries was measured (docs/log.md): torch resizes uint8 five times as fast as Pillow; a JPEG whose part is
to become much smaller is decoded at a fraction of its size, which Pillow does; others torchvision decodes a little
faster, to the same bit.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor
from torch.nn import functional as F

from vit_dist.data.sources.decode import EncodedImage, decoding, load, open_header, orientation, plain_image, silent

# JPEGs are decoded at a half, a quarter or an eighth of their size if this many times the wanted side is left.
_LEFT = 2
# Of a random crop, width / height; and their logarithms in float32, as torchvision has them.
_RATIOS = (3 / 4, 4 / 3)
_LOG_RATIOS = torch.log(torch.tensor(_RATIOS)).tolist()
_READ = {"L": "GRAY", "RGB": "RGB"}  # Pillow's modes → torchvision's


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Image.Image) -> Image.Image:
        """Return this part of an image; the image itself if that is all of it."""
        if (self.width, self.height) == image.size:
            return image
        return image.crop((self.left, self.top, self.left + self.width, self.top + self.height))


class _Turn(NamedTuple):
    """What makes a stored image upright: mirrored left to right, flipped top to bottom, and then transposed."""

    mirror: bool
    flip: bool
    transpose: bool

    def stored(self, box: Box, width: int, height: int) -> Box:
        """Return where a part of the upright image is in the stored one, of this width and height."""
        if self.transpose:
            box = Box(box.left, box.top, box.width, box.height)
        left = width - box.left - box.width if self.mirror else box.left
        top = height - box.top - box.height if self.flip else box.top
        return Box(top, left, box.height, box.width)

    def upright(self, pixels: Tensor) -> Tensor:
        """Turn a stored square, [channels, side, side]."""
        if self.mirror or self.flip:
            pixels = pixels.flip([2] * self.mirror + [1] * self.flip)
        return pixels.transpose(1, 2) if self.transpose else pixels


def random_box(crop_min: float, width: int, height: int) -> Box:
    """Draw the part of an image that becomes a random resized crop: the one that torchvision draws, in less time.

    crop_min: its least share of the area; its sides are 3:4 to 4:3.
    """
    area = height * width
    for _ in range(10):
        target = area * torch.empty(1).uniform_(crop_min, 1.0).item()
        ratio = torch.empty(1).uniform_(*_LOG_RATIOS).exp_().item()
        wide, tall = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(torch.randint(height - tall + 1, (1,)))
            return Box(top, int(torch.randint(width - wide + 1, (1,))), tall, wide)
    wide, tall = width, height
    if width / height < _RATIOS[0]:
        tall = round(width / _RATIOS[0])
    elif width / height > _RATIOS[1]:
        wide = round(height * _RATIOS[1])
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


# By EXIF orientation.
_TURNS = {
    1: _Turn(False, False, False),
    2: _Turn(True, False, False),
    3: _Turn(True, True, False),
    4: _Turn(False, True, False),
    5: _Turn(False, False, True),
    6: _Turn(False, True, True),
    7: _Turn(True, True, True),
    8: _Turn(True, False, True),
}


class OpenedCrop(NamedTuple):
    """An image whose header was read, and the part of it that is wanted.

    size: its width and height, upright. box: in the stored image; None where the header does not say enough to choose
    it. scale: it is decoded at 1 / scale of its size.
    """

    image: ImageFile.ImageFile
    size: tuple[int, int] = (0, 0)
    turn: _Turn = _TURNS[1]
    box: Box | None = None
    scale: int = 1


def open_crop(encoded: EncodedImage, choose: Callable[[int, int], Box], side: int) -> OpenedCrop:
    """Read the header of an image and choose the part that is wanted, if the header says enough.

    choose: called at most once with the upright image's width and height, returns the part. side: what it is to be
    resized to. Raises ImageError that names the image.
    """
    with decoding(encoded.name, encoded.max_pixels):
        image = open_header(encoded)
        if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB") or image.decoderconfig:
            return OpenedCrop(image)  # it is turned as its pixels say, or is of another mode, or of half its size
        turn, (width, height) = _TURNS[orientation(image)], image.size
        size = (height, width) if turn.transpose else (width, height)
        box = turn.stored(choose(*size), width, height)
        least = min(box.height, box.width)
        scale = next(scale for scale in (8, 4, 2, 1) if scale == 1 or least >= _LEFT * side * scale)
        return OpenedCrop(image, size, turn, box, scale)


def decode_crop(
    encoded: EncodedImage, opened: OpenedCrop, choose: Callable[[int, int], Box], side: int, *, alone: bool
) -> Tensor:
    """Return a part of an image, upright, resized to a square: uint8 [channels, side, side].

    opened: what `open_crop` returned for it. choose: as there, called if that has no box. alone: whether no other
    thread of this process writes to the standard error meanwhile. Raises ImageError that names the image.
    """
    with decoding(encoded.name, encoded.max_pixels), opened.image as image:
        if opened.box is not None:
            pixels = opened.turn.upright(_jpeg_crop(encoded, image, opened.box, opened.scale, side, alone))
        else:
            load(image)
            plain = plain_image(image, encoded.name, encoded.mode)
            pixels = resized_part(plain, choose(*plain.size), side)
    return pixels.expand(3, -1, -1) if encoded.mode == "RGB" else pixels


def resized_part(image: Image.Image, box: Box, side: int) -> Tensor:
    """Return a part of a decoded image, resized to a square: uint8 [channels, side, side]."""
    return _resized(_pixels(box.of(image)), side)


def _jpeg_crop(
    encoded: EncodedImage, image: ImageFile.ImageFile, box: Box, scale: int, side: int, alone: bool
) -> Tensor:
    """Return a part of a grey or coloured JPEG, as it is stored, resized: uint8 [channels or 1, side, side]."""
    grey = encoded.mode == "L" and image.mode != "L"
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
        load(image)
        return _pixels(_reduced(image, box, scale, side, grey))
    whole = _by_torchvision(encoded.content, image) if alone and image.format == "JPEG" and not grey else None
    if whole is not None:
        return _resized(whole[:, box.top : box.top + box.height, box.left : box.left + box.width], side)
    load(image)
    return _resized(_pixels(box.of(image).convert("L") if grey else box.of(image)), side)


def _reduced(image: Image.Image, box: Box, scale: int, side: int, grey: bool) -> Image.Image:
    """Return a part of an image that was decoded at 1 / scale of its size, resized.

    box: in pixels of its own size. grey: whether to make it grey.
    """
    top, left, bottom, right = (
        edge / scale for edge in (box.top, box.left, box.top + box.height, box.left + box.width)
    )
    # Whole pixels, without those beyond that Pillow would mix into the edges; the rest of the box is between pixels.
    outer = Box(int(top), int(left), math.ceil(bottom) - int(top), math.ceil(right) - int(left))
    inner = (left - outer.left, top - outer.top, right - outer.left, bottom - outer.top)
    part = outer.of(image).convert("L") if grey else outer.of(image)
    return part.resize((side, side), Image.Resampling.BICUBIC, inner)


def _resized(part: Tensor, side: int) -> Tensor:
    """Resize uint8 [channels, height, width] to [channels, side, side], bicubic, as Pillow does within rounding."""
    part = part[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(part, (side, side), mode="bicubic", antialias=True)[0]


def _pixels(image: Image.Image) -> Tensor:
    """Return a copy of an image's pixels, uint8 [channels, height, width], in memory [height, width, channels]."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)  # which may be written to
    return pixels.view(image.height, image.width, len(image.getbands())).permute(2, 0, 1)


def _by_torchvision(content: bytes, image: Image.Image) -> Tensor | None:
    """Return the pixels of a JPEG whose header was read, uint8 [channels, height, width]; None: left to Pillow."""
    if not _torchvision_agrees():
        return None
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        with silent():  # libjpeg says by itself that data are damaged
            pixels: Tensor = decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), ImageReadMode[_READ[image.mode]])
    except RuntimeError:  # damaged: whether that can be read is Pillow's to say
        return None
    return pixels if pixels.shape[1:] == (image.height, image.width) else None


@lru_cache(maxsize=1)
def _torchvision_agrees() -> bool:
    """Return whether torchvision decodes JPEGs, to the same bit as Pillow: both may be built with any libjpeg."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((61, 45), Image.Resampling.BICUBIC)
    for settings in ({}, {"progressive": True, "subsampling": 0}, {"quality": 20}):
        file = io.BytesIO()
        image.save(file, "JPEG", **settings)
        try:
            from torchvision.io import ImageReadMode, decode_jpeg

            ours = decode_jpeg(torch.frombuffer(file.getbuffer(), dtype=torch.uint8), ImageReadMode.RGB)
        except (ImportError, AttributeError, RuntimeError):
            return False
        with Image.open(file) as decoded:
            if not np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(decoded)):
                return False
    return True
