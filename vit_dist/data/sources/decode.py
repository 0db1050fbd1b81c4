"""Decode an image from the bytes of its file, whatever source hands them out: with Pillow, within a limit of pixels."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from vit_dist.errors import UserError, one_line, visible

# Pillow logs what it raises as well; without a handler that would be printed.
logging.getLogger("PIL").addHandler(logging.NullHandler())

MAX_PIXELS = 100_000_000
# A fixed number, so that an image's pixels do not depend on how many are allowed.
_HALVED_ABOVE = 100_000_000
# Those that decode by themselves: EPS, for one, would start Ghostscript.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "JPEG2000", "PPM", "DIB", "ICO", "PCX", "QOI", "SGI"),
    *("TGA", "HEIF"),
)
# EXIF orientation → what makes it upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Modes of grey images.
GREY = {"1", "L", "LA", "La", "I", "F"}


class ImageError(UserError):
    """An image that cannot be read or decoded; the line names it."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image as the bytes of its file.

    name: for people: its path, or that of its archive and its name in it. mode: what it becomes, Pillow's RGB or L
    (grey). max_pixels: of the largest image that is decoded.
    """

    content: bytes
    name: str
    mode: str = "RGB"
    max_pixels: int = MAX_PIXELS


class Header(NamedTuple):
    """What an image says of itself: sides in pixels as they are stored, and what is done to it when it is decoded.

    grey: whether it is stored in grey. turned: by its EXIF. transparent: it has an alpha channel or such a colour.
    """

    width: int
    height: int
    grey: bool
    turned: bool = False
    transparent: bool = False


def image_header(image: Image.Image) -> Header:
    """Return what an image says of itself, without decoding a file that is not decoded yet."""
    grey = image.mode in GREY or image.mode.startswith("I;16")
    said = image.format != "PNG" or "exif" in image.info  # behind its pixels, Pillow decodes a PNG to look for it
    return Header(*image.size, grey, said and orientation(image) != 1, image.has_transparency_data)


def decode(encoded: EncodedImage) -> Image.Image:
    """Return the decoded image, upright, in its mode. Raises ImageError that names it."""
    with decoding(encoded.name, encoded.max_pixels), open_header(encoded) as image:
        load(image)
        return plain_image(image, encoded.name, encoded.mode)


def open_header(encoded: EncodedImage) -> ImageFile.ImageFile:
    """Open an image without decoding its pixels; a huge JPEG is set to half its size. Raises ImageError, and others."""
    if is_heif(encoded.content[:64]) and not heif_is_known():
        raise ImageError(f"{visible(encoded.name)}: is a HEIC image, which needs a package: pip install pillow-heif")
    image = Image.open(io.BytesIO(encoded.content), formats=known_formats())
    if image.format in ("JPEG", "MPO") and image.width * image.height > _HALVED_ABOVE:
        image.draft(None, (image.width // 2, image.height // 2))
    if image.width * image.height > encoded.max_pixels:
        raise ImageError(
            f"{visible(encoded.name)}: has {image.width:,} × {image.height:,} pixels, and data.max_pixels is "
            f"{encoded.max_pixels:,}: make it smaller, or raise the limit"
        )
    return image


def load(image: Image.Image) -> None:
    """Decode the pixels of an opened image, with nothing printed."""
    with silent() if image.format == "TIFF" else contextlib.nullcontext():  # libtiff raises it as well
        image.load()


def is_heif(head: bytes) -> bool:
    """Return whether a file that begins with these bytes, 32 or more, is a HEIC image, as phones write them."""
    brands = [head[start : start + 4] for start in (8, *range(16, min(len(head), int.from_bytes(head[:4], "big")), 4))]
    return head[4:8] == b"ftyp" and any(brand in (b"heic", b"heix", b"heim", b"heis") for brand in brands)


@lru_cache(maxsize=1)
def heif_is_known() -> bool:
    """Return whether HEIC images can be decoded, and let Pillow decode them if so."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.options.DECODE_THREADS = 1  # workers are there for that
    pillow_heif.register_heif_opener()
    return True


def check_bytes(size: int, name: str, max_pixels: int) -> None:
    """Refuse files that are too large to be read, given their size in bytes. Raises ImageError."""
    if size > 8 * max_pixels + 2**26:  # no pixel takes more than 8 bytes
        raise ImageError(
            f"{visible(name)}: has {size:,} bytes, more than an image of data.max_pixels ({max_pixels:,}): remove it, "
            "or raise the limit"
        )


@contextlib.contextmanager
def decoding(name: str, max_pixels: int) -> Iterator[None]:
    """Decode within a limit of pixels, and without warnings. Raises ImageError for whatever decoders raise."""
    with named_errors(name), _pillow_limits(max_pixels):
        yield


@contextlib.contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Turn whatever the system and decoders raise into an ImageError that names the image."""
    try:
        yield
        return
    except UserError:
        raise
    except UnidentifiedImageError:
        reason = "not an image in a known format"
    except Image.DecompressionBombError:
        reason = "more pixels than data.max_pixels allows"
    except OSError as error:
        reason = error.strerror or one_line(error, 200)
    except Exception as error:  # on damaged files, decoders raise nearly everything
        reason = one_line(error, 200)
    raise ImageError(f"{visible(name)}: cannot be decoded ({reason}): mend or remove the file")


@contextlib.contextmanager
def _pillow_limits(max_pixels: int) -> Iterator[None]:
    """Make Pillow refuse what could not be decoded within `max_pixels`, and keep its warnings to itself."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = 2 * max_pixels  # it refuses twice as many: those of a JPEG to be halved, four times ours
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Send away what this process writes on the standard error, as C libraries do by themselves."""
    try:
        before = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def known_formats() -> list[str]:
    """Return the formats to try, of those that this Pillow can decode."""
    Image.preinit()
    if "TGA" not in Image.OPEN:
        Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def plain_image(image: Image.Image, name: str, mode: str = "") -> Image.Image:
    """Return a loaded image upright, of 8 bits and opaque, in a mode (L, RGB); empty: its own.

    Raises ImageError for values of 32 bits.
    """
    plain = upright(image, opaque(eight_bits(image, name)))
    return plain if mode in ("", plain.mode) else plain.convert(mode)  # in its own mode, it would copy it


def opaque(image: Image.Image) -> Image.Image:
    """Lay an image on white where it is transparent, in mode L or RGB; return one without transparency as it is."""
    if not image.has_transparency_data:
        return image
    coloured = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    on_white = Image.new("RGB", image.size, "white")
    on_white.paste(coloured.convert("RGB"), mask=coloured.getchannel("A"))
    return on_white.convert("L") if image.mode in GREY else on_white


def upright(image: Image.Image, plain: Image.Image | None = None) -> Image.Image:
    """Turn an image as its EXIF orientation says; without one, or with one that cannot be read, return it as it is.

    plain: its pixels, if they are to be turned in its place.
    """
    image.load()  # a TIFF is turned by that, and says so from then on
    turn = _TURNS.get(orientation(image))
    shown = image if plain is None else plain
    return shown if turn is None else shown.transpose(turn)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 … 8; 1, upright, where none can be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in _TURNS else 1
    except Exception:  # damaged metadata may raise anything, and says nothing
        return 1


def eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale an image of 16 bits to 8, where Pillow would clip it; return others as they are.

    Raises ImageError for 32 bits.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ImageError(f"{visible(name)}: has values of 32 bits, whose range nobody knows: save it with 8 or 16 bits")
    return image
