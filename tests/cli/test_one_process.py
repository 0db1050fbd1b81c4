"""Commands that are one process's work: refused by a launcher's several, untouched by what an earlier one has left."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import pytest

from tests.cli.commands import command
from tests.processes import run_world
from tests.runs import train_digits_run
from vit_dist.cli import main

COMMANDS = ("predict", "plan", "export", "report", "runs", "checkpoint", "config")


def answers() -> list[list[object]]:
    """Return the exit code and the output of each command in this process of several."""
    results: list[list[object]] = []
    for name in COMMANDS:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([name, "RUN"])
        results.append([code, out.getvalue(), err.getvalue()])
    return results


def test_several_processes_are_told_in_one_line_by_the_first(tmp_path: Path) -> None:
    first, second = run_world(2, answers, tmp_path)
    assert second == [[2, "", ""]] * len(COMMANDS)
    advice = "is one process's work, and WORLD_SIZE is 2: start it without a launcher, as vit-dist"
    assert first == [[2, "", f"vit-dist: {name} {advice} {name} …\n"] for name in COMMANDS]


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "1"},
        {"LOCAL_RANK": "3"},
        {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node0"},
        {"RANK": "1", "WORLD_SIZE": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "many"},
    ],
    ids=lambda left: " ".join(left),
)
def test_what_a_launcher_has_left_does_not_matter(
    left: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train_digits_run(tmp_path_factory)
    expected = command(capsys, "predict", run, "--split", "test", "--format", "csv").out
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # so that all of them come back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    os.environ.update(left)
    code, out, _ = command(capsys, "predict", run, "--split", "test", "--format", "csv")
    assert (code, out) == (0, expected)
    assert len(out.splitlines()) == 360
