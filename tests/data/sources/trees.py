"""Folders of tiny images, built from a description."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image


def _bytes(mode: str, size: tuple[int, int]) -> bytes:
    content = io.BytesIO()
    Image.new(mode, size, 100 if mode == "L" else (10, 20, 30)).save(content, "PNG")
    return content.getvalue()


_COLOUR = _bytes("RGB", (6, 5))


def plant(root: Path, folders: Mapping[str, int]) -> Path:
    """Write so many images into each folder below the root: {"train/cat": 3}; a count of 0 makes it empty."""
    for name, count in folders.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / f"{number:03}.png").write_bytes(_COLOUR)
    return root


def image(path: Path, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Path:
    """Write one image of a size and mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_bytes(mode, size))
    return path
