"""The time that a run took: how long it ran, without the pauses between a stop and its resume."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def running_seconds(times: NDArray[np.float64], starts: NDArray[np.float64]) -> float:
    """Return the seconds in which a run ran, from its first line to its last.

    times: of all its lines, in seconds since the epoch; starts: of its `start` lines. The time before a start, in
    which nothing ran, is not counted.
    """
    ordered = np.sort(times)
    return float(np.diff(ordered)[~np.isin(ordered[1:], starts)].sum())
