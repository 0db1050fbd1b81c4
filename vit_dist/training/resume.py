"""Decide whether and from where a run resumes. Reads only."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vit_dist.checkpointing.checkpoint import Checkpoint, open_checkpoint, open_whole
from vit_dist.checkpointing.folder import best_checkpoint, checkpoint_path, list_checkpoints, newest_valid
from vit_dist.checkpointing.manifest import MANIFEST, DamagedCheckpointError
from vit_dist.checkpointing.state import Best, TrainState
from vit_dist.config.config import Config
from vit_dist.config.recipe import read_yaml
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.errors import UserError, one_line
from vit_dist.files import WRITING
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.metrics import read_history, read_metrics
from vit_dist.run_folder.status import status
from vit_dist.run_folder.summary import read_summary
from vit_dist.training.identity import check_same_data, compare

# All that a folder holds whose run was killed before it had its config.
_FIRST_FILES = (".lock", f"{WRITING}status.json", "status.json", f"{WRITING}config.yaml")

_SHORTER = "set another run.name or run.dir for a shorter run"


@dataclass(frozen=True)
class ResumePoint:
    """The point from which a run starts.

    checkpoint: to resume from; None: from the start. checkpoint_in_folder: whether it is in the run's own folder.
    best: the best evaluation so far whose checkpoint is whole. duration: the run's own train.duration, if it has been
    made longer than the config says; it goes on to that. finished: whether nothing is left to do. notes: lines for the
    user. changed: fields that differ, and their new values. whole, broken: checkpoints that were verified.
    """

    checkpoint: Checkpoint | None = None
    checkpoint_in_folder: bool = False
    best: Best | None = None
    duration: str = ""
    finished: bool = False
    notes: list[str] = field(default_factory=list)
    changed: dict[str, Any] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def precision(self, config: Config) -> str:
        """Return the `train.precision` that the run goes on in: auto is what it was."""
        precision: str = config.train.precision
        return self.checkpoint.state.precision if precision == "auto" and self.checkpoint is not None else precision

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the checkpoint by its path."""
        plain = {name: getattr(self, name) for name in vars(self)}
        plain["checkpoint"] = str(self.checkpoint.path) if self.checkpoint else None
        return {**plain, "best": asdict(self.best) if self.best else None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ResumePoint:
        """Build it from the values of `to_dict`. Raises UserError if this machine does not see the checkpoint."""
        path, best = values["checkpoint"], values["best"]
        opened = open_verified(Path(path)) if path is not None else None
        return cls(**{**values, "checkpoint": opened, "best": Best(**best) if best else None})


def open_verified(path: Path) -> Checkpoint:
    """Open a checkpoint that rank 0 has verified. Raises UserError if this machine does not see all of it."""
    if not path.is_dir():
        raise UserError(f"{path} is not there: a run's folder must be on storage that all machines share")
    try:
        return open_whole(path, hashes=False)
    except DamagedCheckpointError as error:
        raise UserError(
            f"{error}, but whole for process 0: is its folder on storage that all machines share?"
        ) from None


def holds_run(folder: Path) -> bool:
    """Return whether a folder holds a run that has begun: its config or checkpoints."""
    return (folder / "config.yaml").is_file() or (folder / "checkpoints").is_dir()


def find_resume_point(config: Config, data: LabelledSplits, samples: Mapping[str, Any]) -> ResumePoint:
    """Find where the run of a config on its data starts. Reads only; call it on one process.

    samples: the fingerprint of the data. Raises UserError if the folder holds another run or one on other data,
    or progress without a complete checkpoint, or may not be used.
    """
    folder = config.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run.dir: {folder} is a file: set another")
    if not holds_run(folder):
        if folder.is_dir() and any(path.name not in _FIRST_FILES for path in folder.iterdir()):
            raise UserError(f"run.dir: {folder} holds other files: set another, or an empty folder")
        return _start_elsewhere(config, data, samples, [], {})
    if config.run.resume == "never":
        raise UserError(f"run.dir: {folder} holds a run: set run.resume auto to resume it, or another run.dir")
    newest, problems = newest_valid(folder / "checkpoints")
    notes = [f"{problem}: not used" for problem in problems]
    before, note = _config_before(folder, newest)
    changed: dict[str, Any] = {}
    if before is not None:
        changed, more = compare(before, config, folder)
        notes += more
    notes += note
    if newest is None:
        _refuse_lost_progress(folder, problems)
        return _start_elsewhere(config, data, samples, notes, changed)
    assert before is not None
    check_same_data(newest, data, samples)
    count = len(data.splits["train"])
    asked, planned = (Plan.from_config(each, count, 1).updates for each in (config, before))
    if asked < planned:
        _refuse_shorter(folder, asked, planned)
        changed.pop("train.duration", None)
        notes = [line for line in notes if not line.startswith("train.duration: ")]
    summary = summary_of_finished(folder) if asked <= planned else None
    if config.run.resume != "auto":
        notes.append(f"run.resume: {folder} has a checkpoint of its own and resumes from that")
    best, problems = best_so_far(newest)
    notes += problems
    if summary is not None and newest.position < summary["updates"]:
        last = checkpoint_path(newest.path.parent, summary["updates"])
        notes.append(f"{last}: is not there or broken: the newest complete one is of update {newest.position}")
    elif summary is None and asked < planned:
        longer, shorter = before.train.duration, config.train.duration
        notes.append(f"train.duration: the run was made longer and goes on to {longer}, not {shorter}")
    return ResumePoint(
        checkpoint=newest,
        checkpoint_in_folder=True,
        best=best,
        duration=before.train.duration if asked < planned else "",
        finished=summary is not None,
        notes=notes,
        changed=changed,
        whole=[newest.path.name, *([checkpoint_path(newest.path.parent, best.update).name] if best else [])],
        broken=[path.name for path in list_checkpoints(folder / "checkpoints") if int(path.name[7:]) > newest.position],
    )


def _refuse_shorter(folder: Path, asked: int, planned: int) -> None:
    """Refuse fewer updates than a run has planned, unless it once began with as few. Raises UserError."""
    lines, _ = read_history(folder / "metrics.jsonl")
    begun = {line["plan"]["updates"] for line in lines if line["kind"] == "start"}
    if begun and asked not in begun:
        raise UserError(f"train.duration: may only grow: {planned} updates before, {asked} now: {_SHORTER}")


def summary_of_finished(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a run that has finished; None if it has not, or its summary is gone or broken."""
    summary, _ = read_summary(folder)
    return summary if status(folder).get("state") == "finished" else None


def best_so_far(newest: Checkpoint) -> tuple[Best | None, list[str]]:
    """Return the best evaluation up to a checkpoint whose own checkpoint is whole; and, if it is not the best, why."""
    best = newest.state.train_state.best
    if best is None or best.update == newest.position:
        return best, []
    found, problems = best_checkpoint(newest.path.parent, newest)
    if found is not None and found.position == best.update:
        return best, []
    second = found.state.train_state.best if found is not None else None
    kept = f"update {second.update}'s weights are" if second else "the best weights of the evaluations to come are"
    return second, [f"{problem}: {kept} the best in its place" for problem in problems[:1]]


def read_config(folder: Path) -> Config:
    """Read the config that the run in a folder was last started with. Raises UserError."""
    path = folder / "config.yaml"
    values = read_yaml(path)
    if not values:
        raise UserError(f"{path}: is empty")
    return Config.from_dict(values)


def stored_config(config: Config) -> Config | None:
    """Return the config of the run that a config goes on with, as far as that is known before its data is.

    It is that of the folder which `run.dir` or `run.name` names, else that of the checkpoint in `run.resume`. Raises
    UserError if there is no checkpoint.
    """
    if (config.run.dir or config.run.name) and holds_run(config.folder):
        with contextlib.suppress(UserError):
            return read_config(config.folder)
        newest, _ = newest_valid(config.folder / "checkpoints")
        return newest.state.config if newest is not None else None
    if config.run.resume in ("auto", "never"):
        return None
    return _open_newest(Path(config.run.resume)).state.config


def _config_before(folder: Path, newest: Checkpoint | None) -> tuple[Config | None, list[str]]:
    """Return the config that a run was last started with, and a note if its file is not whole."""
    try:
        return read_config(folder), []
    except UserError as error:
        if newest is None:
            return None, [f"{one_line(error)}: it is written anew"]
        return newest.state.config, [f"{one_line(error)}: {newest.path}'s is used"]


def _refuse_lost_progress(folder: Path, problems: Sequence[str]) -> None:
    """Refuse to begin a run again that has saved and has no whole checkpoint. Raises UserError."""
    saved = any((folder / "checkpoints").glob("update_*")) or (folder / "summary.json").is_file()
    metrics = folder / "metrics.jsonl"
    if not saved and metrics.is_file():
        saved = any(line["kind"] == "save" for line in read_metrics(metrics))
    if saved:
        reasons = "".join(f"; {problem}" for problem in problems)
        raise UserError(
            f"run.dir: {folder} holds a run that has saved, and none of its checkpoints is complete{reasons}: "
            "bring one back, or set another run.dir to begin anew"
        )


def _start_elsewhere(
    config: Config, data: LabelledSplits, samples: Mapping[str, Any], notes: list[str], changed: dict[str, Any]
) -> ResumePoint:
    """Return the start of a run whose folder has no checkpoint: from scratch, or from that of `run.resume`."""
    if config.run.resume in ("auto", "never"):
        return ResumePoint(notes=notes, changed=changed)
    start = _open_newest(Path(config.run.resume))
    changed, more = compare(start.state.config, config, start.path)
    check_same_data(start, data, samples)
    in_folder = config.folder.absolute() in start.path.absolute().parents
    return ResumePoint(start, in_folder, notes=notes + more, changed=changed)


def _open_newest(path: Path) -> Checkpoint:
    """Open the checkpoint at a path, or the newest valid one of the run there. Raises UserError."""
    if (path / MANIFEST).is_file() or path.name.startswith("update_"):
        return open_checkpoint(path)
    newest, problems = newest_valid(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    if newest is None:
        raise UserError(f"run.resume: no complete checkpoint at {path}" + "".join(f"; {text}" for text in problems))
    return newest


def resumed_state(resume: ResumePoint, plan: Plan) -> TrainState:
    """Return the state that a run starts with. Raises UserError if the checkpoint is of a longer run."""
    if resume.checkpoint is None:
        return TrainState()
    state = dataclasses.replace(resume.checkpoint.state.train_state)
    before = resume.checkpoint.state.updates
    if plan.updates < before:
        raise UserError(f"train.duration: may only grow: {before} updates before, {plan.updates} now: {_SHORTER}")
    state.best = resume.best
    if not resume.checkpoint_in_folder:
        state.best = state.patience_baseline = None  # those weights are not in this folder
    if not resume.checkpoint_in_folder or plan.updates > before:
        state.evaluations_without_improvement = 0
    return state


def start_text(resume: ResumePoint, plan: Plan) -> str:
    """Return in words where a run starts: new, at which update and epoch, or that it has finished."""
    if resume.finished:
        return "finished before"
    if resume.checkpoint is None:
        return "new run"
    position, epoch = resume.checkpoint.position, plan.samples_at(resume.checkpoint.position) / plan.samples
    where = f"update {position:,} of {plan.updates:,} (epoch {epoch:.4g} of {plan.epochs:.4g})"
    if resume.checkpoint_in_folder:
        return f"resumed from {where}"
    return f"new run, from {resume.checkpoint.path}: {where}"
