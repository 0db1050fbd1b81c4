"""The val split that is held out of a folder: stratified, keyed by each image's own path, steady."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.sources.trees import image, plant
from vit_dist.config.fields import DataConfig
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import LabelledSplits, all_of, stratified_split, with_val
from vit_dist.errors import UserError


def held_out(root: Path, fraction: float = 0.1) -> set[str]:
    """Return the images of val, from the root on."""
    data = open_data(DataConfig(root=str(root), val_fraction=fraction))
    names = {split: [path.relative_to(root).as_posix() for path in paths(data, split)] for split in data.splits}
    assert not set(names["train"]) & set(names["val"])
    return set(names["val"])


def paths(data: LabelledSplits, split: str) -> list[Path]:
    subset = data.splits[split]
    assert isinstance(subset.source, FileSource)
    return [subset.source.paths[index] for index in subset.indices.tolist()]


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ([14, 31, 38, 13], 0.1, [1, 3, 4, 1]),
        ([1, 2, 3, 4, 15], 0.1, [0, 1, 1, 1, 2]),
        ([5, 10], 0.5, [3, 5]),
        ([2, 3], 0.5, [1, 2]),
        ([1000, 3], 0.01, [10, 1]),
    ],
)
def test_each_class_gives_its_share_and_one_at_least(counts: list[int], fraction: float, expected: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    subset = all_of(MemorySource(np.zeros((len(labels), 1, 2, 2), np.uint8), labels))
    draws = np.random.default_rng(0).integers(0, 2**64, len(labels), dtype=np.uint64)
    val, rest = stratified_split(subset, fraction, draws)
    assert np.bincount(val.labels, minlength=len(counts)).tolist() == expected
    assert sorted([*val.indices.tolist(), *rest.indices.tolist()]) == list(range(len(labels)))
    for label, count in enumerate(expected):  # those with the lowest keys
        of_class = np.flatnonzero(labels == label)
        lowest = of_class[np.argsort(draws[of_class])][:count]
        assert sorted(val.indices[val.labels == label].tolist()) == sorted(lowest.tolist())


def test_the_place_of_an_image_follows_from_its_path_in_the_data(tmp_path: Path) -> None:
    """Not from where the folder is, its split's folder, its links or its bytes; pinned, as runs depend on it."""
    plant(tmp_path / "pets", {"cat": 30, "dog": 20})
    expected = held_out(tmp_path / "pets")
    assert len(expected) == 5
    plant(tmp_path / "moved" / "Train", {"cat": 30, "dog": 20})
    assert held_out(tmp_path / "moved") == {f"Train/{name}" for name in expected}
    for name in ("cat", "dog"):
        for path in (tmp_path / "pets" / name).iterdir():
            image(path, (7, 9), "L")
    assert held_out(tmp_path / "pets") == expected
    assert sorted(expected) == ["cat/003.png", "cat/006.png", "cat/026.png", "dog/004.png", "dog/017.png"]


def test_adding_or_removing_images_moves_at_most_one_other_each(tmp_path: Path) -> None:
    root = plant(tmp_path, {"cat": 60, "dog": 40})
    before = held_out(root)
    moves = []
    for number in range(200, 260):
        path = image(root / "cat" / f"{number}.png")
        after = held_out(root)
        new = f"cat/{number}.png"
        moved = (before ^ after) - {new}
        assert len(moved) <= 1
        assert not {name for name in moved if name.startswith("dog")}
        moves.append(len(moved))
        if number % 2:
            path.unlink()
            assert held_out(root) == before
        else:
            before = after
    assert sum(moves) < 20  # most stay all where they are
    assert len([name for name in before if name.startswith("cat")]) == 9


def test_a_folder_whose_classes_have_one_image_each_has_no_val(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 1, "dog": 1})
    with pytest.raises(UserError) as error:
        open_data(DataConfig(root=str(tmp_path)))
    assert str(error.value) == (
        "data.val_fraction: no class has two images, so none can be held out: add images, or set data.val_fraction 0"
    )
    assert list(open_data(DataConfig(root=str(tmp_path), val_fraction=0)).splits) == ["train"]


def test_a_folder_with_a_val_split_keeps_it(tmp_path: Path) -> None:
    plant(tmp_path, {"train/cat": 5, "train/dog": 5, "val/cat": 2, "val/dog": 1})
    assert held_out(tmp_path) == {"val/cat/000.png", "val/cat/001.png", "val/dog/000.png"}


def test_data_without_keys_keeps_the_permutation() -> None:
    """Digits, MNIST and CIFAR: their runs are compared over years."""
    val = open_data(DataConfig(name="digits")).splits["val"]
    assert val.indices[:8].tolist() == [1334, 664, 1172, 1090, 1342, 854, 743, 976]
    source = MemorySource(np.zeros((20, 1, 2, 2), np.uint8), np.zeros(20, np.int64))
    data = LabelledSplits({"train": all_of(source)}, ("a",), 1, 2, (0.5,), (0.5,))
    keyed = with_val(data, 0.1, np.arange(20, dtype=np.uint64)[::-1])
    assert keyed.splits["val"].indices.tolist() == [18, 19]
