"""The checkpoints of a run: list them, find the newest valid one, point `best` and `last` at them, prune."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vit_dist.checkpointing.checkpoint import MANIFEST, Checkpoint, open_verified, why_broken
from vit_dist.files import replacing


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder that have a manifest, oldest first, without verifying them."""
    return sorted(path.parent for path in folder.glob(f"update_*/{MANIFEST}"))


def newest_valid(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest complete checkpoint of a folder, if any, and why each newer one is broken.

    Raises UserError for a checkpoint of another format.
    """
    problems: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        problem = why_broken(path)
        if problem is None:
            return open_verified(path), problems
        problems.append(problem)
    return None, problems


def point_to(folder: Path, name: str, target: Path) -> None:
    """Point `folder/name` at `target`: a relative link, replaced atomically; a one-line text file without links."""
    with replacing(folder / name) as hidden:
        hidden.unlink(missing_ok=True)
        try:
            hidden.symlink_to(target.name)
        except OSError:
            hidden.write_text(target.name, encoding="utf-8")


def pointed_to(folder: Path, name: str) -> Path | None:
    """Return the path that `point_to` set, or None."""
    path = folder / name
    if path.is_symlink():
        return folder / os.readlink(path)
    return folder / path.read_text(encoding="utf-8").strip() if path.is_file() else None


def prune(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the `keep` newest and the best, and what a writer that died left."""
    best = pointed_to(folder, "best")
    for path in list_checkpoints(folder)[:-keep]:
        if best is None or path.name != best.name:
            # The manifest goes first: a checkpoint that is half removed must not look complete.
            (path / MANIFEST).unlink()
            shutil.rmtree(path)
    for path in folder.glob(".writing_*"):
        shutil.rmtree(path, ignore_errors=True)
