"""The log of metrics.jsonl: superseded and torn lines, flushing, other ranks; JSON files are replaced atomically."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from vit_dist.files import json_number, read_json, write_json
from vit_dist.run_folder.metrics import MetricsLog, read_metrics
from vit_dist.run_folder.outputs import Outputs


def test_a_start_line_supersedes_lines_of_later_updates(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, Outputs(print), writes=True)
    for kind, update in (("start", 0), ("train", 10), ("train", 20), ("eval", 20), ("train", 30)):
        assert log.write(kind, {"update": update})["kind"] == kind
    log.close()
    again = MetricsLog(path, Outputs(print), writes=True)
    again.write("start", {"update": 20})
    again.write("train", {"update": 25})
    again.close()
    assert len(path.read_text().splitlines()) == 7
    standing = [("start", 0), ("train", 10), ("train", 20), ("eval", 20), ("start", 20), ("train", 25)]
    assert [(line["kind"], line["update"]) for line in read_metrics(path)] == standing
    third = MetricsLog(path, Outputs(print), writes=True)
    third.write("start", {"update": 0})
    third.close()
    assert [(line["kind"], line["update"]) for line in read_metrics(path)] == [("start", 0), ("start", 0)]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, Outputs(print), writes=True)
    log.write("start", {"update": 0})
    log.write("train", {"update": 10, "loss": 1.5})
    log.close()
    whole = path.read_text()
    for torn in ('{"kind": "train", "upda', "{", "\n"):
        path.write_text(whole + torn)
        assert [line["update"] for line in read_metrics(path)] == [0, 10]


def test_lines_are_flushed_and_other_ranks_write_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, Outputs(print), writes=True)
    line = log.write("train", {"update": 1, "path": tmp_path})
    assert json.loads(path.read_text()) == {**line, "path": str(tmp_path)}
    assert log.write("train", {"update": 2, "loss": float("nan")})["loss"] == "nan"
    log.close()
    assert json.loads(path.read_text().splitlines()[1])["loss"] == "nan"
    silent = MetricsLog(tmp_path / "other.jsonl", Outputs(print), writes=False)
    assert silent.write("train", {"update": 3})["update"] == 3
    silent.close()
    assert not (tmp_path / "other.jsonl").exists()


def test_a_json_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"state": "running"})
    before = path.stat().st_ino
    with pytest.raises(ValueError):
        write_json(path, {"state": float("inf")})
    assert read_json(path) == {"state": "running"}
    with path.open() as old:
        write_json(path, {"state": "finished", "update": 3})
        assert json.load(old) == {"state": "running"}
    assert read_json(path) == {"state": "finished", "update": 3}
    assert path.stat().st_ino != before
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]


def test_non_finite_numbers_are_written_as_text() -> None:
    assert json_number(-1.5) == -1.5
    assert [json_number(value) for value in (math.nan, math.inf, -math.inf)] == ["nan", "inf", "-inf"]


def test_a_start_after_a_torn_line_still_supersedes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"kind": "train", "time": 0, "update": update} for update in (5, 9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    log = MetricsLog(path, Outputs(print), writes=True)
    log.write("start", {"update": 5})
    log.write("train", {"update": 6})
    log.close()
    assert [(line["kind"], line["update"]) for line in read_metrics(path)] == [("train", 5), ("start", 5), ("train", 6)]
