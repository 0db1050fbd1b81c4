"""Shards that tests build, and what they hold."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vit_dist.config.fields import DataConfig
from vit_dist.data.shards.build import build, plan_shards
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.splits import LabelledSplits

SHARD_SIZE = 20_480


def opened(root: Path | str, val_fraction: float = 0.0) -> LabelledSplits:
    """Return the splits of a folder of images or shards."""
    return open_data(DataConfig(root=str(root), val_fraction=val_fraction))


def packed(images: Path, out: Path, shard_size: int = SHARD_SIZE) -> Path:
    """Return the folder of the shards that a folder of images was packed into."""
    build(plan_shards(opened(images), shard_size), out, 1)
    return out


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each file in and below a folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
