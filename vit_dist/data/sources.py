"""Where images come from. Every source is random-access: an index gives an image and its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_dist.errors import UserError
from vit_dist.plan.keys import Ints, Purpose, key
from vit_dist.plan.order import permute

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff"),
    *(".ppm", ".pgm"),
}
SPLITS = {"train": "train", "training": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}


@dataclass(frozen=True)
class MemorySource:
    """A small split held as uint8 pixels, [length, channels, height, width]."""

    pixels: NDArray[np.uint8]
    labels: Ints

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """An image, grey or RGB by its channels."""
        pixels = self.pixels[index]
        return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


@dataclass(frozen=True)
class FileSource:
    """A split of image files, decoded when asked for. mode: Pillow's, RGB or L (grey)."""

    paths: Sequence[Path]
    labels: Ints
    mode: str = "RGB"

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The decoded image in its mode. Raises UserError naming the file where it cannot be decoded."""
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                return eight_bits(image, path).convert(self.mode)
        except UserError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: cannot be decoded ({error}): mend or remove the file") from None


def eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """An image of 16 bits scaled to 8, which Pillow would cut off; others as they are. Raises UserError for floats."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(f"{path}: has values of 32 bits, whose range nobody knows: save it with 8 or 16 bits")
    return image


@dataclass(frozen=True)
class Subset:
    """A part of a source: the indices of its samples there, int64 [length]."""

    source: MemorySource | FileSource
    indices: Ints

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Data:
    """What a run reads: splits by name, the classes' names, channels, the sides of an image, mean and std."""

    splits: dict[str, Subset]
    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def whole(source: MemorySource | FileSource) -> Subset:
    """All of a source, in its own order."""
    return Subset(source, np.arange(len(source), dtype=np.int64))


def with_val(data: Data, fraction: float) -> Data:
    """`data` with a val split: its own, or a keyed part of train that is the same for every seed."""
    if "val" in data.splits or fraction == 0:
        return data
    train = data.splits["train"]
    held_out = round(fraction * len(train))
    if not 0 < held_out < len(train):
        raise UserError(f"data.val_fraction: {fraction} of {len(train)} images leaves a split empty: set another, or 0")
    val, rest = keyed_split(train, held_out)
    return replace(data, splits={**data.splits, "train": rest, "val": val})


def keyed_split(subset: Subset, held_out: int) -> tuple[Subset, Subset]:
    """(held out, rest), by a keyed permutation that no seed changes."""
    order = subset.indices[permute(np.arange(len(subset), dtype=np.int64), len(subset), key(0, Purpose.SPLIT))]
    return Subset(subset.source, order[:held_out]), Subset(subset.source, order[held_out:])


def read_folder(root: Path) -> Data:
    """Split folders of class folders (train, val, test), or class folders directly."""
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
        splits[split] = whole(_files(folder, classes))
    return Data(splits, classes, 3, 224, *_IMAGENET)


def read_classes(folder: Path, classes: Sequence[str], channels: int) -> Subset:
    """All images in the class folders of `folder`, numbered as `classes`, some of which may be missing.

    Raises UserError.
    """
    unknown = [name for name in class_folders(folder, classes) if name not in classes]
    if unknown:
        told = f"{unknown[0]} and {len(unknown) - 1} more, which are no classes" if unknown[1:] else unknown[0]
        told = told if unknown[1:] else f"{told}, which is no class"
        known = ", ".join(classes[:5]) + (" …" if len(classes) > 5 else "")
        raise UserError(f"--folder: {folder} has {told} of the model ({known})")
    source = _files(folder, classes, "--folder")
    return whole(replace(source, mode="L" if channels == 1 else "RGB"))


def class_folders(folder: Path, classes: Sequence[str]) -> list[str]:
    """The names of the folders in a folder, sorted; hidden ones left out.

    Raises UserError where it is no folder, or holds splits and not the classes.
    """
    if not folder.is_dir():
        raise UserError(f"--folder: no folder {folder}")
    found = [path.name for path in _class_folders(folder)]
    splits = [name for name in found if name.lower() in SPLITS and name not in classes]
    if splits:
        raise UserError(f"--folder: {folder} has splits in it: give {folder / splits[-1]}")
    return found


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, sorted, by their extensions."""
    return sorted(path for path in folder.rglob("*") if _is_image(path.relative_to(folder), folder))


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path, classes: Sequence[str], field: str = "data.root") -> FileSource:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = image_files(folder / name)
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise UserError(f"{field}: no images in {folder} (looked for {', '.join(sorted(_EXTENSIONS))})")
    return FileSource(paths, np.asarray(labels, np.int64))


def _is_image(path: Path, folder: Path) -> bool:
    """By its extension; hidden files and folders, and folders that are named like images, are not."""
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.suffix.lower() in _EXTENSIONS and (folder / path).is_file()
