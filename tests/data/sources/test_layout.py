"""The layouts of folders: those that are recognised, and those that are refused with the tree that was found."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import unicodedata
from pathlib import Path

import pytest

from tests.data.sources.trees import image, plant
from vit_dist.config.fields import DataConfig
from vit_dist.data.sources.folder import read_folder
from vit_dist.data.sources.layout import BESIDE, LOOSE
from vit_dist.data.sources.names import split_words
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.data.sources.survey import survey
from vit_dist.errors import UserError

WORKS = "  what works: CLASS/*.jpg for each class, or train/CLASS/*.jpg with val/CLASS/*.jpg and test/CLASS/*.jpg"


def counts(data: LabelledSplits) -> dict[str, dict[str, int]]:
    """Return split → class → images, classes without any left out."""
    return {
        split: {name: count for name, count in zip(data.classes, row, strict=True) if count}
        for split, row in survey(data).counts.items()
    }


def read(root: Path, folders: dict[str, int], classes: str = "auto") -> dict[str, dict[str, int]]:
    return counts(read_folder(plant(root, folders), classes=classes))


def refusal(root: Path, folders: dict[str, int], classes: str = "auto") -> list[str]:
    """Return the lines of a refusal, from the reason on."""
    with pytest.raises(UserError) as error:
        read_folder(plant(root, folders), classes=classes)
    lines = str(error.value).split("\n")
    return [lines[0].removeprefix(f"data.root: {root}: "), *lines[1:]]


def left_out(data: LabelledSplits) -> list[str]:
    return [str(kind) for kind in data.left_out]


TWO = {"cat": 3, "dog": 2}


@pytest.mark.parametrize("name", ["0", "data", "photo", "set"])
def test_the_one_class_of_a_split_is_a_class_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    trees = {f"train/{name}": 4, "train/other": 4, f"val/{name}": 2, f"test/{name}": 1}
    assert read(tmp_path, trees) == {"train": {name: 4, "other": 4}, "val": {name: 2}, "test": {name: 1}}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("train_images", "valid_images", "test-images"),
        ("images_train", "images_dev", "images_test"),
        ("train2017", "val2017", "test2017"),
        ("trainset", "evalset", "testset"),
        ("seg_train", "seg_dev", "seg_test"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val", "ILSVRC2012_img_test"),
        ("train", "evaluation", "TEST"),
        ("train data", "development", "test data"),
    ],
)
def test_splits_outside_class_folders(tmp_path: Path, train: str, val: str, test: str) -> None:
    folders = {f"{train}/cat": 3, f"{train}/dog": 2, f"{val}/cat": 1, f"{val}/dog": 1, f"{test}/dog": 2}
    assert read(tmp_path, folders) == {"train": TWO, "val": {"cat": 1, "dog": 1}, "test": {"dog": 2}}


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "dev"), ("train_images", "eval_images")])
def test_splits_inside_class_folders(tmp_path: Path, names: tuple[str, str]) -> None:
    train, val = names
    folders = {f"cat/{train}": 3, f"dog/{train}": 2, f"cat/{val}": 1, f"dog/{val}/deeper": 2}
    folders[f"dog/{val}"] = 1
    assert read(tmp_path, folders) == {"train": TWO, "val": {"cat": 1, "dog": 3}}


@pytest.mark.parametrize(
    "folders",
    [
        TWO,
        {"cat": 2, "cat/deeper": 1, "dog/photos": 2},
        {"dataset/cat": 3, "dataset/dog": 2},
        {"archive/my pets/cat": 3, "archive/my pets/dog": 2, "archive/notes": 0},
    ],
)
def test_class_folders_alone(tmp_path: Path, folders: dict[str, int]) -> None:
    assert read(tmp_path, folders) == {"train": TWO}


@pytest.mark.parametrize("wrapper", ["archive/dataset", "images", "a/b/c", "archive/archive"])
def test_splits_are_found_below_the_only_folder(tmp_path: Path, wrapper: str) -> None:
    folders = {f"{wrapper}/{split}/{name}": count for split in ("train", "val") for name, count in TWO.items()}
    image(tmp_path / "preview.png")
    data = read_folder(plant(tmp_path, folders))
    assert counts(data) == {"train": TWO, "val": TWO}
    assert data.notes == (f"data.root: read {tmp_path / wrapper}, the only folder with classes in {tmp_path}",)
    assert left_out(data)[0] == f"images in no class folder: 1 ({tmp_path.name}/preview.png)"


def test_doubled_split_folders_and_an_unlabelled_one_beside_them(tmp_path: Path) -> None:
    folders = {f"seg_{split}/seg_{split}/{name}": 2 for split in ("train", "test") for name in TWO}
    data = read_folder(plant(tmp_path, {**folders, "seg_pred/seg_pred": 5}))
    assert counts(data) == {"train": {"cat": 2, "dog": 2}, "test": {"cat": 2, "dog": 2}}
    assert left_out(data) == ["images in folders beside the splits: 5 (seg_pred)"]


def test_split_folders_may_hold_one_that_says_nothing(tmp_path: Path) -> None:
    folders = {f"{split}/images/{name}": count for split in ("train", "val") for name, count in TWO.items()}
    assert read(tmp_path, {**folders, "train/labels": 0}) == {"train": TWO, "val": TWO}


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    """As in CIFAR-100, whose classes have a train among them, in each split."""
    assert read(tmp_path / "alone", {"bus": 1, "car": 1, "train": 2}) == {"train": {"bus": 1, "car": 1, "train": 2}}
    folders = {f"{split}/{name}": 1 for split in ("train", "test") for name in ("bus", "train")}
    assert read(tmp_path / "split", folders) == {split: {"bus": 1, "train": 1} for split in ("train", "test")}


@pytest.mark.parametrize("name", ["train_station", "test tube", "dev-board", "valley", "devil", "bullet train", "eva"])
def test_names_that_hold_the_word_of_a_split_are_classes(tmp_path: Path, name: str) -> None:
    assert split_words([name, "cat"]) == {}
    assert read(tmp_path, {"cat": 1, name: 2}) == {"train": {"cat": 1, name: 2}}


def test_a_split_or_a_class_is_asked(tmp_path: Path) -> None:
    folders = {"bus": 2, "car": 2, "train/electric": 1, "train/steam": 1}
    assert refusal(tmp_path, folders) == [
        "train holds folders, and bus, car stand beside it: if it is the train split, move bus, car away or rename to "
        "val or test; if it is a class, set data.classes outer",
        "  found:",
        f"    {tmp_path.name}/",
        "      bus/  2 images",
        "      car/  2 images",
        "      train/",
        "        electric/  1 image",
        "        steam/  1 image",
        WORKS,
    ]
    assert read(tmp_path, {}, "outer") == {"train": {"bus": 2, "car": 2, "train": 2}}


def test_a_split_by_another_name_beside_train_is_asked(tmp_path: Path) -> None:
    """Left out, nobody would miss it; beside two known splits it is left out and said."""
    folders = {f"{split}/{name}": 2 for split in ("train", "holdout") for name in TWO}
    reason = refusal(tmp_path, folders)[0]
    assert reason.startswith(
        "train holds folders, and holdout stands beside it: if it is the train split, move holdout "
    )
    data = read_folder(plant(tmp_path, {"test/cat": 1}))
    assert {split: sum(row.values()) for split, row in counts(data).items()} == {"train": 4, "test": 1}
    assert left_out(data) == ["images in folders beside the splits: 4 (holdout)"]


@pytest.mark.parametrize(
    ("folders", "reason"),
    [
        ({"train": 3, "val": 2}, "train, val hold images and no class folders"),
        ({"train_images": 3, "val_images": 2}, "train_images, val_images hold images and no class folders"),
        ({"images/train": 3, "images/val": 2}, "train, val in images hold images and no class folders"),
        ({"train/images": 3, "valid/images": 2, "train/labels": 0}, "train, valid hold images and no class folders"),
        ({"train/cat": 1, "train/dog": 1, "val": 2}, "val holds images and no class folders"),
        ({"train": 3, "test/cat": 1, "test/dog": 1}, "train holds images and no class folders"),
        ({"val/cat": 1, "test/cat": 1}, "it has test, val but no train folder"),
        ({"train/cat": 1, "train/dog": 1, "val": 0}, "val has no images: fill it, or remove it"),
        ({"train/cat": 1, "train/dog": 1, "test/cat": 0}, "test has no images: fill it, or remove it"),
        ({"train/cat": 0, "val/cat": 1}, "train has no images: fill it, or remove it"),
        ({"cat/train": 2, "cat/val": 1, "dog": 3}, "cat holds train, val, and dog holds no splits"),
        ({"cat/val": 2, "dog/test": 1}, "the class folders hold val, test but no train folder"),
        ({"cat/train": 2, "dog/val": 1}, "class dog has a val folder and no images in a train folder: add some"),
        (
            {"cat/train": 2, "cat/val": 0, "dog/train": 1, "dog/val": 0},
            "val has no images in any class folder: fill it, or remove it",
        ),
        (
            {"animal/cat": 1, "animal/dog": 2, "vehicle/car": 1, "vehicle/bus": 1},
            "animal, vehicle hold folders, not images: set data.classes inner for the classes animal/cat, animal/dog "
            "…, or data.classes outer for the classes animal, vehicle",
        ),
    ],
)
def test_other_layouts_are_refused_with_the_tree_that_was_found(
    tmp_path: Path, folders: dict[str, int], reason: str
) -> None:
    lines = refusal(tmp_path, folders)
    assert lines[0] == reason
    assert lines[1:3] == ["  found:", f"    {tmp_path.name}/"]
    assert lines[-1] == WORKS
    assert len(lines) < 16


def test_a_folder_of_one_class_is_answered_with_its_parent(tmp_path: Path) -> None:
    folders = plant(tmp_path / "pets", TWO)
    assert refusal(folders / "cat", {})[0] == (
        f"cat holds images and no class folders: give the folder that it and dog are in, {folders}"
    )
    alone = plant(tmp_path / "photos", {"all": 2, "no images": 0, "other/data": 1}) / "all"
    assert refusal(alone, {})[0] == (
        "all holds images and no class folders: put the images of each class into a folder of its own"
    )


def test_a_folder_among_others_than_classes_is_not_answered_with_its_parent(tmp_path: Path) -> None:
    home = plant(tmp_path / "home", {"new ones": 3, "pictures": 1, "photos/cat": 2})
    assert refusal(home / "new ones", {})[0].endswith("put the images of each class into a folder of its own")


def test_runs_among_the_images_are_passed_over(tmp_path: Path) -> None:
    root = plant(tmp_path, {**TWO, "runs/pets-3f40a2/report": 2, "cat/old/checkpoints": 1})
    for folder in ("runs/pets-3f40a2", "cat/old"):
        (root / folder / "config.yaml").write_text("")
    (root / "runs" / "pets-3f40a2" / "metrics.jsonl").write_text("")
    data = read_folder(root)
    assert data.classes == ("cat", "dog")
    assert [str(kind) for kind in data.left_out] == ["folders of runs: 2 (cat/old)"]
    assert len(data.splits["train"]) == sum(TWO.values())


def test_a_class_of_images_that_are_not_read_is_noted(tmp_path: Path) -> None:
    root = plant(tmp_path, {**TWO, "ant": 0, "empty": 0, "cat/raw": 0})
    for name in ("ant/1.HEIC", "ant/2.heic", "cat/raw/1.dng"):
        (root / name).write_bytes(b"")
    assert read_folder(root).notes == (
        "data.root: ant has only .heic, which is not read, and is no class: convert to .jpg or .png",
    )


@pytest.mark.parametrize("folders", [{"only": 3}, {"train/only": 3, "val/only": 1}, {"only/train": 3, "only/test": 1}])
def test_one_class_is_refused(tmp_path: Path, folders: dict[str, int]) -> None:
    with pytest.raises(UserError) as error:
        open_data(DataConfig(root=str(plant(tmp_path, folders))))
    if "only/train" in folders:
        assert str(error.value).startswith(f"data.root: {tmp_path}: test, train in only hold images and no class")
    else:
        assert str(error.value) == (
            f"data.root: {tmp_path} has one class, only ({sum(folders.values())} images): a classifier needs two or "
            "more, each in a folder of its own"
        )


def test_a_table_beside_one_folder_of_images_is_pointed_to(tmp_path: Path) -> None:
    plant(tmp_path, {"images": 3})
    (tmp_path / "labels.csv").touch()
    with pytest.raises(UserError) as error:
        open_data(DataConfig(root=str(tmp_path)))
    table = tmp_path / "labels.csv"
    assert str(error.value).endswith(f"; if {table} has their labels, set data.root to it")


def test_several_data_sets_are_refused_with_the_one_to_give(tmp_path: Path) -> None:
    folders = {f"{name}/{split}/{kind}": 1 for name in ("pets", "cars") for split in ("train", "val") for kind in TWO}
    assert refusal(tmp_path, folders)[0] == f"cars in it holds splits: give {tmp_path / 'cars'}"


def test_an_unlabelled_test_folder_is_left_out_and_said(tmp_path: Path) -> None:
    data = read_folder(plant(tmp_path, {"train/cat": 2, "train/dog": 2, "test": 4}))
    assert counts(data) == {"train": {"cat": 2, "dog": 2}}
    assert data.notes == (
        f"data.root: test has no class folders, so nothing is tested on it; predict {tmp_path / 'test'} later",
    )
    assert left_out(data) == ["images in no class folder: 4 (test)"]


# Super-classes

TREE = {"animal/cat": 1, "animal/dog": 2, "vehicle/car": 3, "vehicle/bus": 4}


def test_super_classes_are_read_on_request(tmp_path: Path) -> None:
    inner = {"animal/cat": 1, "animal/dog": 2, "vehicle/bus": 4, "vehicle/car": 3}
    assert read(tmp_path / "alone", TREE, "inner") == {"train": inner}
    assert read(tmp_path / "alone", {}, "outer") == {"train": {"animal": 3, "vehicle": 7}}
    split = {f"{split}/{name}": count for split in ("train", "val") for name, count in TREE.items()}
    assert read(tmp_path / "split", split, "inner") == {"train": inner, "val": inner}
    assert read(tmp_path / "split", {}, "outer") == {name: {"animal": 3, "vehicle": 7} for name in ("train", "val")}
    data = open_data(DataConfig(root=str(tmp_path / "alone"), classes="inner", val_fraction=0))
    assert data.classes == tuple(sorted(TREE))


def test_a_class_without_folders_stays_one_beside_super_classes(tmp_path: Path) -> None:
    plant(tmp_path, {"animal/cat": 1, "animal/dog": 2, "flower": 3})
    data = read_folder(tmp_path)
    assert counts(data) == {"train": {"animal": 3, "flower": 3}}
    assert data.notes == (
        f"data.root: the folders in {tmp_path / 'animal'} (cat, dog) are one class, animal; for the classes "
        "animal/cat, animal/dog … set data.classes inner",
    )
    assert read(tmp_path, {}, "inner") == {"train": {"animal/cat": 1, "animal/dog": 2, "flower": 3}}


# What is passed over


def test_what_systems_leave_behind_is_no_class(tmp_path: Path) -> None:
    plant(tmp_path, {**TWO, "__MACOSX/cat": 3, "@eaDir": 2, ".cache": 1, "lost+found": 0, "empty": 0, "cat/none": 0})
    for name in ("Thumbs.db", "cat/._000.png", "cat/.DS_Store", "dog/desktop.ini"):
        (tmp_path / name).write_bytes(b"\0")
    for name in ("cat/notes.txt", "dog/labels.json", "dog/README", "cat/more.txt", "dog/photo.HEIC"):
        (tmp_path / name).touch()
    image(tmp_path / "loose.png")
    data = read_folder(tmp_path)
    assert counts(data) == {"train": TWO}
    assert left_out(data) == [
        f"images in no class folder: 1 ({tmp_path.name}/loose.png)",
        "images of kinds that are not read, convert them to .jpg or .png, or pip install pillow-heif (.heic): 1 "
        "(dog/photo.HEIC)",
        "files that are no images by their ending (.txt, .json, none): 4 (cat/more.txt)",
        "hidden or system files or folders: 8 (.cache)",
        "folders without images: 2 (cat/none)",
    ]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_compared_in_one_unicode_form(tmp_path: Path, form: str) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    for name in ("café", "thé"):
        folders = {f"train/{unicodedata.normalize(form, name)}": 2, f"val/{unicodedata.normalize(other, name)}": 1}  # type: ignore[arg-type]
        plant(tmp_path, folders)
    data = read_folder(tmp_path)
    assert counts(data) == {"train": {"café": 2, "thé": 2}, "val": {"café": 1, "thé": 1}}
    assert data.classes == ("café", "thé")
    assert data.notes == ()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take these names for one")
def test_folders_of_one_split_that_read_alike(tmp_path: Path) -> None:
    plant(tmp_path, {unicodedata.normalize("NFC", "thé"): 2, unicodedata.normalize("NFD", "thé"): 3, "a": 1, "A": 2})
    data = read_folder(tmp_path)
    assert counts(data) == {"train": {"A": 2, "a": 1, "thé": 5}}
    assert data.notes == (
        f"data.root: A and a in {tmp_path} are two classes: move one if they are not",
        f"data.root: 2 folders in {tmp_path} read thé: they are one class",
    )


def test_classes_may_differ_in_case_between_splits(tmp_path: Path) -> None:
    data = read_folder(plant(tmp_path, {"train/Cat": 2, "train/dog": 1, "val/cat": 1, "val/Dog": 1}))
    assert counts(data) == {"train": {"Cat": 2, "dog": 1}, "val": {"Cat": 1, "dog": 1}}
    assert data.notes == (
        "data.root: Dog in val is the class dog of train",
        "data.root: cat in val is the class Cat of train",
    )


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_once_and_loops_are_not(tmp_path: Path) -> None:
    root = plant(tmp_path / "pets", {"cat": 2})
    plant(tmp_path / "elsewhere", {"dogs": 3})
    (root / "dog").symlink_to(tmp_path / "elsewhere" / "dogs")
    (root / "cat" / "again.png").symlink_to("000.png")
    (root / "cat" / "up").symlink_to(tmp_path / "pets")
    (root / "cat" / "over").symlink_to(tmp_path)
    (root / "cat" / "self").symlink_to("self")
    (root / "dog" / "cat").symlink_to(root / "cat")
    data = read_folder(root)
    assert counts(data) == {"train": {"cat": 2, "dog": 5}}
    assert left_out(data) == [
        "files that are no images by their ending (none): 2 (cat/self)",
        "links to a folder above them: 4 (cat/over)",
        "second names of a file in the same class: 2 (cat/again.png)",
    ]
    assert data.notes == (
        f"data.root: 2 files are there twice, by links, in two splits or classes ({root / 'cat' / '000.png'} and "
        f"{root / 'dog' / 'cat' / '000.png'}): keep one of each",
    )


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="everything can be opened")
def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    plant(tmp_path, TWO)
    (tmp_path / "cat").chmod(0)
    try:
        with pytest.raises(UserError, match=r"cat: cannot be opened: Permission denied: mend its permissions"):
            read_folder(tmp_path)
    finally:
        (tmp_path / "cat").chmod(0o755)


NAMES = (
    "train",
    "val",
    "test",
    "dev",
    "seg_train",
    "seg_test",
    "Train",
    "images",
    "data",
    "cat",
    "dog",
    "bus",
    "x1",
    "2021",
)


def random_tree(root: Path, draw: random.Random, depth: int = 0) -> int:
    """Write a tree of up to four levels; return its images."""
    count = draw.choice((0, 0, 1, 3)) if depth < 3 else draw.choice((0, 1, 2))
    root.mkdir()
    for number in range(count):
        (root / f"{number}.png").touch()
    for name in draw.sample(NAMES, draw.choice((0, 1, 2, 2, 3))) if depth < 3 else ():
        count += random_tree(root / name, draw, depth + 1)
    return count


@pytest.mark.parametrize("trees", [150, pytest.param(3_000, marks=pytest.mark.slow)])
def test_every_image_is_read_or_counted_as_left_out_or_the_tree_is_refused(tmp_path: Path, trees: int) -> None:
    read_trees = 0
    for seed in range(trees):
        draw = random.Random(seed)
        count = random_tree(tmp_path / str(seed), draw)
        for classes in ("auto", "outer", "inner"):
            data = None
            with contextlib.suppress(UserError):
                data = read_folder(tmp_path / str(seed), classes=classes)
            if data is None:
                continue
            found = sum(map(len, data.splits.values()))
            assert found + sum(kind.count for kind in data.left_out if kind.kind in (LOOSE, BESIDE)) == count
            assert all(len(split) for split in data.splits.values())
            read_trees += 1
    assert read_trees > trees / 2


def test_classes_that_are_numbers_are_in_their_order_and_that_is_said(tmp_path: Path) -> None:
    data = open_data(DataConfig(root=str(plant(tmp_path / "numbers", {str(n): 2 for n in (1, 2, 10, 21, 3)}))))
    assert data.classes == ("1", "2", "3", "10", "21")
    assert "classes are numbers, and in their order: 1, 2, 3, …, 21" in data.notes
    paths = data.splits["train"].source.paths  # type: ignore[attr-defined]
    labels = {Path(paths[i]).parent.name: label for i, label in enumerate(data.splits["train"].source.labels.tolist())}
    assert labels == {"1": 0, "2": 1, "3": 2, "10": 3, "21": 4}
    plain = open_data(DataConfig(root=str(plant(tmp_path / "padded", {"01": 2, "02": 2, "10": 2}))))
    assert plain.classes == ("01", "02", "10")
    assert not any("in their order" in note for note in plain.notes)
    names = open_data(DataConfig(root=str(plant(tmp_path / "names", {"n2": 2, "n10": 2}))))
    assert names.classes == ("n10", "n2")
