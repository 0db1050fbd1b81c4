"""Commands on a real terminal, and in front of a pipe whose reader goes."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from vit_dist.run_folder.metrics import read_metrics

TINY = {
    **{"run.device": "cpu", "run.threads": 1, "model.width": 16, "model.depth": 1, "model.heads": 2},
    **{"train.duration": "2 epochs", "log.trackers": "none", "log.report": "false", "batch.global_size": 256},
}


def on_terminal(folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    """Run a command with a terminal as its output and error; return its exit code and what it wrote."""
    cleared = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    env = {**cleared, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", "COLUMNS": "140", **environment}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vit_dist", *words]
    process = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    output = b""
    while True:
        try:
            output += (chunk := os.read(ours, 65536))
        except OSError:  # nobody writes any more
            break
        if not chunk:
            break
    os.close(ours)
    return process.wait(60), output.decode()


def test_training_shows_life_before_torch_is_there_and_keeps_a_table(tmp_path: Path) -> None:
    words = [f"--{name}={value}" for name, value in TINY.items()]
    code, output = on_terminal(tmp_path, "train", "--run.dir=run", *words)
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    order = ["starting  0 s", "run: new run", "trains", "first update after", "epoch  update", "finished: ", "next"]
    places = [plain.find(text) for text in order]
    assert places == sorted(places)
    assert -1 not in places
    assert plain.index("opening the data") > 0
    assert len(re.findall(r"  [12]\.\d +\d+/11  +\d\.\d{4}", plain)) == 2
    assert output.endswith("\r\n")
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h")
    assert "\x1b[1;32mfinished" in output


def test_a_mistake_is_red_on_a_terminal_unless_no_color_is_set(tmp_path: Path) -> None:
    line = 'vit-dist: --epochs: here it is --train.duration "3 epochs"'
    assert on_terminal(tmp_path, "train", "--epochs", "3") == (2, f"\x1b[31m{line}\x1b[0m\r\n")
    assert on_terminal(tmp_path, "train", "--epochs", "3", NO_COLOR="1") == (2, f"{line}\r\n")


@pytest.mark.slow
def test_a_run_whose_reader_goes_after_some_lines_ends_well(tmp_path: Path) -> None:
    words = " ".join(f"'--{name}={value}'" for name, value in TINY.items())
    command = f"{sys.executable} -m vit_dist train --run.dir=run {words} '--log.every=1 updates' | head -3"
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3
    notes = [line["text"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "note"]
    assert notes == ["console: cannot be written: Broken pipe"]


def test_rows_of_predict_are_not_mixed_with_a_live_line(tmp_path: Path) -> None:
    """Standard output is a pipe, as in front of `head`, and standard error the terminal."""
    fields = [f"--{name}={value}" for name, value in {**TINY, "train.duration": "1 updates"}.items()]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color"}
    start = [sys.executable, "-m", "vit_dist"]
    subprocess.run([*start, "train", "--run.dir=run", *fields], cwd=tmp_path, env=env, check=True, capture_output=True)
    ours, theirs = pty.openpty()
    words = ["predict", "run", "--split", "val", "--top", "1", "--format", "csv", "--run.threads=1"]
    process = subprocess.Popen([*start, *words], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    assert process.stdout is not None
    rows = process.stdout.read().decode().splitlines()
    assert process.wait(60) == 0
    assert len(rows) == 1 + 144
    assert all(row.count(",") == rows[0].count(",") and "\x1b" not in row for row in rows)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass
    os.close(ours)
    assert b"starting" in shown
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1
    assert shown.rstrip().endswith(b"images/s")
