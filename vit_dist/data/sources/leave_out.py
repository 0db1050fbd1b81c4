"""Leave images out by name: what an image is called in a list, and the split without those that a list names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from vit_dist.data.sources.image_files import file_names
from vit_dist.data.sources.source import Source
from vit_dist.data.sources.splits import LabelledSplits, LeftOut, Subset
from vit_dist.errors import HIDDEN, UserError, one_line, visible
from vit_dist.files import user_path
from vit_dist.plan.keys import Ints

FIELD = "data.leave_out"
_COMMENT, _QUOTED = "#", '"'
_NAMED = 3


class SampleNames:
    """The names by which the images of a data set are listed: the same in any split, order and place of the data.

    A file is its path relative to `data.root`, or to the folder of a root that is a file; one that lies elsewhere keeps
    its whole path. An image without a file is its number in its source: 17, or train/17 where splits have sources of
    their own.
    """

    def __init__(self, splits: Mapping[str, Subset], root: str) -> None:
        """root: `data.root`; empty: without one."""
        if "://" in root:
            self._root = f"{root.rstrip('/')}/"
        else:
            folder = Path(root).expanduser()
            self._root = os.path.join(str(folder if folder.is_dir() else folder.parent), "") if root else ""
        first: dict[int, str] = {}
        for name, split in splits.items():
            first.setdefault(id(split.source), name)
        self._prefixes = {split: f"{name}/" if len(first) > 1 else "" for split, name in first.items()}

    def of(self, source: Source, indices: Ints) -> Iterator[str]:
        """Yield the names of these images of a source, in this order."""
        if hasattr(source, "paths"):
            yield from (self.below_root(path).replace(os.sep, "/") for path in file_names(source, indices))
            return
        prefix = self._prefixes[id(source)]
        yield from (f"{prefix}{index}" for index in indices.tolist())

    def below_root(self, path: str) -> str:
        """Return a path relative to the root, if it lies in it."""
        return path.removeprefix(self._root)


def leave_out(data: LabelledSplits, path: str, root: str) -> LabelledSplits:
    """Return the data without the images that a list names; every other image stays in its split.

    path: of the list, `data.leave_out`; empty: all are kept. root: `data.root`. Raises UserError for a list that cannot
    be read or names no image, and for a split that would be empty.
    """
    if not path:
        return data
    file = user_path(path, FIELD)
    wanted = read_names(file)
    names = SampleNames(data.splits, root)
    splits, found = {}, set[str]()
    gone: list[tuple[Source, Ints]] = []
    for name, split in data.splits.items():
        kept = np.ones(len(split), bool)
        for place, sample in enumerate(names.of(split.source, split.indices)):
            if sample in wanted:
                found.add(sample)
                kept[place] = False
        if not kept.any():
            raise UserError(f"{FIELD}: {file} names all {len(split):,} images of {name}: keep some")
        gone.append((split.source, split.indices[~kept]))
        splits[name] = split if kept.all() else split.take(np.flatnonzero(kept))
    if wanted and not found:
        raise UserError(
            f"{FIELD}: {file} names {len(wanted):,} images ({visible(min(wanted))} …), and none is in the data: check "
            "data.root, or drop the list"
        )
    if not found:
        return data
    notes = list(data.notes)
    if missing := sorted(wanted - found):
        few = ", ".join(map(visible, missing[:_NAMED])) + (" …" if missing[_NAMED:] else "")
        notes.append(f"{FIELD}: {len(missing):,} of the {len(wanted):,} names in {file} are not in the data ({few})")
    out = LeftOut(f"images named in {file}", len(found), min(found))
    sizes = data.sizes
    if sizes is not None and sizes.unreadable:  # those that are left out stop nobody
        left = set(sizes.unreadable)
        for source, indices in gone:
            _forget(left, source, indices)
        sizes = replace(sizes, unreadable=tuple(name for name in sizes.unreadable if name in left))
    digest = hashlib.sha256("\n".join(map(name_line, sorted(found))).encode("utf-8", "surrogateescape")).hexdigest()
    left_out = (*data.left_out, out)
    return replace(data, splits=splits, left_out=left_out, notes=tuple(notes), sizes=sizes, without=digest)


def _forget(unreadable: set[str], source: Source, indices: Ints) -> None:
    """Take the images of a source that are left out from the names of those whose header cannot be read."""
    image_name: Callable[[int], str] | None = getattr(source, "image_name", None)
    named: Iterable[str] = file_names(source, indices)
    if image_name is not None:  # each is a look into its shard
        named = (image_name(index).rpartition(": ")[2] for index in indices.tolist())
    for name in named:
        unreadable.discard("/".join(name.replace(os.sep, "/").split("/")[-2:]))
        if not unreadable:
            return


def read_names(file: Path) -> set[str]:
    """Return the names in a list: one a line, as `name_line` writes it; # begins a comment. Raises UserError."""
    names = set()
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip() or line.startswith(_COMMENT):
            continue
        if not line.startswith(_QUOTED):
            names.add(line.removeprefix("./"))
            continue
        try:
            name = json.loads(line)
        except ValueError as error:
            raise UserError(f"{FIELD}: {file}, line {number}: is no JSON string: {one_line(error)}") from None
        names.add(str(name))
    return names


def read_lines(file: Path) -> list[str]:
    """Return the lines of a list, comments too. Raises UserError."""
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{FIELD}: {file} cannot be read: {error.strerror}: name the list of images") from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def name_line(name: str) -> str:
    """Return a name as a line of a list: as it is, or as a JSON string if that would be read as something else."""
    plain = name == name.strip() and not name.startswith((_COMMENT, _QUOTED, "./")) and not HIDDEN.search(name)
    return name if plain and name else json.dumps(name)


def comment_lines(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts as comments of a list."""
    yield from (f"{_COMMENT} {visible(text)}".rstrip() for text in texts)
