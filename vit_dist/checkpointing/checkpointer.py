"""Save a run's checkpoints: a thread on rank 0 copies the run to the host, writes, links and prunes."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from vit_dist.checkpointing.checkpoint import why_broken
from vit_dist.checkpointing.folder import point_to_known, prune
from vit_dist.checkpointing.state import TrainState
from vit_dist.checkpointing.writer import Buffers, Snapshot, take_snapshot, write_snapshot
from vit_dist.errors import UserError, one_line
from vit_dist.formatting import size_text
from vit_dist.optim.ema import EMA
from vit_dist.optim.schedules import Schedule
from vit_dist.runtime.runtime import Runtime

_SECONDS_TO_GIVE_UP = 5.0


@dataclass
class _Save:
    """A checkpoint that is being written.

    stalled: the seconds in which the loop stood still for it. copied: set once training may change the tensors.
    """

    snapshot: Snapshot
    begun: float
    stalled: float = 0.0
    copied: threading.Event = field(default_factory=threading.Event)
    path: str = ""
    bytes: int = 0
    seconds: float = 0.0


@dataclass
class Checkpointer:
    """Saves the checkpoints of a run, one at a time, while training goes on.

    What a checkpoint holds is copied to the host while the forward and backward passes of the next update are made,
    which change none of it: `wait_for_copy` comes before each optimizer step.

    folder: of the checkpoints. keep: how many to keep, the best not counted. model: bare. about: what state.json holds
    that does not change during a run. whole: names of checkpoints known to be complete; broken: of those known not to
    be. The methods are called on all ranks alike unless they say otherwise.
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
    whole: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    _thread: threading.Thread | None = None
    _failure: str | None = None
    _given_up: bool = False
    _save: _Save | None = None
    _written: list[_Save] = field(default_factory=list)
    _buffers: Buffers = field(default_factory=dict)

    def save(self) -> None:
        """Begin to save the run as it is now, after the checkpoint before it has been written.

        Raises UserError, on all ranks, if one of them could not be written.
        """
        self.runtime.run_on_main(self._begin)

    def wait_for_copy(self) -> None:
        """Wait until training may change what a checkpoint that was begun holds, on rank 0."""
        if self._save is not None and not self._save.copied.is_set():
            start = time.perf_counter()
            self._save.copied.wait()
            self._save.stalled += time.perf_counter() - start

    def wait(self) -> None:
        """Wait until what was begun is written. Raises UserError, on all ranks, if it could not be."""
        self.runtime.run_on_main(self._join)

    def prune(self) -> None:
        """Remove what a save removes, on rank 0: a process that was killed may not have come to it. Raises OSError."""
        best = self.state.best
        if self.state.skipped_in_a_row:  # as in `_write`
            return
        prune(self.folder, self.keep, self.state.position, best.update if best else None, self._is_whole)

    def take_written(self) -> list[tuple[int, dict[str, Any]]]:
        """Return (position, values of its `save` line) of each checkpoint written since the last call, on rank 0."""
        lines = []
        while self._written:
            save = self._written.pop(0)
            values = {"path": save.path, "seconds": save.seconds, "stall_seconds": save.stalled, "bytes": save.bytes}
            lines.append((save.snapshot.position, values))
        return lines

    def close(self, *, wait: bool = True) -> None:
        """Let the checkpoint that is being written come to its end, whatever it is; or give it up.

        wait: False gives it up, and waits only as long as a disk takes for a piece of it.
        """
        self._given_up = not wait
        if self._thread is not None:
            self._thread.join(None if wait else _SECONDS_TO_GIVE_UP)

    def _begin(self) -> None:
        """Start the thread that copies and writes the run as it is now."""
        start = time.perf_counter()
        self._join()
        snapshot = self._snapshot()
        self._check_space(snapshot)
        self._save = _Save(snapshot, start)
        ready = self.runtime.record_event()
        self._thread = threading.Thread(target=self._run, args=(self._save, ready), name="checkpoint", daemon=True)
        self._thread.start()
        self._save.stalled += time.perf_counter() - start

    def _join(self) -> None:
        """Wait for the thread. Raises UserError for its failure."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            raise UserError(self._failure)

    def _snapshot(self) -> Snapshot:
        """Return everything that the checkpoint holds."""
        scaler = self.runtime.scaler
        content = {
            "train_state": self.state.to_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            **self.about,
        }
        return take_snapshot(self.state.position, self.model, self.optimizer, content, self.average)

    def _check_space(self, snapshot: Snapshot) -> None:
        """Check that the disk has room for a snapshot. Raises UserError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise UserError(self._cannot(error)) from None
        if free < snapshot.bytes:
            sizes = f"{size_text(snapshot.bytes)} are needed and {size_text(free)} free"
            raise UserError(f"{self.folder}: a checkpoint cannot be written: {sizes}: make room, then run it again")

    def _run(self, save: _Save, ready: Any) -> None:
        """Copy and write a checkpoint; a failure is kept for the loop. Runs in a thread of its own.

        ready: when the device has done what the checkpoint holds.
        """
        try:
            with self.runtime.side_stream(ready):
                copies = save.snapshot.copied(self._buffers)
            save.copied.set()
            path, save.bytes = self._write(copies)
        except Exception as error:  # must reach the loop, whatever it is
            self._failure = self._cannot(error)
            self.runtime.flags.fail()
            return
        finally:
            save.copied.set()
        save.path = str(path.relative_to(self.folder.parent))
        save.seconds = time.perf_counter() - save.begun
        self._written.append(save)

    def _write(self, snapshot: Snapshot) -> tuple[Path, int]:
        """Write a checkpoint, point `last` and `best` at what they name and prune; return its path and bytes.

        Reads nothing that training changes and communicates with no rank. Raises OSError.
        """
        best, last_skipped = (snapshot.state["train_state"][name] for name in ("best", "last_skipped"))
        best_update = best["update"] if best is not None else None
        path, size = write_snapshot(self.folder, snapshot, self._check_wanted)
        self.whole.add(path.name)
        self.broken.discard(path.name)
        point_to_known(self.folder, snapshot.position, best_update)
        if snapshot.position not in last_skipped:  # else these weights may be what makes updates go wrong
            prune(self.folder, self.keep, snapshot.position, best_update, self._is_whole)
        return path, size

    def _check_wanted(self) -> None:
        """Raise InterruptedError if what is being written has been given up."""
        if self._given_up:
            raise InterruptedError("given up")

    def _is_whole(self, path: Path) -> bool:
        """Return whether a checkpoint is complete; each is read once in a run's life."""
        if path.name not in self.whole | self.broken:
            (self.whole if why_broken(path) is None else self.broken).add(path.name)
        return path.name in self.whole

    def _cannot(self, error: Exception) -> str:
        return f"{self.folder}: a checkpoint cannot be written: {one_line(error)}"
