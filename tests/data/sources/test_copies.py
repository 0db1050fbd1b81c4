"""Files of val and test that are in train too."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_dist.config.fields import DataConfig
from vit_dist.data.sources import copies
from vit_dist.data.sources.copies import copies_in_train
from vit_dist.data.sources.open import open_data


def write(root: Path, files: dict[str, bytes]) -> list[str]:
    """Write files below a folder, and return the notes on it."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return list(copies_in_train(open_data(DataConfig(root=str(root), val_fraction=0.0))))


def test_copies_are_found_under_any_name(tmp_path: Path) -> None:
    files = {
        "train/cat/a.jpg": b"a" * 200_000,
        "train/dog/b.jpg": b"bb",
        "val/cat/other.jpg": b"a" * 200_000,
        "val/dog/new.jpg": b"xy",
        "test/cat/1.jpg": b"new",
        "test/dog/b.jpg": b"a" * 100_000 + b"b" * 100_000,
    }
    [note] = write(tmp_path, files)
    assert note == (
        f"1 of the 2 images of val is in train too ({tmp_path}/val/cat/other.jpg is {tmp_path}/train/cat/a.jpg): "
        "remove one of each, since nothing new is measured on them"
    )


def test_of_files_of_one_size_those_of_one_name_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = {f"train/{name}/{number}.bmp": f"{name}{number}".encode() for name in "ab" for number in range(5)}
    assert write(tmp_path, {**train, "test/a/0.bmp": b"a0", "test/b/new.bmp": b"b1", "test/b/2.bmp": b"zz"}) == [
        f"1 of the 3 images of test is in train too ({tmp_path}/test/a/0.bmp is {tmp_path}/train/a/0.bmp): remove one "
        "of each, since nothing new is measured on them"
    ]
    monkeypatch.setattr(copies, "_MOST_COMPARED", 2)
    more = {f"test/a/{number}.bmp": f"a{number}".encode() for number in range(5)}
    assert write(tmp_path, more)[0].startswith("at least 2 of the 7 images of test are ")
