"""Save a run's checkpoints: a copy to the host, then the files, links and pruning on rank 0."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from vit_dist.checkpointing.folder import point_to, prune
from vit_dist.checkpointing.state import TrainState
from vit_dist.checkpointing.writer import Snapshot, take_snapshot, write_snapshot
from vit_dist.errors import UserError
from vit_dist.optim.ema import EMA
from vit_dist.optim.schedules import Schedule
from vit_dist.runtime.runtime import Runtime


@dataclass
class Checkpointer:
    """Saves the checkpoints of a run.

    folder: of the checkpoints. keep: how many to keep, the best not counted. model: bare. about: what state.json holds
    that does not change during a run. saved: the position of the last checkpoint in the folder.
    """

    folder: Path
    keep: int
    runtime: Runtime
    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    average: EMA | None
    state: TrainState
    about: Mapping[str, Any]
    saved: int | None = None

    def save(self) -> dict[str, Any]:
        """Save a checkpoint of now and return the values of its `save` line. Raises UserError, on all ranks alike."""
        start = time.perf_counter()
        path, size = self.runtime.run_on_main(lambda: self._write(self._snapshot()))
        self.saved = self.state.position
        seconds = time.perf_counter() - start
        return {"path": path, "seconds": seconds, "stall_seconds": seconds, "bytes": size}

    def _snapshot(self) -> Snapshot:
        """Copy everything that the checkpoint holds to the host."""
        scaler = self.runtime.scaler
        content = {
            "train_state": self.state.to_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            **self.about,
        }
        return take_snapshot(self.state.position, self.model, self.optimizer, content, self.average)

    def _write(self, snapshot: Snapshot) -> tuple[str, int]:
        """Write a snapshot, point `last` and `best` at it and prune; return its path in the run's folder and its bytes.

        Reads nothing that training changes. Raises UserError.
        """
        best = snapshot.state["train_state"]["best"]
        try:
            path, size = write_snapshot(self.folder, snapshot)
            point_to(self.folder, "last", path)
            if best is not None and best["update"] == snapshot.position:
                point_to(self.folder, "best", path)
            prune(self.folder, self.keep)
        except OSError as error:
            raise UserError(f"{self.folder}: a checkpoint cannot be written: {error}") from None
        return str(path.relative_to(self.folder.parent)), size
