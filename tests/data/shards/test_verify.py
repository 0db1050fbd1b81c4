"""`shards verify` reads every byte, and names what is damaged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.commands import command
from tests.data.shards.packing import packed
from tests.sharing import made_once
from vit_dist.data.shards.source import open_index


@pytest.fixture
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """Return a copy of shards that may be damaged."""
    made = made_once(tmp_path_factory, "shards_to_verify", lambda out: packed(image_folder, out))
    shutil.copytree(made, tmp_path / "shards")
    return tmp_path / "shards"


def change(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("processes", [1, 3])
def test_whole_shards_are_said_to_be_whole(shards: Path, processes: int, capsys: pytest.CaptureFixture[str]) -> None:
    result = command(capsys, "shards", "verify", shards, "--processes", processes)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{shards}: 16 shards, 81 images, ")
    assert result.out.endswith("all bytes are as they were written\n")


@pytest.mark.parametrize("processes", [1, 3])
def test_each_damaged_shard_and_image_is_named(
    shards: Path, processes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = open_index(shards).columns
    change(shards / "train-000000.tar", int(columns["offset"][2]) + 20)
    change(shards / "train-000000.tar", int(columns["offset"][4]))
    change(shards / "train-000002.tar", int(columns["offset"][11]) - 512 + 110)  # in a header
    os.truncate(shards / "train-000004.tar", 9000)
    (shards / "val-000001.tar").unlink()
    shutil.copy(shards / "train-000001.tar", shards / "train-999999.tar")
    names = [member.split(": ")[1] for member in (_name(shards, 2), _name(shards, 4))]
    result = command(capsys, "shards", "verify", shards, "--processes", processes)
    assert result.code == 1
    lines = [line.removeprefix(f"{shards}/") for line in result.out.splitlines()]
    assert lines[:5] == [
        "train-000000.tar: has other bytes than were written",
        f"train-000000.tar: {names[0]} is damaged",
        f"train-000000.tar: {names[1]} is damaged",
        "train-000002.tar: has other bytes than were written",
        "train-000002.tar: all its images are whole; what differs is between them",
    ]
    assert lines[5] == "train-000004.tar: has 9,000 bytes, not 20,480"
    assert 1 <= len(lines[6:-2]) <= 5
    assert all(line.startswith("train-000004.tar: ") and line.endswith(" is damaged") for line in lines[6:-2])
    assert lines[-2:] == [
        "val-000001.tar: cannot be read: No such file or directory",
        "train-999999.tar: is not in the index",
    ]
    assert "build the shards anew, or bring them back" in result.err


def test_a_damaged_index_is_named(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shards / "index" / "crc32.npy"
    change(path, -1)
    result = command(capsys, "shards", "verify", shards)
    assert result.code == 1
    assert result.out.startswith(f"{path}: has other bytes than were written: bring it back")


def _name(shards: Path, row: int) -> str:
    from vit_dist.data.shards.source import ShardSource
    from vit_dist.data.shards.storage import LocalFolder

    return ShardSource(open_index(shards), LocalFolder(shards)).image_name(row)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "{}/nowhere"], "shards: no folder {}/nowhere"),
        (["verify", "{}"], "{}: holds tar files without an index: vit-dist shards index {} writes it"),
        (["verify"], "shards verify: needs FOLDER: the folder of the shards"),
        (["count", "x"], "shards: takes build, index or verify first, not count; see vit-dist shards --help"),
        (["verify", "{}", "--processes", "0"], "--processes: must be a whole number above 0, not 0"),
    ],
)
def test_mistakes_are_told_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = command(capsys, "shards", *(word.format(tmp_path) for word in words))
    assert (result.code, result.err) == (2, f"vit-dist: {message.format(tmp_path, tmp_path)}\n")


def test_help_names_the_three(capsys: pytest.CaptureFixture[str]) -> None:
    result = command(capsys, "shards")
    assert result.code == 0
    verbs = [line.split("vit-dist shards ")[1].split()[0] for line in result.out.splitlines()[:3]]
    assert verbs == ["build", "index", "verify"]
