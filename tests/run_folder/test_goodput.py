"""The time in which a run ran, without the pauses between a stop and its resume."""

from __future__ import annotations

import numpy as np
import pytest

from vit_dist.run_folder.goodput import USES, goodput, running_seconds, seconds_by_use


def test_the_time_before_a_start_is_a_pause() -> None:
    times = np.array([100.0, 103.0, 110.0, 1000.0, 1004.0])
    assert running_seconds(times, np.array([100.0, 1000.0])) == 10 + 4
    assert running_seconds(times[::-1], np.array([100.0, 1000.0])) == 10 + 4
    assert running_seconds(times, np.array([100.0])) == 904


def test_a_run_of_one_line_took_no_time() -> None:
    assert running_seconds(np.array([5.0]), np.array([5.0])) == 0
    assert running_seconds(np.empty(0), np.empty(0)) == 0


def start(time: float, update: int, started: float) -> dict[str, object]:
    return {"kind": "start", "time": time, "update": update, "started": started}


def trained(time: float, update: int, seconds: float, wait: float = 0.0) -> dict[str, object]:
    return {"kind": "train", "time": time, "update": update, "update_seconds": seconds, "data_wait_fraction": wait}


def evaluated(time: float, update: int, seconds: float, split: str = "val") -> dict[str, object]:
    return {"kind": "eval", "time": time, "update": update, "seconds": seconds, "split": split}


def saved(time: float, update: int, stalled: float) -> dict[str, object]:
    return {"kind": "save", "time": time, "update": update, "stall_seconds": stalled}


def test_each_second_goes_to_one_use_over_all_starts() -> None:
    lines = [
        start(103.0, 0, started=100.0),
        trained(113.0, 10, 1.0, wait=0.2),
        saved(113.5, 10, 0.25),
        evaluated(115.0, 10, 1.5),
        trained(125.0, 20, 1.0),
        evaluated(126.0, 20, 0.5),  # killed: the next start resumes from 10, in the middle of no line
        start(142.0, 10, started=140.0),
        trained(152.0, 20, 1.0),
        evaluated(153.0, 20, 0.5),
        trained(158.0, 25, 1.0),
        start(262.0, 23, started=260.0),  # and this one in the middle of a line
        trained(264.0, 25, 1.0),
        evaluated(266.0, 25, 2.0, "test"),
    ]
    seconds = seconds_by_use(lines, 267.0)
    assert list(seconds) == list(USES)
    assert seconds == pytest.approx(
        {
            "updates": 8.0 + 10.0 + 3.0 + 2.0,
            "waiting": 2.0,
            "evaluating": 1.5 + 0.5 + 2.0,
            "saving": 0.25,
            "starting": 3.0 + 2.0 + 2.0,
            "repeated": 10.0 + 0.5 + 2.0,
            "other": (26 - 3 - 10 - 0.25 - 1.5 - 10 - 0.5) + (18 - 2 - 10 - 0.5 - 5) + (7 - 2 - 2 - 2),
            "downtime": (140 - 126) + (260 - 158),
        }
    )
    assert sum(seconds.values()) == pytest.approx(267 - 100)
    assert goodput(seconds) == pytest.approx(23 / (167 - 116))


def test_a_test_evaluation_is_done_again_after_any_start() -> None:
    lines = [start(1.0, 0, 0.0), evaluated(3.0, 5, 2.0, "test"), start(5.0, 5, 4.0), evaluated(7.0, 5, 2.0, "test")]
    seconds = seconds_by_use(lines, 7.0)
    assert (seconds["repeated"], seconds["evaluating"]) == (2.0, 2.0)


def test_no_lines_give_no_goodput() -> None:
    seconds = seconds_by_use([], 5.0)
    assert set(seconds.values()) == {0.0}
    assert goodput(seconds) == 0.0
