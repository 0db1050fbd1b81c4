"""A run resumed in a folder that is damaged, incomplete, busy, read-only or whose data has changed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.run_folder.full_disk import small_disk
from tests.training.test_kill_points import CONFIG, config, result
from vit_dist import Config, UserError, train
from vit_dist.checkpointing.folder import list_checkpoints
from vit_dist.cli import main
from vit_dist.files import read_json, write_json
from vit_dist.run_folder.metrics import read_metrics


def flags(folder: Path, **more: str) -> list[str]:
    """Return the command that trains the small run in a folder."""
    values = {**CONFIG, "run.dir": str(folder), **{name.replace("__", "."): text for name, text in more.items()}}
    return [
        "train",
        "--config",
        "digits",
        *(word for name, value in values.items() for word in (f"--{name}", str(value))),
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run whose best update is 4 and whose last is 7."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(config(folder))
    assert [int(path.name[7:]) for path in list_checkpoints(folder / "checkpoints")] == [4, 7]
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def unfinished(folder: Path) -> None:
    """Make a finished run one that was killed before its summary."""
    (folder / "summary.json").unlink()
    write_json(folder / "status.json", {**read_json(folder / "status.json"), "state": "running"})


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_best_link_that_is_missing_or_wrong_changes_nothing(run: Path, finished: Path) -> None:
    unfinished(run)
    best = run / "checkpoints" / "best"
    best.unlink()
    best.symlink_to("update_00000007")
    train(config(run))
    assert result(run) == result(finished)
    assert os.readlink(best) == "update_00000004"


def test_a_damaged_best_is_named_and_the_run_finishes_without_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished(run)
    file = run / "checkpoints" / "update_00000004" / "model.safetensors"
    damage(file)
    ended = train(config(run))
    assert f"{file}: its SHA-256 is not the manifest's" in capsys.readouterr().out
    assert ended.summary["best"] is None
    assert ended.summary["test"] is not None
    assert file.is_file()  # damaged ones are never removed


def test_a_best_damaged_while_the_run_goes_on_is_not_tested_as_the_best(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last evaluation's weights lie in another checkpoint than its state says: what is tested is what is named."""
    unfinished(run)
    shutil.rmtree(run / "checkpoints" / "update_00000004")
    shutil.copytree(run / "checkpoints" / "update_00000007", run / "checkpoints" / "update_00000004")
    ended = train(config(run))
    assert "is of update 7, not of the folder's" in capsys.readouterr().out
    assert ended.summary["best"] is None


