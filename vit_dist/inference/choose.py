"""Choose the checkpoint that a path names: a run's best one, or the one at the path; damaged ones are passed over."""

from __future__ import annotations

from pathlib import Path

from vit_dist.checkpointing.checkpoint import Checkpoint, open_whole
from vit_dist.checkpointing.folder import best_checkpoint, list_checkpoints, newest_valid, whole_beside
from vit_dist.checkpointing.manifest import MANIFEST, DamagedCheckpointError
from vit_dist.errors import UserError
from vit_dist.models.weights import first_three
from vit_dist.run_folder.finding import run_meant


def choose_checkpoint(path: Path, field: str = "") -> tuple[Checkpoint, list[str]]:
    """Return the checkpoint at `path`, or the best one of the run there, else its newest; and notes for the user.

    Of a run, damaged checkpoints are passed over, which a note says. `checkpoints/best` and `last` stand for what the
    states of the checkpoints say, wherever those links lead. Raises UserError, naming `field`, if there is none, and
    for a damaged checkpoint that is named itself: in one line, with the whole ones beside it.
    """
    prefix = f"{field}: " if field else ""
    linked = path.name in ("best", "last") and bool(list_checkpoints(path.parent))
    if not linked and ((path / MANIFEST).is_file() or (path.name.startswith("update_") and path.is_dir())):
        return _named(path, prefix), []
    inside = path / "checkpoints"
    folder = path.parent if linked else path if path.name == "checkpoints" and not inside.is_dir() else inside
    newest, problems = newest_valid(folder)
    if newest is None:
        if problems:
            raise UserError(f"{prefix}{folder} holds no complete checkpoint: {first_three(problems)}")
        raise UserError(f"{prefix}{path} is neither a run's folder with a checkpoint nor a checkpoint{run_meant(path)}")
    if linked and path.name == "last":
        return newest, _notes(problems, newest, "the newest that is complete")
    best, more = best_checkpoint(folder, newest)
    problems += more
    if best is None:
        return newest, _notes(problems, newest, "the newest that is complete")
    return best, _notes(problems, best, "the best of those that are complete")


def _named(path: Path, prefix: str) -> Checkpoint:
    """Open the checkpoint at a path. Raises UserError if it is damaged."""
    try:
        return open_whole(path)
    except DamagedCheckpointError as error:
        names = whole_beside(path)
        others = f"; complete beside it: {', '.join(names)}" if names else ""
        raise UserError(f"{prefix}{error}: this checkpoint cannot be used{others}") from None


def _notes(problems: list[str], used: Checkpoint, what: str) -> list[str]:
    """Return the line that says which checkpoints were passed over, and which is used; none if none was."""
    return [f"{first_three(problems)}: not used; {used.path.name} is, {what}"] if problems else []
