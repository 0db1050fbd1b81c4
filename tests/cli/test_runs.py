"""`vit-dist runs`: the table, sorted, filtered, cut to a width, as CSV; damaged folders, places without runs."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import command
from tests.report.runs import finished_run
from tests.report.test_ranking import folder_run
from tests.run_folder.handwritten import eval_line, make_run, start_line, train_line
from vit_dist.cli.runs import list_runs
from vit_dist.files import read_json, write_json


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a folder with three finished runs and one that was stopped, of digits, and one of images."""
    place = tmp_path / "runs"
    figures = {"split": "test", "seen": 359, "balanced_accuracy": 90.0, "macro_f1": 90.0, "baseline": 10.0}
    figures |= {"top1_interval": [88.5, 92.0], "macro_f1_interval": [88.0, 92.0]}
    finished_run(place / "slow", optimizer__lr=1e-4, test={"loss": 0.5, "top1": 90.0, "top5": 99.0}, figures=figures)
    finished_run(place / "fast", optimizer__lr=1e-2, val_loss=1.0, test={"loss": 0.4, "top1": 95.25, "top5": 99.0})
    finished_run(place / "sweep" / "wide", model__width=128, val_loss=1.5, test=None)
    lines = [start_line(0, 0.0, planned=60), train_line(10, 1.0), eval_line(10, 2.0, loss=2.0, best=True)]
    make_run(place / "half", lines, state="stopped")
    for number, name in enumerate(("slow", "fast", "sweep/wide", "half")):
        status = read_json(place / name / "status.json")
        write_json(place / name / "status.json", {**status, "time": 1.7e9 + 60 * number})
    return place


def names(output: str) -> list[str]:
    return [line.split()[0] for line in output.splitlines()[1:]]


