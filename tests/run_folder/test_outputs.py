"""Files that cannot be written: told once, tried again, no line of metrics lost or doubled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run_folder.full_disk import fill, small_disk
from vit_dist.files import json_values, write_text
from vit_dist.run_folder.metrics import MetricsLog, read_metrics
from vit_dist.run_folder.outputs import Outputs

FAILS = "cannot be written: {}: the run goes on and tries it again"


def updates_in(path: Path) -> list[int]:
    return [json.loads(text)["update"] for text in path.read_text(encoding="utf-8").splitlines()]


def test_a_failure_is_told_once_and_tried_again(tmp_path: Path) -> None:
    notes: list[str] = []
    outputs = Outputs(notes.append)
    path, other = tmp_path / "folder" / "file", tmp_path / "other"
    for text in "abc":
        outputs.write(path, lambda text=text: write_text(path, text))  # type: ignore[misc]
    assert notes == [f"{path}: {FAILS.format('No such file or directory')}"]
    assert outputs.failing == {path: "No such file or directory"}
    path.parent.mkdir()
    outputs.write(other, lambda: write_text(other, "1"))
    assert (path.read_text(), other.read_text(), outputs.failing) == ("c", "1", {})
    assert notes[1:] == [f"{path}: written again"]
    path.unlink()
    outputs.write(other, lambda: write_text(other, "2"))
    assert not path.exists()
    assert len(notes) == 2


def test_lines_wait_for_room_on_a_full_disk(tmp_path: Path) -> None:
    notes: list[str] = []
    with small_disk(tmp_path / "disk", "256k") as folder:
        path = folder / "metrics.jsonl"
        log = MetricsLog(path, Outputs(notes.append), writes=True)
        for update in range(4):
            log.write("train", {"update": update, "text": "x" * 1000})
        filler = fill(folder)
        for update in range(4, 20):
            log.write("train", {"update": update, "text": "x" * 1000})
        # What fits into the last block is there, as whole lines.
        assert updates_in(path) == list(range(len(updates_in(path))))
        assert 4 <= len(updates_in(path)) < 10
        assert notes == [f"{path}: {FAILS.format('No space left on device')}"]
        filler.unlink()
        log.write("train", {"update": 20})
        log.close()
        assert updates_in(path) == list(range(21))
        assert read_metrics(path) == log.lines
        assert notes[1:] == [f"{path}: written again"]


def test_a_limit_on_the_size_of_files_is_a_full_disk_too(tmp_path: Path) -> None:
    code = """
import json, resource, sys
from pathlib import Path
from vit_dist.run_folder.metrics import MetricsLog
from vit_dist.run_folder.outputs import Outputs

path = Path(sys.argv[1])
log = MetricsLog(path, Outputs(print), writes=True)
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
for update in range(50):
    log.write("train", {"update": update})
assert path.stat().st_size <= 1000
resource.setrlimit(resource.RLIMIT_FSIZE, before)
log.write("train", {"update": 50})
log.close()
"""
    path = tmp_path / "metrics.jsonl"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{path}: {FAILS.format('File too large')}", f"{path}: written again"]
    assert updates_in(path) == list(range(51))


@pytest.mark.parametrize("how", ["deleted", "emptied", "cut", "its folder is gone for a while"])
def test_a_file_that_is_lost_is_made_again(how: str, tmp_path: Path) -> None:
    notes: list[str] = []
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    log = MetricsLog(path, Outputs(notes.append), writes=True)
    for update in range(3):
        log.write("train", {"update": update})
    if how == "deleted":
        path.unlink()
    elif how == "its folder is gone for a while":
        path.parent.rename(tmp_path / "elsewhere")
        log.write("train", {"update": 3})
        (tmp_path / "elsewhere").rename(path.parent)
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if how == "emptied" else 100])
    for update in range(3 + ("gone" in how), 6):
        log.write("train", {"update": update})
    log.close()
    assert updates_in(path) == list(range(6))
    assert read_metrics(path) == log.lines
    assert len(notes) == (2 if "gone" in how else 0)


def test_a_resumed_log_makes_the_lines_before_again_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsLog(path, Outputs(print), writes=True)
    first.write("train", {"update": 1})
    first.close()
    log = MetricsLog(path, Outputs(print), read_metrics(path), writes=True)
    log.write("start", {"update": 1})
    assert updates_in(path) == [1, 1]
    path.unlink()
    log.write("train", {"update": 2})
    assert updates_in(path) == [1, 1, 2]


def test_a_file_that_somebody_replaced_or_added_to_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, Outputs(print), writes=True)
    log.write("train", {"update": 1})
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes() + b'{"kind": "mine", "update": 1}')  # an editor saves in this way
    other.rename(path)
    log.write("train", {"update": 2})
    with path.open("a") as file:
        file.write("\n\n")
    log.write("train", {"update": 3})
    assert [line["update"] for line in read_metrics(path) if line["kind"] == "train"] == [1, 2, 3]
    assert '{"kind": "mine", "update": 1}\n' in path.read_text()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root may become another user")
def test_a_folder_whose_permissions_are_taken_away(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from vit_dist.files import write_text
from vit_dist.run_folder.metrics import MetricsLog
from vit_dist.run_folder.outputs import Outputs

folder = Path(sys.argv[1])
status = folder / "status.json"
os.chown(folder, 65534, 65534)
os.seteuid(65534)
outputs = Outputs(print)
log = MetricsLog(folder / "metrics.jsonl", outputs, writes=True)
for update in range(6):
    if update == 2:
        folder.chmod(0)
    if update == 4:
        folder.chmod(0o700)
    log.write("train", {"update": update})
    outputs.write(status, lambda: write_text(status, str(update)))
os.seteuid(0)
"""
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    metrics, status = folder / "metrics.jsonl", folder / "status.json"
    fails = FAILS.format("Permission denied")
    told = [f"{metrics}: {fails}", f"{status}: {fails}", f"{metrics}: written again", f"{status}: written again"]
    assert done.stdout.splitlines() == told
    assert (updates_in(metrics), status.read_text()) == (list(range(6)), "5")


def test_json_never_holds_a_bare_nan() -> None:
    values = {"a": float("nan"), "b": [1.5, (float("inf"), None)], "c": {"d": -float("inf"), "e": "x", "f": True}}
    assert json_values(values) == {"a": "nan", "b": [1.5, ["inf", None]], "c": {"d": "-inf", "e": "x", "f": True}}
