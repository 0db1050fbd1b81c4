"""The folder of a run: lock it before it is read, create it or tidy it before it is written to."""

from __future__ import annotations

import contextlib
from pathlib import Path

import yaml

from vit_dist.checkpointing.folder import point_to_known, tidy
from vit_dist.checkpointing.state import TrainState
from vit_dist.config.config import Config
from vit_dist.data.fingerprint import SAMPLES, write_samples
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.data.sources.survey import survey
from vit_dist.errors import UserError
from vit_dist.files import WRITING, remove, write_durably, write_json
from vit_dist.run_folder.data_facts import FACTS
from vit_dist.run_folder.lock import FolderLock
from vit_dist.run_folder.status import write_status
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.resume import holds_run


def lock_run(folder: Path, runtime: Runtime) -> FolderLock | None:
    """Lock a folder that holds a run, on rank 0, before anything in it is read; None if it cannot be written to.

    Raises UserError, on all ranks, if another process trains there.
    """
    locks = []

    def lock() -> None:
        if holds_run(folder):
            with contextlib.suppress(OSError):
                locks.append(FolderLock(folder))

    runtime.run_on_main(lock)
    return locks[0] if locks else None


def claim_folder(
    config: Config, runtime: Runtime, state: TrainState, lock: FolderLock | None, data: LabelledSplits
) -> FolderLock | None:
    """Create the run's folder, or tidy what a killed run left in it, and return its lock on rank 0.

    lock: of a folder that held a run. A kill at any point leaves a folder that the next start takes. Raises UserError
    on all ranks.
    """
    folder, locks = config.folder, [lock] if lock else []

    def claim() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not locks:
                fresh = not holds_run(folder)
                locks.append(FolderLock(folder))
                if fresh and holds_run(folder):
                    raise UserError(f"run.dir: another process began a run in {folder} just now: start again")
            # Before the config: a finished run that is made longer must not look finished by its new one.
            write_status(folder, "running", state.position)
            write_durably(folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
            _remove_leftovers(folder)
            point_to_known(folder / "checkpoints", state.position, state.best.update if state.best else None)
            if state.position == 0 or not (folder / SAMPLES).exists():
                write_samples(folder / SAMPLES, data)
            write_json(folder / FACTS, survey(data).to_dict())
        except OSError as error:
            raise UserError(f"run.dir: {folder} cannot be written: {error.strerror}: set another run.dir") from None

    try:
        runtime.run_on_main(claim)
    except UserError:
        if locks and not lock:
            locks[0].release()
        raise
    return locks[0] if locks else None


def _remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed left half written. Raises OSError."""
    for path in folder.glob(f"{WRITING}*"):
        remove(path)
    tidy(folder / "checkpoints")
