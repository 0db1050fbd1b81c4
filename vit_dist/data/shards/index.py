"""The index of a folder of shards: where each image is, its class, and what its bytes must be. JSON and NumPy files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_dist.data.sources.captions import Captions
from vit_dist.data.sources.splits import ImageSizes
from vit_dist.errors import UserError, one_line
from vit_dist.files import fsync, publish, staged, write_durably
from vit_dist.plan.keys import Ints

INDEX, CLASSES, COLUMNS = "index.json", "classes.txt", "index"
FORMAT = 1
# Of each image: where its bytes begin in its shard; how many they are; its class; the key that decides whether it is
# held out as val; the CRC-32 of its bytes.
TYPES: Mapping[str, str] = {"offset": "<u8", "size": "<u8", "label": "<i8", "key": "<u8", "crc32": "<u4"}
# Its weight in training's loss, where the images have weights.
WEIGHT = "weight"
# Where all images have captions: the parts of `Captions`.
CAPTIONS = ("caption_text", "caption_end", "caption_first")
_MORE_TYPES = {WEIGHT: "<f4", **dict(zip(CAPTIONS, ("|u1", "<i8", "<i8"), strict=True))}


@dataclass(frozen=True)
class Shard:
    """A tar file. file: its name, with the folder below the index's that it is in, if any. bytes: its length."""

    file: str
    split: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """The shards of a data set, those of a split next to each other, and of each image a row in each column.

    columns: those of `TYPES`, and `WEIGHT` and `CAPTIONS` if there are any, read where they are used. sizes: of a
    sample of the images of train.
    plan: names what they were built from; empty for shards that others made.
    """

    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    columns: Mapping[str, NDArray[Any]]
    sizes: ImageSizes | None
    plan: str = ""

    def __len__(self) -> int:
        return len(self.columns["label"])

    @property
    def starts(self) -> Ints:
        """Return the row of the first image of each shard."""
        counts = np.fromiter((shard.samples for shard in self.shards), np.int64, len(self.shards))
        starts: Ints = np.cumsum(counts) - counts
        return starts

    @property
    def content(self) -> str:
        """Return a hash of all bytes and classes, wherever they are."""
        parts = [*self.classes, *(f"{shard.sha256} {shard.split}" for shard in self.shards)]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def captions(self) -> Captions | None:
        """Return the captions of the images by their rows; None if they have none."""
        text, ends, first = (self.columns.get(name) for name in CAPTIONS)
        return None if text is None or ends is None or first is None else Captions(text, ends, first)

    def rows(self, split: str) -> tuple[int, int]:
        """Return the first row of a split, and the one after its last."""
        counts = [(shard.samples, shard.split == split) for shard in self.shards]
        first = next(number for number, (_, mine) in enumerate(counts) if mine)
        begin = sum(count for count, _ in counts[:first])
        return begin, begin + sum(count for count, mine in counts if mine)


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write an index beside its shards; they are whole once index.json is there. Raises UserError."""
    hashes = {}
    with staged(folder / COLUMNS) as hidden:
        hidden.mkdir()
        for name, dtype in _types(index.columns).items():
            path = hidden / f"{name}.npy"
            np.save(path, np.asarray(index.columns[name], dtype))
            hashes[name] = file_hash(path)
        publish(hidden, folder / COLUMNS, replace=True)
    try:
        write_durably(folder / CLASSES, "".join(f"{name}\n" for name in index.classes))
        values = {
            "format": FORMAT,
            "plan": index.plan,
            "classes": index.classes,
            "sizes": None if index.sizes is None else asdict(index.sizes),
            "columns": hashes,
            "shards": [asdict(shard) for shard in index.shards],
        }
        write_durably(folder / INDEX, json.dumps(values, indent=0) + "\n")
        fsync(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or one_line(error)}") from None


def load_columns(folder: Path) -> dict[str, NDArray[Any]]:
    """Open the columns in a folder; they are read where they are used. Raises OSError, ValueError."""
    there = [path.stem for path in (folder / COLUMNS).glob("*.npy")]
    return {name: np.load(folder / COLUMNS / f"{name}.npy", mmap_mode="r") for name in _types(there)}


def _types(columns: Container[str]) -> dict[str, str]:
    """Return the types of the columns that an index has, of which these are there."""
    return {**TYPES, **{name: dtype for name, dtype in _MORE_TYPES.items() if name in columns}}


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def column_hashes(text: bytes, name: str) -> dict[str, str]:
    """Return the hash of the file of each column, in the text of an index.json. Raises UserError that names it."""
    try:
        hashes = json.loads(text)["columns"]
        return {column: str(hashes[column]) for column in _types(hashes)}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(name, one_line(error, 200)) from None


def make_index(text: bytes, columns: Mapping[str, NDArray[Any]], name: str) -> ShardIndex:
    """Return the index in the text of an index.json, with its columns. Raises UserError that names it, if damaged."""
    try:
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise UserError(f"{name}: has format {values['format']}, and this version reads {FORMAT}: update vit_dist")
        shards = tuple(Shard(**shard) for shard in values["shards"])
        given = values["sizes"]
        known = [field.name for field in fields(ImageSizes) if given and field.name in given]
        sizes = given and ImageSizes(**{name: given[name] for name in known} | {"unreadable": (*given["unreadable"],)})
        index = ShardIndex(tuple(map(str, values["classes"])), shards, columns, sizes, values["plan"])
        problem = _problem(index, _types(values["columns"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        problem = one_line(error, 200)
    if problem:
        raise _damaged(name, problem)
    return index


def _damaged(name: str, problem: str) -> UserError:
    return UserError(f"{name}: is damaged ({problem}): bring back the one that was written with the shards")


def _problem(index: ShardIndex, types: Mapping[str, str]) -> str:
    """Return what is wrong with an index, given the types of its columns; empty if nothing."""
    if missing := types.keys() ^ index.columns.keys():
        return f"its column {min(missing)} is {'gone' if min(missing) in types else 'of another index'}"
    total = sum(shard.samples for shard in index.shards)
    for column, dtype in types.items():
        values = index.columns[column]
        shape = values.shape if column in CAPTIONS else (total,)  # which are as many as there are captions
        if values.dtype != np.dtype(dtype) or values.shape != shape:
            return f"{column} is {values.dtype} {list(values.shape)} for {total} images"
    if (captions := index.captions) is not None and not captions.fits(total):
        return f"its captions are not those of {total} images"
    for shard in index.shards:
        parts = PurePosixPath(shard.file).parts
        if not parts or ".." in parts or shard.file.startswith("/") or "\\" in shard.file or shard.samples < 0:
            return f"{shard.file!r} is no file of a shard"
    return _order_problem([shard.split for shard in index.shards])


def _order_problem(splits: Sequence[str]) -> str:
    """Return that the shards of a split are not next to each other, or that there is no train."""
    changes = [split for number, split in enumerate(splits) if number == 0 or split != splits[number - 1]]
    if len(set(changes)) != len(changes) or not set(changes) <= {"train", "val", "test"} or "train" not in changes:
        return f"its splits are {', '.join(changes[:5]) or 'none'}"
    return ""
