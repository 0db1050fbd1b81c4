"""The facts of a data set: counts, sizes, what was left out, and what a person should know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.data.sources.trees import image, plant
from vit_dist.config.fields import DataConfig
from vit_dist.data.sources import survey as module
from vit_dist.data.sources.decode import Header
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.source import MemorySource
from vit_dist.data.sources.splits import ImageSizes, LabelledSplits, Subset, all_of
from vit_dist.data.sources.survey import measure, survey


def splits(**counts: list[int]) -> LabelledSplits:
    """Return grey images of 6 × 6 in memory: of each split, the images of each class."""

    def subset(row: list[int]) -> Subset:
        labels = np.repeat(np.arange(len(row)), row)
        return all_of(MemorySource(np.zeros((len(labels), 1, 6, 6), np.uint8), labels))

    names = tuple(f"c{number}" for number in range(len(counts["train"])))
    return LabelledSplits({name: subset(row) for name, row in counts.items()}, names, 1, 6, (0.5,), (0.5,))


def test_counts_are_those_of_each_class_in_each_split() -> None:
    facts = survey(splits(train=[12, 30, 11], val=[0, 3, 1]))
    assert facts.counts == {"train": (12, 30, 11), "val": (0, 3, 1)}
    assert (facts.total("train"), facts.total("val"), facts.total("test")) == (53, 4, 0)
    assert facts.sizes == ImageSizes(53, 6, 6, 6, 1.0)
    assert facts.rows() == {
        "classes": "3, train + val: c0 (12 + 0), c1 (30 + 3), c2 (11 + 1)",
        "sizes": "6 × 6 pixels, grey",
    }
    assert facts.notes == (
        "val has 4 images, so one of them is 25.0 points of accuracy: "
        "hold out more by a larger data.val_fraction, or add images to val",
        "1 class has no image in val (c0, 12 in train): nothing is measured on them",
    )


def test_of_many_classes_the_smallest_median_and_largest_are_named() -> None:
    facts = survey(splits(train=[20, 10, 90, 40, 30, 50, 60, 70, 80]))
    assert facts.rows()["classes"] == "9, train: smallest c1 (10), median c5 (50), largest c2 (90)"
    assert facts.notes == ()
    balanced = survey(splits(train=[20] * 9, val=[6] * 9))
    assert balanced.rows()["classes"] == "9, train + val: each 20 + 6"


def test_small_and_unbalanced_classes_are_noted() -> None:
    assert survey(splits(train=[100, 9, 3, 2, 1], val=[50, 1, 1, 1, 1])).notes == (
        "4 classes have under 10 training images (c1 9, c2 3, c3 2 …): add images, or expect mistakes there",
        "classes are unbalanced, 100 to 1 (c0 100, c4 1): read balanced accuracy and the figures per class, not "
        "accuracy alone",
    )
    assert survey(splits(train=[99, 10], val=[50, 1])).notes == ()
    assert survey(splits(train=[100, 10], val=[50, 1])).notes[0].startswith("classes are unbalanced, 10 to 1 (c0 100, ")


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    for number, (size, mode) in enumerate([((20, 30), "RGB"), ((50, 40), "L"), ((5000, 60), "RGB"), ((64, 64), "RGB")]):
        image(tmp_path / "ab"[number % 2] / f"{number}.png", size, mode)
    facts = survey(read_folder(tmp_path))
    assert facts.sizes == ImageSizes(4, 20, 40, 5000, 0.25)
    assert facts.rows()["sizes"] == (
        "sides of 20 to 5,000 pixels, median 40 (shorter side; 4 images, 25% of them grey)"
    )
    assert facts.notes[1:] == (
        "some sides are of 20 pixels: below 32, little is there to see, however it is enlarged",
        "some sides are of 5,000 pixels: decoding may take longer than training; smaller copies train as well",
        "25% of the images are grey among images in colour: a class that has more of them is told by that",
    )


def test_files_whose_headers_cannot_be_read_are_noted(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 12, "dog": 12})
    for name in ("cat/003.png", "dog/002.png"):
        (tmp_path / name).write_bytes(b"broken")
    facts = survey(read_folder(tmp_path))
    assert facts.notes[0] == (
        "2 of 24 images looked at cannot be read (cat/003.png, dog/002.png), and training ends at the first: mend or "
        "remove them now, leave them out (vit-dist check writes the list), or set data.on_bad_sample skip"
    )


def test_what_is_done_to_images_when_they_are_decoded_is_counted_and_said_once(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 12, "dog": 12})
    generator, exif = np.random.default_rng(0), Image.Exif()
    pixels = generator.integers(0, 256, (40, 40, 4), dtype=np.uint8)
    for number, orientation in enumerate((1, 3, 6, 8)):
        exif[ExifTags.Base.Orientation] = orientation
        Image.fromarray(pixels[:, :, :3]).save(tmp_path / "cat" / f"{number:03}.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "dog" / "000.png")
    Image.fromarray(pixels[:, :, :3]).quantize(8).save(tmp_path / "dog" / "001.png", transparency=2)
    facts = survey(read_folder(tmp_path))
    assert facts.sizes is not None
    assert (facts.sizes.turned, facts.sizes.transparent) == (3, 2)
    assert facts.notes[-2:] == (
        "3 of 24 images looked at are turned upright, as their EXIF says",
        "2 of 24 images looked at have transparency: what is transparent becomes white",
    )


def test_headers_are_read_of_a_keyed_sample_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(1200)]
    asked: list[Path] = []
    monkeypatch.setattr(module, "read_header", lambda path: asked.append(path) or Header(10, 20, False))
    assert measure(paths) == ImageSizes(500, 10, 10, 20, 0.0)
    first = list(asked)
    assert len(set(first)) == 500
    assert any(int(path.stem) > 1000 for path in first)
    measure(paths)
    assert asked[500:] == first


def test_files_that_are_no_images_have_no_size(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"none")
    assert measure([tmp_path / "a.png", tmp_path / "gone.png"]) is None
    assert measure([tmp_path / "a.png", image(tmp_path / "b.png")]) == ImageSizes(
        1, 5, 5, 6, 0.0, (f"{tmp_path.name}/a.png",)
    )


def test_facts_are_plain_values(tmp_path: Path) -> None:
    plant(tmp_path, {"cat": 10, "dog": 10, "empty": 0})
    values = survey(open_data(DataConfig(root=str(tmp_path)))).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values == {
        "classes": ["cat", "dog"],
        "counts": {"train": {"cat": 9, "dog": 9}, "val": {"cat": 1, "dog": 1}},
        "sizes": {
            **{"sampled": 20, "smallest": 5, "median": 5, "largest": 6, "grey": 0.0, "unreadable": []},
            **{"turned": 0, "transparent": 0},
        },
        "left_out": [{"kind": "folders without images", "count": 1, "example": "empty"}],
        "notes": [
            "2 classes have under 10 training images (cat 9, dog 9): add images, or expect mistakes there",
            "val has 2 images, so one of them is 50.0 points of accuracy: "
            "hold out more by a larger data.val_fraction, or add images to val",
            "some sides are of 5 pixels: below 32, little is there to see, however it is enlarged",
        ],
    }