def test_as_many_damaged_checkpoints_as_are_kept_do_not_push_out_new_ones(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(Config.load("digits", {**CONFIG, "run.dir": str(folder), "checkpoint.keep": 3}))
    unfinished(folder)
    for name in ("update_00000005", "update_00000006", "update_00000007"):
        damage(folder / "checkpoints" / name / "optimizer.safetensors")
    values = {**CONFIG, "run.dir": str(folder), "train.duration": "12 updates", "checkpoint.keep": 3}
    longer = Config.load("digits", {**values, "checkpoint.every": "4 updates"})
    ended = train(longer)
    assert [line["update"] for line in ended.history if line["kind"] == "start"] == [0, 4]
    names = [int(path.name[7:]) for path in list_checkpoints(folder / "checkpoints")]
    assert {8, 12} <= set(names)
    assert {5, 6, 7} <= set(names)


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    shutil.rmtree(run / "checkpoints")
    assert main(flags(run)) == 2
    text = capsys.readouterr().err
    assert text == (
        f"vit-dist: run.dir: {run} holds a run that has saved, and none of its checkpoints is complete: "
        "bring one back, or set another run.dir to begin anew\n"
    )
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_by_name(run: Path) -> None:
    unfinished(run)
    for path in list_checkpoints(run / "checkpoints"):
        damage(path / "model.safetensors")
    pattern = (
        f"none of its checkpoints is complete; {run}.*update_00000007/model.safetensors: its SHA-256.*; .*0004/model"
    )
    with pytest.raises(UserError, match=pattern):
        train(config(run))


@pytest.mark.parametrize("broken", [b"", b"{", b"\xff\xfe", b'{"updates"', b"[]"])
def test_a_broken_summary_is_made_again(broken: bytes, run: Path, finished: Path) -> None:
    (run / "summary.json").write_bytes(broken)
    train(config(run))
    assert result(run) == result(finished)


@pytest.mark.parametrize("empty", [True, False])
def test_a_torn_config_is_replaced_by_that_of_the_checkpoint(
    empty: bool, run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished(run)
    stored = run / "config.yaml"
    stored.write_text("" if empty else stored.read_text()[:40] + "\nrun: [")
    with pytest.raises(UserError, match=r"holds a run of another config: optimizer\.lr: 1\.0 there, 0\.5 now"):
        train(Config.load("digits", {**CONFIG, "run.dir": str(run), "optimizer.lr": 0.5}))
    train(config(run))
    assert f"{run}/checkpoints/update_00000007's is used" in capsys.readouterr().out
    assert result(run) == result(finished)
    assert stored.read_text() == (finished / "config.yaml").read_text().replace(str(finished), str(run))


@pytest.mark.parametrize(
    "files", [[], [".lock"], [".lock", "status.json"], [".lock", "status.json", ".writing_config.yaml"]]
)
def test_a_run_killed_before_it_had_its_config_begins(files: list[str], tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("")
    train(config(folder))
    assert result(folder) == result(finished)


def test_a_folder_in_use_is_refused_before_anything_in_it_is_read(run: Path) -> None:
    damage(run / "checkpoints" / "update_00000007" / "model.safetensors")
    imports = "import sys, pathlib; from vit_dist.run_folder.lock import FolderLock"
    holding = f"{imports}; lock = FolderLock(pathlib.Path(sys.argv[1]))"
    other = subprocess.Popen(
        [sys.executable, "-c", f"{holding}; print('held', flush=True); sys.stdin.read()", str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(UserError) as caught:
        train(config(run))
    other.stdin.close()
    other.wait()
    other.stdout.close()
    assert str(caught.value) == f"run.dir: another process trains in {run}: wait for it, or set another"


def test_a_finished_run_on_a_read_only_disk_shows_its_summary(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        shutil.copytree(finished, disk / "run", symlinks=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=20)
        assert main(flags(disk / "run", log__level="info")) == 0
        assert "finished before" in capsys.readouterr().out
        assert main(flags(disk / "run", train__duration="8 updates")) == 2
        text = f"vit-dist: run.dir: {disk}/run cannot be written: set another\n"
        assert capsys.readouterr().err == text


def pictures(root: Path, count: int = 12) -> Path:
    """Write images of two classes, in `train` and `test`."""
    draws = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 4)):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(number):
                Image.fromarray(draws.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{index:02}.png")
    return root


def on_pictures(folder: Path, root: Path, **more: Any) -> Config:
    values = {**CONFIG, "data.root": str(root), "data.image_size": 8, "model.patch_size": 4, "data.workers": 0}
    values |= {"batch.global_size": 6, "batch.micro_size": 6, "train.duration": "4 updates"}
    changes = {name.replace("__", "."): value for name, value in more.items()}
    return Config.load("folder", {**values, "run.dir": str(folder), **changes})


def rename(root: Path) -> None:
    (root / "train" / "cat" / "03.png").rename(root / "train" / "cat" / "zz.png")


def replace_one(root: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "test" / "dog" / "01.png")


def remove(root: Path) -> None:
    (root / "train" / "dog" / "00.png").unlink()


def reclass(root: Path) -> None:
    (root / "test" / "dog" / "01.png").rename(root / "test" / "cat" / "09.png")
    (root / "test" / "cat" / "01.png").rename(root / "test" / "dog" / "09.png")


@pytest.mark.parametrize("over", [True, False])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (rename, r"1 image added \(train/cat/zz.png\), 1 image removed \(train/cat/03.png\)"),
        (replace_one, r": 1 image changed \(test/dog/01.png\): bring"),
        (remove, r": 1 image removed \(train/dog/00.png\)"),
        (reclass, r": 2 images added \(test/cat/09.png, .*\), 2 images removed \(test/cat/01.png, test/dog/01.png\)"),
    ],
)
def test_other_data_under_the_same_config_is_refused_with_what_differs(
    change: Any, text: str, over: bool, tmp_path: Path
) -> None:
    root = pictures(tmp_path / "pictures")
    train(on_pictures(tmp_path / "run", root))
    if not over:
        unfinished(tmp_path / "run")
    change(root)
    with pytest.raises(UserError, match=text) as caught:
        train(on_pictures(tmp_path / "run", root))
    assert str(caught.value).startswith(f"data: not what {tmp_path / 'run'} was trained on: ")
    assert str(caught.value).endswith(
        ": bring the old images (or data.leave_out) back, or set another run.dir or run.name, or none, for a new run"
    )
    assert "\n" not in str(caught.value)


def test_data_that_was_moved_is_the_same(tmp_path: Path) -> None:
    root = pictures(tmp_path / "pictures")
    first = train(on_pictures(tmp_path / "run", root))
    root.rename(tmp_path / "elsewhere")
    second = train(on_pictures(tmp_path / "run", tmp_path / "elsewhere"))
    assert second.summary == first.summary
    longer = train(on_pictures(tmp_path / "run", tmp_path / "elsewhere", train__duration="6 updates"))
    assert longer.summary["updates"] == 6


def test_labels_of_a_source_are_part_of_its_identity(tmp_path: Path) -> None:
    from vit_dist.data.sources.source import MemorySource

    pixels = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), np.uint8)
    labels = np.arange(60) % 3
    train(config(tmp_path / "run"), source=MemorySource(pixels, labels))
    with pytest.raises(
        UserError, match=r"^data: not what .*/run was trained on: other images of train; other images of val: bring"
    ):
        train(config(tmp_path / "run"), source=MemorySource(pixels, labels[::-1].copy()))
    train(config(tmp_path / "run"), source=MemorySource(pixels, labels))


def test_what_earlier_starts_left_half_written_is_removed(run: Path, finished: Path) -> None:
    unfinished(run)
    for name in (".writing_status.json", ".writing_summary.json", ".writing_config.yaml", ".writing_progress.md"):
        (run / name).write_text("half")
    (run / ".writing_report").mkdir()
    (run / "checkpoints" / ".writing_update_00000099").mkdir()
    train(config(run))
    assert result(run) == result(finished)
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["update"] for line in lines if line["kind"] == "start"] == [0, 7]
    assert not re.search("half", (run / "progress.md").read_text())
