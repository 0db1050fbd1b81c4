"""The checkpoints of a run: list them, find the newest valid one, point `best` and `last` at them, prune."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vit_dist.checkpointing.checkpoint import MANIFEST, Checkpoint, open_verified, why_broken
from vit_dist.files import replacing


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder that have a manifest, oldest first; not verified."""
    return sorted(path.parent for path in folder.glob(f"update_*/{MANIFEST}"))


def newest_valid(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a folder, and what is wrong with those newer than it."""
    wrong: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        found = why_broken(path)
        if found is None:
            return open_verified(path), wrong
        wrong.append(found)
    return None, wrong


def point_to(folder: Path, name: str, target: Path) -> None:
    """Point `folder/name` at `target`: a relative link, replaced atomically; a one-line text file without links."""
    with replacing(folder / name) as hidden:
        hidden.unlink(missing_ok=True)
        try:
            hidden.symlink_to(target.name)
        except OSError:
            hidden.write_text(target.name, encoding="utf-8")


def pointed_to(folder: Path, name: str) -> Path | None:
    """What `link` pointed to, or None."""
    path = folder / name
    if path.is_symlink():
        return folder / os.readlink(path)
    return folder / path.read_text(encoding="utf-8").strip() if path.is_file() else None


def prune(folder: Path, keep: int) -> None:
    """Removes all checkpoints but the `keep` newest and the best, and what a dead writer left."""
    best = pointed_to(folder, "best")
    for path in list_checkpoints(folder)[:-keep]:
        if best is None or path.name != best.name:
            # Without its manifest a checkpoint does not exist: one that is half removed must not look whole.
            (path / MANIFEST).unlink()
            shutil.rmtree(path)
    for path in folder.glob(".writing_*"):
        shutil.rmtree(path, ignore_errors=True)
