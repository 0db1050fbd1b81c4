"""Read a folder of images: find its layout, and list the files of each split and class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import numpy as np

from vit_dist.data.sources.decode import MAX_PIXELS
from vit_dist.data.sources.image_files import FilePaths, FileSource
from vit_dist.data.sources.layout import Classes, find_layout, loose
from vit_dist.data.sources.names import EXTENSIONS, class_of, class_order, composed, order_notes
from vit_dist.data.sources.scan import Folder, scan
from vit_dist.data.sources.splits import IMAGENET, SPLITS, LabelledSplits, LeftOut, Subset, all_of, name_keys
from vit_dist.data.sources.survey import measure
from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints, Keys

FOLDER = "--folder"
TWICE = "second names of a file in the same class"


def read_folder(root: Path, max_pixels: int = MAX_PIXELS, classes: str = "auto") -> LabelledSplits:
    """Read the images of a folder, whatever its layout of splits and class folders.

    max_pixels: of the largest image that may be decoded. classes: auto, outer or inner (`data.classes`). Raises
    UserError, with the tree that was found, for a layout that is not known or could be two.
    """
    if root.is_file():
        raise UserError(
            f"data.root: {root} is a file: give a folder with a folder of images for each class, or a table of paths "
            "and labels (.csv, .tsv, .jsonl, .parquet)"
        )
    if not root.is_dir():
        raise UserError(f"data.root: no folder {root}")
    found = scan(root)
    if not found.root.count:
        looked = f"looked for {', '.join(sorted(EXTENSIONS))}"
        there = "; ".join(map(str, found.left_out)) or "nothing is there"
        raise UserError(f"data.root: no images in {root} ({looked}): {there}")
    layout = find_layout(found.root, classes)
    names = tuple(class_order(layout.splits["train"]))
    files = {split: _files(folders, names, linked=found.linked) for split, folders in layout.splits.items()}
    left_out, notes = [*layout.left_out, *found.left_out], [*dict.fromkeys(layout.notes), *order_notes(names)]
    notes += [
        f"data.root: {name} has only {', '.join(endings)}, which is not read, and is no class: convert to .jpg or .png"
        for name, endings in found.undecoded.items()
    ]
    if found.linked:
        files, twice, shared = _without_twins(files)
        if twice:
            left_out.append(LeftOut(TWICE, len(twice), os.path.relpath(twice[0], root)))
        if shared:
            first, other = shared[0]
            notes.append(
                f"data.root: {len(shared):,} files are there twice, by links, in two splits or classes "
                f"({first} and {other}): keep one of each"
            )
    sources = {split: _source(listed, max_pixels) for split, listed in files.items()}
    sizes = measure(sources["train"].paths)
    if "val" not in sources:
        sources["train"] = replace(sources["train"], keys=_keys(files["train"], names))
    splits = {split: all_of(source) for split, source in sources.items()}
    return LabelledSplits(splits, names, 3, 224, *IMAGENET, sizes, tuple(left_out), tuple(notes))


@dataclass(frozen=True)
class ClassFolders:
    """The class folders in a folder, for a model whose classes are known: name → folders, empty ones too."""

    path: Path
    folders: Mapping[str, list[Folder]]
    left_out: tuple[LeftOut, ...]
    field: str = FOLDER

    @property
    def names(self) -> list[str]:
        """Return the names of the folders, sorted."""
        return sorted(self.folders)

    def read(self, classes: Sequence[str], channels: int, max_pixels: int = MAX_PIXELS) -> Subset:
        """Return all images in them, numbered as in `classes`, some of which may be missing. Raises UserError."""
        known: Classes = {}
        unknown = []
        for name, folders in self.folders.items():
            match = class_of(name, classes)
            if match is not None:
                known.setdefault(match, []).extend(folders)
            elif folders:
                unknown.append(name)
        if unknown:
            others = f"{unknown[0]}, which is no class"
            if unknown[1:]:
                others = f"{unknown[0]} and {len(unknown) - 1} more, which are no classes"
            first = ", ".join(classes[:5]) + (" …" if len(classes) > 5 else "")
            raise UserError(f"{self.field}: {self.path} has {others} of the model ({first})")
        files = _files(known, classes)
        if not files.paths:
            raise UserError(f"{self.field}: no images in {self.path} (looked for {', '.join(sorted(EXTENSIONS))})")
        return all_of(replace(_source(files, max_pixels), mode="L" if channels == 1 else "RGB"))


def find_class_folders(folder: Path, classes: Sequence[str], field: str = FOLDER) -> ClassFolders:
    """Find the class folders in a folder, of two levels if the classes of the model are (animal/cat).

    field: what errors call it. Raises UserError if it is not a folder, is the folder of one class or of images without
    class folders, or holds splits and not the classes.
    """
    if not folder.is_dir():
        raise UserError(f"{field}: no folder {folder}")
    found = scan(folder)
    root = found.root
    splits = [inner for inner in root.folders if inner.name.lower() in SPLITS and class_of(inner.name, classes) is None]
    if splits:
        best = min(splits, key=lambda inner: ("test", "val", "train").index(SPLITS[inner.name.lower()]))
        raise UserError(f"{field}: {folder} has splits in it: give {best.path}")
    if root.images and not root.folders and class_of(root.name, classes) is not None:
        raise UserError(f"{field}: {folder} is the folder of one class, {root.name}: give its parent, {folder.parent}")
    if root.images and not root.folders:
        first = ", ".join(classes[:3]) + (" …" if len(classes) > 3 else "")
        predict = f"vit-dist predict RUN {quote(str(folder))}" if field == FOLDER else f"model.predict({str(folder)!r})"
        raise UserError(
            f"{field}: {folder} holds {root.count:,} image{'s' * (root.count > 1)} and no class folders: put those of "
            f"each class into a folder of its own ({first}); to classify unlabelled ones: {predict}"
        )
    nested = any("/" in name for name in classes)
    folders: dict[str, list[Folder]] = {composed(name): [] for name in root.empty}
    left_out = loose(root)
    for inner in root.folders:
        parts = inner.folders if nested else []
        for part in parts:
            folders.setdefault(f"{inner.name}/{part.name}", []).append(part)
        if parts:
            left_out += loose(inner)
        else:
            folders.setdefault(inner.name, []).append(inner)
    return ClassFolders(folder, folders, (*left_out, *found.left_out), field)


def image_files(folder: Path) -> list[Path]:
    """Return all images below a folder, recognised by their extensions, sorted."""
    return [Path(path) for path, _ in scan(folder).root.files()]


class _Files(NamedTuple):
    """Images: their paths, the numbers of their classes, their paths in their class folders.

    real: the files behind all links; empty where none was met.
    """

    paths: list[str]
    labels: Ints
    below: list[str]
    real: list[str]

    def take(self, places: list[int]) -> _Files:
        """Return the images at these places."""
        names = ([column[place] for place in places] for column in (self.paths, self.below, self.real))
        paths, below, real = names
        return _Files(paths, self.labels[places], below, real)


def _files(folders: Classes, names: Sequence[str], *, linked: bool = False) -> _Files:
    """Return the images of each class, in the order of the classes. linked: look up the files behind links."""
    paths: list[str] = []
    below: list[str] = []
    real: list[str] = []
    counts = np.zeros(len(names), np.int64)
    for label, name in enumerate(names):
        for folder in folders.get(name, ()):
            for path, inside in folder.files():
                paths.append(path)
                below.append(inside)
            if linked:
                real += folder.real_files()
        counts[label] = len(paths)
    labels = np.repeat(np.arange(len(names), dtype=np.int64), np.diff(counts, prepend=0))
    return _Files(paths, labels, below, real)


def _source(files: _Files, max_pixels: int) -> FileSource:
    return FileSource(FilePaths(files.paths), files.labels, max_pixels=max_pixels)


def _keys(files: _Files, names: Sequence[str]) -> Keys:
    """Return a key for each image, of its class's name and its path in the class folder.

    Not of the file's bytes, which would have to be read; nor of the path above the class folder, so that data may be
    moved.
    """
    classes = (names[label] for label in files.labels.tolist())
    return name_keys(f"{name}/{composed(below)}" for name, below in zip(classes, files.below, strict=True))


def _without_twins(files: Mapping[str, _Files]) -> tuple[dict[str, _Files], list[str], list[tuple[str, str]]]:
    """Take each file once in a class, whatever links lead to it.

    Return (the files of each split, the paths of those taken out, pairs that are one file in two splits or classes).
    """
    kept: dict[str, _Files] = {}
    twice, shared = [], []
    seen: dict[str, str] = {}
    for split, listed in files.items():
        known: set[tuple[int, str]] = set()
        places = []
        columns = zip(listed.paths, listed.labels.tolist(), listed.real, strict=True)
        for place, (path, label, real) in enumerate(columns):
            first = seen.setdefault(real, path)
            if (label, real) in known:
                twice.append(path)
                continue
            known.add((label, real))
            places.append(place)
            if first is not path:
                shared.append((first, path))
        kept[split] = listed.take(places)
    return kept, twice, shared
