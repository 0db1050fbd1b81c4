"""Whether a run's folder goes on, from where, and what stands in the way. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vit_dist.checkpointing import checkpoint
from vit_dist.checkpointing.checkpoint import Checkpoint
from vit_dist.checkpointing.folder import newest_valid
from vit_dist.config.config import Config
from vit_dist.config.recipe import read_yaml
from vit_dist.errors import UserError
from vit_dist.run_folder.status import status

# These belong to the identity, and yet may change in a run: the first may grow, the second changes no result
# but where dropout draws by micro-batch. Both are noted.
_MAY_CHANGE = ("train.duration", "batch.micro_size")


@dataclass(frozen=True)
class Resumption:
    """checkpoint: where to go on from, or None. finished: nothing is left to do. notes: lines for the user."""

    checkpoint: Checkpoint | None = None
    finished: bool = False
    notes: list[str] = field(default_factory=list)
    changed: dict[str, Any] = field(default_factory=dict)


def decide(config: Config) -> Resumption:
    """What to do with a config's folder. Raises UserError where it holds another run, or may not be used."""
    folder = config.folder
    stored = folder / "config.yaml"
    used = stored.is_file()
    if config.run.resume == "never" and used:
        raise UserError(f"run.dir: {folder} holds a run: set run.resume auto to go on with it, or another run.dir")
    if folder.is_dir() and not used and any(path.name != ".lock" for path in folder.iterdir()):
        raise UserError(f"run.dir: {folder} holds other files: set another, or an empty folder")
    notes: list[str] = []
    changed: dict[str, Any] = {}
    if used:
        before = Config.from_dict(read_yaml(stored))
        changed, notes = compare(before.fields(), config.fields(), config.fields(free=False), folder)
        own, wrong = newest_valid(folder / "checkpoints")
        notes += [f"{one}: not used" for one in wrong]
        finished = status(folder).get("state") == "finished" and "train.duration" not in changed
        if own is not None:
            if config.run.resume != "auto":
                notes.append(f"run.resume: {folder} has its own checkpoint and goes on from that")
            return Resumption(own, finished, notes, changed)
    if config.run.resume in ("auto", "never"):
        return Resumption(None, False, notes, changed)
    start = _at(Path(config.run.resume))
    before = Config.from_dict(start.state["config"])
    changed, more = compare(before.fields(), config.fields(), config.fields(free=False), start.path)
    return Resumption(start, False, notes + more, changed)


def compare(
    before: Mapping[str, Any], now: Mapping[str, Any], identity: Mapping[str, Any], where: Path
) -> tuple[dict[str, Any], list[str]]:
    """(fields that differ and their new values, notes). Raises UserError where a field of the identity differs."""
    changed = {name: value for name, value in now.items() if before.get(name) != value and name != "run.resume"}
    refused = [
        f"{name}: {before.get(name)!r} there, {value!r} now"
        for name, value in changed.items()
        if name in identity and name not in _MAY_CHANGE
    ]
    if refused:
        raise UserError(
            f"{where}: holds a run of another config: {'; '.join(refused)}: set another run.dir, or these back"
        )
    notes = [f"{name}: {before.get(name)} before, {changed[name]} now" for name in _MAY_CHANGE if name in changed]
    return changed, notes


def _at(path: Path) -> Checkpoint:
    """The checkpoint at a path, or the newest whole one of the run there. Raises UserError."""
    if (path / checkpoint.MANIFEST).is_file() or path.name.startswith("update_"):
        return checkpoint.open_checkpoint(path)
    found, wrong = newest_valid(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    if found is None:
        raise UserError(f"run.resume: no whole checkpoint at {path}" + "".join(f"; {one}" for one in wrong))
    return found
