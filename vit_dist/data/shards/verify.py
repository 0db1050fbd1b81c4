"""Check the shards of a folder against their index: every byte, and which images are damaged."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from vit_dist.data.shards.archive import BLOCK, member_name
from vit_dist.data.shards.index import COLUMNS, INDEX, Shard, ShardIndex, column_hashes, file_hash
from vit_dist.data.shards.processes import in_processes
from vit_dist.data.shards.source import open_index, tar_files

_PIECE = 2**22
_MOST_NAMED = 20


def verify(folder: Path, processes: int, progress: Callable[[Iterable[Any], int], Iterable[Any]]) -> list[str]:
    """Return what is wrong with the shards of a folder, a line each; none if every byte is as the index says.

    progress: called with the checked shards and their number, yields the former. Raises UserError without an index.
    """
    index = open_index(folder)
    numbers = range(len(index.shards))
    problems: dict[int, list[str]] = {}
    hashes = column_hashes((folder / INDEX).read_bytes(), str(folder / INDEX))
    columns = [folder / COLUMNS / f"{name}.npy" for name, digest in hashes.items()
               if file_hash(folder / COLUMNS / f"{name}.npy") != digest]  # fmt: skip
    if columns:
        return [
            f"{path}: has other bytes than were written: bring it back; it says where the images are"
            for path in columns
        ]
    for number, lines in progress(in_processes(partial(_check, folder, index), numbers, processes), len(numbers)):
        problems[number] = lines
    known = {folder / shard.file for shard in index.shards}
    unknown = [f"{path}: is not in the index" for path in tar_files(folder) if path not in known]
    return [*(line for number in sorted(problems) for line in problems[number]), *unknown]


def _check(folder: Path, index: ShardIndex, number: int) -> list[str]:
    shard = index.shards[number]
    path = folder / shard.file
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        return [f"{path}: cannot be read: {error.strerror}"]
    if size == shard.bytes and digest.hexdigest() == shard.sha256:
        return []
    what = f"has {size:,} bytes, not {shard.bytes:,}" if size != shard.bytes else "has other bytes than were written"
    return [f"{path}: {what}", *_broken_images(path, index, number, shard)]


def _broken_images(path: Path, index: ShardIndex, number: int, shard: Shard) -> list[str]:
    """Name the images of a shard whose bytes are not those of the index."""
    first = int(index.starts[number])
    columns, lines = index.columns, []
    with path.open("rb") as file:
        for row in range(first, first + shard.samples):
            file.seek(int(columns["offset"][row]) - BLOCK)
            name = member_name(file.read(BLOCK)) or f"image {row}"
            if zlib.crc32(file.read(int(columns["size"][row]))) != int(columns["crc32"][row]):
                lines.append(f"{path}: {name} is damaged")
    if not lines:
        return [f"{path}: all its images are whole; what differs is between them"]
    more = len(lines) - _MOST_NAMED
    return lines if more <= 0 else [*lines[:_MOST_NAMED], f"{path}: {more:,} more images are damaged"]
