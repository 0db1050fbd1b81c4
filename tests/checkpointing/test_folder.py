"""Which checkpoint of a folder is the newest, and which the best, whatever is damaged and wherever links lead."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.checkpointing.states import change_json, copy_fixture, damage
from vit_dist.checkpointing.folder import best_checkpoint, list_checkpoints, newest_valid, point_to_known, whole_beside
from vit_dist.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the checkpoints of a run that was best at 4, then at 6, and is at 8."""
    for position, best in ((4, 4), (5, 4), (6, 6), (8, 6)):
        copy_fixture(tmp_path / "checkpoints", position, best)
    return tmp_path / "checkpoints"


def update(position: int) -> str:
    return f"update_{position:08d}"


def test_the_best_is_what_the_newest_state_says(folder: Path) -> None:
    best, problems = best_checkpoint(folder)
    assert best is not None
    assert (best.position, best.is_best, problems) == (6, True, [])
    newest, _ = newest_valid(folder)
    assert newest is not None
    assert newest.position == 8


def test_a_damaged_best_is_named_and_the_best_before_it_used(folder: Path) -> None:
    text = damage(folder / update(6))
    best, problems = best_checkpoint(folder)
    assert best is not None
    assert (best.position, problems) == (4, [text])
    shutil.rmtree(folder / update(6))
    best, problems = best_checkpoint(folder)
    assert best is not None
    assert best.position == 4
    assert problems == [f"{folder / update(6) / 'manifest.json'}: missing"]


def test_the_state_of_a_damaged_newest_checkpoint_is_not_believed(folder: Path) -> None:
    texts = [damage(folder / update(8)), damage(folder / update(6), "state.json")]
    best, problems = best_checkpoint(folder)
    assert best is not None
    assert (best.position, problems) == (4, texts)


def test_without_a_complete_best_there_is_none(folder: Path) -> None:
    texts = [damage(folder / update(6)), damage(folder / update(4))]
    assert best_checkpoint(folder) == (None, texts)
    for position in (5, 8):
        change_json(folder / update(position), "state.json", lambda state: state | {
            "train_state": state["train_state"] | {"best": None}})  # fmt: skip
    assert best_checkpoint(folder) == (None, [])


def test_a_best_that_was_not_known_yet_when_it_was_saved(folder: Path) -> None:
    """A stop saves before the evaluation that is due; the next checkpoint then names it as the best."""
    change_json(folder / update(6), "state.json", lambda state: state | {
        "train_state": state["train_state"] | {"best": state["train_state"]["best"] | {"update": 4}}})  # fmt: skip
    best, _ = best_checkpoint(folder)
    assert best is not None
    assert best.position == 6


@pytest.mark.parametrize("target", ["update_00000005", "nowhere", "best", "..", "/etc"])
def test_links_are_not_believed(target: str, folder: Path) -> None:
    for name in ("best", "last"):
        (folder / name).symlink_to(target)
    best, problems = best_checkpoint(folder)
    assert best is not None
    assert (best.position, problems) == (6, [])


def test_only_folders_of_its_own_are_a_folders_checkpoints(folder: Path, tmp_path: Path) -> None:
    outside = copy_fixture(tmp_path / "elsewhere", 9, 9)
    (folder / update(9)).symlink_to(outside)
    for name in ("update_x", "update_0000001²", "update_7", ".writing_update_00000009"):
        shutil.copytree(outside, folder / name)
    (folder / update(10)).mkdir()
    (folder / update(11)).write_text("")
    assert [path.name for path in list_checkpoints(folder)] == [update(position) for position in (4, 5, 6, 8)]


def test_the_newest_is_that_of_the_largest_number(tmp_path: Path) -> None:
    for position in (99999999, 100000000):
        copy_fixture(tmp_path, position, None)
    newest, _ = newest_valid(tmp_path)
    assert newest is not None
    assert newest.position == 100000000


def test_whole_checkpoints_beside_a_damaged_one_are_named(folder: Path) -> None:
    damage(folder / update(5))
    damage(folder / update(8))
    assert whole_beside(folder / update(8)) == [update(4), update(6)]


def test_a_later_format_is_never_passed_over(folder: Path) -> None:
    change_json(folder / update(6), "state.json", lambda state: state | {"format": 9})
    with pytest.raises(UserError, match="format 9, and this version of vit_dist reads formats up to 2"):
        best_checkpoint(folder)
    assert whole_beside(folder / update(8)) == [update(4), update(5)]


@pytest.mark.parametrize("kind", ["bytes", "folder", "pipe", "loop"])
def test_what_stands_in_the_place_of_a_link_stops_nothing(kind: str, folder: Path) -> None:
    path = folder / "best"
    if kind == "bytes":
        path.write_bytes(b"\xff\x00")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("best")
    point_to_known(folder, 8, 6)
    assert os.readlink(folder / "last") == update(8)
    assert path.is_dir() if kind == "folder" else os.readlink(path) == update(6)
