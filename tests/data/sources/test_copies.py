"""Files of val and test that are in train too."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vit_dist.config.fields import DataConfig
from vit_dist.data.shards.build import build, plan_shards
from vit_dist.data.sources import copies
from vit_dist.data.sources.copies import copies_in_train
from vit_dist.data.sources.custom import from_source
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import sample_name


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


def test_copies_in_shards_are_found_by_their_checksums(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    files = {f"train/{label}/{number}.jpg": f"{label} {number}".encode() for label in "ab" for number in range(9)}
    files |= {"val/a/other.jpg": b"a 3", "val/a/again.jpg": b"a 3", "val/b/2.jpg": b"new"}
    files |= {"test/a/3.jpg": b"A 3", "test/b/3.jpg": b"b 33"}
    write(folder, files)
    build(plan_shards(open_data(DataConfig(root=str(folder))), 20_480), tmp_path / "out", 1)
    data = open_data(DataConfig(root=str(tmp_path / "out")))
    [note] = copies_in_train(data)
    assert note.startswith(f"2 of the 3 images of val are in train too, by length and checksum ({tmp_path}/out/val-")
    assert re.search(
        r"val-000000.tar: a/(other|again).jpg is .*/train-0\d+.tar: a/3.jpg\): leave one of each out", note
    )
    kept = data.splits["train"]
    without = kept.take(
        np.flatnonzero(["a/3.jpg" not in sample_name(kept.source, n, "") for n in kept.indices.tolist()])
    )
    assert list(copies_in_train(replace(data, splits={**data.splits, "train": without}))) == []


def test_copies_in_memory_are_found_pixel_for_pixel() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    labels = np.arange(20) % 2
    other = images[[3, 5, 8]].copy()
    other[2, 0, 0] ^= 1
    parts = {"train": (images, labels), "test": (other, labels[:3])}
    [note] = copies_in_train(from_source(parts, DataConfig(val_fraction=0.0)))
    assert note == (
        "2 of the 3 images of test are in train too, pixel for pixel: remove one of each, since nothing new is "
        "measured on them"
    )
    assert list(copies_in_train(from_source((images, labels), DataConfig()))) == []
    twice = np.concatenate([images, images[:10]])
    data = from_source((twice, np.arange(30) % 2), DataConfig(val_fraction=0.5))
    train, val = (set((data.splits[split].indices % 20).tolist()) for split in ("train", "val"))
    of_val = sum(index % 20 in train & val for index in data.splits["val"].indices.tolist())
    [note] = copies_in_train(data)
    assert of_val > 1
    assert note.startswith(f"{of_val} of the {len(data.splits['val'])} images of val are in train too, pixel for pixel")
