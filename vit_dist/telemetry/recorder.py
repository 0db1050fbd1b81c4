"""Record the lines of a run's metrics: metrics.jsonl, the history, the console, the trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vit_dist.errors import UserError, one_line
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.metrics import Line, MetricsLog, position_fields
from vit_dist.run_folder.outputs import Outputs
from vit_dist.telemetry.console import Console
from vit_dist.telemetry.trackers import Trackers

# A function of the user's that is called with a line of metrics.
Callback = Callable[[Mapping[str, Any]], object]
# Kind of line → the argument of `train` that is called with it.
_CALLED = {"train": "on_update", "eval": "on_evaluation"}


class Recorder:
    """The one way in which a line of metrics leaves a run.

    outputs: writes the run's other files. callbacks: of the user's, by argument of `train`, set by it on rank 0.
    """

    def __init__(
        self,
        path: Path,
        plan: Plan,
        console: Console,
        trackers: Trackers,
        history: Sequence[Line] = (),
        *,
        writes: bool,
    ) -> None:
        """path: of metrics.jsonl, which `writes` says whether this rank writes. history: lines from before a resume."""
        self.plan = plan
        self.console = console
        self.trackers = trackers
        self.outputs = Outputs(console.note)
        self._log = MetricsLog(path, self.outputs, history, writes=writes)
        self.callbacks: Mapping[str, Callback] = {}
        self._lost: set[str] = set()
        console.copy = trackers.write

    @property
    def history(self) -> list[Line]:
        """Return the lines that count, oldest first."""
        return self._log.lines

    @property
    def problems(self) -> list[str]:
        """Return what cannot be written at the moment: the console, and files by name."""
        files = [f"{path.name}: {reason}" for path, reason in self.outputs.failing.items()]
        return ([self.console.lost] if self.console.lost else []) + files

    def record(self, kind: str, position: int, values: Line) -> Line:
        """Record the values as a line of this kind at update `position`, and return the line.

        kind: start, train, eval, save, profile, stop, or note, with a `text`. Raises UserError if a callback raises
        anything.
        """
        line = self._log.write(kind, {**position_fields(self.plan, position), **values})
        if kind == "train":
            self.console.progress(self.plan, line)
        elif kind == "eval":
            self.console.evaluation(line)
        self.trackers.log(line)
        if self.console.lost and self.console.lost not in self._lost:
            self._lost.add(self.console.lost)
            self.record("note", position, {"text": self.console.lost})
        argument = _CALLED.get(kind, "")
        if argument in self.callbacks:
            _call(argument, self.callbacks[argument], line)
        return line

    def close(self) -> None:
        """End the trackers, write what could not be written before, and close the file."""
        self.trackers.end()
        self.outputs.retry()
        self._log.close()


def check_callbacks(**callbacks: Callback | None) -> dict[str, Callback]:
    """Return those that are given. Raises UserError for one that cannot be called."""
    given = {argument: callback for argument, callback in callbacks.items() if callback is not None}
    for argument, callback in given.items():
        if not callable(callback):
            raise UserError(f"{argument}: must be a function of one line of metrics, not {type(callback).__name__}")
    return given


def _call(argument: str, callback: Callback, line: Line) -> None:
    """Call a user's function with a line that it cannot change. Raises UserError if it raises anything."""
    try:
        callback(MappingProxyType(line))
    except Exception as error:
        name = getattr(callback, "__name__", type(callback).__name__)
        raise UserError(f"{argument}: {name} raised {type(error).__name__}: {one_line(error, 200)}") from error
