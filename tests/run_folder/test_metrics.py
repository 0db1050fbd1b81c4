"""metrics.jsonl: its columns and lines agree, however often a run was stopped, killed and started again."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_dist.files import json_number, read_json, write_json
from vit_dist.run_folder.metrics import MetricsLog, read_columns, read_metrics
from vit_dist.run_folder.outputs import Outputs

NAMES = ("loss", "top1", "lr", "never_written")


def start(update: int, time: float) -> dict[str, Any]:
    return {"kind": "start", "time": time, "update": update}


def train(update: int, time: float, loss: Any = 1.0, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "time": time, "update": update, "loss": loss, "top1": None, "lr": 0.5, **more}


def evaluation(update: int, time: float, split: str = "val") -> dict[str, Any]:
    return {"kind": "eval", "time": time, "update": update, "split": split, "top1": 50.0}


def save(update: int, time: float) -> dict[str, Any]:
    return {"kind": "save", "time": time, "update": update}


def stop(update: int, time: float) -> dict[str, Any]:
    return {"kind": "stop", "time": time, "update": update}


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    """Write lines as JSON, and a text (a torn line) as it is; return the path."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def assert_readers_agree(path: Path) -> None:
    """Assert that `read_columns` and `read_metrics` agree on a file."""
    columns, expected = read_columns(path, NAMES), read_metrics(path)
    lines = [line for line in expected if line["kind"] == "train"]
    assert list(columns.train) == ["update", "time", *NAMES]
    for name, column in columns.train.items():
        values = [float("nan") if line.get(name) is None else float(line[name]) for line in lines]
        np.testing.assert_array_equal(column, np.asarray(values, np.float64), err_msg=name)
        assert column.dtype == np.float64
    assert columns.other_lines == [line for line in expected if line["kind"] != "train"]
    # Nothing ran between a stop and the start that resumes from it.
    spans = [after["time"] - before["time"] for before, after in pairwise(expected) if after["kind"] != "start"]
    assert columns.seconds == pytest.approx(sum(spans), abs=1e-6)
    assert columns.starts == [line for line in expected if line["kind"] == "start"]
    assert columns.restarts == [line for line in columns.starts if line["update"] > 0]


def test_a_start_supersedes_lines_of_later_updates(tmp_path: Path) -> None:
    path = write(
        tmp_path / "metrics.jsonl",
        start(0, 100.0),
        train(1, 110.0, 3.0),
        train(2, 120.0, 2.5),
        save(2, 121.0),
        evaluation(2, 122.0),
        train(3, 130.0, 9.0),
        evaluation(3, 131.0),
        start(2, 1000.0),
        train(3, 1010.0, 2.0),
        train(4, 1020.0, 1.0),
        evaluation(4, 1021.0),
        evaluation(4, 1022.0, "test"),
        stop(4, 1025.0),
        start(4, 5000.0),
        train(5, 5007.0, 0.5),
    )
    columns = read_columns(path, ["loss"])
    assert columns.train["update"].tolist() == [1, 2, 3, 4, 5]
    assert columns.train["loss"].tolist() == [3.0, 2.5, 2.0, 1.0, 0.5]
    assert columns.train["time"].tolist() == [110.0, 120.0, 1010.0, 1020.0, 5007.0]
    assert [(line["kind"], line["time"]) for line in columns.other_lines] == [
        ("start", 100.0),
        ("save", 121.0),
        ("eval", 122.0),
        ("start", 1000.0),
        ("eval", 1021.0),
        ("stop", 1025.0),
        ("start", 5000.0),
    ]
    assert [line["update"] for line in columns.restarts] == [2, 4]
    # From 100 to the last line that counts, 122; from 1000 to 1025; from 5000 to 5007.
    assert columns.seconds == 22 + 25 + 7
    assert_readers_agree(path)


def test_seconds_end_with_a_train_line_before_a_restart(tmp_path: Path) -> None:
    path = write(tmp_path / "m", start(0, 10.0), save(0, 11.0), train(5, 31.0), start(5, 131.0), stop(5, 133.0))
    assert read_columns(path, []).seconds == 21 + 2
    assert_readers_agree(path)


def test_a_restart_at_a_later_update_is_superseded_too(tmp_path: Path) -> None:
    path = write(tmp_path / "m", start(0, 0.0), train(3, 3.0), start(3, 10.0), train(4, 11.0), start(2, 20.0))
    columns = read_columns(path, ["loss"])
    assert [line["update"] for line in columns.restarts] == [2]
    assert len(columns.train["update"]) == 0
    assert columns.seconds == 0
    assert_readers_agree(path)


def test_a_start_at_update_0_supersedes_all_lines_but_the_start_before_it(tmp_path: Path) -> None:
    path = write(tmp_path / "m", start(0, 10.0), train(1, 11.0), evaluation(1, 12.0), start(0, 50.0), train(1, 54.0))
    columns = read_columns(path, [])
    assert columns.train["time"].tolist() == [54.0]
    assert columns.seconds == 4
    assert columns.restarts == []
    assert len(columns.starts) == 2
    assert_readers_agree(path)


