"""Image files: open regular files only, and decode them with Pillow within a limit of pixels."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vit_dist.errors import UserError, one_line, visible
from vit_dist.plan.keys import Ints, Keys

# Pillow logs what it raises as well; without a handler that would be printed.
logging.getLogger("PIL").addHandler(logging.NullHandler())

MAX_PIXELS = 100_000_000
# A fixed number, so that an image's pixels do not depend on how many are allowed.
_HALVED_ABOVE = 100_000_000
# Those that decode by themselves: EPS, for one, would start Ghostscript.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "JPEG2000", "PPM", "DIB", "ICO", "PCX", "QOI", "SGI"),
    "TGA",
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
_GREY = {"1", "L", "LA", "La", "I", "F"}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class FilePaths(Sequence[Path]):
    """Paths of many files, kept as text: a million objects take a gigabyte, and seconds to make."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | Sequence[Path]:
        """Return a path, or those of a slice."""
        names = self.names[index]
        return Path(names) if isinstance(names, str) else FilePaths(names)


def file_names(source: object, indices: Ints) -> list[str]:
    """Return the paths of these samples of a source of files, as text; none of a source without files."""
    paths: Sequence[Path] | None = getattr(source, "paths", None)
    if paths is None:
        return []
    names = paths.names if isinstance(paths, FilePaths) else paths
    return [str(names[index]) for index in indices.tolist()]


@dataclass(frozen=True)
class FileSource:
    """A source of image files, decoded when they are read.

    mode: Pillow's, RGB or L (grey). max_pixels: of the largest image that is decoded. keys: of each image, from its
    path in the data set, uint64 [length]: what decides whether it is held out as val; None where nothing is held out.
    """

    paths: Sequence[Path]
    labels: Ints
    mode: str = "RGB"
    max_pixels: int = MAX_PIXELS
    keys: Keys | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Return the decoded image, upright, in the source's mode. Raises UserError that names the file."""
        path = self.paths[index]
        try:
            with open_regular(path) as file, _pillow_limits(self.max_pixels):
                return self._decode(file, path)
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
        raise UserError(f"{visible(str(path))}: cannot be decoded ({reason}): mend or remove the file")

    def _decode(self, file: BinaryIO, path: Path) -> Image.Image:
        size = os.fstat(file.fileno()).st_size
        if size > 8 * self.max_pixels + 2**26:  # some formats are read whole; no pixel takes more than 8 bytes
            raise UserError(
                f"{visible(str(path))}: has {size:,} bytes, more than an image of data.max_pixels "
                f"({self.max_pixels:,}): remove it, or raise the limit"
            )
        with Image.open(file, formats=_known_formats()) as image:
            if image.format in ("JPEG", "MPO") and image.width * image.height > _HALVED_ABOVE:
                image.draft(None, (image.width // 2, image.height // 2))
            if image.width * image.height > self.max_pixels:
                raise UserError(
                    f"{visible(str(path))}: has {image.width:,} × {image.height:,} pixels, and data.max_pixels is "
                    f"{self.max_pixels:,}: make it smaller, or raise the limit"
                )
            with _silent_libtiff() if image.format == "TIFF" else contextlib.nullcontext():
                image.load()
            plain = upright(image, eight_bits(image, path))
            return plain if plain.mode == self.mode else plain.convert(self.mode)  # in its own mode, it would copy it


def read_header(path: Path) -> tuple[int, int, bool] | None:
    """Return an image's width and height in pixels, and whether it is grey, without decoding it; None if it has none.

    An image that is stored in colour and looks grey counts as one in colour.
    """
    try:
        with (
            open_regular(path) as file,
            _pillow_limits(MAX_PIXELS),
            Image.open(file, formats=_known_formats()) as image,
        ):
            return image.width, image.height, image.mode in _GREY or image.mode.startswith("I;16")
    except Exception:  # on damaged files, decoders raise nearly everything; reading the image says what is wrong
        return None


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read. Raises UserError for anything else, which might never answer, and OSError."""
    _check_regular(path, os.stat(path))  # before opening: to open a device may have effects
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    try:
        _check_regular(path, os.fstat(descriptor))
    except UserError:
        file.close()
        raise
    return file


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise UserError(f"{visible(str(path))}: is {kind}, not a file: remove it")


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
def _silent_libtiff() -> Iterator[None]:
    """Send away what libtiff writes on the standard error by itself; its errors are raised as well."""
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


def _known_formats() -> list[str]:
    """Return the formats to try, of those that this Pillow can decode."""
    Image.preinit()
    if "TGA" not in Image.OPEN:
        Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def upright(image: Image.Image, plain: Image.Image | None = None) -> Image.Image:
    """Turn an image as its EXIF orientation says; without one, or with one that cannot be read, return it as it is.

    plain: its pixels, if they are to be turned in its place.
    """
    image.load()  # a TIFF is turned by that, and says so from then on
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata may raise anything, and says nothing
        turn = None
    shown = image if plain is None else plain
    return shown if turn is None else shown.transpose(turn)


def eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """Scale an image of 16 bits to 8, where Pillow would clip it; return others as they are.

    Raises UserError for 32 bits.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(
            f"{visible(str(path))}: has values of 32 bits, whose range nobody knows: save it with 8 or 16 bits"
        )
    return image
