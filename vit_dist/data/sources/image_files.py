"""Image files: open regular files only, and read their bytes and headers."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, overload

from PIL import Image

from vit_dist.data.sources.decode import (
    MAX_PIXELS,
    EncodedImage,
    Header,
    ImageError,
    check_bytes,
    decode,
    decoding,
    heif_is_known,
    image_header,
    is_heif,
    known_formats,
    named_errors,
)
from vit_dist.data.sources.file_sizes import FileSizes, file_sizes
from vit_dist.errors import UserError, visible
from vit_dist.plan.keys import Ints, Keys

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class FilePaths(Sequence[Path]):
    """Paths of many files, kept as text: a million objects take a gigabyte, and seconds to make."""

    def __init__(self, names: Sequence[str], sizes: FileSizes | None = None) -> None:
        """sizes: of the files, if they have been looked up."""
        self.names = names
        self._sizes = sizes

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

    @property
    def sizes(self) -> FileSizes:
        """Return the size of each file as it was when this was first asked for."""
        self._sizes = self._sizes or file_sizes(self.names)
        return self._sizes


def file_names(source: object, indices: Ints) -> list[str]:
    """Return the paths of these samples of a source of files, as text; none of a source without files."""
    paths: Sequence[Path] | None = getattr(source, "paths", None)
    if paths is None:
        return []
    names = paths.names if isinstance(paths, FilePaths) else paths
    return [str(names[index]) for index in indices.tolist()]


def sizes_of_files(source: object, indices: Ints) -> FileSizes:
    """Return the sizes of these samples of a source of files; of a source without files, none."""
    paths = getattr(source, "paths", None)
    if isinstance(paths, FilePaths):
        return FileSizes(paths.sizes.bytes[indices], paths.sizes.regular[indices])
    return file_sizes(file_names(source, indices))


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

    def encoded(self, index: int) -> EncodedImage:
        """Return an image as the bytes of its file. Raises ImageError that names it."""
        name = self.paths.names[index] if isinstance(self.paths, FilePaths) else str(self.paths[index])
        with named_errors(name), open_regular(name) as file:
            check_bytes(os.fstat(file.fileno()).st_size, name, self.max_pixels)
            return EncodedImage(file.read(), name, self.mode, self.max_pixels)

    def image(self, index: int) -> Image.Image:
        """Return the decoded image, upright, in the source's mode. Raises ImageError that names the file."""
        return decode(self.encoded(index))


def read_header(path: Path) -> Header | None:
    """Return what an image says of itself, without decoding it; None if it says nothing."""
    try:
        with open_regular(path) as file:
            return header_of(file)
    except (OSError, UserError):
        return None


def header_of(file: BinaryIO) -> Header | None:
    """Return what the image in an opened file says of itself; None if it says nothing."""
    try:
        if is_heif(file.read(64)):
            heif_is_known()
        file.seek(0)
        with decoding("", MAX_PIXELS), Image.open(file, formats=known_formats()) as image:
            return image_header(image)
    except Exception:  # on damaged files, decoders raise nearly everything; reading the image says what is wrong
        return None


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file to read. Raises ImageError for anything else, which might never answer, and OSError."""
    _check_regular(path, os.stat(path))  # before opening: to open a device may have effects
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    try:
        _check_regular(path, os.fstat(descriptor))
    except UserError:
        file.close()
        raise
    return file


def _check_regular(path: str | Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise ImageError(f"{visible(str(path))}: is {kind}, not a file: remove it")
