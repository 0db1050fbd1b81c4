"""The time in which a run ran, without the pauses between a stop and its resume."""

from __future__ import annotations

import numpy as np

from vit_dist.run_folder.goodput import running_seconds


def test_the_time_before_a_start_is_a_pause() -> None:
    times = np.array([100.0, 103.0, 110.0, 1000.0, 1004.0])
    assert running_seconds(times, np.array([100.0, 1000.0])) == 10 + 4
    assert running_seconds(times[::-1], np.array([100.0, 1000.0])) == 10 + 4
    assert running_seconds(times, np.array([100.0])) == 904


def test_a_run_of_one_line_took_no_time() -> None:
    assert running_seconds(np.array([5.0]), np.array([5.0])) == 0
    assert running_seconds(np.empty(0), np.empty(0)) == 0
