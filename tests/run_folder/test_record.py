"""The record of a run, read from folders written by hand: spans, time breakdown, state, errors."""

from __future__ import annotations

import platform
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.run_folder.handwritten import (
    eval_line,
    make_run,
    save_line,
    some_inputs,
    some_predictions,
    start_line,
    train_line,
)
from tests.run_folder.test_lock import HOLDS, process
from vit_dist import UserError
from vit_dist.files import write_json
from vit_dist.run_folder.predictions import (
    INPUTS,
    PREDICTIONS,
    read_inputs,
    read_predictions,
    write_inputs,
    write_predictions,
)
from vit_dist.run_folder.record import COLUMNS, read_run


def test_spans_and_seconds_with_a_restart_in_the_middle(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "run",
        [
            start_line(0, 100.0),
            train_line(10, 102.0, update_seconds=0.2, data_wait_fraction=0.5),
            save_line(15, 103.0, 0.25),
            train_line(20, 104.0, update_seconds=9.0),  # superseded: the run was killed and resumed from 15
            eval_line(20, 105.0, seconds=99.0),
            start_line(15, 1000.0),
            train_line(20, 1002.0, update_seconds=0.4, data_wait_fraction=0.25),
            train_line(21, 1003.0, update_seconds=1.0, data_wait_fraction=0.0),
            eval_line(21, 1004.0, seconds=0.5),
            eval_line(21, 1004.5, seconds=0.25, weights="ema"),
            save_line(21, 1005.0, 0.125),
        ],
    )
    run = read_run(folder)
    assert run.metrics.train["update"].tolist() == [10, 20, 21]
    assert run.spans.tolist() == [10, 5, 1]
    assert run.train_seconds.tolist() == pytest.approx([2.0, 4.0, 5.0])
    # 5 s of updates, of which 10 · 0.2 · 0.5 + 5 · 0.4 · 0.25 s waiting; 3 s ran before the kill and 5 s after it.
    assert run.seconds == pytest.approx(
        {
            "updates": 3.5,
            "waiting for images": 1.5,
            "evaluating": 0.75,
            "saving": 0.375,
            "starting and ending": 8 - 5 - 0.75 - 0.375,
        }
    )
    assert run.start["update"] == 15
    assert [line["weights"] for line in run.evaluations("val", "raw")] == ["raw"]
    assert [line["seconds"] for line in run.evaluations("val", "ema")] == [0.25]
    assert run.evaluations("test", "raw") == []


def test_spans_with_several_restarts_between_two_lines(tmp_path: Path) -> None:
    starts = [start_line(4, 20.0), start_line(4, 30.0), start_line(7, 40.0)]
    lines = [start_line(0, 0.0), train_line(3, 1.0), *starts, train_line(9, 50.0), train_line(19, 60.0)]
    assert read_run(make_run(tmp_path / "run", lines)).spans.tolist() == [3, 2, 10]


def test_a_start_at_the_update_of_a_line(tmp_path: Path) -> None:
    lines = [start_line(0, 0.0), train_line(10, 1.0), start_line(10, 20.0), train_line(15, 50.0), train_line(20, 60.0)]
    assert read_run(make_run(tmp_path / "run", lines)).spans.tolist() == [10, 5, 5]


def test_total_time_of_a_finished_run_is_that_of_its_summary(tmp_path: Path) -> None:
    lines = [start_line(0, 0.0), train_line(10, 1.0), {"kind": "stop", "time": 2.0, "update": 10}]
    summary = {"total_seconds": 7.5, "train_seconds": 1.0}
    done = read_run(make_run(tmp_path / "done", lines, state="finished", summary=summary))
    assert done.summary == summary
    assert done.seconds["starting and ending"] == pytest.approx(6.5)
    # Once the run goes on with a longer duration, its old summary no longer holds.
    again = read_run(make_run(tmp_path / "again", lines, state="running", summary=summary))
    assert again.summary == {}
    assert again.seconds["starting and ending"] == pytest.approx(1.0)