def test_two_starts_without_a_train_line_between_them(tmp_path: Path) -> None:
    path = write(tmp_path / "m", start(0, 10.0), start(0, 50.0))
    assert read_columns(path, []).seconds == 0
    assert_readers_agree(path)


def test_torn_lines_are_left_out(tmp_path: Path) -> None:
    whole = json.dumps(train(2, 3.0))
    for cut in (1, 10, len(whole) // 2, len(whole) - 1):
        path = write(tmp_path / f"{cut}", start(0, 1.0), train(1, 2.0), whole[:cut], start(1, 8.0), train(2, 9.0))
        assert read_columns(path, []).train["time"].tolist() == [2.0, 9.0]
        assert_readers_agree(path)
        path.write_text(path.read_text(encoding="utf-8") + whole[:cut], encoding="utf-8")
        assert read_columns(path, []).train["time"].tolist() == [2.0, 9.0]
        assert_readers_agree(path)
    half = json.dumps({"kind": "train", "name": "é"}, ensure_ascii=False).encode()
    torn = tmp_path / "letter"
    torn.write_bytes(json.dumps(start(0, 1.0)).encode() + b"\n\n" + half[: half.index("é".encode()) + 1] + b"\n")
    assert [line["kind"] for line in read_columns(torn, []).other_lines] == ["start"]
    assert_readers_agree(torn)


def test_values_that_are_not_numbers(tmp_path: Path) -> None:
    losses = [None, "nan", "inf", "-inf", 2, 0.25]
    lines = [train(number, float(number), loss) for number, loss in enumerate(losses, 1)]
    columns = read_columns(write(tmp_path / "m", start(0, 0.0), *lines), NAMES)
    np.testing.assert_array_equal(columns.train["loss"], [np.nan, np.nan, np.inf, -np.inf, 2, 0.25])
    assert np.isnan(columns.train["never_written"]).all()
    assert np.isnan(columns.train["top1"]).all()
    assert_readers_agree(tmp_path / "m")


def test_a_file_without_a_train_line(tmp_path: Path) -> None:
    path = write(tmp_path / "m", start(0, 5.0), evaluation(0, 9.0), stop(0, 9.5))
    columns = read_columns(path, NAMES)
    assert {len(column) for column in columns.train.values()} == {0}
    assert columns.seconds == 4.5
    assert_readers_agree(path)
    empty = tmp_path / "empty"
    empty.touch()
    assert read_columns(empty, NAMES).other_lines == []
    assert read_columns(empty, NAMES).seconds == 0


def history(generator: np.random.Generator) -> list[dict[str, Any] | str]:
    """Return random lines of a run that is stopped, killed and started again, at ascending times."""
    lines: list[dict[str, Any] | str] = []
    now, checkpoints = 1000.0, [0]

    def tick(longest: float = 3.0) -> float:
        nonlocal now
        now += float(generator.uniform(0.01, longest))
        return now

    for _ in range(generator.integers(1, 6)):
        update = int(generator.choice(checkpoints[-3:]))
        checkpoints = [at for at in checkpoints if at <= update]
        lines.append(start(update, tick(500.0)))
        every = int(generator.integers(1, 5))
        for _ in range(generator.integers(0, 30)):
            update += 1
            if update % every == 0:
                loss = [float(generator.normal()), None, "nan", "inf"][generator.choice(4, p=[0.85, 0.05, 0.05, 0.05])]
                lines.append(train(update, tick(), loss))
            if generator.random() < 0.2:
                lines.append(evaluation(update, tick()))
            if generator.random() < 0.2:
                lines.append(save(update, tick()))
                checkpoints.append(update)
        end = generator.random()
        if end < 0.3:
            lines += [evaluation(update, tick(), "test"), stop(update, tick())]
            checkpoints.append(update)
        elif end < 0.6:
            whole = json.dumps(train(update + 1, tick()))
            lines.append(whole[: generator.integers(0, len(whole))])
    return lines


@pytest.mark.parametrize("seed", range(40))
def test_columns_and_lines_agree_on_any_history(tmp_path: Path, seed: int) -> None:
    assert_readers_agree(write(tmp_path / "metrics.jsonl", *history(np.random.default_rng(seed))))


def test_a_torn_line_stays_apart_when_a_log_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(start(0, 1.0)) + "\n" + '{"kind": "tra', encoding="utf-8")
    log = MetricsLog(path, Outputs(print), writes=True)
    line = log.write("stop", {"update": 0, "reason": "asked to stop"})
    log.close()
    assert [line["kind"] for line in read_metrics(path)] == ["start", "stop"]
    assert read_metrics(path)[1] == line
    assert line["time"] > 1.7e9
    MetricsLog(path, Outputs(print), writes=False).write("stop", {"update": 0})
    assert len(read_metrics(path)) == 2


def test_non_finite_numbers_become_text() -> None:
    assert [json_number(value) for value in (1.5, float("nan"), float("inf"), -float("inf"))] == [
        1.5,
        "nan",
        "inf",
        "-inf",
    ]


def test_json_files_are_replaced_atomically(tmp_path: Path) -> None:
    write_json(tmp_path / "status.json", {"state": "running"})
    write_json(tmp_path / "status.json", {"state": "finished", "time": 0.5})
    assert read_json(tmp_path / "status.json") == {"state": "finished", "time": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
