"""Folders of JPEG files for benchmarks: real ones from a folder or a tar, or some that are made on the spot."""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def unpack(images: Path, folder: Path) -> Path:
    """Return a folder of two class folders with the JPEG files of a folder or a tar."""
    if images.is_file():
        with tarfile.open(images) as tar:
            tar.extractall(folder / "all", filter="data")
        images = folder / "all"
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for number, path in enumerate(files):
        target = folder / "files" / f"class_{number % 2}" / path.with_suffix(".jpg").name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder / "files"


def make(folder: Path, count: int) -> Path:
    """Return a folder of two class folders with JPEG files of 500 × 375 pixels, about 90 kB each, smooth and noisy."""
    draw = np.random.default_rng(0)
    for number in range(count):
        low = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(low).resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        pixels = (smooth + draw.normal(0, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
        target = folder / f"class_{number % 2}" / f"{number:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target, quality=90)
    return folder


def repeat(folder: Path, least: int) -> int:
    """Give files of a folder further names until there are at least so many; return how many there are."""
    files = sorted(folder.rglob("*.jpg"))
    count = len(files)
    for copy in range(1, -(-least // len(files))):
        for path in files:
            target = path.with_name(f"{path.stem}_{copy}.jpg")
            with contextlib.suppress(OSError):
                os.link(path, target)
            if not target.exists():
                shutil.copyfile(path, target)
            count += 1
    return count


def enlarge(files: Path, folder: Path, count: int, noise: float) -> Path:
    """Return a folder of photos of 12 megapixels, enlarged from some of the files; noise: its standard deviation."""
    draw = np.random.default_rng(0)
    for number, path in enumerate(sorted(files.rglob("*.jpg"))[:count]):
        with Image.open(path) as image:
            photo = image.convert("RGB").resize(
                (4000, 3000) if image.width >= image.height else (3000, 4000), Image.Resampling.BICUBIC
            )
        if noise:
            grain = draw.normal(0, noise, (photo.height, photo.width, 1)).astype(np.float32)
            photo = Image.fromarray((np.asarray(photo) + grain).round().clip(0, 255).astype(np.uint8))
        target = folder / f"class_{number % 2}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        photo.save(target, quality=92)
    return folder
