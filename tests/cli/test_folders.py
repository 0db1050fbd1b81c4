"""Folders of images as commands answer them: refused alike by plan and train, or said and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import ExifTags, Image

from tests.cli.commands import command
from tests.data.sources.trees import image, plant
from tests.runs import PICTURES, QUIET
from vit_dist import UserError
from vit_dist.config.fields import DataConfig
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.survey import survey
from vit_dist.files import read_json
from vit_dist.run_folder.data_facts import FACTS, read_data_facts

FLAGS = [f"--{name}={value}" for name, value in {**PICTURES, **QUIET, "train.duration": "2 updates"}.items()]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("verb", ["plan", "train"])
@pytest.mark.parametrize(
    ("folders", "line"),
    [
        ({"train_images": 3, "val_images": 2}, "pets: train_images, val_images hold images and no class folders"),
        (
            {"only": 5},
            "pets has one class, only (5 images): a classifier needs two or more, each in a folder of its own",
        ),
        (
            {"train/a": 3, "train/b": 3, "val/a": 1, "val/c": 1},
            "class c is in pets/val and not in pets/train: add images of it there, or move pets/val/c away",
        ),
    ],
)
def test_plan_and_train_refuse_alike(
    verb: str, folders: dict[str, int], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path / "pets", folders)
    result = command(capsys, verb, "--data.root", "pets", *FLAGS)
    assert (result.code, result.out) == (2, "")
    lines = result.err.splitlines()
    assert lines[0] == f"vit-dist: data.root: {line}"
    if len(lines) > 1:  # the tree stands below its line, without a head of its own
        assert lines[1:3] == ["  found:", "    pets/"]
        assert not any(other.startswith("vit-dist") for other in lines[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


def test_what_was_found_is_printed_by_plan_and_train_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path / "pets", {"train/cat": 30, "train/dog": 20, "test/cat": 2, "empty": 0})
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").touch()
    image(tmp_path / "pets" / "train" / "dog" / "large.png", (50, 40), "L")
    for verb in ("plan", "train"):
        result = command(capsys, verb, "--data.root", "pets", "--run.dir", "run", *FLAGS)
        assert result.code == 0
        shown = [" ".join(line.split()) for line in (result.out + result.err).splitlines()]
        assert "classes 2, train + val + test: cat (27 + 3 + 2), dog (19 + 2 + 0)" in shown
        assert "sizes sides of 5 to 50 pixels, median 5 (shorter side; 51 images, 2% of them grey)" in shown
        left_out = "files that are no images by their ending (.txt): 1 (train/cat/notes.txt)"
        assert f"left out {left_out}; folders without images: 1 (empty)" in shown
        val = "note: val has 5 images, so one of them is 20.0 points of accuracy"
        assert f"{val}: hold out more by a larger data.val_fraction, or add images to val" in shown
    facts = survey(open_data(DataConfig(root="pets")))
    assert read_json(tmp_path / "run" / FACTS) == facts.to_dict()
    kept = read_data_facts(tmp_path / "run" / FACTS)
    assert kept is not None
    assert kept.totals == {"train": 46, "val": 5, "test": 2}
    assert kept.sizes == (5, 5, 50)


def said(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """Return what a command prints that succeeds, a line each, with single spaces."""
    result = command(capsys, *words)
    assert result.code == 0, result.err
    return [" ".join(line.split()) for line in (result.out + result.err).splitlines()]


def test_uneven_classes_are_counted_and_one_that_has_no_val_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path / "pets", {"common": 120, "rare": 5, "single": 1})
    for verb in ("plan", "train"):
        lines = said(capsys, verb, "--data.root", "pets", *FLAGS)
        assert "classes 3, train + val: common (108 + 12), rare (4 + 1), single (1 + 0)" in lines
        absent = "note: 1 class has no image in val (single, 1 in train): nothing is measured on them"
        assert lines.count(absent) == 1


def test_tiny_images_keep_their_side_or_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        for number in range(60):
            image(tmp_path / "icons" / name / f"{number}.png", (32, 32))
    lines = said(capsys, "plan", "--data.root", "icons")
    assert "sizes 32 × 32 pixels" in lines
    assert any(line.startswith("images 3 × 32 × 32, mean ") for line in lines)
    assert "evaluated shorter side to 32 pixels (bicubic), then the centre of 32 × 32" in lines
    lines = said(capsys, "plan", "--data.root", "icons", "--model.name", "timm/vit_tiny_patch16_224")
    large = "note: data.image_size: 224 enlarges images of 32 pixels 7 times, which takes time and shows nothing more"
    assert large in lines


def test_photos_that_exif_turns_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name in ("up", "down"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (48, 40)).save(tmp_path / "photos" / name / f"{number}.jpg", exif=exif)
    note = "note: 12 of 12 images looked at are turned upright, as their EXIF says"
    for verb in ("plan", "train"):
        assert said(capsys, verb, "--data.root", "photos", *FLAGS).count(note) == 1


def test_evaluate_reads_two_levels_and_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path / "pets", {"animal/cat": 12, "animal/dog": 12, "thing/car": 12})
    assert (
        command(capsys, "train", "--data.root", "pets", "--data.classes", "inner", "--run.dir", "run", *FLAGS).code == 0
    )
    assert command(capsys, "evaluate", "run", "--folder", "pets").code == 0
    plant(tmp_path / "other", {"animal/cat": 2, "thing/car": 1, "thing": 1})
    image(tmp_path / "other" / "loose.png")
    (tmp_path / "other" / "animal" / "cat" / "photo.heic").touch()
    result = command(capsys, "evaluate", "run", "--folder", "other")
    assert (result.code, result.err) == (0, "")
    assert "other: 3 images" in result.out
    note = (
        "note: left out of other: images in no class folder: 1 (other/loose.png); images in no class folder: 1 "
        "(thing/000.png); images of kinds that are not read, convert them to .jpg or .png, or pip install pillow-heif "
        "(.heic): 1 (animal/cat/photo.heic)"
    )
    assert note in result.out


def test_python_gets_the_tree_too(tmp_path: Path) -> None:
    plant(tmp_path / "pets", {"train": 3, "val": 2})
    with pytest.raises(UserError) as error:
        open_data(DataConfig(root="pets"))
    assert str(error.value).splitlines()[1:5] == [
        "  found:",
        "    pets/",
        "      train/  3 images",
        "      val/  2 images",
    ]
