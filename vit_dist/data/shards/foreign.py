"""Write the index of tar files that others made in WebDataset's layout, beside them."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.data.shards.archive import Found, walk
from vit_dist.data.shards.index import CAPTIONS, CLASSES, INDEX, Shard, ShardIndex, write_index
from vit_dist.data.shards.processes import in_processes
from vit_dist.data.shards.source import tar_files
from vit_dist.data.sources.captions import Captions
from vit_dist.data.sources.decode import Header
from vit_dist.data.sources.image_files import header_of
from vit_dist.data.sources.names import split_of
from vit_dist.data.sources.splits import UNLABELLED, ImageSizes, name_keys
from vit_dist.data.sources.survey import sizes_of
from vit_dist.errors import UserError, one_line, visible

_PIECE = 2**22
_MEASURED = 500


@dataclass
class _Walked:
    """Describe what a tar file holds. headers: of its first images."""

    bytes: int
    sha256: str
    found: list[Found]
    crc32: list[int]
    headers: list[Header]


def index_tars(
    folder: Path,
    processes: int,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, count: items,
    note: Callable[[str], None] = lambda text: None,
) -> ShardIndex:
    """Read all tar files in a folder, and in the folders in it, and write their index; return it.

    Classes are those of classes.txt, a name a line, where the labels are numbers; else the labels that there are; of
    images that have captions and no labels there is one, "". The split is a word in the name of the file or its folder;
    without one it is train. note: called with a line on captions that are left out. Raises UserError.
    """
    if (folder / INDEX).is_file():
        raise UserError(f"{folder}: has an index: vit-dist shards verify {folder} compares the shards with it")
    paths = tar_files(folder)
    if not paths:
        raise UserError(f"{folder}: holds no .tar files")
    names = [path.relative_to(folder).as_posix() for path in paths]
    splits = {name: split_of(name) or "train" for name in names}
    names.sort(key=lambda name: (("train", "val", "test").index(splits[name]), name))
    walked: dict[str, _Walked] = {}
    share = max(1, -(-_MEASURED // max(1, sum(split == "train" for split in splits.values()))))
    for name, result in progress(in_processes(partial(_walk, folder, share), names, processes), len(names)):
        walked[name] = result
    if "train" not in splits.values():
        raise UserError(f"{folder}: holds {', '.join(dict.fromkeys(splits.values()))} and no train")
    every = [found for name in names for found in walked[name].found]
    labelled, captioned = _complete(folder, {name: walked[name] for name in names}, note)
    classes, labels = _number(folder, every) if labelled else (UNLABELLED, [0] * len(every))
    captions = Captions.of(found.captions for found in every) if captioned else None
    index = ShardIndex(
        classes=classes,
        shards=tuple(
            Shard(name, splits[name], len(walked[name].found), walked[name].bytes, walked[name].sha256)
            for name in names
        ),
        columns={
            "offset": np.asarray([found.offset for found in every], np.uint64),
            "size": np.asarray([found.size for found in every], np.uint64),
            "label": np.asarray(labels, np.int64),
            "key": name_keys(f"{name}/{found.name}" for name in names for found in walked[name].found),
            "crc32": np.asarray([crc32 for name in names for crc32 in walked[name].crc32], np.uint32),
            **({} if captions is None else dict(zip(CAPTIONS, captions.parts, strict=True))),
        },
        sizes=_sizes([walked[name] for name in names if splits[name] == "train"]),
    )
    write_index(folder, index)
    return index


def is_sorted(index: ShardIndex) -> bool:
    """Return whether the shards of train hold far more images of one class each than the whole does."""
    begin, end = index.rows("train")
    labels = np.asarray(index.columns["label"][begin:end])
    cuts = index.starts[(index.starts > begin) & (index.starts < end)] - begin
    shares = [np.bincount(part).max() / len(part) for part in np.split(labels, cuts) if len(part)]
    overall = float(np.bincount(labels).max()) / len(labels)
    return len(shares) > 1 and float(np.median(shares)) > 0.5 + overall / 2


def _walk(folder: Path, measured: int, name: str) -> _Walked:
    """Read a tar file twice: all bytes, and the images in it. Raises UserError, OSError."""
    path = folder / name
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
        file.seek(0)
        found = list(walk(file, str(path)))
        crc32, headers = [], []
        for number, each in enumerate(found):
            file.seek(each.offset)
            content = file.read(each.size)
            crc32.append(zlib.crc32(content))
            header = header_of(io.BytesIO(content)) if number < measured else None
            headers += [header] if header is not None else []
    return _Walked(os.stat(path).st_size, digest.hexdigest(), found, crc32, headers)


def _complete(folder: Path, walked: Mapping[str, _Walked], note: Callable[[str], None]) -> tuple[bool, bool]:
    """Return whether all images have a class, and whether all have captions. Raises UserError if neither is so."""
    every = [(f"{folder / name}: {found.name}", found) for name, each in walked.items() for found in each.found]
    unlabelled = [name for name, found in every if found.label is None]
    silent = [name for name, found in every if not found.captions]
    if unlabelled and silent:
        if len(silent) == len(every):
            raise UserError(f"{visible(unlabelled[0])}: has no class: give it a .cls, or a .json with a label")
        raise UserError(f"{visible(silent[0])}: has no caption: give it a .txt, or a .json with a caption")
    if unlabelled and len(unlabelled) < len(every):
        note(f"{len(unlabelled):,} of {len(every):,} images have no class ({visible(unlabelled[0])}): none is used")
    if silent and len(silent) < len(every):
        note(f"{len(silent):,} of {len(every):,} images have no caption ({visible(silent[0])}): none is used")
    return not unlabelled, not silent


def _number(folder: Path, every: Sequence[Found]) -> tuple[tuple[str, ...], list[int]]:
    """Return the classes and the number of each sample's. Raises UserError."""
    if not every:
        raise UserError(f"{folder}: its tar files hold no images")
    labels = [found.label for found in every]
    path = folder / CLASSES
    named: list[str] = []
    try:
        named = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
    if len(set(named)) != len(named):
        raise UserError(f"{path}: has a name twice: give each class a line of its own")
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        most = max(numbers)
        if named and most >= len(named):
            raise UserError(f"{path}: has {len(named)} names, and the labels go up to {most}")
        if not named and most >= len(labels):
            raise UserError(f"{folder}: its labels go up to {most} for {len(labels)} images: write {CLASSES}")
        return tuple(named or map(str, range(most + 1))), numbers
    classes = named or sorted({str(label) for label in labels})
    number_of = {name: number for number, name in enumerate(classes)}
    unknown = next((str(label) for label in labels if str(label) not in number_of), None)
    if unknown is not None:
        raise UserError(f"{path}: does not have the class {unknown}")
    return tuple(classes), [number_of[str(label)] for label in labels]


def _sizes(walked: Sequence[_Walked]) -> ImageSizes | None:
    return sizes_of([header for each in walked for header in each.headers])
