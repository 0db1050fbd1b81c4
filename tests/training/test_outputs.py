"""Runs whose files or console cannot be written: they go on, and nothing that counts is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import custom_losses
from tests.conftest import REPOSITORY
from tests.run_folder.full_disk import fill, small_disk
from tests.training.test_run import digits
from vit_dist import Config, Run, train
from vit_dist.files import read_json
from vit_dist.run_folder.metrics import Line, read_metrics
from vit_dist.run_folder.predictions import PREDICTIONS

FAILS = "cannot be written: {}: the run goes on and tries it again"
SMALL = {"model__width": 16, "model__depth": 1, "batch__micro_size": 48, "log__trackers": "none"}


def run_with(folder: Path, actions: dict[int, Callable[[], None]], **more: object) -> Run:
    """Return a run of 20 updates, in whose forwards of those numbers the actions take place."""
    custom_losses.forwards, custom_losses.actions = 0, actions
    fields = {
        "loss__name": "tests.custom_losses:acting",
        "train__duration": "20 updates",
        "evaluate__every": "20 updates",
    }
    try:
        return train(digits(folder, **{**fields, **SMALL, **more}))
    finally:
        custom_losses.actions = {}


def lines_of(folder: Path) -> list[Line]:
    """Return all lines of metrics.jsonl, read by json alone."""
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_files_that_are_deleted_or_in_the_way_are_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    names = ["status.json", "progress.md", PREDICTIONS]

    def meddle() -> None:
        (folder / "metrics.jsonl").unlink()
        for name in names:
            (folder / name).unlink(missing_ok=True)
            (folder / name).mkdir()

    def tidy() -> None:
        updates = [line["update"] for line in lines_of(folder) if line["kind"] in ("start", "train")]
        assert updates == list(range(10))
        for name in names:
            (folder / name).rmdir()

    run = run_with(folder, {6: meddle, 10: tidy}, evaluate__every="3 updates")
    assert lines_of(folder) == run.history == read_metrics(folder / "metrics.jsonl")
    assert [line["update"] for line in run.history if line["kind"] == "train"] == list(range(1, 21))
    assert read_json(folder / "status.json")["state"] == "finished"
    assert "problems" not in read_json(folder / "status.json")
    assert "| 18 |" in (folder / "progress.md").read_text()
    told = [line for line in capsys.readouterr().out.splitlines() if "written" in line]
    fails = FAILS.format("Is a directory")
    assert sorted(told) == sorted(
        [text for name in names[:2] for text in (f"{folder / name}: {fails}", f"{folder / name}: written again")]
    )


def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filler: list[Path] = []
    seen: list[str] = []
    with small_disk(tmp_path / "run", "8m") as folder:

        def empty() -> None:
            seen.extend(line["update"] for line in lines_of(folder))
            filler.pop().unlink()

        run = run_with(folder, {6: lambda: filler.append(fill(folder)), 16: empty})
        assert 5 <= len(seen) < 15
        assert lines_of(folder) == run.history
        assert [line["update"] for line in run.history if line["kind"] == "train"] == list(range(1, 21))
        assert read_json(folder / "summary.json") == run.summary
        metrics, status = folder / "metrics.jsonl", folder / "status.json"
    told = [line for line in capsys.readouterr().out.splitlines() if "written" in line]
    fails = FAILS.format("No space left on device")
    again = [f"{path}: written again" for path in (metrics, status)]
    assert sorted(told) == sorted([f"{metrics}: {fails}", f"{status}: {fails}", *again])


def command(folder: Path, *more: str) -> list[str]:
    fields = {
        **{"run.dir": folder, "run.device": "cpu", "run.threads": 1, "model.width": 16, "model.depth": 1},
        **{"train.duration": "20 updates", "log.every": "1 updates", "log.trackers": "none", "log.report": "false"},
    }
    return [sys.executable, "-m", "vit_dist", "train", *(f"--{name}={value}" for name, value in fields.items()), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def assert_finished_without_console(folder: Path, reason: str) -> None:
    lines = lines_of(folder)
    assert [line["update"] for line in lines if line["kind"] == "train"] == list(range(1, 21))
    text = f"console: cannot be written: {reason}"
    assert [line["text"] for line in lines if line["kind"] == "note"] == [text]
    status = read_json(folder / "status.json")
    assert (status["state"], status["problems"]) == ("finished", [text])
    assert (folder / "summary.json").is_file()
    assert Config.load(folder / "config.yaml").fields()["model.width"] == 16


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_whose_reader_goes_does_not_end_the_run(unbuffered: str, tmp_path: Path) -> None:
    run = subprocess.Popen(
        command(tmp_path / "run"),
        cwd=tmp_path,
        env={**environment(), "PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert run.stderr is not None
    assert run.stdout.readline().startswith("run: new run")
    run.stdout.close()  # as `head -1` does
    assert run.stderr.read() == ""
    assert run.wait(80) == 0
    assert_finished_without_console(tmp_path / "run", "Broken pipe")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_the_log_does_not_end_the_run(unbuffered: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(tmp_path / "run"),
            cwd=tmp_path,
            env={**environment(), "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=full if unbuffered else subprocess.PIPE,
            text=True,
            timeout=80,
        )
    assert (done.returncode, done.stderr or "") == (0, "")
    assert_finished_without_console(tmp_path / "run", "No space left on device")


def test_answers_that_cannot_be_printed_are_no_success(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("a device that is always full")
    with Path("/dev/full").open("w") as full:
        for arguments in (["--help"], ["train", "--print_config"]):
            done = subprocess.run(
                [sys.executable, "-m", "vit_dist", *arguments],
                cwd=tmp_path,
                env=environment(),
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=80,
            )
            assert done.returncode == 1
            assert done.stderr == "vit-dist: standard output: cannot be written: No space left on device\n"
