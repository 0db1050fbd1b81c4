"""What a report says of the processes of a run, for runs written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.run_folder.handwritten import make_run, start_line, train_line
from vit_dist.report.about import about_rows
from vit_dist.report.curves import utilisation_curve
from vit_dist.report.faults import Finding, findings
from vit_dist.report.measures import run_figures
from vit_dist.report.processes import ProcessTimes, process_times
from vit_dist.report.speed import compare_speed
from vit_dist.run_folder.record import RunRecord, read_run


def ranks(update: int, low: float, high: float, **more: Any) -> dict[str, Any]:
    """Return a train line of two processes that were busy for so many seconds an update."""
    busy = {"busy_seconds_min": low, "busy_seconds_mean": (low + high) / 2, "busy_seconds_max": high}
    waits = {"data_wait_fraction_max": 0.1, "communication_fraction": 0.2}
    return train_line(update, float(update), **{"update_seconds": 1.0, **busy, **waits, **more})


def run_of(folder: Path, *lines: dict[str, Any]) -> RunRecord:
    return read_run(make_run(folder, [start_line(0, 0.0, world_size=2), *lines]))


def test_times_are_means_over_updates(tmp_path: Path) -> None:
    unknown = {"busy_seconds_min": None, "busy_seconds_mean": None, "communication_fraction": None}
    second = ranks(30, 1.0, 1.2, update_seconds=4.0, data_wait_fraction_max=0.4, communication_fraction=0.05)
    run = run_of(tmp_path / "run", ranks(10, 0.4, 0.6), second, ranks(40, 9.0, 9.0, **unknown))
    times = process_times(run)
    assert times is not None
    # Of 10 and of 20 updates.
    assert times.update == pytest.approx((1 + 2 * 4) / 3)
    assert times.busy == pytest.approx(((0.4 + 2 * 1.0) / 3, (0.5 + 2 * 1.1) / 3, (0.6 + 2 * 1.2) / 3))
    assert times.data_wait == pytest.approx((0.1 + 2 * 1.6) / 3)
    assert times.communication == pytest.approx((0.2 + 2 * 0.2) / 3)
    assert times.communication_fraction == pytest.approx(0.2 / 3)


def test_the_page_says_where_the_time_of_an_update_went(tmp_path: Path) -> None:
    run = run_of(tmp_path / "two", ranks(10, 0.4, 0.6))
    assert process_times(run) == ProcessTimes(1.0, (0.4, 0.5, 0.6), 0.1, 0.2)
    assert dict(about_rows(run, run_figures(run)))["Processes"] == (
        "an update takes 1 s, of which one is busy for 0.5 s (0.4 to 0.6 s) and waits for images for 10% at most; "
        "20% is gradient communication that computing did not hide, the rest waiting for slower processes"
    )
    [axes] = utilisation_curve(run).axes
    assert "communication" in [line.get_label() for line in axes.get_lines()]
    alone = read_run(make_run(tmp_path / "one", [start_line(0, 0.0), train_line(10, 1.0)]))
    assert process_times(alone) is None
    assert "Processes" not in dict(about_rows(alone, run_figures(alone)))
    [axes] = utilisation_curve(alone).axes
    assert "communication" not in [line.get_label() for line in axes.get_lines()]


def test_runs_are_compared_by_their_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_dist.report.speed._pictures", lambda *arguments: {})
    alone = read_run(make_run(tmp_path / "one", [start_line(0, 0.0), train_line(10, 1.0)]))
    two = run_of(tmp_path / "two", ranks(10, 0.4, 0.6))
    rows = compare_speed([alone, two], ["one", "two"], [0, 1]).rows
    assert ["communication", "–", "20.0 %"] in rows
    assert ["busy, by process", "–", "0.4 to 0.6 s"] in rows


def test_notes_of_the_run_are_findings(tmp_path: Path) -> None:
    note = {"kind": "note", "time": 20.0, "update": 10, "epoch": 1.0, "text": "process 1 on b is 35 % slower"}
    run = run_of(tmp_path / "run", ranks(10, 0.4, 0.6), note, {**note, "update": 11})
    assert Finding("Noted", "process 1 on b is 35 % slower") in findings(run, None)
    assert len([finding for finding in findings(run, None) if finding.name == "Noted"]) == 1
