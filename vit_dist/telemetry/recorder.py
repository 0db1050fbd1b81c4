"""Record the lines of a run's metrics: metrics.jsonl, the history, the console, the trackers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vit_dist.plan.plan import Plan
from vit_dist.run_folder.metrics import Line, MetricsLog, position_fields
from vit_dist.telemetry.console import Console
from vit_dist.telemetry.trackers import Trackers


class Recorder:
    """The one way in which a line of metrics leaves a run. history: the lines that count, oldest first."""

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
        self.history = list(history)
        self._file = MetricsLog(path, writes=writes)
        console.copy = trackers.write

    def record(self, kind: str, position: int, values: Line) -> Line:
        """Record the values as a line of this kind at update `position`, and return the line.

        kind: start, train, eval, save or stop.
        """
        line = self._file.write(kind, {**position_fields(self.plan, position), **values})
        self.history.append(line)
        if kind == "train":
            self.console.progress(self.plan, line)
        elif kind == "eval":
            self.console.evaluation(line)
        self.trackers.log(line)
        return line

    def close(self) -> None:
        """End the trackers and close the file."""
        self.trackers.end()
        self._file.close()
