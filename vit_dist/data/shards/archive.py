"""Tar files in WebDataset's layout: written with the same bytes everywhere, and walked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vit_dist.data.sources.names import EXTENSIONS, HEIF
from vit_dist.errors import UserError, one_line, visible
from vit_dist.files import WRITING, fsync

# What a sample's JSON may hold its class under.
_LABELS = ("label", "class", "cls", "target", "category", "class_name", "label_name")
_CAPTIONS = ("caption", "captions", "text")
# WebDataset's: the key is all up to the first dot of the last part of the name, the ending what follows.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
BLOCK = tarfile.BLOCKSIZE
# HEIC wherever the index is made: what it holds depends on no package, which reading an image names.
_IMAGES = EXTENSIONS | HEIF


class Entry(NamedTuple):
    """An image to be written: the file it is in, its length in bytes, its key and ending in the tar, its class, if any.

    captions: all that it has.
    """

    path: str
    size: int
    key: str
    ending: str
    label: int | None
    captions: tuple[str, ...] = ()

    def texts(self) -> dict[str, bytes]:
        """Return the files beside it, by ending: its class, and its captions, a line each."""
        texts = {} if self.label is None else {"cls": str(self.label)}
        if self.captions:
            texts["txt"] = "\n".join(" ".join(caption.split()) for caption in self.captions)
        return {ending: text.encode("utf-8", "replace") for ending, text in texts.items()}


@dataclass
class Written:
    """Describe a written shard: its bytes, their hash, and of each image where its bytes begin, and their CRC-32."""

    bytes: int = 0
    sha256: str = ""
    offset: list[int] = field(default_factory=list)
    crc32: list[int] = field(default_factory=list)


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.bytes = 0
        self.hash = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        self.bytes += len(content)
        return self.file.write(content)

    def tell(self) -> int:
        return self.bytes


def write_shard(path: Path, entries: Iterable[Entry]) -> Written:
    """Write a tar file of images with their classes and captions, which has its name once it is whole and on the disk.

    Raises UserError for a file that cannot be read, or has other bytes than it had; OSError if it cannot be written.
    """
    written = Written()
    hidden = path.with_name(f"{WRITING}{path.name}.{os.getpid()}")
    try:
        with hidden.open("wb") as file:
            hashing: Any = _Hashing(file)
            with tarfile.open(fileobj=hashing, mode="w", format=tarfile.GNU_FORMAT) as tar:
                for entry in entries:
                    content = _read(entry)
                    _add(tar, f"{entry.key}.{entry.ending}", content)
                    written.offset.append(tar.offset - _padded(entry.size))
                    written.crc32.append(zlib.crc32(content))
                    for ending, text in entry.texts().items():
                        _add(tar, f"{entry.key}.{ending}", text)
            written.bytes, written.sha256 = hashing.bytes, hashing.hash.hexdigest()
        fsync(hidden)
        hidden.replace(path)
        fsync(path.parent)
    finally:
        hidden.unlink(missing_ok=True)
    return written


def entry_bytes(entry: Entry) -> int:
    """Return how many bytes of a shard an image takes, with its class and its captions."""
    total, texts = _padded(entry.size), entry.texts()
    for ending in (entry.ending, *texts):
        total += _padded(len(texts.get(ending, b"")))
        name = len(f"{entry.key}.{ending}".encode("utf-8", "surrogateescape"))
        total += BLOCK if name <= tarfile.LENGTH_NAME else 2 * BLOCK + _padded(name + 1)
    return total


def room(shard_size: int) -> int:
    """Return how many bytes of entries fit into a shard, which has an end and is padded."""
    return shard_size // tarfile.RECORDSIZE * tarfile.RECORDSIZE - 2 * BLOCK


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _read(entry: Entry) -> bytes:
    try:
        with open(entry.path, "rb") as file:
            content = file.read(entry.size + 1)
    except OSError as error:
        raise UserError(f"{entry.path}: cannot be read: {error.strerror}: mend or remove the file") from None
    if len(content) != entry.size:
        raise UserError(f"{entry.path}: had {entry.size:,} bytes and has others now: begin again, in another folder")
    return content


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file; only its name and its bytes are the data's."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))


@dataclass
class Found:
    """A sample that was found in a tar file. label: a class number or a name; None if there is none. captions: all."""

    name: str
    offset: int
    size: int
    label: int | str | None = None
    captions: tuple[str, ...] = ()


def walk(file: BinaryIO, name: str) -> Iterator[Found]:
    """Yield the samples in an opened tar file: the images, each with the class in the .cls or .json of its key.

    Captions are the lines of the key's .txt, else what its .json has under caption, captions or text. name: of the tar
    file. Raises UserError if it is no tar file, or is compressed.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            key, found = "", _Sample()
            for member in tar:
                match = _NAME.fullmatch(member.name)
                if match is None or not member.isreg():
                    continue
                if match[1] != key:
                    yield from found.images()
                    key, found = match[1], _Sample()
                found.add(tar, member, match[2].lower())
            yield from found.images()
    except tarfile.TarError as error:
        reason = f"{one_line(error, 200)}; if it is compressed, unpack it to .tar: images are read from their place"
        raise UserError(f"{visible(name)}: is no tar file, or is damaged ({reason})") from None


