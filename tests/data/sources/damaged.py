"""Images of every format, whole and damaged."""

from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image

# Extension → format, and settings of it.
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "jpg": ("JPEG", {}),
    "progressive.jpg": ("JPEG", {"progressive": True, "subsampling": 0}),
    "png": ("PNG", {}),
    "palette.png": ("PNG", {"mode": "P"}),
    "grey16.png": ("PNG", {"mode": "I;16"}),
    "webp": ("WEBP", {}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "avif": ("AVIF", {}),
    "gif": ("GIF", {}),
    "tif": ("TIFF", {}),
    "deflate.tif": ("TIFF", {"compression": "tiff_deflate"}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "jpeg.tif": ("TIFF", {"compression": "jpeg"}),
    "cmyk.tif": ("TIFF", {"mode": "CMYK"}),
    "bmp": ("BMP", {}),
    "jp2": ("JPEG2000", {}),
    "ppm": ("PPM", {}),
    "pgm": ("PPM", {"mode": "L"}),
    "ico": ("ICO", {}),
    "pcx": ("PCX", {}),
    "sgi": ("SGI", {}),
    "tga": ("TGA", {}),
    "qoi": ("QOI", {}),
}


def whole(kind: str) -> bytes:
    """Return an image of 48 × 40 pixels, in part smooth, in part noise."""
    format, settings = KINDS[kind]
    settings = dict(settings)
    mode = str(settings.pop("mode", "RGB"))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    pixels[:20] = np.arange(48, dtype=np.uint8)[:, None] * 5
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, format, **settings)
    return file.getvalue()


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return a content cut short, with bits flipped, numbers replaced, or pieces repeated, removed or zeroed."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        place = int(len(data) * draw.random() ** draw.choice((1, 3)))  # more often in the head
        kind = draw.randrange(7)
        if not data:
            break
        place = min(place, len(data) - 1)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 2:
            data[place : place + 4] = draw.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\xff\xff")
            )
        elif kind == 3:
            data[place : place + 2] = draw.choice((b"\xff\xff", b"\0\0", b"\x80\x00", b"\x00\x80"))
        elif kind == 4:
            end = place + draw.randrange(1, 64)
            data[place:end] = data[place:end] * 2
        elif kind == 5:
            del data[place : place + draw.randrange(1, 64)]
        else:
            end = min(len(data), place + draw.randrange(1, 64))
            data[place:end] = bytes(end - place)
    return bytes(data)
