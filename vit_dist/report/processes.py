"""What the processes of a run did in the time of an update: computing, waiting for images, communicating."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vit_dist.run_folder.record import RunRecord


@dataclass(frozen=True)
class ProcessTimes:
    """Means over the updates of a run whose lines compare several processes, in seconds an update.

    busy: of the process that was busy for the shortest time in each line, of all, and of the one that was for the
    longest. data_wait: of the one that waited most for images. communication: of gradients, not hidden by computing.
    """

    update: float
    busy: tuple[float, float, float]
    data_wait: float
    communication: float

    @property
    def communication_fraction(self) -> float:
        """Return the share of an update that was communication."""
        return self.communication / self.update

    @property
    def range_text(self) -> str:
        """Return how long the processes were busy."""
        low, _, high = self.busy
        return f"{low:.3g} to {high:.3g} s"


def process_times(run: RunRecord) -> ProcessTimes | None:
    """Return the times of a run's processes; None if it was a single one, or they are not known."""
    train = run.metrics.train
    known = np.isfinite(train["busy_seconds_mean"]) & np.isfinite(train["communication_fraction"])
    updates, seconds = run.spans[known], train["update_seconds"][known]
    if not updates.sum():
        return None

    def mean(name: str, scale: float | np.ndarray = 1.0) -> float:
        return float(np.average(train[name][known] * scale, weights=updates))

    return ProcessTimes(
        update=float(np.average(seconds, weights=updates)),
        busy=(mean("busy_seconds_min"), mean("busy_seconds_mean"), mean("busy_seconds_max")),
        data_wait=mean("data_wait_fraction_max", seconds),
        communication=mean("communication_fraction", seconds),
    )


def processes_in_words(run: RunRecord) -> str:
    """Return a sentence on the processes of a run; empty if there is nothing to say."""
    times = process_times(run)
    if times is None:
        return ""
    busy = f"{times.busy[1]:.3g} s ({times.range_text})"
    return (
        f"an update takes {times.update:.3g} s, of which one is busy for {busy} and waits for images for "
        f"{times.data_wait / times.update:.0%} at most; {times.communication_fraction:.0%} is gradient communication "
        "that computing did not hide, the rest waiting for slower processes"
    )
