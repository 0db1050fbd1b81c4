"""`vit-dist checkpoint`: list, verify and prune the checkpoints of a run."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from tests.checkpointing.states import change_json, copy_fixture, damage
from tests.cli.commands import command
from vit_dist.run_folder.lock import FolderLock

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run that was best at 4, then at 6, and is at 8."""
    for position, best in ((4, 4), (5, 4), (6, 6), (8, 6)):
        path = copy_fixture(tmp_path / "run" / "checkpoints", position, best)
        os.utime(path, (time.time() - 7200,) * 2)
    return tmp_path / "run"


def checkpoint(run: Path, position: int) -> Path:
    return run / "checkpoints" / f"update_{position:08d}"


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("*update_*"))


def test_list_shows_a_row_for_each(run: Path, capsys: Capture) -> None:
    lines = command(capsys, "checkpoint", "list", run).out.splitlines()
    assert [re.sub(r"  +", " | ", line) for line in lines] == [
        "checkpoint | update | epoch | size | age | complete",
        "update_00000004 | 4 | 0.10 | 22 KiB | 2 h 00 min | by size",
        "update_00000005 | 5 | 0.12 | 22 KiB | 2 h 00 min | by size",
        "update_00000006 | 6 | 0.15 | 22 KiB | 2 h 00 min | best | by size",
        "update_00000008 | 8 | 0.20 | 22 KiB | 2 h 00 min | last | by size",
    ]
    assert command(capsys, "checkpoint", "list", run / "checkpoints").out.splitlines() == lines
    text = damage(checkpoint(run, 6))
    assert command(capsys, "checkpoint", "list", run).out.splitlines() == lines
    result = command(capsys, "checkpoint", "list", run, "--verify")
    verified = [re.sub(r"  +", " | ", line) for line in result.out.splitlines()]
    assert verified[1].endswith(" | best | yes")
    assert verified[3] == "update_00000006 | 2 h 00 min | no"
    assert verified[5:] == [text]
    assert result.code == 0


def test_verify_has_a_line_for_each_and_fails_if_one_is_damaged(run: Path, capsys: Capture) -> None:
    result = command(capsys, "checkpoint", "verify", run)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [f"update_0000000{n}: complete, 22 KiB" for n in (4, 5, 6, 8)]
    text = damage(checkpoint(run, 5), "optimizer.safetensors")
    (checkpoint(run, 6) / "manifest.json").unlink()
    result = command(capsys, "checkpoint", "verify", run)
    assert result.code == 1
    assert result.out.splitlines()[1:3] == [
        f"update_00000005: damaged: {text}",
        f"update_00000006: damaged: {checkpoint(run, 6) / 'manifest.json'}: missing",
    ]
    assert command(capsys, "checkpoint", "verify", checkpoint(run, 4)).code == 0
    assert command(capsys, "checkpoint", "verify", checkpoint(run, 5)).out == f"update_00000005: damaged: {text}\n"
    assert command(capsys, "checkpoint", "verify", checkpoint(run, 6)).code == 1


def test_prune_keeps_the_newest_and_the_best(run: Path, capsys: Capture) -> None:
    (run / "checkpoints" / "best").symlink_to("update_00000004")
    result = command(capsys, "checkpoint", "prune", run, "--keep", 1)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "update_00000004: removed, 22 KiB",
        "update_00000005: removed, 22 KiB",
        "kept update_00000006 (best), update_00000008; 44 KiB removed",
    ]
    assert names(run) == ["update_00000006", "update_00000008"]
    assert os.readlink(run / "checkpoints" / "best") == "update_00000006"
    assert os.readlink(run / "checkpoints" / "last") == "update_00000008"
    assert command(capsys, "checkpoint", "prune", run, "--keep", 5).code == 0
    assert names(run) == ["update_00000006", "update_00000008"]


def test_prune_counts_complete_ones_alone_and_leaves_the_damaged(run: Path, capsys: Capture) -> None:
    text = damage(checkpoint(run, 8))
    result = command(capsys, "checkpoint", "prune", run, "--keep", 2)
    assert result.out.splitlines() == [
        "update_00000004: removed, 22 KiB",
        f"update_00000008: left, --damaged removes it: {text}",
        "kept update_00000005, update_00000006 (best); 22 KiB removed",
    ]
    assert names(run) == ["update_00000005", "update_00000006", "update_00000008"]
    result = command(capsys, "checkpoint", "prune", run, "--keep", 2, "--damaged")
    assert result.out.splitlines()[0] == f"update_00000008: removed: {text}"
    assert names(run) == ["update_00000005", "update_00000006"]


def test_prune_removes_nothing_if_none_is_complete(run: Path, capsys: Capture) -> None:
    for position in (4, 5, 6, 8):
        damage(checkpoint(run, position))
    result = command(capsys, "checkpoint", "prune", run, "--keep", 1, "--damaged")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"vit-dist: {run / 'checkpoints'}: holds no complete checkpoint: nothing is removed\n"
    assert len(names(run)) == 4


def test_prune_removes_nothing_beside_a_later_format(run: Path, capsys: Capture) -> None:
    change_json(checkpoint(run, 5), "state.json", lambda state: state | {"format": 9})
    result = command(capsys, "checkpoint", "prune", run, "--keep", 1)
    assert result.code == 2
    assert "format 9, and this version of vit_dist reads formats up to 2" in result.err
    assert len(names(run)) == 4
    assert "unknown" in command(capsys, "checkpoint", "list", run).out


def test_prune_refuses_while_a_process_trains_there(run: Path, capsys: Capture) -> None:
    lock = FolderLock(run)
    result = command(capsys, "checkpoint", "prune", run, "--keep", 1)
    assert (result.code, result.out) == (2, "")
    assert result.err == (f"vit-dist: {run}: a process trains there: prune when it has ended, or set checkpoint.keep\n")
    lock.release()
    assert command(capsys, "checkpoint", "prune", run, "--keep", 1).code == 0


def test_what_prune_was_removing_when_it_died_does_not_look_complete(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", die)
    assert command(capsys, "checkpoint", "prune", run, "--keep", 1).code == 130
    monkeypatch.undo()
    assert names(run) == [".removing_update_00000004", "update_00000005", "update_00000006", "update_00000008"]
    assert command(capsys, "checkpoint", "verify", run).code == 0
    assert command(capsys, "checkpoint", "prune", run, "--keep", 1).code == 0
    assert names(run) == ["update_00000006", "update_00000008"]


def test_mistakes_are_one_line(run: Path, tmp_path: Path, capsys: Capture) -> None:
    for words, line in (
        (["lst"], "checkpoint: takes list, verify or prune first, not lst; see vit-dist checkpoint --help"),
        (["list"], "checkpoint list: needs RUN: the folder of a run"),
        (["list", tmp_path], f"{tmp_path}: holds no checkpoints: name the folder of a run"),
        (["verify", tmp_path / "gone"], f"{tmp_path / 'gone'}: holds no checkpoints: name the folder of a run"),
        (["prune", run], "checkpoint prune: needs --keep N: complete checkpoints to keep, the best not counted"),
        (["prune", run, "--keep", "0"], "--keep: must be a whole number above 0, not 0"),
        (["list", run, "--keep", "1"], "--keep: no such flag; see --help for all flags"),
    ):
        result = command(capsys, "checkpoint", *words)
        assert (result.code, result.out, result.err) == (2, "", f"vit-dist: {line}\n")
    for words in ([], ["--help"]):
        assert command(capsys, "checkpoint", *words).out.startswith("usage: vit-dist checkpoint list RUN [--verify]\n")
