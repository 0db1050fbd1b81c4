"""The checkpoints of a run: list them, find the newest valid one, point `best` and `last` at them, prune, tidy."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from vit_dist.checkpointing.checkpoint import Checkpoint, open_whole
from vit_dist.checkpointing.manifest import MANIFEST, DamagedCheckpointError
from vit_dist.errors import UserError
from vit_dist.files import REPLACED, WRITING, remove, replacing

_REMOVING = ".removing_"


def checkpoint_path(folder: Path, position: int) -> Path:
    """Return where the checkpoint of a position lies."""
    return folder / f"update_{position:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder that have a manifest, oldest first, without verifying them.

    Links are left out: what they lead to is not the folder's own.
    """
    return [path for path in checkpoint_folders(folder) if (path / MANIFEST).is_file()]


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the folders that are called as checkpoints are, oldest first, also those without a manifest."""
    named = [path for path in folder.glob("update_*") if re.fullmatch(r"update_[0-9]{8,16}", path.name)]
    folders = [path for path in named if path.is_dir() and not path.is_symlink()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("update_")))


def newest_valid(
    folder: Path, opened: Callable[[Path], Checkpoint] = open_whole
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest complete checkpoint of a folder, if any, and why each newer one is broken.

    opened: opens and verifies a checkpoint. Raises UserError for a checkpoint of a later format.
    """
    problems: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return opened(path), problems
        except DamagedCheckpointError as error:
            problems.append(str(error))
    return None, problems


def best_checkpoint(
    folder: Path, newest: Checkpoint | None = None, opened: Callable[[Path], Checkpoint] = open_whole
) -> tuple[Checkpoint | None, list[str]]:
    """Return the best checkpoint of a folder, as the states of its checkpoints say, and why others are broken.

    It is the one at the update that the newest complete checkpoint names as the best; if that one is gone or broken,
    the newest complete one that was the best when it was saved. None if no evaluation has chosen any. Links are not
    read. newest: the newest complete one, if it is known. opened: opens and verifies a checkpoint. Raises UserError for
    a checkpoint of a later format.
    """
    newest, problems = (newest, []) if newest is not None else newest_valid(folder, opened)
    best = newest.state.train_state.best if newest is not None else None
    if newest is None or best is None or newest.is_best:
        return (newest if best is not None else None), problems
    named = checkpoint_path(folder, best.update)
    older = [path for path in list_checkpoints(folder) if int(path.name[7:]) < newest.position]
    for path in dict.fromkeys([named, *reversed(older)]):
        try:
            found = opened(path)
        except DamagedCheckpointError as error:
            problems.append(str(error))
        else:
            if path == named or found.is_best:
                return found, problems
    return None, problems


def whole_beside(path: Path) -> list[str]:
    """Return the names of the complete checkpoints in the folder of a checkpoint, itself left out, oldest first."""
    names = []
    for other in list_checkpoints(path.parent):
        with contextlib.suppress(DamagedCheckpointError, UserError):
            names += [open_whole(other).path.name] if other.name != path.name else []
    return names


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, renamed first: one that is half removed must not look like one. Raises OSError."""
    hidden = path.with_name(f"{_REMOVING}{path.name}")
    path.rename(hidden)
    shutil.rmtree(hidden)


def point_to(folder: Path, name: str, target: Path) -> None:
    """Point `folder/name` at `target`: a relative link, replaced atomically; a one-line text file without links."""
    if pointed_to(folder, name) == folder / target.name:
        return
    with replacing(folder / name) as hidden:
        hidden.unlink(missing_ok=True)
        try:
            hidden.symlink_to(target.name)
        except OSError:
            hidden.write_text(target.name, encoding="utf-8")


def pointed_to(folder: Path, name: str) -> Path | None:
    """Return the path that `point_to` set; None if there is none that can be read."""
    path = folder / name
    try:
        if path.is_symlink():
            return folder / os.readlink(path)
        return folder / path.read_text(encoding="utf-8").strip() if path.is_file() else None
    except (OSError, UnicodeDecodeError):
        return None


def prune(folder: Path, keep: int, position: int, best: int | None, is_whole: Callable[[Path], bool]) -> None:
    """Remove the whole checkpoints up to `position`, but not the `keep` newest of them nor that of update `best`.

    Broken ones neither count nor are removed. Raises OSError.
    """
    kept = checkpoint_path(folder, best) if best is not None else None
    listed = [path for path in list_checkpoints(folder) if int(path.name[7:]) <= position]
    if set(listed[:-keep]) <= {kept}:  # nothing to remove, whatever is whole: spare the reading
        return
    for path in [path for path in listed if is_whole(path)][:-keep]:
        if path != kept:
            remove_checkpoint(path)


def tidy(folder: Path) -> None:
    """Finish or undo what a process left half done that died while it saved or pruned. Raises OSError."""
    for path in folder.glob(f"{REPLACED}*"):
        final = folder / path.name.removeprefix(REPLACED)
        if not final.exists():
            path.rename(final)
    for prefix in (REPLACED, _REMOVING, WRITING):
        for path in folder.glob(f"{prefix}*"):
            remove(path)


def point_to_known(folder: Path, position: int, best: int | None) -> None:
    """Point `last` at the checkpoint of `position`, and `best` at that of update `best`, if they are there.

    The links are for people: what they name is in the state of the last checkpoint, so that one which cannot be written
    is left as it is.
    """
    for name, update in (("last", position), ("best", best)):
        if update is not None and (checkpoint_path(folder, update) / MANIFEST).is_file():
            with contextlib.suppress(OSError):
                point_to(folder, name, checkpoint_path(folder, update))
