"""The checkpoints of a run: list them, find the newest valid one, point `best` and `last` at them, prune."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

from vit_dist.checkpointing.checkpoint import Checkpoint, open_whole
from vit_dist.checkpointing.manifest import MANIFEST, DamagedCheckpointError
from vit_dist.errors import UserError
from vit_dist.files import replacing


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder that have a manifest, oldest first, without verifying them.

    Links are left out: what they lead to is not the folder's own.
    """
    found = [path.parent for path in folder.glob(f"update_*/{MANIFEST}")]
    numbered = [path for path in found if re.fullmatch(r"update_\d{8,16}", path.name) and not path.is_symlink()]
    return sorted(numbered, key=lambda path: int(path.name.removeprefix("update_")))


def newest_valid(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest complete checkpoint of a folder, if any, and why each newer one is broken.

    Raises UserError for a checkpoint of a later format.
    """
    problems: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return open_whole(path), problems
        except DamagedCheckpointError as error:
            problems.append(str(error))
    return None, problems


def best_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the best checkpoint of a folder, as the states of its checkpoints say, and why others are broken.

    It is the one at the update that the newest complete checkpoint names as the best; if that one is gone or broken,
    the newest complete one that was the best when it was saved. None if no evaluation has chosen any. Links are not
    read. Raises UserError for a checkpoint of a later format.
    """
    newest, problems = newest_valid(folder)
    best = newest.state.train_state.best if newest is not None else None
    if newest is None or best is None or newest.is_best:
        return (newest if best is not None else None), problems
    named = folder / f"update_{best.update:08d}"
    older = [path for path in list_checkpoints(folder) if int(path.name[7:]) < newest.position]
    for path in dict.fromkeys([named, *reversed(older)]):
        try:
            found = open_whole(path)
        except DamagedCheckpointError as error:
            problems.append(str(error))
        else:
            if path == named or found.is_best:
                return found, problems
    return None, problems


def best_or_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the best complete checkpoint of a folder, else its newest complete one, and why others are broken.

    Raises UserError for a checkpoint of a later format.
    """
    best, problems = best_checkpoint(folder)
    return (best, problems) if best is not None else (newest_valid(folder)[0], problems)


def whole_beside(path: Path) -> list[str]:
    """Return the names of the complete checkpoints in the folder of a checkpoint, itself left out, oldest first."""
    names = []
    for other in list_checkpoints(path.parent):
        with contextlib.suppress(DamagedCheckpointError, UserError):
            names += [open_whole(other).path.name] if other.name != path.name else []
    return names


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
