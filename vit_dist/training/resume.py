"""Decide whether and from where a run resumes. Reads only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vit_dist.checkpointing.checkpoint import Checkpoint, open_checkpoint
from vit_dist.checkpointing.folder import newest_valid
from vit_dist.checkpointing.manifest import MANIFEST
from vit_dist.checkpointing.state import TrainState
from vit_dist.config.config import Config
from vit_dist.config.recipe import read_yaml
from vit_dist.errors import UserError
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.status import status

# Fields of the identity that may change in a run all the same: the first may grow, the second changes no result
# unless dropout draws by micro-batch. Both are noted.
_MAY_CHANGE = ("train.duration", "batch.micro_size")


@dataclass(frozen=True)
class ResumePoint:
    """The point from which a run starts.

    checkpoint: to resume from; None: from the start. checkpoint_in_folder: whether it is in the run's own folder.
    finished: whether nothing is left to do. notes: lines for the user. changed: fields that differ, and their new
    values.
    """

    checkpoint: Checkpoint | None = None
    checkpoint_in_folder: bool = False
    finished: bool = False
    notes: list[str] = field(default_factory=list)
    changed: dict[str, Any] = field(default_factory=dict)


def find_resume_point(config: Config) -> ResumePoint:
    """Find where the run of a config starts. Raises UserError if its folder holds another run, or may not be used."""
    folder = config.folder
    stored = folder / "config.yaml"
    used = stored.is_file()
    if config.run.resume == "never" and used:
        raise UserError(f"run.dir: {folder} holds a run: set run.resume auto to resume it, or another run.dir")
    if folder.is_dir() and not used and any(path.name != ".lock" for path in folder.iterdir()):
        raise UserError(f"run.dir: {folder} holds other files: set another, or an empty folder")
    notes: list[str] = []
    changed: dict[str, Any] = {}
    if used:
        before = Config.from_dict(read_yaml(stored))
        changed, notes = compare(before.fields(), config.fields(), config.fields(changes_result=True), folder)
        newest, problems = newest_valid(folder / "checkpoints")
        notes += [f"{problem}: not used" for problem in problems]
        if newest is not None:
            if config.run.resume != "auto":
                notes.append(f"run.resume: {folder} has a checkpoint of its own and resumes from that")
            finished = status(folder).get("state") == "finished" and "train.duration" not in changed
            return ResumePoint(newest, True, finished, notes, changed)
    if config.run.resume in ("auto", "never"):
        return ResumePoint(notes=notes, changed=changed)
    start = _open_newest(Path(config.run.resume))
    before = start.state.config
    changed, more = compare(before.fields(), config.fields(), config.fields(changes_result=True), start.path)
    return ResumePoint(start, folder in start.path.parents, False, notes + more, changed)


def compare(
    before: Mapping[str, Any], now: Mapping[str, Any], identity: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], list[str]]:
    """Return (fields that differ and their new values, notes). Raises UserError if a field of the identity differs."""
    changed = {name: value for name, value in now.items() if before.get(name) != value and name != "run.resume"}
    refused = [
        f"{name}: {before.get(name)!r} there, {value!r} now"
        for name, value in changed.items()
        if name in identity and name not in _MAY_CHANGE
    ]
    if refused:
        raise UserError(
            f"{path}: holds a run of another config: {'; '.join(refused)}: set another run.dir, or change these back"
        )
    notes = [f"{name}: {before.get(name)} before, {changed[name]} now" for name in _MAY_CHANGE if name in changed]
    return changed, notes


def _open_newest(path: Path) -> Checkpoint:
    """Open the checkpoint at a path, or the newest valid one of the run there. Raises UserError."""
    if (path / MANIFEST).is_file() or path.name.startswith("update_"):
        return open_checkpoint(path)
    newest, problems = newest_valid(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    if newest is None:
        raise UserError(f"run.resume: no complete checkpoint at {path}" + "".join(f"; {text}" for text in problems))
    return newest


def resumed_state(resume: ResumePoint, plan: Plan, classes: Sequence[str]) -> TrainState:
    """Return the state that a run starts with. Raises UserError if the checkpoint is of other data or a longer run."""
    if resume.checkpoint is None:
        return TrainState()
    saved = resume.checkpoint.state
    state = dataclasses.replace(saved.train_state)
    if saved.classes != list(classes):
        different = sorted(set(saved.classes) ^ set(classes)) or ["their order"]
        counts = f"{len(saved.classes)} there, {len(classes)} here"
        raise UserError(f"data: other classes than before ({counts}): {', '.join(different[:5])}")
    if saved.samples != plan.samples:
        raise UserError(f"data: {saved.samples} training images before, {plan.samples} now")
    before = saved.updates
    if plan.updates < before:
        raise UserError(f"train.duration: may only grow: {before} updates before, {plan.updates} now")
    if not resume.checkpoint_in_folder:
        state.best = state.patience_baseline = None  # those weights are not in this folder
    if not resume.checkpoint_in_folder or plan.updates > before:
        state.evaluations_without_improvement = 0
    return state
