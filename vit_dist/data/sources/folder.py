"""Folders of images: class folders, split folders, and the files in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vit_dist.data.sources.image_files import MAX_PIXELS, FileSource
from vit_dist.data.sources.splits import IMAGENET, SPLITS, LabelledSplits, Subset, all_of
from vit_dist.errors import UserError

_EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff"),
    *(".ppm", ".pgm"),
}


def read_folder(root: Path, max_pixels: int = MAX_PIXELS) -> LabelledSplits:
    """Read split folders (train, val, test) of class folders, or class folders directly.

    max_pixels: of the largest image that may be decoded. Raises UserError.
    """
    if not root.is_dir():
        raise UserError(f"data.root: no folder {root}")
    inside = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    folders: dict[str, Path] = {}
    for path in inside:
        split = SPLITS.get(path.name.lower())
        if split and split in folders:
            raise UserError(f"data.root: {folders[split]} and {path} are both the {split} split: keep one")
        if split:
            folders[split] = path
    if folders and "train" not in folders:
        raise UserError(f"data.root: {root} has {', '.join(folders)} but no train folder")
    folders = folders or {"train": root}
    classes = tuple(path.name for path in _class_folders(folders["train"]))
    if not classes:
        raise UserError(f"data.root: no class folders with images in {folders['train']}")
    splits = {}
    for split, folder in folders.items():
        unknown = [path.name for path in _class_folders(folder) if path.name not in classes]
        if unknown:
            raise UserError(f"data.root: class {unknown[0]} is in {folder} and not in {folders['train']}")
        splits[split] = all_of(_files(folder, classes, max_pixels))
    return LabelledSplits(splits, classes, 3, 224, *IMAGENET)


def read_classes(folder: Path, classes: Sequence[str], channels: int, max_pixels: int = MAX_PIXELS) -> Subset:
    """Return all images in the class folders of `folder`, numbered as in `classes`, some of which may be missing.

    Raises UserError.
    """
    unknown = [name for name in class_folders(folder, classes) if name not in classes]
    if unknown:
        others = f"{unknown[0]}, which is no class"
        if unknown[1:]:
            others = f"{unknown[0]} and {len(unknown) - 1} more, which are no classes"
        known = ", ".join(classes[:5]) + (" …" if len(classes) > 5 else "")
        raise UserError(f"--folder: {folder} has {others} of the model ({known})")
    source = _files(folder, classes, max_pixels, "--folder")
    return all_of(replace(source, mode="L" if channels == 1 else "RGB"))


def class_folders(folder: Path, classes: Sequence[str]) -> list[str]:
    """Return the names of the class folders in a folder, sorted; hidden ones are left out.

    Raises UserError if it is not a folder, or holds splits and not the classes.
    """
    if not folder.is_dir():
        raise UserError(f"--folder: no folder {folder}")
    names = [path.name for path in _class_folders(folder)]
    splits = [name for name in names if name.lower() in SPLITS and name not in classes]
    if splits:
        raise UserError(f"--folder: {folder} has splits in it: give {folder / splits[-1]}")
    return names


def image_files(folder: Path) -> list[Path]:
    """Return all images below a folder, recognised by their extensions, sorted."""
    return sorted(path for path in folder.rglob("*") if _is_image(path.relative_to(folder), folder))


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path, classes: Sequence[str], max_pixels: int, field: str = "data.root") -> FileSource:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = image_files(folder / name)
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise UserError(f"{field}: no images in {folder} (looked for {', '.join(sorted(_EXTENSIONS))})")
    return FileSource(paths, np.asarray(labels, np.int64), max_pixels=max_pixels)


def _is_image(path: Path, folder: Path) -> bool:
    """Return whether a path in a folder is an image, by its extension; not if it is hidden or a folder itself.

    A dead link or a pipe is one too, so that reading it says what it is: left out here, nobody would miss it.
    """
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.suffix.lower() in _EXTENSIONS and not (folder / path).is_dir()