def test_the_table_shows_what_a_run_came_to_newest_first(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = command(capsys, "runs", runs)
    assert (result.code, result.err) == (0, "")
    head, *rows = result.out.splitlines()
    assert head.split() == ["name", "data", "model", "changed", "best", "test", "%", "epochs", "time", "state", "when"]
    cells = [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in rows]
    when = [row.pop() for row in cells]
    assert cells == [
        ["half", "digits", "vit_tiny", "lr 0.003, width 96", "loss 2.0000 at 10", "1 of 6", "2.0 s", "stopped"],
        ["sweep/wide", "digits", "vit_tiny", "lr 0.003, width 128", "loss 1.5000 at 30", "3", "1 min 00 s", "finished"],
        ["fast", "digits", "vit_tiny", "lr 0.01, width 96", "loss 1.0000 at 30", "95.2", "3", "1 min 00 s", "finished"],
        ["slow", "digits", "vit_tiny", "lr 0.0001, width 96", "loss 1.2500 at 30", "90.0 ±2.0", "3", "1 min 00 s",
         "finished"],
    ]  # fmt: skip
    assert all("2023" in each for each in when)


def test_another_share_held_out_as_val_is_a_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_run(tmp_path / "runs" / "tenth", 5, 0.1)
    folder_run(tmp_path / "runs" / "fifth", 10, 0.2)
    rows = command(capsys, "runs", tmp_path / "runs", "--sort", "name").out.splitlines()[1:]
    assert ["val_fraction 0.2" in rows[0], "val_fraction 0.1" in rows[1]] == [True, True]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--sort", "name"], ["fast", "half", "slow", "sweep/wide"]),
        (["--sort", "best"], ["fast", "slow", "sweep/wide", "half"]),
        (["--sort", "test"], ["fast", "slow", "sweep/wide", "half"]),
        (["--sort", "state"], ["sweep/wide", "fast", "slow", "half"]),
        (["--state", "finished"], ["sweep/wide", "fast", "slow"]),
        (["--where", "optimizer.lr=1e-2"], ["fast"]),
        (["--where", "model.width=96, data.name=digits"], ["half", "fast", "slow"]),
        (["s"], ["sweep/wide", "fast", "slow"]),
        (["s", "w"], ["sweep/wide", "slow"]),
    ],
)
def test_runs_are_sorted_and_filtered(
    flags: list[str], expected: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names(command(capsys, "runs", runs, *flags).out) == expected


def test_mistakes_are_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, line in (
        (["--where", "optimizer.rate=1"], "--where: optimizer.rate: no such field (did you mean optimizer.name?)"),
        (["--where", "lr"], "--where: lr: write it as FIELD=VALUE, as in model.name=vit_tiny"),
        (["--sort", "loss"], "--sort: must be when, name, data, model, best, test, epochs, seconds or state, not loss"),
        (["--state", "done"], "--state: must be finished, running, stopped, failed or killed, not done"),
        (["--csv", f"{tmp_path}/no/a.csv"],
         f"--csv: {tmp_path}/no/a.csv cannot be written: there is no folder {tmp_path}/no"),
    ):  # fmt: skip
        result = command(capsys, "runs", runs, *words)
        assert (result.code, result.err, result.out) == (2, f"vit-dist: {line}\n", "")
    gone = command(capsys, "runs", tmp_path / "gone")
    assert (gone.code, gone.err) == (
        2, f"vit-dist: runs: {tmp_path / 'gone'}: there is no such folder: name a folder\n",
    )  # fmt: skip
    result = command(capsys, "runs", runs, "nothing")
    assert (result.code, result.err) == (0, f"{runs}: none of its 4 runs has these words and values\n")
    monkeypatch.chdir(tmp_path / "runs")
    result = command(capsys, "runs")
    assert (result.code, result.out) == (0, "")
    assert result.err == (
        "runs: no runs are in it yet: vit-dist train makes them; vit-dist train --data.root FOLDER, of your images\n"
    )


def test_damaged_runs_are_rows_of_one_cell(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "slow" / "config.yaml").write_text("run: [")
    (runs / "fast" / "metrics.jsonl").write_bytes(b"\xff\x00{" * 100)
    (runs / "fast" / "summary.json").write_text('{"updates": -1}')
    shutil.rmtree(runs / "half")
    (runs / "half").mkdir()
    (runs / "half" / "status.json").write_text("{}")
    result = command(capsys, "runs", runs, "--sort", "name")
    assert (result.code, result.err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in result.out.splitlines()[1:])
    assert rows["slow"].startswith("unreadable: config.yaml: not YAML: ")
    assert rows["fast"].startswith("unreadable: ")
    assert rows["half"] == "unreadable: not a run's folder: it has no config.yaml"
    assert rows["sweep/wide"].split()[:2] == ["digits", "vit_tiny"]


def test_a_table_fits_the_width_of_a_terminal(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for width in (140, 100, 80, 60, 40, 20):
        monkeypatch.setenv("COLUMNS", str(width))
        list_runs(runs)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) == 5
        assert [line.split()[0][:4] for line in lines[1:]] == ["half", "swee", "fast", "slow"]
        assert ("test %" in lines[0]) is (width >= 40)


def test_csv_has_every_number(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "slow").rename(runs / "=1+1")
    output = command(capsys, "runs", runs, "--sort", "test", "--csv", "-").out
    rows = list(csv.DictReader(io.StringIO(output)))
    assert [row["name"] for row in rows] == ["fast", "'=1+1", "sweep/wide", "half"]
    expected = {
        "test_top1": "90.0", "test_low": "88.5", "test_high": "92.0", "metric": "loss", "best": "1.25", "updates": "30",
        "best_update": "30", "changed": "lr 0.0001, width 96", "state": "finished", "seconds": "60.0",
    }  # fmt: skip
    assert {name: rows[1][name] for name in expected} == expected
    path = tmp_path / "runs.csv"
    assert command(capsys, "runs", runs, "--sort", "test", "--csv", path).out == f"{path}\n"
    assert path.read_text(encoding="utf-8") == output


def test_a_best_accuracy_has_its_margin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(tmp_path / "run", evaluate__metric="top1", val_top1=87.5)
    assert "  top1 87.5 ±12.2 at 30  " in command(capsys, "runs", tmp_path).out


def test_runs_on_data_of_one_name_are_told_apart(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fingerprint that a checkpoint keeps tells them, and what differs is said among runs on the same data."""
    for name, digest in (("slow", "a"), ("fast", "a"), ("sweep/wide", "b")):
        folder = runs / name / "checkpoints" / "update_00000030"
        folder.mkdir(parents=True)
        write_json(
            folder / "state.json", {"data": {"train": {"samples": 480, "sha256": digest}}, "classes": ["0", "1"]}
        )
    rows = {line.split()[0]: line for line in command(capsys, "runs", runs, "--state", "finished").out.splitlines()}
    assert "digits (2)" in rows["sweep/wide"]
    assert "width" not in rows["sweep/wide"]
    assert "digits (2)" not in rows["fast"]
    assert "lr 0.01 " in rows["fast"]


def test_torch_is_not_imported(runs: Path) -> None:
    code = (
        "import sys; from vit_dist.cli import main; assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code, "runs", runs], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "sweep/wide" in result.stdout
