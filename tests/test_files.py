"""Staged files and folders get their name when they are complete; incomplete ones leave nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vit_dist import UserError
from vit_dist.files import publish, staged, write_json, write_text


def make(path: Path, *, folder: bool, error: BaseException | None = None) -> None:
    """Write a file, or a folder with a file in it; if there is an error, raise it before publishing."""
    with staged(path) as hidden:
        if folder:
            hidden.mkdir()
        (hidden / "half" if folder else hidden).write_text("half")
        if error is not None:
            raise error
        publish(hidden, path)


def test_file_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with staged(path) as hidden:
        assert (hidden.parent, hidden.name) == (tmp_path, ".writing_file")
        hidden.write_text("after")
        assert path.read_text() == "before"
        publish(hidden, path)
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exists", [False, True])
def test_folder_replaces_an_empty_folder(exists: bool, tmp_path: Path) -> None:
    path = tmp_path / "folder"
    if exists:
        path.mkdir()
    with staged(path) as hidden:
        hidden.mkdir()
        (hidden / "file").write_text("inside")
        publish(hidden, path)
    assert (path / "file").read_text() == "inside"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_is_not_empty_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "file").write_text("before")
    with pytest.raises(UserError) as caught:
        make(path, folder=True)
    end = "name a place in a folder of yours that exists"
    assert str(caught.value) == f"{path}: cannot be written: Directory not empty: {end}"
    assert (path / "file").read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, RuntimeError])
@pytest.mark.parametrize("folder", [False, True])
def test_nothing_is_left_after_an_error(error: type[BaseException], folder: bool, tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(error, match="as it was raised"):
        make(path, folder=folder, error=error("as it was raised"))
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_are_replaced(tmp_path: Path) -> None:
    (tmp_path / ".writing_model").mkdir()
    (tmp_path / ".writing_model" / "half").write_text("half")
    path = tmp_path / "model"
    with staged(path) as hidden:
        hidden.mkdir()
        publish(hidden, path)
    assert list(path.iterdir()) == []
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_a_device_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    device = tmp_path / "null"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    write_text(device, "x")
    write_json(device, {"a": 1})
    assert device.is_char_device()
    with pytest.raises(UserError, match=r"null: is a device: name a file or a folder$"), staged(device):
        pass
    assert device.is_char_device()


def test_a_hidden_file_of_the_users_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SECRET=1")
    write_text(tmp_path / "env", "text")
    assert (tmp_path / ".env").read_text() == "SECRET=1"
    assert (tmp_path / "env").read_text() == "text"