class _Sample:
    """The files of one key."""

    def __init__(self) -> None:
        self.image: Found | None = None
        self.label: int | str | None = None
        self.captions: tuple[str, ...] = ()

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> None:
        if f".{ending.rpartition('.')[2]}" in _IMAGES:
            if self.image is None:
                self.image = Found(member.name, member.offset_data, member.size)
        elif ending in ("cls", "json", "txt") and member.size < 2**20:
            file = tar.extractfile(member)
            content = file.read() if file else b""
            if ending == "txt" or (ending == "json" and not self.captions):
                self.captions = _captions(content, ending) or self.captions
            if ending == "cls" or (ending == "json" and self.label is None):
                label = _label(content, ending)
                self.label = self.label if label is None else label

    def images(self) -> Iterator[Found]:
        if self.image is not None:
            self.image.label, self.image.captions = self.label, self.captions
            yield self.image


def _label(content: bytes, ending: str) -> int | str | None:
    text = content.decode("utf-8", "replace").strip()
    if ending == "cls":
        return _plain(text)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return _plain(values)
    return next((_plain(values[name]) for name in _LABELS if name in values), None)


def _captions(content: bytes, ending: str) -> tuple[str, ...]:
    """Return the captions in a file: a line each of a text, or what JSON has under a name of theirs; none if empty."""
    text = content.decode("utf-8", "replace")
    if ending == "txt":
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    found = next((values[name] for name in _CAPTIONS if name in values), ()) if isinstance(values, dict) else ()
    several = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    return tuple(caption for caption in several if isinstance(caption, str) and caption.strip())


def _plain(value: Any) -> int | str | None:
    """Return a class number or a name; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        return None
    return int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value) else value


def member_name(header: bytes) -> str:
    """Return the name in the header of a file in a tar, the block before its bytes; empty if it has none."""
    name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return f"{prefix.decode('utf-8', 'surrogateescape')}/{name}" if prefix else name


def tar_keys(names: Sequence[str], classes: Sequence[str]) -> list[tuple[str, str]]:
    """Return (key, ending) of each image in a tar, made of its class and the name of its file; no key occurs twice."""
    taken: dict[str, int] = {}
    keys = []
    for name, label in zip(names, classes, strict=True):
        stem, _, ending = os.path.basename(name).rpartition(".")
        folder = "/".join(part for part in label.split("/") if part not in ("", ".", ".."))
        key = f"{folder or 'class'}/{stem.replace('.', '_') or '_'}"
        while key in taken:
            taken[key] += 1
            key = f"{key}-{taken[key]}"
        taken[key] = 1
        keys.append((key, ending.lower()))
    return keys