def test_a_run_without_a_train_line(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", [start_line(0, 50.0)], run__name="mine"))
    assert run.name == "mine"
    assert set(run.metrics.train) == {"update", *COLUMNS}
    assert [len(run.spans), len(run.train_seconds)] == [0, 0]
    assert set(run.seconds.values()) == {0.0}
    assert run.predictions is None
    assert run.inputs is None
    assert run.status["state"] == "running"


def test_a_run_without_a_name_is_named_after_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "some run", [start_line(0, 50.0)])
    monkeypatch.chdir(folder)
    assert read_run(Path(".")).name == "some run"


def test_broken_json_files_count_as_empty(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [start_line(0, 50.0)])
    (folder / "status.json").write_text('{"state": "fin', encoding="utf-8")
    (folder / "summary.json").unlink(missing_ok=True)
    run = read_run(folder)
    assert [run.status, run.summary] == [{}, {}]


def message(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_run(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_folders_that_are_not_runs_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert message(missing) == f"{missing}: not a run's folder: no folder is there"
    assert message(tmp_path) == f"{tmp_path}: not a run's folder: it has no config.yaml"
    file = tmp_path / "file"
    file.touch()
    assert message(file) == f"{file}: not a run's folder: it is a file"
    folder = make_run(tmp_path / "run", [])
    assert message(folder) == f"{folder}: the run has not started yet: its metrics.jsonl has no start"
    (folder / "metrics.jsonl").unlink()
    assert message(folder) == f"{folder}: not a run's folder: it has no metrics.jsonl"


def test_predictions_and_inputs_are_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [start_line(0, 50.0)])
    write_predictions(folder / PREDICTIONS, some_predictions("abc"))
    write_inputs(folder / INPUTS, some_inputs("abc"))
    run = read_run(folder)
    assert run.predictions is not None
    assert run.inputs is not None
    assert run.predictions.captions() == [("a 70%", "c"), ("c 50%", "b")]
    assert run.inputs.captions() == ["a 75%, b 25%", "c"]


@pytest.mark.parametrize("name", [PREDICTIONS, INPUTS])
def test_a_foreign_or_broken_file_is_left_out_by_name(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run", [start_line(0, 50.0)])
    path = folder / name
    expected = f"{path}: is not a file that vit_dist wrote, or is broken: remove it"
    if name == PREDICTIONS:
        write_predictions(path, some_predictions("abc"))
        arrays = ("index", "label", "top", "probability", "shown", "pictures")
    else:
        write_inputs(path, some_inputs("abc"))
        arrays = ("pixels", "classes", "parts")
    read = read_predictions if name == PREDICTIONS else read_inputs
    whole = path.read_bytes()

    def assert_left_out() -> None:
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(caught.value) == expected
        run = read_run(folder)
        assert (run.problems, run.predictions, run.inputs) == ([expected], None, None)

    for content in (b"", b"no tensors at all", whole[: len(whole) // 2], whole[:12], whole[:-1]):
        path.write_bytes(content)
        assert_left_out()
    save_file({"weight": np.zeros(3, np.float32)}, path, {"about": "{}"})
    assert_left_out()
    save_file({array: np.zeros(3, np.float32) for array in arrays}, path)  # without metadata
    assert_left_out()


KILLED = "killed: the same command goes on from its last checkpoint"


def test_a_running_run_without_a_process_was_killed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [start_line(0, 50.0)])
    here = {"state": "running", "update": 0, "host": platform.node()}
    write_json(folder / "status.json", here)
    with process(HOLDS, folder, "holds") as running:
        assert read_run(folder).state == "running"
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert read_run(folder).state == KILLED
    (folder / ".lock").unlink()
    assert read_run(folder).state == KILLED


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"state": "running"}, "running"),
        ({"state": "running", "host": "another host"}, "running"),
        ({"state": "finished", "host": platform.node()}, "finished"),
        ({"state": "stopped", "host": platform.node()}, "stopped"),
        ({"state": "failed", "host": platform.node(), "reason": "OSError: no"}, "failed: OSError: no"),
        ({}, "unknown"),
    ],
)
def test_state_of_other_runs(tmp_path: Path, status: dict[str, Any], expected: str) -> None:
    folder = make_run(tmp_path / "run", [start_line(0, 50.0)])
    write_json(folder / "status.json", status)
    assert read_run(folder).state == expected
