"""Runs whose folder is damaged: every command answers from what is whole, and names what is not; no tracebacks."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runs import train_digits_run
from vit_dist.cli import main
from vit_dist.cli.runs import list_runs
from vit_dist.errors import UserError
from vit_dist.files import read_json, write_json
from vit_dist.report.comparison import write_comparison
from vit_dist.report.page import write_report
from vit_dist.run_folder.data_facts import FACTS
from vit_dist.run_folder.lines import ascending
from vit_dist.run_folder.metrics import read_columns, read_history, read_metrics
from vit_dist.run_folder.predictions import INPUTS, PREDICTIONS
from vit_dist.run_folder.record import COLUMNS, read_run
from vit_dist.run_folder.summary import read_summary

FILES = ("metrics.jsonl", "summary.json", "status.json", "config.yaml", FACTS, PREDICTIONS, INPUTS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_digits_run(tmp_path_factory)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
        return
    damaged: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "cut": lambda: content[: len(content) // 2],
        "junk": lambda: np.random.default_rng(0).bytes(5000),
        "another type": lambda: b"[1, 2, 3]\n",
        "nested": lambda: b"[" * 100_000 + b"\n",
    }
    path.write_bytes(damaged[how]())


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "junk", "another type", "nested"])
@pytest.mark.parametrize("name", FILES)
def test_a_report_of_a_damaged_run_names_what_is_damaged(
    name: str, how: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_run(run)
    damage(run / name, how)
    record = read_run(run)
    optional = how == "missing" and name in (FACTS, PREDICTIONS, INPUTS)
    assert (record.problems == []) == optional
    assert all(name in problem for problem in record.problems)
    # What is not damaged is what it was.
    assert record.config == whole.config
    if name != PREDICTIONS:
        assert record.predictions is not None
    if name != "summary.json":
        assert record.summary == whole.summary
    if name != "metrics.jsonl":
        np.testing.assert_array_equal(record.metrics.train["loss"], whole.metrics.train["loss"])
    assert (record.start["parameters"], record.start["device"]) == (whole.start["parameters"], whole.start["device"])
    if how in ("cut", "junk"):
        assert main(["report", str(run)]) == 0
        told = capsys.readouterr().err.splitlines()
        assert told == [f"note: {problem}" for problem in record.problems]
        page = (run / "report" / "index.html").read_text(encoding="utf-8")
        assert Path(record.problems[0].split(":")[0]).name in page


def test_lines_that_are_damaged_are_left_out(run: Path) -> None:
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    train = [number for number, text in enumerate(lines) if b'"train"' in text]
    line = json.loads(lines[train[0]])
    broken = [
        b'{"kind": "train", "upda\n',
        b"\x00\xff\xfe\n",
        b'{"kind": "train", "time": NaN, "update": 1}\n',
        b"null\n",
        b'{"kind": 5, "update": 3}\n',
        json.dumps({**line, "update": "7"}).encode() + b"\n",
        json.dumps({**line, "update": -1}).encode() + b"\n",
        json.dumps({**line, "update": 1 << 50, "loss": 99.0}).encode() + b"\n",
        json.dumps({**line, "update_seconds": "x"}).encode() + b"\n",
        json.dumps({**line, "update_seconds": None}).encode() + b"\n",
        json.dumps({"kind": "eval", "time": 1.0, "update": 1, "split": "val"}).encode() + b"\n",
        b'{"kind": "train"' + b" " * (20 << 20) + b"}\n",
    ]
    whole = read_run(run)
    path.write_bytes(b"".join([*lines[:2], *broken, *lines[2:]]) + b'{"kind": "tr')
    record = read_run(run)
    assert record.problems == [f"{path}: {len(broken)} damaged lines are left out"]
    for name, column in whole.metrics.train.items():
        np.testing.assert_array_equal(record.metrics.train[name], column)
    assert record.metrics.other_lines == whole.metrics.other_lines
    history, problem = read_history(path)
    assert history[0] == whole.metrics.other_lines[0]
    assert problem is not None
    assert len(read_metrics(path)) >= len(history)


def test_a_line_whose_update_was_displaced_is_left_out() -> None:
    values = np.asarray([1.0, 2, 900, 3, 4, 0, 5])
    assert values[ascending(values)].tolist() == [1, 2, 3, 4, 5]
    assert ascending(np.empty(0)).tolist() == []
    assert ascending(np.asarray([3.0, 3, 4])).sum() == 2


@pytest.mark.parametrize(
    "change",
    [
        {"updates": "60"}, {"updates": -1}, {"updates": 2.5}, {"device": None}, {"weights": "other"}, {"test": [1]},
        {"test": {"loss": "x", "top1": 1.0}}, {"best": {"update": 1}}, {"best": 5}, {"epochs": "nan"},
        {"best": {"update": 1, "metric": "top1", "value": None, "weights": "raw"}}, {"total_seconds": -1.0},
    ],
)  # fmt: skip
def test_a_summary_of_other_types_counts_as_damaged(change: dict[str, Any], run: Path) -> None:
    summary, problem = read_summary(run)
    assert (summary, problem) == (read_json(run / "summary.json"), None)
    write_json(run / "summary.json", {**read_json(run / "summary.json"), **change})
    assert read_summary(run) == (None, f"{run / 'summary.json'}: is damaged")
    assert read_run(run).summary == {}
    for name in read_json(run / "summary.json"):
        if name in ("device", "updates", "best"):
            values = {key: value for key, value in (summary or {}).items() if key != name}
            write_json(run / "summary.json", values)
            assert read_summary(run)[0] is None


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "status.json", PREDICTIONS, INPUTS])
def test_a_model_of_a_run_with_other_files_damaged_is_used(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / name, "junk")
    device = ["--run.device", "cpu", "--run.threads", "1"]
    assert main(["evaluate", str(run), *device]) == 0
    assert main(["export", str(run), str(tmp_path / "export")]) == 0
    told = capsys.readouterr().err
    assert ("the model card has no results" in told) == (name == "summary.json")


def fault(content: bytes, generator: np.random.Generator) -> bytes:
    """Return content with a few bytes changed, cut, or with a part doubled or zeroed."""
    data = bytearray(content)
    kind, place = generator.integers(5), int(generator.integers(max(len(data), 1)))
    if kind == 0 or not data:
        return bytes(data[:place])
    if kind == 1:
        data[place : place + 40] = bytes(len(data[place : place + 40]))
    elif kind == 2:
        data[place:place] = data[place : place + int(generator.integers(1, 200))]
    else:
        for _ in range(int(generator.integers(1, 6))):
            at = int(generator.integers(len(data)))
            # A digit or a letter in the place of another keeps JSON whole, and changes what it says.
            data[at] = int(generator.choice(list(b'0123456789-e."{}[],ntf\x00\xff')))
    return bytes(data)


def assert_faults_give_no_traceback(trained: Path, folder: Path, seeds: range, pages: int) -> None:
    """Damage one or two files at random; reading gives an answer or one line, and so does every so many-th report."""
    whole = {name: (trained / name).read_bytes() for name in FILES}
    shutil.copytree(trained, folder, symlinks=True)
    for seed in seeds:
        generator = np.random.default_rng(seed)
        for name in generator.choice(FILES, int(generator.integers(1, 3)), replace=False):
            (folder / name).write_bytes(fault(whole[name], generator))
        with contextlib.suppress(UserError):
            record = read_run(folder)
            for values in (record.train_seconds, record.spans):
                assert np.isfinite(values).all(), seed
            assert all(np.isfinite(seconds) for seconds in record.seconds.values()), seed
            if seed % pages == 0:
                write_report(folder)
        list_runs(folder, sort=["best", "test", "state", "when"][seed % 4])
        if seed % pages == 0:
            with contextlib.suppress(UserError):
                write_comparison([trained, folder], folder / "comparison")
        read_history(folder / "metrics.jsonl")
        read_columns(folder / "metrics.jsonl", COLUMNS)
        for name, content in whole.items():
            (folder / name).write_bytes(content)


def test_random_faults_give_no_traceback(trained: Path, tmp_path: Path) -> None:
    assert_faults_give_no_traceback(trained, tmp_path / "run", range(200), pages=50)


@pytest.mark.slow
def test_many_random_faults_give_no_traceback(trained: Path, tmp_path: Path) -> None:
    assert_faults_give_no_traceback(trained, tmp_path / "run", range(1000, 6000), pages=20)
