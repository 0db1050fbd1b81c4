"""TensorBoard's files of a run, written through Accelerate's tracker in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_dist.errors import one_line
from vit_dist.run_folder.predictions import Pixels, SavedPredictions
from vit_dist.telemetry.background import Background

_SECONDS_TO_END = 10


class TensorBoardRun:
    """Writes what it is given, later and in order: storage that hangs holds up nothing but its thread."""

    def __init__(self, tracker: Any) -> None:
        """tracker: Accelerate's, started."""
        self.tracker = tracker
        self.background = Background()
        self._hook = threading.excepthook
        threading.excepthook = self._unless_of_tensorboard

    @classmethod
    def start(cls, folder: Path, fields: Mapping[str, Any], position: int) -> TensorBoardRun:
        """Start writing to `folder`/tensorboard, where what is of later updates than `position` is dropped."""
        from accelerate.tracking import TensorBoardTracker

        # The first argument is the name of the folder.
        tracker = TensorBoardTracker("tensorboard", str(folder), purge_step=position + 1)
        tracker.start()
        # Its table of settings holds plain values alone.
        tracker.store_init_configuration({n: x if isinstance(x, (int, float)) else str(x) for n, x in fields.items()})
        return cls(tracker)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write values of an update."""
        self.background.call(lambda: self.tracker.log(values, step=step))

    def show(self, name: str, pixels: Pixels, captions: Sequence[str], step: int) -> None:
        """Write pictures uint8 [n, channels, height, width] as one grid."""
        if len(pixels):
            self.background.call(lambda: self.tracker.tracker.add_images(name, pixels, global_step=step))

    def show_confusion(self, name: str, saved: SavedPredictions, step: int) -> None:
        """Write the confusion matrix of a split's predictions as a picture."""
        counts = saved.predictions.confusion(len(saved.metadata["classes"]))
        share = counts / counts.sum(1, keepdims=True).clip(1)
        self.background.call(lambda: self.tracker.tracker.add_image(name, share[None], global_step=step))

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Do nothing: TensorBoard has no table of runs."""

    def write(self, text: str) -> None:
        """Do nothing: TensorBoard shows no output."""

    def take_problems(self) -> list[str]:
        """Return nothing: an error ends it."""
        return []

    def end(self) -> str | None:
        """Write what is left and close the files, in a bounded time; return what went wrong, if anything."""
        ended = self.background.close(self.tracker.finish, _SECONDS_TO_END)
        threading.excepthook = self._hook
        if not ended:
            return f"still writing after {_SECONDS_TO_END} s"
        return one_line(self.background.error, 200) if self.background.error else None

    def _unless_of_tensorboard(self, error: threading.ExceptHookArgs) -> None:
        """Print a thread's error, unless it is TensorBoard's own, which comes here too and is told in one line."""
        if not type(error.thread).__module__.startswith("tensorboard."):
            self._hook(error)
