"""Profile a window of updates: a trace for tools, and where the time went for people."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from vit_dist.config.values import parse_profile
from vit_dist.errors import one_line
from vit_dist.files import replacing
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.metrics import Line
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.time_use import TimeUse, time_use

# Updates before a profile that is to begin by itself: the first ones compile, choose kernels and fill buffers.
_WARM_UP = 10


def profiled_updates(text: str, position: int, plan: Plan) -> tuple[range, str]:
    """Return the positions of the updates that a `log.profile` asks for, and a note if there are none of them left.

    position: where this process begins.
    """
    if not text:
        return range(0), ""
    first, count = parse_profile(text)
    start = max(position, min(position + _WARM_UP, plan.updates - count)) if first is None else first - 1
    window = range(start, min(start + count, plan.updates))
    if position <= start < plan.updates:
        return window, ""
    return range(0), f"log.profile: nothing is profiled: this run makes updates {position + 1:,} to {plan.updates:,}"


class UpdateProfile:
    """Profiles a window of updates with torch's profiler, on every rank; rank 0 keeps its trace in the run's folder."""

    def __init__(self, window: range, runtime: Runtime, folder: Path) -> None:
        """window: positions, none to profile nothing. folder: the run's."""
        self.window = window
        self._runtime = runtime
        self._folder = folder / "profile"
        self._profiler: profile | None = None

    def before(self, position: int) -> None:
        """Begin, if the update at this position is the window's first."""
        if not self.window or position != self.window.start:
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints that a CPU is no GPU
        activities = [ProfilerActivity.CPU]
        if self._runtime.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._runtime.synchronize()
        self._profiler = profile(activities=activities)
        self._profiler.start()

    def is_due(self, position: int, *, over: bool) -> bool:
        """Return whether the window is complete now that `position` updates are made. over: whether these are all."""
        return self._profiler is not None and (over or position >= self.window.stop)

    def finish(self, position: int) -> tuple[Line, str]:
        """End the profile after update `position`, and return the values of its line, and what failed, if anything.

        Called on all ranks; the values of each are in the line.
        """
        use, trace, problem = None, None, ""
        try:
            use, trace, problem = self._take(f"updates_{self.window.start + 1}_to_{position}.json.gz")
            if self._runtime.device.type == "cuda" and not use.on_device:
                problem = (
                    problem or "log.profile: no kernels of the GPU were recorded (by CUPTI): the times are the host's"
                )
        except Exception as error:  # of any kind: a profile must not end a run
            problem = f"log.profile: {type(error).__name__}: {one_line(error, 200)}"
        ranks = [each for each in self._runtime.gather(_of_an_update(use) if use else None) if each]
        if use is None:
            return {}, problem
        line = _of_an_update(use)
        line |= {"first": self.window.start + 1, "updates": use.updates, "on_device": use.on_device, "trace": trace}
        line |= {"ranks": [each["parts"] for each in ranks]} if len(ranks) > 1 else {}
        return line, problem

    def close(self) -> None:
        """End a profile that is not complete."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            with contextlib.suppress(RuntimeError):  # the run may be failing, of which that would say nothing
                profiler.stop()

    def _take(self, name: str) -> tuple[TimeUse, str | None, str]:
        """Return the sums of the trace; the path in the run's folder that it was saved to; and why it was not."""
        assert self._profiler is not None
        self._runtime.synchronize()
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / name
            profiler.export_chrome_trace(str(written))
            with gzip.open(written, "rt", encoding="utf-8") as file:
                use = time_use(json.load(file)["traceEvents"])
            if not self._runtime.is_main:
                return use, None, ""
            path = self._folder / name
            try:
                self._folder.mkdir(exist_ok=True)
                with replacing(path) as hidden:
                    shutil.copyfile(written, hidden)
            except OSError as error:
                return use, None, f"{path}: cannot be written: {error.strerror or one_line(error)}"
        return use, f"{self._folder.name}/{name}", ""


def _of_an_update(use: TimeUse) -> dict[str, Any]:
    """Return the means of an update: seconds, seconds by part, kernels, copies to the device."""
    count = max(use.updates, 1)
    return {
        "update_seconds": use.seconds / count,
        "parts": {name: seconds / count for name, seconds in use.parts.items()},
        "kernels": use.kernels / count,
        "copies": use.copies / count,
    }


def in_words(line: Line) -> str:
    """Return a profile's line for the console."""
    total = line["update_seconds"] or 1.0
    parts = sorted(line["parts"].items(), key=lambda part: -part[1])
    shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts if seconds >= 0.005 * total)
    where = f"; trace: {line['trace']}" if line["trace"] else ""
    return f"profile of updates {line['first']:,} to {line['first'] + line['updates'] - 1:,}: {shares}{where}"
